"""Which areas should move to which RAID group: a plan, with a reason for each move. Pure: no pool, no clock.

Two aims, in this order:

* Fit. Areas with mostly random requests belong on RAID 1 or 10, which write a small block without reading; areas with
  mostly sequential ones on RAID 5 or 6, which write whole stripes and give more space. RAID 0 suits both.
* Level. When the utilisations of the groups differ much, areas go from the busiest to the least busy one.

So that nothing moves to and fro:
* an area that fits its group never goes to one that it does not fit; it is misplaced only when four fifths of its
  requests are of the other kind;
* levelling begins when groups differ by BEGIN and takes only moves that reduce the difference by a quarter or more;
  what fits better makes no group busier than the busiest was;
* areas that moved a short while ago stay (the caller says so, by `keep`), and a plan has at most `most` moves.

An area that is to go to a full group changes places with a quiet one of that group. That takes one free area on either
side, or on a third group, where the quiet one then waits. A little space is left free on each group for volumes that
grow; only such exchanges use it, and they give it back.

Source: JP 2000-132343 A, [0139]-[0140].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

BEGIN = 0.5
"""Levelling begins when the busiest and the least busy group differ by this much of the mean utilisation,"""
LEAST_DIFFERENCE = 0.05
"""and by this much utilisation, which is a twentieth of the time."""
END = 0.2
"""It goes on until they differ by less than this much of the mean."""
LEAST_GAIN = 0.75
"""An area moves when its utilisation is at most this much of the difference: a quarter of that goes then, or more."""
BUSY = 0.01
"""Utilisation from which on an area is worth moving to where it fits."""
MOSTLY = 0.8
"""Share of requests from which on an area counts as random or sequential."""
MOST_MOVES = 64
RESERVE_SHARE = 64
"""One in so many areas of a group, and at least one, stays free."""

_FOR_RANDOM = (1, 10)
_FOR_SEQUENTIAL = (5, 6)


@dataclass(frozen=True)
class Group:
    """A RAID group. free and areas are counts; usable: it is whole and stays; rest: utilisation by areas not listed."""

    name: str
    level: int
    areas: int
    free: int
    usable: bool = True
    rest: float = 0.0


@dataclass(frozen=True)
class Area:
    """A logical area of a volume, and the load on it; sharers are summed up under one of them.

    utilisation: seconds a second. random, sequential: requests a second. keep: why it may not move, empty when it may.
    """

    volume: str
    index: int
    group: str
    utilisation: float = 0.0
    random: float = 0.0
    sequential: float = 0.0
    keep: str = ""

    @property
    def is_random(self) -> bool:
        """Whether its requests are mostly random."""
        return self.random > 0 and self.random >= MOSTLY * (self.random + self.sequential)

    @property
    def is_sequential(self) -> bool:
        """Whether its requests are mostly sequential."""
        return self.sequential > 0 and self.sequential >= MOSTLY * (self.random + self.sequential)

    def suits(self, level: int) -> bool:
        """Whether it may lie on a group of that level."""
        if self.is_random:
            return level not in _FOR_SEQUENTIAL
        return not self.is_sequential or level not in _FOR_RANDOM

    @property
    def order(self) -> tuple[str, int]:
        """What makes plans the same each time."""
        return self.volume, self.index


@dataclass(frozen=True)
class Move:
    """A logical area goes from one group to another."""

    volume: str
    index: int
    source: str
    target: str
    reason: str
    utilisation: float


@dataclass
class Plan:
    """Moves in the order in which they have to happen, and what they are expected to do."""

    moves: list[Move] = field(default_factory=list)
    skipped: list[tuple[Area, str]] = field(default_factory=list)
    """Areas that would move, and why they do not."""
    before: dict[str, float] = field(default_factory=dict)
    """Utilisation of each group."""
    after: dict[str, float] = field(default_factory=dict)
    more: bool = False
    """Whether there is more to do than a plan may hold."""


def plan(groups: Sequence[Group], areas: Sequence[Area], most: int = MOST_MOVES) -> Plan:
    """Return what should move, at most `most` >= 3 moves.

    groups: all of the pool. areas: the busy ones, and some quiet ones for full groups to give.
    """
    return _Planner(groups, areas, most).run()


class _Full(Exception):
    """No more moves."""


class _Planner:
    def __init__(self, groups: Sequence[Group], areas: Sequence[Area], most: int) -> None:
        self._groups = {group.name: group for group in groups}
        self._free = {group.name: group.free for group in groups}
        self._most = most
        self._at = {area.order: area for area in sorted(areas, key=lambda area: area.order)}
        self._group = {key: area.group for key, area in self._at.items()}
        self._moved: set[tuple[str, int]] = set()
        self._skipped: dict[tuple[str, int], tuple[Area, str]] = {}
        self._load = {group.name: group.rest for group in groups}
        for area in self._at.values():
            self._load[area.group] += area.utilisation
        self._plan = Plan(before=dict(self._load))

    def run(self) -> Plan:
        try:
            before = -1
            while before != len(self._plan.moves):
                before = len(self._plan.moves)
                self._fit()
                self._level()
        except _Full:
            self._plan.more = True
        self._plan.after = dict(self._load)
        gone = {key: one for key, one in self._skipped.items() if key not in self._moved}
        self._plan.skipped = [gone[key] for key in sorted(gone)]
        return self._plan

    # Fit

    def _fit(self) -> None:
        """Move what does not fit its group, in pairs first."""
        random, sequential = self._misplaced()
        for a, b in zip(random, sequential, strict=False):
            self._exchange(a, b)
        random, sequential = self._misplaced()
        for area in sorted(random + sequential, key=lambda area: (-area.utilisation, area.order)):
            if area.order not in self._moved:
                self._settle(area)

    def _misplaced(self) -> tuple[list[Area], list[Area]]:
        """The busy areas that lie on the wrong level: random ones and sequential ones, busiest first."""
        found = [
            area
            for area in self._at.values()
            if area.utilisation >= BUSY
            and area.order not in self._moved
            and not area.suits(self._groups[self._group[area.order]].level)
            and self._homes(area)
            and self._may_move(area)
        ]
        found.sort(key=lambda area: (-area.utilisation, area.order))
        return [area for area in found if area.is_random], [area for area in found if area.is_sequential]

    def _homes(self, area: Area) -> list[str]:
        """The groups of the levels that are best for it, the least busy first."""
        levels = _FOR_RANDOM if area.is_random else _FOR_SEQUENTIAL
        names = [name for name, group in self._groups.items() if group.usable and group.level in levels]
        return sorted(names, key=lambda name: (self._load[name], name))

    def _exchange(self, a: Area, b: Area) -> None:
        """Let two misplaced areas change places, when both groups are usable."""
        here, there = self._group[a.order], self._group[b.order]
        if not (self._groups[here].usable and self._groups[there].usable):
            return
        self._place(a, there, _fits(a, self._groups[there]), b, _fits(b, self._groups[here]))

    def _settle(self, area: Area) -> None:
        busiest = max(self._load.values())
        homes = self._homes(area)
        calm = [name for name in homes if self._load[name] + area.utilisation <= busiest]
        if not calm:
            self._skip(area, f"{homes[0]} would become the busiest group")
        elif not any(self._place(area, name, _fits(area, self._groups[name])) for name in calm):
            self._skip(area, f"{' and '.join(calm)} have no free area, and nothing to change places with")

    # Level

    def _level(self) -> None:
        usable = [name for name, group in self._groups.items() if group.usable]
        if len(usable) < 2 or not self._differ(BEGIN):
            return
        while self._differ(END) and self._level_once(usable):
            pass

    def _differ(self, share: float) -> bool:
        loads = [self._load[name] for name, group in self._groups.items() if group.usable]
        difference = max(loads) - min(loads)
        return difference > max(share * sum(loads) / len(loads), LEAST_DIFFERENCE)

    def _level_once(self, usable: Sequence[str]) -> bool:
        """Make one move from a busy group to a less busy one; return whether there was one."""
        rising = sorted(usable, key=lambda name: (self._load[name], name))
        for source, target in itertools.product(reversed(rising), rising):
            difference = self._load[source] - self._load[target]
            if difference <= LEAST_DIFFERENCE:
                continue
            reason = f"levels {source} ({self._load[source]:.2f} busy) and {target} ({self._load[target]:.2f})"
            area = next(self._candidates(source, target, difference), None)
            if area is not None:
                if self._place(area, target, reason):
                    return True
                self._skip(area, f"{target} has no free area, and nothing to change places with")
        return False

    def _candidates(self, source: str, target: str, difference: float) -> Iterator[Area]:
        """Areas whose move would level two groups: misplaced ones first, then by what is left of the difference."""
        here, there = self._groups[source], self._groups[target]
        found = [
            area
            for key, area in self._at.items()
            if self._group[key] == source
            and key not in self._moved
            and difference / 256 <= area.utilisation <= LEAST_GAIN * difference
            and (area.suits(there.level) or not area.suits(here.level))
        ]
        found.sort(key=lambda area: (area.suits(here.level), abs(difference / 2 - area.utilisation), area.order))
        return (area for area in found if self._may_move(area))

    # Moves

    def _may_move(self, area: Area) -> bool:
        if area.keep:
            self._skip(area, area.keep)
        return not area.keep

    def _skip(self, area: Area, why: str) -> None:
        self._skipped[area.order] = area, why

    def _place(self, area: Area, target: str, reason: str, other: Area | None = None, why: str = "") -> bool:
        """Plan the move of an area, and of `other` in the other direction; return whether that can be done.

        Without `other` a quiet area of the target makes room when it is full.
        """
        source = self._group[area.order]
        if other is None:
            if self._free[target] > self._reserve(target):
                self._move(area, target, reason)
                return True
            other = self._quiet(target, source, area)
            why = f"makes room for area {area.index} of {area.volume}"
            if other is None:
                return False
        if self._free[target] > 0:
            steps = [(area, target, reason), (other, source, why)]
        elif self._free[source] > 0:
            steps = [(other, source, why), (area, target, reason)]
        else:
            third = self._third(source, target)
            if third is None:
                return False
            steps = [(other, third, f"{why}, by way of {third}"), (area, target, reason), (other, source, why)]
        if len(self._plan.moves) + len(steps) > self._most:
            raise _Full
        for step in steps:
            self._move(*step)
        return True

    def _quiet(self, group: str, to: str, for_whom: Area) -> Area | None:
        """The least busy area of a group that may go where the other one comes from, if it is much less busy."""
        here, there = self._groups[group], self._groups[to]
        if not there.usable:
            return None
        found = [
            area
            for key, area in self._at.items()
            if self._group[key] == group
            and key not in self._moved
            and not area.keep
            and (area.suits(there.level) or not area.suits(here.level))
            and area.utilisation <= for_whom.utilisation / 4
        ]
        return min(found, key=lambda area: (area.utilisation, area.order), default=None)

    def _third(self, a: str, b: str) -> str | None:
        names = [
            name for name, group in self._groups.items() if name not in (a, b) and group.usable and self._free[name] > 0
        ]
        return min(names, key=lambda name: (-self._free[name], name), default=None)

    def _reserve(self, group: str) -> int:
        return self._groups[group].areas // RESERVE_SHARE + 1

    def _move(self, area: Area, target: str, reason: str) -> None:
        if len(self._plan.moves) >= self._most:
            raise _Full
        key, source = area.order, self._group[area.order]
        self._plan.moves.append(Move(area.volume, area.index, source, target, reason, area.utilisation))
        self._moved.add(key)
        self._group[key] = target
        self._free[source] += 1
        self._free[target] -= 1
        self._load[source] -= area.utilisation
        self._load[target] += area.utilisation


def _fits(area: Area, group: Group) -> str:
    kind, share = ("random", area.random) if area.is_random else ("sequential", area.sequential)
    percent = 100 * share / (area.random + area.sequential)
    return f"{percent:.0f} % {kind} requests, for which RAID {group.level} is better"
