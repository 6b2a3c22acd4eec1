"""The simulator bites: every seeded bug is found, and the run that finds it passes without the bug."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.gallery.bugs import BUGS, Bug
from tests.testing.sim.world import Options, World


def options(bug: Bug, seed: int) -> Options:
    """The seed's own options, with the bug's focus."""
    return replace((Options.draw_tree if bug.kind == "tree" else Options.draw)(random.Random(seed)), **bug.focus)


def outcome(bug: Bug, seed: int) -> str:
    """What is wrong in a run, "" when nothing is."""
    try:
        World(seed, options(bug, seed)).run()
    except Exception as exc:  # any failure of the run is a finding
        return f"{type(exc).__name__}: {exc}"
    return ""


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_the_bug_is_found(bug: Bug):
    for seed in range(1, bug.seeds + 1):
        with bug.planted():
            found = outcome(bug, seed)
        if found:
            assert outcome(bug, seed) == "", f"seed {seed} fails without the bug too"
            return
    pytest.fail(f"{bug.name}: not found in {bug.seeds} seeds: {bug.wrong}")


def test_the_gallery_is_large_enough():
    assert len(BUGS) >= 10
    assert len({bug.name for bug in BUGS}) == len(BUGS)
