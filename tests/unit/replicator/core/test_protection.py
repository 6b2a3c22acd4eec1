"""What the loss of a node means: every case has a row, and no row promises what is not known."""

from itertools import product
from typing import Any

import pytest

from replicator.core.protection import TABLE, EdgeFacts, Loss, losses


def edge(peer: str, *, feeds: bool = False, linked: bool = True, complete: bool = True, in_sync: bool = False,
         lag: int | None = 0, others: tuple[str, ...] = (), **more: Any) -> EdgeFacts:  # fmt: skip
    return EdgeFacts(peer, feeds, linked, complete, in_sync, lag, others, **more)


BELOW = {"others": ("C",), "further": (("C", 3), ("D", None))}


def of(node: str, role: str, *edges: EdgeFacts, state: str = "ok") -> Loss:
    return next(loss for loss in losses("A", role, state, edges) if loss.node == node)


STORIES = [
    ("primary-in-sync", of("A", "primary", edge("B", in_sync=True), edge("C", lag=5)),
     "take over on B; no records for C until", ["B", "C"]),
    ("primary-behind", of("A", "primary", edge("B", lag=7), edge("C", lag=5)),
     "take over on C, 5 records behind", ["C", "B"]),
    ("primary-behind", of("A", "primary", edge("B", lag=None, linked=False)), "an unknown number", ["B"]),
    ("primary-further", of("A", "primary", edge("B", complete=False, **BELOW)),
     "C (3 records behind, as last heard) and D (an unknown number of records behind, as last heard)", ["C", "D"]),
    ("primary-kept", of("A", "primary", edge("B", complete=False, kept=9)), "B keeps the one after record 9", []),
    ("primary-unknown", of("A", "primary", edge("B", complete=False, unknown=True)),
     "not heard whether a complete copy is on B", []),
    ("primary-only", of("A", "primary", edge("B", complete=False)), "everything is lost", []),
    ("source-incomplete-here", of("B", "secondary", edge("B", feeds=True), state="resync"), "cannot take over", []),
    ("source-in-sync", of("B", "secondary", edge("B", feeds=True, in_sync=True)), "take over here", ["A"]),
    ("source-lost", of("B", "secondary", edge("B", feeds=True, lag=3, others=("D",)), edge("C")),
     "3 records behind, if it was the primary: take over here; C then: fed by this node as before; "
     "no records for D until B is back", ["A", "C"]),
    ("relay-lost", of("A", "secondary", edge("B", feeds=True), edge("C"), edge("D")), "C and D", ["C", "D", "B"]),
    ("copy-here-lost", of("A", "secondary", edge("B", feeds=True)), "one copy less", ["B"]),
    ("copy-lost-in-sync", of("B", "primary", edge("B"), edge("C", in_sync=True)),
     "C still holds everything", ["A", "C"]),
    ("copy-lost-behind", of("B", "primary", edge("B"), edge("C", lag=4)), "C still holds a copy, 4", ["A", "C"]),
    ("source-lost", of("B", "secondary", edge("B", feeds=True, lag=3, current=False)),
     "3 records behind when it was last heard of, and what came since", ["A"]),
    ("copy-lost-relay", of("B", "primary", edge("B", **BELOW)),
     "copies further down stay, without new records until it is back: C (3", ["A", "C", "D"]),
    ("copy-lost-above-unknown", of("B", "primary", edge("B", others=("C", "D"))),
     "C and D: no records until it is back", ["A"]),
    ("copy-lost-rest-unknown", of("B", "primary", edge("B"), edge("C", complete=False, unknown=True)),
     "whether a complete copy is on C", ["A"]),
    ("copy-lost-last", of("B", "primary", edge("B"), edge("C", complete=False)), "exists once", ["A"]),
    ("copy-below-lost", of("C", "secondary", edge("B", feeds=True), edge("C")), "one copy less", ["A", "B"]),
]  # fmt: skip


@pytest.mark.parametrize(("label", "loss", "said", "left"), STORIES, ids=[f"{n}-{s[0]}" for n, s in enumerate(STORIES)])
def test_what_is_said(label: str, loss: Loss, said: str, left: list[str]):
    assert (loss.label, loss.left) == (label, left)
    assert said in loss.means


def test_every_row_has_a_story():
    assert {row.label for row in TABLE} == {story[0] for story in STORIES}


def test_nodes_further_down_are_named_with_what_still_holds_the_data():
    further = of("D", "primary", edge("B", **BELOW))
    assert (further.label, further.level, further.left) == ("copy-further-lost", "warn", ["A", "B", "C"])
    assert further.means == "one copy less; A, B and C still hold the data"


def test_no_loss_is_called_harmless_without_a_complete_copy_that_is_in_sync():
    flags = (False, True)
    for role, state, feeds, complete, in_sync, linked in product(
        ("primary", "secondary"), ("ok", "resync", "fresh"), flags, flags, flags, flags
    ):
        edges = [edge("B", feeds=feeds and role == "secondary", complete=complete, in_sync=in_sync, linked=linked)]
        for loss in losses("A", role, state, edges):
            if loss.level == "ok":
                assert in_sync and (complete or state == "ok"), (loss, edges)
