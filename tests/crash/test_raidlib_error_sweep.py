"""Every single I/O error of ten scenarios, on every level: nothing acknowledged is lost silently, nothing leaks.

One member of each pool gets each kind of error; to give it to all of them, one after the other:

    FARSTRIPE_SWEEP=all pytest tests/crash/test_raidlib_error_sweep.py
"""

from __future__ import annotations

import os

import pytest

from tests.testing.faultsweep import ERRORS, SCENARIOS, Scenario, Sweep, faults, sweep_create

SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]
ALL_MEMBERS = os.environ.get("FARSTRIPE_SWEEP") == "all"
CASES = [(scenario, *shape) for scenario in SCENARIOS for shape in SHAPES if shape[0] or not scenario.away]


@pytest.mark.parametrize(
    ("scenario", "level", "members"), CASES, ids=[f"{case[0].name}-raid{case[1]}".replace(" ", "-") for case in CASES]
)
def test_no_io_error_loses_what_was_acknowledged(scenario: Scenario, level: int, members: int) -> None:
    sweep = Sweep(scenario, level, members)
    for fault in faults(sweep.members, ALL_MEMBERS, f"{scenario.name} {level}"):
        sweep.to_exhaustion(*fault)
    assert sweep.runs > 40


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_create_that_meets_an_io_error_leaves_no_pool_or_a_whole_one(level: int, members: int) -> None:
    tried = [
        sweep_create(level, members, kind, error, for_ever)
        for kind, error in ERRORS
        for for_ever in (False, True)
        if error != "short"
    ]
    assert max(tried) > 5, "the sweep went on until no I/O was left to fail"
