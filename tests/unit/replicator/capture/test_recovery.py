"""Opening a group after every kind of stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.capture import copier, follower, roles
from replicator.capture.bitmaps import BLOCK_BYTES
from replicator.capture.state import BITMAP, PRIMARY, SECONDARY
from replicator.core.errors import IntegrityError, MediumError
from replicator.core.records import Kind
from replicator.core.runs import parse_run
from replicator.journal.page import APPLIED_SEQ, EPOCH, HEAD_OFF, HEAD_SEQ, INCARNATION, TAIL_OFF
from replicator.journal.ring import Journal
from tests.testing.pairharness import Pair, Side, running_pair
from tests.testing.sim.storage import ReopeningFile, SimVolume


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def test_a_kill_loses_nothing_that_was_published(pair: Pair) -> None:
    seq = pair.a.write(0, 1)
    pair.a.engine.volumes[0].pwrite(b"\0" * 4096, 0)  # as if killed before the pool had it
    pair.a.kill()
    pair.a.start()
    assert pair.a.engine.pos == seq
    assert pair.a.image()[0][0] == 1
    assert len(pair.a.engine.state.hist) == 1, "the same history goes on"


def test_power_loss_keeps_what_was_flushed_and_opens_a_history_of_its_own(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.engine.flush()
    flushed = pair.a.engine.pos
    lost = pair.a.write(0, 2)
    pair.a.power_cut("drop")
    pair.a.start()
    assert pair.a.engine.pos == flushed < lost
    assert pair.a.image()[0][0] == 1
    assert pair.a.engine.state.unclean
    pair.a.write(0, 3)
    assert pair.a.engine.state.hist[-1][1] == flushed
    assert pair.sync_up().action.value == "copy"


def test_an_orderly_stop_leaves_nothing_to_redo(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.stop()
    writes: list[str] = []
    pair.a.disk.trace = lambda op, file, *_: writes.append(file) if op == "write" else None
    pair.a.start()
    assert "volume0" not in writes
    assert not pair.a.engine.state.unclean
    assert pair.a.engine.state.hist == pair.b.engine.state.hist


def test_power_loss_after_an_orderly_stop_is_nothing(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.stop()
    pair.a.power_cut("drop")
    pair.a.start()
    assert not pair.a.engine.state.unclean
    assert pair.sync_up().label == "stream"


@pytest.mark.parametrize("stop", [Side.kill, Side.stop])
def test_the_replicator_may_append_while_the_target_is_away_and_while_it_starts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, stop: Callable[[Side], None]
) -> None:
    page = pair.b.page
    replicator = Journal.open(ReopeningFile(pair.b.disk, "journal"), page)  # type: ignore[arg-type]
    read_into = Journal.read_into

    def receive(fill: int) -> None:
        pair.a.write(4096 * fill, fill)
        begin = pair.a.engine.journal.find(page[HEAD_SEQ] + 1)
        data = pair.a.engine.journal.read(begin, pair.a.page[HEAD_OFF] - begin)
        run = parse_run(data, page[HEAD_SEQ] + 1, page[EPOCH])
        replicator.append_run(data, run.last_seq, run.last_epoch)

    def read_slowly(self: Journal, buf: memoryview, off: int) -> None:
        read_into(self, buf, off)
        monkeypatch.setattr(Journal, "read_into", read_into)
        receive(2)  # while the target walks the chain

    receive(1)
    stop(pair.b)
    receive(3)
    monkeypatch.setattr(Journal, "read_into", read_slowly)
    pair.b.start()
    assert Journal.read_into is read_into
    assert pair.b.page[HEAD_SEQ] == pair.a.page[HEAD_SEQ]
    follower.apply_all(pair.b.engine)
    assert pair.b.image() == pair.a.image()


def test_the_incarnation_rises_at_every_start(pair: Pair) -> None:
    for stop in (pair.a.kill, pair.a.stop):
        before = pair.a.page[INCARNATION]
        stop()
        pair.a.start()
        assert pair.a.page[INCARNATION] > before


def test_a_page_of_another_boot_is_not_trusted(pair: Pair) -> None:
    pair.a.write(0, 1)
    page = bytes(pair.a.page_bytes)
    pair.a.power_cut("drop")
    pair.a.page_bytes[:] = page
    pair.a.start()
    assert pair.a.engine.state.unclean


def test_a_journal_that_lost_bytes_it_had_taken_after_a_failed_sync_is_refused(pair: Pair) -> None:
    pair.a.write(0, 1)
    off = pair.a.engine.journal.find(pair.a.engine.pos)
    pair.a.engine.fail("its journal cannot be synced")
    pair.a.kill()
    pair.a.disk._find("journal").data[8192 + off + 100] ^= 1
    with pytest.raises(IntegrityError, match="before records that were written"):
        pair.a.start()


def test_unclean_ranges_reach_bitmaps_that_redo_opens(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 0)
    side = pair.a
    for block in range(3):
        side.write(block << 16, 1)
    pair.flow(pair.a, pair.b)
    follower.checkpoint(side.engine)
    with side.engine.lock:  # the record reaches the disk, the state of it does not
        side.engine.append_control(Kind.BITMAP_OPEN)
    side.write(0, 2)
    side.engine.sync_journal()
    pair.flow(pair.a, pair.b)
    side.write(3 << 16, 3)  # its record is lost, its block is not
    journal = next(i for i, w in enumerate(side.disk.unsynced()) if w.file == "journal")
    side.disk.crash(lambda i, _w: "drop" if i == journal else "keep")
    side.page_bytes = bytearray(len(side.page_bytes))
    side.boot += 1
    side.start()
    newest = max(side.engine.state.bitmaps.values())
    slot = next(s for s, start in side.engine.state.bitmaps.items() if start == newest)
    assert side.image()[0][3 << 16] == 3
    assert side.engine.bitmaps.maps[0].bytes[3] & 1 << slot
    decision = pair.sync_up()
    assert decision.label == "diff-unclean"


def test_a_promotion_cut_before_its_epoch_record_opens_another(pair: Pair) -> None:
    pos = pair.b.engine.pos
    pair.b.disk.fail_writes("journal")
    with pytest.raises(MediumError, match="Input/output"):
        roles.promote(pair.b.engine)
    assert pair.b.engine.state.role == SECONDARY, "its journal fails before it is made primary"
    pair.b.disk.heal("journal")
    pair.b.kill()
    pair.b.start()

    def refuse(*_record: object) -> None:
        raise OSError(5, "Input/output error")

    pair.b.engine.journal.append = refuse  # type: ignore[method-assign]
    with pytest.raises(MediumError, match="Input/output"):
        roles.promote(pair.b.engine)
    lost = pair.b.engine.epoch
    pair.b.kill()
    pair.b.start()
    state = pair.b.engine.state
    assert state.role == PRIMARY
    assert state.hist[-1][1] == pos
    assert state.hist[-1][0] > lost
    assert lost not in [epoch for epoch, _ in state.hist]
    assert pair.b.engine.journal.header_at(pair.b.engine.journal.find(pos + 1)).kind == Kind.EPOCH
    pair.b.write(0, 1)


def test_bitmap_mode_goes_on_after_a_kill_and_after_an_orderly_stop(pair: Pair) -> None:
    roles.overflow(pair.a.engine)
    for stop in (pair.a.kill, pair.a.stop):
        seq = pair.a.write(0, 1)
        stop()
        pair.a.start()
        assert (pair.a.engine.state.mode, pair.a.engine.pos) == (BITMAP, seq)
        assert pair.a.write(2 * BLOCK_BYTES, 2) == seq + 1
    pair.sync_up()


def test_a_crash_between_giving_up_the_journal_and_emptying_it_is_harmless(pair: Pair) -> None:
    pair.a.write(0, 1)

    class Killed(BaseException):
        pass

    seen: list[str] = []

    def kill(op: str, file: str, *_: int) -> None:
        seen.append(file)
        if file == "journal" and "state" in seen:
            raise Killed

    pair.a.disk.trace = kill
    with pytest.raises(Killed):
        roles.overflow(pair.a.engine)
    pair.a.disk.trace = None
    pair.a.kill()
    pair.a.start()
    assert pair.a.engine.state.mode == BITMAP
    pair.a.write(0, 2)
    pair.sync_up()


def test_a_secondary_redoes_lazily_and_reports_what_it_received(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.b.kill()
    pair.b.start()
    assert pair.b.engine.state.role == SECONDARY
    assert pair.b.page[APPLIED_SEQ] < pair.b.page[HEAD_SEQ] == pair.a.page[HEAD_SEQ]
    assert pair.b.page[TAIL_OFF] < pair.b.page[HEAD_OFF]


def test_an_untracked_group_opens_after_anything() -> None:
    side = Side("a")
    side.create(PRIMARY)
    for stop in (side.kill, side.power_cut, side.stop):
        side.write(0, 1)
        stop()
        side.start()
        assert side.engine.state.mode == "none"


def test_a_write_the_pool_had_refused_does_not_keep_a_group_from_opening(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = pair.a
    side.disk.fail_writes("volume0", 0, 8192)
    for fill in (1, 2):
        with pytest.raises(OSError, match="Input/output"):
            side.write(4096, fill)
    side.disk.heal("volume0")
    side.kill()

    class Full(Exception):
        """No space, from a pool."""

    def refuse(self: SimVolume, buf: bytes, offset: int) -> None:
        raise Full("no space")

    with monkeypatch.context() as patch:
        patch.setattr(SimVolume, "pwrite", refuse)
        side.start()
    assert side.image()[0][4096] == 0
    pair.sync_up()


def test_an_answered_write_that_redo_cannot_store_keeps_the_group_closed(pair: Pair) -> None:
    pair.a.write(4096, 1)
    pair.a.kill()
    pair.a.disk.fail_writes("volume0", 0, 8192)
    with pytest.raises(OSError, match="Input/output"):
        pair.a.start()
    pair.a.disk.heal("volume0")
    pair.a.kill()
    pair.a.start()
    assert pair.a.image()[0][4096] == 1


def test_after_a_failed_sync_the_next_life_writes_the_journal_again(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)
    side.engine.fail("its journal cannot be synced")
    side.kill()
    ops: list[tuple[str, str]] = []
    side.disk.trace = lambda op, file, *_: ops.append((op, file))
    side.start()
    assert ops[:2] == [("write_durable", "state"), ("write_durable", "journal")]  # what was loaded, made sure of
    assert ops[2:5] == [("write", "journal"), ("sync", "journal"), ("sync", "bitmap0")]
    assert not side.engine.state.sealed
    ops.clear()
    side.kill()
    side.start()
    assert ops[0] != ("sync", "bitmap0")


def test_a_record_that_was_never_published_does_not_come_back(pair: Pair) -> None:
    side = pair.a
    pos, head = side.page[HEAD_SEQ], side.page[HEAD_OFF]
    side.on_record = None
    side.write(0, 1)
    side.engine.journal.sync()  # the kernel has written it back
    side.page[HEAD_OFF], side.page[HEAD_SEQ] = head, pos  # but the process was killed before it published it
    side.kill()
    side.start()
    assert side.write(0, 2) == pos + 1
    side.power_cut("drop")
    side.start()
    assert side.engine.pos == pos
