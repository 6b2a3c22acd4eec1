from __future__ import annotations

import itertools

import pytest

from raidlib.errors import BadInput
from raidlib.geometry import Geometry

SHAPES = [(0, 1), (0, 3), (1, 2), (1, 3), (5, 3), (5, 6), (6, 4), (6, 7), (10, 4), (10, 6)]


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_every_column_of_a_row_is_on_its_own_member(level: int, members: int) -> None:
    geometry = Geometry(level, members, 4096, 1 << 20)
    for row in range(3 * members):
        if geometry.copies > 1:
            held = [m for column in range(geometry.data_chunks) for m in geometry.copies_of(column)]
        else:
            held = [geometry.member_of(row, c) for c in range(geometry.data_chunks + geometry.parity_chunks)]
        assert sorted(held) == list(range(members))


@pytest.mark.parametrize(("level", "members"), [(5, 3), (5, 6), (6, 4), (6, 7)])
def test_parity_is_spread_evenly(level: int, members: int) -> None:
    geometry = Geometry(level, members, 4096, 1 << 20)
    holders = [geometry.member_of(row, geometry.data_chunks) for row in range(members)]
    assert sorted(holders) == list(range(members))


def test_raid5_rotates_left_symmetric_as_linux_md_does() -> None:
    geometry = Geometry(5, 4, 4096, 1 << 20)
    rows = [[geometry.member_of(row, c) for c in range(4)] for row in range(4)]
    # columns d0 d1 d2 P -> members; md: P on the last member, moving left, data starting right of it
    assert rows == [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]]


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_an_area_is_whole_rows_and_holds_all_its_bytes(level: int, members: int) -> None:
    geometry = Geometry(level, members, 4096, 64 << 10)
    room = geometry.chunks_per_area * geometry.chunk_bytes
    assert geometry.area_bytes <= room < geometry.area_bytes + geometry.data_chunks * geometry.chunk_bytes
    assert geometry.area_member_bytes == geometry.rows_per_area * geometry.chunk_bytes


@pytest.mark.parametrize(("level", "members", "bears"), [(0, 3, 0), (1, 3, 2), (5, 4, 1), (6, 5, 2)])
def test_a_group_survives_its_level_of_lost_members_and_not_one_more(level: int, members: int, bears: int) -> None:
    geometry = Geometry(level, members, 4096, 1 << 20)
    for n in range(members + 1):
        for lost in itertools.combinations(range(members), n):
            assert geometry.survives(set(lost)) == (n <= bears)


def test_raid10_survives_any_loss_that_leaves_one_of_each_pair() -> None:
    geometry = Geometry(10, 4, 4096, 1 << 20)
    assert geometry.survives({0, 2}) and geometry.survives({1, 3})
    assert not geometry.survives({0, 1}) and not geometry.survives({2, 3, 0})


@pytest.mark.parametrize(
    ("level", "members", "chunk", "says"),
    [
        (4, 3, 4096, "no RAID level 4"),
        (0, 0, 4096, "at least 1"),
        (1, 1, 4096, "at least 2"),
        (5, 2, 4096, "at least 3"),
        (6, 3, 4096, "at least 4"),
        (10, 5, 4096, "even number"),
        (6, 33, 4096, "at most 32"),
        (0, 2, 2048, "chunk size 2048"),
        (0, 2, 12288, "chunk size 12288"),
        (0, 2, 2 << 20, "chunk size 2097152"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_name(level: int, members: int, chunk: int, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        Geometry(level, members, chunk, 1 << 20)
    assert caught.value.way_out


def test_an_area_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(BadInput, match="smaller than a row of 4 chunks"):
        Geometry(6, 6, 1 << 20, 1 << 20)
