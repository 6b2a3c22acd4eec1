"""GroupBase: a group's parts and durable state, whether it admits host writes, and how it stops.

Every change of the state is on stable storage before anybody sees it (`commit`). A group that cannot go on is sealed:
that is written down if it can be, host requests are refused, and the replicator stops, because its own sync of the same
journal could succeed after ours failed.

What it does not do: give out numbers (sequence.py), touch volumes (engine.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from replicator.capture import journalloss
from replicator.capture.bitmaps import Bitmaps
from replicator.capture.clock import WriteClock
from replicator.capture.limits import Waiting
from replicator.capture.numbers import Numbers
from replicator.capture.parking import JournalLost
from replicator.capture.retention import Marks
from replicator.capture.state import BITMAP, JOURNAL, PRIMARY, SECONDARY, UNTRACKED, Edge, GroupState, StateFile
from replicator.capture.unanswered import Unanswered
from replicator.core.errors import FarstripeError, MediumError, Refused
from replicator.core.numbering import Arrival
from replicator.core.records import Header
from replicator.journal.files import Buffer
from replicator.journal.page import EDGE_ASLEEP, HEAD_SEQ, INCARNATION, STATE_GEN, SYNC_ON, Page, edge_slot
from replicator.journal.ring import Journal

if TYPE_CHECKING:
    from replicator.capture.damage import Damage
    from replicator.capture.preimages.recorder import PreImages
    from replicator.capture.volumeset import VolumeHost

RANGE_LOCKS = 256
RESERVE_BYTES = 64 << 10  # journal room that only control records may use

REFUSE, PLAIN, JOURNALING, BITMAPPING, PARK = range(5)
"""What becomes of a host write; see GroupBase.refresh."""


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


class GroupBase:
    """What a group is on this node. Public methods are thread-safe."""

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
        self.stopped = False
        """It failed for a moment only: see stop_receiving."""
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
        """Of a secondary: records up to this seq may be in the pool, in part or in gaps, also where they do not count
        as applied: a former life was applying them, or the pool refused one half way. 0 once other records have taken
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
        self._admit = REFUSE
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
            self._admit = REFUSE
        elif self.parked_for:
            self._admit = PARK
        else:
            self._admit = {UNTRACKED: PLAIN, JOURNAL: JOURNALING, BITMAP: BITMAPPING}[state.mode]
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
        if self.failed and not self.stopped:
            return self._refusal()
        if not journalloss.may_go_over(self):
            self._seal(reason, by_journal=True)
            return self._refusal()
        if not self.journal_lost:
            self.journal_lost = reason
            self._u64[INCARNATION] += 1
            self.ring_replicators()
            if self.parked_for != "hold":
                self.parked_for = "journal"
            self.commit(sealed=True)
        return JournalLost(f"the journal of group {self.state.name} has failed: {reason}", "wait: the group goes on")

    def _seal(self, reason: str, *, write_down: bool = True, by_journal: bool = False) -> None:
        """`fail` for a caller that holds the group lock: parked writers find out when they look again.

        by_journal: the journal alone failed. What stopped it for a moment counts no more then.
        That it failed is written down if it can be: after a failed sync the kernel takes pages for clean that never
        reached the disk, and the next process must not rely on its own first sync (see recovery.py).
        """
        if not self.failed or self.stopped:
            self.failed, self.failed_by_journal, self.stopped = reason, by_journal, False
            self._u64[INCARNATION] += 1
            self.ring_replicators()
            try:
                if write_down:
                    self.state_file.save(replace(self.state, sealed=True))
            except OSError:
                pass  # then the state itself says nothing new, and the next life is no worse off than after a kill
        self.refresh()

    def stop_receiving(self, reason: str) -> None:
        """Stop a secondary for a moment: its replicators notice, and nothing is received until `go_on`.

        Does nothing when it has failed: that is for good, and so is what fails meanwhile.
        """
        with self.opened:
            if not self.failed:
                self._seal(reason, write_down=False, by_journal=True)
                self.stopped = True

    def go_on(self) -> None:
        """End `stop_receiving`, if nothing has failed meanwhile. The caller holds the group lock."""
        if self.stopped:
            self.failed, self.failed_by_journal, self.stopped = "", False, False
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

    # -- waking ----------------------------------------------------------------------------------------------------

    def ring_replicators(self) -> None:
        """Ring every edge, also those whose replicator is awake or receives: it is to look at the page again."""
        for _, slot in self._sleepers:
            self.announce(slot)

    def wake_replicator(self) -> None:
        """Ring every edge whose replicator sleeps."""
        for asleep, slot in self._sleepers:
            if self._u64[asleep]:
                self.announce(slot)


def _nobody(_slot: int) -> None:
    """Nobody needs to be woken."""


def _no_limit() -> None:
    """No set holds the group."""


def _no_marker(header: Header, payload: memoryview) -> None:
    """Nobody wants an image."""
