"""Changes of role and mode: durable before they act, whole or not at all."""

from __future__ import annotations

import pytest

from replicator.capture import copier, copies, edges, follower, roles
from replicator.capture.bitmaps import TODO
from replicator.capture.state import (
    BITMAP,
    DIVERGED,
    FRESH,
    JOURNAL,
    OK,
    PRIMARY,
    RESYNC,
    SECONDARY,
    UNTRACKED,
    StateFile,
)
from replicator.core.errors import BadInput, Refused
from replicator.core.handshake import Action
from replicator.core.records import HEADER_BYTES, Kind
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, TAIL_OFF, TAIL_SEQ
from tests.testing.pairharness import PEER_DURABLE_OFF, PEER_RECEIVED_SEQ, Pair, Side, running_pair


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def on_disk(side: Side):  # type: ignore[no-untyped-def]
    """The state as a new process would find it."""
    return StateFile(side.disk.open("state")).load()  # type: ignore[arg-type]


def kinds_after(side: Side, seq: int) -> list[str]:
    journal, last = side.engine.journal, side.page[HEAD_SEQ]
    return [Kind(journal.header_at(journal.find(s)).kind).name for s in range(seq + 1, last + 1)]


# -- arm, disarm ----------------------------------------------------------------------------------------------------


def test_arming_begins_a_history_and_is_harmless_twice() -> None:
    side = Side("a")
    side.create(PRIMARY)
    first = roles.arm(side.engine, "b" * 32)
    assert kinds_after(side, 0) == ["EPOCH"]
    assert roles.arm(side.engine, "b" * 32) == first
    assert on_disk(side).mode == JOURNAL


def test_a_secondary_that_was_never_copied_to_cannot_be_armed(pair: Pair) -> None:
    roles.attach(pair.b.engine, pair.b.edge(pair.a), 100, None, 9 << 24, [[9 << 24, 90]], {}, "x", True)
    with pytest.raises(Refused, match="nothing consistent"):
        roles.arm(pair.b.engine, "c" * 32)


def test_the_peers_positions_of_a_former_pair_are_forgotten(pair: Pair) -> None:
    pair.a.page[PEER_RECEIVED_SEQ] = 10**6
    roles.disarm(pair.a.engine, pair.b.node_id)
    roles.arm(pair.a.engine, pair.b.node_id)
    assert pair.a.page[PEER_RECEIVED_SEQ] == 0


def test_disarming_a_consistent_copy_makes_it_a_group_of_its_own(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    roles.disarm(pair.b.engine, pair.a.node_id)
    assert (pair.b.engine.state.role, pair.b.engine.state.mode) == (PRIMARY, UNTRACKED)
    assert pair.b.image() == pair.a.image()
    pair.b.write(0, 2)


def test_an_inconsistent_copy_is_not_disarmed(pair: Pair) -> None:
    roles.overflow(pair.a.engine)
    pair.meet()
    with pytest.raises(Refused, match="resync"):
        roles.disarm(pair.b.engine, pair.a.node_id)


# -- copies ---------------------------------------------------------------------------------------------------------


def test_a_wrong_bitmap_from_the_peer_changes_nothing(pair: Pair) -> None:
    pair.a.write(0, 1)
    roles.overflow(pair.a.engine)
    pair.meet()
    before = (pair.a.engine.status(), bytes(pair.a.maps[0].buf))
    for wrong in ({}, {0: b"\0"}, {0: b"\0", 1: b"\0" * 9}):
        with pytest.raises(BadInput):
            copies.begin_copy(pair.a.engine, pair.a.edge(pair.b), pair.b.engine.state.floor, wrong, "x")
    assert (pair.a.engine.status(), bytes(pair.a.maps[0].buf)) == before


def test_a_wrong_copy_list_from_the_peer_changes_nothing(pair: Pair) -> None:
    before = pair.b.engine.status()
    with pytest.raises(BadInput):
        roles.attach(
            pair.b.engine,
            pair.b.edge(pair.a),
            100,
            3,
            pair.b.engine.epoch,
            pair.b.engine.state.hist,
            {0: b""},
            "x",
            False,
        )
    assert pair.b.engine.status() == before


def test_a_source_killed_in_begin_copy_does_not_go_on_with_half_a_list(pair: Pair) -> None:
    pair.a.write(0, 1)
    roles.overflow(pair.a.engine)
    pair.a.write(64 << 10, 2)
    pair.meet()
    copier.copy_some(pair.a.engine, 1)
    old = pair.a.edge(pair.b).copy_id
    syncs: list[str] = []

    class Killed(BaseException):
        pass

    def kill(op: str, file: str, *_: int) -> None:
        syncs.append(file)
        if file == "bitmap0":
            raise Killed

    pair.a.disk.trace = kill
    with pytest.raises(Killed):
        copies.begin_copy(pair.a.engine, pair.a.edge(pair.b), None, None, "new")
    pair.a.disk.trace = None
    pair.a.kill()
    pair.a.start()
    assert old and pair.a.edge(pair.b).copy_id != old, "the list in the map is not that copy's any more"
    assert pair.meet().action is Action.COPY


def test_a_copy_degrades_a_synchronous_group_durably_before_a_waiting_write_may_pass(pair: Pair) -> None:
    edges.set_policy(pair.a.engine, {"mode": "sync"}, "")
    edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)
    seen: list[bool] = []
    pair.a.disk.trace = lambda op, file, *_: seen.append(pair.a.engine.state.sync_on)
    copies.begin_copy(pair.a.engine, pair.a.edge(pair.b), None, None, "x")
    assert all(seen)
    assert on_disk(pair.a).degraded
    assert not pair.a.engine.state.sync_on


def test_an_attach_makes_the_pool_durable_before_the_journal_is_given_up(pair: Pair) -> None:
    pair.a.write(0, 7)
    pair.flow(pair.a, pair.b)  # applied on b, its pool not synced
    roles.overflow(pair.a.engine)
    pair.a.write(64 << 10, 8)
    decision = pair.meet()
    assert decision.c >= 5, "the write counts as common: it is not copied again"
    pair.b.power_cut("drop")
    assert pair.b.image()[0][0] == 7
    pair.b.start()
    pair.sync_up()


def test_an_attach_applies_what_the_common_position_counts_on(pair: Pair) -> None:
    seq = pair.a.write(0, 7)
    pair.ship(pair.a, pair.b)  # received, not applied
    masks = {i: bytes((m.blocks + 7) // 8) for i, m in enumerate(pair.b.engine.bitmaps.maps)}
    roles.attach(
        pair.b.engine, pair.b.edge(pair.a), seq, seq, pair.a.engine.epoch, pair.a.engine.state.hist, masks, "x", False
    )
    assert pair.b.image()[0][0] == 7


def test_an_attach_is_inconsistent_before_anything_is_given_up(pair: Pair) -> None:
    order: list[tuple[str, str]] = []
    pair.b.disk.trace = lambda op, file, *_: order.append((file, on_disk(pair.b).copy))
    roles.attach(
        pair.b.engine, pair.b.edge(pair.a), 100, None, pair.b.engine.epoch, pair.b.engine.state.hist, {}, "x", True
    )
    journal_writes = [copy for file, copy in order if file == "journal"]
    assert journal_writes[-1] == RESYNC


def test_an_attach_cut_in_two_is_finished_at_start(pair: Pair) -> None:
    class Killed(BaseException):
        pass

    seen: list[str] = []

    def kill(op: str, file: str, *_: int) -> None:
        seen.append(file)
        if file == "journal" and "state" in seen:
            raise Killed

    pair.b.disk.trace = kill
    with pytest.raises(Killed):
        roles.attach(pair.b.engine, pair.b.edge(pair.a), 100, None, 9 << 24, [[9 << 24, 90]], {}, "x", True)
    pair.b.disk.trace = None
    pair.b.kill()
    state = pair.b.start().state
    assert (state.copy, state.copy_id, state.hist, pair.b.engine.pos) == (RESYNC, "x", [[9 << 24, 90]], 100)
    assert state.attaching is None


def test_a_primary_is_never_copied_to(pair: Pair) -> None:
    with pytest.raises(Refused):
        roles.attach(pair.a.engine, pair.a.edge(pair.b), 1, None, 1, [], {}, "x", True)


# -- overflow -------------------------------------------------------------------------------------------------------


def test_the_journal_is_given_up_only_when_the_pool_holds_everything_durably(pair: Pair) -> None:
    pair.a.write(0, 5)
    roles.overflow(pair.a.engine)
    assert on_disk(pair.a).mode == BITMAP
    pair.a.power_cut("drop")
    assert pair.a.image()[0][0] == 5


def test_the_journal_is_not_given_up_under_a_write(pair: Pair) -> None:
    pair.a.engine._inflight.add(5)
    assert not roles.overflow(pair.a.engine)
    assert pair.a.engine.state.mode == JOURNAL
    pair.a.engine._inflight.clear()
    assert roles.overflow(pair.a.engine)


def test_a_synchronous_group_is_degraded_durably_by_an_overflow(pair: Pair) -> None:
    edges.set_policy(pair.a.engine, {"mode": "sync"}, "")
    edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)
    seen: list[bool] = []
    pair.a.disk.trace = lambda op, file, *_: seen.append(pair.a.engine.state.sync_on) if file == "state" else None
    roles.overflow(pair.a.engine)
    assert all(seen)
    assert on_disk(pair.a).degraded


def test_numbers_are_not_given_out_twice_after_power_loss_in_bitmap_mode(pair: Pair) -> None:
    roles.overflow(pair.a.engine)
    pair.a.write(0, 1)
    last = pair.a.write(0, 2)
    pair.a.power_cut()
    pair.a.start()
    assert pair.a.write(0, 3) > last
    assert pair.sync_up().action is Action.COPY


# -- sync -----------------------------------------------------------------------------------------------------------


def test_degraded_is_durable_before_any_write_is_answered_alone(pair: Pair) -> None:
    edges.set_policy(pair.a.engine, {"mode": "sync"}, "")
    edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)
    seen: list[bool] = []
    pair.a.disk.trace = lambda op, file, *_: seen.append(pair.a.engine.state.sync_on)
    assert edges.degrade(pair.a.engine, pair.a.edge(pair.b))
    assert seen == [True, True], "neither before the write of the state nor before its sync"
    assert on_disk(pair.a).degraded
    assert not edges.degrade(pair.a.engine, pair.a.edge(pair.b))


def test_sync_comes_on_only_where_it_is_wanted_and_possible(pair: Pair) -> None:
    assert not edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)["sync_on"], "an asynchronous group"
    edges.set_policy(pair.a.engine, {"mode": "sync"}, "")
    assert edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)["sync_on"]
    assert not edges.set_sync(pair.a.engine, pair.a.edge(pair.b), False)["sync_on"]
    assert pair.a.engine.state.degraded
    roles.overflow(pair.a.engine)
    assert not edges.set_sync(pair.a.engine, pair.a.edge(pair.b), True)["sync_on"]


# -- promote, demote ------------------------------------------------------------------------------------------------


def test_a_promotion_applies_everything_received_and_opens_an_epoch(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    base = pair.b.page[HEAD_SEQ]
    opened = roles.promote(pair.b.engine)
    assert opened == {"epoch": pair.b.engine.epoch, "base": base}
    assert kinds_after(pair.b, base) == ["EPOCH"]
    assert pair.b.image()[0][0] == 1
    assert on_disk(pair.b).role == PRIMARY
    assert roles.promote(pair.b.engine)["epoch"] == opened["epoch"], "harmless twice"


@pytest.mark.parametrize("copy", [FRESH, RESYNC])
def test_an_inconsistent_copy_is_never_promoted(pair: Pair, copy: str) -> None:
    pair.b.engine.state.copy = copy
    for force in (False, True):
        with pytest.raises(Refused):
            roles.promote(pair.b.engine, accept_diverged=force)
    assert pair.b.engine.state.role == SECONDARY


def test_a_former_primary_that_was_replaced_is_promoted_only_by_force(pair: Pair) -> None:
    roles.demote(pair.a.engine, diverged=True)
    assert on_disk(pair.a).copy == DIVERGED
    with pytest.raises(Refused):
        roles.promote(pair.a.engine)
    roles.promote(pair.a.engine, accept_diverged=True)
    pair.a.write(0, 1)


def test_a_promotion_with_a_full_journal_makes_room_for_its_epoch(pair: Pair) -> None:
    journal, page = pair.b.engine.journal, pair.b.page
    while (free := journal.capacity - (page[HEAD_OFF] - page[TAIL_OFF])) > 2 * HEADER_BYTES:
        pair.a.write(0, 1, length=min(64 << 10, free - HEADER_BYTES))
        pair.ship(pair.a, pair.b)
        pair.a.page[PEER_DURABLE_OFF] = pair.a.page[HEAD_OFF]
        follower.checkpoint(pair.a.engine)
    assert not journal.room_for(2 * HEADER_BYTES)
    base = pair.b.page[HEAD_SEQ]
    roles.promote(pair.b.engine)
    assert kinds_after(pair.b, max(base, pair.b.page[TAIL_SEQ] - 1)) == ["EPOCH"]


def test_a_demotion_keeps_everything_that_was_acknowledged(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    roles.demote(pair.a.engine)
    pos = pair.a.engine.pos
    pair.a.power_cut("drop")
    pair.a.start()
    assert (pair.a.engine.state.role, pair.a.engine.pos) == (SECONDARY, pos)
    assert pair.a.image()[0][0] == 1


def test_a_demotion_is_refused_when_hosts_have_gone_on_since(pair: Pair) -> None:
    seq = pair.a.write(0, 1)
    pair.a.write(0, 2)
    with pytest.raises(Refused, match="gone on"):
        roles.demote(pair.a.engine, upto=seq)
    assert pair.a.engine.state.role == PRIMARY
    roles.demote(pair.a.engine, upto=seq + 1)


def test_a_demoted_group_that_waits_for_a_copy_lists_its_own_changes(pair: Pair) -> None:
    for block in (0, 2):
        pair.a.write(block << 16, 9)
    roles.promote(pair.b.engine)
    pair.b.write(3 << 16, 8)
    decision = pair.sync_up(discard=pair.a.node_id)
    assert decision.label == "diff-discard"
    assert decision.lost_records == 2
    assert pair.a.engine.state.copy == OK
    assert not pair.a.engine.bitmaps.maps[0].count(TODO)


def test_a_copy_knows_of_the_host_writes_that_it_brought_without_their_records(pair: Pair) -> None:
    """Else another history would take it for one that holds nothing of hosts, and overwrite it unasked."""
    pair.a.write(0, 1)
    roles.overflow(pair.a.engine)
    pair.a.write(0, 2)
    last = pair.a.engine.status()["last_write"]
    assert pair.sync_up().label == "diff-journal-lost"
    assert last <= pair.b.engine.status()["last_write"] <= pair.b.page[HEAD_SEQ]


def test_what_the_source_says_of_its_last_host_write_bounds_that_of_the_copy(pair: Pair) -> None:
    step = (100, None, 9 << 24, [[9 << 24, 90]], {}, "copy", True)
    roles.attach(pair.b.engine, pair.b.edge(pair.a), *step, last_write=95)
    assert pair.b.engine.status()["last_write"] == 95
    roles.attach(pair.b.engine, pair.b.edge(pair.a), *step)
    assert pair.b.engine.status()["last_write"] == 100
