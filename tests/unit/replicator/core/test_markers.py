"""One attempt at a marker, message by message; what is offered and what may go."""

from __future__ import annotations

import pytest

from replicator.core.errors import ProtocolError
from replicator.core.markers import (
    Answer,
    Ask,
    Attempt,
    Finished,
    Marker,
    Stage,
    Tick,
    counter_above,
    host_time_payload,
    make_number,
    offered,
    parse_payload,
    retire,
)


@pytest.fixture
def attempt() -> Attempt:
    return Attempt(9, ["B", "A"], 0.0, 2.0)


def held(node: str) -> Answer:
    return Answer(node, "hold", True, token=f"t{node}")


def test_marks_go_out_only_when_all_hold_each_with_the_token_of_its_hold(attempt: Attempt) -> None:
    assert attempt.begin() == [Ask("A", "hold"), Ask("B", "hold")]
    assert attempt.handle(held("B"), 0.1) == []
    assert attempt.handle(held("A"), 0.2) == [Ask("A", "mark", "tA"), Ask("B", "mark", "tB")]
    assert attempt.handle(Answer("A", "mark", True), 0.3) == []
    assert attempt.handle(Answer("B", "mark", True), 0.3) == [Finished("")]
    assert attempt.stage is Stage.MADE


def test_what_is_said_twice_counts_once(attempt: Attempt) -> None:
    attempt.handle(held("A"), 0.1)
    assert attempt.handle(held("A"), 0.1) == []
    attempt.handle(held("B"), 0.1)
    attempt.handle(Answer("A", "mark", True), 0.2)
    assert attempt.handle(Answer("A", "mark", True), 0.2) == []
    assert attempt.stage is Stage.MARKING


@pytest.mark.parametrize("op", ["hold", "mark"])
def test_a_refusal_releases_everybody_and_ends_the_attempt(attempt: Attempt, op: str) -> None:
    if op == "mark":
        attempt.handle(held("A"), 0.1)
        attempt.handle(held("B"), 0.1)
    effects = attempt.handle(Answer("A", op, False, "no journal"), 0.2)
    assert effects == [Ask("A", "release"), Ask("B", "release"), Finished("no journal")]
    assert attempt.handle(held("B"), 0.3) == []
    assert attempt.stage is Stage.DEAD


def test_a_node_that_does_not_answer_in_time_is_named(attempt: Attempt) -> None:
    attempt.handle(held("A"), 0.1)
    assert attempt.handle(Tick(), 1.9) == []
    assert attempt.handle(held("B"), 2.0)[-1] == Finished("no answer in time from B")


def test_only_what_every_group_has_is_offered_newest_first() -> None:
    assert offered({"log": [1, 2, 3], "data": [3, 2, 4]}) == [3, 2]
    assert offered({"log": [1], "data": []}) == [] == offered({})


def test_the_newest_complete_images_stay() -> None:
    assert retire([5, 1, 3], 2) == [1]
    assert retire([5], 2) == []
    assert retire([4, 5], 0) == [4]


def test_numbers_rise_above_all_that_were_seen_and_name_their_node() -> None:
    seen = [make_number(7, 1), make_number(12, 2)]
    assert counter_above(3, seen) == 13
    assert make_number(13, 1) > max(seen) and make_number(13, 1) != make_number(13, 2)


def test_a_payload_is_read_back_and_other_information_is_no_marker() -> None:
    marker = Marker(9, "monday", "a" * 32, 2, suspend=True)
    assert parse_payload(marker.pack()) == marker
    assert parse_payload(host_time_payload(100)) is None and parse_payload(b"") is None
    with pytest.raises(ProtocolError):
        parse_payload(b"\xc1")
