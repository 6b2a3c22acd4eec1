"""The rules of every node on the way of an ask about a marker."""

from __future__ import annotations

import pytest

from replicator.core.errors import ProtocolError, Refused
from replicator.core.markers import make_number
from replicator.core.markerway import MAX_HOPS, Standing, check_asker, check_number, onward, shorter_s

A, B, C = "a" * 32, "b" * 32, "c" * 32


def test_a_primary_answers_and_a_copy_passes_on_to_whoever_feeds_it() -> None:
    assert onward(A, Standing("log", "primary", ""), [C, B]) == ""
    assert onward(B, Standing("log", "secondary", A), [C]) == A
    assert onward(A, Standing("log", "primary", ""), [A, B]) == "", "it began at the primary, which is no circle"


def test_a_circle_a_way_without_end_and_a_copy_that_nobody_feeds_are_refused_and_named() -> None:
    with pytest.raises(Refused, match=f"group log goes round in a circle: {B}, {C}, {B}"):
        onward(B, Standing("log", "secondary", C), [B, C])
    with pytest.raises(Refused, match="circle"):
        onward(B, Standing("log", "secondary", C), [str(n) for n in range(MAX_HOPS)])
    with pytest.raises(Refused, match=f"no node feeds the copy of group log on {B}"):
        onward(B, Standing("log", "secondary", ""), [C])


def test_only_a_node_that_gets_the_group_from_here_may_pass_on_what_others_ask() -> None:
    primary, copy = Standing("log", "primary", ""), Standing("log", "secondary", A)
    check_asker(A, B, [B], primary, paired=False)
    for standing in (primary, copy):
        check_asker(A, B, [C, B], standing, paired=True)
        with pytest.raises(Refused, match="of no others"):
            check_asker(A, B, [C, B], standing, paired=False)
        for untrue in ([], [C], [B, C]):
            with pytest.raises(ProtocolError):
                check_asker(A, B, untrue, standing, paired=True)
    with pytest.raises(Refused, match=f"circle: {C}, {A}, {B}, {A}"):
        check_asker(B, A, [C, A], copy, paired=True)  # each of the two takes the other one for its source


def test_by_way_of_others_a_node_touches_markers_of_its_own_only() -> None:
    check_number(make_number(7, int(C[:6], 16)), C)
    with pytest.raises(Refused, match="is not one of the node's that asks"):
        check_number(make_number(7, int(C[:6], 16)), B)


def test_each_node_has_less_time_than_the_one_before_it_and_never_less_than_none() -> None:
    left = 2.0
    for _ in range(4):
        left, before = shorter_s(left, 0.05), left
        assert 0 < left < before - 0.05
    assert shorter_s(2.0, 0.0) == pytest.approx(1.9) and shorter_s(0.08, 0.0) == pytest.approx(0.07)
    assert shorter_s(0.5, 0.5) == shorter_s(0.5, 9.0) == 0.0
