"""Several pairs of one group between replicators over real connections; the targets are stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replicator.core.errors import AlreadyExists, BadInput, NotFound, PeerError, Refused
from replicator.daemon import rpc, tree
from tests.unit.replicator.daemon.conftest import InProcess
from tests.unit.replicator.daemon.test_pairs import until

UUID = "12" * 16
Three = tuple[InProcess, InProcess, InProcess]


@pytest.fixture
def three(make_node: Callable[[str], InProcess]) -> Three:
    a, b, c = make_node("alpha"), make_node("beta"), make_node("gamma")
    for one, other in ((a, b), (a, c), (b, c)):
        other.call("peer.join", token=one.call("peer.token")["token"])
    return a, b, c


@pytest.fixture
def fan(three: Three) -> Three:
    a, b, c = three
    a.target.add_group(UUID, "app")
    for peer in ("beta", "gamma"):
        a.call("pair.create", group="app", peer=peer)
    return a, b, c


def complete(node: InProcess, upstream: InProcess) -> None:
    """The node's copy is whole, and fed by `upstream`."""
    node.target.groups[UUID].update(state="ok", upstream=upstream.node_id)


def test_a_group_has_several_pairs_and_each_is_named(fan: Three) -> None:
    a, _, c = fan
    assert [one["peer_name"] for one in a.call("pair.list")] in (["beta", "gamma"], ["gamma", "beta"])
    with pytest.raises(BadInput, match="2 pairs: name the peer") as caught:
        a.call("pair.show", group="app")
    assert caught.value.way_out == "one of beta, gamma"
    assert a.call("pair.show", group="app", peer="gamma")["peer"] == c.node_id
    with pytest.raises(NotFound, match="no pair with 'delta'"):
        a.call("pair.split", group="app", peer="delta")


def test_the_pairs_of_a_group_connect_each_for_itself(fan: Three) -> None:
    a, _b, _c = fan
    connected: set[str] = set()  # links come and go: the stand-ins know nothing of copies

    def seen() -> bool:
        connected.update(one["peer_name"] for one in a.call("pair.list") if one["connected"])
        return connected == {"beta", "gamma"}

    assert until(seen)
    a.call("pair.split", group="app", peer="beta")
    assert [(one["peer_name"], one["split"]) for one in sorted(a.call("pair.list"), key=lambda v: v["peer_name"])] == [
        ("beta", True), ("gamma", False),
    ]  # fmt: skip


def test_one_pair_is_deleted_and_the_others_stay(fan: Three) -> None:
    a, b, c = fan
    assert a.call("pair.delete", group="app", peer="beta") == {"peer_note": ""}
    assert [one["peer_name"] for one in a.call("pair.list")] == ["gamma"]
    assert b.call("pair.list") == [] and len(c.call("pair.list")) == 1
    disarmed = [args for op, args in a.target.asked if op == "group.disarm"]
    assert disarmed == [{"group": UUID, "peer": b.node_id}]


def test_a_second_pair_changes_nothing_for_the_group(fan: Three) -> None:
    a, _, _c = fan
    a.target.asked.clear()
    with pytest.raises(AlreadyExists, match="paired with gamma already"):
        a.call("pair.create", group="app", peer="gamma", mode="sync")
    assert "group.policy" not in a.target.ops() and "group.arm" not in a.target.ops()


def test_a_pair_that_is_refused_leaves_the_modes_of_the_others_alone(three: Three) -> None:
    a, _, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta", mode="sync")
    c.target.fail["group.adopt"] = BadInput("volume v0 has 1 byte here")
    a.target.asked.clear()
    with pytest.raises(BadInput):
        a.call("pair.create", group="app", peer="gamma", mode="async", on_loss="stall")
    told = [args for op, args in a.target.asked if op == "group.policy"]
    assert told and all("mode" not in args for args in told), "told without a peer, it is that of every pair"


def test_the_mode_is_that_of_the_pair(three: Three) -> None:
    a, b, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta", mode="sync")
    a.call("pair.create", group="app", peer="gamma", mode="async", on_loss="stall", retain="applied", warn_percent=50)
    arms = {args["peer"]: args["mode"] for op, args in a.target.asked if op == "group.arm"}
    assert arms == {b.node_id: "sync", c.node_id: "async"}
    assert a.target.groups[UUID]["policy"] == {
        "mode": "sync", "on_loss": "stall", "retain": "applied", "warn_percent": 50,
    }  # fmt: skip
    [(_, adopted)] = [(op, args) for op, args in c.target.asked if op == "group.arm"]
    assert adopted == {"group": UUID, "peer": a.node_id, "mode": "async", "upstream": True}


def test_a_complete_secondary_gets_a_copy_of_its_own(three: Three) -> None:
    a, b, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta")
    with pytest.raises(Refused, match="its copy is fresh"):
        b.call("pair.create", group="app", peer="gamma")
    complete(b, a)
    with pytest.raises(Refused, match="ack can be set on the primary only"):
        b.call("pair.create", group="app", peer="gamma", ack="durable")
    assert b.call("pair.create", group="app", peer="gamma", mode="sync")["peer_name"] == "gamma"
    assert c.target.groups[UUID]["upstream"] == b.node_id


def test_a_peer_that_holds_the_group_already_would_make_a_cycle(fan: Three) -> None:
    a, b, _c = fan
    complete(b, a)
    with pytest.raises(AlreadyExists, match="paired with alpha: this pair would make a cycle"):
        b.call("pair.create", group="app", peer="gamma")
    assert [one["peer_name"] for one in b.call("pair.list")] == ["alpha"]


def test_a_takeover_names_the_node_that_fed_the_lost_one(fan: Three) -> None:
    a, b, c = fan
    complete(c, a)
    assert until(lambda: a.call("pair.show", group="app", peer="gamma")["connected"])
    a.target.groups[UUID].update(role="secondary", upstream=b.node_id)
    [fed] = [one for one in c.call("takeover.plan", group="app")["others"] if one["peer"] == "beta"]
    assert "see first whether it is alive" in fed["means"]
    a.target.groups[UUID].update(role="primary", upstream="")
    assert "see first" not in str(c.call("takeover.plan", group="app")["others"])


def test_a_switchover_on_the_primary_names_the_peer(fan: Three) -> None:
    a, _, _ = fan
    with pytest.raises(BadInput, match="name the peer"):
        a.call("switchover", group="app")


def test_a_switchover_does_not_skip_a_node(three: Three) -> None:
    a, b, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta")
    complete(b, a)
    b.call("pair.create", group="app", peer="gamma")
    with pytest.raises(Refused, match="beta is not primary"):
        c.call("switchover", group="app")


def test_a_switchover_on_a_secondary_takes_no_other_peer_for_an_order_to_become_primary(three: Three) -> None:
    a, b, _c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta")
    complete(b, a)
    b.call("pair.create", group="app", peer="gamma")
    with pytest.raises(NotFound, match="no pair with 'nobody'"):
        b.call("switchover", group="app", peer="nobody")
    for other in ("alpha", "gamma"):
        with pytest.raises(Refused, match=f"beta is not primary of group app, so it cannot hand the role to {other}"):
            b.call("switchover", group="app", peer=other)


def test_a_copy_below_is_passed_up_to_the_primary(three: Three) -> None:
    a, b, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="beta")
    complete(b, a)
    b.call("pair.create", group="app", peer="gamma")
    asked: list[dict[str, Any]] = []
    a.target.answer["group.extend_copy"] = lambda args: asked.append(dict(args)) or {"seq": 41}
    assert b.replicator is not None and c.replicator is not None
    node = b.replicator.node
    found = tree.extend_copy(b.run, node.contexts, node.peers, UUID, {"copy_id": "c1", "masks": {0: b"\x01"}})
    assert found == {"seq": 41}
    assert asked == [{"group": UUID, "copy_id": "c1", "masks": {0: b"\x01"}}]
    with pytest.raises(Refused, match="beta feeds this node"):
        complete(c, b)
        peer = node.peers.find("gamma")
        rpc.call(node.contexts, peer, "pair.extend_copy", {"group": UUID, "copy_id": "c1", "masks": None})


def test_nobody_above_is_said_so(three: Three) -> None:
    _a, b, _ = three
    b.target.add_group(UUID, "app", "secondary")
    assert b.replicator is not None
    node = b.replicator.node
    with pytest.raises(PeerError, match="no node feeds this one"):
        tree.extend_copy(b.run, node.contexts, node.peers, UUID, {"copy_id": "c1", "masks": None})


def test_a_takeover_asks_every_peer_also_one_without_a_pair_whether_it_is_primary(three: Three) -> None:
    a, b, c = three
    a.target.add_group(UUID, "app")
    a.call("pair.create", group="app", peer="gamma")
    complete(c, a)
    assert until(lambda: c.call("pair.show", group="app")["connected"])
    b.target.add_group(UUID, "app")  # what a switchover has made of it: primary, and no pair with gamma
    a.target.groups[UUID]["role"] = "secondary"
    a.stop()
    plan = c.call("takeover.plan", group="app")
    assert (plan["label"], plan["allowed"]) == ("primary-elsewhere", False)
    with pytest.raises(Refused, match="beta is primary of the group now and answers"):
        c.call("takeover", group="app")
    b.target.groups[UUID]["failed"] = "its disk"
    assert c.call("takeover.plan", group="app")["allowed"], "one that serves nobody is no reason to wait"
