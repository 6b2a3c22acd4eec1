"""The counter of a set, and records that carry its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from replicator.capture import follower, recordlog
from replicator.capture.arrivals import PIECE_BYTES, JournalArrivals
from replicator.capture.numbers import AHEAD, COUNTED, Numbers
from replicator.capture.sets import COUNTER
from replicator.core.records import (
    FLAG_FUA,
    FLAG_NUMBERED,
    HEADER_BYTES,
    NUMBER_BYTES,
    BadRecord,
    Kind,
    pack_header,
    unpack_header,
)
from replicator.core.runs import iter_run, parse_run
from replicator.journal.page import HEAD_SEQ, INCARNATION
from tests.testing.cutworld import CutWorld
from tests.testing.pairharness import Pair, running_pair


def page() -> memoryview:
    return memoryview(bytearray(16)).cast("Q")


def test_numbers_go_on_after_a_kill_and_after_an_orderly_stop() -> None:
    shared = page()
    first = Numbers({}, 1, shared)
    assert [first.draw() for _ in range(3)] == [1, 2, 3] and first.doubtful
    killed = Numbers(first.stored(), 1, shared)
    assert killed.draw() == 4 and killed.doubtful and killed.series == first.series
    killed.doubtful = False
    ended = Numbers(killed.stored(ended=True), 2, page())
    assert ended.draw() == 5 and not ended.doubtful


def test_numbers_go_on_above_the_reserve_after_power_loss() -> None:
    first = Numbers({}, 1, page())
    first.draw()
    lost = Numbers(first.stored(), 2, page())
    assert lost.draw() > AHEAD + COUNTED and lost.doubtful


def test_the_reserve_is_extended_in_time() -> None:
    numbers = Numbers({}, 1, page())
    assert not numbers.wants_reserve
    numbers.note(AHEAD // 2 + 1)
    assert numbers.wants_reserve
    numbers.reserve()
    assert not numbers.wants_reserve and numbers.stored()["limit"] == numbers.last + AHEAD


def test_a_stop_while_numbers_may_be_missing_stays_doubtful() -> None:
    assert Numbers({}, 1).stored(ended=True)["ended_at"] == -1


@pytest.fixture
def pair() -> Pair:
    """Both sides of one group, whose source numbers its records."""
    both = running_pair(sizes=(1 << 20,))
    both.a.engine.numbers = Numbers({}, 1)
    return both


def numbers_of(side: Any) -> list[int]:
    found = recordlog.records_from(side.engine, 0, 1000)["records"]
    return [one["number"] for one in found if one["number"]]


def test_every_kind_of_record_has_its_number_and_is_applied_without_it(pair: Pair) -> None:
    engine = pair.a.engine
    pair.a.write(0, 1)
    pair.a.write(8192, 2, fua=True)
    engine.zero(0, 4096, 4096, punch=True)
    engine.zero(0, 0, 4096, punch=False, trim=True)
    with engine.lock:
        engine.append_control(Kind.MARKER, payload=b"\x80")
    engine.append_copy(0, 16384, 4096, b"c" * 4096)
    engine.append_copy(0, 32768, 4096, None)
    pair.a.pool.open()
    assert numbers_of(pair.a) == list(range(1, 8))
    pair.ship(pair.a, pair.b)
    assert numbers_of(pair.b) == list(range(1, 8))
    follower.apply_all(pair.b.engine)
    wanted = pair.image_at(pair.a.engine.state.hist, pair.a.page[HEAD_SEQ])
    assert pair.b.image() == wanted
    last = pair.b.engine.last_numbered
    assert last is not None and last.number == 7


def test_a_primary_redoes_numbered_records_after_a_kill(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.write(4096, 2)
    before = pair.a.image()
    pair.a.kill()
    pair.a.start()
    assert pair.a.image() == before


def test_reading_ahead_finds_times_and_numbers_of_small_and_large_records(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.write(0, 2, length=PIECE_BYTES + 4096)
    for at in range(5):
        pair.a.write(at * 4096, 3)
    pair.ship(pair.a, pair.b)
    ahead = JournalArrivals(pair.b.engine)
    found = []
    while (one := ahead.peek()) is not None:
        found.append(one)
        ahead.take()
    assert [one.number for one in found] == list(range(1, 8))
    assert sorted(one.time_ns for one in found) == [one.time_ns for one in found]
    assert len({one.domain for one in found}) == 1
    pair.a.write(0, 4)
    pair.ship(pair.a, pair.b)
    one = ahead.peek()
    assert one is not None and one.number == 8 and ahead.valid
    pair.b.page[INCARNATION] += 1
    assert not ahead.valid


def test_the_layout_version_says_whether_a_record_has_a_number() -> None:
    def bytes_of(flags: int, payload_len: int, version: int) -> bytes:
        header = bytearray(pack_header(Kind.ZERO, flags, 1, 1, 1, 0, payload_len, 0, 4096, 0))
        header[6:8] = version.to_bytes(2, "little")
        from crc32c import crc32c

        header[60:] = crc32c(bytes(header[:60])).to_bytes(4, "little")
        return bytes(header)

    assert unpack_header(bytes_of(FLAG_FUA, 0, 1)).data_len == 0
    assert unpack_header(bytes_of(FLAG_NUMBERED, NUMBER_BYTES, 2)).data_len == 0
    for flags, payload_len, version in ((FLAG_NUMBERED, NUMBER_BYTES, 1), (0, 0, 2), (FLAG_NUMBERED, 4, 2), (0, 0, 3)):
        bad = bytes_of(flags, payload_len, version) + bytes(payload_len)
        assert len(bad) >= HEADER_BYTES
        for decode in (unpack_header, lambda raw: iter_run(memoryview(raw)), lambda raw: parse_run(raw, 1, 1)):
            with pytest.raises(BadRecord):
                decode(bad)


# -- sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[CutWorld]:
    """Two groups of a set that orders by counter, and no beacons."""
    one = CutWorld(1)
    assert one.order == COUNTER
    one.rng.random = lambda: 0.4  # type: ignore[method-assign]  # nothing dies
    yield one
    one.close()


def flow(world: CutWorld, *groups: int) -> None:
    for _ in range(3):
        world.nodes["P1"].sets.tick()
        for group in groups:
            world.ship(group, 1000)
        world.nodes["S1"].sets.tick()
        for group in groups:
            world.apply(group, 1 << 20)


def applied(world: CutWorld, group: int) -> bool:
    pair = world.pairs[group]
    return bool(pair.b.page[HEAD_SEQ] == pair.b.engine.page[9] == pair.a.page[HEAD_SEQ])


def test_numbers_over_all_groups_are_one_row_and_an_idle_group_holds_nobody(world: CutWorld) -> None:
    flow(world, 0, 1)
    for group in (0, 1, 1, 0, 0, 0, 0):
        world.write(group)
    flow(world, 0, 1)
    world.write(0)
    world.write(0)
    flow(world, 0)
    assert applied(world, 0) and applied(world, 1)
    row = sorted(numbers_of(world.pairs[0].a) + numbers_of(world.pairs[1].a))
    assert row == list(range(1, len(row) + 1)) and len(row) == 11, "nine writes, and a note in each group"


def test_a_copy_does_not_go_beyond_a_number_that_has_not_arrived(world: CutWorld) -> None:
    flow(world, 0, 1)
    for group in (0, 1, 0):
        world.write(group)
    flow(world, 0)
    waiting = world.pairs[0].b.engine.waiting
    assert waiting is not None and waiting.seq == world.pairs[0].a.page[HEAD_SEQ], "all but the last one"
    flow(world, 1)
    flow(world, 0)
    assert applied(world, 0) and applied(world, 1)


def test_numbers_that_a_kill_took_hold_nobody_for_good(world: CutWorld) -> None:
    flow(world, 0, 1)
    world.rng.random = lambda: 0.0  # type: ignore[method-assign]
    world.write(0)
    world.rng.random = lambda: 0.4  # type: ignore[method-assign]
    world.write(0)
    lost = set(range(1, 20)) - set(numbers_of(world.pairs[0].a) + numbers_of(world.pairs[1].a))
    assert min(lost) == 3
    world.ship(0, 1000)
    world.nodes["S1"].sets.tick()
    world.apply(0, 1 << 20)
    assert not applied(world, 0), "it may be late"
    flow(world, 0, 1)
    assert applied(world, 0) and applied(world, 1)


def test_a_series_begins_anew_with_other_groups_and_goes_on_with_other_settings(world: CutWorld) -> None:
    sets = world.nodes["P1"].sets
    uuids = [world.pairs[group].a.uuid for group in (0, 1)]
    engine = world.pairs[0].a.engine
    before = engine.numbers
    assert before is not None
    sets.put("set", 2, uuids, order=COUNTER)
    assert engine.numbers is before
    sets.put("set", 3, [])
    assert engine.numbers is None
    sets.put("set", 4, uuids, order=COUNTER)
    assert engine.numbers is not None and engine.numbers.series != before.series
    assert not sets.wants_beacons(uuids[0])
    sets.put("set", 5, uuids)
    assert engine.numbers is None and sets.wants_beacons(uuids[0])
