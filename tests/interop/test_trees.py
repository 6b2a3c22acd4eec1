"""Three real nodes: two copies of one primary, and a copy of a copy."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from replicator.core.errors import AlreadyExists, BadInput, Refused
from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, CommandFailed, Node, wait_until
from tests.testing.stamped import BLOCK, check_nothing_lost
from tests.testing.trees import Tree, running_nodes

VOLUMES = {"data": 8 << 20, "log": 1 << 20}
PATIENT = ("--on-loss", "stall", "--loss-timeout", "60")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABC") as three:
        yield three


def test_a_chain_copies_follows_and_catches_up_after_its_middle_was_killed(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)])
    tree.assert_images_equal()
    load = tree.load("data", seed=1, writes_per_s=400)
    load.wait_acked(100)
    b.kill()
    load.wait_acked(200)
    b.start()
    load.wait_acked(100)
    tree.wait_streaming()
    load.stop()
    tree.assert_images_equal()
    check_nothing_lost(load.ledger, tree.image(c))


def test_in_a_synchronous_chain_the_last_node_has_what_was_answered(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)], "sync", PATIENT)
    assert a.group()["sync_on"]
    load = tree.load("data", seed=2)
    load.wait_acked(200)
    a.kill()
    b.kill()
    load.stop()
    wait_until(lambda: c.group()["applied"] == c.group()["pos"], tree.situation)
    check_nothing_lost(load.ledger, tree.image(c))


def test_a_takeover_in_the_middle_keeps_what_is_below(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)], "sync", PATIENT)
    load = tree.load("data", seed=3)
    load.wait_acked(100)
    a.kill()
    load.stop()
    plan = json.loads(b.farstripe("takeover", GROUP, "--plan", "--json"))
    assert plan["allowed"] and plan["others"] == [{"peer": "C", "means": "it goes on with this node"}]
    b.farstripe("takeover", GROUP, "--yes")
    check_nothing_lost(load.ledger, tree.image(b))
    tree.primary = b
    more = tree.load("data", seed=4, ledger=load.ledger)
    more.wait_acked(100)
    a.start()
    wait_until(lambda: tree.streaming() or "SUPERSEDED" in b.farstripe("status"), tree.situation)
    if not tree.streaming():  # a write that was under way, and answered by nobody, had come to A's journal alone
        b.farstripe("pair", "resync", GROUP, "A", "--discard", "A", "--yes")
    tree.wait_streaming()
    more.stop()
    tree.assert_images_equal()


def test_after_a_takeover_at_a_marker_in_the_middle_the_node_below_follows_by_itself(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)])
    load = tree.load("data", seed=8, writes_per_s=400)
    load.wait_acked(50)
    a.farstripe("marker", "create", "noon", "--groups", GROUP)
    a.farstripe("marker", "wait", "noon")
    load.wait_acked(50)
    load.stop()
    tree.wait_in_sync()
    image = b.generations("data.noon", VOLUMES["data"] // BLOCK)
    assert image != tree.image(c)
    a.kill()
    b.farstripe("marker", "takeover", "noon", "--groups", GROUP, "--yes")
    b.farstripe("pair", "wait", GROUP, "C", "--state", "equal", "--timeout", "30")
    assert tree.image(b) == tree.image(c) == image
    a.start()
    wait_until(lambda: "SUPERSEDED" in b.farstripe("explain", GROUP), tree.situation)
    assert f"farstripe pair resync {GROUP} A --discard A" in b.farstripe("explain", GROUP)  # what its hosts were told
    b.farstripe("pair", "resync", GROUP, "A", "--discard", "A", "--yes")
    tree.primary = b
    tree.assert_images_equal()


def test_a_node_below_a_refused_one_is_told_by_whom_and_why(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (a, c)])
    wait_until(lambda: "no records for C until A" in json.dumps(b.json("status")), "B has not heard what C is called")
    b.kill()
    c.kill()
    a.writer("data").pwrite(b"x" * BLOCK, 0)
    a.kill()
    b.start()
    said = b.farstripe("explain", GROUP)
    assert "this node can take over: " in said and f"farstripe takeover {GROUP} --plan" in said
    b.farstripe("takeover", GROUP, "--yes")
    a.start()
    wait_until(lambda: "SUPERSEDED" in b.farstripe("status"), tree.situation)
    c.start()  # not before: A, primary for a moment, would send it the write
    wait_until(lambda: "SOURCE-REFUSED" in c.farstripe("status"), tree.situation)
    assert "A, which would feed this node, and B do not go together" in c.farstripe("explain", GROUP)
    unnamed = b.farstripe("pair", "resync", GROUP, "A", expect=Refused.exit_code)
    wrong = b.farstripe("pair", "resync", GROUP, "A", "--discard", "B", "--yes", expect=Refused.exit_code)
    for said in (unnamed, wrong):
        assert "A holds" in said and f"farstripe pair resync {GROUP} A --discard A" in said
    b.farstripe("pair", "resync", GROUP, "A", "--discard", "A", "--yes")
    tree.primary = b
    tree.assert_images_equal()


def test_two_copies_of_one_primary_and_a_switchover_to_one_of_them(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (a, c)])
    load = tree.load("data", seed=5, writes_per_s=400)
    load.wait_acked(100)
    c.kill()
    load.wait_acked(100)
    c.start()
    tree.wait_streaming()
    load.stop()
    tree.assert_images_equal()
    with pytest.raises(CommandFailed, match="name the peer"):
        a.farstripe("switchover", GROUP)
    a.farstripe("switchover", GROUP, "B")
    tree.primary = b
    again = tree.load("data", seed=6, ledger=load.ledger, writes_per_s=400)
    again.wait_acked(100)
    again.stop()
    tree.assert_images_equal()  # C goes on behind A, which B feeds now
    check_nothing_lost(again.ledger, tree.image(c))


def test_pairs_of_a_tree_are_named_listed_and_deleted_one_by_one(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (a, c)])
    refused = a.farstripe("pair", "show", GROUP, expect=BadInput.exit_code)
    assert "name the peer" in refused and "B, C" in refused
    assert {one["peer_name"] for one in a.json("pair", "list")} == {"B", "C"}
    [group] = a.json("status")["groups"]
    assert {loss["node"]: loss["label"] for loss in group["losses"]} == {
        "A": "primary-behind", "B": "copy-lost-behind", "C": "copy-lost-behind",
    }  # fmt: skip
    assert "if A is lost: lost is what has not arrived: take over on" in a.farstripe("status", GROUP)
    b.farstripe("peer", "join", c.farstripe("peer", "token").split()[-1])
    cycle = b.farstripe("pair", "create", GROUP, "--peer", "C", expect=AlreadyExists.exit_code)
    assert "would make a cycle" in cycle
    foreign = b.farstripe("pair", "create", GROUP, "--peer", "C", "--ack", "durable", expect=Refused.exit_code)
    assert "on the primary only" in foreign
    a.farstripe("pair", "delete", GROUP, "C", "--yes")
    assert [one["peer_name"] for one in a.json("pair", "list")] == ["B"]
    assert c.json("pair", "list") == []
    tree.nodes.remove(c)
    load = tree.load("data", seed=7, writes_per_s=400)
    load.wait_acked(50)
    load.stop()
    tree.assert_images_equal()
