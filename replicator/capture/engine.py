"""GroupEngine: the write order of one group, and what is made durable before what.

The path of a host write (`write`): range lock; group lock: next seq and write time, bits of every live bitmap, record
into the journal, publish; then the pool; then release. Waiting for a synchronous peer comes after that, in service.py.
The order of two overlapping writes is therefore the same in the journal, in the pool and on every copy.

The journal is the redo log of the pool: a flush syncs the journal alone; the pool is synced at checkpoints, and after a
crash everything behind the last checkpoint is redone. So nothing acknowledged after a flush depends on an unsynced
pool, and nothing is ever in the pool of a restarted node that is not in its journal, except after power loss, when the
pool may have kept bytes whose record was lost: then a new epoch begins and the regions that the intent log marks are
copied to the peer again (roles.py).

A write that the pool refuses after its record was published (no space, a dead medium) is followed, under the same range
lock, by COPY records of what the range really holds, so the copy follows this node and not the failed write. Errors
of a pool are of classes that this package does not know, so what comes out of one is caught as Exception.

One lock orders everything of a group (`lock`); it is held over the journal's page-cache write, which keeps publication
in order without a queue. Hot path: `write` and `_record`; keep them short.

What it does not do: wait, sleep or start threads (service.py), decide over the peer (replicator.core).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from crc32c import crc32c

from replicator.capture import journalloss
from replicator.capture.bitmaps import TODO, Bitmaps
from replicator.capture.clock import WriteClock
from replicator.capture.facts import facts_of
from replicator.capture.limits import Waiting
from replicator.capture.numbers import Numbers
from replicator.capture.retention import Marks
from replicator.capture.state import BITMAP, JOURNAL, PRIMARY, SECONDARY, UNTRACKED, Edge, GroupState, StateFile
from replicator.capture.unanswered import Unanswered
from replicator.core.errors import FarstripeError, MediumError, Refused
from replicator.core.numbering import Arrival
from replicator.core.records import (
    FLAG_FUA,
    FLAG_NO_PUNCH,
    FLAG_NUMBERED,
    HEADER_BYTES,
    NUMBER_BYTES,
    Header,
    Kind,
    pack_header,
    pack_number,
)
from replicator.journal.files import Buffer
from replicator.journal.page import (
    DURABLE_OFF,
    DURABLE_SEQ,
    EDGE_ASLEEP,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    STATE_GEN,
    SYNC_ON,
    TAIL_OFF,
    Page,
    edge_slot,
)
from replicator.journal.ring import Journal

if TYPE_CHECKING:
    from replicator.capture.damage import Damage
    from replicator.capture.preimages.recorder import PreImages
    from replicator.capture.volumeset import VolumeHost

RANGE_SHIFT = 20  # a range lock covers 1 MiB
RANGE_LOCKS = 256
RESERVE_BYTES = 64 << 10  # journal room that only control records may use
SEQ_RESERVE = 1 << 20  # numbers reserved at a time in bitmap mode
HIST_ENTRIES = 128
PIECE_BYTES = 1 << 20  # what a refused write left behind is told in pieces that do not cross multiples of this

_WRITE = int(Kind.WRITE)
_REFUSE, _PLAIN, _JOURNALING, _BITMAPPING, _PARK = range(5)


class Volume(Protocol):
    """A volume as the engine sees it. Offsets and lengths are bytes; errors are OSError or a FarstripeError."""

    size: int

    def pread_into(self, buf: memoryview, offset: int) -> None:
        """Fill `buf`."""

    def pread_once(self, buf: memoryview, offset: int) -> None:
        """Fill `buf` with what nobody will want again soon."""

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """Write all of `buf`."""

    def zero(self, offset: int, length: int, punch: bool) -> None:
        """Make the range read as zeroes; free its space when `punch`."""

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """(length, allocated) pieces that cover the range."""


class Parked(Exception):
    """The group is held, or its journal is full: try again when it has been opened."""

    made = 0
    """Seq of the change if it was made, and only could not be made durable."""


class JournalLost(MediumError, Parked):
    """The journal's medium has failed: try again when the group counts differences instead (journalloss.py)."""


class NoRoom(Refused):
    """The journal cannot take the record now."""

    def __init__(self) -> None:
        super().__init__("the journal is full just now", "try again in a moment")


class GroupEngine:
    """One group on this node. Public methods are thread-safe; none waits for the network."""

    def __init__(
        self,
        state: GroupState,
        state_file: StateFile,
        journal: Journal,
        page: Page,
        bitmaps: Bitmaps,
        volumes: Sequence[Volume],
        pool_sync: Callable[[], None],
        clock: WriteClock,
        boot: int,
    ) -> None:
        """Put the parts together; call `recovery.open_engine` rather than this.

        volumes: in index order. pool_sync: makes everything written to the volumes durable, or raises.
        clock: of the node, shared by its groups. boot: a number that names this boot of the machine.
        """
        self.state = state
        self.state_file = state_file
        self.journal = journal
        self.page = page
        self.bitmaps = bitmaps
        self.volumes = list(volumes)
        self.pool_sync = pool_sync
        self.clock = clock
        self.boot = boot
        self.lock = threading.Lock()
        self.apply_lock = threading.RLock()
        self.apply_buffer = bytearray()
        """Of the follower, under apply_lock."""
        self.checkpoint_lock = threading.Lock()
        self.opened = threading.Condition(self.lock)
        """Notified when parked writers should try again."""
        self.failed = ""
        self.failed_by_journal = False
        """The group failed for its journal alone: a new one mends that."""
        self.apply_error = ""
        self.wants_room = False
        """The pool is full, and so nothing is applied: see apply_error."""
        self.damaged: Damage | None = None
        """Of a secondary: the record in its journal before which it has to stop; see damage.py."""
        self.damaged_at_start = ""
        """What was found damaged in the journal, and done without, when the group was opened."""
        self.suspect: int | None = None
        """An offset in the journal at which a checkpoint found no record."""
        self.list_in_doubt = 0
        """A change of the list was said and could not be synced (volumeset.py): the next index of a volume; else 0."""
        self.full_for: dict[int, int] = {}
        """Slots of edges for whose sake the journal had no room for a host write, with the tail's offset then: writers
        wait or fail while it is there."""
        self.applied_in_part = 0
        """Of a secondary: records up to this seq may be in the pool, in part or in gaps, also where they do not count as
        applied: a former life was applying them, or the pool refused one half way. 0 once other records have taken
        their numbers."""
        self.parked_for = ""  # "" | "hold" | "full" | "journal" | "volumes"
        self.marks = Marks()
        """Places in the journal, for retention."""
        self.journal_lost = ""
        """Why the journal takes nothing any more, until the group has gone over to counting differences."""
        self._u64 = page.u64
        self._maps = bitmaps.maps
        self._ranges = [threading.Lock() for _ in range(RANGE_LOCKS)]
        self._room_bytes = 0
        self.resized()
        self._inflight: set[int] = set()
        self._ticket = 0
        self._last_time = state.last_time_ns
        clock.note(state.last_time_ns)
        self.opened_at_ns = clock.last
        """No record applied in an earlier life has a later write time."""
        self._admit = _REFUSE
        self.linked: set[int] = set()
        """Slots of the edges over which records flow."""
        self.waits: tuple[Edge, ...] = ()
        """The edges whose peers a host write waits for."""
        self.unanswered = Unanswered()
        self._sleepers: tuple[tuple[int, int], ...] = ()
        self.unjournaled = 0
        """Times that journaling began while the pool held changes which no record tells of."""
        self.unjournaled_synced = 0
        """Those of them whose changes are on stable storage by now; see make_durable."""
        self.announce: Callable[[int], None] = _nobody
        """Called with an edge's slot when a record was added and the edge's replicator sleeps: it ships while the pool
        is written."""
        self.last_host_seq = 0
        """No host write has a higher seq; a bound, not a count."""
        self.applied_time_ns = 0
        """Write time of the last record applied from the journal, 0 before the first."""
        self.preimages: PreImages | None = None
        """Of a group that retains what a secondary overwrites; see preimages/. Under apply_lock."""
        self.volume_host: VolumeHost | None = None
        """What makes and resizes volumes when the group's list changes; see volumeset.py."""
        self.unsettled = False
        """The last step of such a change is still to be done."""
        self.recovering = False
        """The primary's journal is being redone; no host write comes meanwhile."""
        self.refused: dict[tuple[int, int, int], Exception] = {}
        """In redo: ranges (volume, offset, length) of records that the pool refused; see follower.redo_all."""
        self.limit_time_ns = 0
        """See limits.py for this and the next; 0: no limit."""
        self.limit_seq = 0
        self.numbers: Numbers | None = None
        """Of a group in a set that orders by counter: what every record gets its number from. Under the group lock."""
        self.last_numbered: Arrival | None = None
        """Of the last record with a number that was applied since the start."""
        self.applies_through = False
        """Under apply_lock: everything is applied now, also what the limit of a set, which others set, would hold
        back."""
        self.waiting: Waiting | None = None
        self.pending_epochs: list[list[int]] = []
        """Epochs of records that a limit holds back, as of the last settle."""
        self.on_lift: Callable[[], None] = _no_limit
        self.on_marker: Callable[[Header, memoryview], None] = _no_marker
        """Called by the follower of a secondary when everything up to a marker is applied, and nothing after it."""
        self.refresh()

    # -- admission ------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Work out anew what happens to host writes. Call it after any change of state; takes no lock."""
        state = self.state
        if self.failed or state.role != PRIMARY:
            self._admit = _REFUSE
        elif self.parked_for:
            self._admit = _PARK
        else:
            self._admit = {UNTRACKED: _PLAIN, JOURNAL: _JOURNALING, BITMAP: _BITMAPPING}[state.mode]
        self.waits = tuple(e for e in state.edges if e.sync_on) if state.role == PRIMARY else ()
        if not self.waits:
            self.unanswered.entries.clear()
        self._sleepers = tuple((edge_slot(e.slot, EDGE_ASLEEP), e.slot) for e in state.edges)
        self._u64[SYNC_ON] = sum(1 << e.slot for e in state.edges if e.sync_on)

    def _refusal(self) -> FarstripeError:
        name = self.state.name
        if self.failed and self.failed_by_journal and self.state.role == SECONDARY:
            return MediumError(f"group {name} has failed: {self.failed}", f"farstripe group journal replace {name}")
        if self.failed:
            return MediumError(f"group {name} has failed: {self.failed}", "take over on the peer, or restart this node")
        return Refused(
            f"group {name} is secondary here, its volumes are read-only",
            "write on the primary, or make this side primary with 'switchover' or 'takeover'",
        )

    def fail(self, reason: str) -> None:
        """Stop the group: every further write and flush is an error until the target restarts.

        The replicator stops too, by the new incarnation: its own sync of the same journal could succeed after ours
        failed, and then call records durable that the failed sync has dropped.
        """
        with self.opened:
            self._seal(reason)
            self.opened.notify_all()

    def lose_journal(self, reason: str) -> FarstripeError:
        """Give up the journal for an error of its medium; returns what to raise. The caller holds the group lock.

        Where the group may go on without its peer writers are parked until it has gone over to a bitmap
        (roles.overflow), else it fails. Nothing is appended or synced any more, and the replicator stops: of its syncs,
        too, the next one could succeed without having written what this one dropped.
        """
        if self.failed:
            return self._refusal()
        if not journalloss.may_go_over(self):
            self.failed_by_journal = True
            self._seal(reason)
            return self._refusal()
        if not self.journal_lost:
            self.journal_lost = reason
            self._u64[INCARNATION] += 1
            self.ring_replicators()
            if self.parked_for != "hold":
                self.parked_for = "journal"
            self.commit(sealed=True)
        return JournalLost(f"the journal of group {self.state.name} has failed: {reason}", "wait: the group goes on")

    def _seal(self, reason: str, *, write_down: bool = True) -> None:
        """`fail` for a caller that holds the group lock: parked writers find out when they look again.

        That it failed is written down if it can be: after a failed sync the kernel takes pages for clean that never
        reached the disk, and the next process must not rely on its own first sync (see recovery.py).
        """
        if not self.failed:
            self.failed = reason
            self._u64[INCARNATION] += 1
            self.ring_replicators()
            try:
                if write_down:
                    self.state_file.save(replace(self.state, sealed=True))
            except OSError:
                pass  # then the state itself says nothing new, and the next life is no worse off than after a kill
        self.refresh()

    def stop_receiving(self, reason: str) -> None:
        """Stop a secondary for a moment: its replicators notice, and nothing is received until `go_on`."""
        with self.opened:
            self.failed_by_journal = True
            self._seal(reason, write_down=False)

    def go_on(self) -> None:
        """End `stop_receiving`, if nothing else has failed meanwhile. The caller holds the group lock."""
        if self.failed_by_journal:
            self.failed, self.failed_by_journal = "", False
        self.refresh()

    def save(self) -> None:
        """Write the state. Durable: the state. A failure fails the group and is raised."""
        self._store(self.state)

    def _store(self, state: GroupState) -> None:
        state.last_time_ns = max(self._last_time, self.applied_time_ns)
        try:
            self.state_file.save(state)
            self._u64[STATE_GEN] = self.state_file.generation
        except OSError as e:
            self._seal(f"its state cannot be written: {e}", write_down=False)
            raise MediumError(f"state of group {self.state.name} cannot be written: {e}", "check the disk") from e

    def commit(self, edges: dict[int, dict[str, Any]] | None = None, **changes: Any) -> None:
        """Change fields of the state: first on stable storage, then for all to see. The caller holds the group lock.

        edges: changes of edges, by slot.
        Durable: the state. Raises as `save` does; nothing is changed then.
        """
        edges = edges or {}
        self._store(replace(self.state, edges=self.state.with_edges(edges), **changes))
        for edge in self.state.edges:
            for name, value in edges.get(edge.slot, {}).items():
                setattr(edge, name, value)
        for name, value in changes.items():
            setattr(self.state, name, value)
        self.refresh()

    def set_edges(self, edges: list[Edge], **changes: Any) -> None:
        """Replace the list of edges; otherwise like `commit`."""
        self._store(replace(self.state, edges=edges, **changes))
        self.state.edges = edges
        for name, value in changes.items():
            setattr(self.state, name, value)
        self.refresh()

    def sync_pool(self) -> None:
        """Durable: all bits and all changes of the volumes. A failure fails the group and is raised as MediumError."""
        try:
            self.bitmaps.sync()
            self.pool_sync()
        except Exception as e:
            self._seal(f"its pool cannot be synced: {e}")
            raise self._refusal() from e

    @property
    def pos(self) -> int:
        """The last seq given out or received."""
        return self._u64[HEAD_SEQ]

    @property
    def epoch(self) -> int:
        """The epoch new records belong to, 0 before there is one."""
        return self.state.hist[-1][0] if self.state.hist else 0

    def resized(self) -> None:
        """Take note of the journal's size. The caller holds the group lock, or is alone."""
        self._room_bytes = self.journal.capacity - RESERVE_BYTES

    # -- host requests --------------------------------------------------------------------------------------------

    def write(self, volume: int, offset: int, buf: Buffer, fua: bool = False) -> int:
        """Store a host write. Returns the seq a synchronous group waits for, 0 or less when there is none.

        buf: borrowed until return. Raises Parked or NoRoom (try again later; nothing happened), Refused (wrong role),
        MediumError or OSError.
        Durable: with `fua` the write, otherwise nothing. After a kill of the process the write is there.
        """
        n = len(buf)
        crc = crc32c(buf)
        first = offset >> RANGE_SHIFT
        if (offset + n - 1) >> RANGE_SHIFT == first:
            with self._ranges[(first + volume * 97) & 255]:
                seq = self._record(_WRITE, FLAG_FUA if fua else 0, volume, offset, n, buf, n, crc)
                try:
                    for asleep, slot in self._sleepers:
                        if self._u64[asleep]:
                            self.announce(slot)
                    self.volumes[volume].pwrite(buf, offset)
                except BaseException as e:
                    self._compensate(volume, offset, n, e)
                    raise
                finally:
                    self._inflight.discard(seq)
        else:
            with self._span(volume, offset, n):
                seq = self._record(_WRITE, FLAG_FUA if fua else 0, volume, offset, n, buf, n, crc)
                try:
                    for asleep, slot in self._sleepers:
                        if self._u64[asleep]:
                            self.announce(slot)
                    self.volumes[volume].pwrite(buf, offset)
                except BaseException as e:
                    self._compensate(volume, offset, n, e)
                    raise
                finally:
                    self._inflight.discard(seq)
        if fua:
            self.make_durable(seq)
        return seq

    def zero(self, volume: int, offset: int, length: int, punch: bool, fua: bool = False, trim: bool = False) -> int:
        """Store a host write-zeroes (or, with `trim`, a discard, which zeroes here too). Otherwise like `write`."""
        kind = Kind.TRIM if trim else Kind.ZERO
        flags = (FLAG_FUA if fua else 0) | (0 if punch else FLAG_NO_PUNCH)
        with self._span(volume, offset, length):
            seq = self._record(kind, flags, volume, offset, length, None, 0, 0)
            try:
                self.wake_replicator()
                self.volumes[volume].zero(offset, length, punch)
            except BaseException as e:
                self._compensate(volume, offset, length, e)
                raise
            finally:
                self._inflight.discard(seq)
        if fua:
            self.make_durable(seq)
        return seq

    def ring_replicators(self) -> None:
        """Ring every edge, also those whose replicator is awake or receives: it is to look at the page again."""
        for _, slot in self._sleepers:
            self.announce(slot)

    def wake_replicator(self) -> None:
        """Ring every edge whose replicator sleeps."""
        for asleep, slot in self._sleepers:
            if self._u64[asleep]:
                self.announce(slot)

    def flush(self) -> int:
        """Make every write answered before the call durable here.

        Returns the seq of a barrier that a synchronous peer must hold durably, 0 when there is none to wait for. Raises
        Parked or NoRoom (try again later) and MediumError.
        """
        barrier = 0
        with self.lock:
            if self.failed:
                raise self._refusal()
            if self.waits:
                if self._admit == _PARK:
                    raise Parked  # the barrier would lie behind the position that the hold has promised
                barrier = self.append_control(Kind.BARRIER)
        self.make_durable()
        return barrier

    def make_durable(self, made: int = 0) -> int:
        """Make every change that was in the pool before the call durable; returns `made`, the seq of one of them.

        Raises Parked with that number (try again with it later) and MediumError.
        """
        if self.state.mode == JOURNAL:
            try:
                self.sync_journal()
            except JournalLost as lost:
                lost.made = made
                raise
            if self.unjournaled == self.unjournaled_synced:
                return made
        self.sync_pool()
        return made

    def sync_journal(self) -> None:
        """Durable: every record published before the call. A failure seals the group."""
        u64 = self._u64
        incarnation, seq, off = u64[INCARNATION], u64[HEAD_SEQ], u64[HEAD_OFF]
        if self.failed:
            raise self._refusal()
        try:
            self.journal.sync()
        except OSError as e:
            with self.opened:
                self.opened.notify_all()
                raise self.lose_journal(f"its journal cannot be synced: {e}") from e
        with self.lock:
            if u64[DURABLE_SEQ] < seq and u64[INCARNATION] == incarnation:
                u64[DURABLE_SEQ], u64[DURABLE_OFF] = seq, off

    def sync_tracking(self) -> bool:
        """Durable: the records and bitmap bits of every change so far. Before marks of the intent log are cleared.

        Returns False when the group has failed, and nothing of that can be: then the marks have to stay.
        """
        if self.failed:
            return False
        if self.state.mode == UNTRACKED:
            return True
        if self.state.mode == JOURNAL and not self.state.journal_error:  # else nothing was received since it had one
            self.sync_journal()
        self.bitmaps.sync()
        return True

    # -- the sequence ---------------------------------------------------------------------------------------------

    def _record(
        self,
        kind: int,
        flags: int,
        volume: int,
        offset: int,
        length: int,
        payload: Buffer | None,
        payload_len: int,
        crc: int,
    ) -> int:
        """Give the change its place in the sequence. The caller holds its range locks and then changes the pool."""
        with self.lock:
            if self._admit != _JOURNALING:
                return self._record_other(volume, offset, length)
            u64, state = self._u64, self.state
            if u64[HEAD_OFF] + payload_len - u64[TAIL_OFF] > self._room_bytes:
                raise NoRoom
            if state.new_epoch_wanted:
                self.open_epoch()
            seq = u64[HEAD_SEQ] + 1
            if self.numbers is None:
                now = self._last_time = self.clock.next()
            else:
                now, flags, payload, payload_len, crc = self._numbered(self.numbers, flags, payload, payload_len, crc)
            self._maps[volume].mark(self.bitmaps.live, offset, length)
            epoch = state.hist[-1][0]
            header = pack_header(kind, flags, epoch, seq, now, volume, payload_len, offset, length, crc)
            try:
                self.journal.append(header, payload, seq, epoch)
            except OSError as e:
                raise self.lose_journal(f"its journal cannot be written: {e}") from e
            if self.waits:
                self.unanswered.add(seq, volume, offset, length, flags)
            self._inflight.add(seq)
            self.last_host_seq = seq
            return seq

    def _numbered(
        self, numbers: Numbers, flags: int, payload: Buffer | None, payload_len: int, crc: int
    ) -> tuple[int, int, Buffer, int, int]:
        """Draw write time and number of the next record; returns (time, flags, payload, its length, its CRC) with it.

        A number that is drawn is in the record that the caller appends now, or, after an error or a crash, in none.
        """
        now, number = self.clock.next_numbered(numbers)
        self._last_time = now
        end = pack_number(number, numbers.series)
        whole = end if payload is None else b"".join((payload, end))
        return now, flags | FLAG_NUMBERED, whole, payload_len + NUMBER_BYTES, crc32c(end, crc)

    def _record_other(self, volume: int, offset: int, length: int) -> int:
        """Admit a change that makes no record: no pair, or the journal has overflowed."""
        admit = self._admit
        if admit == _PARK:
            raise Parked
        if admit == _REFUSE:
            raise self._refusal()
        if admit == _PLAIN:
            self._ticket -= 1
            self._inflight.add(self._ticket)
            return self._ticket
        if self.state.new_epoch_wanted:
            self.new_history_entry()
        self._maps[volume].mark(self.bitmaps.live, offset, length)
        seq = self.last_host_seq = self.take_number()
        self._inflight.add(seq)
        return seq

    def take_number(self) -> int:
        """Give out the next seq in bitmap mode. The caller holds the group lock. Durable: that it may have been."""
        state, seq = self.state, self._u64[HEAD_SEQ] + 1
        if seq >= state.seq_limit:
            state.seq_limit = seq + SEQ_RESERVE
            self.save()
        self._u64[HEAD_SEQ] = seq
        self._last_time = self.clock.next()
        return seq

    def _append_control(
        self, kind: int, *, volume: int = 0, offset: int = 0, length: int = 0, payload: bytes | None = None
    ) -> int:
        """Append a record that is no host write. The caller holds the group lock and has checked for room."""
        if self.journal_lost:
            raise self.lose_journal(self.journal_lost)
        seq, flags, record = self._u64[HEAD_SEQ] + 1, 0, cast("Buffer | None", payload)
        size = len(payload) if payload is not None else 0
        crc = crc32c(payload) if payload is not None else 0
        if self.numbers is None:
            self._last_time = self.clock.next()
        else:
            _, flags, record, size, crc = self._numbered(self.numbers, flags, record, size, crc)
        epoch = self.state.hist[-1][0]
        header = pack_header(kind, flags, epoch, seq, self._last_time, volume, size, offset, length, crc)
        try:
            self.journal.append(header, record, seq, epoch)
        except OSError as e:
            raise self.lose_journal(f"its journal cannot be written: {e}") from e
        return seq

    def append_control(
        self, kind: int, *, volume: int = 0, offset: int = 0, length: int = 0, payload: bytes | None = None
    ) -> int:
        """Append a control record (`kind` as in records.Kind) and return its seq. The caller holds the group lock.

        Opens the epoch that is due first. Raises NoRoom when even the reserve is used up.
        """
        if not self.journal.room_for(2 * (HEADER_BYTES + NUMBER_BYTES) + (len(payload) if payload else 0)):
            raise NoRoom
        if self.state.new_epoch_wanted:
            self.open_epoch()
        return self._append_control(kind, volume=volume, offset=offset, length=length, payload=payload)

    def new_history_entry(self) -> None:
        """Begin a new epoch after the current position. Durable: the history entry. Caller holds the group lock.

        An epoch that began at the same position and has no record, because a crash or an error came between, gives way:
        a copy that follows the sequence could never learn of it.
        """
        state, pos = self.state, self.pos
        self.note_epoch(state.hist[-1][0] if state.hist else 0)
        state.epoch_counter += 1
        begun = {0}
        while state.hist and state.hist[-1][1] >= pos:
            begun.add(state.hist.pop()[0])
        epoch = state.epoch_counter << 24 | state.node_tag
        state.hist.append([epoch, pos])
        state.rewound = [
            [epoch, *line[1:]] if line[0] in begun else line
            for line in state.rewound
            if line[0] not in begun or line[1] == pos
        ]
        del state.hist[:-HIST_ENTRIES]
        state.new_epoch_wanted = False
        self.save()

    def note_epoch(self, epoch: int) -> None:
        """Remember that an epoch exists, so that ours will be newer also when the history has forgotten it."""
        self.state.epoch_counter = max(self.state.epoch_counter, epoch >> 24)

    def open_epoch(self) -> None:
        """Begin a new epoch and say so in the sequence. Durable: the history entry, not yet its record.

        When the record cannot be written the epoch stays wanted, so that nothing is recorded in an epoch without one.
        """
        if not self.journal.room_for(HEADER_BYTES + NUMBER_BYTES):
            raise NoRoom
        self.new_history_entry()
        self.state.new_epoch_wanted = True
        self._append_control(Kind.EPOCH)
        self.state.new_epoch_wanted = False

    def append_copy(
        self, volume: int, offset: int, length: int, data: Buffer | None, *, of_host_write: bool = False
    ) -> bool:
        """Append what a range holds (None: zeroes) as a COPY record and take the blocks it covers off the copy list.

        The caller holds the range locks under which it read. Returns False when there is no room, the group is parked
        (but a host write under way may still speak: `of_host_write`) or no longer journals; nothing changed then.
        """
        size = len(data) if data is not None else 0
        crc = crc32c(data) if data is not None else 0
        kind = Kind.COPY_ZERO if data is None else Kind.COPY
        u64 = self._u64
        with self.lock:
            if self.state.role != PRIMARY or self.state.mode != JOURNAL or self.failed:
                return False
            if self.journal_lost:
                raise self.lose_journal(self.journal_lost)
            if self.parked_for and not of_host_write:
                return False
            if offset + length > self._maps[volume].size:
                return False  # the volume has left the group, or become smaller, since the caller read
            if u64[HEAD_OFF] + size - u64[TAIL_OFF] > self._room_bytes:
                return False
            if self.state.new_epoch_wanted:
                self.open_epoch()
            seq, flags, record = u64[HEAD_SEQ] + 1, 0, data
            if self.numbers is None:
                self._last_time = self.clock.next()
            else:
                _, flags, record, size, crc = self._numbered(self.numbers, flags, record, size, crc)
            self._maps[volume].mark(self.bitmaps.live, offset, length)
            epoch = self.state.hist[-1][0]
            header = pack_header(kind, flags, epoch, seq, self._last_time, volume, size, offset, length, crc)
            try:
                self.journal.append(header, record, seq, epoch)
            except OSError as e:
                raise self.lose_journal(f"its journal cannot be written: {e}") from e
            self._maps[volume].clear_covered(TODO, offset, length)
            if of_host_write and self.waits:
                self.unanswered.add(seq, volume, offset, length, 0)
            return True

    def _compensate(self, volume: int, offset: int, length: int, error: BaseException) -> None:
        """After the pool refused a published change: record what the range holds. Fails the group if it cannot."""
        if self.state.mode != JOURNAL:
            return  # the bits say all there is to say
        try:
            end = offset + length
            for start in range(offset // PIECE_BYTES * PIECE_BYTES, end, PIECE_BYTES):
                at = max(start, offset)
                data = bytearray(min(start + PIECE_BYTES, end) - at)
                self.volumes[volume].pread_into(memoryview(data), at)
                if not self.append_copy(volume, at, len(data), data if any(data) else None, of_host_write=True):
                    self.fail(f"a write failed ({error}) and the journal has no room to say so")
                    return
        except JournalLost:
            return  # the bits say it, once the group has gone over to them
        except Exception as e:
            self.fail(f"a write failed ({error}) and its range cannot be read back: {e}")

    # -- ranges and draining --------------------------------------------------------------------------------------

    @contextmanager
    def _span(self, volume: int, offset: int, length: int) -> Iterator[None]:
        """Hold the range locks of [offset, offset + length), taken in one order by everybody."""
        first = offset >> RANGE_SHIFT
        last = (offset + max(length, 1) - 1) >> RANGE_SHIFT
        if last - first >= RANGE_LOCKS:
            indices: Iterable[int] = range(RANGE_LOCKS)
        else:
            indices = sorted({(r + volume * 97) & 255 for r in range(first, last + 1)})
        taken = []
        try:
            for i in indices:
                self._ranges[i].acquire()
                taken.append(self._ranges[i])
            yield
        finally:
            for held in taken:
                held.release()

    def span(self, volume: int, offset: int, length: int) -> Any:
        """Context manager: no host write to the range happens while it is held."""
        return self._span(volume, offset, length)

    def in_flight(self) -> set[int]:
        """Snapshot of admitted changes whose pool write has not returned. The caller holds the group lock."""
        return set(self._inflight)

    def still_in_flight(self, before: set[int]) -> bool:
        """Say whether any of a former snapshot has not returned yet."""
        return not before.isdisjoint(self._inflight)

    def status(self, edge: Edge | None = None) -> dict[str, Any]:
        """All facts about the group, see facts.py."""
        return facts_of(self, edge)


def _nobody(_slot: int) -> None:
    """Nobody needs to be woken."""


def _no_limit() -> None:
    """No set holds the group."""


def _no_marker(header: Header, payload: memoryview) -> None:
    """Nobody wants an image."""
