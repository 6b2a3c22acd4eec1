"""What a crash at a bad moment must not make anybody forget: torn pools, the intent log's marks, what was given up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from replicator.capture import copier, edges, follower, roles
from replicator.capture.recovery import JournalUnreadable
from replicator.capture.state import OK, RESYNC
from replicator.core.epochs import counter_of, gave_up
from replicator.core.errors import MediumError
from replicator.core.hello import rewound_from
from replicator.journal.page import APPLIED_SEQ
from tests.testing.fakedisk import PowerCut
from tests.testing.pairharness import Pair, Side, running_pair
from tests.unit.replicator.capture.test_journalloss import Halving, beyond_its_position, half_applied, renew
from tests.unit.replicator.capture.test_resend import destroy
from tests.unit.replicator.capture.test_rewind import go_back, mark, rewind, running_tree, without, write_some


@pytest.mark.parametrize("tear", [half_applied, beyond_its_position])
def test_a_torn_copy_killed_while_its_journal_is_replaced_stays_torn(tear: Callable[[Pair], Side]) -> None:
    cut, done = 0, False
    while not done:
        pair = running_pair()
        side = tear(pair)
        side.disk.fail_next_sync("journal")
        pair.a.write(64 << 10, 9)
        pair.ship(pair.a, side)
        with pytest.raises(MediumError):
            side.engine.sync_journal()
        if isinstance(side.engine.volumes[0], Halving):
            side.engine.volumes[0] = side.engine.volumes[0].volume
        side.disk.heal("journal")
        side.disk.cut_at(side.disk.operations + cut)
        try:
            renew(side)
            done = True
        except PowerCut:
            pass
        side.disk.cut_at(None)
        side.kill()
        side.start()
        state = side.engine.state
        if not state.journal_error:
            follower.apply_all(side.engine)
        if state.copy == OK:
            assert side.image() == pair.image_at(state.hist, side.page[APPLIED_SEQ]), f"cut at operation {cut}"
        cut += 1
    assert cut > 5


def with_full_bitmaps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on with bitmaps in which nothing is marked any more."""
    with monkeypatch.context() as patch:
        patch.setattr("replicator.capture.copier._well_filled", lambda *_: True)
        for _ in range(2):
            copier.rotate_bitmaps(pair.a.engine)
            pair.flow(pair.a, pair.b)
            follower.checkpoint(pair.b.engine)
            follower.checkpoint(pair.a.engine)


@pytest.mark.parametrize("seed", range(8))
def test_marks_of_a_group_that_could_not_be_opened_after_power_loss_are_in_its_bitmaps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = running_pair()
    a = pair.a
    a.disk.rng.seed(seed)
    a.write(0, 1)
    pair.sync_up()
    a.engine.sync_journal()
    with_full_bitmaps(pair, monkeypatch)
    a.engine.flush()
    follower.checkpoint(a.engine)
    a.write(128 << 10, 9)  # neither flushed nor shipped
    a.disk.crash(lambda _, write: "drop" if getattr(write, "name", getattr(write, "file", "")) == "journal" else "keep")
    for one in a.maps:
        one.crash(a.disk.rng)
    a.page_bytes, a.boot, a._engine = bytearray(len(a.page_bytes)), a.boot + 1, None
    there = bytes(a.disk._find("journal").data)
    destroy(a)
    with pytest.raises(JournalUnreadable):
        a.start()
    a.pool.marks.clear()  # whatever becomes of them
    a.disk._find("journal").data[:] = there
    a.start()
    pair.sync_up()


@pytest.mark.parametrize("seed", range(8))
def test_marks_of_a_copy_that_lost_power_and_journal_are_in_its_bitmaps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = running_pair()
    pair.b.disk.rng.seed(seed)
    pair.a.write(0, 1)
    pair.sync_up()
    pair.a.engine.sync_journal()
    with_full_bitmaps(pair, monkeypatch)
    saved = pair.a.save()  # as another copy of the group, which gets nothing of what follows
    pair.a.write(4096, 2)
    assert roles.overflow(pair.a.engine)
    roles.unpark(pair.a.engine, "bitmap")
    assert pair.meet().label == "diff-journal-lost"
    pair.a.write(128 << 10, 9)  # while the copy is under way
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    follower.apply_all(pair.b.engine)
    pair.b.power_cut("keep")
    destroy(pair.b)
    pair.b.start()
    assert pair.b.engine.state.copy == RESYNC
    renew(pair.b)
    other = Side("a")
    other.restore(saved)
    other.start()
    roles.demote(other.engine)
    roles.promote(other.engine)
    parted = Pair(other, pair.b)
    parted.copies = 5
    parted.sync_up()


def test_going_back_again_after_a_crash_gives_up_no_less() -> None:
    tree = running_tree("abc", {"b": "a", "c": "b"})
    instant = mark(tree)
    write_some(tree, random.Random(5), 6)
    tree.settle()
    without(tree, "a")
    b = tree.sides["b"]
    go_back(b, *instant)
    before = b.engine.state.rewound
    b.kill()
    b.start()
    go_back(b, *instant)
    assert b.engine.state.rewound == before
    roles.promote(b.engine)
    tree.top = b
    edges.set_link(b.engine, b.edge(tree.sides["c"]), False)
    tree.settle()
    assert tree.sides["c"].image() == b.image() == instant[2]


def test_going_back_before_epochs_that_were_held_back_gives_up_what_was_held_and_no_more() -> None:
    pair = running_pair()
    a, b = pair.a, pair.b
    a.write(0, 1)
    pair.sync_up()
    seq, epoch = b.engine.pos, b.engine.epoch
    old = [(entry[0], entry[1]) for entry in b.engine.state.hist]
    b.engine.limit_time_ns = b.engine.applied_time_ns  # the bound of its set
    a.write(4096, 2)
    roles.demote(a.engine)
    roles.promote(a.engine)
    for n in range(4):
        a.write(8192, 3 + n)
    pair.ship(a, b)
    b.engine.sync_journal()
    follower.apply_all(b.engine)
    assert b.engine.pos > seq and b.page[APPLIED_SEQ] == seq
    rewind(b.engine, seq, epoch, {}, b.engine.sync_pool)
    beyond = a.engine.state.hist[-1][1] + 2  # of the old line, beyond what b held of it
    roles.promote(b.engine)
    state = b.engine.state
    assert not gave_up([(e[0], e[1]) for e in state.hist], rewound_from(state.rewound), old, beyond)
    assert counter_of(b.engine.epoch) > counter_of(a.engine.epoch)


@pytest.mark.parametrize("seed", range(8))
def test_marks_of_a_group_that_failed_stay_until_it_is_opened_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = running_pair()
    a = pair.a
    a.disk.rng.seed(seed)
    pair.sync_up()
    with_full_bitmaps(pair, monkeypatch)
    a.engine.flush()
    follower.checkpoint(a.engine)
    a.write(128 << 10, 9)  # neither flushed nor shipped
    a.engine.fail("something else")
    for _ in range(2):
        a.pool.clear_intents([v.file for v in a.engine.volumes], a.engine.sync_tracking)  # type: ignore[attr-defined]
    a.power_cut("drop")
    a.start()
    pair.sync_up()
