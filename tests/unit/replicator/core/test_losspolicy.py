"""Peer loss and full journal: every cell of the two tables."""

import pytest

from replicator.core.losspolicy import Verdict, on_full, on_unanswered


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
