"""Asks about markers through several nodes, which call each other here without a network and have made-up targets.

Real nodes: tests/system/test_ordered.py.
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.control import Args, write_frame
from replicator.core.errors import (
    BadInput,
    FarstripeError,
    NotFound,
    PeerError,
    ProtocolError,
    Refused,
    TimedOut,
    from_map,
    to_map,
)
from replicator.core.markers import make_number
from replicator.daemon import ops_marker, ops_remote
from replicator.daemon.markers import Markers
from replicator.daemon.markerstore import MarkerStore
from replicator.daemon.rpc import ask, is_unknown

SEQ = 70


class World:
    """Nodes that are called by one letter, whose id repeats it. up: {(group, node): node that feeds it}."""

    def __init__(self, folder: Path, primaries: dict[str, str], up: dict[tuple[str, str], str], lines: str) -> None:
        """primaries: group -> node. lines: pairs of nodes that are peers, as "AB BC"."""
        self.folder, self.primaries, self.up = folder, primaries, up
        self.lines = [set(line) for line in lines.split()]
        self.cut: set[str] = set()
        """Nodes that cannot be reached."""
        self.older: set[str] = set()
        """Nodes of a version without marker.up."""
        self.said: list[tuple[str, str, str]] = []
        """(asker, asked, op) of every call to a peer."""
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        """(node, op, args) of every call to a target but those that only look."""
        self.given_s: list[float] = []
        self.edges: list[dict[str, Any]] = []
        """Of each group at its primary."""
        self.delay_s = 0.0
        """What each target needs to say how a group stands."""
        self.nodes: dict[str, FakeNode] = {}
        for name in sorted({name for line in self.lines for name in line}):
            self.nodes[name] = FakeNode(self, name)

    def markers(self, name: str) -> Markers:
        return self.nodes[name].markers

    def ops(self, name: str) -> list[str]:
        return [op for node, op, _ in self.asked if node == name]


class FakeNode:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.config = SimpleNamespace(name=name, node_id=name.lower() * 32)
        self.peers = self
        self.pairs = SimpleNamespace(store=self, name_of=lambda node_id: self.known().get(node_id, node_id))
        self.events = SimpleNamespace(add=lambda *args, **more: None)
        self.markers = Markers(self, MarkerStore(world.folder / name, int(self.config.node_id[:6], 16)))  # type: ignore[arg-type]
        self.remote = ops_marker.remote_handlers(self, self.markers)  # type: ignore[arg-type]

    def known(self) -> dict[str, str]:
        return {one.lower() * 32: one for line in self.world.lines if self.name in line for one in line}

    # peers and pairs

    def get(self, first: str, second: str = "") -> Any:
        """A peer by its id; a pair by group and the peer's id."""
        if second:
            return next((one for one in self.all() if (one.group, one.peer) == (first, second)), None)
        name = self.known().get(first)
        return SimpleNamespace(name=name, node_id=first) if name and name != self.name else None

    def find(self, word: str) -> Any:
        node_id = next((node_id for node_id, name in self.known().items() if word in (name, node_id)), word)
        if (peer := self.get(node_id)) is None:
            raise NotFound(f"no peer {word!r}", "'farstripe peer list' shows the peers")
        return peer

    def all(self) -> list[Any]:
        pairs = []
        for (group, lower), upper in self.world.up.items():
            for here, there in ((lower, upper), (upper, lower)):
                if here == self.name:
                    pairs.append(SimpleNamespace(group=f"{group}-uuid", name=group, peer=there.lower() * 32))
        return pairs

    # calls

    def call(self, peer: Any, op: str, timeout_s: float = 60.0, **args: Any) -> Any:
        world = self.world
        world.said.append((self.name, peer.name, op))
        world.given_s.append(timeout_s)
        if peer.name in world.cut:
            raise PeerError(f"{peer.name} cannot be reached")
        there = world.nodes[peer.name]
        if op not in there.remote or (op == "marker.up" and peer.name in world.older):
            told: FarstripeError = NotFound(f"node {peer.name} knows no operation {op!r}", "run the same version")
        else:
            try:
                return there.remote[op](SimpleNamespace(name=self.name, node_id=self.config.node_id), Args(args))
            except FarstripeError as exc:
                told = exc
        told = from_map(to_map(told))
        told.answered = True
        raise told

    def target(self, op: str, timeout_s: float = 60.0, **args: Any) -> Any:
        world = self.world
        if op == "group.status":
            time.sleep(world.delay_s)
            name = str(args["group"]).removesuffix("-uuid")
            primary = world.primaries.get(name) == self.name
            if not primary and (name, self.name) not in world.up:
                raise NotFound(f"no group {name!r} on this node")
            upstream = "" if primary else world.up[name, self.name].lower() * 32
            return {"uuid": f"{name}-uuid", "name": name, "role": "primary" if primary else "secondary",
                    "upstream": upstream, "edges": world.edges if primary else []}  # fmt: skip
        if op == "group.list":
            own = {f"{group}-uuid" for group, node in world.primaries.items() if node == self.name}
            return [{"uuid": uuid, "role": "?"} for uuid in {one.group for one in self.all()} | own]
        if op == "marker.list":
            books = []
            for uuid in args["groups"]:
                role = "primary" if world.primaries[uuid.removesuffix("-uuid")] == self.name else "secondary"
                book = {"group": uuid, "uuid": uuid, "role": role, "suspended": 0, "highest": 9 << 24}
                made = [args for _, op, args in world.asked if op == "marker.mark" and args["token"] == uuid]
                book["entries"] = [{"n": one["n"], "seq": SEQ, "state": "made"} for one in made]
                books.append(book)
            return books
        world.asked.append((self.name, op, args))
        if op == "marker.hold":
            return {"token": "-".join(args["groups"])}
        if op == "marker.mark":
            return {"seqs": {args["token"]: SEQ}}
        return {"groups": []}


CHAIN = {("log", "B"): "A", ("log", "C"): "B"}


@pytest.fixture
def chain(tmp_path: Path) -> World:
    """A feeds B, B feeds C; D is a peer of B alone and has no copy."""
    return World(tmp_path, {"log": "A"}, CHAIN, "AB BC BD")


@pytest.mark.parametrize(
    ("coordinator", "word", "calls"),
    [("A", "log", 0), ("B", "log", 1), ("C", "log", 2), ("C", "log@B", 2), ("D", "log@B", 2), ("A", "log@B", 0)],
)
def test_a_marker_is_made_from_anywhere_in_the_tree_and_beside_it(
    chain: World, coordinator: str, word: str, calls: int
) -> None:
    made = chain.markers(coordinator).create("m", [word])
    assert made["groups"][0]["seq"] == SEQ and made["groups"][0]["node"] == "a" * 32
    assert [op for op in chain.ops("A") if op != "marker.release"] == ["marker.hold", "marker.mark"]
    assert chain.ops("B") == chain.ops("C") == []
    assert made["n"] >> 24 == 10, "above the highest number at the primary"
    mark = next(args for _, op, args in chain.asked if op == "marker.mark")
    assert mark["by"] == coordinator.lower() * 32 and mark["name"] == "m"
    held = [one for one in chain.said if one[2] == "marker.up"]
    assert len(held) == 3 * calls + (2 if word == "log@B" and coordinator == "A" else 0)


def test_an_asked_primary_is_spoken_to_as_older_versions_do(chain: World) -> None:
    chain.older = {"A"}
    chain.markers("B").create("m", ["log@A"])
    assert [op for _, _, op in chain.said] == ["marker.up", "marker.locate", "marker.hold", "marker.mark"]


def test_an_older_node_on_the_way_is_named(chain: World) -> None:
    chain.older = {"B"}
    with pytest.raises(Refused, match=r"not primary on B, and B is of an older version that passes nothing on"):
        chain.markers("D").create("m", ["log@B"])
    with pytest.raises(Refused, match="B, which feeds group log to C, is of an older version"):
        chain.markers("C").create("m", ["log"])
    chain.older = {"A"}
    with pytest.raises(Refused, match="A, which feeds group log to B, is of an older version"):
        chain.markers("D").create("m", ["log@B"])
    assert chain.asked == []


def test_an_older_node_is_known_by_the_answer_that_every_version_gives() -> None:
    node: Any = SimpleNamespace(config=SimpleNamespace(name="B"), remote_handlers={})
    with pytest.raises(NotFound) as told:
        ops_remote.run(node, SimpleNamespace(name="C"), "marker.up", {})  # type: ignore[arg-type]
    assert not is_unknown(told.value, "marker.up"), "it arose here"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        write_frame(theirs, {"ok": False, "error": to_map(told.value)})
        with pytest.raises(NotFound) as heard:
            ask(ours, {}, "B")  # type: ignore[arg-type]
    assert is_unknown(heard.value, "marker.up") and not is_unknown(heard.value, "marker.hold")


def test_a_node_that_cannot_be_reached_is_named_by_the_one_that_needs_it(chain: World) -> None:
    chain.cut = {"A"}
    said = "B gets group log from A, which cannot be asked: A cannot be reached"
    for coordinator, word in (("C", "log"), ("D", "log@B")):
        with pytest.raises(PeerError, match=f"^marker m was not made, and nothing was held: {said} "):
            chain.markers(coordinator).create("m", [word])
    chain.cut = {"B"}
    with pytest.raises(PeerError, match="C gets group log from B, which cannot be asked: B cannot be reached"):
        chain.markers("C").create("m", ["log"])
    with pytest.raises(PeerError, match=r"^marker m was not made, and nothing was held: B cannot be reached "):
        chain.markers("D").create("m", ["log@B"])


def test_a_line_that_breaks_after_the_hold_is_named_and_the_marker_is_none(chain: World) -> None:
    target = chain.nodes["A"].target

    def breaks(op: str, timeout_s: float = 60.0, **args: Any) -> Any:
        if op == "marker.hold":
            chain.cut = {"A"}
        return target(op, timeout_s, **args)

    chain.nodes["A"].target = breaks  # type: ignore[method-assign]
    with pytest.raises(Refused, match="marker m was not made: B gets group log from A, which cannot be asked"):
        chain.markers("C").create("m", ["log"])
    assert chain.markers("C").store.find("m")["state"] == "dead", "its images are owed an end, at a node that is away"
    chain.cut = set()
    chain.markers("C").tidy()
    assert chain.ops("A")[-1] == "marker.forget" and chain.markers("C").store.all() == []


def test_groups_that_are_nowhere_and_nodes_that_are_no_peers_are_named_with_a_way_out(chain: World) -> None:
    with pytest.raises(NotFound, match="on B: no group 'nix'") as told:
        chain.markers("D").create("m", ["nix@B"])
    assert "GROUP@NODE asks another node" in told.value.way_out
    with pytest.raises(NotFound, match="on D: no group 'log'"):
        chain.markers("D").create("m", ["log"])
    with pytest.raises(NotFound, match="no peer 'A'") as told:
        chain.markers("C").create("m", ["log@A"])
    assert "write log without @A" in told.value.way_out
    with pytest.raises(BadInput, match="named twice"):
        chain.markers("C").create("m", ["log", "log@B"])


def test_a_circle_is_found_by_the_first_node_that_is_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path, {}, {("log", "B"): "C", ("log", "C"): "B"}, "BC BD")
    with pytest.raises(Refused, match="group log goes round in a circle: D, B, C, B"):
        world.markers("D").create("m", ["log@B"])
    with pytest.raises(Refused, match="group log goes round in a circle: C, B, C"):
        world.markers("C").create("m", ["log"])
    up = {("log", "B"): "C", ("log", "C"): "E", ("log", "E"): "B"}
    world = World(tmp_path / "three", {}, up, "BC CE EB BD")
    with pytest.raises(Refused, match="group log goes round in a circle: D, B, C, E, B"):
        world.markers("D").create("m", ["log@B"])


def test_each_hop_has_less_time_and_none_is_asked_when_it_is_over(chain: World) -> None:
    chain.delay_s = 0.03
    chain.markers("C").create("m", ["log"], deadline_s=2.0)
    holds = [s for s in chain.given_s if s <= 2.0]
    assert len(holds) == 4 and holds[1] < holds[0] - 0.1 and holds[3] < holds[2] - 0.1
    chain.asked.clear()
    with pytest.raises(
        Refused, match=r"was not made: (no answer in time|what was asked about group log came to B too late)"
    ):
        chain.markers("C").create("late", ["log"], deadline_s=0.05)
    time.sleep(0.3)
    assert "marker.hold" not in chain.ops("A"), "hosts were held for somebody who had given up"


def test_two_ways_to_one_primary_are_two_holds_there(tmp_path: Path) -> None:
    up = {("log", "B"): "A", ("data", "C"): "A", ("log", "E"): "B", ("data", "E"): "C"}
    world = World(tmp_path, {"log": "A", "data": "A"}, up, "AB AC BD CD BE CE")
    for coordinator, words in (("D", ["log@B", "data@C"]), ("E", ["log", "data"])):
        made = world.markers(coordinator).create("m", words)
        assert {one["uuid"]: one["seq"] for one in made["groups"]} == {"log-uuid": SEQ, "data-uuid": SEQ}
        held = [args["groups"] for _, op, args in world.asked if op == "marker.hold"]
        assert sorted(held) == [["data-uuid"], ["log-uuid"]]
        world.asked.clear()


def test_what_became_of_a_marker_is_asked_the_same_way_and_it_is_settled_so(chain: World) -> None:
    markers = chain.markers("D")
    markers.create("m", ["log@B"])
    copies = markers.show("m")["copies"]
    assert sorted(one["node"] for one in copies) == ["A", "B", "C"]
    chain.cut = {"A"}
    assert [one["state"] for one in markers.show("m")["copies"]] == ["unreachable"]
    assert markers.delete("m")["left"] == ["A"]
    chain.cut = set()
    markers.tidy()
    assert [chain.ops(name)[-1] for name in "ABC"] == ["marker.forget"] * 3 and markers.store.all() == []


def test_nodes_down_the_tree_are_asked_at_once_and_each_has_less_time(tmp_path: Path) -> None:
    up = {("log", "B"): "A", ("log", "C"): "A", ("log", "E"): "B"}
    world = World(tmp_path, {"log": "A"}, up, "AB AC BE")
    both = threading.Barrier(2)

    def meets(answer: Any) -> Any:
        return lambda peer, args: (both.wait(20), answer(peer, args))[1]

    for name in "BC":
        remote = world.nodes[name].remote
        remote["marker.where"] = meets(remote["marker.where"])
    copies = world.markers("A").where("look", 4 << 24, ["log-uuid"])
    assert sorted(one["node"] for one in copies) == ["A", "B", "C", "E"]
    assert len(world.given_s) == 3 and min(world.given_s) < sorted(world.given_s)[1] - 0.05 and max(world.given_s) < 10
    world.cut = {"E"}
    assert {one["node"]: one["state"] for one in world.markers("A").where("look", 4 << 24, ["log-uuid"])}["E"] == (
        "unreachable"
    )


def test_a_node_does_nothing_by_way_of_another_but_ask_about_its_own_markers(chain: World) -> None:
    b, d = chain.nodes["B"], SimpleNamespace(name="D", node_id="d" * 32)
    up = b.remote["marker.up"]
    own, foreign = make_number(4, 0xDDDDDD), make_number(4, 0xAAAAAA)
    ask = {"do": "release", "group": "log", "passed": ["d" * 32], "n": own, "left_s": 1.0}
    up(d, Args(ask))
    assert chain.asked == [("A", "marker.release", {"n": own})]
    for do in ("release", "hold", "mark", "forget", "resume"):
        with pytest.raises(Refused, match="is not one of the node's that asks"):
            up(d, Args(ask | {"do": do, "n": foreign}))
    with pytest.raises(ProtocolError):
        up(d, Args(ask | {"passed": ["a" * 32], "n": foreign}))
    with pytest.raises(Refused, match="of no others"):
        up(d, Args(ask | {"passed": ["a" * 32, "d" * 32], "n": foreign}))
    bad: dict[str, Any]
    for bad in (
        {"do": "delete"}, {"group": 5}, {"passed": "d"}, {"passed": []}, {"passed": [5]}, {"passed": ["d" * 32] * 17},
        {"left_s": -1}, {"n": "4"}, {"n": True},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            up(d, Args(ask | bad))
    with pytest.raises(BadInput, match="missing"):
        up(d, Args({"do": "hold", "group": "log", "passed": ["d" * 32]}))
    up(d, Args(ask | {"groups": ["other"], "token": "x", "anything": 1}))
    assert chain.asked[-1] == ("A", "marker.release", {"n": own}), "something was passed on that nobody needs"


def test_an_ask_for_a_hold_that_comes_when_its_time_is_over_holds_nothing(chain: World) -> None:
    up = chain.nodes["A"].remote["marker.up"]
    n = make_number(4, 0xBBBBBB)
    ask = {"do": "hold", "group": "log", "passed": ["b" * 32], "n": n, "left_s": 0.0, "lease_s": 2.0}
    with pytest.raises(TimedOut, match="came to A too late"):
        up(SimpleNamespace(name="B", node_id="b" * 32), Args(ask))
    assert chain.asked == []


def edge(node: str, received: int, **more: bool) -> dict[str, Any]:
    return {"peer": node * 32, "received": received, "copying": False, "dropped": False, "upstream": False, **more}


@pytest.mark.parametrize(("coordinator", "word"), [("A", "log"), ("B", "log@A"), ("C", "log"), ("D", "log@B")])
def test_a_marker_is_received_when_all_have_it_that_the_primary_feeds(
    chain: World, coordinator: str, word: str
) -> None:
    markers = chain.markers(coordinator)
    markers.create("m", [word])
    chain.edges = [edge("b", SEQ - 1), edge("e", SEQ), edge("f", 0, upstream=True)]
    said = r"not been received everywhere after 0 s: [Bb]+ \(group log\)"
    with pytest.raises(TimedOut, match=said):
        markers.wait_received("m", 0)
    chain.edges[0]["received"] = SEQ
    assert markers.wait_received("m", 0)["name"] == "m"
    for lacks in ("copying", "dropped"):
        chain.edges[1] = edge("e", SEQ + 5, **{lacks: True})
        with pytest.raises(TimedOut, match="ee"):
            markers.wait_received("m", 0)
    chain.edges = []
    with pytest.raises(Refused, match="no copies that could receive"):
        markers.wait_received("m", 0)


def test_what_cannot_be_asked_is_no_receipt(chain: World) -> None:
    markers = chain.markers("D")
    markers.create("m", ["log@B"])
    chain.cut = {"A"}
    with pytest.raises(TimedOut, match="B gets group log from A, which cannot be asked"):
        markers.wait_received("m", 0.1)


def test_a_marker_that_nobody_receives_in_time_is_made_and_the_command_says_so(
    chain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_marker, "RECEIVED_S", 0.0)
    chain.edges = [edge("b", 0)]
    create = ops_marker.handlers(chain.nodes["C"], chain.markers("C"))["marker.create"]  # type: ignore[arg-type]
    with pytest.raises(TimedOut, match=r"marker m was made, but: .* B \(group log\)"):
        create(Args({"name": "m", "groups": ["log"], "received": True}))
    assert chain.markers("C").store.find("m")["state"] == "made"
