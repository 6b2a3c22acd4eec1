"""Copies as records, and the rotation of history bitmaps."""

from __future__ import annotations

import pytest

from replicator.capture import copier, edges, follower, roles
from replicator.capture.bitmaps import TODO
from replicator.capture.state import OK, RESYNC
from replicator.core.records import Kind
from replicator.journal.page import HEAD_OFF, TAIL_OFF
from tests.testing.pairharness import PEER_DURABLE_SEQ, Pair, running_pair


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 0)
    made = running_pair()
    edges.set_link(made.a.engine, made.a.edge(made.b), True)
    return made


def difference(pair: Pair) -> None:
    """Let the pair differ, and begin a copy."""
    roles.overflow(pair.a.engine)
    for block in range(4):
        pair.a.write(block << 16, block + 1)
    pair.meet()


def test_a_copy_never_overwrites_a_newer_write(pair: Pair) -> None:
    difference(pair)
    pair.a.write(0, 50)
    copier.copy_some(pair.a.engine, 1)
    pair.a.write(0, 51)
    pair.flow(pair.a, pair.b)
    assert pair.b.image() == pair.a.image()
    assert pair.b.image()[0][0] == 51


def test_the_copy_is_inconsistent_until_the_last_block_and_says_so(pair: Pair) -> None:
    difference(pair)
    while pair.a.engine.state.copying:
        assert pair.b.engine.state.copy == RESYNC
        copier.copy_some(pair.a.engine, 1)
        if pair.a.engine.state.copying:
            pair.ship(pair.a, pair.b)
            follower.apply_all(pair.b.engine)
    pair.flow(pair.a, pair.b)
    assert pair.b.engine.state.copy == OK


def test_a_killed_source_goes_on_where_it_was(pair: Pair) -> None:
    difference(pair)
    copier.copy_some(pair.a.engine, 1)
    left = pair.a.engine.bitmaps.todo_blocks()
    pair.a.kill()
    assert pair.a.start().bitmaps.todo_blocks() == left
    assert pair.sync_up().label == "resume-resync"


def test_a_source_that_lost_power_copies_again(pair: Pair) -> None:
    difference(pair)
    copier.copy_some(pair.a.engine, 1)
    pair.a.power_cut()
    pair.a.start()
    assert pair.sync_up().label.startswith("redo-resync")


def test_holes_become_zero_records_and_punch_there(pair: Pair) -> None:
    pair.a.write(0, 1, length=64 << 10)
    pair.flow(pair.a, pair.b)
    roles.overflow(pair.a.engine)
    pair.a.engine.zero(0, 0, 64 << 10, True)
    pair.meet()
    pos = pair.a.engine.pos
    copier.copy_some(pair.a.engine)
    assert pair.a.engine.journal.header_at(pair.a.engine.journal.find(pos + 1)).kind == Kind.COPY_ZERO
    pair.flow(pair.a, pair.b)
    assert pair.b.image() == pair.a.image()


def test_copying_leaves_half_of_the_journal_to_hosts(pair: Pair) -> None:
    difference(pair)
    while pair.a.page[HEAD_OFF] - pair.a.page[TAIL_OFF] < pair.a.engine.journal.capacity * copier.PACE_FRACTION:
        pair.a.write(0, 1, length=64 << 10)
    assert copier.copy_some(pair.a.engine) == 0
    assert pair.a.engine.state.copying


def test_an_unreadable_block_stays_on_the_list(pair: Pair) -> None:
    difference(pair)
    assert pair.a.engine.bitmaps.maps[0].bytes[0] & TODO
    pair.a.disk.fail_reads("volume0", 0, 4096)
    with pytest.raises(OSError, match="Input/output"):
        copier.copy_some(pair.a.engine)
    assert pair.a.engine.bitmaps.maps[0].bytes[0] & TODO
    pair.a.disk.heal("volume0")
    pair.flow(pair.a, pair.b)
    assert pair.b.image() == pair.a.image()


# -- rotation -------------------------------------------------------------------------------------------------------


def dirty(pair: Pair) -> None:
    for block in range(4):
        pair.a.write(block << 16, 9)


def test_old_bitmaps_go_when_both_sides_hold_the_new_one_durably(pair: Pair) -> None:
    dirty(pair)
    copier.rotate_bitmaps(pair.a.engine)
    old, new = sorted(pair.a.engine.state.bitmaps.values())
    copier.rotate_bitmaps(pair.a.engine)
    assert old in pair.a.engine.state.bitmaps.values(), "the peer has not even received it"
    pair.ship(pair.a, pair.b)
    pair.acknowledge(pair.a, pair.b)
    pair.a.engine.sync_journal()
    copier.rotate_bitmaps(pair.a.engine)
    assert old in pair.a.engine.state.bitmaps.values(), "received is not durable"
    follower.apply_all(pair.b.engine)
    pair.acknowledge(pair.a, pair.b)
    copier.rotate_bitmaps(pair.a.engine)
    pair.flow(pair.a, pair.b)
    assert list(pair.a.engine.state.bitmaps.values()) == list(pair.b.engine.state.bitmaps.values()) == [new]


def test_no_bitmap_goes_while_the_peer_is_away_or_a_copy_is_not_complete(pair: Pair) -> None:
    dirty(pair)
    copier.rotate_bitmaps(pair.a.engine)
    pair.flow(pair.a, pair.b)
    edges.set_link(pair.a.engine, pair.a.edge(pair.b), False)
    copier.rotate_bitmaps(pair.a.engine)
    assert len(pair.a.engine.state.bitmaps) == 2
    edges.set_link(pair.a.engine, pair.a.edge(pair.b), True)
    pair.a.engine.state.synced_seq = pair.a.page[PEER_DURABLE_SEQ] + 1
    copier.rotate_bitmaps(pair.a.engine)
    assert len(pair.a.engine.state.bitmaps) == 2


def test_a_peer_that_was_away_for_long_is_covered_by_the_bitmap_kept_for_it(pair: Pair) -> None:
    dirty(pair)
    pair.flow(pair.a, pair.b)
    edges.set_link(pair.a.engine, pair.a.edge(pair.b), False)
    pair.a.write(0, 1)
    for _ in range(5):
        dirty(pair)
        copier.rotate_bitmaps(pair.a.engine)
    roles.overflow(pair.a.engine)
    pair.a.write(5 << 15, 2)
    decision = pair.sync_up()
    assert decision.label == "diff-journal-lost"
    assert not decision.full
