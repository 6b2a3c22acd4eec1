"""Several peers of one group: whose word counts for what, and who is given up when the journal is full."""

from __future__ import annotations

import pytest

from replicator.capture import copier, edges, follower, roles
from replicator.capture.state import BITMAP, JOURNAL, PRIMARY, RESYNC, StateFile
from replicator.core.errors import BadInput, NotFound, Refused
from replicator.journal.page import (
    EDGE_DURABLE_OFF,
    EDGE_TREE_DURABLE,
    EDGES,
    HEAD_OFF,
    SYNC_ON,
    TAIL_OFF,
    edge_slot,
)
from tests.testing.pairharness import Side
from tests.testing.treeharness import BRANCH, CHAIN, FAN, Tree, running_tree


@pytest.fixture
def fan() -> Tree:
    return running_tree(*FAN)


@pytest.fixture
def chain() -> Tree:
    return running_tree(*CHAIN)


def on_disk(side: Side) -> object:
    return StateFile(side.disk.open("state")).load()  # type: ignore[arg-type]  # a RandomFile by shape


@pytest.mark.parametrize("shape", [FAN, CHAIN, BRANCH], ids=["fan", "chain", "branch"])
def test_every_node_of_a_tree_becomes_equal_and_stays_so(shape: tuple[str, dict[str, str]]) -> None:
    tree = running_tree(*shape)
    for turn in range(40):
        tree.top.write(turn * 4096 % (200 << 10), turn + 1)
        tree.round(2)
    tree.settle()
    images = [side.image() for side in tree.sides.values()]
    assert all(image == images[0] for image in images) and images[0][0][0]


def test_a_node_has_sixteen_edges_and_says_so_when_it_is_asked_for_one_more(fan: Tree) -> None:
    for k in range(2, EDGES):
        assert roles.arm(fan.top.engine, f"{k:032x}")["edge"] == k
    with pytest.raises(Refused, match="16 pairs"):
        roles.arm(fan.top.engine, "f" * 32)
    listed = fan.top.engine.status()["edges"]
    assert [e["slot"] for e in listed] == list(range(EDGES))
    assert [e["dropped"] for e in listed] == [False, False] + [True] * 14, "nothing is kept for who has no copy"
    roles.disarm(fan.top.engine, f"{5:032x}")
    assert roles.arm(fan.top.engine, "f" * 32)["edge"] == 5, "a place that is free again is used again"


def test_an_edge_is_asked_for_by_its_peer(fan: Tree) -> None:
    with pytest.raises(NotFound, match="no pair with node"):
        edges.edge_of(fan.top.engine, "f" * 32)
    with pytest.raises(BadInput, match="sometimes"):
        roles.arm(fan.top.engine, "f" * 32, "sometimes")
    with pytest.raises(BadInput):
        roles.arm(fan.top.engine, "")
    assert len(fan.top.engine.state.edges) == 2


def test_what_status_says_of_one_peer_is_of_that_peer(fan: Tree) -> None:
    a, b, c = fan.sides.values()
    fan.lines["c"].cut()
    a.write(0, 1)
    fan.lines["b"].step()
    seen = [a.engine.status(a.edge(side))["peer"]["received"] for side in (b, c)]
    assert seen == [a.engine.pos, a.engine.pos - 1]
    assert a.engine.status()["peer"]["received"] == a.engine.pos - 1, "of all together the least"
    assert [e["linked"] for e in a.engine.status()["edges"]] == [True, False]


def test_the_journal_is_kept_for_the_peer_that_has_least(fan: Tree) -> None:
    a = fan.top
    fan.lines["c"].cut()
    kept = a.page[TAIL_OFF]
    for turn in range(4):
        a.write(0, turn)
        fan.lines["b"].step()
    follower.checkpoint(a.engine)
    assert a.page[TAIL_OFF] == kept
    assert edges.holders(a.engine) == [a.edge(fan.sides["c"])]
    fan.settle()
    follower.checkpoint(a.engine)
    assert a.page[TAIL_OFF] == a.page[HEAD_OFF]


def test_a_peer_that_is_dropped_is_so_on_disk_before_the_tail_passes_it(fan: Tree) -> None:
    a, c = fan.top, fan.sides["c"]
    edges.set_policy(a.engine, {"mode": "sync"}, "")
    edges.set_sync(a.engine, a.edge(c), True)
    fan.lines["c"].cut()
    for turn in range(4):
        a.write(0, turn)
        fan.lines["b"].step()
    seen: list[tuple[str, bool]] = []
    a.disk.trace = lambda op, file, *_: seen.append((file, a.page[TAIL_OFF] == tail))
    tail = a.page[TAIL_OFF]
    edges.drop(a.engine, [a.edge(c)])
    follower.checkpoint(a.engine)
    a.disk.trace = None
    assert seen[0][0] == "state" and all(still for _, still in seen)
    assert a.page[TAIL_OFF] == a.page[HEAD_OFF]
    stored = on_disk(a).edge_of(c.node_id)  # type: ignore[attr-defined]
    assert (stored.dropped, stored.degraded, stored.sync_on) == (True, True, False)
    assert a.engine.state.mode == JOURNAL
    fan.settle()
    assert c.image() == a.image()


def test_a_dropped_peer_is_offered_no_records_that_may_be_gone(fan: Tree) -> None:
    a, c = fan.top, fan.sides["c"]
    edges.drop(a.engine, [a.edge(c)])
    assert a.engine.status(a.edge(c))["journal"]["first_seq"] == a.engine.pos + 1
    edges.set_link(a.engine, a.edge(c), True)
    assert not a.edge(c).dropped
    assert a.page[edge_slot(a.edge(c).slot, EDGE_DURABLE_OFF)] == 0, "its replicator finds out where it stands"


def test_only_when_no_peer_is_left_does_the_group_count_differences(fan: Tree) -> None:
    a = fan.top
    roles.overflow(a.engine)
    assert a.engine.state.mode == BITMAP and all(e.dropped for e in a.engine.state.edges)
    a.write(0, 9)
    fan.settle()
    assert a.engine.state.mode == JOURNAL


def test_sync_and_degraded_are_of_one_edge(fan: Tree) -> None:
    a, b, c = fan.sides.values()
    edges.set_policy(a.engine, {"mode": "sync"}, "")
    for side in (b, c):
        assert edges.set_sync(a.engine, a.edge(side), True)["sync_on"]
    assert a.page[SYNC_ON] == 3 and len(a.engine.waits) == 2
    assert edges.degrade(a.engine, a.edge(b))
    assert a.page[SYNC_ON] == 2 and a.engine.waits == (a.edge(c),)
    stored = on_disk(a)
    assert [e.degraded for e in stored.edges] == [True, False]  # type: ignore[attr-defined]


def test_the_mode_of_one_peer_changes_without_the_others(fan: Tree) -> None:
    a, b, c = fan.sides.values()
    assert edges.set_policy(a.engine, {"mode": "sync", "ack": "durable"}, b.node_id)["mode"] == "sync"
    assert (a.edge(b).mode, a.edge(c).mode) == ("sync", "async")
    assert a.engine.status(a.edge(c))["policy"] == {**vars(a.engine.state.policy), "mode": "async"}
    assert a.engine.state.policy.ack == "durable"
    edges.set_policy(b.engine, {"mode": "sync"}, a.node_id)
    assert b.engine.state.policy.mode == "sync", "what the node above says is the group's policy"


def test_one_pair_ends_and_the_other_goes_on(fan: Tree) -> None:
    a, b, c = fan.sides.values()
    roles.disarm(a.engine, b.node_id)
    assert [e.peer for e in a.engine.state.edges] == [c.node_id] and a.engine.state.mode == JOURNAL
    a.write(0, 5)
    fan.settle()
    assert c.image()[0][0] == 5 and b.image()[0][0] != 5
    roles.disarm(a.engine, c.node_id)
    assert a.engine.state.edges == [] and a.engine.state.mode == "none"
    roles.disarm(a.engine, c.node_id)  # a second time is no error


def test_a_node_that_feeds_others_keeps_the_pair_that_feeds_it(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    with pytest.raises(Refused, match="feeds 1 more"):
        roles.disarm(b.engine, a.node_id)
    roles.disarm(b.engine, c.node_id)
    roles.disarm(b.engine, a.node_id)
    assert b.engine.state.role == PRIMARY


def test_a_secondary_follows_one_node_only(chain: Tree) -> None:
    with pytest.raises(Refused, match="follows node"):
        roles.arm(chain.sides["c"].engine, "f" * 32, upstream=True)
    with pytest.raises(Refused, match="primary"):
        roles.arm(chain.top.engine, "f" * 32, upstream=True)
    with pytest.raises(Refused, match="primary"):
        edges.follow(chain.top.engine, chain.sides["b"].node_id)


# -- middle nodes -----------------------------------------------------------------------------------------------------


def test_a_middle_node_keeps_its_journal_for_the_one_below(chain: Tree) -> None:
    a, b, _ = chain.sides.values()
    chain.lines["c"].cut()
    kept = b.page[TAIL_OFF]
    for turn in range(4):
        a.write(0, turn)
        chain.lines["b"].step()
    follower.checkpoint(b.engine)
    assert b.page[TAIL_OFF] == kept
    chain.settle()
    follower.checkpoint(b.engine)
    assert b.page[TAIL_OFF] == b.page[HEAD_OFF]


@pytest.mark.parametrize("power", [False, True])
def test_what_a_middle_node_keeps_for_another_outlives_it(chain: Tree, power: bool) -> None:
    a, b, _ = chain.sides.values()
    chain.lines["c"].cut()
    for turn in range(4):
        a.write(turn * 4096, turn + 1)
        chain.lines["b"].step()
    follower.checkpoint(b.engine)
    b.power_cut("drop") if power else b.kill()
    b.start()
    assert b.engine.journal.find(chain.sides["c"].engine.pos + 1) < b.page[HEAD_OFF]
    assert chain.lines["c"].connect()
    assert not b.edge(chain.sides["c"]).copying, "the records are there: no copy"
    chain.settle()


def test_a_copy_of_the_middle_node_gives_up_its_journal_for_the_ones_below(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    edges.drop(a.engine, [a.edge(b)])
    a.write(70 << 10, 3)
    assert chain.lines["b"].connect()
    assert b.engine.state.copy == RESYNC
    assert b.edge(c).dropped and on_disk(b).edge_of(c.node_id).dropped  # type: ignore[attr-defined]
    assert not chain.lines["c"].connect(), "an image that is being copied to is passed on to nobody"
    chain.settle()
    assert c.image() == a.image()


def test_a_promoted_middle_node_feeds_all_its_peers(chain: Tree) -> None:
    a, b, c = chain.sides.values()
    edges.set_policy(b.engine, {"mode": "sync"}, "")
    roles.demote(a.engine, False, a.engine.pos)
    assert a.engine.state.upstream == ""
    roles.promote(b.engine)
    state = on_disk(b)
    assert (state.role, state.upstream) == (PRIMARY, "")  # type: ignore[attr-defined]
    assert [e.degraded for e in state.edges] == [True, True], "nothing is known of its peers yet"  # type: ignore[attr-defined]
    turned = Tree("bac", {"a": "b", "c": "b"}, lambda name: chain.sides[name])
    b.write(0, 77)
    turned.settle()
    assert a.engine.state.upstream == b.node_id and a.image() == c.image() == b.image()


# -- bitmaps ----------------------------------------------------------------------------------------------------------


def rotate(tree: Tree) -> None:
    for block in range(3):
        tree.top.write(block << 16, 1)
    copier.rotate_bitmaps(tree.top.engine)
    tree.settle()


def test_an_old_bitmap_is_dropped_when_every_tree_below_holds_the_new_one(
    fan: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    a, c = fan.top, fan.sides["c"]
    rotate(fan)
    assert len(a.engine.state.bitmaps) == 2
    slot = edge_slot(a.edge(c).slot, EDGE_TREE_DURABLE)
    held, a.page[slot] = a.page[slot], 0
    copier.rotate_bitmaps(a.engine)
    assert len(a.engine.state.bitmaps) == 2, "a node below c lacks it"
    a.page[slot] = held
    fan.lines["c"].cut()
    copier.rotate_bitmaps(a.engine)
    assert len(a.engine.state.bitmaps) == 2, "c is away"
    fan.settle()
    copier.rotate_bitmaps(a.engine)
    fan.settle()
    assert [len(side.engine.state.bitmaps) for side in fan.sides.values()] == [1, 1, 1]


# -- groups of a version that knew one peer -------------------------------------------------------------------------


def forget_names(tree: Tree) -> None:
    for side in tree.sides.values():
        side.engine.state.edges[0].peer, side.engine.state.upstream = "", ""
        side.engine.save()


def test_the_first_peer_that_asks_takes_over_an_edge_that_names_nobody() -> None:
    tree = running_tree("ab", {"b": "a"})
    forget_names(tree)
    a, b = tree.sides.values()
    assert edges.edge_of(a.engine, b.node_id).slot == 0
    assert on_disk(a).edges[0].peer == b.node_id  # type: ignore[attr-defined]
    assert edges.edge_of(b.engine, a.node_id).slot == 0
    assert on_disk(b).upstream == a.node_id, "who feeds a secondary need not be kept a journal for"  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        edges.edge_of(a.engine, "f" * 32)
    a.write(0, 3)
    tree.settle()


def test_a_pair_that_names_nobody_can_be_ended() -> None:
    tree = running_tree("ab", {"b": "a"})
    forget_names(tree)
    roles.disarm(tree.top.engine, tree.sides["b"].node_id)
    assert tree.top.engine.state.edges == []
