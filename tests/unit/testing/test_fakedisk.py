from __future__ import annotations

import itertools
import random

import pytest

from tests.testing.fakedisk import FakeDisk, FakeFile, PowerCut


def new(seed: int = 0) -> tuple[FakeDisk, FakeFile]:
    disk = FakeDisk(random.Random(seed))
    disk.create("m", 16384)
    return disk, disk.open("m")


def test_a_synced_write_survives_any_power_cut() -> None:
    disk, file = new()
    file.pwrite(b"a" * 4096, 0)
    file.fdatasync()
    disk.crash(lambda _i, _w: "drop")
    assert disk.open("m").pread(4096, 0) == b"a" * 4096


def test_unsynced_writes_are_lost_or_kept_independently() -> None:
    disk, file = new()
    file.pwrite(b"a" * 512, 0)
    file.pwrite(b"b" * 512, 512)
    file.pwrite(b"c" * 512, 1024)
    disk.crash(lambda i, _w: "keep" if i == 1 else "drop")
    assert disk.open("m").pread(1536, 0) == bytes(512) + b"b" * 512 + bytes(512)


def test_a_dropped_write_shows_what_the_kept_ones_left() -> None:
    disk, file = new()
    file.pwrite(b"a" * 1024, 0)
    file.pwrite(b"b" * 1024, 512)
    disk.crash(lambda i, _w: "keep" if i == 0 else "drop")
    assert disk.open("m").pread(2048, 0) == b"a" * 1024 + bytes(1024)


def test_a_torn_write_is_torn_at_sectors() -> None:
    seen = set()
    for seed in range(40):
        disk, file = new(seed)
        file.pwrite(b"x" * 2048, 256)
        disk.crash(lambda _i, _w: "tear")
        data = disk.open("m").pread(2560, 0)
        edges = [0, 256, 512, 1024, 1536, 2048, 2304, 2560]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        assert all(piece in (bytes(len(piece)), b"x" * len(piece)) for piece in pieces)
        seen.add(data)
    assert len(seen) > 10


def test_a_kill_keeps_the_page_cache_and_a_later_power_cut_takes_it() -> None:
    disk, file = new()
    file.pwrite(b"a" * 512, 0)
    disk.kill()
    assert disk.open("m").pread(512, 0) == b"a" * 512
    disk.crash(lambda _i, _w: "drop")
    assert disk.open("m").pread(512, 0) == bytes(512)


@pytest.mark.parametrize("end", ["crash", "kill"])
def test_handles_die_with_the_process(end: str) -> None:
    disk, file = new()
    getattr(disk, end)()
    with pytest.raises(OSError):
        file.pwrite(b"a", 0)
    with pytest.raises(OSError):
        file.pread(1, 0)


def test_a_durable_write_makes_only_itself_durable() -> None:
    disk, file = new()
    file.pwrite(b"a" * 1024, 0)
    file.pwrite_durable(b"b" * 512, 512)
    disk.crash(lambda _i, _w: "drop")
    assert disk.open("m").pread(1024, 0) == bytes(512) + b"b" * 512


def test_a_durable_write_is_not_undone_by_a_write_before_it() -> None:
    disk, file = new()
    file.pwrite(b"a" * 1024, 0)
    file.pwrite_durable(b"b" * 512, 512)
    disk.crash(lambda _i, _w: "keep")
    assert disk.open("m").pread(1024, 0) == b"a" * 512 + b"b" * 512


def test_a_failed_sync_drops_what_was_dirty_and_the_next_one_says_all_is_well() -> None:
    disk, file = new()
    file.pwrite(b"a" * 512, 0)
    disk.fail_next_sync("m")
    with pytest.raises(OSError):
        file.fdatasync()
    file.fdatasync()
    assert file.pread(512, 0) == bytes(512)


def test_bad_ranges_fail_until_healed_and_a_write_repairs_reading() -> None:
    disk, file = new()
    disk.fail_reads("m", 1024, 2048)
    assert file.pread(1024, 0) == bytes(1024)
    with pytest.raises(OSError):
        file.pread(1024, 512)
    file.pwrite(b"x" * 512, 1024)
    assert file.pread(512, 1024) == b"x" * 512
    with pytest.raises(OSError):
        file.pread(512, 1536)
    disk.fail_writes("m", 0, 512)
    with pytest.raises(OSError):
        file.pwrite(b"x", 0)
    disk.heal("m")
    file.pwrite(file.pread(16384, 0), 0)


def test_a_cut_write_may_be_there_after_a_power_cut_or_not() -> None:
    seen = set()
    for seed in range(30):
        disk, file = new(seed)
        disk.cut_at(disk.operations + 1)
        file.pwrite(b"a" * 512, 0)
        with pytest.raises(PowerCut):
            file.pwrite(b"b" * 512, 0)
        disk.crash()
        seen.add(disk.open("m").pread(1, 0))
    assert seen == {b"\0", b"a", b"b"}


def test_a_kill_in_a_write_leaves_whole_pages() -> None:
    seen = set()
    for seed in range(30):
        disk, file = new(seed)
        disk.cut_at(disk.operations)
        with pytest.raises(PowerCut):
            file.pwrite(b"b" * 12288, 0)
        disk.kill()
        data = disk.open("m").pread(12288, 0)
        assert data == b"b" * (data.count(b"b") // 4096 * 4096) + bytes(12288 - data.count(b"b"))
        seen.add(data)
    assert len(seen) == 4


def test_the_same_seed_gives_the_same_crash() -> None:
    def outcome(seed: int) -> bytes:
        disk, file = new(seed)
        for i in range(20):
            file.pwrite(bytes([i + 1]) * 700, i * 600)
        disk.crash()
        return disk.open("m").pread(16384, 0)

    assert outcome(3) == outcome(3) != outcome(4)


def test_a_fork_goes_its_own_way() -> None:
    disk, file = new()
    file.pwrite(b"a" * 512, 0)
    other = disk.fork(random.Random(1))
    other.crash(lambda _i, _w: "drop")
    assert disk.open("m").pread(1, 0) == b"a"
    assert other.open("m").pread(1, 0) == b"\0"
