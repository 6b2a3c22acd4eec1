"""A RAID group that takes the room its members got: files made larger, disks resized, exports larger, while it is used.

The new room becomes further areas. The first of them hold an extension of the members' parts (layout.py): more intent
map, more room for checkpoints, more checksum table. In this order:

    extension blank and new rows zeroed on every member -> synced -> one commit that names them -> areas are given out

Until the commit nobody refers to the new room, and a member that the commit did not reach has the extension all the
same: whichever generation a crash leaves, the pool has its old size or its new one, and all that belongs to it.

Every member must be in sync and none be under replacement: one that is away would come back without the extension.
Nothing else of the pool waits, and what is under way in the group, scrubs and moves, goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raidlib.allocator import Allocator
from raidlib.blockfile import BlockFile
from raidlib.checksums import table_bytes
from raidlib.errors import MediumError, OutOfSpace, Refused
from raidlib.geometry import Geometry
from raidlib.intents import SECTOR_BYTES, empty_map, map_bytes, write_image
from raidlib.layout import Extension, Layout
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.state import ExtensionInfo, GroupInfo, MemberState

METADATA_AREA_BYTES = 32
"""Room in a checkpoint for each area, as when a pool is made."""
_PAGE = 4096


@dataclass(frozen=True)
class Growth:
    """What a group would become."""

    areas: int
    """All areas that it has then."""
    extension: ExtensionInfo

    @property
    def gained_areas(self) -> int:
        """Areas that images can have more than before."""
        return self.areas - self.extension.first - self.extension.areas


def placed(layout: Layout, geometry: Geometry, extensions: Iterable[ExtensionInfo]) -> Iterator[Extension]:
    """Where extensions lie on every member."""
    size = geometry.area_member_bytes
    for info in extensions:
        start = layout.data_offset + info.first * size
        yield Extension(start, start + info.areas * size, *info[2:])


def plan(info: GroupInfo, layout: Layout, geometry: Geometry, usable: int) -> Growth | None:
    """What a group becomes on members of at least `usable` bytes; None when they have no room for a further area."""
    size, first = geometry.area_member_bytes, info.areas
    areas = (usable - layout.data_offset) // size
    if areas < first + 2:
        return None
    grown_from = info.extensions[0].first if info.extensions else first
    intent_bytes = max(0, _page_up(map_bytes(-(-areas // info.region_areas)) - layout.intent_room))
    overflow_bytes = _page_up(METADATA_AREA_BYTES * (areas - grown_from))
    table = _page_up(table_bytes((areas - first) * size)) if layout.table_bytes else 0
    taken = -(-(intent_bytes + 2 * overflow_bytes + table) // size)
    if areas <= first + taken:
        return None
    return Growth(areas, ExtensionInfo(first, taken, intent_bytes, overflow_bytes, table))


def growth_of(group: RaidGroup) -> Growth | None:
    """What a group becomes when it takes the room that its members are known to have; None when there is none."""
    try:
        usable = min(member.live_file().size for member in group.members)
    except OSError:
        return None
    return plan(group.info, group.layout, group.geometry, usable)


def check(group: RaidGroup) -> Growth:
    """Measure the members and return what the group becomes. Raises Refused with the reason, MediumError."""
    name = group.info.name
    if group.lost:
        group.raise_lost()
    if group.info.draining:
        raise Refused(f"RAID group {name} is being removed", "farstripe pool keep-group keeps it in the pool")
    for member in group.members:
        if member.info.successor is not None:
            raise Refused(
                f"{member.path} of RAID group {name} is being replaced by {member.info.successor.path}",
                "wait until that is done, or give it up: farstripe pool fail with the new one",
            )
        if member.info.state is not MemberState.IN_SYNC:
            raise Refused(
                f"RAID group {name} grows with all its members in sync, and {member.path} is {member.info.state.value}",
                "farstripe pool readd takes one back, pool replace puts another in; then wait for the rebuild",
            )
    sizes = []
    for member in group.members:
        try:
            sizes.append(member.live_file().remeasure())
        except OSError as exc:
            raise MediumError(f"{member.path} cannot be measured: {exc.strerror or exc}", "check it") from exc
    found = plan(group.info, group.layout, group.geometry, min(sizes))
    if found is None:
        smallest = group.members[sizes.index(min(sizes))]
        need = group.member_offset(group.info.areas + 2)
        raise Refused(
            f"the members of RAID group {name} have no room for more areas: the smallest, {smallest.path}, has"
            f" {min(sizes)} bytes",
            f"make every member larger first, to {need} bytes or more",
        )
    return found


def extend(group: RaidGroup, allocator: Allocator, ledger: Ledger, growth: Growth) -> None:
    """Let a group that check() let pass take its new room. Call under the pool's administrative lock.

    Raises OutOfSpace (no room for its metadata), MediumError; then it is as it was. Durable: that it has grown.
    """
    info, first = group.info, group.info.areas
    new = range(first + growth.extension.areas, growth.areas)
    layout = group.layout.extended(placed(group.layout, group.geometry, [growth.extension]))
    files = [_unchecked(member) for member in group.members]
    blank = all(file.zeroes_fast() for file in files)
    for file in files:
        try:
            _prepare(file, group, layout, growth, blank)
        except OSError as exc:
            raise MediumError(
                f"{file.path} cannot be written: {exc.strerror or exc}", "check it; the group is as it was"
            ) from exc
    ledger.sync_members()
    with group.intents.lock:
        group.intents.wait_idle()
        with ledger.lock:
            for member in group.members:
                if member.info.state is not MemberState.IN_SYNC:
                    raise MediumError(f"{member.path} failed meanwhile: {member.info.reason}", "replace it, then grow")
            before = info.areas, info.extensions
            info.areas, info.extensions = growth.areas, [*info.extensions, growth.extension]
            if not blank:
                info.dirty.update(new)
            try:
                ledger.check_room()
                ledger.commit()
            except (OutOfSpace, MediumError):
                info.areas, info.extensions = before
                info.dirty.difference_update(new)
                raise
            group.layout = layout
            ledger.put_layout(group.index, layout)
            group.intents.grow(-(-info.areas // info.region_areas))
            allocator.grow(new if blank else ())


def _prepare(file: BlockFile, group: RaidGroup, layout: Layout, growth: Growth, blank: bool) -> None:
    """Write what belongs to the new room on a member. Raises OSError. Durable: the marks."""
    size, extension = group.geometry.area_member_bytes, layout.extensions[-1]
    if blank:
        file.punch(extension.end, layout.data_offset + growth.areas * size - extension.end)
    file.zero(extension.start, extension.end - extension.start)
    used = map_bytes(-(-group.info.areas // group.info.region_areas))
    needed = map_bytes(-(-growth.areas // group.info.region_areas))
    if needed > used:
        write_image(file, layout, empty_map(1) * ((needed - used) // SECTOR_BYTES), used)


def _unchecked(member: Member) -> BlockFile:
    """Its file, which knows of no checksums: what it writes has none yet."""
    return member.live_file() if member.checked is None else member.checked.inner


def _page_up(n: int) -> int:
    return -(-n // _PAGE) * _PAGE
