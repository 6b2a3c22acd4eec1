"""Writes that wait or fail are told of once an episode, and so is the end."""

from __future__ import annotations

from typing import Any

from replicator.capture.hardship import EASE_S, NOTABLE_S, PEER, ROOM, Hardship


class Case:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.stands = True
        self.hardship = Hardship(self._event, lambda want, peer: self.stands)

    def _event(self, name: str, **detail: Any) -> None:
        self.told.append(f"{name} {detail['want']} {detail['peer']}")


def test_a_moment_of_back_pressure_is_nothing_to_tell() -> None:
    case = Case()
    for start in (10.0, 20.0, 30.0):
        case.hardship.waits(ROOM, "b", start)
        case.hardship.waits(ROOM, "b", start + NOTABLE_S - 0.1)
    assert case.told == [] and not case.hardship.facts(31.0)["waits"]


def test_waiting_that_lasts_is_told_once_and_its_end_when_there_is_room() -> None:
    case = Case()
    for tenths in range(50):
        case.hardship.waits(ROOM, "b", 10.0 + tenths / 10)
        case.hardship.look(10.0 + tenths / 10)
    assert case.told == ["writers-wait room b"]
    assert case.hardship.facts(15.0) == {
        "waits": True, "fails": False, "what": "room", "peer": "b", "since_s": 5.0, "failed": 0,
    }  # fmt: skip
    case.hardship.look(15.0 + EASE_S)
    assert case.told == ["writers-wait room b"], "nobody writes any more, and there is no room"
    case.stands = False
    case.hardship.look(15.0 + EASE_S)
    case.hardship.look(16.0 + EASE_S)
    assert case.told[1:] == ["writers-go-on room b"]
    assert case.hardship.facts(20.0)["since_s"] is None


def test_the_first_write_that_fails_is_told_at_once_and_the_others_are_counted() -> None:
    case = Case()
    for second in range(4):
        case.hardship.fails(PEER, "b", 10.0 + 60 * second)
        case.hardship.look(20.0 + 60 * second)
    found = case.hardship.facts(300.0)
    assert case.told == ["writes-fail peer b"], "a host that tries again once a minute makes no stream of events"
    assert found["fails"] and not found["waits"] and found["failed"] == 4
    case.stands = False
    case.hardship.look(300.0)
    assert case.told[1:] == ["writers-go-on peer b"] and case.hardship.facts(301.0)["failed"] == 4
    case.hardship.fails(PEER, "b", 400.0)
    assert case.told[2:] == ["writes-fail peer b"], "another episode"
