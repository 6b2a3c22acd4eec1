"""What the simulator's change of policy takes back: the promises that went over the pairs it concerns, no others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.testing.sim.nemesis import Nemesis
from tests.testing.sim.truth import Promise
from tests.testing.sim.world import Options, World


class Choosing(random.Random):
    """Chooses what it was told to, in this order."""

    def __init__(self, *choices: Any) -> None:
        super().__init__(0)
        self.choices_left = list(choices)

    def choice(self, seq: Sequence[Any]) -> Any:
        return self.choices_left.pop(0)


@pytest.fixture
def world() -> World:
    """A feeds B and D, and B feeds C; all in sync."""
    options = replace(Options(), mode="sync", parents=(0, 1, 0), edge_modes=("sync",) * 3, first_writes=2)
    world = World(1, options)
    world._set_up()
    world.clock.run_until(4.0)
    assert len(world.edges) == 3
    ab, bc, ad = (frozenset(names) for names in ("ab", "bc", "ad"))
    world.truth.promises = [
        Promise("b", 1, 1, True, (ab,)), Promise("c", 1, 1, True, (ab, bc)), Promise("d", 1, 1, True, (ad,)),
    ]  # fmt: skip
    return world


@pytest.mark.parametrize(
    ("where", "peer", "kept"),
    [("a", "b", "d"), ("a", "d", "bc"), ("a", "", ""), ("b", "c", "bd"), ("b", "", "d"), ("c", "", "bd")],
)
def test_only_promises_over_an_asynchronous_pair_are_taken_back(world: World, where: str, peer: str, kept: str) -> None:
    ids = {node.name: node.node_id for node in world.nodes}
    choices = [{"mode": "async"}, ids.get(peer, "")] if where != "c" else [{"mode": "async"}]
    Nemesis(world, random.Random(0))._do_policy(world.node(where), Choosing(*choices))
    assert {promise.holder for promise in world.truth.promises} == set(kept)


def test_what_is_no_change_of_mode_takes_nothing_back(world: World) -> None:
    Nemesis(world, random.Random(0))._do_policy(world.node("a"), Choosing({"on_loss": "stall"}, ""))
    assert len(world.truth.promises) == 3
