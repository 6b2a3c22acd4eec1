"""The list of a group's volumes, changed on the primary and followed by a secondary."""

from __future__ import annotations

from typing import Any, cast

import pytest

from replicator.capture import copies, follower, journalloss, roles
from replicator.capture.bitmaps import TODO
from replicator.capture.parking import JournalLost
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.preimages.window import Window
from replicator.capture.state import RESYNC
from replicator.core.errors import BadInput, Refused
from replicator.core.handshake import Action
from replicator.core.records import Kind
from replicator.journal import volumes
from replicator.journal.page import APPLIED_SEQ
from replicator.journal.superblock import DATA_START
from tests.testing.listpair import ListPair, ListSide, running_list_pair
from tests.testing.pairharness import GROUP
from tests.testing.retaining import RING_BYTES


@pytest.fixture
def pair() -> ListPair:
    return running_list_pair()


def sides(pair: ListPair) -> tuple[ListSide, ListSide]:
    return cast(ListSide, pair.a), cast(ListSide, pair.b)


def test_a_copy_follows_every_kind_of_change(pair: ListPair) -> None:
    a, b = sides(pair)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 7)
    a.change(Kind.RESIZE, "x", 192 << 10)
    a.put("x", 188 << 10, 8)
    a.change(Kind.RESIZE, "v1", 64 << 10)
    a.change(Kind.VOLUME_REMOVE, "v0")
    pair.flow(a, b)
    assert b.image() == a.image()
    assert {name: len(data) for name, data in b.image().items()} == {"x": 192 << 10, "v1": 64 << 10}
    assert b.pool.sizes["v0"] and a.pool.sizes["v0"], "what leaves a group stays in the pool"


def test_an_index_is_never_given_twice(pair: ListPair) -> None:
    a, b = sides(pair)
    for name in ("x", "y"):
        a.change(Kind.VOLUME_ADD, name, 64 << 10)
        a.change(Kind.VOLUME_REMOVE, name)
    a.change(Kind.VOLUME_ADD, "z", 64 << 10)
    pair.flow(a, b)
    assert [v["index"] for v in a.engine.state.volumes] == [0, 1, 4]
    assert [v["index"] for v in b.engine.state.volumes] == [0, 1, 4]


def test_redo_passes_over_records_of_volumes_that_have_left(pair: ListPair) -> None:
    a, b = sides(pair)
    a.put("v0", 0, 1)
    a.change(Kind.RESIZE, "v1", 64 << 10)
    a.change(Kind.VOLUME_REMOVE, "v0")
    pair.flow(a, b)
    b.pool.disk.open("pool-v0").pwrite(b"\5" * 4096, 0)  # it is somebody else's by now
    b.pool.disk.open("pool-v0").fdatasync()
    for side in (b, a):
        side.power_cut("keep")
        side.start()
    follower.apply_all(b.engine)
    assert b.pool.raw("v0")[:4096] == b"\5" * 4096
    assert pair.sync_up().action in (Action.STREAM, Action.COPY)


def test_a_group_that_counts_differences_sends_the_list_with_the_copy(pair: ListPair) -> None:
    a, b = sides(pair)
    roles.overflow(a.engine)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 7)
    a.change(Kind.RESIZE, "v0", 256 << 10)
    a.change(Kind.VOLUME_REMOVE, "v1")
    assert pair.sync_up().action is Action.COPY
    assert set(b.image()) == {"x", "v0"}
    assert a.engine.bitmaps.todo_blocks() == 0


def test_instants_from_before_a_change_are_not_offered_any_more(pair: ListPair) -> None:
    a, b = sides(pair)
    b.disk.create("preimages", RING_BYTES)
    ring: Any = b.disk.open("preimages")
    Window.create(ring, bytes.fromhex(GROUP), RING_BYTES)
    b.engine.preimages = PreImages(Window.open(ring, bytes.fromhex(GROUP)), lambda _why: None)
    window = b.engine.preimages.window
    a.put("v1", 0, 1)
    pair.flow(a, b)
    assert window.active and window.base.seq < b.page[APPLIED_SEQ]
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 7)
    a.put("v1", 0, 2)
    pair.flow(a, b)
    assert window.base.seq == b.engine.state.listed_at[1] == b.page[APPLIED_SEQ] - 2
    a.change(Kind.VOLUME_REMOVE, "v1")
    pair.flow(a, b)
    assert window.base.seq == b.page[APPLIED_SEQ]
    roles.overflow(a.engine)
    a.change(Kind.VOLUME_REMOVE, "x")
    pair.sync_up()
    assert window.base.seq == b.engine.state.listed_at[1]


def test_a_list_of_blocks_from_below_is_fitted_to_the_volumes_of_now(pair: ListPair) -> None:
    a, _ = sides(pair)
    former = {0: b"\3", 1: b"\3"}
    a.change(Kind.VOLUME_REMOVE, "v1")
    a.change(Kind.RESIZE, "v0", 448 << 10)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    copies.extend_copy(a.engine, "below", former)
    assert [m.count(TODO) for _, m in a.engine.bitmaps.present()] == [2, 0]


def test_a_name_that_is_taken_stops_the_copy_until_it_is_free(pair: ListPair) -> None:
    a, b = sides(pair)
    b.pool.create("x", 64 << 10)
    b.disk.open("pool-x").pwrite(b"mine", 0)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 7)
    pair.ship(a, b)
    with pytest.raises(Refused, match="cannot be made"):
        follower.apply_all(b.engine)
    assert b.pool.raw("x")[:4] == b"mine"
    assert set(b.image()) == {"v0", "v1"}
    b.pool.delete("x")
    pair.flow(a, b)
    assert b.image() == a.image()


def test_histories_that_parted_may_use_one_index_for_two_volumes(pair: ListPair) -> None:
    a, b = sides(pair)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 7)
    a.kill()
    roles.promote(b.engine)
    b.change(Kind.VOLUME_ADD, "y", 64 << 10)
    b.put("y", 4096, 8)
    a.start()
    assert pair.sync_up(a.node_id).action is Action.COPY
    assert set(a.image()) == {"v0", "v1", "y"}
    assert a.pool.raw("x")[:4096] == b"\7" * 4096, "what left the group is as its hosts wrote it"


def test_a_change_is_refused_where_it_cannot_be(pair: ListPair) -> None:
    a, b = sides(pair)
    with pytest.raises(BadInput):
        a.change(Kind.VOLUME_REMOVE, "nobody")
    with pytest.raises(BadInput):
        a.change(Kind.VOLUME_ADD, "v0", 64 << 10)
    with pytest.raises(Refused, match="on its primary"):
        b.change(Kind.VOLUME_REMOVE, "v0")
    a.change(Kind.VOLUME_REMOVE, "v0")
    with pytest.raises(Refused, match="only volume"):
        a.change(Kind.VOLUME_REMOVE, "v1")
    roles.park(a.engine, "hold")
    with pytest.raises(Refused, match="held"):
        a.change(Kind.RESIZE, "v1", 64 << 10)


def test_what_was_grown_for_a_change_that_failed_is_cut_again(pair: ListPair) -> None:
    a, _ = sides(pair)
    roles.park(a.engine, "hold")
    a.disk.fail_writes("journal", 0, 1 << 30)
    roles.unpark(a.engine, "hold")
    with pytest.raises(Exception, match="journal"):
        a.change(Kind.RESIZE, "v1", 256 << 10)
    assert a.pool.sizes["v1"] == 128 << 10
    assert a.engine.state.volumes[1]["size"] == 128 << 10


def test_a_copy_under_way_and_the_list_do_not_disturb_each_other(pair: ListPair) -> None:
    a, b = sides(pair)
    roles.overflow(a.engine)
    a.put("v1", 0, 3)
    pair.meet()
    assert b.engine.state.copy == RESYNC
    a.change(Kind.RESIZE, "v1", 64 << 10)
    a.change(Kind.VOLUME_ADD, "x", 64 << 10)
    a.put("x", 0, 4)
    pair.sync_up()
    assert b.image() == a.image()


@pytest.mark.parametrize(
    ("kind", "name", "size"),
    [
        (Kind.RESIZE, "v1", 192 << 10),
        (Kind.RESIZE, "v1", 64 << 10),
        (Kind.VOLUME_ADD, "x", 64 << 10),
        (Kind.VOLUME_REMOVE, "v0", 0),
    ],
)
@pytest.mark.parametrize("takes_over", [False, True])
def test_a_change_whose_record_could_not_be_synced_and_that_the_copy_has_made_does_not_part_them(
    pair: ListPair, kind: Kind, name: str, size: int, takes_over: bool
) -> None:
    """The replicator reads records from the page cache, so the peer may have one that the disk refused."""
    a, b = sides(pair)
    a.put("v0", 0, 1)
    a.put("v1", 124 << 10, 2)
    pair.flow(a, b)
    before, journal = a.image(), a.engine.journal
    right = journal.sync

    def shipped_and_refused() -> None:
        pair.ship(a, b)
        raise OSError(5, "no")

    journal.sync = shipped_and_refused  # type: ignore[method-assign]
    with pytest.raises(JournalLost):
        a.change(kind, name, size)
    journal.sync = right  # type: ignore[method-assign]
    follower.apply_all(b.engine)
    assert b.image() != before
    assert roles.overflow(a.engine)
    roles.unpark(a.engine, "journal")
    assert a.image() == before
    a.kill()
    a.start()
    assert a.image() == before
    if takes_over:
        roles.promote(b.engine)
        b.put(sorted(b.image())[0], 4096, 9)
    else:
        a.change(Kind.VOLUME_ADD, "y", 128 << 10)  # with an index that the copy does not know by another name
        a.put("y", 0, 3)
    file = a.disk.open("journal")
    ring_bytes = a.journal_bytes - DATA_START
    volumes.prepare(file, 0, a.engine.journal.super, ring_bytes)  # type: ignore[arg-type]
    journalloss.replace_journal(a.engine, file, 0, ring_bytes)  # type: ignore[arg-type]
    try:
        pair.sync_up(a.node_id if takes_over else "")
    except Refused:  # as documented: what left the group on the copy is in the way there, until somebody deletes it
        assert kind == Kind.VOLUME_REMOVE
        b.pool.delete(name)
        pair.sync_up()
    assert {v["name"] for v in a.engine.state.volumes} == set(a.image()) == set(b.image())
    for side in (a, b):
        side.kill()
        side.start()
    pair.sync_up()
