"""How a consistency set goes on: its bound, what holds it, when it is no cut."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.core.cuts import NO_BOUND, GroupView, SetState, Standing, decide, decide_back, rule, went_back
from replicator.core.errors import Refused


def view(name: str, **changes: Any) -> GroupView:
    return GroupView(name, "secondary", "a" * 32, True, 100, 50)._replace(**changes)


def test_the_slowest_group_is_the_bound_and_is_named() -> None:
    found = rule(SetState(10, True), [view("log", arrived_ns=90), view("data")], 2)
    assert (found.standing, found.limit_ns, found.held_by) == (Standing.WHOLE, 90, "log")
    assert found.state == SetState(90, True)


def test_a_bound_never_falls_also_when_nobody_knows_any_more_what_has_arrived() -> None:
    assert rule(SetState(70, True), [view("log", arrived_ns=0), view("data")], 2).limit_ns == 70


def test_a_group_that_has_told_nothing_holds_all() -> None:
    found = rule(SetState(0, False), [view("log", arrived_ns=0), view("data")], 2)
    assert (found.standing, found.limit_ns, found.held_by) == (Standing.JOINING, 50, "log")


def test_it_is_whole_once_everything_up_to_the_furthest_has_arrived() -> None:
    found = rule(SetState(0, False), [view("log", arrived_ns=80), view("data", applied_ns=80)], 2)
    assert (found.standing, found.state) == (Standing.WHOLE, SetState(80, True))


def test_none_is_stopped_while_one_holds_parts_of_what_comes_after() -> None:
    views = [view("log", in_part=True), view("data")]
    found = rule(SetState(0, False), views, 2)
    assert (found.standing, found.limit_ns, found.held_by) == (Standing.JOINING, 0, "log")
    assert rule(SetState(60, True), views, 2).standing is Standing.WHOLE, "the bound was never behind those parts"


@pytest.mark.parametrize(
    ("views", "standing", "why"),
    [
        ([view("log", consistent=False), view("data")], Standing.JOINING, "being copied"),
        ([view("log", role="primary", upstream=""), view("data")], Standing.APART, "different primaries"),
        ([view("log", upstream="b" * 32), view("data")], Standing.APART, "different primaries"),
        ([view("log")], Standing.APART, "not on this node"),
        ([view("log", domain=1), view("data", domain=2)], Standing.JOINING, "new primary"),
    ],
)
def test_what_is_no_cut_has_no_limit_and_is_durably_not_whole(
    views: list[GroupView], standing: Standing, why: str
) -> None:
    found = rule(SetState(70, True), views, 2)
    assert (found.standing, found.limit_ns, found.state.whole) == (standing, 0, False)
    assert why in found.why
    assert decide(found, keep=False) is None


def test_times_below_the_bound_come_from_another_clock() -> None:
    """The bound was told by a primary that is gone; what arrives now is below it, so nothing would be held back."""
    views = [view("log", arrived_ns=69), view("data")]
    assert went_back(SetState(70, True), views)
    assert not went_back(SetState(70, False), views) and not went_back(SetState(70, True, 70), views)
    assert not went_back(SetState(70, True), [view("log", arrived_ns=0), view("data", arrived_ns=70)]), (
        "not known, or known"
    )


def test_on_the_primary_there_is_nothing_to_limit() -> None:
    views = [view("log", role="primary"), view("data", role="primary")]
    assert rule(SetState(70, True), views, 2).standing is Standing.SOURCE


def test_a_decided_takeover_keeps_its_bound_until_every_group_is_primary() -> None:
    ruling = rule(SetState(70, True), [view("log"), view("data")], 2)
    state = decide(ruling, keep=False)
    assert state is not None and state.decided_ns == 100
    half = rule(state, [view("log", role="primary"), view("data", arrived_ns=500)], 2)
    assert (half.standing, half.limit_ns) == (Standing.DECIDED, 100)
    assert decide(half, keep=True) == state
    done = rule(state, [view("log", role="primary"), view("data", role="primary")], 2)
    assert (done.standing, done.state) == (Standing.SOURCE, SetState())


def test_all_that_has_arrived_can_be_kept() -> None:
    state = decide(rule(SetState(70, True), [view("log"), view("data")], 2), keep=True)
    assert state is not None and state.decided_ns == NO_BOUND


def test_a_takeover_at_an_image_needs_no_cut_as_things_stand() -> None:
    state = decide_back(SetState(70, False), [view("log", arrived_ns=10), view("data")], 2, 7, 60)
    assert (state.decided_ns, state.decided_cycle) == (60, 7)
    half = rule(state, [view("log", role="primary"), view("data", consistent=False)], 2)
    assert (half.standing, half.limit_ns) == (Standing.DECIDED, 60)
    assert decide_back(state, [], 2, 7, 60) == state, "it may be repeated"


@pytest.mark.parametrize(
    ("state", "views", "why"),
    [
        (SetState(70, True), [view("log")], "not on this node"),
        (SetState(70, True), [view("log"), view("data", role="primary")], "data is primary here"),
        (SetState(70, True), [view("log"), view("data", consistent=False)], "data is being copied"),
        (SetState(70, True, 70), [view("log"), view("data")], "another takeover"),
        (SetState(70, True, 60, 6), [view("log"), view("data")], "another takeover"),
    ],
)
def test_a_takeover_at_an_image_is_refused(state: SetState, views: list[GroupView], why: str) -> None:
    with pytest.raises(Refused, match=why):
        decide_back(state, views, 2, 7, 60)
