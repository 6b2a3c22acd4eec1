"""The node's clock: times rise and are unique, whatever the wall clock, kills and power cuts do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from replicator.capture import roles
from replicator.capture.clock import (
    AHEAD_NS,
    COUNTED_NS,
    HOST_AHEAD_NS,
    RESERVE_FILE_BYTES,
    WriteClock,
    map_clock_page,
)
from replicator.core.errors import BadInput
from replicator.journal.files import PlainFile
from tests.testing.pairharness import running_pair

START = 1_700_000_000 * 10**9
HOUR = 3600 * 10**9


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class Node:
    """What of a node outlives its processes: a page that a power cut takes, and a file."""

    def __init__(self, folder: Path) -> None:
        self.wall, self.boot, self._folder = Wall(), 7, folder
        PlainFile(folder / "clock", create_bytes=RESERVE_FILE_BYTES).close()

    def start(self) -> WriteClock:
        page = map_clock_page(self._folder / "page")
        return WriteClock(self.wall, self.boot, page, PlainFile(self._folder / "clock"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_times_are_unique_though_the_clock_stands_still_and_threads_ask_at_once(node: Node) -> None:
    clock, got = node.start(), []

    def ask() -> None:
        got.extend(clock.next() for _ in range(500))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 2000


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_of_the_clock_and_its_correction_neither_stop_nor_lower_times(node: Node, step: int) -> None:
    clock = node.start()
    times = [clock.next()]
    for offset in (step, 0, step, 0):
        node.wall.now = START + offset
        for _ in range(3):
            times.append(clock.next())
            clock.extend()
    assert times == sorted(set(times))
    assert times[-1] <= START + max(step, 0) + AHEAD_NS


def test_a_step_forward_is_followed_no_further_than_the_reserve_until_that_has_grown(node: Node) -> None:
    clock = node.start()
    node.wall.now += HOUR
    assert clock.next() <= START + AHEAD_NS
    assert clock.wants_extending and clock.extend()
    assert clock.next() == START + HOUR


def test_a_killed_process_goes_on_above_its_last_time(node: Node) -> None:
    last = [node.start().next() for _ in range(3)][-1]
    node.wall.now -= HOUR
    assert node.start().next() == last + 1


def test_after_power_loss_no_time_is_given_out_again(node: Node) -> None:
    clock = node.start()
    node.wall.now += AHEAD_NS * 4
    clock.extend()
    last = clock.next()
    node.boot, node.wall.now = 8, START - HOUR
    assert node.start().next() > last


def test_after_power_loss_times_follow_the_wall_clock_when_it_has_gone_on(node: Node) -> None:
    node.start().next()
    node.boot, node.wall.now = 8, START + AHEAD_NS + COUNTED_NS + HOUR
    clock = node.start()
    assert clock.next() == node.wall.now


def test_an_orderly_stop_gives_the_reserve_back(node: Node) -> None:
    clock = node.start()
    last = clock.next()
    clock.close()
    node.boot = 8
    assert node.start().next() == last + 1


def test_a_reserve_that_cannot_be_written_stops_nothing_and_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = node.start()

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PlainFile, "pwrite_durable", refuse)
    node.wall.now += HOUR
    assert not clock.extend() and "reserve" in clock.error
    times = [clock.next() for _ in range(100)]
    assert times == sorted(set(times)) and times[-1] <= START + AHEAD_NS + 100
    monkeypatch.undo()
    node.boot = 8
    assert node.start().next() > times[-1]


def test_times_that_were_seen_elsewhere_are_not_given_out(node: Node) -> None:
    clock = node.start()
    clock.note(START + HOUR)
    assert clock.next() == START + HOUR + 1
    node.boot = 8
    assert node.start().next() > START + HOUR + 1


def test_an_older_host_time_lowers_nothing_and_a_newer_one_raises(node: Node) -> None:
    clock = node.start()
    first = clock.next()
    clock.state_host_time(first - HOUR)
    assert clock.next() == first + 1 and clock.host_ns == first - HOUR
    clock.state_host_time(START + HOUR // 2)
    assert clock.next() >= START + HOUR // 2


def test_a_host_in_another_century_is_refused(node: Node) -> None:
    clock = node.start()
    with pytest.raises(BadInput, match="ahead"):
        clock.state_host_time(START + HOST_AHEAD_NS + HOUR)


def test_a_secondary_that_becomes_primary_goes_on_above_what_it_applied() -> None:
    pair = running_pair()
    pair.a.now_ns += HOUR
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    applied = pair.b.engine.applied_time_ns
    roles.promote(pair.b.engine)
    journal = pair.b.engine.journal
    assert journal.header_at(journal.find(pair.b.write(0, 2))).write_time > applied > START + HOUR
