"""A forced takeover is judged by one table."""

from __future__ import annotations

from replicator.core.takeover import plan_takeover


def test_going_back_to_an_image_may_be_repeated_where_a_crash_cut_it_short() -> None:
    half = {"role": "secondary", "state": "resync", "rewinding": True}
    assert plan_takeover(half, {"goes_back": True}, force=False).allowed
    assert plan_takeover(half, {}, force=True).label == "inconsistent"
    assert plan_takeover({**half, "rewinding": False}, {"goes_back": True}, force=True).label == "inconsistent"
