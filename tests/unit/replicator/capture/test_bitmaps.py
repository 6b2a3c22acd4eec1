"""History bitmaps and the copy list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.bitmaps import BLOCK_BYTES, TODO, Bitmaps, BlockMap, blocks_of


class Memory:
    """A mapped file that is only memory."""

    def __init__(self, size: int) -> None:
        self.buf = bytearray(size)

    def sync(self) -> None:
        """Nothing to do."""


def block_map(size: int) -> BlockMap:
    return BlockMap(Memory(blocks_of(size)), size)


def bitmaps(*sizes: int, starts: dict[int, int] | None = None) -> Bitmaps:
    return Bitmaps([block_map(size) for size in sizes], starts if starts is not None else {})


sizes = st.integers(1, 40 * BLOCK_BYTES)


@given(sizes, st.data())
def test_mark_sets_exactly_the_blocks_that_a_range_touches(size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    m = block_map(size)
    m.mark(5, offset, length)
    touched = {at // BLOCK_BYTES for at in (*range(offset, offset + length, BLOCK_BYTES), offset + length - 1)}
    assert {i for i, b in enumerate(m.bytes) if b} == touched
    assert all(m.bytes[i] == 5 for i in touched)


@given(sizes, st.data())
def test_covered_blocks_are_those_with_every_byte_in_the_range(size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    m = block_map(size)
    m.set_all(TODO | 1)
    m.clear_covered(TODO, offset, length)
    for block in range(m.blocks):
        first, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size)
        covered = offset <= first and end <= offset + length
        assert m.bytes[block] == (1 if covered else TODO | 1)


@given(sizes, st.sets(st.integers(0, 39)), st.integers(1, 9))
def test_runs_of_the_copy_list_name_every_block_once(size: int, wanted: set[int], most: int) -> None:
    maps = bitmaps(size)
    wanted = {b for b in wanted if b < maps.maps[0].blocks}
    for block in wanted:
        maps.maps[0].bytes[block] |= TODO
    found: list[int] = []
    while (run := maps.next_todo(most)) is not None:
        volume, first, count = run
        assert volume == 0
        assert 1 <= count <= most
        found += range(first, first + count)
        maps.maps[0].clear_blocks(TODO, first, count)
    assert found == sorted(wanted)
    assert maps.todo_blocks() == 0


places = st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9)))


@given(places, places)
def test_blocks_that_join_the_copy_list_behind_the_last_look_are_found(
    first: set[tuple[int, int]], later: set[tuple[int, int]]
) -> None:
    maps = Bitmaps([block_map(10 * BLOCK_BYTES) for _ in range(3)], {})
    found: set[tuple[int, int]] = set()
    for wanted in (first, later):
        for volume, block in wanted:
            maps.maps[volume].bytes[block] |= TODO
        for _ in wanted if wanted is first else range(31):
            run = maps.next_todo(1)
            if run is None:
                break
            found.add(run[:2])
            maps.maps[run[0]].clear_blocks(TODO, run[1], 1)
    assert maps.todo_blocks() == 0
    assert found == first | later


@given(sizes, st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)))
def test_packed_bitmaps_travel_and_unite(size: int, here: set[int], there: set[int]) -> None:
    mine, theirs = block_map(size), block_map(size)
    for m, blocks in ((mine, here), (theirs, there)):
        for b in blocks:
            if b < m.blocks:
                m.bytes[b] |= 2
    mine.merge_packed(2, theirs.packed(2))
    assert {i for i, b in enumerate(mine.bytes) if b & 2} == {b for b in here | there if b < mine.blocks}


def test_a_packed_bitmap_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        block_map(20 * BLOCK_BYTES).merge_packed(1, b"\0")


def test_the_newest_bitmap_that_reaches_back_is_used() -> None:
    maps = bitmaps(BLOCK_BYTES, starts={0: 10, 1: 50, 2: 90})
    assert maps.newest_for(8) is None
    assert maps.newest_for(9) == 1
    assert maps.newest_for(48) == 1
    assert maps.newest_for(49) == 2
    assert maps.newest_for(1000) == 4


def test_a_new_bitmap_is_empty_and_shares_a_full_house() -> None:
    maps = bitmaps(4 * BLOCK_BYTES, starts={0: 10, 1: 50, 2: 90})
    maps.maps[0].mark(maps.live, 0, 1)
    maps.open(120)
    assert sorted(maps.starts.values()) == [10, 50, 120], "the older ones mark all that the third marked"
    assert maps.newest_for(200) == 4
    assert maps.maps[0].bytes[0] == 3
    maps.open(120)
    assert sorted(maps.starts.values()) == [10, 50, 120]


def test_old_bitmaps_are_dropped_only_for_one_that_is_open() -> None:
    maps = bitmaps(BLOCK_BYTES, starts={0: 10, 1: 50})
    maps.drop_older(40)
    assert sorted(maps.starts.values()) == [10, 50]
    maps.drop_older(50)
    assert sorted(maps.starts.values()) == [50]
    assert maps.live == 2


def test_redo_marks_only_bitmaps_that_had_begun() -> None:
    maps = bitmaps(BLOCK_BYTES, starts={0: 10, 1: 50})
    assert maps.live_at(49) == 1
    assert maps.live_at(50) == 3
    assert maps.live_at(9) == 0


def test_unclean_ranges_mark_every_bitmap_and_may_reach_beyond_the_volume() -> None:
    maps = bitmaps(BLOCK_BYTES + 100, starts={0: 10, 2: 50})
    maps.mark_unclean([(0, BLOCK_BYTES, BLOCK_BYTES), (0, 8 * BLOCK_BYTES, 4096), (5, 0, 4096)])
    assert bytes(maps.maps[0].bytes) == bytes([0, 5])
