"""Goes through every crash of a pool's workload, and through crashes in the recovery from them.

A run is named by (level, members, plan, seed). It is played once on a disk that records, with a copy of the model at
every change; then for each change, and each outcome of a crash there (crashimages.py), the disk is made, the pool is
opened on it, and PoolWorld and audit() say whether it is what it must be. Outcomes that leave the same bytes under the
same expectations are looked at once. The opening of some is recorded in turn, and every change in it is cut again. Some
states are looked at longer: what is free must come back blank, a rebuild must complete, and with members gone the same
must be read.

    python -m tests.testing.poolexplorer --states 100000 --seed 1
    python -m tests.testing.poolexplorer --run 5,3,degraded,7 --cut 33

A night of it, that goes on where the last one ended, is explorenight.py.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from raidlib import rebuild, replacing
from tests.testing.crashimages import Change, Outcome, RecordingDisk, Walk, outcomes
from tests.testing.fakedisk import Unsynced
from tests.testing.poolaudit import audit
from tests.testing.poolcrash import (
    Second,
    Step,
    away_workload,
    combined_workload,
    degraded_workload,
    finish,
    grown,
    image_workload,
    member_workload,
    workload,
)
from tests.testing.poolmodel import DoubleFault
from tests.testing.poolworld import PoolWorld


class Plan(NamedTuple):
    """A kind of workload and of pool."""

    draw: Callable[[int], list[Step]]
    """Draws the steps from a seed."""
    loses: bool = True
    """Members fail, so RAID 0 cannot take part."""
    checksums: bool = False
    second: Second = None


PLANS = {
    "healthy": Plan(workload, loses=False),
    "healthy-sums": Plan(workload, loses=False, checksums=True),
    "degraded": Plan(degraded_workload),
    "degraded-sums": Plan(degraded_workload, checksums=True),
    "swapped": Plan(member_workload, loses=False),
    "away": Plan(away_workload),
    "growing": Plan(lambda seed: grown(workload(seed, 16), seed, 0.15), loses=False),
    "images": Plan(image_workload, loses=False, second=(1, 2)),
    "everything": Plan(partial(combined_workload, groups=False), checksums=True),
    "everything-grows": Plan(partial(combined_workload, groups=True), second=(1, 2)),
}
SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]
OUTCOMES_PER_CUT = 20
OUTCOMES_PER_SECOND_CUT = 4
DEEP_EVERY = 25
"""Every so many states is looked at longer, which costs as much as ten others."""
SECOND_CRASH_EVERY = 40
"""The recovery of every so many states is recorded and cut everywhere."""


class Run(NamedTuple):
    """Names one workload."""

    level: int
    members: int
    plan: str
    seed: int

    def __str__(self) -> str:
        return f"{self.level},{self.members},{self.plan},{self.seed}"


RUN_KINDS = [Run(*shape, name, 0) for name, plan in PLANS.items() for shape in SHAPES if shape[0] or not plan.loses]


@dataclass
class Counts:
    """What was explored."""

    states: int = 0
    """Opened and checked: different bytes, or different expectations of them."""
    second: int = 0
    """Of those, left by a crash in the recovery from another crash."""
    equal: int = 0
    """Outcomes that were another one's state again."""
    double_faults: int = 0
    """Power was lost in the moment a member was lost, and the pool refused, as it may."""
    cuts: int = 0
    """Points at which runs and recoveries were cut."""

    def __str__(self) -> str:
        return (
            f"{self.states} states ({self.second} of them after a second crash, {self.equal} more were equal to one"
            f" of them, {self.double_faults} refused after a double fault) at {self.cuts} cut points"
        )


class _Record(NamedTuple):
    """A sequence of changes."""

    base: dict[str, tuple[bytes, list[Unsynced]]]
    log: list[Change]
    views: list[PoolWorld]
    """The world when each change began, and at the end; one object while it stays the same. Or one for all."""


class _Crash(NamedTuple):
    """One thing to look at."""

    cut: int
    view: PoolWorld
    outcome: Outcome
    digest: int
    make: Callable[[], RecordingDisk]


def play(run: Run) -> _Record:
    """Play the workload to its end, look at what it leaves without any crash, and return the record."""
    rng = random.Random(f"{run}")
    disk = RecordingDisk(rng)
    plan = PLANS[run.plan]
    world = PoolWorld(rng, run.level, run.members, disk=disk, second=plan.second, checksums=plan.checksums)
    views: list[PoolWorld] = []
    disk.record()

    def view() -> None:
        now = world.fork(rng, disk)
        views.append(views[-1] if views and views[-1].expects_the_same(now) else now)

    disk.on_change = view
    for step in plan.draw(run.seed):
        step(world)
    assert disk.log is not None
    view()
    record = _Record(disk.base, disk.log, views)
    disk.log = None
    world.settle()
    if not world.losing:
        audit(world.pool, disk)
        finish(world)
    return record


class Explorer:
    """Explores runs one after the other and counts."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._seen: set[tuple[int, int, bool]] = set()

    def explore(self, run: Run, only: int | None = None, enough: int = 1 << 60) -> None:
        """Explore a run, or one cut of it, until `enough` states are counted in all.

        What is wrong is raised, with a note that says how to see it again.
        """
        self._seen.clear()
        try:
            record = play(run)
        except BaseException as exc:
            exc.add_note(f"again, without any crash: python -m tests.testing.poolexplorer --run {run}")
            raise
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # the record lives to the end, and is not to be looked through again and again
        for number, crash in enumerate(self._crashes(record, str(run), OUTCOMES_PER_CUT, only=only)):
            try:
                self._first(crash, number, f"{run} {crash.cut} {crash.outcome.name}")
            except BaseException as exc:
                exc.add_note(f"outcome: {crash.outcome.name}")
                exc.add_note(f"again: python -m tests.testing.poolexplorer --run {run} --cut {crash.cut}")
                raise
            if self.counts.states >= enough:
                break

    def _crashes(
        self, record: _Record, name: str, most: int, digest: int = 0, only: int | None = None
    ) -> Iterator[_Crash]:
        """Every crash of a record whose state was not seen before."""
        walk = Walk(record.base, digest)
        for cut, change in enumerate([*record.log, Change("end", "", 0, b"")]):
            in_flight = walk.begin(change)
            if only is None or cut == only:
                self.counts.cuts += 1
                rng = random.Random(f"{name} {cut}")
                view = record.views[min(cut, len(record.views) - 1)]
                for outcome in outcomes(walk.pending, in_flight, rng, most):
                    found, make = walk.build(rng, outcome)
                    key = found, id(view), outcome.power
                    if key in self._seen:
                        self.counts.equal += 1
                    else:
                        self._seen.add(key)
                        yield _Crash(cut, view, outcome, found, make)
            walk.end(change)

    def _first(self, crash: _Crash, number: int, name: str) -> None:
        disk = crash.make()
        again = number % SECOND_CRASH_EVERY == 0
        if again:
            disk.record()
        boot_id = "b" if crash.outcome.power else "a"
        recovery = self._check(crash, disk, boot_id, random.Random(name), number % DEEP_EVERY == 0)
        if not again:
            return
        record = _Record(disk.base, recovery, [crash.view])
        for second in self._crashes(record, name, OUTCOMES_PER_SECOND_CUT, crash.digest):
            self.counts.second += 1
            try:
                self._check(second, second.make(), "c" if second.outcome.power else boot_id, random.Random(name), False)
            except BaseException as exc:
                exc.add_note(f"then, at change {second.cut} of the recovery, a second crash: {second.outcome.name}")
                raise

    def _check(self, crash: _Crash, disk: RecordingDisk, boot_id: str, rng: random.Random, deep: bool) -> list[Change]:
        """Open and look; return the changes that opening made, if the disk records."""
        world = crash.view.fork(rng, disk)
        self.counts.states += 1
        try:
            world.reopen(power=boot_id != "a", boot_id=boot_id)
        except DoubleFault:
            self.counts.double_faults += 1
            return disk.log or []
        recovery, disk.log = disk.log or [], None
        audit(world.pool, disk)
        if deep:
            finish(world)
        return recovery


def use_small_steps() -> None:
    """Let progress be noted every area or two, for the pools here have few."""
    replacing.PROGRESS_AREAS, rebuild.PROGRESS_AREAS = 1, 2


def explore_many(states: int, seed: int, tell: Callable[[str], None] = print) -> Counts:
    """Explore all kinds of runs of one seed after another until so many states are counted."""
    explorer = Explorer()
    began = time.monotonic()
    while explorer.counts.states < states:
        for kind in RUN_KINDS:
            explorer.explore(kind._replace(seed=seed), enough=states)
        took = time.monotonic() - began
        tell(f"seed {seed}: {explorer.counts} so far, {explorer.counts.states / took:.0f} states/s")
        seed += 1
    tell(f"to go on: make explore SEED={seed}")
    return explorer.counts


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.testing.poolexplorer", description=__doc__)
    parser.add_argument("--states", type=int, default=30_000, help="stop after so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--run", help="LEVEL,MEMBERS,PLAN,SEED: explore this run alone")
    parser.add_argument("--cut", type=int, help="with --run: this cut alone")
    given = parser.parse_args(arguments)
    use_small_steps()
    if given.run:
        level, members, plan, seed = given.run.split(",")
        explorer = Explorer()
        explorer.explore(Run(int(level), int(members), plan, int(seed)), given.cut)
        print(explorer.counts)
    else:
        explore_many(given.states, given.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
