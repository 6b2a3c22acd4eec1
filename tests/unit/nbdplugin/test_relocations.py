"""The queue of a plan's moves: what is left out, what is cancelled, what rests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nbdplugin import relocations
from nbdplugin.relocations import Relocations
from raidlib.balance import Move
from raidlib.errors import MediumError, NotFound, OutOfSpace
from replicator.core.errors import Refused


class Events:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def add(self, kind: str, _text: str, **_data: Any) -> None:
        self.kinds.append(kind)


class FakePool:
    """Relocates; an area that is in `trouble` raises that, or is not there when it is None."""

    def __init__(self) -> None:
        self.trouble: dict[int, Exception | None] = {}
        self.done: list[int] = []

    def relocate(self, _name: str, index: int, _source: str, _target: str) -> bool:
        if index in self.trouble:
            error = self.trouble[index]
            if error is not None:
                raise error
            return False
        self.done.append(index)
        return True

    def volume(self, name: str) -> Any:
        return SimpleNamespace(uuid=f"uuid of {name}")


def move(index: int) -> Move:
    return Move("v", index, "a", "b", "levels", 0.1)


def queue() -> tuple[Relocations, Events]:
    events = Events()
    return Relocations(events), events  # type: ignore[arg-type]


def run(moves: Relocations, pool: FakePool) -> None:
    while moves.step(pool):  # type: ignore[arg-type]
        pass


def test_moves_are_made_in_order_and_then_their_areas_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, events = queue()
    pool = FakePool()
    moves.add([move(3), move(1)])
    run(moves, pool)
    assert pool.done == [3, 1]
    assert moves.report() == {"planned": 2, "moved": 2, "left": 0, "left_out": []}
    assert events.kinds == ["balance.begun", "balance.done"]
    assert moves.resting() == {("uuid of v", 3), ("uuid of v", 1)}
    monkeypatch.setattr(relocations, "REST_S", 0.0)
    assert moves.resting() == set()


def test_what_cannot_move_any_more_is_left_out_with_a_reason_and_does_not_rest() -> None:
    moves, events = queue()
    pool = FakePool()
    pool.trouble = {1: OutOfSpace("b is full", ""), 2: NotFound("no volume v", ""), 3: None}
    moves.add([move(1), move(2), move(3), move(4)])
    run(moves, pool)
    report = moves.report()
    assert (report["moved"], report["left"]) == (1, 0)
    assert ["b is full" in report["left_out"][0], "no volume v" in report["left_out"][1]] == [True, True]
    assert "it does not lie on a" in report["left_out"][2]
    assert moves.resting() == {("uuid of v", 4)}
    assert events.kinds[-1] == "balance.done"


def test_a_medium_that_fails_costs_one_move_and_is_told() -> None:
    moves, _ = queue()
    pool = FakePool()
    pool.trouble = {1: MediumError("dead", "")}
    moves.add([move(1), move(2)])
    with pytest.raises(MediumError):
        run(moves, pool)
    run(moves, pool)
    assert pool.done == [2]
    assert "dead" in moves.report()["left_out"][0]


def test_one_plan_at_a_time_and_a_cancelled_one_ends() -> None:
    moves, events = queue()
    moves.add([move(1), move(2)])
    with pytest.raises(Refused, match="2 of 2"):
        moves.add([move(3)])
    assert moves.cancel() == 2
    assert moves.cancel() == 0
    moves.add([])
    assert events.kinds == ["balance.begun", "balance.cancelled"]
    assert moves.step(FakePool()) == 0  # type: ignore[arg-type]
