"""Every crash of a pool: no kill and no power cut loses or invents data, or leaves half a change.

To go through every cut of the runs:

    FARSTRIPE_CRASH_STRIDE=1 pytest tests/crash/test_raidlib_crash.py
"""

from __future__ import annotations

import os

import pytest

from raidlib import rebuild, reconcile, replacing
from tests.testing.poolcrash import (
    away_workload,
    combined_workload,
    degraded_workload,
    explore,
    image_workload,
    member_workload,
    move_workload,
    scrubbed,
    workload,
)

STRIDE = int(os.environ.get("FARSTRIPE_CRASH_STRIDE", "7"))
SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]


@pytest.mark.parametrize(("level", "members"), SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_crash_loses_or_invents_data(level: int, members: int, seed: int) -> None:
    assert explore(level, members, seed, STRIDE * 3, workload(seed)) > 20


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_no_crash_leaves_a_checksum_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int
) -> None:
    monkeypatch.setattr(reconcile, "PIECE_BYTES", 2 * 4096)  # areas are settled in several pieces
    assert explore(level, members, 3, STRIDE * 4, workload(3), checksums=True) > 20


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_no_crash_while_it_is_scrubbed_harms_a_pool(level: int, members: int) -> None:
    for checksums in (False, True):
        assert explore(level, members, 5, STRIDE * 8, scrubbed(workload(5), 5), checksums=checksums) > 10


@pytest.mark.parametrize(("level", "members"), SHAPES[1:])
def test_no_crash_of_a_degraded_pool_leaves_a_checksum_that_does_not_fit(level: int, members: int) -> None:
    assert explore(level, members, 4, STRIDE * 6, degraded_workload(4), checksums=True) > 5


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


@pytest.mark.parametrize(("level", "members"), [*SHAPES, (1, 3)])
@pytest.mark.parametrize("seed", [1, 3])
def test_no_crash_while_members_are_swapped_vanish_and_come_back_loses_data(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int, seed: int
) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    monkeypatch.setattr(rebuild, "PROGRESS_AREAS", 2)
    assert explore(level, members, seed, STRIDE * 4, member_workload(seed)) > 5


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize(("level", "members"), SHAPES[1:])
def test_no_crash_while_areas_change_hands_behind_the_back_of_one_that_is_away_loses_data(
    level: int, members: int, checksums: bool
) -> None:
    assert explore(level, members, 1, STRIDE * 9, away_workload(1), checksums=checksums) > 5


@pytest.mark.parametrize("groups", [False, True], ids=["groups stay", "groups come and go"])
@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize(("level", "members", "second"), [(1, 2, None), (5, 3, (0, 1)), (6, 4, (1, 2)), (10, 4, None)])
def test_no_crash_of_everything_at_once_loses_data(
    monkeypatch: pytest.MonkeyPatch,
    level: int,
    members: int,
    second: tuple[int, int] | None,
    checksums: bool,
    groups: bool,
) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    monkeypatch.setattr(rebuild, "PROGRESS_AREAS", 2)
    seed = 1 + level
    assert explore(level, members, seed, STRIDE * 12, combined_workload(seed, groups=groups), second, checksums) > 10
