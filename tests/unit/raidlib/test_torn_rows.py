"""A row that was left half written, or may have been, never passes for whole."""

from __future__ import annotations

import pytest

from raidlib import Pool
from raidlib.errors import MediumError, Refused
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, CHUNK, new_pool, pattern, reopen

SIZE = 2 * AREA


def torn_pool(level: int, members: int) -> tuple[FakeDisk, Pool, bytes]:
    """A degraded pool in which a member has refused its part of a write of the first chunk's column."""
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    content = pattern(SIZE)
    volume.pwrite(content, 0)
    for index in range({5: 1, 6: 2}[level]):
        pool.fail_member(f"m{index}")
    pool.sync()
    layout = pool._groups[0].layout
    disk.fail_writes(f"m{members - 1}", layout.data_offset)
    with pytest.raises(MediumError):
        for at in range(0, AREA, CHUNK):
            volume.pwrite(pattern(CHUNK, 9), at)
            content = content[:at] + pattern(CHUNK, 9) + content[at + CHUNK :]
    return disk, pool, content[:at] + pattern(CHUNK, 9) + content[at + CHUNK :]


@pytest.mark.parametrize(("level", "members"), [(5, 3), (5, 5), (6, 4), (6, 6)])
def test_a_write_that_fails_half_way_changes_nothing_but_its_own_range(level: int, members: int) -> None:
    disk, pool, content = torn_pool(level, members)
    with pytest.raises(MediumError):
        pool.volume("v").pread(SIZE, 0)
    disk.heal(f"m{members - 1}")
    assert pool.volume("v").pread(SIZE, 0) == content, "completed as soon as the member takes it"
    pool.close()


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
def test_a_torn_row_is_completed_before_its_journal_begins_anew(level: int, members: int) -> None:
    disk, pool, content = torn_pool(level, members)
    volume = pool.volume("v")
    with pytest.raises(MediumError):
        for _ in range(64):
            volume.pwrite(content[AREA : AREA + 512], AREA)
    disk.heal(f"m{members - 1}")
    for _ in range(64):
        volume.pwrite(content[AREA : AREA + 512], AREA)
    disk.crash(lambda _i, _w: "drop")
    assert reopen(disk).volume("v").pread(SIZE, 0) == content


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
def test_a_torn_row_is_completed_by_its_journal_after_a_crash(level: int, members: int) -> None:
    disk, _, content = torn_pool(level, members)
    disk.heal(f"m{members - 1}")
    disk.kill()
    assert reopen(disk).volume("v").pread(SIZE, 0) == content


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
def test_an_unreadable_chunk_of_a_row_that_may_be_torn_is_not_made_up_from_its_parity(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    pool.sync()
    volume.pwrite(pattern(100, 2), 0)
    layout = pool._groups[0].layout
    disk.crash()
    disk.fail_reads("m0", layout.data_offset)
    with pytest.raises(Refused, match="cannot be read from m0"):
        reopen(disk)
    disk.heal("m0")
    pool = reopen(disk)
    assert pool.volume("v").pread(SIZE - 100, 100) == pattern(SIZE)[100:]


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
@pytest.mark.parametrize("when", ["before it is closed", "after it is opened"])
def test_a_torn_row_outlives_a_clean_close(level: int, members: int, when: str) -> None:
    disk, pool, content = torn_pool(level, members)
    if when == "before it is closed":
        disk.heal(f"m{members - 1}")
    pool.close()
    disk.heal(f"m{members - 1}")
    assert reopen(disk).volume("v").pread(SIZE, 0) == content


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize(("level", "members"), [(1, 2), (10, 4)])
def test_a_write_that_the_last_good_copy_refuses_is_on_no_copy_that_is_being_filled(
    level: int, members: int, checksums: bool
) -> None:
    disk, pool = new_pool(level, members, checksums=checksums)
    volume = pool.create_volume("v", 8 * AREA)
    volume.pwrite(pattern(8 * AREA), 0)
    pool.fail_member("m0")
    disk.create("new", 512 << 10)
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(2):
        pool.rebuild_step()
    disk.fail_writes("m1", pool._groups[0].layout.data_offset)
    with pytest.raises(MediumError):
        volume.pwrite(pattern(CHUNK, 9), 0)
    with pytest.raises(MediumError):
        volume.zero(0, CHUNK, punch=False)
    disk.heal("m1")
    while pool.rebuild_step():
        pass
    assert volume.pread(8 * AREA, 0) == pattern(8 * AREA)
    pool.fail_member("m1")
    assert volume.pread(8 * AREA, 0) == pattern(8 * AREA)
