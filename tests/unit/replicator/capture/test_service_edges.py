"""What hosts of a group with several peers wait for, and what is done when one of them does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.capture import edges, follower
from replicator.capture.service import GroupService
from replicator.capture.state import BITMAP, JOURNAL, StateFile
from replicator.core.errors import MediumError
from replicator.core.status import edge_status
from replicator.journal.page import (
    EDGE_ASLEEP,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    EDGE_WANTS,
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    Doorbell,
    edge_slot,
)
from tests.testing.pairharness import Side
from tests.testing.treeharness import CHAIN, FAN, Tree, running_tree


class Served:
    """One node of a tree, served."""

    def __init__(self, tree: Tree, side: Side, folder: Path) -> None:
        self.tree, self.side, self.folder = tree, side, folder
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.rung: list[int] = []
        self.service = GroupService(
            side.engine, Doorbell(folder / "t"), self._bell, lambda what, **detail: self.events.append((what, detail))
        )

    def _bell(self, slot: int) -> Any:
        rung = self.rung

        class Bell:
            def ring(self) -> None:
                rung.append(slot)

        return Bell()

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def hear(self, peer: Side, *whats: int) -> None:
        """Store that a peer has everything, in counters `whats`."""
        page, slot = self.side.page, self.side.edge(peer).slot
        for what in whats:
            page[edge_slot(slot, what)] = page[HEAD_OFF if what == EDGE_DURABLE_OFF else HEAD_SEQ]

    def stored(self, peer: Side) -> Any:
        """The edge with `peer` as the state on disk has it."""
        return StateFile(self.side.disk.open("state")).load().edge_of(peer.node_id)  # type: ignore[arg-type]

    def synchronous(self, **policy: object) -> None:
        self.service.set_policy({"mode": "sync", **policy})
        for edge in self.side.engine.state.downstream:
            assert self.service.set_sync(edge.peer, True)["sync_on"]

    def fill(self) -> None:
        """Write until the journal has no room for 64 KiB more."""
        while self.side.engine.journal.room_for(200 << 10):
            self.side.write(0, 1, length=64 << 10)


@pytest.fixture
def fan(tmp_path: Path) -> Iterator[Served]:
    tree = running_tree(*FAN)
    for line in tree.lines.values():
        line.cut()
    yield Served(tree, tree.top, tmp_path)


@pytest.fixture
def middle(tmp_path: Path) -> Iterator[Served]:
    tree = running_tree(*CHAIN)
    tree.lines["c"].cut()
    yield Served(tree, tree.sides["b"], tmp_path)


def in_background(action: Any) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


@pytest.mark.parametrize("first", ["b", "c"])
def test_a_synchronous_write_waits_for_every_peer(fan: Served, first: str) -> None:
    fan.synchronous(loss_timeout_s=0)
    second = {"b": "c", "c": "b"}[first]
    writer = in_background(lambda: fan.service.write(0, 0, b"x" * 4096))
    time.sleep(0.05)
    fan.hear(fan.tree.sides[first], EDGE_RECEIVED_SEQ)
    writer.join(0.3)
    assert writer.is_alive(), f"{second} has not answered"
    fan.hear(fan.tree.sides[second], EDGE_RECEIVED_SEQ)
    writer.join(5)
    assert not writer.is_alive()


def test_a_flush_waits_until_every_peer_holds_it_durably(fan: Served) -> None:
    fan.synchronous(loss_timeout_s=0)
    flusher = in_background(fan.service.flush)
    time.sleep(0.05)
    for side in "bc":
        fan.hear(fan.tree.sides[side], EDGE_RECEIVED_SEQ)
    fan.hear(fan.tree.sides["b"], EDGE_DURABLE_SEQ)
    flusher.join(0.3)
    assert flusher.is_alive()
    fan.hear(fan.tree.sides["c"], EDGE_DURABLE_SEQ)
    flusher.join(5)
    assert not flusher.is_alive()


def test_a_peer_that_does_not_answer_is_given_up_and_the_other_still_waited_for(fan: Served) -> None:
    fan.synchronous(loss_timeout_s=0.1)
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    writer = in_background(lambda: fan.service.write(0, 0, b"x" * 4096))
    time.sleep(0.03)
    fan.hear(c, EDGE_RECEIVED_SEQ)
    writer.join(5)
    assert not writer.is_alive()
    assert (fan.stored(b).degraded, fan.stored(b).sync_on) == (True, False)
    assert (fan.stored(c).degraded, fan.stored(c).sync_on) == (False, True)
    assert [detail["peer"] for name, detail in fan.events if name == "degraded"] == [b.node_id]


def test_both_peers_are_given_up_durably_before_a_write_is_answered_that_neither_has(fan: Served) -> None:
    fan.synchronous(loss_timeout_s=0.1)
    fan.service.write(0, 0, b"x" * 4096)
    assert all(fan.stored(fan.tree.sides[name]).degraded for name in "bc")


def test_where_the_loss_of_a_peer_stalls_every_peer_counts(fan: Served) -> None:
    fan.synchronous(on_loss="stall", loss_timeout_s=0.1)
    fan.side.page[edge_slot(fan.side.edge(fan.tree.sides["b"]).slot, EDGE_RECEIVED_SEQ)] = 1 << 40
    with pytest.raises(MediumError, match="has not answered"):
        fan.service.write(0, 0, b"x" * 4096)
    assert not fan.stored(fan.tree.sides["c"]).degraded


def test_a_pair_that_ends_answers_the_writes_that_wait_for_its_peer_alone(fan: Served) -> None:
    fan.synchronous(loss_timeout_s=0)
    writer = in_background(lambda: fan.service.write(0, 0, b"x" * 4096))
    time.sleep(0.05)
    fan.hear(fan.tree.sides["b"], EDGE_RECEIVED_SEQ)
    fan.service.disarm(fan.tree.sides["c"].node_id)
    writer.join(5)
    assert not writer.is_alive()


def test_a_full_journal_gives_up_the_peer_that_is_away_and_goes_on_for_the_other(fan: Served) -> None:
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    fan.service.set_link(b.node_id, True)
    fan.fill()
    fan.hear(b, EDGE_DURABLE_OFF)
    for turn in range(3):
        fan.service.write(0, 0, bytes([turn]) * (64 << 10))
    assert fan.side.engine.state.mode == JOURNAL
    assert fan.stored(c).dropped and not fan.stored(b).dropped
    assert ("edge-dropped", c.node_id) == (fan.events[0][0], fan.events[0][1]["peer"])
    fan.tree.settle()
    assert fan.tree.sides["c"].image() == fan.side.image()


@pytest.mark.parametrize(("policy", "waits"), [("stall", True), ("fail", False)])
def test_where_the_policy_gives_nobody_up_one_absent_peer_stops_writers_and_is_named(
    fan: Served, policy: str, waits: bool
) -> None:
    fan.service.set_policy({"on_full": policy, "full_timeout_s": 0.2})
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    fan.service.set_link(b.node_id, True)
    fan.fill()
    fan.hear(b, EDGE_DURABLE_OFF)
    began = time.monotonic()
    with pytest.raises(MediumError, match=c.node_id):
        for turn in range(3):
            fan.service.write(0, 0, bytes([turn]) * (64 << 10))
    assert (time.monotonic() - began >= 0.2) is waits
    assert fan.names().count("writes-fail") == 1
    blocking = {one["peer"]: one["blocks_writers"] for one in fan.service.status()["edges"]}
    assert blocking == {b.node_id: False, c.node_id: True} and fan.service.status()["blocks_writers"]
    fan.service.set_link(c.node_id, True)
    fan.hear(c, EDGE_DURABLE_OFF)
    fan.service.write(0, 0, b"\5" * (64 << 10))
    assert not fan.service.status()["blocks_writers"]


def test_how_far_each_peer_is_behind_is_known_in_bytes_and_seconds_too(fan: Served) -> None:
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    for peer in (b, c):
        fan.service.set_link(peer.node_id, True)
        fan.hear(peer, EDGE_RECEIVED_SEQ)
    fan.service.status()
    fan.service.write(0, 0, b"\1" * 4096)
    fan.hear(b, EDGE_RECEIVED_SEQ)
    told = {one["peer"]: one["behind"] for one in fan.service.status()["edges"]}
    assert told[b.node_id]["writes"] == told[b.node_id]["bytes"] == 0
    assert told[c.node_id]["writes"] == 1 and told[c.node_id]["bytes"] > 4096 and told[c.node_id]["seconds"] >= 0.0
    assert edge_status(fan.service.status(), c.node_id)["behind"]["writes"] == 1


def test_a_peer_that_is_there_but_too_slow_slows_writers_for_a_while_only(fan: Served) -> None:
    fan.service.set_policy({"full_timeout_s": 0.3})
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    for side in (b, c):
        fan.service.set_link(side.node_id, True)
    fan.fill()
    fan.hear(b, EDGE_DURABLE_OFF)
    began = time.monotonic()
    for _ in range(3):
        fan.service.write(0, 0, b"\2" * (64 << 10))
    assert 0.3 <= time.monotonic() - began < 3
    assert fan.stored(c).dropped and not fan.stored(b).dropped


def test_when_both_are_away_the_group_counts_differences(fan: Served) -> None:
    fan.fill()
    for _ in range(3):
        fan.service.write(0, 0, b"\2" * (64 << 10))
    assert fan.side.engine.state.mode == BITMAP
    fan.tree.settle()


def test_a_full_journal_does_not_drop_a_peer_that_writes_may_not_do_without(fan: Served) -> None:
    fan.service.set_policy({"mode": "sync", "on_loss": "stall", "full_timeout_s": 0.1})
    c = fan.tree.sides["c"]
    fan.fill()
    fan.service.set_sync(c.node_id, True)
    fan.hear(fan.tree.sides["b"], EDGE_DURABLE_OFF)
    fan.side.page[edge_slot(fan.side.edge(c).slot, EDGE_RECEIVED_SEQ)] = 1 << 40
    with pytest.raises(MediumError, match="on_loss=stall"):
        for _ in range(3):
            fan.service.write(0, 0, b"\2" * (64 << 10))
    assert not fan.stored(c).dropped


def test_a_restarted_primary_holds_writers_until_no_peer_can_have_taken_over(fan: Served) -> None:
    b, c = fan.tree.sides["b"], fan.tree.sides["c"]
    fan.service.set_policy({"startup_wait_s": 30.0})
    fan.service.start(wait_for_peer=True)
    try:
        fan.service.set_link(b.node_id, True)
        assert fan.side.engine.parked_for == "hold", "c may have"
        fan.service.set_link(c.node_id, True)
        assert not fan.side.engine.parked_for
    finally:
        fan.service.stop()


def test_a_peer_that_comes_does_not_end_a_hold_for_another(fan: Served) -> None:
    fan.service.hold(30.0)
    for name in "bc":
        fan.service.set_link(fan.tree.sides[name].node_id, True)
    assert fan.side.engine.parked_for == "hold", "a switchover has promised a position"
    fan.service.release()
    assert not fan.side.engine.parked_for


def test_every_edge_whose_replicator_sleeps_is_woken(fan: Served) -> None:
    page = fan.side.page
    for slot in (0, 1):
        page[edge_slot(slot, EDGE_ASLEEP)] = slot
    fan.service.write(0, 0, b"x" * 4096)
    assert fan.rung == [1]


# -- a node that feeds others -----------------------------------------------------------------------------------------


def receive(served: Served) -> None:
    """Let the node have all its upper one has, as far as its journal holds it."""
    line = served.tree.lines["b"]
    if not line.up:
        line.connect()
    line.ship(line.a, line.b)
    follower.apply_all(served.side.engine)


def test_a_relay_gives_up_a_peer_that_is_away_rather_than_stop_what_comes_in(middle: Served) -> None:
    c = middle.tree.sides["c"]
    middle.tree.top.write(0, 1, length=64 << 10)
    receive(middle)
    follower.checkpoint(middle.side.engine)
    tail = middle.side.page[TAIL_OFF]
    assert not middle.service._full.is_waited_for()
    middle.side.page[edge_slot(middle.side.edge(middle.tree.top).slot, EDGE_WANTS)] = 64 << 10
    assert middle.service._full.is_waited_for()
    middle.service._full.relieve()
    assert middle.stored(c).dropped
    assert middle.side.page[TAIL_OFF] > tail
    middle.tree.settle()


def test_a_relay_holds_back_what_comes_in_while_its_peer_is_only_slow(middle: Served) -> None:
    c = middle.tree.sides["c"]
    middle.service.set_policy({"full_timeout_s": 0.2})
    middle.service.set_link(c.node_id, True)
    middle.tree.top.write(0, 1, length=64 << 10)
    receive(middle)
    follower.checkpoint(middle.side.engine)
    middle.service._full.relieve()
    assert not middle.stored(c).dropped
    time.sleep(0.25)
    middle.service._full.relieve()
    assert middle.stored(c).dropped


def test_a_relay_goes_on_after_a_peer_that_makes_room_in_time(middle: Served) -> None:
    c = middle.tree.sides["c"]
    middle.service.set_policy({"full_timeout_s": 0.1})
    middle.service.set_link(c.node_id, True)
    for turn in range(3):
        middle.tree.top.write(0, turn, length=64 << 10)
        receive(middle)
        follower.checkpoint(middle.side.engine)
        middle.service._full.relieve()
        time.sleep(0.08)
        middle.hear(c, EDGE_DURABLE_OFF)
        middle.service._full.relieve()
    assert not middle.stored(c).dropped


def test_a_relay_with_a_peer_that_must_not_be_lost_stops_what_comes_in(middle: Served) -> None:
    c = middle.tree.sides["c"]
    middle.service.set_policy({"mode": "sync", "on_loss": "stall", "full_timeout_s": 0.1})
    middle.service.set_sync(c.node_id, True)
    middle.tree.top.write(0, 1, length=64 << 10)
    receive(middle)
    middle.service._full.relieve()
    time.sleep(0.15)
    middle.service._full.relieve()
    assert not middle.stored(c).dropped
    edges.degrade(middle.side.engine, middle.side.edge(c))
    middle.service._full.relieve()
    assert middle.stored(c).dropped
