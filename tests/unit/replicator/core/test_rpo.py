"""What would be lost, budgets for it, and the primary's clock seen from a secondary."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.core.errors import BadInput
from replicator.core.rpo import UNKNOWN_GRACE_S, Budget, RemoteClock, Watch, budget_from, of_group, rpo


def lost(
    writes: int | None = 0, size: int | None = 0, seconds: float | None = 0.0, bound: str = "exact"
) -> dict[str, Any]:
    return {"writes": writes, "bytes": size, "seconds": seconds, "bound": bound, "as_of_s": 0.0}


def test_a_linked_primary_knows_exactly_what_is_missing() -> None:
    pair = {"facts": {"linked": True, "session": "source"}, "lag": 3, "lag_bytes": 300, "lag_s": 0.2}
    assert rpo({"role": "primary", "state": "ok"}, pair) == {
        "writes": 3, "bytes": 300, "seconds": 0.2, "bound": "exact", "as_of_s": 0.0,
    }  # fmt: skip


def test_what_a_refused_peer_holds_of_another_history_protects_nothing() -> None:
    refused = {"session": "refused", "linked": True, "contact_age_s": 0.1, "decision": {"action": "refuse", "c": 60}}
    status = {"role": "primary", "state": "ok", "pos": 70, "peer": {"received": 90}}
    found = rpo(status, {"facts": refused})
    assert (found["writes"], found["bound"]) == (10, "at most")
    parted = {**refused, "decision": {"action": "refuse", "c": 0}}
    assert rpo(status, {"facts": parted})["bound"] == "unknown"


def test_a_copy_that_is_not_complete_protects_nothing() -> None:
    pair = {"facts": {"linked": True, "session": "copy-source"}, "lag": 0, "lag_bytes": 0, "lag_s": 0.0}
    assert rpo({"role": "primary", "copying": True}, pair)["bound"] == "no copy"


def test_a_secondary_without_link_only_knows_a_limit_from_below() -> None:
    pair = {"facts": {"linked": False, "session": "down", "peer_pos": 120, "contact_age_s": 9.0}}
    found = rpo({"role": "secondary", "state": "ok", "pos": 100}, pair)
    assert (found["writes"], found["seconds"], found["bound"]) == (20, 9.0, "at least")


def fed(**word: Any) -> dict[str, Any]:
    """What a secondary says over a link over which records flow."""
    told = {"writes": 0, "bytes": 0, "whole": True, "more": False, "age_s": 0.5, "newer": True} | word
    facts = {"linked": True, "session": "target", "contact_age_s": 0.1, "word": told, "behind_s": 7.0, "peer_pos": 9}
    return rpo({"role": "secondary", "state": "ok", "pos": 9}, {"feeds_us": True, "lag": 0, "facts": facts})


def test_a_secondary_is_exact_as_of_a_fresh_word_of_the_primary() -> None:
    assert fed() == {"writes": 0, "bytes": 0, "seconds": 0.0, "bound": "exact", "as_of_s": 0.5}
    found = fed(writes=3, bytes=300)
    assert (found["writes"], found["bytes"], found["seconds"], found["bound"]) == (3, 300, 7.0, "exact")


@pytest.mark.parametrize(
    "word",
    [{"newer": False}, {"age_s": 6.0}, {"age_s": None}, {"more": True, "writes": 1}, {"whole": False, "writes": 2}],
)
def test_a_secondary_that_hears_nothing_new_or_cannot_take_it_knows_a_limit_from_below(word: dict[str, Any]) -> None:
    found = fed(**word)
    assert found["bound"] == "at least" and found["seconds"] == 7.0


def test_before_the_first_word_over_a_link_nothing_is_known() -> None:
    facts = {"linked": True, "session": "target", "contact_age_s": 0.1, "word": None, "behind_s": None, "peer_pos": 9}
    found = rpo({"role": "secondary", "state": "ok", "pos": 9}, {"feeds_us": True, "lag": 0, "facts": facts})
    assert found["bound"] == "unknown"


def test_a_group_at_rest_may_wait_half_a_minute_for_the_next_word() -> None:
    facts = {"linked": True, "session": "target", "backed": True, "behind_s": 7.0, "peer_role": "primary"}
    facts["word"] = {"writes": 0, "bytes": 0, "whole": True, "more": False, "age_s": 29.0, "newer": False}
    found = rpo({"role": "secondary", "state": "ok", "pos": 9}, {"feeds_us": True, "facts": facts})
    assert (found["bound"], found["as_of_s"]) == ("exact", 29.0)


def test_of_several_copies_the_worst_and_the_best_are_told_apart() -> None:
    near, far, none, hidden = (
        lost(2),
        lost(800, bound="at most"),
        lost(None, bound="no copy"),
        lost(None, bound="unknown"),
    )
    assert of_group([(False, far), (False, near)]) == (far, near)
    assert of_group([(False, near), (False, none), (False, hidden)]) == (none, near)
    assert of_group([(False, hidden), (False, far)]) == (hidden, far)
    assert of_group([(False, near), (True, far)]) == (far, far), "a copy loses what it lacks itself"
    assert of_group([]) == (None, None)


def test_nothing_is_known_without_a_replicator() -> None:
    assert rpo({"role": "primary"}, None)["bound"] == "unknown"


@pytest.mark.parametrize(
    ("budget", "found", "exceeded"),
    [
        (Budget(seconds=5.0), lost(seconds=5.0), False),
        (Budget(seconds=5.0), lost(seconds=5.1), True),
        (Budget(bytes=100), lost(size=101), True),
        (Budget(writes=0), lost(writes=0), False),
        (Budget(writes=0), lost(writes=1), True),
        (Budget(writes=10, seconds=5.0), lost(writes=3, seconds=9.0), True),
        (Budget(seconds=5.0), lost(None, None, None, "no copy"), True),
    ],
)
def test_a_budget_is_exceeded_above_its_limit(budget: Budget, found: dict[str, Any], exceeded: bool) -> None:
    assert bool(budget.reasons(found)) is exceeded


def test_a_number_near_the_limit_makes_no_stream_of_events() -> None:
    watch, budget = Watch(), Budget(seconds=10.0)
    news = [watch.look(budget, lost(seconds=s), float(t)).news for t, s in enumerate([9.0, 10.5, 9.5, 10.2, 8.5, 10.1])]
    assert news == [False, True, False, False, False, False]
    assert watch.look(budget, lost(seconds=7.9), 10.0) == (False, 10.0, (), True)


def test_what_stays_unknown_exceeds_the_budget_after_a_while() -> None:
    watch, budget = Watch(), Budget(seconds=5.0)
    nobody_knows = lost(None, None, None, "unknown")
    assert not watch.look(budget, nobody_knows, 100.0).exceeded
    assert not watch.look(budget, nobody_knows, 100.0 + UNKNOWN_GRACE_S - 1).exceeded
    verdict = watch.look(budget, nobody_knows, 100.0 + UNKNOWN_GRACE_S)
    assert verdict.exceeded and verdict.news
    assert not watch.look(budget, lost(), 200.0).exceeded


def test_unknown_never_counts_as_met() -> None:
    watch, budget = Watch(), Budget(seconds=5.0)
    assert watch.look(budget, lost(seconds=60.0), 1.0).exceeded
    verdict = watch.look(budget, lost(None, None, None, "unknown"), 2.0)
    assert verdict.exceeded and "unknown now" in verdict.reasons[0]


def test_a_budget_that_counts_as_exceeded_always_says_why() -> None:
    watch, budget = Watch(), Budget(seconds=10.0)
    watch.look(budget, lost(seconds=11.0), 1.0)
    assert watch.look(budget, lost(seconds=9.0), 2.0).reasons == ("9.0 seconds behind, the budget is 10.0",)


@pytest.mark.parametrize("bad", [{"minutes": 3}, {"seconds": "5"}, {"bytes": 1.5}, {"writes": -1}, {"writes": True}])
def test_a_senseless_budget_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        budget_from(bad)


def test_the_age_is_the_primarys_clock_less_what_is_complete_here() -> None:
    clock = RemoteClock()
    assert clock.behind_s(0.0) is None
    second = 1_000_000_000
    clock.heard(seq=10, time_ns=100 * second, held_seq=10, now=0.0)
    assert clock.behind_s(0.0) == 0.0
    clock.heard(seq=20, time_ns=105 * second, held_seq=12, now=5.0)
    assert clock.behind_s(5.0) == 5.0
    assert clock.behind_s(6.5) == 6.5, "without beacons the primary's clock goes on"
    clock.holds(15, 103 * second)
    assert clock.behind_s(6.5) == 3.5
    clock.holds(20)
    assert clock.behind_s(6.5) == 1.5


def test_an_idle_group_is_not_behind() -> None:
    clock = RemoteClock()
    for beat in range(10):
        clock.heard(seq=7, time_ns=(1000 + beat) * 1_000_000_000, held_seq=7, now=float(beat))
        assert clock.behind_s(float(beat)) == 0.0
