"""Holds and marks on one node; the book of a group; images and the way back to one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nbdplugin.markerhost import MarkerHost, image_name
from replicator.capture import follower, limits, roles
from replicator.capture.markerbook import BOOK_FILE_BYTES, MADE, TAKEN, TAKING, Entry, MarkerBook
from replicator.capture.marking import Marking, state_host_time
from replicator.capture.parking import Parked
from replicator.capture.state import OK, PRIMARY
from replicator.core.errors import NotFound, Refused
from replicator.core.markers import Marker
from replicator.core.records import Kind
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ
from tests.testing.cutpools import FakeExports, FakePools
from tests.testing.pairharness import Pair, Side, running_pair


class Bench:
    """A pair, markers on both sides, and a clock for leases."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.now = 0.0
        self.folder = folder
        self.pair: Pair = running_pair(sizes=(64 << 10,))
        self.a, self.b = self.pair.a, self.pair.b
        self.pools = FakePools()
        self.due: list[Any] = []
        self.hosts = {side.name: self.host(side) for side in (self.a, self.b)}
        self.marking = Marking(lambda: self.now, lambda seconds, call: self.due.append(call))

    def host(self, side: Side) -> MarkerHost:
        (self.folder / side.name).mkdir(exist_ok=True)
        quiet: Any = SimpleNamespace(add=lambda *a, **k: None)
        host = MarkerHost(self.pools, FakeExports(self.pools), quiet)  # type: ignore[arg-type]
        host.join(self.service(side), self.folder / side.name)
        side.engine.on_lift = lambda: host.lifted(side.engine)
        self.pools.serve("v0", side)
        return host

    def service(self, side: Side) -> Any:
        return SimpleNamespace(engine=side.engine, wake_follower=lambda: None)

    def booked(self) -> Any:
        return self.hosts["a"].booked([self.service(self.a)])

    def mark(self, n: int, **more: Any) -> int:
        token = self.marking.hold(n, self.booked(), 1.0)
        return self.marking.mark(Marker(n, f"m{n}", "c", 1, **more), token)[self.a.uuid]

    def ship(self) -> None:
        self.pair.ship(self.a, self.b)

    def entry(self, n: int) -> Any:
        return self.hosts["b"].booked([self.service(self.b)])[0][1].find(n)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_writes_wait_while_held_and_reads_go_on(bench: Bench) -> None:
    token = bench.marking.hold(1, bench.booked(), 1.0)
    assert bench.marking.hold(1, bench.booked(), 1.0) == token
    with pytest.raises(Parked):
        bench.a.write(0, 1)
    bench.a.engine.volumes[0].pread_into(memoryview(bytearray(4096)), 0)
    bench.marking.release(1)
    bench.a.write(0, 1)


def test_a_marker_is_one_record_and_ends_the_hold(bench: Bench) -> None:
    seq = bench.mark(1)
    journal = bench.a.engine.journal
    assert journal.header_at(journal.find(seq)).kind == Kind.MARKER
    assert bench.a.write(0, 1) == seq + 1
    with pytest.raises(Refused, match="not new"):
        bench.marking.hold(1, bench.booked(), 1.0)


@pytest.mark.parametrize("end", ["lease", "timer", "release", "other", "restart"])
def test_no_marker_after_the_hold_has_ended_in_any_way(bench: Bench, end: str) -> None:
    token = bench.marking.hold(1, bench.booked(), 1.0)
    if end == "lease":
        bench.now = 1.0
    elif end == "timer":
        bench.due[0]()
    elif end == "release":
        bench.marking.release(1)
    elif end == "other":
        roles.park(bench.a.engine, "hold")
    else:
        bench.marking = Marking(lambda: bench.now)
        roles.unpark(bench.a.engine, "marker")
    before = bench.a.page[HEAD_SEQ]
    with pytest.raises(Refused):
        bench.marking.mark(Marker(1, "m1", "c", 1), token)
    assert bench.a.page[HEAD_SEQ] == before


def test_where_hosts_hold_nothing_is_parked_and_a_write_makes_it_no_marker(bench: Bench) -> None:
    bench.a.write(0, 1)
    token = bench.marking.hold(1, bench.booked(), 1.0, park=False)
    assert bench.a.engine.parked_for == ""
    seq = bench.marking.mark(Marker(1, "m1", "c", 1), token)[bench.a.uuid]
    token = bench.marking.hold(2, bench.booked(), 1.0, park=False)
    assert bench.a.write(0, 1) == seq + 1, "some host was not asked"
    with pytest.raises(Refused, match="was written to while its hosts were to hold"):
        bench.marking.mark(Marker(2, "m2", "c", 1), token)
    token = bench.marking.hold(3, bench.booked(), 1.0, park=False)
    bench.now = 1.0
    with pytest.raises(Refused, match="its time is over"):
        bench.marking.mark(Marker(3, "m3", "c", 1), token)


def test_two_markers_do_not_hold_the_same_group_at_once(bench: Bench) -> None:
    """The second one's hold could stand for the first one's, which something else had ended meanwhile."""
    token = bench.marking.hold(1, bench.booked(), 1.0)
    roles.park(bench.a.engine, "hold")
    roles.unpark(bench.a.engine, "hold")
    bench.a.write(0, 1)
    with pytest.raises(Refused):
        bench.marking.hold(2, bench.booked(), 1.0)
    with pytest.raises(Refused):
        bench.marking.mark(Marker(1, "m1", "c", 1), token)
    assert bench.marking.hold(2, bench.booked(), 1.0)


@pytest.mark.parametrize("ended", ["released", "timer"])
def test_a_late_hold_of_an_attempt_that_was_given_up_holds_nothing(bench: Bench, ended: str) -> None:
    token = bench.marking.hold(1, bench.booked(), 1.0)
    bench.marking.release(1) if ended == "released" else bench.due[0]()
    with pytest.raises(Refused, match="1 is not new"):
        bench.marking.hold(1, bench.booked(), 1.0)
    with pytest.raises(Refused):
        bench.marking.mark(Marker(1, "m1", "c", 1), token)
    bench.marking.release(2)  # overtakes its hold
    with pytest.raises(Refused, match="2 was given up"):
        bench.marking.hold(2, bench.booked(), 1.0)
    bench.a.write(0, 1)
    assert bench.mark(3)


def test_an_ask_of_an_older_attempt_is_refused_while_a_newer_one_holds_and_after_it_was_given_up(bench: Bench) -> None:
    bench.marking.hold(5, bench.booked(), 1.0)
    for _ in range(2):
        with pytest.raises(Refused):
            bench.marking.hold(4, bench.booked(), 1.0)
        bench.marking.release(5)
    (book,) = bench.hosts["a"].listing([bench.service(bench.a)])
    assert book["highest"] == 0, "another node's marking does not count"
    assert bench.marking.highest(bench.a.uuid, bench.booked()[0][1]) == 5, "a coordinator could not know what is new"


def test_a_mark_that_is_asked_again_is_answered_the_same_and_made_once(bench: Bench) -> None:
    token = bench.marking.hold(1, bench.booked(), 1.0)
    seqs = bench.marking.mark(Marker(1, "m1", "c", 1), token)
    bench.a.write(0, 1)
    head = bench.a.page[HEAD_SEQ]
    assert bench.marking.mark(Marker(1, "m1", "c", 1), token) == seqs
    assert bench.a.page[HEAD_SEQ] == head
    with pytest.raises(Refused):
        bench.marking.mark(Marker(2, "m2", "c", 1), token)


def test_nobody_can_use_up_the_numbers_of_a_group(bench: Bench) -> None:
    with pytest.raises(Refused, match="is no number of a marker"):
        bench.marking.hold(1 << 62, bench.booked(), 1.0)
    bench.mark(1 << 59)


def test_one_number_by_two_ways_holds_and_marks_each_group_once(tmp_path: Path) -> None:
    """Two relays pass on the same instruction, each for the group that it gets from here (H1-26)."""
    log, data = Bench(tmp_path / "log"), Bench(tmp_path / "data")
    data.a.engine.state.uuid = data.a.uuid = "d" * 32
    data.hosts["a"]._books = dict.fromkeys([data.a.uuid], *data.hosts["a"]._books.values())
    log.marking.hold(7, log.booked(), 1.0)
    other = log.marking.hold(7, data.booked(), 1.0)
    for bench in (log, data):
        with pytest.raises(Parked):
            bench.a.write(0, 1)
    with pytest.raises(Refused, match="held for another marker"):
        log.marking.hold(7, [*log.booked(), *data.booked()], 1.0)
    with pytest.raises(Refused, match="held for another marker"):
        log.marking.hold(7, log.booked(), 1.0, park=False)
    assert log.marking.hold(7, data.booked(), 1.0) == other
    seqs = log.marking.mark(Marker(7, "m7", "c", 2), other)
    assert list(seqs) == [data.a.uuid]
    data.a.write(0, 1)
    with pytest.raises(Parked):
        log.a.write(0, 1)
    log.marking.release(7)
    log.a.write(0, 1)
    with pytest.raises(NotFound):
        log.booked()[0][1].find(7)


def test_a_late_timer_does_not_end_a_later_hold(bench: Bench) -> None:
    bench.marking.hold(1, bench.booked(), 1.0)
    bench.marking.release(1)
    bench.marking.hold(2, bench.booked(), 1.0)
    bench.due[0]()
    assert bench.a.engine.parked_for == "marker"


def test_a_group_that_is_held_for_a_switchover_or_keeps_no_order_is_refused(bench: Bench) -> None:
    roles.park(bench.a.engine, "hold")
    with pytest.raises(Refused, match="something else"):
        bench.marking.hold(1, bench.booked(), 1.0)
    roles.unpark(bench.a.engine, "hold")
    with pytest.raises(Refused, match="not primary"):
        bench.marking.hold(1, bench.hosts["b"].booked([bench.service(bench.b)]), 1.0)


def test_the_image_holds_what_came_before_the_marker_and_nothing_after(bench: Bench) -> None:
    bench.a.write(0, 1)
    bench.mark(1)
    bench.a.write(0, 2)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert bench.entry(1).state == TAKEN
    assert bench.pools.images["v0.m1"][:4096] == b"\1" * 4096
    assert bench.b.image()[0][:4096] == b"\2" * 4096


def test_after_power_loss_a_marker_is_not_imaged_again(bench: Bench) -> None:
    bench.a.write(0, 1)
    bench.mark(1)
    bench.a.write(0, 2)
    bench.ship()
    follower.apply_all(bench.b.engine)
    bench.hosts["b"].forget(1)
    bench.b.power_cut()
    bench.b.start()
    bench.hosts["b"] = bench.host(bench.b)
    follower.apply_all(bench.b.engine)
    with pytest.raises(NotFound):
        bench.entry(1)


def test_a_crash_between_snapshot_and_book_leaves_one_image(bench: Bench) -> None:
    bench.a.write(0, 1)
    bench.mark(1)
    bench.ship()
    _, book = bench.hosts["b"].booked([bench.service(bench.b)])[0]
    book.add(Entry(1, "m1", 99, 1, 0, TAKING, snapshots={"v0": "v0.m1"}))
    bench.pools.images["v0.m1"] = b"taken before the crash"
    follower.apply_all(bench.b.engine)
    assert bench.entry(1).state == TAKEN
    assert bench.pools.images["v0.m1"] == b"taken before the crash"


def test_a_name_that_is_in_use_makes_the_image_missing_and_stops_nothing(bench: Bench) -> None:
    bench.pools.images["v0.m1"] = b"somebody's"
    bench.mark(1)
    bench.a.write(0, 3)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert (bench.entry(1).state, bench.b.page[APPLIED_SEQ]) == ("missed", bench.a.page[HEAD_SEQ])
    assert "already" in bench.entry(1).why


def test_a_copy_stands_at_a_suspending_marker_also_after_a_restart_until_it_is_resumed(bench: Bench) -> None:
    seq = bench.mark(1, suspend=True)
    bench.a.write(0, 2)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert bench.b.page[APPLIED_SEQ] == seq
    bench.b.kill()
    bench.b.start()
    host = bench.hosts["b"] = bench.host(bench.b)
    follower.apply_all(bench.b.engine)
    assert bench.b.page[APPLIED_SEQ] == seq
    assert host.resume([bench.service(bench.b)], 5) == []
    assert host.resume([bench.service(bench.b)], 1) == ["g"]
    follower.apply_all(bench.b.engine)
    assert bench.b.page[APPLIED_SEQ] == bench.a.page[HEAD_SEQ]


def test_a_suspension_that_was_called_off_before_its_marker_came_is_none(bench: Bench) -> None:
    bench.hosts["b"].resume([bench.service(bench.b)], 1)
    bench.mark(1, suspend=True)
    bench.a.write(0, 2)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert bench.b.page[APPLIED_SEQ] == bench.a.page[HEAD_SEQ]


def test_position_and_history_of_a_copy_that_stands_are_those_of_what_it_has_received(bench: Bench) -> None:
    bench.mark(1, suspend=True)
    bench.ship()
    follower.apply_all(bench.b.engine)
    roles.demote(bench.a.engine)
    roles.promote(bench.a.engine)
    bench.a.write(0, 2)
    bench.ship()
    follower.settle(bench.b.engine)
    status = bench.b.engine.status()
    assert (status["pos"], status["hist"]) == (bench.a.page[HEAD_SEQ], bench.a.engine.status()["hist"])


def test_a_copy_that_stands_is_not_copied_to_before_it_is_resumed(bench: Bench) -> None:
    bench.mark(1, suspend=True)
    bench.ship()
    follower.apply_all(bench.b.engine)
    image = bench.b.image()
    roles.overflow(bench.a.engine)
    bench.a.write(0, 2)
    assert bench.pair.meet().label == "stands-journal-lost"
    assert (bench.b.image(), bench.b.engine.state.copy) == (image, OK)
    bench.hosts["b"].resume([bench.service(bench.b)], 1)
    assert bench.pair.sync_up().label == "diff-journal-lost"


def test_a_copy_that_has_yet_to_come_to_its_marker_stands_when_it_says_hello(bench: Bench) -> None:
    bench.mark(1, suspend=True)
    bench.ship()  # and B has not looked at it
    roles.overflow(bench.a.engine)
    bench.a.write(0, 2)
    assert bench.pair.meet().label == "stands-journal-lost"
    assert bench.entry(1).state == TAKEN


def test_a_takeover_of_a_copy_that_stands_applies_all_it_has(bench: Bench) -> None:
    bench.mark(1, suspend=True)
    bench.a.write(0, 2)
    bench.mark(2, suspend=True)
    bench.a.write(0, 3)
    bench.ship()
    roles.promote(bench.b.engine)
    assert bench.b.image()[0][:4096] == b"\3" * 4096
    assert bench.hosts["b"].booked([bench.service(bench.b)])[0][1].suspended_seq == 0


@pytest.mark.parametrize("crash", [False, True])
def test_a_copy_goes_back_to_a_marker_and_the_old_primary_follows_by_difference(bench: Bench, crash: bool) -> None:
    bench.a.write(0, 1)
    seq = bench.mark(1)
    bench.a.write(4096, 2)
    bench.pair.flow(bench.a, bench.b)
    host = bench.hosts["b"]
    if crash:

        def dies(volume: str, snapshot: str) -> None:
            raise OSError(5, "the process dies here")

        good, bench.pools.rollback = bench.pools.rollback, dies  # type: ignore[method-assign]
        with pytest.raises(OSError):
            host.stand_at(bench.service(bench.b), 1)
        bench.b.kill()
        bench.b.start()
        assert bench.b.engine.state.copy != OK
        bench.pools.rollback = good  # type: ignore[method-assign]
        host = bench.hosts["b"] = bench.host(bench.b)
    host.stand_at(bench.service(bench.b), 1)
    assert bench.b.page[HEAD_SEQ] == seq and bench.b.image()[0][4096:8192] == bytes(4096)
    roles.promote(bench.b.engine)
    bench.b.write(8192, 3)
    bench.pair.sync_up(discard=bench.a.node_id)
    assert bench.a.image() == bench.b.image()


def test_a_cut_drops_what_lies_beyond_the_bound_for_good(bench: Bench) -> None:
    bench.a.write(0, 1)
    journal = bench.a.engine.journal
    bound = journal.header_at(journal.find(bench.a.page[HEAD_SEQ])).write_time
    bench.a.write(0, 2)
    bench.b.engine.limit_time_ns = bound
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert limits.limited(bench.b.engine) and bench.b.engine.waiting is not None
    roles.promote(bench.b.engine, at_limit=True)
    bench.b.kill()
    bench.b.start()
    assert bench.b.engine.state.role == PRIMARY and bench.b.image()[0][:4096] == b"\1" * 4096


def test_what_a_host_says_of_the_time_is_in_the_sequence_and_changes_no_volume(bench: Bench) -> None:
    before = bench.a.image()
    said = state_host_time(bench.service(bench.a), bench.a.engine.clock.last + 5 * 10**9)
    seq = bench.a.write(0, 1)
    journal = bench.a.engine.journal
    assert seq == said["seq"] + 1 and journal.header_at(journal.find(said["seq"])).kind == Kind.MARKER
    assert journal.header_at(journal.find(seq)).write_time >= bench.a.engine.clock.host_ns
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert before != bench.a.image() == bench.b.image()


def test_the_book_survives_and_forgets_the_oldest_without_images(tmp_path: Path) -> None:
    PlainFile(tmp_path / "book", create_bytes=BOOK_FILE_BYTES).close()
    book = MarkerBook(PlainFile(tmp_path / "book"), "g")
    for n in range(1, 151):
        book.add(Entry(n, f"m{n}", n, 1, 0, TAKEN if n <= 50 else MADE))
    again = MarkerBook(PlainFile(tmp_path / "book"), "g")
    kept = [entry["n"] for entry in again.entries()]
    assert kept == [*range(1, 51), *range(101, 151)] and again.highest == 150 and again.handled(1, 150, {1})


def test_markers_of_another_line_are_new_whatever_its_epochs(tmp_path: Path) -> None:
    """Epoch 5 was this node's own time as primary, which was given up; what it follows now is in epoch 2."""
    PlainFile(tmp_path / "book", create_bytes=BOOK_FILE_BYTES).close()
    book = MarkerBook(PlainFile(tmp_path / "book"), "g")
    book.add(Entry(1, "own", 200, 5, 0, MADE))
    assert book.handled(5, 199, {1, 5}) and book.handled(1, 120, {1, 5})
    assert not book.handled(2, 300, {1, 2}), "an image of it would never be taken"
    book.add(Entry(2, "theirs", 300, 2, 0, TAKEN))
    again = MarkerBook(PlainFile(tmp_path / "book"), "g")
    assert again.handled(2, 300, {1, 2}) and again.handled(2, 150, {1, 2}) and not again.handled(2, 301, {1, 2})
    assert again.handled(5, 200, {1, 2}), "it has an entry"


def test_a_copy_that_gave_up_its_own_markers_takes_images_of_those_it_follows_now(bench: Bench) -> None:
    bench.mark(1)
    bench.ship()
    follower.apply_all(bench.b.engine)
    for _ in range(4):  # B's epochs get ahead of A's
        roles.promote(bench.b.engine)
        token = Marking().hold(2, bench.hosts["b"].booked([bench.service(bench.b)]), 1.0)
        assert token
        bench.b.engine.parked_for = ""
        roles.demote(bench.b.engine)
    book = bench.hosts["b"].booked([bench.service(bench.b)])[0][1]
    book.add(Entry(3, "own", bench.b.engine.pos, bench.b.engine.epoch, 0, MADE))
    bench.pair.sync_up(discard=bench.b.node_id)
    bench.mark(4)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert bench.a.engine.epoch < bench.b.engine.state.epoch_counter << 24
    assert bench.entry(4).state == TAKEN


def test_a_second_marker_of_a_name_gets_an_image_too(bench: Bench) -> None:
    for n in (1, 2):
        token = bench.marking.hold(n, bench.booked(), 1.0)
        bench.marking.mark(Marker(n, "monday", "c", 1), token)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert [bench.entry(n).state for n in (1, 2)] == ["taken", "taken"]
    assert bench.entry(1).snapshots != bench.entry(2).snapshots


def test_names_of_images_fit_and_differ() -> None:
    assert image_name("db", "monday", 1) == "db.monday"
    long = [image_name("v" * 60, "m" * 40, n) for n in (1, 2)]
    assert max(map(len, long)) <= 63 and long[0] != long[1]
    assert image_name("db", "monday", 26, twice=True) == "db.monday.1a"


def test_no_record_ends_what_a_crash_left_of_going_back(bench: Bench) -> None:
    """A SYNCED record of somebody else's copy says nothing of volumes that are half taken back."""
    bench.mark(1)
    bench.ship()
    follower.apply_all(bench.b.engine)

    def dies(*_: object) -> None:
        raise OSError("the process ended")

    bench.pools.rollback = dies  # type: ignore[method-assign]
    with pytest.raises(OSError, match="ended"):
        bench.hosts["b"].stand_at(bench.service(bench.b), 1)
    with bench.a.engine.lock:
        bench.a.engine.append_control(Kind.SYNCED)
    bench.ship()
    follower.apply_all(bench.b.engine)
    assert bench.b.engine.state.copy != OK and bench.b.engine.status()["rewinding"]
