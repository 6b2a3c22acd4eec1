"""The clean code under simulated faults: no promise is broken in any of these runs, and runs repeat exactly."""

import pytest

from tests.sim.__main__ import command, run_one
from tests.testing.sim.world import World

CHUNK = 20
CHUNKS = 20


@pytest.mark.parametrize("first", [1 + CHUNK * n for n in range(CHUNKS)])
def test_no_promise_is_broken(first: int):
    failures = []
    for seed in range(first, first + CHUNK):
        _, report, failure = run_one(seed)
        if report is None:
            failures.append(f"{failure}\n    repeat with: {command(seed)}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("seed", [3, 40, 77])
def test_the_same_seed_gives_the_same_run(seed: int):
    first, second = World(seed).run(), World(seed).run()
    assert (first.trace_hash, first.events) == (second.trace_hash, second.events), command(seed)
