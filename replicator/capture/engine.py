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
in order without a queue. Hot path: `write` here and `_record` in sequence.py; keep them short.

What it does not do: wait, sleep or start threads (service.py), decide over the peer (replicator.core).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from crc32c import crc32c

from replicator.capture.facts import facts_of
from replicator.capture.groupbase import PARK, RANGE_LOCKS
from replicator.capture.parking import JournalLost, Parked
from replicator.capture.sequence import SequencedGroup
from replicator.capture.state import JOURNAL, UNTRACKED, Edge
from replicator.core.records import FLAG_FUA, FLAG_NO_PUNCH, Kind
from replicator.journal.files import Buffer
from replicator.journal.page import DURABLE_OFF, DURABLE_SEQ, HEAD_OFF, HEAD_SEQ, INCARNATION

RANGE_SHIFT = 20  # a range lock covers 1 MiB
PIECE_BYTES = 1 << 20  # what a refused write left behind is told in pieces that do not cross multiples of this

_WRITE = int(Kind.WRITE)


class GroupEngine(SequencedGroup):
    """One group on this node. Public methods are thread-safe; none waits for the network."""

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
                if self._admit == PARK:
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
