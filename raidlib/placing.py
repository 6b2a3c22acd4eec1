"""Where the areas of a volume come to lie: ranges on chosen groups, and all areas of a thick volume at once.

A user gives (first byte, length, group) for as many parts of a volume as he likes. What is mapped is whole areas, and
the reply says which, so that the next range can begin where the last one ended. Ranges may not overlap once rounded.
When areas cannot be allocated nothing is left behind. Source: JP 2000-132343 A, [0128]-[0131].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from raidlib.areamap import area_of, group_of
from raidlib.errors import BadInput, NotFound, OutOfSpace, Refused
from raidlib.space import Space
from raidlib.state import Kind, Record, VolumeInfo

PlacedRange = tuple[int, int, str]
"""First byte, length in bytes, name of the group."""
Placement = list[tuple[int, int, int]]
"""(first logical area, end, group index), rising."""


def group_named(space: Space, name: str) -> int:
    """Return the index of a group. Raises NotFound; Refused when it is being removed."""
    for index, group in space.groups.items():
        if group.info.name == name:
            if group.info.draining:
                raise Refused(f"group {name} is being removed", "take another group")
            return index
    names = ", ".join(group.info.name for group in space.groups.values())
    raise NotFound(f"there is no RAID group {name} in pool {space.ledger.state.name}", f"its groups are: {names}")


def plan(space: Space, ranges: Sequence[PlacedRange], size: int) -> Placement:
    """Check ranges and round them to areas. Raises BadInput, NotFound, Refused; OutOfSpace when a group is full."""
    area_bytes = space.ledger.state.area_bytes
    placement: Placement = []
    for start, length, name in sorted(ranges):
        group = group_named(space, name)
        if start < 0 or length <= 0 or start + length > size:
            raise BadInput(f"the range {start}+{length} does not lie within {size} bytes", "give a range of the volume")
        first, end = start // area_bytes, -(-(start + length) // area_bytes)
        if placement and first < placement[-1][1]:
            before = placement[-1]
            raise BadInput(
                f"the range {start}+{length} overlaps [{before[0] * area_bytes}, {before[1] * area_bytes}),"
                " which is mapped already",
                f"areas have {area_bytes} bytes; the next range can begin at {before[1] * area_bytes}",
            )
        if not space.allocators[group].ready_areas:
            raise OutOfSpace(f"cannot allocate: group {name} has no free area left", "take another group")
        placement.append((first, end, group))
    return placement


def replaced(placement: Placement, first: int, end: int, group: int) -> Placement:
    """Return a placement in which [first, end) lies on `group`; neighbours on the same group become one."""
    parts: Placement = []
    for a, b, its in placement:
        parts.extend(part for part in ((a, min(b, first), its), (max(a, end), b, its)) if part[0] < part[1])
    parts.append((first, end, group))
    parts.sort()
    merged: Placement = []
    for part in parts:
        if merged and merged[-1][1] == part[0] and merged[-1][2] == part[2]:
            merged[-1] = merged[-1][0], part[1], part[2]
        else:
            merged.append(part)
    return merged


def allocate(space: Space, info: VolumeInfo, end: int) -> list[Record]:
    """Take areas for every logical area below `end` that has none; return their ALLOC records.

    The caller applies and commits them, or gives them back. Raises OutOfSpace; then nothing was changed. Call without
    any lock that a request takes.
    """
    while True:
        with space.ledger.lock:
            records, missing = _take_all(space, info, end)
        if missing is None:
            return records
        with contextlib.suppress(OutOfSpace):  # somebody else took them: the next round sees that
            space.prepare(missing, min(space.allocators[missing].ready_areas, end))


def _take_all(space: Space, info: VolumeInfo, end: int) -> tuple[list[Record], int | None]:
    """One try of allocate(): the records, or nothing and the group that has to be prepared."""
    records: list[Record] = []
    done = False
    try:
        for first, last in _stretches(info, end):
            order = space.order(info, first)
            for index in range(first, last):
                if index not in info.areas:
                    place, ready = space.take(order, reserve=False)
                    if not ready:
                        return [], place
                    records.append(Record(Kind.ALLOC, group_of(place), info.id, index, area_of(place)))
        _reserve(space, records)
        done = True
        return records, None
    finally:
        if not done:
            give_back(space, records)


def give_back(space: Space, records: Sequence[Record]) -> None:
    """Undo allocate(). Call under the ledger's lock."""
    for record in records:
        space.allocators[record.group].give_back(record.area)


def _stretches(info: VolumeInfo, end: int) -> Iterator[tuple[int, int]]:
    """[0, end) cut where the placement changes."""
    at = 0
    for first, last, _ in info.placement:
        for stretch in ((at, min(first, end)), (first, min(last, end))):
            if stretch[0] < stretch[1]:
                yield stretch
        at = last
    if at < end:
        yield at, end


def _reserve(space: Space, records: Sequence[Record]) -> None:
    """Reserve the space of these areas on the members, run by run. Raises OutOfSpace."""
    for index in sorted({record.group for record in records}):
        areas = sorted(record.area for record in records if record.group == index)
        at = 0
        while at < len(areas):
            n = 1
            while at + n < len(areas) and areas[at + n] == areas[at] + n:
                n += 1
            space.groups[index].reserve_areas(areas[at], n)
            at += n
