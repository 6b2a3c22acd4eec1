"""What a pool does at open after it was not closed: the process was killed, or the power went.

Everything that may be half done lies in the marked regions of the intent maps (the union over a group's members: a
mark is durable on all before the first write, a cleared mark may linger on some). In those:
* parity and mirrors of allocated areas are made good before anything is served. Chosen over doing it at first access,
  because a member that fails in between would turn a repairable stripe into a lost one;
* free areas are not trusted to be zero: an allocation may be lost while data written there is not;
* the ranges of volumes are reported for replication (Pool.unclean_ranges).

Degraded and dirty: with a data chunk gone, a stripe whose parity may be wrong cannot be repaired, nor told from a good
one. If every write since the member was lost went through the stripe journal, that is replayed and all is well. If
not, open refuses, unless forced: then the missing chunks are taken from parity as it stands. A data chunk that cannot
be read counts as missing here.
"""

from __future__ import annotations

from collections.abc import Iterable

from raidlib.areamap import area_of, group_of
from raidlib.arearefs import AreaRefs, count_refs
from raidlib.errors import Refused
from raidlib.intents import decode_map, map_bytes, read_image
from raidlib.layout import Layout
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.state import TOUCH_AREAS, GroupInfo, MemberState, PoolState

Ranges = dict[str, list[tuple[int, int]]]


def read_marks(info: GroupInfo, layout: Layout, members: Iterable[Member]) -> set[int]:
    """Return the regions of a group that any member has marked; all of them when no member's map can be read."""
    regions = -(-info.areas // info.region_areas)
    marked: set[int] = set()
    read = False
    for member in members:
        if member.carries:
            try:
                data = read_image(member.live_file(), layout, map_bytes(regions))
            except OSError:
                member.read_errors += 1
                continue
            marked |= decode_map(data, regions)
            read = True
    return marked if read else set(range(regions))


def distrust_free_areas(state: PoolState, group: int, marked: set[int]) -> None:
    """Call every free area in a marked region dirty."""
    info = state.groups[group]
    allocated, reserved = allocated_areas(state, group), info.reserved
    for region in marked:
        first = region * info.region_areas
        for area in range(first, min(first + info.region_areas, info.areas)):
            if area not in allocated and area not in reserved:
                info.dirty.add(area)


def allocated_areas(state: PoolState, group: int) -> AreaRefs:
    """Every area of a group that belongs to an image."""
    return count_refs((volume.areas for volume in state.volumes.values()), group, state.groups[group].areas)


def suspect_areas(state: PoolState, group: int, marked: set[int]) -> list[int]:
    """The allocated areas of marked regions, rising."""
    size = state.groups[group].region_areas
    return [area for area in allocated_areas(state, group) if area // size in marked]


def check_write_hole(group: RaidGroup, suspects: list[int], force: bool) -> None:
    """Raise Refused when stripes may be torn and the chunks to repair them are missing, unless forced."""
    info = group.info
    if force or not group.degraded or not group.geometry.parity_chunks or info.journaled:
        return
    away = [member for member in group.members if member.info.state is not MemberState.IN_SYNC]
    torn = [area for area in suspects if any(area >= member.info.rebuilt_areas for member in away)]
    if torn:
        raise Refused(
            f"group {info.name} stopped uncleanly and {', '.join(m.path for m in away)} is missing: stripes in"
            f" {len(torn)} areas ({len(torn) * group.geometry.area_bytes} bytes) may be damaged and cannot be checked",
            "attach the missing member; or take over on the replica; or node start --force, then check the data",
        )


def repair(group: RaidGroup, suspects: list[int], force: bool) -> int:
    """Make parity and mirrors of the areas good; return how many chunks were wrong.

    Raises MediumError; Refused when a member is lost before all is good (yields to force).
    """
    if group.lost:
        return 0
    if group.info.journaled:
        # Every row is as its last write left it; rows that are whole are gone through like any others.
        group.replay_journal()
        force = True
    wrong = 0
    for done, area in enumerate(suspects):
        check_write_hole(group, suspects[done:], force)
        wrong += group.resync_area(area, trust_parity=force)
        check_write_hole(group, suspects[done:], force)
    return wrong


def unclean_ranges(state: PoolState, marked: list[set[int]]) -> Ranges:
    """Return for each volume the ranges (offset, length) that the stop may have left different, merged, in order."""
    result: Ranges = {}
    for volume in state.volumes.values():
        if not volume.writable:
            continue
        indexes = {
            index
            for index, place in volume.areas.items()
            if area_of(place) // state.groups[group_of(place)].region_areas in marked[group_of(place)]
        }
        for volume_id, block in state.touched:
            if volume_id == volume.id:
                first = block * TOUCH_AREAS
                indexes.update(index for index in range(first, first + TOUCH_AREAS) if index not in volume.areas)
        ranges: list[tuple[int, int]] = []
        for index in sorted(indexes):
            start = index * state.area_bytes
            end = min(start + state.area_bytes, volume.size)
            if start >= end:
                continue
            if ranges and sum(ranges[-1]) == start:
                ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
            else:
                ranges.append((start, end - start))
        if ranges:
            result[volume.name] = ranges
    return result
