"""How long records are kept, and what is told of a journal that fills."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture import follower, retention
from replicator.capture.retention import Marks, Threshold, Trend
from replicator.capture.writerates import WriteRates
from replicator.journal.page import APPLIED_SEQ, EDGE_APPLIED_SEQ, HEAD_SEQ, TAIL_SEQ, edge_slot
from tests.testing.pairharness import running_pair


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 100)), min_size=1, max_size=3000), st.integers(0, 20000))
def test_marks_never_lead(steps: list[tuple[int, int]], asked: int) -> None:
    marks, ends, seq, off = Marks(), {0: 0}, 0, 0
    for records, size in steps:
        for _ in range(records):
            seq, off = seq + 1, off + size
            ends[seq] = off
        marks.note(seq, off)
    assert marks.end_of(asked) <= ends[min(asked, seq)]
    assert marks.end_of(seq) == off


def test_marks_of_another_journal_are_forgotten() -> None:
    marks = Marks()
    marks.note(100, 5000)
    marks.note(10, 6000)
    assert marks.end_of(100) == 6000 and marks.end_of(9) == 0


def test_records_are_kept_until_the_peer_has_applied_them_where_that_is_the_policy() -> None:
    pair = running_pair()
    pair.a.engine.state.policy.retain = "applied"
    retention.note_marks(pair.a.engine)
    before = pair.a.page[HEAD_SEQ]
    for n in range(5):
        pair.a.write(n * 4096, n)
        retention.note_marks(pair.a.engine)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)  # durable there, not applied
    follower.checkpoint(pair.a.engine)
    assert pair.a.page[TAIL_SEQ] <= before + 1
    follower.apply_all(pair.b.engine)
    pair.acknowledge(pair.a, pair.b)
    [edge] = pair.a.engine.state.edges
    pair.a.page[edge_slot(edge.slot, EDGE_APPLIED_SEQ)] = pair.b.page[APPLIED_SEQ]
    follower.checkpoint(pair.a.engine)
    assert pair.a.page[TAIL_SEQ] == before + 6


def test_a_threshold_speaks_once_until_it_was_left() -> None:
    threshold = Threshold()
    said = [threshold.crossed(percent, 80) for percent in (10, 79, 80, 85, 79, 81, 71, 69, 80)]
    assert said == ["", "", "above", "", "", "", "", "below", "above"]
    assert threshold.crossed(99, 0) == "below", "switched off"
    assert threshold.crossed(99, 0) == ""


def test_the_forecast_goes_by_what_is_left_after_the_peer_has_taken_its_share() -> None:
    trend = Trend()
    assert trend.rates() is None and trend.full_in_s(1) is None
    for second in range(20):
        trend.note(float(second), second * 1000, second * 400)
    assert trend.rates() == (1000, 600)
    assert trend.full_in_s(6000) == 10
    for second in range(20, 120):
        trend.note(float(second), 20_000, min(20_000, second * 400))
    assert trend.full_in_s(6000) is None, "it empties"


@pytest.mark.parametrize("kept", [True, False])
def test_hourly_rates_survive_a_restart_and_nonsense_is_begun_anew(tmp_path: Path, kept: bool) -> None:
    now = [3600.0 * 500]
    path = tmp_path / "rates"
    rates = WriteRates(path, lambda: now[0])
    for n in range(100):
        rates.note(n * 1000)
        now[0] += 10
    rates.save()
    if not kept:
        path.write_text("[1, 2]")
    again = WriteRates(path, lambda: now[0])
    assert again.history() == (rates.history() if kept else [])
    if kept:
        [hour] = again.history()
        assert hour == {"hour": 500, "seconds": 990, "bytes": 99_000, "peak_minute": 6000}


def test_time_in_which_nothing_was_noted_does_not_count() -> None:
    now = [0.0]
    rates = WriteRates(None, lambda: now[0])
    rates.note(0)
    now[0] = 3000.0
    rates.note(1 << 40)
    assert rates.history() == []
