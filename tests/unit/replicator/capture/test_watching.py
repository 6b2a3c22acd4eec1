"""Which way of waiting is taken: the one that brings answers sooner, and the other one is tried again now and then."""

from __future__ import annotations

import pytest

from replicator.capture.watching import STRETCH, TRY_EVERY, Watching


def run(watching: Watching, stretches: int, watched_s: float, slept_s: float) -> list[bool]:
    """Let answers take that long; returns what each stretch did."""
    done = []
    for _ in range(stretches):
        done.append(watching.now)
        for _ in range(STRETCH):
            assert watching.now is done[-1]
            watching.note(watched_s if watching.now else slept_s)
    return done


@pytest.mark.parametrize(
    ("watched_us", "slept_us", "watches"),
    [(100, 150, True), (150, 100, False), (100, 100, False), (95, 100, False), (85, 100, True)],
)
def test_both_are_tried_and_the_better_one_is_kept(watched_us: int, slept_us: int, watches: bool) -> None:
    done = run(Watching(0.004), 10 * TRY_EVERY, watched_us / 1e6, slept_us / 1e6)
    assert done[:2] == [True, False]
    assert done.count(not watches) <= 10 + 1, "one stretch of TRY_EVERY tries the other way"
    assert done[2:].count(not watches) >= 9


def test_it_changes_its_mind_when_the_machine_gets_busy_and_again_when_it_is_quiet() -> None:
    watching = Watching(0.004)
    run(watching, TRY_EVERY, 100e-6, 150e-6)
    busy = run(watching, 4 * TRY_EVERY, 400e-6, 200e-6)
    assert busy[TRY_EVERY:].count(True) <= 4
    quiet = run(watching, 4 * TRY_EVERY, 100e-6, 150e-6)
    assert quiet[2 * TRY_EVERY :].count(False) <= 3


def test_one_answer_that_was_held_up_does_not_decide() -> None:
    watching = Watching(0.004)
    run(watching, TRY_EVERY + 3, 100e-6, 200e-6)
    assert watching.now
    watching.note(30.0)
    for _ in range(STRETCH - 1):
        watching.note(100e-6)
    assert watching.now
