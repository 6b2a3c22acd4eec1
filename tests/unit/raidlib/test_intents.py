from __future__ import annotations

import threading

import pytest

from raidlib.intents import (
    AHEAD_REGIONS,
    CLEAR,
    COOL,
    SECTOR_BYTES,
    SECTOR_REGIONS,
    IntentMap,
    decode_map,
    empty_map,
)


class Store:
    """Stands for the members: one map, and whether each write was durable."""

    def __init__(self, regions: int) -> None:
        self.data = bytearray(empty_map(regions))
        self.durable: list[bool] = []

    def __call__(self, offset: int, data: bytes, durable: bool) -> None:
        self.data[offset : offset + len(data)] = data
        self.durable.append(durable)


def new_map(regions: int = 100) -> tuple[Store, IntentMap]:
    store = Store(regions)
    return store, IntentMap(regions, (), store)


def test_a_mark_is_durable_on_the_members_when_mark_returns() -> None:
    store, intents = new_map()
    intents.mark({5, 40})
    assert decode_map(bytes(store.data), 100) == {5, 40}
    assert store.durable == [True]


def test_marking_again_costs_no_write() -> None:
    store, intents = new_map()
    intents.mark({5})
    intents.mark({5})
    intents.cool()
    intents.mark({5})
    assert len(store.durable) == 1


def test_a_sequential_writer_marks_ahead() -> None:
    store, intents = new_map()
    for region in range(30):
        intents.mark({region})
    assert len(store.durable) <= 2 + 30 // AHEAD_REGIONS + 1


def test_only_a_region_that_stayed_cool_is_cleared() -> None:
    store, intents = new_map()
    intents.mark({3, 70})
    assert intents.cool() == []
    idle = intents.cool()
    intents.mark({70})
    assert intents.clear(idle) == 1
    assert intents.states[3] == CLEAR
    assert decode_map(bytes(store.data), 100) == {70}


def test_a_torn_sector_counts_as_all_marked() -> None:
    data = bytearray(empty_map(SECTOR_REGIONS + 10))
    data[7] ^= 1
    assert decode_map(bytes(data), SECTOR_REGIONS + 10) == set(range(SECTOR_REGIONS))


def test_the_image_is_what_the_members_hold() -> None:
    store, intents = new_map(SECTOR_REGIONS * 2)
    intents.mark({1, SECTOR_REGIONS + 1})
    assert intents.image() == bytes(store.data)
    assert len(intents.image()) == 2 * SECTOR_BYTES


def test_marks_found_at_open_are_cool() -> None:
    intents = IntentMap(10, {4}, Store(10))
    assert intents.states[4] == COOL
    assert intents.marked() == [4]


def test_touches_that_come_together_share_a_write() -> None:
    begun, go = threading.Event(), threading.Event()
    writes: list[int] = []

    def slow(_offset: int, _data: bytes, _durable: bool) -> None:
        writes.append(1)
        begun.set()
        go.wait(5)

    intents = IntentMap(1000, (), slow)
    first = threading.Thread(target=intents.mark, args=({0},))
    first.start()
    begun.wait(5)
    others = [threading.Thread(target=intents.mark, args=({100 * i},)) for i in range(1, 9)]
    for thread in others:
        thread.start()
    while len(intents._wanted) < 8:
        pass
    go.set()
    for thread in [first, *others]:
        thread.join(5)
    assert len(writes) == 2
    assert set(intents.marked()) >= {0, *(100 * i for i in range(1, 9))}


def test_a_mark_that_could_not_be_written_does_not_count() -> None:
    def broken(_offset: int, _data: bytes, _durable: bool) -> None:
        raise OSError(5, "no")

    intents = IntentMap(10, (), broken)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            intents.mark({1})
    assert intents.marked() == []
