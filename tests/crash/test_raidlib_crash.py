"""Every crash of a pool: no kill and no power cut loses or invents data, or leaves half a change.

To go through every cut of the runs:

    FARSTRIPE_CRASH_STRIDE=1 pytest tests/crash/test_raidlib_crash.py
"""

from __future__ import annotations

import os

import pytest

from raidlib import rebuild, replacing
from tests.testing.poolcrash import degraded_workload, explore, member_workload, workload

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


@pytest.mark.parametrize(("level", "members"), [*SHAPES, (1, 3)])
@pytest.mark.parametrize("seed", [1, 3])
def test_no_crash_while_members_are_swapped_vanish_and_come_back_loses_data(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int, seed: int
) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    monkeypatch.setattr(rebuild, "PROGRESS_AREAS", 2)
    assert explore(level, members, seed, STRIDE * 4, member_workload(seed)) > 5
