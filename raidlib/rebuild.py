"""Rebuilding a group onto a replacement, area by area, while it is used.

A replacement starts with zeroed data (or all free areas of the group count as dirty), so only allocated areas need
work. Below its rebuilt row a rebuilding member is read and written like any other; the row moves up under the row's
stripe lock, so a write sees a row either wholly before or wholly after it. Progress is logged after a sync of the new
member, so after any crash the rebuild goes on from a place below which everything is stable or marked.
"""

from __future__ import annotations

import uuid

from raidlib.allocator import Allocator
from raidlib.blockfile import BlockFile
from raidlib.errors import Refused
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.readd import may_differ
from raidlib.replacing import PROGRESS_AREAS, check_size, formatted
from raidlib.state import Kind, MemberInfo, MemberState, Record


def check_replaceable(group: RaidGroup, old: Member, new: BlockFile) -> None:
    """Raise Refused when the group cannot do without the old member, BadInput when the new one is too small."""
    lost = {m.index for m in group.members if m.info.state is not MemberState.IN_SYNC}
    if not group.geometry.survives(lost | {old.index}):
        raise Refused(
            f"group {group.info.name} (RAID {group.info.level}) cannot do without {old.path} now",
            "a group that has lost more than its level bears cannot rebuild a member",
        )
    check_size(group, new)


def replace(
    group: RaidGroup, allocator: Allocator, ledger: Ledger, old: Member, new: BlockFile, spare_uuid: str = ""
) -> Member:
    """Put a new, empty member in the place of an old one, which takes no part from then on.

    spare_uuid: it is this spare of the pool, and no longer one in the same commit.

    Raises MediumError when the new member cannot be written; then nothing changed.
    Durable: the new member's place; its rebuild is still to be done.
    """
    info = MemberInfo(spare_uuid or uuid.uuid4().hex, new.path, MemberState.REBUILDING)
    member = Member(group.index, old.index, info, group.layout, new)
    with formatted(group, ledger, info, new):
        ledger.sync_members()
        with ledger.lock:
            group.members[old.index] = member
            group.info.members[old.index] = info
            ledger.state.spares = [spare for spare in ledger.state.spares if spare.uuid != spare_uuid]
            group.begin_journal()
            if not new.zeroes_fast():
                allocator.distrust_clean()
            group.refresh()
            ledger.commit()
    return member


class Rebuild:
    """One rebuild, from where the member is. step() is called by one thread, again and again."""

    def __init__(self, group: RaidGroup, allocator: Allocator, ledger: Ledger, member: Member) -> None:
        self.group = group
        self.member = member
        self._allocator = allocator
        self._ledger = ledger
        self._next = max(member.info.rebuilt_areas, member.rebuilt_rows // group.geometry.rows_per_area)
        self.copied_bytes = 0
        """Bytes written to the member by this process."""

    @property
    def remaining_areas(self) -> int:
        """Areas still to do."""
        return self.group.info.areas - self._next

    @property
    def remaining_bytes(self) -> int:
        """Bytes still to write. Call under the ledger's lock."""
        group, partial = self.group, self.member.info.partial
        areas = [area for area in self._allocator.allocated if area >= self._next]
        return sum(not partial or may_differ(group, area) for area in areas) * group.geometry.area_member_bytes

    @property
    def active(self) -> bool:
        """Whether there is something to do: the member may be complete, failed or replaced by now."""
        current = self.group.members[self.member.index]
        return current is self.member and self.member.info.state is MemberState.REBUILDING

    def step(self) -> int:
        """Do one area, or all free areas up to the next allocated one; return the areas that remain.

        Raises MediumError when the group cannot give the data. Durable at the end: the member, complete and in sync.
        """
        group, member = self.group, self.member
        rows = group.geometry.rows_per_area
        begun = self._next
        try:
            while self._next < group.info.areas:
                if member.info.partial:
                    self._pass_over_unmissed()
                    if self._next == group.info.areas:
                        break
                area = self._next
                with self._ledger.lock:
                    # Nobody writes to a free area, and it is allocated under this lock: all its rows count as rebuilt.
                    free = area not in self._allocator.allocated
                    if free:
                        member.rebuilt_rows = (area + 1) * rows
                if not free:
                    group.rebuild_area(area, member)
                    self.copied_bytes += group.geometry.area_member_bytes
                self._next += 1
                if not free or self._next - begun >= 1024:
                    break
            if self._next == group.info.areas or self._next - member.info.rebuilt_areas >= PROGRESS_AREAS:
                self._note_progress()
        except OSError as exc:
            self._ledger.fail(member, f"rebuild write: {exc.strerror}")
        return self.remaining_areas if self.active else 0

    def _pass_over_unmissed(self) -> None:
        """Go on to the next area that the member may lack. A write meets its row wholly before this or wholly after."""
        group, rows = self.group, self.group.geometry.rows_per_area
        with group.all_rows(), group.intents.lock:
            while self._next < group.info.areas and not may_differ(group, self._next):
                self._next += 1
            self.member.rebuilt_rows = max(self.member.rebuilt_rows, self._next * rows)

    def _note_progress(self) -> None:
        member, ledger = self.member, self._ledger
        member.live_file().fdatasync()
        with ledger.lock:
            if not self.active:
                return
            if self._next < self.group.info.areas:
                ledger.record([Record(Kind.REBUILT, self.group.index, member.index, 0, self._next)])
                return
            member.info.state = MemberState.IN_SYNC
            member.info.rebuilt_areas, member.info.partial = 0, False
            if not any(m.info.state is not MemberState.IN_SYNC for m in self.group.members):
                # Whole again: from here on marks and resync close the write hole, and the journal must not be replayed.
                self.group.info.journaled = 0
            ledger.commit()
            self.group.refresh()
