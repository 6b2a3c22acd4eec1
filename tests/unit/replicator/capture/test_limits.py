"""Records that a limit holds back, when the node meets its peer, is copied to, or becomes primary."""

from __future__ import annotations

import pytest

from replicator.capture import copier, copies, follower, limits, retention, roles
from replicator.capture.state import PRIMARY
from replicator.core.records import Kind
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    EDGE_APPLIED_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    edge_slot,
)
from tests.testing.pairharness import Pair, running_pair
from tests.testing.treeharness import CHAIN, FAN, running_tree


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def hold_back(pair: Pair, *offsets: int) -> None:
    """Writes that `b` receives durably and may not apply."""
    pair.b.engine.limit_seq = pair.b.engine.pos
    for offset in offsets:
        pair.a.write(offset, 9)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    follower.apply_all(pair.b.engine)
    assert pair.b.page[APPLIED_SEQ] < pair.b.page[HEAD_SEQ]


def forget_old_bitmaps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy marked every block; from here on few are."""
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    for _ in range(2):
        copier.rotate_bitmaps(pair.a.engine)
        pair.flow(pair.a, pair.b)
        pair.a.engine.sync_journal()
        pair.acknowledge(pair.a, pair.b)
    assert len(pair.b.engine.state.bitmaps) == 1
    assert not pair.b.engine.bitmaps.maps[0].bytes[2] & pair.b.engine.bitmaps.live


def test_blocks_of_records_held_back_are_told_without_lifting_the_limit(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_old_bitmaps(pair, monkeypatch)
    hold_back(pair, 140 << 10)
    bits = copies.common_bitmap(pair.b.engine, pair.b.page[APPLIED_SEQ])["volumes"]
    assert bits[0][0] >> 2 & 1
    assert pair.b.engine.limit_seq and pair.b.page[APPLIED_SEQ] < pair.b.page[HEAD_SEQ]


def test_a_tail_that_a_limit_holds_back_is_copied_over_when_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was held back is applied before the copy, so its blocks belong to those that are copied."""
    fan = running_tree(*FAN)
    a, b, c = fan.sides.values()
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    for _ in range(2):
        copier.rotate_bitmaps(a.engine)
        fan.settle()
    fan.lines["b"].cut()
    c.engine.limit_seq = c.engine.pos
    a.write(140 << 10, 9)
    fan.lines["c"].step()
    roles.promote(b.engine)
    roles.arm(b.engine, c.node_id)
    roles.arm(c.engine, b.node_id)
    decision = Pair(b, c, fan.truth).sync_up(discard=c.node_id)
    assert decision.label == "diff-discard" and not decision.full


def test_host_writes_held_back_count_as_writes(pair: Pair) -> None:
    """A synchronous primary that lost them must hear that they are here: they were promised."""
    hold_back(pair, 0)
    assert pair.hello(pair.b).last_write == pair.b.engine.pos == pair.a.engine.pos


def test_a_promised_tail_that_a_limit_holds_back_is_not_given_up(pair: Pair) -> None:
    edge = pair.a.edge(pair.b)
    for side, other in ((pair.a, pair.b), (pair.b, pair.a)):
        side.engine.commit({side.edge(other).slot: {"mode": "sync"}})
    pair.a.engine.commit({edge.slot: {"sync_on": True}})
    hold_back(pair, 0)
    pair.a.power_cut("drop")
    pair.a.start()
    assert pair.meet().label != "diff-diverged-tail"
    assert pair.b.engine.pos > pair.a.engine.pos or pair.b.engine.state.role == PRIMARY


def test_a_takeover_applies_what_is_held_back_whatever_puts_the_limit_on_again(pair: Pair) -> None:
    """The set's bound of a takeover that was decided is put on again and again, by a thread that knows of no
    promotion."""
    engine = pair.b.engine
    engine.limit_time_ns = engine.clock.last
    pair.a.write(0, 7)
    pair.a.write(70 << 10, 8)
    pair.ship(pair.a, pair.b)
    follower.apply_all(engine)
    assert engine.page[APPLIED_OFF] < engine.page[HEAD_OFF]
    bound = engine.limit_time_ns
    engine.on_lift = lambda: None
    read = engine.journal.read_into

    def reading(buf: memoryview, off: int) -> None:
        engine.limit_time_ns = bound
        read(buf, off)

    engine.journal.read_into = reading  # type: ignore[method-assign]
    roles.promote(engine)
    assert pair.b.image() == pair.a.image()


def test_what_a_cut_gives_up_is_forgotten_of_the_peers_below() -> None:
    """A peer below may hold what is given up here: its place in the journal is another one then."""
    tree = running_tree(*CHAIN)
    a, b, c = tree.sides.values()
    b.engine.limit_time_ns = b.engine.clock.last
    for n in range(6):
        a.write(n << 13, n + 1, length=4096 + 512 * n)
    tree.lines["b"].step()
    tree.lines["c"].step()
    edge = b.edge(c)
    c.engine.sync_journal()
    tree.lines["c"].acknowledge(b, c)
    b.page[edge_slot(edge.slot, EDGE_APPLIED_SEQ)] = c.engine.pos
    retention.note_marks(b.engine)
    assert b.page[edge_slot(edge.slot, EDGE_DURABLE_OFF)] > b.page[APPLIED_OFF]
    roles.promote(b.engine, at_limit=True)
    for what in (EDGE_RECEIVED_SEQ, EDGE_DURABLE_SEQ, EDGE_APPLIED_SEQ):
        assert b.page[edge_slot(edge.slot, what)] < b.engine.pos
    for n in range(9):
        b.write(n << 13, 40 + n)
    for retain in ("durable", "applied"):
        b.engine.state.policy.retain = retain
        retention.note_marks(b.engine)
        follower.checkpoint(b.engine)
        b.engine.journal.header_at(b.page[TAIL_OFF])


def test_an_epoch_that_a_cut_gives_up_is_older_than_the_one_that_follows(pair: Pair) -> None:
    """Otherwise what is left of its records behind the cut could continue the new one."""
    pair.b.engine.limit_seq = pair.b.engine.pos
    for _ in range(3):
        with pair.a.engine.lock:
            pair.a.engine.append_control(Kind.BARRIER)
            pair.a.engine.open_epoch()
    given_up = pair.a.engine.epoch
    pair.ship(pair.a, pair.b)
    limits.cut(pair.b.engine)
    pair.b.engine.limit_seq = 0
    roles.promote(pair.b.engine)
    assert pair.b.engine.epoch >> 24 > given_up >> 24
