"""A node that comes back as an older state of itself, out of a backup: nothing is overwritten unless somebody says so.

Whatever the backup is of (stopped in order, or running) and whatever the node did since: the seq that it gives out
again are of another epoch, so the copy never takes them for what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.capture import edges, follower, roles
from replicator.capture.rewind import rewind
from replicator.capture.state import OK, PRIMARY, SECONDARY
from replicator.core.handshake import Action
from replicator.journal.page import SLOTS
from tests.testing.pairharness import Pair, Saved, Side, running_pair


def reboot(side: Side) -> None:
    """An orderly stop of the machine, and the process again."""
    side.stop()
    new_boot(side)
    side.start()


def new_boot(side: Side) -> None:
    side.page_bytes = bytearray(SLOTS * 8)
    side.boot += 1


def backup(side: Side) -> Saved:
    """What a stopped node is; it goes on in the same boot."""
    side.stop()
    saved = side.save()
    side.start()
    return saved


def put_back(side: Side, saved: Saved) -> None:
    """The node as it was, on a machine that has booted since."""
    boot = side.boot
    side.kill()
    side.restore(saved)
    side.boot = boot
    new_boot(side)
    side.start()


def write_and_sync(pair: Pair, first: int, count: int = 5) -> None:
    for n in range(first, first + count):
        pair.a.write(n * 4096, n + 1)
    pair.sync_up()


def again(side: Side, count: int) -> None:
    """Hosts write something else on the node that was set back."""
    for n in range(count):
        side.write((20 + n) * 4096, 99)


@pytest.fixture
def pair() -> Pair:
    found = running_pair()
    write_and_sync(found, 0)
    return found


def nothing_moves(pair: Pair, label: str) -> None:
    ours, theirs = pair.a.image(), pair.b.image()
    kept, held = pair.a.engine.status()["journal"]["first_seq"], pair.b.engine.pos
    decision = pair.meet()
    assert (decision.label, decision.action) == (label, Action.REFUSE)
    assert pair.a.image() == ours and pair.b.image() == theirs and pair.b.engine.state.copy == OK
    assert pair.a.engine.status()["journal"]["first_seq"] == kept and pair.b.engine.pos == held


def test_a_primary_that_was_set_back_is_refused_and_neither_side_changes(pair: Pair) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    newest = pair.b.image()
    put_back(pair.a, saved)
    assert pair.a.image() != newest
    nothing_moves(pair, "set-back")


@pytest.mark.parametrize("more", [1, 3, 5, 30])
def test_one_that_hosts_wrote_to_since_never_streams_into_what_the_copy_holds(pair: Pair, more: int) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    put_back(pair.a, saved)
    again(pair.a, more)
    nothing_moves(pair, "set-back")


@pytest.mark.parametrize("more", [1, 5, 30])
def test_a_past_in_which_it_had_begun_an_epoch_is_told_from_one_that_begins_there_again(pair: Pair, more: int) -> None:
    pair.a.stop()
    saved = pair.a.save()
    new_boot(pair.a)
    pair.a.start()
    pair.a.now_ns += 10**9 * 60
    write_and_sync(pair, 5)
    later = pair.a.now_ns
    put_back(pair.a, saved)
    pair.a.now_ns = max(pair.a.now_ns, later)
    again(pair.a, more)
    nothing_moves(pair, "set-back")


@pytest.mark.parametrize("more", [0, 1, 30])
def test_in_the_boot_that_the_page_is_of_the_page_tells(pair: Pair, more: int) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    pair.a.stop()
    page = bytes(pair.a.page_bytes)
    pair.a.restore(saved)
    pair.a.page_bytes = bytearray(page)
    pair.a.start()
    assert pair.a.engine.state.new_epoch_wanted
    again(pair.a, more)
    nothing_moves(pair, "set-back")


def test_giving_up_what_the_copy_holds_brings_both_to_the_older_state(pair: Pair) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    put_back(pair.a, saved)
    older = pair.a.image()
    again(pair.a, 2)
    assert pair.sync_up(discard=pair.b.node_id).label == "set-back-discard"
    assert pair.b.image() == pair.a.image() != older


def test_a_takeover_brings_both_to_what_the_copy_holds(pair: Pair) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    newest = pair.b.image()
    put_back(pair.a, saved)
    assert pair.meet().label == "set-back"
    roles.promote(pair.b.engine)
    decision = pair.sync_up()
    assert decision.lead == pair.b.node_id and pair.a.engine.state.role == SECONDARY
    assert pair.a.image() == pair.b.image() == newest


def test_a_takeover_does_not_take_what_hosts_wrote_since(pair: Pair) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    put_back(pair.a, saved)
    again(pair.a, 2)
    roles.promote(pair.b.engine)
    nothing_moves(pair, "split-brain")


def test_a_former_primary_that_was_set_back_does_not_hide_its_writes_below_its_successor(pair: Pair) -> None:
    saved = backup(pair.a)
    pair.sync_up()
    write_and_sync(pair, 5)
    pair.a.kill()
    roles.promote(pair.b.engine)
    pair.b.write(64 << 10, 50)
    pair.a.start()
    put_back(pair.a, saved)
    again(pair.a, 2)  # up to a seq that the successor has, too
    assert pair.a.engine.pos < pair.b.engine.state.hist[-1][1]
    nothing_moves(pair, "split-brain")


def test_a_copy_that_was_set_back_follows(pair: Pair) -> None:
    pair.b.stop()
    saved = pair.b.save()
    pair.b.start()
    pair.sync_up()
    write_and_sync(pair, 5)
    put_back(pair.b, saved)
    assert pair.sync_up().lead == pair.a.node_id
    assert pair.b.image() == pair.a.image()


def told(pair: Pair) -> None:
    """The copy hears, over its link, what its source has on stable storage."""
    edges.note_source(pair.b.engine, pair.a.node_id, pair.a.engine.status()["durable"])


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("more", [0, 3, 30])
def test_an_image_of_the_running_node_is_no_power_loss(pair: Pair, mode: str, more: int) -> None:
    pair.a.edge(pair.b).mode = mode
    pair.a.engine.flush()
    saved = pair.a.save()
    write_and_sync(pair, 5)
    pair.a.engine.sync_journal()
    told(pair)
    put_back(pair.a, saved)
    assert pair.hello(pair.a).unclean
    again(pair.a, more)
    nothing_moves(pair, "set-back")


def test_what_the_copy_was_told_outlives_its_process_and_its_power(pair: Pair) -> None:
    pair.a.engine.sync_journal()
    told(pair)
    pair.b.kill()
    pair.b.start()
    assert pair.hello(pair.b).source_durable == pair.a.engine.pos
    pair.b.power_cut("drop")
    pair.b.start()
    assert pair.hello(pair.b).source_durable == pair.a.engine.pos


def test_power_loss_is_told_from_it(pair: Pair) -> None:
    pair.a.engine.sync_journal()
    told(pair)
    for n in range(5, 9):
        pair.a.write(n * 4096, n + 1)
    pair.flow(pair.a, pair.b)
    pair.a.power_cut("drop")
    pair.a.start()
    assert pair.hello(pair.a).pos < pair.b.engine.pos
    assert pair.sync_up().label == "diff-source-lost-power"


@pytest.mark.parametrize("change", ["copied to", "taken back"])
def test_what_was_told_is_of_the_history_of_then(pair: Pair, change: str) -> None:
    pair.a.engine.sync_journal()
    told(pair)
    assert pair.hello(pair.b).source_durable
    if change == "copied to":
        assert roles.overflow(pair.a.engine)
        roles.unpark(pair.a.engine, "bitmap")
        pair.sync_up()
    else:
        state = pair.b.engine.state
        rewind(pair.b.engine, pair.b.engine.pos, state.hist[-1][0], {}, pair.b.engine.sync_pool)
    assert pair.hello(pair.b).source_durable == 0


def test_only_the_node_that_feeds_is_believed(pair: Pair) -> None:
    edges.note_source(pair.b.engine, "c" * 32, 5)
    edges.note_source(pair.a.engine, pair.b.node_id, 5)
    assert pair.b.engine.state.source_durable == pair.a.engine.state.source_durable == []


@pytest.mark.parametrize("how", [reboot, lambda side: (side.power_cut("keep"), side.start())])
def test_a_node_that_only_rebooted_goes_on(pair: Pair, how: Callable[[Side], object]) -> None:
    how(pair.a)
    pair.a.write(0, 9)
    assert pair.sync_up().lead == pair.a.node_id
    how(pair.b)
    pair.a.write(4096, 9)
    assert pair.sync_up().lead == pair.a.node_id
    assert pair.a.engine.state.role == PRIMARY


def test_a_reboot_costs_no_copy(pair: Pair) -> None:
    reboot(pair.a)
    pair.a.write(0, 9)
    copies = pair.copies
    assert pair.sync_up().label == "stream"
    follower.checkpoint(pair.b.engine)
    assert pair.copies == copies
