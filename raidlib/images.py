"""Snapshots and clones: images that begin with the map of another one and share its areas.

Taking images of several volumes at one instant: writers of all of them are kept out (bars), those inside end, what they
wrote is synced, and one commit says that the images exist. Before the commit there is none, after it there are all, and
what they hold is durable. Only then do writers go on, and find the areas shared.

An image is stored as difference to its base, a relative that resembles it: a snapshot to the next younger snapshot of
the same volume, the youngest to the volume, a clone to what it was made from. When a base is deleted its dependents are
stored against the base's own base, or when it had none, against one of themselves.

All functions are called under the pool's administrative lock and, where they change the state, under the ledger's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raidlib.areamap import AreaMap
from raidlib.arearefs import areas_by_group
from raidlib.errors import OutOfSpace
from raidlib.space import Space
from raidlib.state import ImageKind, PoolState, VolumeInfo

Range = tuple[int, int]


def add(
    space: Space, sources: Sequence[tuple[VolumeInfo, str]], kind: ImageKind, attributes: Mapping[str, Any]
) -> list[VolumeInfo]:
    """Add an image of each source, under its new name and with these attributes, to the state; the caller commits.

    Nobody may be writing to the sources. Raises OutOfSpace when the metadata has no room; then nothing was changed.
    """
    state = space.ledger.state
    bases = {info.id: info.base for info in state.volumes.values()}
    next_id = state.next_volume_id
    added: list[VolumeInfo] = []
    now = int(time.time())
    for source, name in sources:
        info = VolumeInfo(
            state.next_volume_id,
            name,
            uuid.uuid4().hex,
            source.size,
            source.group,
            True,
            source.areas.copy(),
            kind=kind,
            origin=source.id,
            base=source.id,
            family=source.family,
            pinned=source.pinned,
            placement=list(source.placement),
            created=now,
            attributes=dict(attributes),
        )
        state.next_volume_id += 1
        if kind is ImageKind.SNAPSHOT:
            for other in state.volumes.values():
                if other.kind is ImageKind.SNAPSHOT and other.base == source.id:
                    other.base = info.id
        state.volumes[info.id] = info
        refer(space, info.areas)
        added.append(info)
    try:
        space.ledger.check_room()
    except OutOfSpace:
        for info in added:
            for group, areas in areas_by_group(info.areas).items():
                space.allocators[group].allocated.drop_all(areas)
            del state.volumes[info.id]
        for key, base in bases.items():
            state.volumes[key].base = base
        state.next_volume_id = next_id
        raise
    return added


def check_removable(space: Space, info: VolumeInfo) -> None:
    """Raise OutOfSpace when the metadata would outgrow its room without an image that others are stored against.

    Call under the ledger's lock. Changes nothing.
    """
    state, ledger = space.ledger.state, space.ledger
    if not any(other.base == info.id for other in state.volumes.values()):
        return
    before = len(state.encode())
    kept = {other.id: (other.base, other.origin) for other in state.volumes.values()}
    images = dict(state.volumes)
    try:
        del state.volumes[info.id]
        _relink(state, info)
        if len(state.encode()) > before:
            ledger.check_room()
    except OutOfSpace as exc:
        exc.way_out = "delete first the snapshots and clones that were made from it"
        raise
    finally:
        state.volumes.clear()
        state.volumes.update(images)
        for key, (base, origin) in kept.items():
            images[key].base, images[key].origin = base, origin


def remove(space: Space, info: VolumeInfo) -> list[int]:
    """Take an image out of the state; the caller commits and then punches the places that are returned."""
    state = space.ledger.state
    del state.volumes[info.id]
    _relink(state, info)
    state.moves = [move for move in state.moves if move.volume != info.id]
    return unrefer(space, info.areas)


def _relink(state: PoolState, gone: VolumeInfo) -> None:
    for info in state.volumes.values():
        if info.origin == gone.id:
            info.origin = 0
    dependents = [info for info in state.volumes.values() if info.base == gone.id]
    base = gone.base
    for info in dependents:
        info.base = base
        base = base or info.id


def refer(space: Space, areas: AreaMap) -> None:
    """One more map has these areas."""
    for group, some in areas_by_group(areas).items():
        space.allocators[group].allocated.add_all(some)


def unrefer(space: Space, areas: AreaMap) -> list[int]:
    """A map with these areas is gone; return the places that nobody has now, which are dirty."""
    places: list[int] = []
    for group, some in areas_by_group(areas).items():
        gone = space.allocators[group].allocated.drop_all(some)
        space.groups[group].info.dirty.update(gone)
        space.allocators[group].freed(gone)
        places.extend(group + 1 << 32 | area for area in gone)
    return places


def changed_ranges(a: VolumeInfo, b: VolumeInfo, area_bytes: int) -> list[Range]:
    """Return the ranges (offset, length) in which two images may differ, to the area, merged and rising.

    Of the same family, areas that are not in the list hold the same bytes. What only one of them has allocated counts.
    """
    end = max(a.size, b.size)
    return merge_areas(a.areas.differences(b.areas).tolist(), area_bytes, end)


def merge_areas(indexes: Iterable[int], area_bytes: int, end: int) -> list[Range]:
    """Rising logical areas as ranges (offset, length) of bytes, cut at `end`."""
    ranges: list[Range] = []
    for index in indexes:
        off = index * area_bytes
        length = min(area_bytes, end - off)
        if length <= 0:
            break
        if ranges and sum(ranges[-1]) == off:
            ranges[-1] = ranges[-1][0], ranges[-1][1] + length
        else:
            ranges.append((off, length))
    return ranges
