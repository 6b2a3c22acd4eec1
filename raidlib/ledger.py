"""The pool's durable state, kept the same on every member.

Two ways to change it:
* record(): append log records (area allocations and the like). Cheap: one plain write a member.
* commit(): a new checkpoint with the next generation. For everything else: members failing, volumes made, open, close.

Invariants:
* a commit is on stable storage of every member that takes part before anything acts on it. A member that cannot take
  it is failed by the very next generation, in the same call;
* a commit never overwrites a member's last good checkpoint, and a slot's log belongs to its generation alone;
* the COMMIT record says that a generation reached everybody; assemble.py refuses a member that lacks such a one;
* a member that failed never gets metadata again: its generation stays behind, for ever.

Lock order: stripe locks, then IntentMap.lock, then Ledger.lock. It is reentrant, because writing a record may fail a
member, which commits.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from raidlib.blockfile import BlockFile
from raidlib.checksums import ChecksummedFile
from raidlib.errors import MediumError, OutOfSpace
from raidlib.geometry import Geometry
from raidlib.layout import Layout
from raidlib.member import Member
from raidlib.metastore import HEADER_BYTES, check_fits
from raidlib.state import RECORD_BYTES, Kind, MemberInfo, MemberState, PoolState, Record, pack_record
from raidlib.twin import TwinFile

_COME_AND_GO = frozenset((Kind.ALLOC, Kind.FREE, Kind.UNMAP, Kind.TOUCH))
"""Records that make the next checkpoint larger, and are refused when there is no room for that."""
METADATA_RESERVE_BYTES = 4096
"""Room in the metadata slots that new volumes, images and areas leave for what must always fit: failures, progress."""


class Ledger:
    """Writes the state of one open pool to its members."""

    def __init__(
        self, state: PoolState, members: list[list[Member]], geometries: list[Geometry], layouts: list[Layout]
    ) -> None:
        self.lock = threading.RLock()
        self.map_lock = threading.Condition()
        """The lock of every group's IntentMap: the pool's volumes may lie on several groups."""
        self.state = state
        self.members = members
        self.on_change: Callable[[int], None] = lambda group: None
        """Called under the lock with the index of a group whose members changed."""
        self.on_successor_lost: Callable[[str, str, str], None] = lambda new, old, reason: None
        """Called under the lock with the paths of both and the reason."""
        self._geometries = geometries
        self._layouts = layouts
        self._capacity = min(layout.log_bytes for layout in self.layouts()) // RECORD_BYTES
        self._used = self._capacity
        self._stable = 0
        self._tail = bytearray()
        self._slack = 0
        """Bytes by which the next checkpoint can still grow through such records; a lower bound."""
        self._growth = 0
        """Bytes that one of them can add: two runs in its map, and in each that is stored against it."""
        self._executor: ThreadPoolExecutor | None = None
        self._writing = False
        self._again = False
        self.strays: list[tuple[TwinFile, BlockFile]] = []
        """Files that are no member's any more, which calls in flight may still use."""

    def carriers(self) -> list[Member]:
        """Every member that takes part."""
        return [member for group in self.members for member in group if member.carries]

    # Changing the state

    def record(self, records: Sequence[Record], *, durable: bool = False) -> None:
        """Apply log records and append them on every member. Raises MediumError when a group is lost by it.

        Raises OutOfSpace when areas come or go and the next checkpoint would have no room for that; then nothing was
        changed.
        Durable: with durable=True these and all earlier records; else they survive the death of the process alone.
        """
        with self.lock:
            state = self.state
            if any(record.kind in _COME_AND_GO for record in records):
                self._check_growth(len(records))
            for record in records:
                state.apply(record)
            if self._used + len(records) > self._capacity:
                self._commit()
                return
            self._tail += b"".join(
                pack_record(record, state.generation, self._used + i) for i, record in enumerate(records)
            )
            first = self._stable if durable else self._used
            data = bytes(self._tail[(first - self._stable) * RECORD_BYTES :])
            self._used += len(records)
            if durable:
                self._stable = self._used
                self._tail.clear()
            failures: list[tuple[Member, str]] = []
            self._writing = True
            try:
                for member in self.carriers():
                    assert member.store is not None
                    at = member.store.log_offset + first * RECORD_BYTES
                    try:
                        if durable:
                            member.live_file().pwrite_durable(data, at)
                        else:
                            member.live_file().pwrite(data, at)
                    except OSError as exc:
                        failures.append((member, f"metadata write: {exc.strerror}"))
            finally:
                self._writing = False
            if self._again:
                self._commit()
            for member, reason in failures:
                try:
                    self.fail(member, reason, even_if_lost=True)
                except MediumError:
                    # Its group is lost, and says so to whoever uses it. The records are with all the others.
                    if not self.carriers():
                        raise

    def commit(self) -> None:
        """Write the state as the next generation. Raises MediumError when no member can take it.

        Durable: the state, on every member that takes part on return; members that could not take it are failed in it.
        """
        with self.lock:
            self._commit()

    def check_room(self) -> None:
        """Raise OutOfSpace when the state has outgrown the members' metadata slots, but for a reserve."""
        payload = self.state.encode()
        for layout in self.layouts():
            check_fits(payload, layout, METADATA_RESERVE_BYTES)

    def layouts(self) -> list[Layout]:
        """The layouts of the groups that are there."""
        return [layout for group, layout in zip(self.state.groups, self._layouts, strict=True) if not group.removed]

    def put_group(self, index: int, members: list[Member], geometry: Geometry, layout: Layout) -> None:
        """Take in a new group, whose info is in the state, in a new place or that of a removed one. Then commit."""
        if index == len(self.members):
            self.members.append(members)
            self._geometries.append(geometry)
            self._layouts.append(layout)
        else:
            self.members[index], self._geometries[index], self._layouts[index] = members, geometry, layout
        self._capacity = min(layout.log_bytes for layout in self.layouts()) // RECORD_BYTES

    def put_layout(self, index: int, layout: Layout) -> None:
        """A group has grown: its layout has further extensions, which the state names and the members have."""
        self._layouts[index] = layout
        for member in self.members[index]:
            member.extend(layout)

    def forget_group(self, index: int) -> None:
        """Undo put_group() of a group in a new place that is not in the state any more."""
        del self.members[index:], self._geometries[index:], self._layouts[index:]
        self._capacity = min(layout.log_bytes for layout in self.layouts()) // RECORD_BYTES

    def _room(self) -> int:
        """Bytes that a checkpoint can have."""
        return min(layout.checkpoint_room for layout in self.layouts()) - HEADER_BYTES

    def _check_growth(self, records: int) -> None:
        self._slack -= records * self._growth
        if self._slack >= 0:
            return
        self._measure(len(self.state.encode()))
        self._slack -= records * self._growth
        if self._slack < 0:
            raise OutOfSpace(
                "the members have no room left for metadata of areas that come or go",
                "delete snapshots, clones or volumes, or write less scattered",
            )

    def _measure(self, payload_bytes: int) -> None:
        self._slack = self._room() - METADATA_RESERVE_BYTES - payload_bytes
        dependents = Counter(info.base for info in self.state.volumes.values() if info.base)
        self._growth = 64 + 32 * max(dependents.values(), default=0)

    def bears_loss_of(self, member: Member) -> bool:
        """Whether its group still has everything without this member."""
        with self.lock:
            lost = self._lost(member.group) | {member.index}
            return self._geometries[member.group].survives(lost) or member.info.state is not MemberState.IN_SYNC

    def fail(
        self,
        member: Member,
        reason: str,
        *,
        even_if_lost: bool = False,
        in_order: bool = False,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Take a member out for good. before_commit may change the state in the same commit.

        When its group cannot do without it: raises MediumError and changes nothing, or with even_if_lost (after a
        failed sync its data cannot be trusted) fails it and raises MediumError.
        Durable: that it failed, on every other member, with a higher generation; that it was merely away, if its medium
        is gone or in_order says so; with a successor that has a part of it: that the successor took its place.
        """
        with self.lock:
            if member.info.state is MemberState.FAILED:
                self._raise_if_lost(member.group)
                return
            if not even_if_lost and not self.bears_loss_of(member):
                raise MediumError(
                    f"{member.path}: {reason}; group {self.state.groups[member.group].name} cannot do without it",
                    "check the disk; restore from a replica if it is gone",
                )
            self._mark_failed(member, reason, in_order)
            before_commit()
            self._commit()
            self._raise_if_lost(member.group)

    def sync_members(self) -> None:
        """Sync every member once; fail those whose sync fails, and never sync them again.

        Raises MediumError when that loses a group. Durable: everything written before, as far as redundancy allows.
        """
        with self.lock:
            point = self.state.generation, self._used
        carriers = self.carriers()
        failures: list[tuple[Member, str]] = []
        for member, error in zip(carriers, self._sync_each(carriers), strict=True):
            if error is not None:
                failures.append((member, f"sync: {error.strerror or error}"))
        trouble: MediumError | None = None
        for member, reason in failures:
            try:
                try:
                    self.fail(member, reason, even_if_lost=True)
                except MediumError:
                    # Its group is lost, and says so to whoever uses it. The records are with all the others.
                    if not self.carriers():
                        raise
            except MediumError as exc:
                trouble = exc
        if trouble is not None:
            raise trouble
        with self.lock:
            generation, used = point
            if generation == self.state.generation and used > self._stable:
                del self._tail[: (used - self._stable) * RECORD_BYTES]
                self._stable = used

    def close(self) -> None:
        """Stop the sync threads and let go of the files. Durable: nothing."""
        if self._executor is not None:
            self._executor.shutdown()
        for group in self.members:
            for member in group:
                if member.file is not None:
                    member.file.close()
        self.close_strays()

    # Successors (replacing.py)

    def lose_successor(self, member: Member, successor: MemberInfo, reason: str) -> None:
        """The new file of a member that is being replaced failed: the old one goes on alone. Durable: that.

        When the old one was given up at the same time: as fail().
        """
        with self.lock:
            if member.twin is not None and successor in (member.info.successor, member.info):
                self._detach_new(member, reason)
                self.on_change(member.group)
                self._commit_soon()
            elif member.info is successor:
                self.fail(member, reason, even_if_lost=True)

    def old_failed(self, member: Member, reason: str) -> bool:
        """The old file of a member that is being replaced failed; return whether the group goes on without it.

        When it cannot, what was copied so far is no longer trusted. Durable: either.
        """
        with self.lock:
            twin, successor = member.twin, member.info.successor
            if twin is None or successor is None:
                return twin is not None  # the new one has taken over already: the old one does not matter
            if not self.bears_loss_of(member):
                twin.restart()
                if not self._writing:
                    self.record([Record(Kind.COPIED, member.group, member.index)], durable=True)
                return False
            self._promote(member, reason)
            self.on_change(member.group)
            self._commit_soon()
            return True

    def retire_old(self, member: Member) -> None:
        """Let the new file alone be the member's: the state says so durably. Call under the lock."""
        twin = member.twin
        assert twin is not None and twin.new is not None
        self._keep_one(member, twin, twin.new, twin.give_up_old())
        member.begin_counts()

    def geometry_of(self, member: Member) -> Geometry:
        """The geometry of a member's group."""
        return self._geometries[member.group]

    def close_strays(self) -> None:
        """Let go of the files nobody needs any more. Call when no request that knew them is in flight."""
        with self.lock:
            gone, self.strays = self.strays, []
        for twin, file in gone:
            twin.wait()
            file.close()

    def _promote(self, member: Member, reason: str) -> None:
        """Put the successor in its member's place as it is: right below the frontier."""
        twin, old, info = member.twin, member.info, member.info.successor
        assert twin is not None and twin.new is not None and info is not None and member.store is not None
        info.reason = f"took over from {old.path}, which failed: {reason}"
        self.state.groups[member.group].members[member.index] = member.info = info
        chunk_bytes = self._geometries[member.group].chunk_bytes
        member.rebuilt_rows = (twin.frontier - member.layout.data_offset) // chunk_bytes
        self._keep_one(member, twin, twin.new, twin.give_up_old())
        member.begin_counts()

    def _detach_new(self, member: Member, reason: str) -> None:
        twin, old_info = member.twin, member.old_info
        assert twin is not None and twin.old is not None and old_info is not None and old_info.successor is not None
        new_path, old_info.successor = old_info.successor.path, None
        self.state.groups[member.group].members[member.index] = member.info = old_info
        self.on_successor_lost(new_path, old_info.path, reason)
        self._keep_one(member, twin, twin.old, twin.give_up_new())

    def _keep_one(self, member: Member, twin: TwinFile, kept: BlockFile, gone: BlockFile | None) -> None:
        assert member.store is not None
        member.file, member.twin = kept, None
        member.checked = kept if isinstance(kept, ChecksummedFile) else None
        member.store.redirect(kept)
        if gone is not None:
            self.strays.append((twin, gone))

    def _commit_soon(self) -> None:
        """Commit now, or at the end of the write to the members that is going on."""
        if self._writing:
            self._again = True
        else:
            self._commit()

    # Inside

    def _lost(self, group: int) -> set[int]:
        return {m.index for m in self.members[group] if m.info.state is not MemberState.IN_SYNC}

    def _raise_if_lost(self, group: int) -> None:
        info = self.state.groups[group]
        if not self._geometries[group].survives(self._lost(group)):
            names = ", ".join(m.path for m in self.members[group] if m.info.state is MemberState.FAILED)
            raise MediumError(
                f"group {info.name} has lost more members than RAID {info.level} can bear: {names}",
                "take over on the replica; or restart the node with node start --force, then check the data",
            )

    def _mark_failed(self, member: Member, reason: str, in_order: bool = False) -> None:
        info = member.info
        if member.twin is not None:
            if info.successor is not None and member.twin.new is not None and self.bears_loss_of(member):
                self._promote(member, reason)
                self.on_change(member.group)
                return
            self._detach_new(member, f"{info.path} failed, and its group with it")
            info = member.info
        whole = info.state is MemberState.IN_SYNC or info.partial
        if whole and (in_order or (member.file is not None and member.file.gone)):
            info.away = self.state.committed, self.state.generation
        info.state, info.partial = MemberState.FAILED, False
        info.reason = reason
        info.rebuilt_areas = 0
        member.rebuilt_rows = 0
        self.on_change(member.group)

    def _commit(self) -> None:
        state = self.state
        while True:
            self._again = False
            state.generation += 1
            for info, members in zip(state.groups, self.members, strict=True):
                if not info.notes_missed:
                    info.missed.clear()
                info.errors = {member.info.uuid: counts for member in members if any(counts := member.counts())}
            payload = state.encode()
            if len(payload) > self._room():
                state.shorten()
                payload = state.encode()
            for layout in self.layouts():
                check_fits(payload, layout)
            self._measure(len(payload))
            failures: list[tuple[Member, str]] = []
            carriers = self.carriers()
            self._writing = True
            try:
                for member in carriers:
                    assert member.store is not None
                    try:
                        member.store.write_checkpoint(state.generation, payload)
                    except OSError as exc:
                        failures.append((member, f"metadata write: {exc.strerror}"))
            finally:
                self._writing = False
            if not failures and not self._again:
                break
            for member, reason in failures:
                self._mark_failed(member, reason)
        if not carriers:
            raise MediumError(f"pool {state.name}: no member is left that takes metadata", "restore from a replica")
        self._used = self._stable = 0
        self._tail.clear()
        self.record([Record(Kind.COMMIT)])

    def _sync_each(self, members: Iterable[Member]) -> list[OSError | None]:
        members = list(members)
        if len(members) > 1 and all(member.live_file().parallel_sync for member in members):
            with self.lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(8, "raidlib-sync", initializer=_run_anywhere)
            return list(self._executor.map(_sync_one, members))
        return [_sync_one(member) for member in members]


def _run_anywhere() -> None:
    """Threads inherit the processors of whoever starts them, which may be kept to few: take the process's own."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


def _sync_one(member: Member) -> OSError | None:
    began = time.monotonic()
    try:
        member.live_file().fdatasync()
    except OSError as exc:
        return exc
    member.times.note_sync(time.monotonic() - began)
    return None
