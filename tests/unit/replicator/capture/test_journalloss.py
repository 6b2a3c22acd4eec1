"""A journal whose medium fails: what hosts were told stays true, and a new journal brings the pair together again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbdplugin import journalhost
from replicator.capture import copies, edges, follower, journalloss, roles
from replicator.capture.parking import JournalLost, Parked
from replicator.capture.service import GroupService
from replicator.capture.state import BITMAP, OK, RESYNC
from replicator.core.errors import MediumError, Refused
from replicator.core.handshake import Action
from replicator.journal import ring, volumes
from replicator.journal.beacons import NOTHING, look, publish
from replicator.journal.page import APPLIED_SEQ, ARRIVED_GEN, DURABLE_SEQ, HEAD_OFF, HEAD_SEQ, Doorbell
from replicator.journal.ring import DATA_START
from tests.testing.fakedisk import PowerCut
from tests.testing.pairharness import Pair, Side, running_pair
from tests.testing.retaining import retaining_pair


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def go_over(side: Side) -> None:
    assert roles.overflow(side.engine)
    roles.unpark(side.engine, "journal")


def renew(side: Side) -> int:
    """Give a side a new journal in the file it had; returns the records it gave up."""
    side.disk.heal("journal")
    file = side.disk.open("journal")
    ring_bytes = side.journal_bytes - DATA_START
    volumes.prepare(file, 0, side.engine.journal.super, ring_bytes)  # type: ignore[arg-type]
    return journalloss.replace_journal(side.engine, file, 0, ring_bytes)  # type: ignore[arg-type]


def serve(side: Side, folder: Path) -> tuple[GroupService, list[str]]:
    events: list[str] = []

    def bell(slot: int) -> Doorbell:
        return Doorbell(folder / f"r.{slot}")

    return GroupService(side.engine, Doorbell(folder / "t"), bell, lambda what, **_: events.append(what)), events


def test_a_flush_whose_sync_failed_is_answered_only_from_the_pool(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)
    side.disk.fail_next_sync("journal")
    with pytest.raises(JournalLost):
        side.engine.flush()
    with pytest.raises(Parked):
        side.write(0, 2)
    with pytest.raises(JournalLost):
        side.engine.flush()  # never tried again, although it would succeed
    go_over(side)
    side.write(4096, 3)
    side.engine.flush()
    side.power_cut("drop")
    side.start()
    assert side.image()[0][0] == 1 and side.image()[0][4096] == 3
    assert side.engine.state.mode == BITMAP


def test_hosts_wait_for_it_and_see_no_error(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    pair.a.disk.fail_next_sync("journal")
    service.write(0, 0, b"\1" * 4096, True)
    assert events == ["journal-lost"]
    pair.a.disk.fail_writes("journal")
    service.write(0, 4096, b"\2" * 4096)
    service.flush()
    assert pair.a.engine.state.mode == BITMAP and not pair.a.engine.failed


def test_writers_that_meet_a_full_disk_go_on_together(pair: Pair, tmp_path: Path) -> None:
    service, events = serve(pair.a, tmp_path)
    pair.a.disk.fail_writes("journal")
    errors: list[Exception] = []

    def write(n: int) -> None:
        try:
            service.write(0, n * 4096, bytes([n + 1]) * 4096, n % 2 == 0)
        except Exception as exc:  # reported below
            errors.append(exc)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors and events == ["journal-lost"]
    assert [pair.a.image()[0][n * 4096] for n in range(6)] == [1, 2, 3, 4, 5, 6]


def test_a_pool_that_cannot_be_synced_either_fails_the_group(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)
    side.disk.fail_next_sync("journal")
    with pytest.raises(JournalLost):
        side.engine.flush()

    def refuse() -> None:
        raise OSError(5, "a member is gone")

    side.engine.pool_sync = refuse
    with pytest.raises(MediumError):
        roles.overflow(side.engine)
    assert side.engine.failed
    with pytest.raises(MediumError):
        side.engine.flush()


def test_where_nothing_may_exist_once_only_the_group_fails(pair: Pair) -> None:
    side = pair.a
    [edge] = side.engine.state.edges
    edge.mode, side.engine.state.policy.on_loss = "sync", "stall"
    edges.set_sync(side.engine, edge, True)
    assert side.engine.waits
    side.disk.fail_writes("journal")
    with pytest.raises(MediumError) as caught:
        side.write(0, 1)
    assert not isinstance(caught.value, Parked)
    assert side.engine.failed


def test_killed_before_it_has_gone_over_everything_is_written_again(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)
    side.disk._find("journal").sync_fails = True
    with pytest.raises(JournalLost):
        side.engine.flush()
    side.kill()
    with pytest.raises(Exception, match="before records that were written"):
        side.start()  # the failed sync dropped the record: nobody claims that it is there


def test_without_a_journal_it_opens_again_and_does_not_touch_the_file(pair: Pair) -> None:
    side = pair.a
    side.disk.fail_writes("journal")
    with pytest.raises(JournalLost):
        side.write(0, 1)
    go_over(side)
    side.write(0, 2)
    side.disk.fail_reads("journal")
    for end in (side.kill, lambda: side.power_cut("drop"), side.stop):
        end()
        side.start()
        assert side.engine.state.mode == BITMAP and side.engine.state.journal_error
        side.write(0, 3)
        side.engine.flush()
    with pytest.raises(Refused, match="journal replace"):
        copies.begin_copy(side.engine, side.engine.state.edges[0], None, None, "x")


def test_a_new_journal_brings_the_pair_together_by_difference(pair: Pair) -> None:
    side = pair.a
    side.disk.fail_writes("journal")
    with pytest.raises(JournalLost):
        side.write(0, 1)
    go_over(side)
    side.write(64 << 10, 2)
    assert renew(side) == 0
    decision = pair.sync_up()
    assert decision.action is Action.COPY and not decision.full
    pair.flow(pair.a, pair.b)
    assert pair.a.image() == pair.b.image()
    side.power_cut()
    side.start()
    pair.sync_up()


def test_records_that_the_disk_lost_and_the_peer_has_do_no_harm(pair: Pair) -> None:
    side = pair.a
    for n in range(5):
        side.write(n * 4096, n + 1)
    pair.ship(pair.a, pair.b)  # read from the page cache
    follower.apply_all(pair.b.engine)
    side.disk.fail_next_sync("journal")
    with pytest.raises(JournalLost):
        side.engine.flush()
    go_over(side)
    side.write(0, 9)
    renew(side)
    pair.sync_up()
    assert pair.b.image() == side.image()


def test_a_journal_in_use_is_not_replaced(pair: Pair) -> None:
    with pytest.raises(Refused, match="in use"):
        renew(pair.a)


def test_a_secondary_drops_what_it_had_not_applied_and_gets_that_again(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.a.write(4096, 2)
    pair.a.write(8192, 3)
    pair.ship(pair.a, pair.b)
    pair.b.disk.fail_next_sync("journal")
    with pytest.raises(MediumError):
        follower.apply_all(pair.b.engine)
    before = pair.b.image()
    applied = pair.b.page[APPLIED_SEQ]
    assert renew(pair.b) == 2
    assert pair.b.engine.pos == pair.b.page[DURABLE_SEQ] == applied
    assert pair.b.image() == before and pair.b.engine.state.copy == OK
    decision = pair.sync_up()
    assert decision.action is Action.STREAM
    assert pair.copies == 1, "only the first copy: the rest came again record by record"


def test_what_a_secondary_drops_has_not_arrived_any_more(pair: Pair) -> None:
    """A consistency set goes by what has arrived: with less than that the groups are no cut."""
    engine, lifted = pair.b.engine, []
    engine.on_lift = lambda: lifted.append(True)
    engine.limit_time_ns = engine.clock.last
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    publish(engine.page.u64, ARRIVED_GEN, engine.pos, pair.a.engine.clock.last)
    pair.b.disk.fail_next_sync("journal")
    with pytest.raises(MediumError):
        engine.sync_journal()
    assert renew(pair.b) == 1
    assert look(engine.page.u64, ARRIVED_GEN) == NOTHING and lifted
    assert pair.hello(pair.b).last_write <= engine.pos


def test_what_was_recorded_of_dropped_records_does_not_stand_for_others_of_their_numbers() -> None:
    pair, side = retaining_pair()
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.a.write(4096, 2)
    pair.ship(pair.a, pair.b)
    side.engine.volumes[0] = Refusing(side.engine.volumes[0])
    with pytest.raises(OSError):
        follower.apply_all(side.engine)
    assert side.window.last.seq > side.page[APPLIED_SEQ]
    side.disk.fail_next_sync("journal")
    pair.a.write(8192, 3)
    pair.ship(pair.a, pair.b)
    with pytest.raises(MediumError):
        side.engine.sync_journal()
    renew(side)
    assert not side.window.active or side.window.last.seq == side.page[APPLIED_SEQ]


def half_applied(pair: Pair) -> Side:
    """`b` has a record of which its pool took the first half only."""
    pair.a.write(4096, 2, length=8192)
    pair.ship(pair.a, pair.b)
    pair.b.engine.volumes[0] = Halving(pair.b.engine.volumes[0])
    with pytest.raises(OSError):
        follower.apply_all(pair.b.engine)
    assert pair.b.image()[0][4096] == 2 and pair.b.image()[0][8192] == 0
    return pair.b


def beyond_its_position(pair: Pair) -> Side:
    """The target of `b` was killed, and starts from its last checkpoint: what it had applied since is in its pool."""
    pair.a.write(4096, 2)
    pair.a.write(8192, 3)
    pair.ship(pair.a, pair.b)
    follower.apply_all(pair.b.engine)
    pair.b.kill()
    pair.b.start()
    assert pair.b.page[APPLIED_SEQ] < pair.b.engine.pos
    return pair.b


def lose_and_renew(pair: Pair) -> None:
    """The journal of `b` fails before it has applied everything, and gets replaced; the pool is mended, too."""
    pair.b.disk.fail_next_sync("journal")
    pair.a.write(64 << 10, 9)
    pair.ship(pair.a, pair.b)
    with pytest.raises(MediumError):
        pair.b.engine.sync_journal()
    renew(pair.b)
    if isinstance(pair.b.engine.volumes[0], Halving):
        pair.b.engine.volumes[0] = pair.b.engine.volumes[0].volume


TEARS = pytest.mark.parametrize("tear", [half_applied, beyond_its_position])


@TEARS
def test_dropped_records_that_the_pool_holds_in_part_make_the_copy_inconsistent(
    pair: Pair, tear: Callable[[Pair], Side]
) -> None:
    side = tear(pair)
    lose_and_renew(pair)
    with pytest.raises(Refused, match="resync"):
        roles.promote(side.engine)
    side.power_cut()
    side.start()
    assert side.engine.state.copy == RESYNC
    decision = pair.sync_up()
    assert not decision.full, "by the records that were lost, or by difference"
    assert side.engine.state.copy == OK


@TEARS
def test_nor_do_they_stay_when_the_primary_never_sends_them_again(pair: Pair, tear: Callable[[Pair], Side]) -> None:
    """Another node that had not received them is primary now: to it `b` seems to be where it is itself."""
    saved = pair.a.save()
    tear(pair)
    lose_and_renew(pair)
    other = Side("a")
    other.restore(saved)
    other.start()
    roles.demote(other.engine)
    roles.promote(other.engine)
    Pair(other, pair.b).sync_up()  # this looks whether the images are equal


class Halving:
    """A volume that takes the first half of a write only, and says so."""

    def __init__(self, volume: Any) -> None:
        self.volume = volume

    def __getattr__(self, name: str) -> Any:
        return getattr(self.volume, name)

    def pwrite(self, buf: Any, offset: int) -> None:
        self.volume.pwrite(buf[: len(buf) // 2], offset)
        raise OSError(5, "no")


class Refusing:
    """A volume that takes no writes."""

    def __init__(self, volume: Any) -> None:
        self.volume = volume

    def __getattr__(self, name: str) -> Any:
        return getattr(self.volume, name)

    def pwrite(self, buf: Any, offset: int) -> None:
        raise OSError(5, "no")


def test_a_group_that_failed_for_something_else_is_not_mended_by_a_new_journal(pair: Pair) -> None:
    """What its failed sync dropped would pass for stored."""
    pair.b.engine.fail("its pool cannot be synced")
    with pytest.raises(Refused, match="pool"):
        renew(pair.b)
    assert pair.b.engine.failed


def test_a_file_of_which_nobody_knows_whether_the_journal_has_it_stays(pair: Pair, tmp_path: Path) -> None:
    """Whatever becomes of the group: its superblock may name the file, and without it the journal does not open."""
    side, path = pair.b, tmp_path / "more"
    side.engine.journal.source = volumes.JournalDirectory(tmp_path)
    side.disk.fail_writes("journal")
    with pytest.raises(MediumError):
        journalhost.add(tmp_path, side.engine, str(path), journalhost.MIN_JOURNAL_BYTES)
    assert side.engine.failed
    assert path.exists() and (tmp_path / "journal.1").exists()


def test_a_superblock_that_fails_after_the_one_that_decides_leaves_nothing_decided(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, path = pair.a, tmp_path / "more"
    side.engine.journal.source = volumes.JournalDirectory(tmp_path)
    right, count = ring.write_slot, []

    def failing(file: Any, sup: Any, index: int) -> None:
        count.append(index)
        if count.count(0) == 2:
            raise OSError(5, "no")
        right(file, sup, index)

    monkeypatch.setattr(ring, "write_slot", failing)
    with pytest.raises(JournalLost):
        journalhost.add(tmp_path, side.engine, str(path), journalhost.MIN_JOURNAL_BYTES)
    assert path.exists() and side.engine.journal_lost


def test_a_record_that_nobody_published_does_not_come_back_behind_a_takeover(pair: Pair) -> None:
    """A replicator that was killed had written it; it reached the disk, and the epoch in its place did not."""
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.a.write(0, 2)
    pos, off = pair.b.page[HEAD_SEQ], pair.b.page[HEAD_OFF]
    pair.ship(pair.a, pair.b)
    pair.b.disk.open("journal").fdatasync()
    pair.b.page[HEAD_SEQ], pair.b.page[HEAD_OFF] = pos, off
    roles.promote(pair.b.engine)
    pair.b.power_cut("drop")
    pair.b.start()
    assert pair.b.engine.pos == pos and pair.b.image()[0][0] == 1


def test_a_secondary_whose_journal_is_gone_at_start_is_readable_and_is_sent_again_what_it_had_received(
    pair: Pair,
) -> None:
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.a.write(4096, 2)
    pair.ship(pair.a, pair.b)
    pair.b.kill()
    store = pair.b.disk._find("journal")
    store.data[:] = bytes(len(store.data))
    pair.b.start()
    state = pair.b.engine.state
    assert state.journal_error and state.copy == RESYNC
    with pytest.raises(Refused):
        roles.promote(pair.b.engine)
    pair.b.kill()
    pair.b.start()
    assert renew(pair.b) == 0
    decision = pair.sync_up()
    assert (decision.label, decision.from_seq, pair.copies) == ("resend-lost-journal", pair.a.engine.pos, 1)
    assert pair.b.page[HEAD_OFF] > 0


def test_a_secondary_without_a_journal_goes_on_and_starts_again_and_again(pair: Pair) -> None:
    side = pair.b
    side.kill()
    store = side.disk._find("journal")
    store.data[:] = bytes(len(store.data))
    side.start()
    side.engine.sync_tracking()  # the pool clears marks of its intent log
    assert not side.engine.failed
    with side.engine.lock:
        side.engine.lose_journal("something wanted to sync it all the same")
    side.kill()
    side.start()
    renew(side)
    pair.sync_up()


def test_a_secondary_whose_failing_journal_cannot_be_written_again_is_readable_and_resynced(pair: Pair) -> None:
    """It failed on a sync, and was restarted instead of given a new journal."""
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    pair.a.write(4096, 2)
    pair.ship(pair.a, pair.b)
    with pair.b.engine.lock:
        pair.b.engine.lose_journal("its journal cannot be synced")
    pair.b.kill()
    pair.b.disk.fail_writes("journal", DATA_START)
    pair.b.start()
    assert pair.b.engine.state.journal_error and pair.b.engine.state.copy == RESYNC
    renew(pair.b)
    assert pair.sync_up().action is Action.COPY


def test_a_secondary_that_lost_its_journal_and_power_is_copied_anew(pair: Pair) -> None:
    pair.b.power_cut("drop")
    store = pair.b.disk._find("journal")
    store.data[:] = bytes(len(store.data))
    pair.b.start()
    renew(pair.b)
    pair.sync_up()


def test_a_former_primary_that_loses_its_journal_still_keeps_the_writes_that_nobody_gave_up(pair: Pair) -> None:
    side = pair.a
    side.write(0, 1)  # answered, and never shipped
    roles.promote(pair.b.engine)
    pair.b.write(4096, 2)
    assert pair.meet().label == "former-primary"
    pos = side.engine.pos
    side.power_cut("keep")
    store = side.disk._find("journal")
    store.data[:] = bytes(len(store.data))
    for _ in range(2):
        side.start()
        assert side.engine.state.journal_error and side.engine.pos == pos
        side.power_cut("keep")
    side.start()
    renew(side)
    assert pair.meet().label == "former-primary", "its writes are discarded unasked"
    assert pair.sync_up(side.node_id).action is Action.COPY


@pytest.mark.parametrize("synced", [True, False])
def test_the_power_cut_shows_whether_the_pool_was_synced_first(pair: Pair, synced: bool) -> None:
    side = pair.a
    side.write(0, 1)
    side.disk.fail_next_sync("journal")
    with pytest.raises(JournalLost):
        side.engine.flush()
    if not synced:
        side.engine.pool_sync = lambda: None  # the seeded bug: the mode is changed before the pool is synced
    go_over(side)
    side.power_cut("drop")
    side.start()
    assert (side.image()[0][0] == 1) is synced


def test_a_replacement_cut_at_any_write_leaves_a_group_that_goes_on() -> None:
    cut, done = 0, False
    while not done:
        pair = running_pair()
        side = pair.a
        side.disk.fail_writes("journal")
        with pytest.raises(JournalLost):
            side.write(0, 1)
        go_over(side)
        side.write(0, 2)
        side.engine.flush()
        side.disk.heal("journal")
        side.disk.cut_at(side.disk.operations + cut)
        try:
            renew(side)
            done = True
        except PowerCut:
            pass
        side.disk.cut_at(None)
        side.power_cut()
        side.start()
        state = side.engine.state
        assert state.mode == BITMAP and side.image()[0][0] == 2
        assert not (done and state.journal_error)
        if state.journal_error:
            renew(side)
        pair.sync_up()
        assert pair.b.image() == side.image()
        cut += 1
    assert cut > 5
