"""Frame sizes and gathering: large with a backlog, at once without, never above what a limit or a window wants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.batching import (
    APPLY_CROWD_S,
    APPLY_GATHER_S,
    GATHER_CROWD_S,
    GATHER_MAX_S,
    GATHER_MIN_S,
    LEAST_BYTES,
    SHARE_BYTES,
    Crowd,
    Flying,
    RoundTrip,
    apply_gather_s,
    frame_bytes,
    gather_s,
)

MOST = 1 << 20


def test_a_backlog_goes_out_in_the_largest_frames_and_little_goes_at_once() -> None:
    assert frame_bytes(MOST, 50 << 20, 1, 0, 0) == MOST
    assert frame_bytes(MOST, 4160, 1, 0, 0) == 4160


def test_several_connections_share_a_backlog() -> None:
    assert frame_bytes(MOST, 1 << 20, 4, 0, 0) == 256 << 10
    assert frame_bytes(MOST, 100 << 10, 4, 0, 0) == SHARE_BYTES
    assert frame_bytes(MOST, 100 << 20, 4, 0, 0) == MOST


def test_under_a_limit_a_frame_takes_a_tenth_of_a_second() -> None:
    assert frame_bytes(MOST, 50 << 20, 1, 1_000_000, 0) == 100_000
    assert frame_bytes(MOST, 50 << 20, 1, 4096, 0) == LEAST_BYTES


def test_a_pulled_window_holds_four_frames() -> None:
    assert frame_bytes(MOST, 50 << 20, 1, 0, 1 << 20) == 256 << 10


@given(st.integers(64, 1 << 40), st.integers(1, 8), st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_a_frame_is_never_empty_nor_longer_than_the_backlog(backlog: int, lanes: int, rate: int, window: int) -> None:
    assert 0 < frame_bytes(MOST, backlog, lanes, rate, window) <= min(MOST, backlog)


def test_gathering_follows_the_round_trip_within_its_bounds() -> None:
    assert gather_s(0.0) == gather_s(0.0002) == GATHER_MIN_S
    assert gather_s(0.02) == 0.005
    assert gather_s(0.3) == GATHER_MAX_S


def test_the_round_trip_is_measured_only_while_nothing_else_is_under_way() -> None:
    trip = RoundTrip()
    trip.sent(10, 9, 10, 1.0)
    trip.sent(20, 9, 11, 1.001)  # record 10 is under way
    trip.acked(9, 1.01)
    trip.acked(10, 1.02)
    assert abs(trip.seconds - 0.02) < 1e-9
    trip.sent(30, 10, 21, 2.0)  # 11..20 are under way
    trip.acked(30, 9.0)
    assert abs(trip.seconds - 0.02) < 1e-9
    trip.sent(40, 30, 31, 10.0)
    trip.acked(40, 10.1)
    assert 0.02 < trip.seconds < 0.04


def test_busy_links_share_the_frames_that_one_would_send() -> None:
    assert gather_s(0.0, 1) == GATHER_MIN_S
    assert gather_s(0.0, 10) == pytest.approx(10 * GATHER_MIN_S)
    assert gather_s(0.0, 1000) == GATHER_CROWD_S
    assert gather_s(1.0, 1) == GATHER_MAX_S, "a long line alone is no crowd"
    assert apply_gather_s(1) == APPLY_GATHER_S and apply_gather_s(1000) == APPLY_CROWD_S


def test_a_crowd_is_whoever_was_busy_a_moment_ago() -> None:
    crowd, links = Crowd(), [object() for _ in range(5)]
    assert [crowd.note(link, 100.0) for link in links] == [1, 2, 3, 4, 5]
    assert crowd.note(links[0], 100.2) == 5, "the others had no time yet to come again"
    assert crowd.note(links[0], 100.4) == 1
    assert crowd.note(links[1], 107.0) == 1


def test_two_frames_fly_before_what_is_waited_for_gathers() -> None:
    flying = Flying()
    flying.sent(10)
    assert not flying.many, "a second writer does not wait for the first one's answer"
    flying.sent(12)
    assert flying.many
    flying.acked(9)
    assert flying.many, "that was of an earlier frame"
    flying.acked(11)
    assert not flying.many
    flying.sent(20)
    flying.acked(20)
    assert not flying.many
    flying.sent(21)
    assert not flying.many
