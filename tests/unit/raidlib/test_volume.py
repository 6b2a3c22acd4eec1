"""Volumes: reading, writing, zeroing, thin areas."""

from __future__ import annotations

import pytest

from raidlib import Pool
from raidlib.errors import BadInput, OutOfSpace
from raidlib.parity import NumpyEngine
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, CHUNK, new_pool, pattern, reopen, states

LEVELS = pytest.mark.parametrize(("level", "members"), [(0, 1), (0, 3), (1, 2), (5, 3), (5, 4), (6, 5), (10, 4)])


def free_areas(pool: object) -> int:
    return int(pool.status()["groups"][0]["free_areas"])  # type: ignore[attr-defined]


@LEVELS
@pytest.mark.parametrize("off", [0, 1, CHUNK - 1, CHUNK, AREA - 3, AREA, 2 * AREA + 100])
@pytest.mark.parametrize("length", [1, 512, CHUNK, CHUNK + 1, AREA, 2 * AREA + 7])
def test_what_is_written_is_read_and_the_rest_is_zero(level: int, members: int, off: int, length: int) -> None:
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", 6 * AREA)
    volume.pwrite(pattern(length), off)
    assert volume.pread(6 * AREA, 0) == bytes(off) + pattern(length) + bytes(6 * AREA - off - length)


@LEVELS
def test_writing_over_reads_as_the_last_write(level: int, members: int) -> None:
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", 4 * AREA)
    expected = bytearray(4 * AREA)
    for i, (off, n) in enumerate([(0, 4 * AREA), (5, 30), (CHUNK, CHUNK), (CHUNK - 9, 20), (AREA - 1, 3 * CHUNK)]):
        volume.pwrite(pattern(n, i), off)
        expected[off : off + n] = pattern(n, i)
        assert volume.pread(4 * AREA, 0) == expected


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_byte_buffer_can_be_written(kind: type) -> None:
    _, pool = new_pool(5, 3)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(kind(pattern(700)), 50)
    assert volume.pread(700, 50) == pattern(700)


def test_areas_are_allocated_at_the_first_write() -> None:
    _, pool = new_pool(6, 4)
    volume = pool.create_volume("v", 10 * AREA)
    before = free_areas(pool)
    assert volume.extents(0, 10 * AREA) == [(10 * AREA, False)]
    volume.pwrite(b"x", 3 * AREA)
    assert volume.extents(0, 10 * AREA) == [(3 * AREA, False), (AREA, True), (6 * AREA, False)]
    assert volume.extents(AREA * 3 + 5, 10) == [(10, True)]
    assert free_areas(pool) == before - 1


def test_a_thick_volume_has_all_its_areas_at_once_and_keeps_them() -> None:
    _, pool = new_pool(1, 2)
    volume = pool.create_volume("v", 3 * AREA, thin=False)
    assert volume.extents(0, 3 * AREA) == [(3 * AREA, True)]
    assert volume.pread(3 * AREA, 0) == bytes(3 * AREA)
    volume.pwrite(pattern(AREA), AREA)
    volume.zero(0, 3 * AREA, punch=True)
    assert volume.extents(0, 3 * AREA) == [(3 * AREA, True)]
    assert volume.pread(3 * AREA, 0) == bytes(3 * AREA)


@LEVELS
@pytest.mark.parametrize("punch", [False, True])
@pytest.mark.parametrize(("off", "length"), [(0, AREA), (100, 50), (CHUNK, CHUNK), (AREA - 10, 20), (10, 3 * AREA)])
def test_zeroing_zeroes_the_range_and_nothing_else(
    level: int, members: int, punch: bool, off: int, length: int
) -> None:
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    volume.zero(off, length, punch)
    expected = bytearray(pattern(4 * AREA))
    expected[off : off + length] = bytes(length)
    assert volume.pread(4 * AREA, 0) == expected


def test_trimming_whole_areas_frees_them() -> None:
    _, pool = new_pool(5, 3)
    volume = pool.create_volume("v", 4 * AREA)
    before = free_areas(pool)
    volume.pwrite(pattern(4 * AREA), 0)
    volume.zero(AREA - 10, 2 * AREA + 10, punch=True)
    assert volume.extents(0, 4 * AREA) == [(AREA, True), (2 * AREA, False), (AREA, True)]
    assert free_areas(pool) == before - 2


def test_trimming_the_last_area_to_the_end_frees_it_though_it_is_short() -> None:
    _, pool = new_pool(0, 2)
    volume = pool.create_volume("v", AREA + 4096)
    volume.pwrite(b"x", AREA)
    volume.zero(AREA, 4096)
    assert volume.extents(AREA, 4096) == [(4096, False)]


def test_zeroing_without_punch_leaves_the_range_allocated() -> None:
    _, pool = new_pool(6, 4)
    volume = pool.create_volume("v", 2 * AREA)
    volume.zero(0, 2 * AREA, punch=False)
    assert volume.extents(0, 2 * AREA) == [(2 * AREA, True)]
    assert volume.pread(2 * AREA, 0) == bytes(2 * AREA)


def test_a_reused_area_shows_nothing_of_its_last_owner() -> None:
    _, pool = new_pool(5, 3)
    total = free_areas(pool)
    first = pool.create_volume("a", total * AREA)
    first.pwrite(pattern(total * AREA), 0)
    first.zero(0, total * AREA)
    second = pool.create_volume("b", total * AREA)
    for area in range(total):
        second.pwrite(b"n", area * AREA + 77)
    assert second.pread(total * AREA, 0) == (bytes(77) + b"n" + bytes(AREA - 78)) * total
    assert first.pread(total * AREA, 0) == bytes(total * AREA)


def test_a_full_pool_says_so_and_what_was_there_stays() -> None:
    _, pool = new_pool(0, 1)
    total = free_areas(pool)
    volume = pool.create_volume("v", (total + 1) * AREA)
    volume.pwrite(pattern(total * AREA), 0)
    with pytest.raises(OutOfSpace, match="group g has no free area left") as caught:
        volume.pwrite(b"x", total * AREA)
    assert caught.value.errno == 28 and caught.value.way_out
    assert volume.pread((total + 1) * AREA, 0) == pattern(total * AREA) + bytes(AREA)
    volume.zero(0, AREA)
    volume.pwrite(b"x", total * AREA)


@pytest.mark.parametrize("off", [-1, -4096, 4 * AREA - 1, 4 * AREA, 1 << 60])
def test_requests_beyond_the_volume_are_refused(off: int) -> None:
    _, pool = new_pool(0, 2)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    for request in (
        lambda: volume.pwrite(b"xy", off),
        lambda: volume.pread(2, off),
        lambda: volume.zero(off, 2),
        lambda: volume.extents(off, 2),
    ):
        with pytest.raises(BadInput, match="volume v has 65536 bytes"):
            request()
    assert volume.pread(4 * AREA, 0) == pattern(4 * AREA)


def test_a_request_of_no_bytes_does_nothing() -> None:
    _, pool = new_pool(6, 4)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(b"", 0)
    volume.pwrite(b"", AREA)
    volume.zero(5, 0)
    assert volume.pread(0, 3) == b""
    assert volume.extents(0, 0) == []
    assert volume.extents(0, AREA) == [(AREA, False)]


def count_operations(disk: FakeDisk) -> list[tuple[str, int]]:
    seen: list[tuple[str, int]] = []
    disk.trace = lambda op, _name, _off, length: seen.append((op, length))
    return seen


def test_a_small_write_of_a_warm_raid0_volume_is_one_write() -> None:
    disk, pool = new_pool(0, 3)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(b"x", 0)
    seen = count_operations(disk)
    volume.pwrite(pattern(512), CHUNK + 512)
    assert seen == [("write", 512)]


def test_a_full_stripe_is_written_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, pool = new_pool(6, 6)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(b"x", 0)
    seen = count_operations(disk)
    monkeypatch.setattr("tests.testing.fakedisk.FakeFile.preadinto", None)
    volume.pwrite(pattern(4 * CHUNK), 0)
    assert seen == [("write", CHUNK)] * 6


@pytest.mark.parametrize(("members", "length", "reads"), [(6, 512, 3), (6, 3 * CHUNK, 1), (4, 512, 1)])
def test_a_partial_stripe_reads_as_little_as_it_can(
    monkeypatch: pytest.MonkeyPatch, members: int, length: int, reads: int
) -> None:
    _, pool = new_pool(6, members)
    volume = pool.create_volume("v", AREA * 4)
    volume.pwrite(pattern(4 * AREA), 0)
    group = pool._groups[0]
    seen: list[int] = []
    good = group._read_column  # type: ignore[attr-defined]
    monkeypatch.setattr(group, "_read_column", lambda *args: (seen.append(args[1]), good(*args)))
    volume.pwrite(pattern(length, 2), 0)
    assert len(seen) == reads
    assert volume.pread(4 * AREA, 0) == pattern(length, 2) + pattern(4 * AREA)[length:]


def test_a_gathered_raid0_write_is_one_call_a_member() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(b"x", 0)
    seen = count_operations(disk)
    volume.pwrite(pattern(AREA), 0)
    assert seen == [("write", AREA // 2)] * 2
    assert volume.pread(AREA, 0) == pattern(AREA)


@pytest.mark.parametrize(("level", "members"), [(0, 2), (1, 2), (6, 4)])
def test_a_full_filesystem_is_told_to_the_writer_and_costs_no_member(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(AREA), 0)
    free = free_areas(pool)
    disk.full = True
    with pytest.raises(OutOfSpace, match="the filesystem that m0 is on is full"):
        volume.pwrite(b"x", AREA)
    with pytest.raises(OutOfSpace):
        pool.create_volume("thick", AREA, thin=False)
    volume.pwrite(pattern(AREA, 2), 0)
    assert volume.pread(4 * AREA, 0) == pattern(AREA, 2) + bytes(3 * AREA)
    assert free_areas(pool) == free and states(pool) == ["in_sync"] * members
    disk.full = False
    volume.pwrite(b"x", AREA)


def test_a_pool_without_isal_gives_the_same_bytes() -> None:
    disk, pool = new_pool(6, 4)
    pool.create_volume("v", 4 * AREA).pwrite(pattern(4 * AREA), 0)
    pool.close()
    pool = Pool.open(disk.names(), disk.open_exclusive, engine=NumpyEngine())
    assert pool.status()["parity"] == "numpy"
    volume = pool.volume("v")
    volume.pwrite(pattern(5000, 2), 3000)
    for index in (0, 2):
        pool.fail_member(f"m{index}")
    expected = pattern(4 * AREA)[:3000] + pattern(5000, 2) + pattern(4 * AREA)[8000:]
    assert volume.pread(4 * AREA, 0) == expected
    pool.close()
    assert reopen(disk).volume("v").pread(4 * AREA, 0) == expected
