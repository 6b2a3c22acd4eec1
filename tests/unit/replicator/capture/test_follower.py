"""Redo of the journal and checkpoints."""

from __future__ import annotations

import pytest

from replicator.capture import copier, follower, roles
from replicator.capture.engine import GroupEngine
from replicator.capture.state import OK, RESYNC
from replicator.core.errors import IntegrityError
from replicator.core.records import HEADER_BYTES, Kind, pack_header, unpack_header
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    TAIL_SEQ,
)
from tests.testing.pairharness import PEER_DURABLE_OFF, Pair, running_pair


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def append_foreign(engine: GroupEngine, header: bytes, payload: bytes = b"") -> None:
    """What a peer with a defect could send: valid bytes, wrong meaning."""
    seq = engine.pos + 1
    engine.journal.append_run(header + payload, seq, engine.epoch)


def test_nothing_is_applied_that_is_not_durable_in_the_journal(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    order: list[tuple[str, str]] = []
    pair.b.disk.trace = lambda op, file, *_: order.append((op, file))
    follower.apply_all(pair.b.engine)
    assert order == [("sync", "journal"), ("write", "volume0")]


def test_a_long_record_is_applied_whatever_the_limit(pair: Pair) -> None:
    pair.a.write(0, 1, length=128 << 10)
    pair.a.write(0, 2)
    pair.ship(pair.a, pair.b)
    follower.apply_some(pair.b.engine, 100)
    assert pair.b.image()[0][: 128 << 10] == b"\1" * (128 << 10)
    assert pair.b.page[APPLIED_SEQ] == pair.b.page[HEAD_SEQ] - 1


def test_redo_never_runs_on_a_primary_that_serves_hosts(pair: Pair) -> None:
    follower.apply_all(pair.b.engine)
    roles.promote(pair.b.engine)
    pair.b.write(0, 1)
    pair.b.engine.volumes[0].pwrite(b"\2" * 4096, 0)  # what a later write has put there
    assert follower.apply_some(pair.b.engine) == 0
    assert pair.b.image()[0][0] == 2


def test_an_error_of_the_pool_stops_redo_at_that_record_and_it_can_go_on(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.write(64 << 10, 2)
    pair.a.write(0, 3)
    pair.ship(pair.a, pair.b)
    pair.b.disk.fail_writes("volume0", 64 << 10, 128 << 10)
    with pytest.raises(OSError, match="Input/output"):
        follower.apply_all(pair.b.engine)
    assert pair.b.image()[0][0] == 1
    pair.b.disk.heal("volume0")
    follower.apply_all(pair.b.engine)
    assert pair.b.image() == pair.a.image()


def test_rot_in_the_journal_is_found_before_it_reaches_the_pool(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    at = pair.b.page[HEAD_OFF] - 1
    pair.b.disk._find("journal").data[8192 + at % pair.b.engine.journal.capacity] ^= 1
    with pytest.raises(IntegrityError, match="damaged"):
        follower.apply_all(pair.b.engine)
    assert pair.b.image()[0][0] == 0


@pytest.mark.parametrize(
    ("kind", "volume", "offset", "length", "payload"),
    [
        (Kind.WRITE, 9, 0, 4096, 4096),
        (Kind.WRITE, 0, (256 << 10) - 2048, 4096, 4096),
        (Kind.WRITE, 0, (256 << 10) - 2048, 2048, 4096),
        (Kind.ZERO, 0, 0, 1 << 40, 0),
        (15, 0, 0, 1 << 20, 0),
        (Kind.RESIZE, 0, 0, 0, 0),
        (Kind.RESIZE, 0, 0, 4097, 0),
        (Kind.VOLUME_REMOVE, 9, 0, 0, 0),
        (Kind.VOLUME_ADD, 0, 0, 0, 0),
        (Kind.VOLUME_ADD, 2, 0, 0, 8),
    ],
)
def test_a_record_that_cannot_be_meant_changes_nothing(
    pair: Pair, kind: int, volume: int, offset: int, length: int, payload: int
) -> None:
    from crc32c import crc32c

    data = b"\7" * payload
    seq = pair.b.engine.pos + 1
    crc = crc32c(data) if payload else 0
    header = pack_header(kind, 0, pair.b.engine.epoch, seq, 1, volume, payload, offset, length, crc)
    append_foreign(pair.b.engine, header, data)
    before = pair.b.image()
    with pytest.raises(IntegrityError):
        follower.apply_all(pair.b.engine)
    assert pair.b.image() == before


def test_redo_from_any_earlier_point_gives_the_same(pair: Pair) -> None:
    for n in range(6):
        pair.a.write(n % 2 * 4096, n)
        if n == 2:
            pair.a.engine.state.new_epoch_wanted = True
    pair.flow(pair.a, pair.b)
    image, hist = pair.b.image(), [list(h) for h in pair.b.engine.state.hist]
    pair.b.kill()
    pair.b.start()
    assert pair.b.page[APPLIED_SEQ] < pair.b.page[HEAD_SEQ]
    follower.apply_all(pair.b.engine)
    assert (pair.b.image(), pair.b.engine.state.hist) == (image, hist)


def test_redo_does_not_fill_bitmaps_that_began_later(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 0)
    pair.a.write(0, 1)
    pair.a.write(64 << 10, 1)
    copier.rotate_bitmaps(pair.a.engine)
    pair.a.write(128 << 10, 1)
    newest = max(pair.a.engine.state.bitmaps.values())
    pair.a.kill()
    pair.a.start()
    assert pair.a.engine.status()["bitmaps"][newest] == 1


def test_a_replicator_that_died_while_publishing_leaves_a_head_that_settles(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    pair.b.page[HEAD_SEQ] += 3  # stored, and killed before HEAD_OFF
    follower.settle(pair.b.engine)
    assert pair.b.page[HEAD_SEQ] == pair.a.page[HEAD_SEQ]
    assert roles.promote(pair.b.engine)["base"] == pair.a.page[HEAD_SEQ]


def test_synced_counts_only_for_the_copy_it_belongs_to(pair: Pair) -> None:
    pair.b.engine.state.copy = RESYNC
    pair.b.engine.state.copy_from_seq = pair.b.engine.pos + 5
    header = pack_header(Kind.SYNCED, 0, pair.b.engine.epoch, pair.b.engine.pos + 1, 1, 0, 0, 0, 0, 0)
    append_foreign(pair.b.engine, header)
    follower.apply_all(pair.b.engine)
    assert pair.b.engine.state.copy == RESYNC


def test_a_copy_is_ok_only_after_it_is_durable(pair: Pair) -> None:
    roles.overflow(pair.a.engine)
    pair.a.write(0, 1)
    pair.meet()
    while pair.a.engine.state.copying:
        copier.copy_some(pair.a.engine)
    pair.ship(pair.a, pair.b)
    order: list[str] = []
    pair.b.disk.trace = lambda op, file, *_: order.append(f"{op} {file} {pair.b.engine.state.copy}")
    follower.apply_all(pair.b.engine)
    last_sync = max(i for i, what in enumerate(order) if what.startswith("sync volume"))
    assert all(what.endswith(RESYNC) for what in order)
    assert order[last_sync + 1 :] == ["write state resync", "sync state resync"]
    assert pair.b.engine.state.copy == OK


# -- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_secondarys_journal_is_free_once_applied_and_durable(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    follower.checkpoint(pair.b.engine)
    assert pair.b.page[TAIL_SEQ] == pair.b.page[HEAD_SEQ]
    assert pair.b.page[TAIL_OFF] < pair.b.page[HEAD_OFF]
    follower.apply_all(pair.b.engine)
    assert follower.checkpoint(pair.b.engine)
    assert pair.b.page[TAIL_OFF] == pair.b.page[HEAD_OFF]


def test_a_primary_keeps_what_the_peer_does_not_hold_durably(pair: Pair) -> None:
    first = pair.a.write(0, 1)
    pair.a.write(0, 2)
    follower.checkpoint(pair.a.engine)
    assert pair.a.page[TAIL_SEQ] <= first
    pair.a.page[PEER_DURABLE_OFF] = pair.a.engine.journal.find(first + 1)
    follower.checkpoint(pair.a.engine)
    assert pair.a.page[TAIL_SEQ] == first + 1


def test_a_checkpoint_waits_for_the_changes_under_way_when_it_began(pair: Pair) -> None:
    engine = pair.a.engine
    engine._inflight.add(77)
    begun = follower.begin_checkpoint(engine)
    assert begun is not None
    assert engine.still_in_flight(begun.pending)
    pair.a.write(0, 1)
    engine._inflight.discard(77)
    assert not engine.still_in_flight(begun.pending)


def test_what_is_kept_of_the_journal_and_the_pool_are_synced_before_the_redo_point_moves(pair: Pair) -> None:
    pair.a.page[PEER_DURABLE_OFF] = 0
    pair.a.write(0, 1)
    order: list[str] = []
    pair.a.disk.trace = lambda op, file, *_: order.append(f"{op} {file}")
    follower.checkpoint(pair.a.engine)
    assert order.index("sync journal") < order.index("sync bitmap0") < order.index("sync volume0")
    assert order[-1] == "write_durable journal"


def test_records_that_the_peer_holds_durably_need_no_place_on_our_disk(pair: Pair) -> None:
    engine, page = pair.a.engine, pair.a.page
    held = pair.a.write(0, 1)
    page[PEER_DURABLE_OFF] = page[HEAD_OFF]
    pair.a.write(4096, 2)
    order: list[str] = []
    pair.a.disk.trace = lambda op, file, *_: order.append(f"{op} {file}")
    begun = follower.begin_checkpoint(engine)
    assert begun is not None and follower.finish_checkpoint(engine, begun)
    assert "sync journal" not in order
    assert order.index("sync bitmap0") < order.index("sync volume0") < order.index("write_durable journal")
    assert (page[TAIL_SEQ], engine.journal.super.redo_seq, page[DURABLE_SEQ]) == (held + 1, held + 1, held)
    pair.a.disk.trace = None
    pair.a.power_cut("drop")
    pair.a.start()
    assert pair.a.engine.pos == held
    assert pair.a.image()[0][0] == 1


def test_a_checkpoint_that_an_attach_overtook_does_nothing(pair: Pair) -> None:
    engine = pair.b.engine
    pair.a.write(0, 1)
    begun = follower.begin_checkpoint(engine)
    pair.ship(pair.a, pair.b)
    assert begun is not None
    roles.attach(engine, pair.b.edge(pair.a), 1000, None, engine.epoch, engine.state.hist, {}, "c", True)
    follower.finish_checkpoint(engine, begun)
    assert engine.page[TAIL_SEQ] == 1001
    assert engine.page[APPLIED_OFF] == engine.page[HEAD_OFF]


def test_the_tail_does_not_pass_a_place_where_no_record_is(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.page[PEER_DURABLE_OFF] = pair.a.page[HEAD_OFF] - 4096 - HEADER_BYTES + 8
    tail = pair.a.page[TAIL_OFF]
    follower.checkpoint(pair.a.engine)
    assert pair.a.page[TAIL_OFF] == tail and pair.a.engine.suspect == pair.a.page[PEER_DURABLE_OFF]
    assert pair.a.engine.journal.super.redo_off == pair.a.page[HEAD_OFF], "what the pool holds is not redone"


def test_refused_ranges_are_forgiven_piece_by_piece(pair: Pair) -> None:
    engine = pair.a.engine
    engine.refused[0, 1000, 5000] = OSError("first")
    engine.refused[1, 1000, 5000] = OSError("another volume")
    for offset, length in ((3000, 1000), (0, 2000), (2000, 1000), (4000, 100)):
        header = unpack_header(pack_header(Kind.COPY_ZERO, 0, 1, 1, 1, 0, 0, offset, length, 0))
        follower._forgive(engine, header)
    assert sorted(engine.refused) == [(0, 4100, 1900), (1, 1000, 5000)]


def test_a_long_history_is_trimmed_on_a_secondary_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "HIST_ENTRIES", 3)
    for n in range(6):
        pair.a.engine.state.new_epoch_wanted = True
        pair.a.write(0, n)
    pair.flow(pair.a, pair.b)
    assert pair.b.engine.state.hist == pair.a.engine.state.hist[-3:]
    assert pair.sync_up().label == "stream"
