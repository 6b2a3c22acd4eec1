"""A copy that was killed and found its journal gone is sent again what it had received and not applied, no more."""

from __future__ import annotations

import random

import pytest

from replicator.capture import follower, recovery, roles
from replicator.capture.engine import GroupEngine
from replicator.capture.state import OK, RESYNC, Policy
from replicator.core.errors import Refused
from replicator.core.handshake import Action
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ
from tests.testing.pairharness import Pair, Side, running_pair
from tests.testing.treeharness import CHAIN, FAN, running_tree
from tests.unit.replicator.capture.test_journalloss import renew


def destroy(side: Side) -> None:
    file = side.disk._find("journal")
    file.data[:] = bytes(len(file.data))


def received(pair: Pair, rng: random.Random, whole: int, partly: int) -> None:
    """B has applied some records, received more, and died when any part of any of those was in its volumes."""
    for _ in range(whole):
        pair.a.write(rng.randrange(16) * 4096, rng.randrange(1, 256))
    pair.ship(pair.a, pair.b)
    follower.apply_all(pair.b.engine)
    records = []
    for _ in range(partly):
        offset, fill = rng.randrange(16) * 4096, rng.randrange(1, 256)
        pair.a.write(offset, fill)
        records.append((offset, fill))
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    for offset, fill in records:  # any of them, in part
        if rng.random() < 0.6:
            pair.b.engine.volumes[0].pwrite(bytes([fill]) * rng.choice((512, 4096)), offset)
    pair.b.kill()
    destroy(pair.b)


def test_only_the_lost_part_is_sent_again_and_until_then_the_copy_is_not_consistent():
    for seed in range(20):
        rng = random.Random(seed)
        pair = running_pair()
        received(pair, rng, rng.randrange(6), rng.randrange(1, 9))
        pair.b.start()
        b = pair.b.engine
        applied = b.page[APPLIED_SEQ]
        assert b.state.copy == RESYNC and b.state.torn_to == pair.a.engine.pos
        renew(pair.b)
        if rng.random() < 0.5:
            pair.a.write(0, 1)
        decision = pair.meet()
        assert (decision.label, decision.from_seq) == ("resend-lost-journal", applied + 1)
        while b.page[APPLIED_SEQ] < b.state.torn_to:
            assert b.state.copy == RESYNC
            with pytest.raises(Refused):
                roles.promote(b)
            pair.ship(pair.a, pair.b, 1)
            follower.apply_all(b)
        assert b.state.copy == OK and b.state.torn_to == 0
        assert pair.b.image() == pair.image_at(b.state.hist, b.page[HEAD_SEQ])
        pair.sync_up()
        assert pair.copies == 1


def test_one_that_had_applied_everything_is_consistent_as_soon_as_it_has_a_journal():
    pair = running_pair()
    pair.a.write(0, 7)
    pair.flow(pair.a, pair.b)
    pair.b.kill()
    destroy(pair.b)
    pair.b.start()
    renew(pair.b)
    assert pair.b.engine.state.copy == OK
    assert pair.sync_up().label == "stream"


def test_the_bound_of_a_set_holds_until_the_set_has_been_told_that_it_is_no_cut():
    pair = running_pair()
    received(pair, random.Random(6), 2, 3)
    pair.b.start()
    renew(pair.b)
    applied = pair.b.page[APPLIED_SEQ]
    pair.b.engine.limit_time_ns = 1
    pair.meet()
    pair.ship(pair.a, pair.b)
    follower.apply_all(pair.b.engine)
    assert (pair.b.page[APPLIED_SEQ], pair.b.engine.state.copy) == (applied, RESYNC)
    pair.b.engine.limit_time_ns = 0
    follower.apply_all(pair.b.engine)
    assert pair.b.engine.state.copy == OK


def test_power_that_is_lost_before_there_is_a_journal_costs_only_more_records():
    pair = running_pair()
    received(pair, random.Random(3), 4, 6)
    pair.b.start()
    image = pair.b.image()
    pair.b.power_cut("drop")
    pair.b.start()
    assert pair.b.image() == image, "what was applied was in the journal alone, or in no sync"
    renew(pair.b)
    assert pair.b.engine.state.copy == RESYNC
    assert pair.sync_up().action in (Action.RESUME, Action.COPY)


def test_power_that_is_lost_with_the_journal_leaves_nothing_to_rely_on():
    pair = running_pair()
    received(pair, random.Random(4), 4, 6)
    pair.b.power_cut("drop")
    pair.b.start()
    assert pair.b.engine.state.copy == RESYNC and pair.b.engine.state.torn_to == 0
    renew(pair.b)
    assert pair.sync_up().action is Action.COPY


def test_a_node_that_took_over_without_these_records_copies_instead():
    """What of them is in B's volumes no record of C's takes back."""
    fan = running_tree(*FAN)
    a, b, c = fan.sides.values()
    roles.arm(b.engine, c.node_id)
    for line in fan.lines.values():
        line.connect()
    a.write(8192, 9)
    fan.lines["b"].ship(a, b)
    b.engine.sync_journal()
    b.engine.volumes[0].pwrite(b"\x09" * 512, 8192)
    b.kill()
    destroy(b)
    b.start()
    renew(b)
    roles.promote(c.engine)
    roles.arm(c.engine, b.node_id)
    assert Pair(c, b, fan.truth).sync_up().action is Action.COPY


def test_the_oracle_bites(monkeypatch: pytest.MonkeyPatch):
    """The pool is not synced when its journal is given up; or a copy counts as consistent before the lost part came."""
    with monkeypatch.context() as early:
        early.setattr(follower, "_mend", _too_early)
        with pytest.raises(AssertionError):
            test_only_the_lost_part_is_sent_again_and_until_then_the_copy_is_not_consistent()
    monkeypatch.setattr(recovery.GroupEngine, "sync_pool", lambda self: None)
    with pytest.raises(AssertionError):
        test_power_that_is_lost_before_there_is_a_journal_costs_only_more_records()


def _too_early(engine: GroupEngine) -> None:
    engine.commit(copy=OK, torn_to=0)


def test_in_a_chain_the_middle_is_sent_again_what_it_lost_and_nobody_is_copied_to():
    for seed in range(8):
        rng = random.Random(seed)
        tree = running_tree(*CHAIN)
        for side in tree.sides.values():
            side.engine.state.policy = Policy(retain="applied")
        copies = [line.copies for line in tree.lines.values()]
        for _ in range(4):
            tree.top.write(rng.randrange(16) * 4096, rng.randrange(1, 256))
        tree.settle()
        for line in tree.lines.values():
            line.connect()
        for _ in range(6):
            tree.top.write(rng.randrange(16) * 4096, rng.randrange(1, 256))
        for (
            line
        ) in tree.lines.values():  # received in the middle, and below, and perhaps applied there; not in the middle
            line.ship(line.a, line.b)
        if rng.random() < 0.5:
            follower.apply_all(tree.sides["c"].engine)
        side = tree.sides[rng.choice("bc")]
        assert side.name == "c" or side.page[APPLIED_SEQ] < side.page[HEAD_SEQ]
        side.engine.sync_journal()
        side.kill()
        destroy(side)
        side.start()
        renew(side)
        tree.settle()
        assert [line.copies for line in tree.lines.values()] == copies, seed
        assert all(side.image() == tree.top.image() for side in tree.sides.values())
        for side in tree.sides.values():
            follower.checkpoint(side.engine)
