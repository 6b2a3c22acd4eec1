"""A record in the journal that has rotted: hosts go on, peers that lack it follow by difference, and nobody calls safe
what cannot be had any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replicator.capture import edges, follower, journalloss
from replicator.capture.damage import first_damage
from replicator.capture.service import GroupService
from replicator.capture.state import BITMAP, JOURNAL, OK
from replicator.core import status as words
from replicator.core.errors import MediumError
from replicator.core.handshake import Action
from replicator.journal import volumes
from replicator.journal.page import APPLIED_SEQ, EDGE_DURABLE_OFF, HEAD_OFF, TAIL_OFF, Doorbell, edge_slot
from replicator.journal.ring import DATA_START
from tests.testing.pairharness import Pair, Side, running_pair
from tests.testing.treeharness import CHAIN, FAN, running_tree


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def rot(side: Side, back: int) -> None:
    """Change a bit so many bytes before the end of what the journal holds."""
    at = side.page[HEAD_OFF] - back
    side.disk._find("journal").data[DATA_START + at % side.engine.journal.capacity] ^= 1


def serve(side: Side, folder: Path) -> tuple[GroupService, list[str]]:
    events: list[str] = []
    folder.mkdir(exist_ok=True)
    service = GroupService(
        side.engine,
        Doorbell(folder / "t"),
        lambda slot: Doorbell(folder / f"r.{slot}"),
        lambda what, **_: events.append(what),
    )
    return service, events


def said(side: Side, facts: dict[str, Any] | None = None) -> str:
    return str(words.describe(side.engine.status(side.engine.state.edges[0]), facts or {"session": "target"})["word"])


def test_a_primary_goes_on_and_the_peer_follows_by_difference(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    for n in range(4):
        pair.a.write(n * 4096, n + 1)
    rot(pair.a, 4160 + 100)
    assert service.doubt_journal(pair.b.node_id) == {"given_up": True}
    assert events == ["journal-damaged"]
    assert pair.a.engine.state.mode == BITMAP and not pair.a.engine.state.journal_error
    service.write(0, 65536, b"\7" * 4096)
    decision = pair.sync_up()
    assert decision.action is Action.COPY and not decision.full
    assert pair.a.engine.state.mode == JOURNAL, "in the journal that it had"
    pair.a.write(0, 9)
    assert pair.sync_up().action is Action.STREAM


def test_a_kill_afterwards_finds_nothing_that_is_damaged(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.a, tmp_path)
    pair.a.write(0, 1)
    rot(pair.a, 100)
    service.doubt_journal(pair.b.node_id)
    for end in (pair.a.kill, lambda: pair.a.power_cut("drop")):
        end()
        pair.a.start()
        assert pair.a.image()[0][0] == 1
    pair.sync_up()


def test_a_journal_that_is_whole_is_kept(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    pair.a.write(0, 1, length=64 << 10)
    pair.a.write(0, 1)
    assert first_damage(pair.a.engine, pair.a.edge(pair.b)) is None
    assert service.doubt_journal(pair.b.node_id) == {"given_up": False}
    assert not events and pair.a.engine.state.mode == JOURNAL


def test_one_that_cannot_be_read_is_given_up(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    pair.a.write(0, 1)
    pair.a.disk.fail_reads("journal")
    assert service.doubt_journal(pair.b.node_id) == {"given_up": True}
    assert events == ["journal-lost"] and pair.a.engine.state.journal_error
    assert said(pair.a, {"session": "down"}) == "NO-JOURNAL"


@pytest.mark.parametrize("unreadable", [False, True])
def test_where_nothing_may_exist_once_only_nothing_is_given_up(pair: Pair, tmp_path: Path, unreadable: bool) -> None:
    service, events = serve(pair.a, tmp_path)
    [edge] = pair.a.engine.state.edges
    edge.mode, pair.a.engine.state.policy.on_loss = "sync", "stall"
    edges.set_sync(pair.a.engine, edge, True)
    pair.a.write(0, 1)
    if unreadable:
        pair.a.disk.fail_reads("journal")
    else:
        rot(pair.a, 100)
    assert service.doubt_journal(pair.b.node_id) == {"given_up": False}
    assert not events and not pair.a.engine.failed and pair.a.engine.state.mode == JOURNAL


def test_peers_that_hold_the_record_are_sent_on_in_order(tmp_path: Path) -> None:
    tree = running_tree(*FAN)
    a, near, far = tree.sides["a"], tree.sides["b"], tree.sides["c"]
    service, events = serve(a, tmp_path)
    a.write(0, 1)
    rot(a, 100)
    a.page[edge_slot(a.edge(near).slot, EDGE_DURABLE_OFF)] = a.page[HEAD_OFF]
    assert service.doubt_journal(far.node_id) == {"given_up": True}
    assert a.engine.state.mode == JOURNAL and events == ["journal-damaged"]
    assert a.edge(far).dropped and not a.edge(near).dropped
    assert a.page[TAIL_OFF] == a.page[HEAD_OFF], "a start would come upon it else"


def test_a_relay_keeps_what_it_has_and_feeds_by_difference(tmp_path: Path) -> None:
    tree = running_tree(*CHAIN)
    relay = tree.sides["b"]
    tree.sides["a"].write(0, 1)
    tree.lines["b"].ship(tree.sides["a"], relay)
    service, events = serve(relay, tmp_path)
    [below] = relay.engine.state.downstream
    rot(relay, 100)
    assert service.doubt_journal(below.peer) == {"given_up": False}, "its own volumes lack the record"
    rot(relay, 100)
    follower.apply_all(relay.engine)
    rot(relay, 100)
    assert service.doubt_journal(below.peer) == {"given_up": True}
    assert events == ["journal-damaged"] and relay.edge(tree.sides["c"]).dropped and not relay.engine.failed


def test_a_copy_that_cannot_apply_what_it_received_says_so_and_gets_it_again(pair: Pair) -> None:
    side = pair.b
    pair.a.write(0, 1)
    pair.ship(pair.a, side)
    rot(side, 100)
    applied = side.page[APPLIED_SEQ]
    with pytest.raises(MediumError, match="damaged.*group journal replace g"):
        follower.apply_all(side.engine)
    assert side.engine.failed and said(side) == "NO-JOURNAL"
    assert side.image()[0][0] == 0
    file = side.disk.open("journal")
    ring_bytes = side.journal_bytes - DATA_START
    volumes.prepare(file, 0, side.engine.journal.super, ring_bytes)  # type: ignore[arg-type]
    assert journalloss.replace_journal(side.engine, file, 0, ring_bytes) == 1  # type: ignore[arg-type]
    assert side.engine.pos == applied and side.engine.state.copy == OK
    assert pair.sync_up().action is Action.STREAM
