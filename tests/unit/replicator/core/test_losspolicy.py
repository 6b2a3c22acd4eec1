"""Peer loss and full journal: every cell of the two tables."""

import itertools

import pytest

from replicator.core.losspolicy import FULL, Verdict, full_in_words, may_go_alone, on_full, on_unanswered


@pytest.mark.parametrize(
    ("on_loss", "waited", "timeout", "verdict"),
    [
        ("stall", 1.0, 5.0, Verdict.WAIT), ("stall", 5.0, 5.0, Verdict.FAIL), ("stall", 1e9, 0, Verdict.WAIT),
        ("degrade", 1.0, 5.0, Verdict.WAIT), ("degrade", 5.0, 5.0, Verdict.DEGRADE), ("degrade", 1e9, 0, Verdict.WAIT),
    ],
)  # fmt: skip
def test_a_silent_peer(on_loss: str, waited: float, timeout: float, verdict: Verdict):
    assert on_unanswered(on_loss, waited, timeout) is verdict


@pytest.mark.parametrize(
    ("policy", "link_up", "waited", "timeout", "verdict"),
    [
        ("stall", True, 1.0, 5.0, Verdict.WAIT), ("stall", True, 9.0, 5.0, Verdict.WAIT),
        ("stall", False, 1.0, 5.0, Verdict.WAIT), ("stall", False, 9.0, 5.0, Verdict.FAIL),
        ("stall", False, 1e9, 0, Verdict.WAIT),
        ("bitmap", True, 1.0, 5.0, Verdict.WAIT), ("bitmap", True, 9.0, 5.0, Verdict.OVERFLOW),
        ("bitmap", False, 0.0, 5.0, Verdict.OVERFLOW),
        ("fail", True, 0.0, 5.0, Verdict.FAIL), ("fail", False, 0.0, 5.0, Verdict.FAIL),
    ],
)  # fmt: skip
def test_a_full_journal(policy: str, link_up: bool, waited: float, timeout: float, verdict: Verdict):
    assert on_full(policy, link_up, waited, timeout) is verdict


@pytest.mark.parametrize("link_up", [True, False])
@pytest.mark.parametrize(("waited", "verdict"), [(1.0, Verdict.WAIT), (5.0, Verdict.FAIL)])
def test_a_full_journal_of_a_group_that_must_not_go_on_alone(link_up: bool, waited: float, verdict: Verdict):
    assert on_full("bitmap", link_up, waited, 5.0, alone=False) is verdict
    assert on_full("bitmap", link_up, waited, 0, alone=False) is Verdict.WAIT
    assert on_full("fail", link_up, waited, 5.0, alone=False) is Verdict.FAIL


@pytest.mark.parametrize("sync_on", [True, False])
@pytest.mark.parametrize("on_loss", ["stall", "degrade"])
def test_only_a_stalling_group_in_sync_needs_its_peer_for_every_answer(sync_on: bool, on_loss: str):
    assert may_go_alone(sync_on, on_loss) is not (sync_on and on_loss == "stall")


def test_the_table_of_a_full_journal_has_every_row_and_no_other():
    assert set(FULL) == set(itertools.product(("stall", "bitmap", "fail"), (True, False), (True, False)))


def test_nothing_is_answered_alone_that_must_not_be():
    for (_policy, _link_up, alone), verdicts in FULL.items():
        assert alone or Verdict.OVERFLOW not in verdicts


def test_the_table_in_words():
    assert full_in_words("bitmap") == {"connected": ["wait", "overflow"], "away": ["overflow", "overflow"]}
