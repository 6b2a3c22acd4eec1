"""The load of a pool: rates of logical areas laid over the RAID groups that the areas lie on.

An area that several images share is listed once, under the first of them in the order they were made, with the load of
all: it moves for all of them. What somebody placed on a group by choice, and what moves already, stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raidlib.areamap import group_of
from raidlib.balance import Area, Group
from raidlib.space import Space
from raidlib.state import VolumeInfo
from raidlib.stats import COLUMNS, Rates, Row, named
from raidlib.volume import Volume

MOST_AREAS = 2048
"""How many areas are listed, the busiest ones; the others count in the sum of their group."""
QUIET_AREAS = 64
"""How many areas without any load are listed for each group."""

Kept = Callable[[VolumeInfo, int], str]
"""(image, logical area) -> why it may not move; empty when it may."""


@dataclass
class Load:
    """One area, or a group, with its rates."""

    row: Row = field(default_factory=lambda: np.zeros(COLUMNS))
    images: list[str] = field(default_factory=list)

    @property
    def rates(self) -> Rates:
        """The rates, named."""
        return named(self.row)


@dataclass
class Loads:
    """groups and areas are what balance.plan() takes; the rates are by group, and by (volume, logical area)."""

    groups: list[Group]
    areas: list[Area]
    group_rates: dict[str, Rates]
    area_rates: dict[tuple[str, int], Load]


def lay_out(
    space: Space,
    volumes: Sequence[Volume],
    rates: Mapping[str, Mapping[int, Row]],
    resting: Container[tuple[str, int]] = (),
    placed_too: bool = False,
) -> Loads:
    """Return the loads of all groups and of the busiest areas. Call under the pool's administrative lock.

    rates: by volume (its uuid) and logical area. resting: those that may not move, in the same terms. placed_too: what
    somebody placed by choice may move as well.
    """

    def kept(info: VolumeInfo, index: int) -> str:
        if (info.uuid, index) in resting:
            return "it moved a short while ago"
        return _why_kept(space, info, index, placed_too)

    by_place: dict[int, tuple[VolumeInfo, int, Load]] = {}
    for volume in volumes:
        for index, row in rates.get(volume.info.uuid, {}).items():
            place = volume.info.areas[index]
            if place:
                load = by_place.setdefault(place, (volume.info, index, Load()))[2]
                load.row = load.row + row
                load.images.append(volume.name)
    sums = {index: Load() for index in space.groups}
    for place, (_, _, load) in by_place.items():
        sums[group_of(place)].row += load.row
    busiest = sorted(by_place.items(), key=lambda item: (-item[1][2].row[-1], item[0]))[:MOST_AREAS]
    listed = [_area(space, info, index, place, load, kept) for place, (info, index, load) in busiest]
    rest = {index: sums[index].rates.utilisation for index in space.groups}
    for area, (place, _) in zip(listed, busiest, strict=True):
        rest[group_of(place)] -= area.utilisation
    listed += _quiet(space, volumes, by_place.keys(), kept)
    groups = [
        Group(
            group.info.name,
            group.info.level,
            group.info.usable_areas,
            space.allocators[index].free_areas,
            not (group.lost or group.degraded or group.info.draining),
            max(rest[index], 0.0),
        )
        for index, group in space.groups.items()
    ]
    return Loads(
        groups,
        listed,
        {space.groups[index].info.name: load.rates for index, load in sums.items()},
        {(info.name, index): load for _, (info, index, load) in busiest},
    )


def _area(space: Space, info: VolumeInfo, index: int, place: int, load: Load, kept: Kept) -> Area:
    rates = load.rates
    name = space.group_at(place).info.name
    return Area(info.name, index, name, rates.utilisation, rates.random, rates.sequential, kept(info, index))


def _why_kept(space: Space, info: VolumeInfo, index: int, placed_too: bool) -> str:
    if any(move.volume == info.id and move.first <= index < move.end for move in space.ledger.state.moves):
        return "it is being moved"
    if space.group_at(info.areas[index]).info.draining:
        return "its group is being removed"
    placed = any(first <= index < end for first, end, _ in info.placement)
    return "somebody chose its group" if not placed_too and (placed or info.pinned) else ""


def _quiet(space: Space, volumes: Sequence[Volume], busy: Container[int], kept: Kept) -> list[Area]:
    """Some areas of each group that had no requests."""
    found: list[Area] = []
    missing = dict.fromkeys(space.groups, QUIET_AREAS)
    seen: set[int] = set()
    for volume in volumes:
        if not any(missing.values()):
            break
        places = volume.info.areas.places()
        for group in [group for group, count in missing.items() if count]:
            for index in np.flatnonzero(places >> np.uint64(32) == group + 1)[: 4 * QUIET_AREAS].tolist():
                place = int(places[index])
                if place in seen or place in busy:
                    continue
                seen.add(place)
                area = _area(space, volume.info, index, place, Load(), kept)
                if not area.keep and missing[group]:
                    missing[group] -= 1
                    found.append(area)
    return found
