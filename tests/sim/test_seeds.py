"""The clean code under simulated faults: no promise is broken in any of these runs, and runs repeat exactly."""

import random
from dataclasses import replace

import pytest

from tests.sim.__main__ import command, run_one
from tests.testing.sim.world import Options, World

PAIRS, TREES = 400, 1600
CHUNK = 40
CHUNKS = [(kind, 1 + CHUNK * n) for kind, runs in (("pair", PAIRS), ("tree", TREES)) for n in range(runs // CHUNK)]


@pytest.mark.parametrize(("kind", "first"), CHUNKS)
def test_no_promise_is_broken(kind: str, first: int):
    failures = []
    for seed in range(first, first + CHUNK):
        _, report, failure = run_one(seed, kind)
        if report is None:
            failures.append(f"{failure}\n    repeat with: {command(seed, kind)}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("kind", ["pair", "tree"])
@pytest.mark.parametrize("first", [1, 16])
def test_rot_in_journals_costs_copies_and_breaks_no_promise(kind: str, first: int):
    """Bits flip in what journals keep, while processes die and links break; power is not lost."""
    draw = Options.draw_tree if kind == "tree" else Options.draw
    faults = ("rot", "rot", "rot", "kill-target", "kill-replicator", "kill-node", "cut")
    for seed in range(first, first + 15):
        roles = ("switchover", "takeover", "policy") if seed % 2 else ()
        World(seed, replace(draw(random.Random(seed)), faults=(*faults, *roles), mid_write=0.0)).run()


@pytest.mark.parametrize("kind", ["pair", "tree"])
@pytest.mark.parametrize("seed", [3, 40, 77])
def test_the_same_seed_gives_the_same_run(seed: int, kind: str):
    first, second = World(seed, kind=kind).run(), World(seed, kind=kind).run()
    assert (first.trace_hash, first.events) == (second.trace_hash, second.events), command(seed, kind)
