from __future__ import annotations

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidlib.areamap import AreaMap, place_of
from raidlib.errors import IntegrityError
from raidlib.state import (
    RECORD_BYTES,
    GroupInfo,
    ImageKind,
    Kind,
    MemberInfo,
    MemberState,
    MoveInfo,
    PoolState,
    Record,
    VolumeInfo,
    pack_record,
    unpack_log,
)

AREA_MAPS = st.dictionaries(st.integers(0, 2000), st.integers(0, 2000), max_size=60)


@settings(deadline=None, max_examples=60)
@given(AREA_MAPS, st.sets(st.integers(0, 4000), max_size=80), st.sets(st.tuples(st.integers(1, 9), st.integers(0, 9))))
def test_a_checkpoint_decodes_to_the_state_it_was_made_from(
    areas: dict[int, int], dirty: set[int], touched: set[tuple[int, int]]
) -> None:
    state = PoolState("a" * 32, "tank", 4 << 20, generation=9, committed=8, clean=False, boot_id="x", next_volume_id=4)
    members = [
        MemberInfo("b" * 32, "/m0"),
        MemberInfo("c" * 32, "/m1", MemberState.REBUILDING, 7),
        MemberInfo("d" * 32, "/m2", MemberState.FAILED, 0, "sync: EIO"),
    ]
    state.groups.append(GroupInfo("g", "e" * 32, 5, 65536, 5000, 16, members, dirty, 3))
    its_map = AreaMap((index, place_of(area % 3, area)) for index, area in areas.items())
    state.volumes[3] = VolumeInfo(3, "v", "f" * 32, 1 << 30, 0, True, its_map, {"x": 1}, pinned=True)
    state.volumes[3].placement = [(0, 4, 1), (9, 12, 0)]
    for number in (7, 5):
        # Each is stored as difference to one that has changed since.
        its_map = its_map.copy()
        for index in list(its_map)[number::9]:
            its_map[index] = place_of(4, index)
        for index in list(its_map)[::11]:
            del its_map[index]
        state.volumes[number] = VolumeInfo(number, f"s{number}", "f" * 32, 1 << 30, 0, True, its_map)
        state.volumes[number].kind, state.volumes[number].family = ImageKind.SNAPSHOT, 3
    state.volumes[5].base, state.volumes[7].base, state.volumes[5].origin = 7, 3, 3
    state.moves = [MoveInfo(3, 0, 9, 2)]
    state.touched = touched
    assert PoolState.decode(state.encode(), 9) == state


def test_a_contiguous_map_takes_a_few_bytes() -> None:
    state = PoolState("a" * 32, "tank", 4 << 20)
    areas = AreaMap((i, place_of(0, i + 5)) for i in range(200000))
    state.volumes[1] = VolumeInfo(1, "v", "f" * 32, 1 << 40, 0, False, areas)
    assert len(state.encode()) < 500


def test_a_newer_version_is_refused() -> None:
    raw = msgpack.unpackb(PoolState("a" * 32, "tank", 4096).encode())
    raw["version"] = 99
    with pytest.raises(IntegrityError, match="version 99"):
        PoolState.decode(msgpack.packb(raw), 1)


def test_garbage_is_refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        PoolState.decode(b"\xc0", 1)


RECORDS = [Record(Kind.COMMIT), Record(Kind.ALLOC, 1, 2, 3, 4), Record(Kind.FREE, 1, 2, 3, 4)]


def log(generation: int = 5) -> bytes:
    return b"".join(pack_record(record, generation, i) for i, record in enumerate(RECORDS))


def test_a_log_decodes_to_its_records() -> None:
    assert unpack_log(log() + bytes(RECORD_BYTES), 5) == RECORDS


@pytest.mark.parametrize("byte", range(0, RECORD_BYTES, 3))
def test_a_damaged_record_ends_the_log(byte: int) -> None:
    data = bytearray(log())
    data[RECORD_BYTES + byte] ^= 0x10
    assert unpack_log(bytes(data), 5) == RECORDS[:1]


def test_records_of_another_generation_are_not_taken() -> None:
    assert unpack_log(log(4), 5) == []


def test_a_lost_record_hides_those_after_it() -> None:
    data = log()
    assert unpack_log(data[:RECORD_BYTES] + data[2 * RECORD_BYTES :], 5) == RECORDS[:1]


def test_a_record_that_does_not_fit_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="does not fit"):
        PoolState("a" * 32, "tank", 4096).apply(Record(Kind.ALLOC, 0, 7, 0, 0))


def test_metadata_from_before_there_were_scrubs_is_read() -> None:
    state = PoolState("ab" * 16, "tank", 1 << 20)
    state.groups.append(GroupInfo("g", "cd" * 16, 1, 65536, 10, 1, []))
    raw = msgpack.unpackb(state.encode())
    del raw["groups"][0]["scrub"]
    assert PoolState.decode(msgpack.packb(raw), 3).groups[0].scrub == {}
