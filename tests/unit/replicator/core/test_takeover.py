"""A forced takeover is judged by one table."""

from __future__ import annotations

from replicator.core.takeover import plan_takeover


def test_going_back_to_an_image_may_be_repeated_where_a_crash_cut_it_short() -> None:
    half = {"role": "secondary", "state": "resync", "rewinding": True}
    assert plan_takeover(half, {"goes_back": True}, force=False).allowed
    assert plan_takeover(half, {}, force=True).label == "inconsistent"
    assert plan_takeover({**half, "rewinding": False}, {"goes_back": True}, force=True).label == "inconsistent"


COPY = {"role": "secondary", "state": "ok", "pos": 7}
GONE = {"linked": False, "node": "cc", "peer_role": "primary", "peer_upstream": "", "peer_pos": 7, "contact_age_s": 3.0}


def test_beside_another_primary_that_answers_only_force_takes_over() -> None:
    plan = plan_takeover(COPY, {**GONE, "primaries": ["beta"]}, force=False)
    assert (plan.label, plan.allowed) == ("primary-elsewhere", False)
    assert plan.message.startswith("beta is primary of the group now and answers") and "split brain" in plan.message
    assert plan_takeover(COPY, {**GONE, "primaries": ["beta"]}, force=True).allowed


def test_below_a_lost_copy_it_is_said_that_the_primary_may_be_well() -> None:
    for fed in ({"peer_role": "secondary"}, {"peer_upstream": "aa"}):
        plan = plan_takeover(COPY, GONE | fed, force=False)
        assert (plan.label, plan.allowed) == ("primary-unknown", True)
        assert "make sure that the primary is lost" in plan.message
    assert plan_takeover(COPY, GONE, force=False).label == "clean"
