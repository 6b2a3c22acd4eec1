"""The token bucket keeps its rate whatever the frames and the clock do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.ratelimit import BURST_S, TokenBucket


def bucket_of(rate: int, now: float = 0.0) -> TokenBucket:
    bucket = TokenBucket()
    bucket.set_rate(rate, now)
    return bucket


def test_without_a_limit_nothing_waits() -> None:
    bucket = TokenBucket()
    bucket.spend(1 << 40)
    assert bucket.wait_s(0.0) == 0.0


def test_a_debt_is_waited_for() -> None:
    bucket = bucket_of(1000)
    assert bucket.wait_s(1.0) == 0.0
    bucket.spend(5000 + int(1000 * BURST_S))
    assert bucket.wait_s(1.0) == pytest.approx(5.0, abs=0.01)
    assert bucket.wait_s(6.1) == 0.0


@given(
    rate=st.integers(4096, 1 << 30),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 1 << 20)), min_size=1, max_size=60),
)
def test_over_any_time_the_rate_is_kept_but_for_a_burst_and_a_frame(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, sent = bucket_of(rate), 0.0, 0
    for pause, size in steps:
        now += pause
        if bucket.wait_s(now) == 0.0:
            bucket.spend(size)
            sent += size
    assert sent <= rate * now + rate * BURST_S + (1 << 20)


@given(rate=st.integers(4096, 1 << 30), size=st.integers(1, 1 << 26))
def test_who_waits_as_told_may_send(rate: int, size: int) -> None:
    bucket = bucket_of(rate)
    bucket.wait_s(1.0)
    bucket.spend(size)
    assert bucket.wait_s(1.0 + bucket.wait_s(1.0)) == 0.0


def test_the_whole_rate_can_be_used() -> None:
    bucket, now, sent = bucket_of(1_000_000), 0.0, 0
    while now < 10.0:
        wait = bucket.wait_s(now)
        if wait:
            now += wait
            continue
        bucket.spend(100_000)
        sent += 100_000
    assert 9_900_000 <= sent <= 10_300_000


def test_changing_the_rate_neither_forgives_a_debt_nor_makes_one() -> None:
    bucket = bucket_of(1000)
    bucket.wait_s(1.0)
    bucket.spend(10_000)
    bucket.set_rate(2000, 1.0)
    assert bucket.wait_s(1.0) == pytest.approx(9_900 / 2000, abs=0.01)
    bucket.set_rate(0, 1.0)
    assert bucket.wait_s(1.0) == 0.0
    bucket.set_rate(1000, 100.0)
    bucket.spend(1)
    assert bucket.wait_s(100.0) <= 10.0


def test_a_clock_that_stands_still_or_steps_back_gives_nothing() -> None:
    bucket = bucket_of(1000, 50.0)
    bucket.wait_s(51.0)
    bucket.spend(1100)
    assert bucket.wait_s(20.0) == pytest.approx(1.0, abs=0.01)
    assert bucket.wait_s(51.0) == pytest.approx(1.0, abs=0.01)
