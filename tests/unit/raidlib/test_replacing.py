"""A member that works is replaced in place: redundancy is never given up, and either of the two may fail."""

from __future__ import annotations

import itertools

import pytest

from raidlib import Pool
from raidlib.errors import MediumError, MemberInUse, NotFound, Refused
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, new_pool, pattern, reopen, states

SHAPES = [(0, 1), (0, 2), (1, 2), (1, 3), (5, 3), (6, 4), (10, 4)]
REDUNDANT = SHAPES[2:]
BEARS = {0: 0, 1: 1, 5: 1, 6: 2, 10: 1}
SIZE = 12 * AREA


def prepared(level: int, members: int) -> tuple[FakeDisk, Pool]:
    """A pool with volume v full of a pattern, and a new disk."""
    disk, pool = new_pool(level, members)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    disk.create("new", 512 << 10)
    return disk, pool


def finish(pool: Pool) -> None:
    while pool.rebuild_step():
        pass


def paths(pool: Pool) -> list[str]:
    return [member["path"] for member in pool.status()["groups"][0]["members"]]


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_the_old_member_stays_until_the_new_one_is_complete(level: int, members: int) -> None:
    disk, pool = prepared(level, members)
    volume, expected = pool.volume("v"), bytearray(pattern(SIZE))
    pool.replace_member("m0", "new", disk.open_exclusive)
    step = 0
    while pool.rebuild_step():
        step += 1
        assert paths(pool)[0] == "m0" and states(pool) == ["in_sync"] * members
        assert pool.status()["groups"][0]["members"][0]["replacement"]["path"] == "new"
        off = step * 7919 % (11 * AREA)
        volume.pwrite(pattern(3000, step), off)
        expected[off : off + 3000] = pattern(3000, step)
        if step == 4:
            volume.zero(2 * AREA, AREA)
            expected[2 * AREA : 3 * AREA] = bytes(AREA)
        assert volume.pread(SIZE, 0) == expected
    assert step > 5 and paths(pool)[0] == "new" and states(pool) == ["in_sync"] * members
    disk.fail_reads("m0")
    disk.fail_writes("m0")
    volume.pwrite(pattern(AREA, 99), 5)
    expected[5 : 5 + AREA] = pattern(AREA, 99)
    for other in range(1, 1 + BEARS[level]):
        pool.fail_member(f"m{other}")
    assert volume.pread(SIZE, 0) == expected
    pool.close()
    disk.remove("m0")
    assert reopen(disk).volume("v").pread(SIZE, 0) == expected


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_every_loss_the_level_bears_is_borne_while_a_member_is_replaced(level: int, members: int) -> None:
    for lost in itertools.combinations(range(members), BEARS[level]):
        for steps in (0, 3, 8):
            disk, pool = prepared(level, members)
            volume = pool.volume("v")
            pool.replace_member("m0", "new", disk.open_exclusive)
            for _ in range(steps):
                pool.rebuild_step()
            for index in lost:
                disk.fail_writes(f"m{index}")
            volume.pwrite(pattern(SIZE, 7), 0)
            assert volume.pread(SIZE, 0) == pattern(SIZE, 7)
            finish(pool)
            assert volume.pread(SIZE, 0) == pattern(SIZE, 7)
            assert paths(pool)[0] == "new" and states(pool)[0] == "in_sync", "it was filled from what was left"


@pytest.mark.parametrize(("level", "members"), SHAPES)
@pytest.mark.parametrize("steps", [0, 4])
def test_a_new_member_that_fails_costs_nothing(level: int, members: int, steps: int) -> None:
    disk, pool = prepared(level, members)
    volume = pool.volume("v")
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(steps):
        pool.rebuild_step()
    disk.fail_writes("new")
    volume.pwrite(pattern(SIZE, 3), 0)
    finish(pool)
    assert paths(pool)[0] == "m0" and states(pool) == ["in_sync"] * members
    assert any("new does not replace m0" in remark for remark in pool.status()["remarks"])
    disk.kill()
    pool = reopen(disk)
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE, 3)
    disk.create("newer", 512 << 10)
    pool.replace_member("m0", "newer", disk.open_exclusive)
    finish(pool)
    assert paths(pool)[0] == "newer"


@pytest.mark.parametrize(("level", "members"), SHAPES)
@pytest.mark.parametrize("power", [False, True])
def test_a_replacement_goes_on_where_it_was_after_a_crash(level: int, members: int, power: bool) -> None:
    disk, pool = new_pool(level, members, 2 << 20)
    size = 60 * AREA
    volume = pool.create_volume("v", size)
    volume.pwrite(pattern(size), 0)
    disk.create("new", 2 << 20)
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(40):
        left = pool.rebuild_step()
    volume.pwrite(pattern(1000, 5), 0)
    pool.sync()
    if power:
        disk.crash()
    else:
        disk.kill()
    pool = reopen(disk)
    assert pool.status()["groups"][0]["members"][0]["replacement"]["path"] == "new"
    assert left - 1 <= pool.rebuild_step() <= left + 3 * 16
    finish(pool)
    assert paths(pool)[0] == "new"
    disk.fail_reads("m0")
    assert pool.volume("v").pread(size, 0) == pattern(1000, 5) + pattern(size)[1000:]


@pytest.mark.parametrize(("level", "members"), REDUNDANT[1:])  # of two, one alone is not believed without force
def test_an_old_member_that_is_missing_after_a_restart_is_taken_over_from(level: int, members: int) -> None:
    disk, pool = prepared(level, members)
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(5):
        pool.rebuild_step()
    pool.close()
    disk.remove("m0")
    pool = reopen(disk)
    assert paths(pool)[0] == "new" and states(pool)[0] == "rebuilding"
    finish(pool)
    assert states(pool) == ["in_sync"] * members
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_byte_the_old_one_cannot_give_comes_from_redundancy(level: int, members: int) -> None:
    disk, pool = prepared(level, members)
    pool.replace_member("m0", "new", disk.open_exclusive)
    data = pool._groups[0].layout.data_offset
    disk.fail_reads("m0", data + 2 * AREA, data + 2 * AREA + 512)
    finish(pool)
    assert paths(pool)[0] == "new" and states(pool) == ["in_sync"] * members
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


def test_a_byte_raid0_cannot_give_ends_the_replacement_with_the_reason() -> None:
    disk, pool = prepared(0, 2)
    pool.replace_member("m0", "new", disk.open_exclusive)
    data = pool._groups[0].layout.data_offset
    disk.fail_reads("m0", data + AREA, data + AREA + 512)
    finish(pool)
    assert paths(pool)[0] == "m0"
    (remark,) = [r for r in pool.status()["remarks"] if "does not replace" in r]
    assert "m0: read at byte" in remark and "RAID 0 has no second copy" in remark


def test_a_write_error_of_raid0_begins_the_copy_anew() -> None:
    disk, pool = prepared(0, 2)
    volume = pool.volume("v")
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(6):
        pool.rebuild_step()
    data = pool._groups[0].layout.data_offset
    disk.fail_writes("m0", data, data + 4096)
    with pytest.raises((MediumError, OSError)):
        volume.pwrite(pattern(4096, 9), 0)
    disk.heal("m0")
    found = volume.pread(SIZE, 0)
    finish(pool)
    assert paths(pool)[0] == "new" and volume.pread(SIZE, 0) == found, "what was read before is what is read after"


def test_giving_up_and_failing_either_of_the_two() -> None:
    disk, pool = prepared(1, 2)
    pool.replace_member("m0", "new", disk.open_exclusive)
    pool.rebuild_step()
    disk.create("other", 512 << 10)
    with pytest.raises(Refused, match="m0 is being replaced by new already"):
        pool.replace_member("m0", "other", disk.open_exclusive)
    with pytest.raises(MemberInUse):
        pool.replace_member("m1", "new", disk.open_exclusive)
    pool.remove_member("new")
    assert paths(pool) == ["m0", "m1"] and states(pool) == ["in_sync"] * 2
    pool.replace_member("m0", "new", disk.open_exclusive, force=True)
    for _ in range(3):
        pool.rebuild_step()
    pool.fail_member("m0")
    assert paths(pool) == ["new", "m1"] and states(pool) == ["rebuilding", "in_sync"]
    finish(pool)
    assert states(pool) == ["in_sync"] * 2
    with pytest.raises(NotFound):
        pool.fail_member("m0")


def test_a_failed_sync_of_the_new_one_is_its_end() -> None:
    disk, pool = prepared(0, 2)
    pool.replace_member("m0", "new", disk.open_exclusive)
    pool.rebuild_step()
    disk.fail_next_sync("new")
    pool.sync()
    assert paths(pool)[0] == "m0" and pool.status()["groups"][0]["members"][0]["replacement"] is None
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_an_old_member_that_fails_as_the_exchange_begins_leaves_the_new_one_in_use(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int
) -> None:
    disk, pool = prepared(level, members)
    ops = pool._member_ops
    drain = ops._drain

    def fail_and_drain() -> None:
        disk.fail_writes("m0")
        pool.volume("v").pwrite(pattern(SIZE, 5), 0)
        drain()

    monkeypatch.setattr(ops, "_drain", fail_and_drain)
    pool.replace_member("m0", "new", disk.open_exclusive)
    assert paths(pool)[0] == "new" and states(pool)[0] == "rebuilding"
    finish(pool)
    assert states(pool) == ["in_sync"] * members
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE, 5)


@pytest.mark.parametrize("old_fails", [False, True])
def test_errors_of_the_old_one_are_not_held_against_the_new_one(old_fails: bool) -> None:
    disk, pool = prepared(1, 2)
    pool.replace_member("m0", "new", disk.open_exclusive)
    disk.fail_reads("m0", pool._groups[0].layout.data_offset)
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)
    assert pool.status()["groups"][0]["members"][0]["read_errors"]
    if old_fails:
        disk.fail_writes("m0")
        pool.volume("v").pwrite(pattern(SIZE, 2), 0)
    disk.heal("m0")
    finish(pool)
    assert paths(pool)[0] == "new" and states(pool) == ["in_sync"] * 2
    new = pool.status()["groups"][0]["members"][0]
    assert not new["read_errors"] and not new["repaired"]
