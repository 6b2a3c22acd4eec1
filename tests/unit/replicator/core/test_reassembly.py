"""Whatever order runs arrive in, and however often, they are given out in the order of seq, each record once."""

from __future__ import annotations

import itertools
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.reassembly import OVERHEAD_BYTES, Reassembly

Run = tuple[int, int]
"""First and last seq."""


class Appender:
    """Takes runs as a receiver does: what comes next is appended, what is beyond is held, or refused for now."""

    def __init__(self, window_bytes: int) -> None:
        self.early: Reassembly[Run] = Reassembly(window_bytes)
        self.records: list[int] = []

    @property
    def expect(self) -> int:
        return len(self.records) + 1

    def offer(self, run: Run, size: int) -> bool:
        if run[0] > self.expect:
            if not self.early.fits(size):
                return False
            self.early.hold(run[0], size, run)
            return True
        self._append(run)
        while (held := self.early.ready(self.expect)) is not None:
            self._append(held)
            self.early.release()
        return True

    def _append(self, run: Run) -> None:
        self.records += range(self.expect, run[1] + 1)


def runs_of(cuts: list[int]) -> list[Run]:
    """Cut 1..sum(cuts) into runs of these lengths."""
    ends = list(itertools.accumulate(cuts))
    return [(end - length + 1, end) for end, length in zip(ends, cuts, strict=True)]


def test_every_order_of_six_runs_ends_in_the_same_sequence() -> None:
    runs = runs_of([1, 3, 2, 1, 4, 2])
    for order in itertools.permutations(runs):
        sink = Appender(1 << 20)
        for run in order:
            assert sink.offer(run, 100)
        assert sink.records == list(range(1, 14))
        assert len(sink.early) == 0 and sink.early.held_bytes == 0


def test_every_order_of_four_runs_that_all_come_twice() -> None:
    runs = runs_of([2, 1, 3, 1])
    for order in set(itertools.permutations(runs * 2)):
        sink = Appender(1 << 20)
        for run in order:
            assert sink.offer(run, 100)
        assert sink.records == list(range(1, 8))
        assert len(sink.early) == 0


def test_what_follows_a_lost_run_is_never_given_out() -> None:
    runs = runs_of([1] * 6)
    for lost in range(6):
        for order in itertools.permutations(run for run in runs if run[0] != lost + 1):
            sink = Appender(1 << 20)
            for run in order:
                assert sink.offer(run, 100)
            assert sink.records == list(range(1, lost + 1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_lanes_of_any_speed_and_any_small_window_never_stop_for_good(data: st.DataObject) -> None:
    """Each lane keeps order; a lane whose head is refused is not read. Something can always be taken (H1-13)."""
    cuts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=30))
    lanes: list[deque[Run]] = [deque() for _ in range(data.draw(st.integers(1, 5)))]
    for run in runs_of(cuts):
        lanes[data.draw(st.integers(0, len(lanes) - 1))].append(run)
        if data.draw(st.booleans()):
            lanes[data.draw(st.integers(0, len(lanes) - 1))].append(run)  # the same again, somewhere, later
    window = data.draw(st.integers(0, 4 * (OVERHEAD_BYTES + 500)))
    sink = Appender(window)
    while any(lanes):
        able = [lane for lane in lanes if lane]
        order = data.draw(st.permutations(able))
        for lane in order:
            if sink.offer(lane[0], 100 * (lane[0][1] - lane[0][0] + 1)):
                lane.popleft()
                break
        else:
            raise AssertionError(f"no lane can go on, {sink.expect} comes next: {lanes}")
        assert sink.early.held_bytes <= window
        assert sink.records == list(range(1, sink.expect))
    assert sink.records == list(range(1, sum(cuts) + 1))


@given(
    arrivals=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=60),
    window=st.integers(0, 5000),
)
def test_arbitrary_overlapping_runs_give_a_gapless_sequence(arrivals: list[tuple[int, int]], window: int) -> None:
    sink = Appender(window)
    for first, more in arrivals:
        sink.offer((first, first + more), 50 * (more + 1))
        assert sink.early.held_bytes <= window
    assert sink.records == list(range(1, len(sink.records) + 1))
    assert sink.early.ready(sink.expect) is None


def test_of_two_runs_that_begin_alike_the_longer_one_counts() -> None:
    for order in itertools.permutations([(1, 2), (3, 4), (3, 7)]):
        sink = Appender(1 << 20)
        for run in order:
            assert sink.offer(run, 100)
        assert sink.records == list(range(1, 8))


def test_a_run_may_be_looked_at_again_until_it_is_released() -> None:
    early: Reassembly[str] = Reassembly(10_000)
    early.hold(5, 10, "five")
    early.hold(3, 10, "three")
    assert early.ready(2) is None
    assert early.ready(3) == early.ready(3) == "three"
    early.release()
    assert early.ready(4) is None and early.ready(9) == "five"
    assert early.held_bytes == 10 + OVERHEAD_BYTES and early.most_bytes == 2 * (10 + OVERHEAD_BYTES)


def test_tiny_runs_are_bounded_by_what_they_cost() -> None:
    early: Reassembly[int] = Reassembly(100 * OVERHEAD_BYTES)
    for seq in itertools.count(2):
        if not early.fits(1):
            break
        early.hold(seq, 1, seq)
    assert len(early) < 100
