"""Replacing a member that still works: it stays until the new one is complete, so redundancy is never given up for it.

The member's file becomes a TwinFile (twin.py), the state names the new one as the member's successor, and a Replacement
copies area after area. When all is copied and stable, one commit puts the successor in the member's place: the old one
is retired by the same commit that the new one becomes a member by, and not before.

* The new one fails: its member forgets it, durably, before the write that met the failure is acknowledged.
* The old one fails: the successor takes its place as a rebuilding member that is right below the frontier, and the rest
  comes from redundancy. Without redundancy (RAID 0, or a group that is degraded to the last) the failure is reported as
  without a successor, and the copy begins anew, for the two files may differ where the write failed.
* A crash: progress is logged after a sync of the new file, so below it the two differ at most in marked regions; open
  copies those again before anything is served, and the replacement goes on.
* A byte of the old one cannot be read: the row is made good from redundancy, which writes it to both. What is lost for
  good ends the replacement, unless there are checksums: then the new one gets all the rest, and reads of it still fail.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator

from raidlib.allocator import Allocator
from raidlib.blockfile import BlockFile
from raidlib.checksums import ChecksummedFile
from raidlib.create import format_member
from raidlib.errors import BadInput, MediumError, RaidError, Refused
from raidlib.intents import write_image
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.state import Kind, MemberInfo, MemberState, Record
from raidlib.superblock import Superblock, write_superblock
from raidlib.twin import OldUnreadable, TwinFile

PROGRESS_AREAS = 16
"""Areas between two durable notes of progress."""


def check_size(group: RaidGroup, new: BlockFile) -> None:
    """Raise BadInput when a new member is too small for the group."""
    if new.size < group.least_bytes:
        raise BadInput(
            f"{new.path} has {new.size} bytes, group {group.info.name} needs {group.least_bytes}", "take a larger one"
        )


def begin(group: RaidGroup, allocator: Allocator, ledger: Ledger, member: Member, new: BlockFile) -> None:
    """Make `new` the successor of a member in sync. Nobody but requests uses the group meanwhile.

    Raises Refused when it has one, BadInput when it is too small, MediumError when it cannot be written; then nothing
    changed. Durable: that it is to be filled.
    """
    if member.twin is not None and member.info.successor is not None:
        raise Refused(
            f"{member.path} is being replaced by {member.info.successor.path} already",
            f"farstripe pool fail {member.info.successor.path} gives that up",
        )
    check_size(group, new)
    layout = group.layout
    info = MemberInfo(uuid.uuid4().hex, new.path, MemberState.REBUILDING)
    with formatted(group, ledger, info, new):
        if layout.journal_bytes:
            new.pwrite_durable(
                member.live_file().pread(layout.journal_bytes, layout.journal_offset), layout.journal_offset
            )
        with ledger.lock:
            member.info.successor = info
            join(ledger, member, new)
            if not new.zeroes_fast():
                allocator.distrust_clean()
            ledger.on_change(group.index)
            ledger.commit()
            joined = member.info.successor is info
    if not joined:
        raise MediumError(f"{new.path} cannot be written", "take another one")


@contextlib.contextmanager
def formatted(group: RaidGroup, ledger: Ledger, info: MemberInfo, new: BlockFile) -> Iterator[None]:
    """Make `new` a blank member; then, in the body, nobody is within a stripe or marks a region, and it can join.

    Raises MediumError when it cannot be written, in the body too. Durable before the body: the member, its marks.
    """
    superblock = Superblock(ledger.state.uuid, info.uuid, new.size, group.layout)
    try:
        with group.intents.lock:
            blank = group.intents.image()
        format_member(new, superblock, group.info.areas, group.geometry, blank)
        write_superblock(new, superblock)
        with group.all_rows(), group.intents.lock:
            group.intents.wait_idle()
            write_image(new, group.layout, group.intents.image())
            yield
    except OSError as exc:
        raise MediumError(f"{new.path} cannot be written: {exc.strerror or exc}", "take another one") from exc


def join(ledger: Ledger, member: Member, new: BlockFile) -> None:
    """Let the member's file be the old and the new one together, from where its successor's progress is."""
    info, old = member.info.successor, member.live_file()
    assert info is not None and member.store is not None
    geometry = ledger.geometry_of(member)
    frontier = member.layout.data_offset + info.rebuilt_areas * geometry.area_member_bytes
    if member.layout.table_bytes:
        new = ChecksummedFile(new, member.layout, info.uuid)
    member.old_info = member.info
    member.twin = twin = TwinFile(
        old,
        new,
        member.layout.data_offset,
        frontier,
        lambda reason: ledger.lose_successor(member, info, reason),
        lambda reason: ledger.old_failed(member, reason),
        [(extension.start, extension.end) for extension in member.layout.extensions],
    )
    member.file = twin
    member.store.redirect(twin)


def copy_suspects(group: RaidGroup, ledger: Ledger, suspects: Iterable[int]) -> None:
    """After an unclean stop, once the group is repaired: make old and new equal again where they may differ.

    Durable: nothing; open syncs before it serves.
    """
    for member in group.members:
        twin, info = member.twin, member.info.successor
        if twin is None or info is None:
            continue
        for area in suspects:
            if area < info.rebuilt_areas:
                start = group.member_offset(area)
                try:
                    twin.copy_again(start, start + group.geometry.area_member_bytes)
                except OldUnreadable:
                    twin.restart()
                    ledger.record([Record(Kind.COPIED, group.index, member.index)], durable=True)
                    break
                except OSError as exc:
                    ledger.lose_successor(member, info, f"write: {exc.strerror or exc}")
                    break


class Replacement:
    """One replacement in place, from where it is. step() is called by one thread, again and again."""

    def __init__(self, group: RaidGroup, allocator: Allocator, ledger: Ledger, member: Member) -> None:
        assert member.twin is not None and member.info.successor is not None
        self.group = group
        self.member = member
        self.info = member.info.successor
        self._twin = member.twin
        self._allocator = allocator
        self._ledger = ledger

    @property
    def copied_bytes(self) -> int:
        """Bytes copied by this process."""
        return self._twin.copied_bytes

    @property
    def remaining_areas(self) -> int:
        """Areas still to do."""
        return self.group.info.areas - self._next

    @property
    def remaining_bytes(self) -> int:
        """Bytes still to copy. Call under the ledger's lock."""
        at = self._next
        return sum(area >= at for area in self._allocator.allocated) * self.group.geometry.area_member_bytes

    @property
    def active(self) -> bool:
        """Whether there is something to do."""
        return self.member.twin is self._twin

    @property
    def _next(self) -> int:
        done = self._twin.frontier - self.group.layout.data_offset
        return done // self.group.geometry.area_member_bytes

    def step(self) -> int:
        """Do one area, or all free areas up to the next allocated one; return the areas that remain.

        Durable at the end: the new member in the old one's place.
        """
        group, twin, begun = self.group, self._twin, self._next
        try:
            while self.active and (area := self._next) < group.info.areas:
                end = group.member_offset(area + 1)
                with self._ledger.lock:
                    # Nobody writes to a free area, and it is allocated under this lock.
                    free = area not in self._allocator.allocated
                    if free:
                        twin.pass_over(end)
                if not free:
                    self._copy_area(area, end)
                    break
                if self._next - begun >= 1024:
                    break
            if self.active and self._next == group.info.areas:
                self._finish()
            elif self.active and self._next - self.info.rebuilt_areas >= PROGRESS_AREAS:
                done = self._next
                twin.sync_new()
                with self._ledger.lock:
                    if self.active and self._next >= done:
                        self._ledger.record([Record(Kind.COPIED, group.index, self.member.index, 0, done)])
        except OSError as exc:
            self._ledger.lose_successor(self.member, self.info, f"write: {exc.strerror or exc}")
        return self.remaining_areas if self.active else 0

    def _copy_area(self, area: int, end: int) -> None:
        twin, healed = self._twin, -1
        while self.active and self.group.member_offset(area) <= twin.frontier < end:
            try:
                twin.copy_piece(end)
            except OldUnreadable as exc:
                if healed == twin.frontier and self.group.checksums:
                    twin.copy_piece(end, without_lost=True)  # reads of what is lost fail on the new one, too
                    continue
                if healed == twin.frontier:
                    self._ledger.lose_successor(self.member, self.info, f"{exc}, and nothing makes it good")
                    return
                healed = twin.frontier
                self._heal(area, exc)

    def _heal(self, area: int, why: OldUnreadable) -> None:
        """Make the old one readable, where it is not, from redundancy."""
        try:
            self.group.heal_area(area, self.member)
        except MediumError as exc:
            if not self.group.checksums:
                self._ledger.lose_successor(self.member, self.info, f"{why}; {exc.message}")

    def _finish(self) -> None:
        member, ledger, group = self.member, self._ledger, self.group
        # Through the ledger: whichever of the two fails its sync is given up there.
        ledger.sync_members()
        with ledger.lock:
            if not self.active or self._next < group.info.areas:
                return
            self.info.state, self.info.rebuilt_areas = MemberState.IN_SYNC, 0
            group.info.members[member.index] = member.info = self.info
            try:
                ledger.commit()
            except RaidError:
                if member.old_info is not None:
                    group.info.members[member.index] = member.info = member.old_info
                self.info.state = MemberState.REBUILDING
                raise
            if member.info is self.info:
                ledger.retire_old(member)
                ledger.on_change(group.index)
            else:
                self.info.state = MemberState.REBUILDING
