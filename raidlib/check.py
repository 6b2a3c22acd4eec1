"""Is everything in the pool's books accounted for once? No leak, no double use, every reference valid.

Counted anew from the maps and compared with what the allocators believe and with what is on the members. Reads maps and
metadata, no data; whether data and redundancy agree is a scrub's business. May run while the pool is used: areas that a
call has taken and not mapped yet are known (Space.pending), and everything else is looked at under the ledger's lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raidlib.areamap import group_of
from raidlib.arearefs import AreaRefs
from raidlib.ledger import Ledger
from raidlib.metastore import MetaStore, Raw
from raidlib.space import Space
from raidlib.state import PoolState


def check(space: Space) -> dict[str, Any]:
    """Return {"problems": [a line each], "images", "moves", "groups": counts of areas}; an empty list is good.

    Call under the pool's administrative lock.
    """
    ledger = space.ledger
    with ledger.lock:
        problems = [*_check_images(ledger.state), *_check_members(ledger)]
        counted, double = _count(space)
        problems += double
        groups = []
        for index in sorted(space.groups):
            facts, trouble = _check_group(space, index, counted[index])
            groups.append(facts)
            problems += trouble
        return {
            "problems": problems,
            "images": len(ledger.state.volumes),
            "moves": len(ledger.state.moves),
            "groups": groups,
        }


def _check_images(state: PoolState) -> list[str]:
    problems: list[str] = []
    there = {index for index, group in enumerate(state.groups) if not group.removed}
    for info in state.volumes.values():
        if info.group not in there or any(group not in there for _, _, group in info.placement):
            problems.append(f"{info.name} is placed on a group that is not there")
        if info.base and info.base not in state.volumes:
            problems.append(f"{info.name} is stored against image {info.base}, which is not there")
        indexes = info.areas.indexes()
        if len(indexes) != info.areas.mapped:
            problems.append(f"{info.name} has {len(indexes)} areas and counts {info.areas.mapped}")
        if len(indexes) and int(indexes[-1]) * state.area_bytes >= info.size:
            problems.append(f"{info.name} has area {int(indexes[-1])} beyond its end at byte {info.size}")
    for move in state.moves:
        if move.volume not in state.volumes or move.group not in there:
            problems.append(f"a move of image {move.volume} to group {move.group} has lost one of them")
    return problems


def _count(space: Space) -> tuple[dict[int, AreaRefs], list[str]]:
    """References by group, counted from the maps; and what is used twice or is not there."""
    problems: list[str] = []
    counted = {index: AreaRefs(group.info.areas) for index, group in space.groups.items()}
    owner = {index: np.full(group.info.areas, -1, np.int64) for index, group in space.groups.items()}
    for info in space.ledger.state.volumes.values():
        places = info.areas.places()
        indexes = np.flatnonzero(places)
        places = places[indexes]
        groups = (places >> np.uint64(32)).astype(np.int64) - 1
        areas = (places & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for index in np.unique(groups).tolist():
            mine = areas[groups == index]
            if index not in counted or (mine >= space.groups[index].info.areas).any():
                problems.append(f"{info.name} has areas on group {index} that are not there")
                continue
            if len(np.unique(mine)) < len(mine):
                problems.append(f"{info.name} has an area of group {space.groups[index].info.name} in two places")
                continue
            counted[index].add_all(mine)
            keys = info.family << 32 | indexes[groups == index]
            wrong = mine[(owner[index][mine] != -1) & (owner[index][mine] != keys)]
            if len(wrong):
                name = space.groups[index].info.name
                problems.append(f"area {int(wrong[0])} of group {name} has two owners, one of them is {info.name}")
            owner[index][mine] = keys
    return counted, problems


def _check_group(space: Space, index: int, counted: AreaRefs) -> tuple[dict[str, Any], list[str]]:
    info, allocator = space.groups[index].info, space.allocators[index]
    name = info.name
    problems: list[str] = []
    pending = {place & 0xFFFFFFFF for place in space.pending if group_of(place) == index}
    believed, found = allocator.allocated.counts(), counted.counts()
    for area in np.flatnonzero(believed != found).tolist():
        if not (area in pending and believed[area] == 1 and found[area] == 0):
            problems.append(f"area {area} of group {name} has {found[area]} references, {believed[area]} are noted")
    free = np.zeros(info.areas, np.int64)
    clean = np.array(allocator.clean_areas(), np.int64)
    dirty = np.fromiter(info.dirty, np.int64, len(info.dirty))
    np.add.at(free, clean, 1)
    np.add.at(free, dirty, 1)
    for area in np.flatnonzero((free > 0) & (believed > 0)).tolist():
        problems.append(f"area {area} of group {name} is in use and free at once")
    for area in np.flatnonzero(free > 1).tolist():
        problems.append(f"area {area} of group {name} is clean and dirty at once")
    for area in sorted(info.reserved):
        if free[area] or believed[area]:
            problems.append(f"area {area} of group {name} holds parts of its members, and is in use or free")
        free[area] = 1
    for area in np.flatnonzero((free == 0) & (believed == 0)).tolist():
        problems.append(f"area {area} of group {name} is neither in use nor free")
    facts = {
        "name": name,
        "areas": info.usable_areas,
        "used": len(counted),
        "shared": int(np.count_nonzero(found > 1)),
        "pending": len(pending),
        "clean": len(clean),
        "dirty": len(dirty),
    }
    return facts, problems


def _check_members(ledger: Ledger) -> list[str]:
    """Whether each member has in its metadata what the pool has in memory."""
    problems: list[str] = []
    expected = ledger.state.encode()
    known: dict[Raw, list[str]] = {}
    for member in ledger.carriers():
        try:
            raw = MetaStore(member.live_file(), member.layout).read_raw()
        except OSError as exc:
            problems.append(f"{member.path}: its metadata cannot be read: {exc.strerror}")
            continue
        if raw is None or raw.generation != ledger.state.generation:
            problems.append(f"{member.path}: its metadata is not of generation {ledger.state.generation}")
            continue
        if raw not in known:
            known[raw] = _compare(ledger.state, raw.decode().state, expected)
        problems += [f"{member.path}: its metadata {what}" for what in known[raw]]
    return problems


def _compare(state: PoolState, its: PoolState, expected: bytes) -> list[str]:
    """How what a member holds departs from the pool's state, which is encoded as `expected`. Changes `its`."""
    problems: list[str] = []
    for info, its_info in zip(state.groups, its.groups, strict=False):
        # Areas that were cleaned since are dirty there until the next checkpoint; that costs time, not data.
        if not info.dirty <= its_info.dirty:
            problems.append(f"calls areas of group {info.name} clean that are not")
        its_info.dirty = info.dirty
    if its.encode() != expected:
        problems.append("differs from what the pool believes")
    return problems
