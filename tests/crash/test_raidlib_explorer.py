"""Tens of thousands of crashed pools, each opened and held against the model.

The runs of many nights, which go on where the last one ended and keep book:

    make night STATES=3000000
"""

from __future__ import annotations

import pytest

from raidlib import rebuild, replacing
from tests.testing.poolexplorer import RUN_KINDS, Counts, Explorer, Run

STATES = {kind: 500 if kind.plan == "growing" else 720 for kind in RUN_KINDS}
"""States of each kind of run; seeds are gone through until there are as many."""


def test_continuous_integration_explores_thirty_thousand_states() -> None:
    assert sum(STATES.values()) >= 30_000


@pytest.mark.parametrize("kind", RUN_KINDS, ids=lambda kind: f"raid{kind.level}-{kind.plan}")
def test_no_crash_and_no_second_crash_loses_or_invents_data(
    kind: Run,
    record_property: pytest.RecordProperty,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    monkeypatch.setattr(rebuild, "PROGRESS_AREAS", 2)
    counts = explore(kind, STATES[kind])
    record_property("states", counts.states)
    with capsys.disabled():
        print(f"\nraid{kind.level} of {kind.members}, {kind.plan}: {counts}")
    assert counts.states >= STATES[kind]
    assert counts.second > counts.states / 20


def explore(kind: Run, states: int) -> Counts:
    explorer, seed = Explorer(), 1
    while explorer.counts.states < states:
        explorer.explore(kind._replace(seed=seed), enough=states)
        seed += 1
    return explorer.counts
