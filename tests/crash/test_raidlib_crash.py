"""Every crash of a pool: no kill and no power cut loses or invents data, or leaves half a change.

To go through every cut of the runs:

    FARSTRIPE_CRASH_STRIDE=1 pytest tests/crash/test_raidlib_crash.py
"""

from __future__ import annotations

import os

import pytest

from tests.testing.poolcrash import degraded_workload, explore, image_workload, move_workload, workload

STRIDE = int(os.environ.get("FARSTRIPE_CRASH_STRIDE", "7"))
SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]


@pytest.mark.parametrize(("level", "members"), SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_crash_loses_or_invents_data(level: int, members: int, seed: int) -> None:
    assert explore(level, members, seed, STRIDE * 3, workload(seed)) > 20


@pytest.mark.parametrize(("level", "members"), SHAPES[1:])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_crash_while_members_fail_and_are_rebuilt_loses_data(level: int, members: int, seed: int) -> None:
    assert explore(level, members, seed, STRIDE * 5, degraded_workload(seed)) > 5


@pytest.mark.parametrize(
    ("level", "members", "second", "seed"), [(0, 2, (5, 3), 1), (5, 3, (0, 1), 2), (6, 4, (1, 2), 3), (1, 2, (5, 3), 4)]
)
def test_no_crash_between_snapshots_copies_and_moves_loses_data(
    level: int, members: int, second: tuple[int, int], seed: int
) -> None:
    assert explore(level, members, seed, STRIDE * 3, image_workload(seed, 40), second) > 40


@pytest.mark.parametrize(("level", "members", "second"), [(0, 2, (5, 3)), (6, 4, (1, 2))])
def test_no_crash_of_a_move_loses_data(level: int, members: int, second: tuple[int, int]) -> None:
    assert explore(level, members, 1, STRIDE, move_workload(1), second) > 40
