"""Damaged records in a journal: hosts go on, copies stand truthfully, and what is lost comes again by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replicator.capture import damage, edges, follower, recovery, roles
from replicator.capture.service import GroupService
from replicator.capture.state import BITMAP, JOURNAL, OK, RESYNC
from replicator.core.errors import IntegrityError
from replicator.core.handshake import Action
from replicator.core.status import describe
from replicator.core.takeover import plan_takeover
from replicator.journal.page import (
    APPLIED_SEQ,
    DURABLE_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_LINK,
    EPOCH,
    HEAD_OFF,
    HEAD_SEQ,
    LINK_DOWN,
    LINK_STREAMING,
    TAIL_OFF,
    TAIL_SEQ,
    Doorbell,
    edge_slot,
)
from replicator.journal.ring import DATA_START
from tests.testing.fakedisk import PowerCut
from tests.testing.pairharness import Pair, Side, running_pair
from tests.testing.treeharness import CHAIN, FAN, running_tree
from tests.unit.replicator.capture.test_journalloss import renew

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def serve(side: Side, folder: Path) -> tuple[GroupService, Events]:
    events: Events = []

    def bell(slot: int) -> Doorbell:
        return Doorbell(folder / f"{side.name}.r.{slot}")

    service = GroupService(
        side.engine, Doorbell(folder / f"{side.name}.t"), bell, lambda what, **d: events.append((what, d))
    )
    return service, events


def rot(side: Side, seq: int, at: int = 100) -> int:
    """Flip a bit of record `seq` on the medium; returns the record's offset."""
    off = side.engine.journal.find(seq)
    data = side.disk._find("journal").data
    data[DATA_START + off % side.engine.journal.capacity + at] ^= 4
    return off


def words(side: Side) -> str:
    status = side.engine.status(side.engine.state.edges[0])
    return str(describe(status, {"session": "target", "linked": True})["word"])


def behind(pair: Pair, writes: int = 6) -> list[int]:
    """Let the primary write what the peer has not; returns the seqs."""
    return [pair.a.write(n * 4096, n + 1) for n in range(writes)]


# -- a primary, and a record that the peer has not ------------------------------------------------------------------


@pytest.mark.parametrize("at", [8, 100], ids=["header", "payload"])
def test_a_primary_goes_on_and_its_peer_follows_by_difference(pair: Pair, tmp_path: Path, at: int) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    off = rot(pair.a, seqs[2], at)
    assert service.journal_damaged(pair.a.engine.journal.find(seqs[0]), seqs[0]) == {"damaged": True}
    state = pair.a.engine.state
    assert state.mode == JOURNAL and not pair.a.engine.failed, "hosts go on, and it journals"
    assert state.edges[0].dropped and state.damaged == 1
    assert pair.a.page[TAIL_OFF] > off, "nothing damaged is kept"
    [(what, told)] = events
    assert what == "journal-damaged" and told["seq"] == seqs[2] and told["peers"] == [pair.b.node_id]
    pair.a.write(9 * 4096, 9)
    decision = pair.sync_up()
    assert decision.label == "diff-journal-lost" and not decision.full


def test_the_pool_is_durable_before_the_damaged_redo_record_is_done_without(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.a, tmp_path)
    seqs = behind(pair)
    pair.a.engine.flush()
    off = rot(pair.a, seqs[2])
    service.journal_damaged(off, seqs[2])
    pair.a.power_cut("drop")
    pair.a.start()
    assert [pair.a.image()[0][n * 4096] for n in range(6)] == [1, 2, 3, 4, 5, 6], "a flushed write is gone"


def test_what_reads_well_by_now_changes_nothing(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    off = pair.a.engine.journal.find(seqs[0])
    assert service.journal_damaged(off, seqs[0]) == {"damaged": False}
    assert service.journal_damaged(off + (1 << 40), seqs[0]) == {"damaged": False}
    assert not events and not pair.a.engine.state.edges[0].dropped


def test_a_journal_that_cannot_be_read_is_given_up(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    off = pair.a.engine.journal.find(seqs[1])
    pair.a.disk.fail_reads("journal", DATA_START + off, DATA_START + off + 4096)
    assert service.journal_damaged(off, seqs[1]) == {"damaged": True}
    service._full.go_over()
    assert [what for what, _ in events] == ["journal-damaged", "journal-lost"]
    assert pair.a.engine.state.journal_error and words(pair.a) == "NO-JOURNAL"


def test_a_peer_that_has_the_record_is_not_dropped(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    off = rot(pair.a, seqs[2])
    assert service.journal_damaged(off, seqs[2]) == {"damaged": True}
    assert not pair.a.engine.state.edges[0].dropped and events[0][1]["peers"] == []


def test_a_peer_without_which_nothing_may_exist_is_waited_for_until_it_is_copied_to(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.a, tmp_path)
    [edge] = pair.a.engine.state.edges
    edge.mode, pair.a.engine.state.policy.on_loss = "sync", "stall"
    edges.set_sync(pair.a.engine, edge, True)
    seqs = behind(pair)
    service.journal_damaged(rot(pair.a, seqs[2]), seqs[2])
    assert edge.dropped and edge.sync_on and pair.a.engine.waits
    assert pair.sync_up().label == "diff-journal-lost"


def test_a_journal_that_rots_again_and_again_is_given_up(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    for number in range(damage.MOST):
        if number:
            pair.sync_up()
        seqs = behind(pair)
        service.journal_damaged(rot(pair.a, seqs[2]), seqs[2])
    assert "damaged" in pair.a.engine.journal_lost
    service._full.go_over()
    assert pair.a.engine.state.mode == BITMAP and "damaged" in pair.a.engine.state.journal_error
    assert [what for what, _ in events] == ["journal-damaged"] * 3 + ["journal-lost"]


def test_the_same_record_counts_once(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    pair.a.engine.state.policy.retain = "applied"  # the tail stays
    off = rot(pair.a, seqs[2])
    for _ in range(3):
        service.journal_damaged(off, seqs[2])
    assert pair.a.engine.state.damaged == len(events) == 1


def test_a_checkpoint_that_finds_no_record_where_a_peer_stands(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    pair.ship(pair.a, pair.b, 2)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    rot(pair.a, seqs[2], 8)
    service.checkpoint()
    assert pair.a.engine.suspect is not None
    service._damaged.look(0.0)
    assert events[0][1]["seq"] == seqs[2] and pair.a.engine.state.edges[0].dropped
    assert pair.a.page[TAIL_OFF] == pair.a.page[HEAD_OFF]
    pair.sync_up()


def test_peers_that_hold_the_record_are_sent_on_in_order(tmp_path: Path) -> None:
    tree = running_tree(*FAN)
    a, near, far = tree.sides["a"], tree.sides["b"], tree.sides["c"]
    service, _ = serve(a, tmp_path)
    off = rot(a, a.write(0, 1))
    a.page[edge_slot(a.edge(near).slot, EDGE_DURABLE_OFF)] = a.page[HEAD_OFF]
    assert service.journal_damaged(off, a.engine.pos) == {"damaged": True}
    assert a.edge(far).dropped and not a.edge(near).dropped
    assert a.page[TAIL_OFF] == a.page[HEAD_OFF], "a start would come upon it else"


def test_a_relay_that_has_applied_it_feeds_by_difference(tmp_path: Path) -> None:
    tree = running_tree(*CHAIN)
    relay = tree.sides["b"]
    seq = tree.sides["a"].write(0, 1)
    tree.lines["b"].ship(tree.sides["a"], relay)
    service, events = serve(relay, tmp_path)
    off = rot(relay, seq)
    assert service.journal_damaged(off, seq) == {"damaged": True}
    assert not events and relay.engine.status()["damaged_at"] == seq, "its own volumes lack the record"
    rot(relay, seq)
    relay.engine.damaged = None
    follower.apply_all(relay.engine)
    rot(relay, seq)
    assert service.journal_damaged(off, seq) == {"damaged": True}
    assert events[0][0] == "journal-damaged" and relay.edge(tree.sides["c"]).dropped and not relay.engine.failed


def test_damage_that_somebody_comes_upon_who_lists_the_records_is_seen_to(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    seqs = behind(pair)
    rot(pair.a, seqs[2], 8)
    with pytest.raises(IntegrityError, match=f"record {seqs[2]}"):
        service.records(0, 100)
    assert events[0][0] == "journal-damaged" and pair.a.engine.state.edges[0].dropped


@pytest.mark.parametrize("end", ["kill", "power"])
def test_a_primary_may_die_at_any_step_of_it(tmp_path: Path, end: str) -> None:
    cut, done = 1, False
    while not done:
        pair = running_pair(seed=cut)
        service, _ = serve(pair.a, tmp_path)
        seqs = behind(pair)
        pair.a.engine.flush()
        off = rot(pair.a, seqs[2])
        pair.a.disk.cut_at(pair.a.disk.operations + cut)
        try:
            service.journal_damaged(off, seqs[2])
            done = True
        except PowerCut:
            pass
        pair.a.disk.cut_at(None)
        synced = pair.a.engine.journal.super.redo_seq > seqs[-1]  # before, power loss and damage are two faults at once
        if end == "kill":
            pair.a.kill()
        else:
            pair.a.power_cut()
        pair.a.start()
        flushed = [pair.a.image()[0][n * 4096] for n in range(6)]
        assert flushed == [1, 2, 3, 4, 5, 6] or (end == "power" and not synced), f"after cut {cut}: {flushed}"
        pair.sync_up()
        cut += 1
    assert cut > 5


# -- a primary that starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power"])
def test_damage_that_only_a_peer_needs_is_passed_over_at_the_start(pair: Pair, power: bool) -> None:
    seqs = behind(pair)
    follower.checkpoint(pair.a.engine)  # the journal is kept for the peer alone
    later = pair.a.write(40960, 77)
    pair.a.engine.flush()
    rot(pair.a, seqs[2])
    if power:
        pair.a.power_cut("drop")
    else:
        pair.a.kill()
    pair.a.start()
    assert pair.a.image()[0][40960] == 77, "a flushed write behind the damage is gone"
    assert pair.a.page[TAIL_SEQ] > seqs[-1] and pair.a.page[HEAD_SEQ] >= later
    assert pair.a.engine.state.damaged == 1
    assert pair.sync_up().action is Action.COPY


def test_a_killed_primary_whose_volumes_hold_everything_opens_and_counts_differences(pair: Pair) -> None:
    seqs = behind(pair)
    rot(pair.a, seqs[2])
    pair.a.kill()
    pair.a.start()
    state = pair.a.engine.state
    assert state.mode == BITMAP and not state.journal_error and state.damaged == 1
    pair.a.write(40960, 77)
    decision = pair.sync_up()
    assert decision.label == "diff-journal-lost" and state.mode == JOURNAL
    pair.a.power_cut("drop")
    pair.a.start()


def test_a_killed_primary_that_may_not_go_on_alone_does_not_open_by_itself(pair: Pair) -> None:
    [edge] = pair.a.engine.state.edges
    edge.mode, pair.a.engine.state.policy.on_loss = "sync", "stall"
    edges.set_sync(pair.a.engine, edge, True)
    rot(pair.a, behind(pair)[2])
    pair.a.kill()
    with pytest.raises(recovery.JournalUnreadable) as found:
        pair.a.start()
    assert found.value.intact, "the operator need not give anything up"


def test_what_a_former_epoch_left_at_the_redo_point_is_no_record(pair: Pair) -> None:
    """Records behind one that power loss took lie where those of the next epoch will, with the same numbers."""
    a = pair.a
    follower.checkpoint(a.engine)
    before = a.write(0, 1)
    a.engine.flush()
    lost = a.engine.zero(0, 65536, 4096, True)  # as long as the record of an epoch
    for fill in (3, 5, 6, 7):
        a.write(20480, fill)
    at = DATA_START + a.engine.journal.find(lost) % a.engine.journal.capacity
    a.power_cut("keep")
    a.disk._find("journal").data[at : at + 64] = bytes(64)
    a.start()
    assert a.engine.pos == before
    a.write(20480, 99)
    a.engine.flush()
    follower.checkpoint(a.engine)
    assert a.engine.journal.super.redo_seq == lost + 2 and a.page[TAIL_SEQ] <= before
    rot(a, before)
    a.power_cut("drop")
    a.start()
    assert a.image()[0][20480] == 99, "redo took a dead history for the present one"
    assert a.engine.pos == lost + 1 and a.page[EPOCH] == a.engine.epoch


# -- a copy that has not applied the record -------------------------------------------------------------------------


def streaming(side: Side, up: bool = True) -> None:
    slot = side.engine.state.edges[0].slot
    side.page[edge_slot(slot, EDGE_LINK)] = LINK_STREAMING if up else LINK_DOWN


def stands(pair: Pair, damaged: int = 3) -> list[int]:
    """Let the copy receive records of which one rots before it is applied."""
    seqs = behind(pair)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    rot(pair.b, seqs[damaged])
    with pytest.raises(IntegrityError, match="damaged"):
        follower.apply_all(pair.b.engine)
    return seqs


def mend(service: GroupService) -> None:
    now = 0.0
    for _ in range(8):
        service._damaged.look(now)
        now += 0.6


def test_a_copy_applies_what_comes_before_the_damage_and_says_where_it_stands(pair: Pair) -> None:
    seqs = stands(pair)
    assert pair.b.page[APPLIED_SEQ] == seqs[2]
    assert pair.b.engine.status()["damaged_at"] == seqs[3]
    assert words(pair.b) == "DAMAGED"
    plan = plan_takeover(pair.b.engine.status(), {}, force=True)
    assert not plan.allowed and "journal replace g" in plan.way_out


def test_a_copy_gets_what_it_lost_again_record_by_record(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.b, tmp_path)
    seqs = stands(pair)
    streaming(pair.b)
    mend(service)
    engine = pair.b.engine
    assert not engine.failed and engine.damaged is None and engine.state.copy == OK
    assert engine.pos == engine.page[DURABLE_SEQ] == seqs[2]
    assert events == [("received-again", events[0][1])] and events[0][1]["dropped"] == 3
    decision = pair.sync_up()
    assert decision.action is Action.STREAM and pair.copies == 1
    assert not engine.status()["damaged_at"]


def test_where_the_source_has_it_no_more_the_copy_follows_by_difference(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.b, tmp_path)
    stands(pair)
    follower.checkpoint(pair.a.engine)
    streaming(pair.b)
    mend(service)
    decision = pair.sync_up()
    assert decision.label == "diff-journal-lost" and not decision.full


def test_nothing_is_given_up_while_nobody_could_send_it_again(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.b, tmp_path)
    seqs = stands(pair)
    streaming(pair.b, False)
    mend(service)
    assert pair.b.engine.pos == seqs[-1] and not events and not pair.b.engine.failed


def test_a_link_that_is_made_does_not_fail_for_what_cannot_be_applied(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.b, tmp_path)
    seqs = stands(pair)
    streaming(pair.b, False)
    assert service.status(settle=True, peer=pair.a.node_id)["pos"] == seqs[2]
    assert events[0][0] == "received-again"
    assert pair.sync_up().action is Action.STREAM


def test_nobody_appends_while_the_journal_is_cut(pair: Pair, tmp_path: Path) -> None:
    """The replicator is told first, and has the time to notice."""
    service, _ = serve(pair.b, tmp_path)
    seqs = stands(pair)
    streaming(pair.b)
    before = pair.b.engine.status()["incarnation"]
    service._damaged.look(0.0)
    service._damaged.look(damage.CONFIRM_S)
    assert pair.b.engine.failed and pair.b.engine.status()["incarnation"] > before
    service._damaged.look(damage.CONFIRM_S + 0.5)
    assert pair.b.engine.pos == seqs[-1], "cut while a replicator may still append"


def test_a_copy_that_may_hold_lost_records_in_part_is_inconsistent_until_they_have_come(
    pair: Pair, tmp_path: Path
) -> None:
    seqs = behind(pair)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    service, _ = serve(pair.b, tmp_path)
    pair.b.engine.applied_in_part = seqs[-1]  # a former life was applying them
    rot(pair.b, seqs[3])
    with pytest.raises(IntegrityError):
        follower.apply_all(pair.b.engine)
    streaming(pair.b)
    mend(service)
    state = pair.b.engine.state
    assert state.copy == RESYNC and state.torn_to == seqs[-1]
    assert pair.sync_up().label == "resend-lost-journal"


@pytest.mark.parametrize("fate", ["drop", "keep"])
def test_power_loss_after_the_cut(pair: Pair, tmp_path: Path, fate: Any) -> None:
    service, _ = serve(pair.b, tmp_path)
    seqs = stands(pair)
    streaming(pair.b)
    mend(service)
    pair.b.power_cut(fate)
    pair.b.start()
    assert pair.b.engine.pos == seqs[2]
    pair.sync_up()


@pytest.mark.parametrize("end", ["kill", "power"])
def test_a_copy_may_die_at_any_step_of_it(tmp_path: Path, end: str) -> None:
    cut, done = 1, False
    while not done:
        pair = running_pair(seed=cut)
        service, _ = serve(pair.b, tmp_path)
        seqs = stands(pair)
        streaming(pair.b)
        pair.b.disk.cut_at(pair.b.disk.operations + cut)
        try:
            mend(service)
            done = True
        except PowerCut:
            pass
        pair.b.disk.cut_at(None)
        if end == "kill":
            pair.b.kill()
        else:
            pair.b.power_cut()
        engine = pair.b.start()
        if engine.state.journal_error:
            renew(pair.b)  # a start that comes upon damage asks for that
        assert engine.pos <= seqs[2] or engine.pos == seqs[-1]
        pair.sync_up()
        assert pair.b.image() == pair.a.image()
        cut += 1
    assert cut > 3


def test_a_copy_whose_source_is_lost_takes_over_after_it_gave_up_the_rest(pair: Pair, tmp_path: Path) -> None:
    seqs = stands(pair)
    with pytest.raises(IntegrityError, match="damaged"):
        roles.promote(pair.b.engine)
    streaming(pair.b, False)
    assert renew(pair.b) == 3
    roles.promote(pair.b.engine)
    assert pair.b.engine.state.hist[-1][1] == seqs[2]
