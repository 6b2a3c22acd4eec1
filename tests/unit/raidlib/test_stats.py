"""Rates of areas: classes, decay, proportion, memory."""

from __future__ import annotations

import random

import pytest

from raidlib.stats import PAGE_AREAS, AreaRates, Request, named, which_are_sequential

AREA = 1 << 20
KIB = 1 << 10


def requests(offsets: list[int], length: int = 4 * KIB, is_read: bool = False, took: float = 0.0) -> list[Request]:
    return [(off, length, float(at), at + took, is_read) for at, off in enumerate(offsets)]


def test_a_request_that_goes_on_from_another_is_sequential() -> None:
    assert which_are_sequential(requests([0, 4096, 8192, 65536])) == [False, True, True, False]
    assert which_are_sequential(requests([8192, 4096, 0])) == [True, True, False], "they started in another order"
    assert which_are_sequential(requests([0, 0, 0])) == [False] * 3


def test_streams_beside_each_other_are_sequential_and_one_long_ago_is_not() -> None:
    streams = [at * 4096 + stream * AREA for at in range(50) for stream in range(8)]
    assert which_are_sequential(requests(streams))[8:] == [True] * 392
    far = [0, *(AREA * (2 + at) for at in range(40)), 4096]
    assert not any(which_are_sequential(requests(far)))


def test_a_read_does_not_go_on_from_a_write() -> None:
    assert which_are_sequential([(0, 4096, 0.0, 0.0, False), (4096, 4096, 1.0, 1.0, True)]) == [False, False]


def test_rates_are_of_the_area_and_class_and_in_proportion_to_the_time_watched() -> None:
    rates = AreaRates(AREA, 0.0)
    rng = random.Random(1)
    rates.add(requests([rng.randrange(250) * 4096 for _ in range(100)], took=0.001), 4.0, 10.0)
    rates.add(requests([5 * AREA + at * 8192 for at in range(100)], 8192, is_read=True), 1.0, 10.0)
    found = {index: named(row) for index, row in rates.rates(10.0).items()}
    assert sorted(found) == [0, 5]
    assert found[0].requests["random_write"] == pytest.approx(40, rel=0.25)
    assert found[0].bytes["random_write"] == found[0].requests["random_write"] * 4096
    assert found[0].utilisation == pytest.approx(0.04, rel=0.02)
    assert found[5].requests["sequential_read"] == pytest.approx(9.9, rel=0.02)
    assert found[5].random < 0.2 < found[5].sequential


@pytest.mark.parametrize("missed", [True, False])
def test_a_slow_stream_is_seen_as_long_as_nothing_is_missed(missed: bool) -> None:
    rates = AreaRates(AREA, 0.0)
    for now in range(20):
        rates.add([(now * 4096, 4096, float(now), now + 0.1, True)], 1.0, now + 1.0, missed=missed)
    found = named(rates.rates(20.0)[0])
    assert (found.sequential > 10 * found.random) is not missed


def test_a_request_over_two_areas_counts_once_and_its_bytes_where_they_are() -> None:
    rates = AreaRates(AREA, 0.0)
    rates.add([(AREA - 4096, 12288, 0.0, 0.3, False)], 1.0, 1.0)
    found = {index: named(row) for index, row in rates.rates(1.0).items()}
    assert found[1].requests["random_write"] == 0 < found[0].requests["random_write"]
    assert found[1].bytes["random_write"] == pytest.approx(2 * found[0].bytes["random_write"])
    assert found[1].utilisation == pytest.approx(0.2, rel=0.02)


def test_what_happened_a_half_life_ago_counts_half() -> None:
    rates = AreaRates(AREA, 0.0, half_life_s=10.0)
    for now in range(1, 201):
        rates.add(requests([0]), 5.0, float(now))
    assert named(rates.rates(200.0)[0]).requests["random_write"] == pytest.approx(5.0, rel=0.05)
    assert named(rates.rates(210.0)[0]).requests["random_write"] == pytest.approx(2.5, rel=0.05)


def test_memory_follows_what_is_used_and_comes_back() -> None:
    rates = AreaRates(AREA, 0.0, half_life_s=10.0)
    rates.add(requests([at * PAGE_AREAS * AREA for at in range(50)]), 1.0, 1.0)
    assert rates.memory_bytes == 50 * PAGE_AREAS * 9 * 4
    rates.add(requests([0]), 1.0, 500.0)
    rates.forget_old(500.0)
    assert rates.memory_bytes == PAGE_AREAS * 9 * 4
    assert list(rates.rates(500.0)) == [0]
