"""Area maps behave like the dictionaries they stand for, share what is equal, and stay small."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidlib.areamap import PAGE_AREAS, AreaMap, area_of, group_of, place_of
from raidlib.state import PoolState, VolumeInfo

PLACES = st.builds(place_of, st.integers(0, 3), st.integers(0, 5000))
INDEXES = st.integers(0, 3 * PAGE_AREAS)
CHANGES = st.lists(st.tuples(INDEXES, st.one_of(st.just(0), PLACES)), max_size=60)


def test_a_place_is_a_group_and_an_area() -> None:
    assert (group_of(place_of(0, 0)), area_of(place_of(0, 0))) == (0, 0)
    assert (group_of(place_of(63, (1 << 32) - 1)), area_of(place_of(63, (1 << 32) - 1))) == (63, (1 << 32) - 1)
    assert place_of(0, 0) != 0


@settings(deadline=None, max_examples=60)
@given(CHANGES, CHANGES, CHANGES)
def test_a_map_and_its_copy_go_their_own_ways(
    first: list[tuple[int, int]], mine: list[tuple[int, int]], its: list[tuple[int, int]]
) -> None:
    areas, expected = AreaMap(), {}
    for index, place in first:
        areas[index] = expected[index] = place
    other, other_expected = areas.copy(), dict(expected)
    for one, model, changes in ((areas, expected, mine), (other, other_expected, its)):
        for index, place in changes:
            one[index] = model[index] = place
    for one, model in ((areas, expected), (other, other_expected)):
        mapped = {index: place for index, place in model.items() if place}
        assert dict(one.items()) == mapped and len(one) == one.mapped == len(mapped)
        assert list(one) == sorted(mapped) and all(index in one for index in mapped)
    differing = {i for i in {*expected, *other_expected} if expected.get(i, 0) != other_expected.get(i, 0)}
    assert areas.differences(other).tolist() == sorted(differing)
    assert AreaMap.decode(other.encode(areas), areas) == other
    assert AreaMap.decode(other.encode(None), None) == other


def test_taking_away_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        del AreaMap()[5]


def test_a_map_with_an_absurd_count_is_refused() -> None:
    with pytest.raises(ValueError, match="areas"):
        AreaMap.decode(b"\xff" * 32, None)


def test_a_tebibyte_in_areas_of_4_mib_encodes_fast_and_its_snapshots_cost_little() -> None:
    areas = 1 << 18
    state = PoolState("a" * 32, "tank", 4 << 20)
    big = AreaMap()
    for index in range(areas):
        big[index] = place_of(0, index * 7 % areas)  # no two follow one another
    state.volumes[1] = VolumeInfo(1, "v", "f" * 32, 1 << 40, 0, True, big)
    before = time.process_time()
    payload = state.encode()
    assert time.process_time() - before < 0.05
    for number in range(2, 102):
        snapshot = VolumeInfo(number, f"s{number}", "f" * 32, 1 << 40, 0, True, big.copy(), base=number - 1)
        state.volumes[number] = snapshot
        big[number] = place_of(0, areas + number)
    with_snapshots = state.encode()
    assert len(with_snapshots) < len(payload) + 100 * 400
    assert PoolState.decode(with_snapshots, 0).volumes == state.volumes
    pages = {id(page): page for v in state.volumes.values() for page in v.areas._pages if page is not None}
    assert sum(map(sys.getsizeof, pages.values())) < 3.2 * (1 << 20)
