"""The write path of a group."""

from __future__ import annotations

import threading

import pytest

from replicator.capture import edges, follower, roles
from replicator.capture.bitmaps import BLOCK_BYTES, TODO
from replicator.capture.groupbase import RESERVE_BYTES
from replicator.capture.parking import JournalLost, NoRoom, Parked
from replicator.capture.state import PRIMARY, SECONDARY
from replicator.core.errors import MediumError, Refused
from replicator.core.records import FLAG_FUA, HEADER_BYTES, Kind
from replicator.journal.page import DURABLE_SEQ, HEAD_OFF, HEAD_SEQ, INCARNATION, SYNC_ON, TAIL_OFF
from tests.testing.pairharness import Pair, Side, running_pair


def headers(side: Side) -> list[tuple[str, int, int]]:
    """(kind, offset, length) of all records in the journal."""
    found, off = [], side.page[TAIL_OFF]
    while off < side.page[HEAD_OFF]:
        h = side.engine.journal.header_at(off)
        found.append((Kind(h.kind).name, h.offset, h.length))
        off += h.total_bytes
    return found


@pytest.fixture
def pair() -> Pair:
    made = running_pair()
    follower.checkpoint(made.a.engine)
    return made


@pytest.fixture
def side(pair: Pair) -> Side:
    return pair.a


def test_a_write_is_in_the_journal_before_it_is_in_the_pool(side: Side) -> None:
    order: list[str] = []
    side.disk.trace = lambda op, file, *_: order.append(file)
    side.write(4096, 1)
    assert order == ["journal", "volume0"]
    assert side.image()[0][4096:8192] == b"\1" * 4096


def test_bits_are_set_before_the_record_is_written(side: Side) -> None:
    seen: list[int] = []
    side.disk.trace = lambda op, file, *_: seen.append(side.maps[0].buf[2]) if file == "journal" else None
    side.engine.bitmaps.maps[0].clear_all(0xFF)
    side.write(2 * BLOCK_BYTES, 1)
    assert seen == [side.engine.bitmaps.live]


def test_numbers_rise_by_one_and_write_times_rise_though_the_clock_stands_still(side: Side) -> None:
    side.engine.clock.wall_ns = lambda: 5
    seqs = [side.write(0, n) for n in range(3)]
    assert seqs == [seqs[0], seqs[0] + 1, seqs[0] + 2]
    times = [side.engine.journal.header_at(side.engine.journal.find(s)).write_time for s in seqs]
    assert times == sorted(set(times))


def test_write_times_rise_across_a_takeover_by_a_node_whose_clock_is_behind(pair: Pair) -> None:
    pair.a.now_ns += 10**15
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    before = pair.b.engine.applied_time_ns
    roles.promote(pair.b.engine)
    pair.b.stop()
    pair.b.start()
    seq = pair.b.write(0, 2)
    assert pair.b.engine.journal.header_at(pair.b.engine.journal.find(seq)).write_time > before


def test_a_write_across_lock_ranges_is_one_record(side: Side) -> None:
    big = Side("c", sizes=(4 << 20,), journal_bytes=8 << 20)
    big.create(PRIMARY)
    roles.arm(big.engine, "b" * 32)
    big.write((1 << 20) - 4096, 7, length=8192)
    assert headers(big)[-1] == ("WRITE", (1 << 20) - 4096, 8192)
    assert big.image()[0][(1 << 20) - 4096 : (1 << 20) + 4096] == b"\7" * 8192


def test_overlapping_writes_have_one_order_in_journal_and_pool(side: Side) -> None:
    volume = side.engine.volumes[0]
    slow, entered = threading.Event(), threading.Event()
    pwrite = volume.pwrite

    def stalling(buf: bytes, offset: int) -> None:
        if buf[0] == 1:
            entered.set()
            slow.wait(10)
        pwrite(buf, offset)

    volume.pwrite = stalling  # type: ignore[method-assign]
    first = threading.Thread(target=side.write, args=(0, 1))
    second = threading.Thread(target=side.write, args=(0, 2))
    first.start()
    entered.wait(10)
    second.start()
    side.write(2 << 16, 3, volume=1)  # another range is not held up
    slow.set()
    first.join(10)
    second.join(10)
    assert side.image()[0][0] == 2
    assert [o for _, o, _ in headers(side)][-3:] == [0, 2 << 16, 0]


def test_fua_makes_the_record_durable_and_says_so_to_the_peer(side: Side) -> None:
    seq = side.write(0, 1, fua=True)
    assert side.page[DURABLE_SEQ] == seq
    assert side.engine.journal.header_at(side.engine.journal.find(seq)).flags & FLAG_FUA


def test_a_flush_syncs_the_journal_and_not_the_pool(side: Side) -> None:
    side.write(0, 1)
    syncs: list[str] = []
    side.disk.trace = lambda op, file, *_: syncs.append(file) if op == "sync" else None
    assert side.engine.flush() == 0
    assert syncs == ["journal"]


def test_a_flush_covers_what_was_written_before_journaling_began() -> None:
    side = Side("a")
    side.create(PRIMARY)
    side.write(0, 1)
    roles.arm(side.engine, "b" * 32)
    side.engine.flush()
    side.power_cut("drop")
    assert side.image()[0][0] == 1


def test_a_flush_covers_what_was_written_while_the_journal_was_given_up(pair: Pair) -> None:
    side = pair.a
    roles.overflow(side.engine)
    side.write(0, 1)
    pair.meet()
    assert side.engine.state.mode == "journal"
    side.engine.flush()
    saved = side.save()
    other = Side("c")
    other.restore(saved)
    other.power_cut("drop")
    assert other.image()[0][0] == 1
    follower.checkpoint(side.engine)
    syncs: list[str] = []
    side.disk.trace = lambda op, file, *_: syncs.append(file) if op == "sync" else None
    side.write(0, 2)
    side.engine.flush()
    side.engine.flush()
    assert syncs == ["journal"], "once a checkpoint has covered it, the journal alone is enough again"


def test_a_full_journal_refuses_writes_but_keeps_a_reserve_for_control_records(side: Side) -> None:
    with pytest.raises(NoRoom):
        for _ in range(1000):
            side.write(0, 1, length=64 << 10)
    capacity = side.engine.journal.capacity
    assert capacity - RESERVE_BYTES - (64 << 10) - HEADER_BYTES <= side.page[HEAD_OFF] - side.page[TAIL_OFF] <= capacity
    before = side.page[HEAD_SEQ]
    with side.engine.lock:
        assert side.engine.append_control(Kind.BARRIER) == before + 1


def test_a_secondary_and_a_parked_group_take_no_writes(pair: Pair) -> None:
    with pytest.raises(Refused, match="read-only"):
        pair.b.write(0, 1)
    roles.park(pair.a.engine, "hold")
    with pytest.raises(Parked):
        pair.a.write(0, 1)
    roles.unpark(pair.a.engine, "hold")
    pair.a.write(0, 1)


# -- synchronous groups ---------------------------------------------------------------------------------------------


@pytest.fixture
def sync_pair() -> Pair:
    made = running_pair()
    edges.set_policy(made.a.engine, {"mode": "sync"}, "")
    edges.set_sync(made.a.engine, made.a.edge(made.b), True)
    return made


def test_a_flush_of_a_synchronous_group_leaves_a_barrier_for_the_peer(sync_pair: Pair) -> None:
    side = sync_pair.a
    seq = side.write(0, 1)
    assert side.page[SYNC_ON] == 1
    assert side.engine.flush() == seq + 1
    assert headers(side)[-1][0] == "BARRIER"


def test_a_flush_waits_when_it_cannot_leave_its_barrier(sync_pair: Pair) -> None:
    side = sync_pair.a
    with pytest.raises(NoRoom):
        for _ in range(100000):
            side.engine.flush()
    roles.park(side.engine, "hold")
    with pytest.raises(Parked):
        side.engine.flush()


def test_a_hold_keeps_the_position_it_promised(sync_pair: Pair) -> None:
    from replicator.capture import copier

    side = sync_pair.a
    side.edge(sync_pair.b).copying = True
    side.engine.bitmaps.maps[0].set_all(TODO)
    roles.park(side.engine, "hold")
    pos = side.engine.pos
    assert not side.engine.append_copy(0, 0, 4096, b"x" * 4096)
    copier._finish(side.engine)
    side.edge(sync_pair.b).copying = False
    copier.rotate_bitmaps(side.engine)
    with pytest.raises(Parked):
        side.engine.flush()
    assert side.engine.pos == pos


# -- errors of the pool and the journal -----------------------------------------------------------------------------


class PoolTrouble(Exception):
    """An error of a class that the engine does not know."""


def test_a_write_the_pool_refuses_is_followed_by_what_the_range_holds(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)
    side.disk.fail_writes("volume0", 0, 4096)
    with pytest.raises(OSError, match="Input/output"):
        side.write(0, 2)
    assert [k for k, *_ in headers(side)][-2:] == ["WRITE", "COPY"]
    side.disk.heal("volume0")
    pair.flow(pair.a, pair.b)
    assert pair.b.image() == side.image()
    assert pair.b.image()[0][0] == 1


def test_a_refused_write_does_not_take_its_block_off_the_copy_list(side: Side) -> None:
    side.engine.bitmaps.maps[0].set_all(TODO)
    side.disk.fail_writes("volume0", 0, 4096)
    with pytest.raises(OSError, match="Input/output"):
        side.write(0, 2)
    assert side.maps[0].buf[0] & TODO


def test_a_refused_write_of_unknown_class_is_compensated_too(side: Side) -> None:
    def refuse(buf: bytes, offset: int) -> None:
        raise PoolTrouble("no space")

    side.engine.volumes[0].pwrite = refuse  # type: ignore[method-assign]
    with pytest.raises(PoolTrouble):
        side.write(0, 2)
    assert [k for k, *_ in headers(side)][-2:] == ["WRITE", "COPY_ZERO"]
    assert not side.engine.failed
    assert not side.engine.in_flight()


def test_a_refused_zero_of_a_large_range_is_recorded_in_pieces(monkeypatch: pytest.MonkeyPatch, side: Side) -> None:
    monkeypatch.setattr("replicator.capture.engine.PIECE_BYTES", 64 << 10)
    side.write(64 << 10, 9, length=64 << 10)
    side.disk.fail_writes("volume0")
    with pytest.raises(OSError, match="Input/output"):
        side.engine.zero(0, 0, 192 << 10, True)
    block = 64 << 10
    assert headers(side)[-3:] == [("COPY_ZERO", 0, block), ("COPY", block, block), ("COPY_ZERO", 2 * block, block)]


def test_a_refused_write_that_cannot_be_told_stops_the_group(side: Side) -> None:
    side.disk.fail_writes("volume0")
    side.disk.fail_reads("volume0")
    incarnation = side.page[INCARNATION]
    with pytest.raises(OSError, match="Input/output"):
        side.write(0, 2)
    assert "read back" in side.engine.failed
    assert side.page[INCARNATION] > incarnation, "the replicator must stop as well"
    with pytest.raises(MediumError):
        side.write(1 << 16, 2)
    with pytest.raises(MediumError):
        side.engine.flush()


def test_a_record_the_journal_refuses_was_never_there(pair: Pair) -> None:
    side = pair.a
    pos = side.engine.pos
    side.disk.fail_writes("journal")
    with pytest.raises(JournalLost, match="Input/output"):
        side.write(0, 2)
    assert side.engine.pos == pos
    assert side.image()[0][0] == 0
    roles.overflow(side.engine)
    roles.unpark(side.engine, "journal")
    assert side.write(0, 3) == pos + 1


def test_a_failed_sync_of_the_state_seals_the_group(side: Side) -> None:
    side.write(0, 1)
    side.disk.fail_next_sync("state")
    incarnation = side.page[INCARNATION]
    with pytest.raises(MediumError), side.engine.lock:
        side.engine.save()
    with pytest.raises(MediumError):
        side.engine.flush()
    with pytest.raises(MediumError):
        side.write(0, 2)
    assert side.page[INCARNATION] > incarnation


def test_a_failed_pool_sync_of_unknown_class_seals_the_group(side: Side) -> None:
    def refuse() -> None:
        raise PoolTrouble("a member is gone")

    side.engine.pool_sync = refuse
    side.write(0, 1)
    with pytest.raises(MediumError, match="member is gone"):
        follower.checkpoint(side.engine)
    with pytest.raises(MediumError):
        side.write(0, 1)


# -- epochs ---------------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_in_an_epoch_without_a_record(side: Side) -> None:
    side.engine.state.new_epoch_wanted = True
    append = side.engine.journal.append
    side.engine.journal.append = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        side.write(0, 1)
    side.engine.journal.append = append  # type: ignore[method-assign]
    side.write(0, 1)
    assert [k for k, *_ in headers(side)][-2:] == ["EPOCH", "WRITE"]
    assert len(side.engine.state.hist) == 2, "the epoch without a record has given way"
    assert side.engine.state.hist[-1][0] >> 24 == 3, "its number is not used again"


def test_an_epoch_is_newer_than_any_that_was_ever_seen(pair: Pair) -> None:
    pair.a.engine.state.epoch_counter = 40
    pair.a.engine.state.new_epoch_wanted = True
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    roles.disarm(pair.b.engine, pair.a.node_id)  # its history is forgotten
    roles.arm(pair.b.engine, pair.a.node_id)
    assert pair.b.engine.epoch >> 24 == 42


def test_state_that_is_committed_is_on_disk_before_anybody_sees_it(side: Side) -> None:
    seen: list[bool] = []
    side.disk.trace = lambda op, file, *_: seen.append(side.engine.state.unclean) if file == "state" else None
    with side.engine.lock:
        side.engine.commit(unclean=True)
    assert seen == [False, False]
    assert side.engine.state.unclean


def test_a_state_that_cannot_be_committed_is_not_seen(side: Side) -> None:
    side.disk.fail_writes("state")
    with side.engine.lock, pytest.raises(MediumError):
        side.engine.commit(role=SECONDARY)
    assert side.engine.state.role == PRIMARY
    assert side.engine.failed
