"""A primary whose journal cannot be read at start: what it is taken for, and the way out of it."""

from __future__ import annotations

import random

import pytest

from replicator.capture import follower, journalloss, recovery, roles
from replicator.capture.recovery import JournalUnreadable
from replicator.capture.state import BITMAP, JOURNAL, OK, PRIMARY, RESYNC, StateFile
from replicator.core.handshake import Action
from replicator.journal import volumes
from replicator.journal.ring import DATA_START
from tests.testing.pairharness import JOURNAL_BYTES, Pair, Side, running_pair


def destroy(side: Side) -> None:
    """Nothing of the journal's file makes sense any more."""
    file = side.disk._find("journal")
    file.data[:] = b"\xa5" * len(file.data)


def give_up(side: Side) -> None:
    side._live(recovery.open_engine(side.parts(), side.pool.unclean(), give_up_journal=True))


def renew(side: Side) -> None:
    side.disk.create("new", JOURNAL_BYTES)
    file = side.disk.open("new")
    volumes.prepare(file, 1, side.engine.journal.super, JOURNAL_BYTES - DATA_START)  # type: ignore[arg-type]
    journalloss.replace_journal(side.engine, file, 1, JOURNAL_BYTES - DATA_START)  # type: ignore[arg-type]


def written(pair: Pair) -> None:
    """Some writes that B has, and some that it has not."""
    for n in range(4):
        pair.a.write(n * 4096, n + 1)
    pair.ship(pair.a, pair.b)
    follower.apply_all(pair.b.engine)
    for n in range(3):
        pair.a.write((8 + n) * 4096, n + 101)


def test_after_a_kill_the_volumes_are_known_to_be_whole_and_the_copy_follows_by_difference():
    pair = running_pair()
    written(pair)
    before, image = pair.a.engine.pos, pair.a.image()
    pair.a.kill()
    destroy(pair.a)
    for _ in range(2):  # the second start says the same
        with pytest.raises(JournalUnreadable) as found:
            pair.a.start()
        assert found.value.intact and found.value.role == PRIMARY
    give_up(pair.a)
    state = pair.a.engine.state
    assert (state.role, state.mode, pair.a.engine.pos) == (PRIMARY, BITMAP, before)
    assert state.journal_error and pair.a.image() == image
    assert StateFile(pair.a.disk.open("state")).load().mode == BITMAP  # type: ignore[arg-type]
    renew(pair.a)
    pair.a.write(0, 77)
    decision = pair.sync_up()
    assert (decision.label, decision.full) == ("diff-journal-lost", False)


def test_what_was_flushed_is_on_stable_storage_before_the_journal_is_given_up():
    pair = running_pair()
    written(pair)
    pair.a.engine.flush()
    image = pair.a.image()
    pair.a.kill()
    destroy(pair.a)
    give_up(pair.a)
    pair.a.power_cut("drop")
    same = pair.a.image() == image  # apart: a report of how they differ takes minutes
    assert same


def test_after_a_stop_in_order_and_a_reboot_the_volumes_are_whole_and_the_position_is_not_known():
    pair = running_pair()
    written(pair)
    before, image = pair.a.engine.pos, pair.a.image()
    pair.a.stop()
    pair.a.power_cut("drop")
    destroy(pair.a)
    with pytest.raises(JournalUnreadable) as found:
        pair.a.start()
    assert found.value.intact
    give_up(pair.a)
    assert pair.a.engine.pos >= before + 1000 and pair.a.image() == image
    renew(pair.a)
    decision = pair.sync_up()
    assert (decision.label, decision.full) == ("diff-journal-lost", False)


def test_after_a_power_loss_nobody_knows_and_every_block_is_copied():
    pair = running_pair()
    written(pair)
    pair.a.engine.flush()
    held = pair.b.engine.pos
    pair.a.power_cut("drop")
    destroy(pair.a)
    for _ in range(2):
        with pytest.raises(JournalUnreadable) as found:
            pair.a.start()
        assert not found.value.intact
    give_up(pair.a)
    assert pair.a.engine.pos > held and pair.a.engine.state.unclean
    renew(pair.a)
    decision = pair.sync_up()
    assert decision.full and decision.action is Action.COPY
    assert pair.a.engine.state.hist[-1][1] >= pair.a.engine.state.hist[0][1] + 1000


def test_a_peer_that_took_over_meanwhile_stays_primary_and_nothing_is_given_up_unasked():
    pair = running_pair()
    written(pair)
    pair.a.power_cut("drop")
    destroy(pair.a)
    roles.promote(pair.b.engine)
    pair.b.write(0, 200)
    give_up(pair.a)
    renew(pair.a)
    assert pair.meet().label == "former-primary"
    assert pair.a.engine.state.role != PRIMARY
    assert pair.sync_up(discard=pair.a.node_id).lead == pair.b.node_id


def test_a_synchronous_copy_is_not_asked_to_lead_over_one_that_degraded():
    """B holds less than A was told to answer; B's position must not count as more than A's, whose own is lost."""
    pair = running_pair()
    written(pair)
    pair.a.edge(pair.b).mode = "sync"
    pair.a.engine.save()
    pair.a.stop()
    pair.a.power_cut("drop")
    destroy(pair.a)
    give_up(pair.a)
    renew(pair.a)
    decision = pair.meet()
    assert (decision.action, decision.lead) == (Action.COPY, pair.a.node_id)


def test_one_that_journals_for_nobody_is_opened_and_says_so():
    side = Side("a")
    side.create(PRIMARY)
    side.write(0, 7)
    side.kill()
    destroy(side)
    side.start()
    assert side.engine.state.journal_error and side.image()[0][:2] == b"\7\7"
    side.write(4096, 8)
    renew(side)
    assert not side.engine.state.journal_error


def test_one_that_counts_differences_is_opened_and_goes_on_counting():
    pair = running_pair()
    written(pair)
    roles.park(pair.a.engine, "full")
    assert roles.overflow(pair.a.engine)
    roles.unpark(pair.a.engine, "full")
    pair.a.write(0, 9)
    pair.a.power_cut("keep")
    destroy(pair.a)
    pair.a.start()
    assert (pair.a.engine.state.mode, bool(pair.a.engine.state.journal_error)) == (BITMAP, True)
    renew(pair.a)
    assert pair.sync_up().action is Action.COPY


def test_a_copy_in_a_later_epoch_that_lost_its_journal_with_its_power_says_a_position_that_can_be():
    pair = running_pair()
    written(pair)
    pair.ship(pair.a, pair.b)
    roles.demote(pair.a.engine)
    roles.promote(pair.b.engine)
    pair.sync_up()
    pair.b.write(0, 5)
    pair.ship(pair.b, pair.a)
    pair.a.power_cut("drop")
    destroy(pair.a)
    pair.a.start()
    assert pair.a.engine.state.copy == RESYNC
    renew(pair.a)
    assert pair.a.engine.pos >= pair.a.engine.state.hist[-1][1]
    assert pair.sync_up().action is Action.COPY
    assert pair.a.engine.state.copy == OK


def test_a_copy_in_the_middle_of_an_attach_begins_anew():
    pair = running_pair()
    written(pair)
    side = pair.b
    side.engine.journal.reset = _dies  # type: ignore[method-assign]
    pair.a.engine.state.unclean = pair.a.edge(side).unclean = True
    with pytest.raises(OSError, match="dies"):
        pair.sync_up()
    assert side.engine.state.attaching
    side.kill()
    destroy(side)
    with pytest.raises(JournalUnreadable) as found:
        side.start()
    assert not found.value.intact
    give_up(side)
    renew(side)
    assert pair.sync_up().action is Action.COPY


def _dies(seq: int, epoch: int) -> None:
    raise OSError("dies")


def test_any_fate_of_the_disk_leaves_what_was_flushed_or_is_said_not_to():
    rng = random.Random(1)
    for seed in range(12):
        pair = running_pair(seed=seed)
        written(pair)
        flushed = rng.random() < 0.5
        if flushed:
            pair.a.engine.flush()
        image = pair.a.image()
        if power := rng.random() < 0.5:
            pair.a.power_cut()
        else:
            pair.a.kill()
        destroy(pair.a)
        with pytest.raises(JournalUnreadable) as found:
            pair.a.start()
        assert found.value.intact is not power
        give_up(pair.a)
        if not power:
            assert pair.a.image() == image
        assert pair.a.engine.state.mode != JOURNAL and not any(e.sync_on for e in pair.a.engine.state.edges)
        renew(pair.a)
        pair.sync_up()


def test_the_tests_of_this_file_bite(monkeypatch: pytest.MonkeyPatch):
    """A pool that is not synced before the journal is given up; a position that may have been given out already."""
    with monkeypatch.context() as bug:
        bug.setattr(recovery.GroupEngine, "sync_pool", lambda self: None)
        with pytest.raises(AssertionError):
            test_what_was_flushed_is_on_stable_storage_before_the_journal_is_given_up()
    with monkeypatch.context() as bug:
        bug.setattr(recovery, "_last_known", lambda state: -recovery.LEAP + 1)
        with pytest.raises((AssertionError, ValueError)):
            test_a_synchronous_copy_is_not_asked_to_lead_over_one_that_degraded()
