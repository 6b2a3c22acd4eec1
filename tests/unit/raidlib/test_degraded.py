"""A pool whose members fail: it goes on while its level bears it, says so, and is rebuilt."""

from __future__ import annotations

import itertools

import pytest

from raidlib.errors import BadInput, MediumError, MemberInUse, NotFound, Refused
from tests.testing.pools import AREA, new_pool, pattern, reopen, states

REDUNDANT = [(1, 2), (1, 3), (5, 3), (5, 4), (6, 4), (6, 5), (10, 4)]
SIZE = 5 * AREA


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_every_loss_the_level_bears_is_read_and_written_through(level: int, members: int) -> None:
    bears = {1: members - 1, 5: 1, 6: 2, 10: 1}[level]
    for lost in itertools.combinations(range(members), bears):
        _, pool = new_pool(level, members)
        volume = pool.create_volume("v", SIZE)
        volume.pwrite(pattern(SIZE), 0)
        for index in lost:
            pool.fail_member(f"m{index}")
        assert volume.pread(SIZE, 0) == pattern(SIZE)
        expected = bytearray(pattern(SIZE))
        for i, (off, n) in enumerate([(3, 100), (4096, 4096), (4000, 9000), (0, AREA), (AREA + 5, 3 * AREA)]):
            volume.pwrite(pattern(n, i), off)
            expected[off : off + n] = pattern(n, i)
            assert volume.pread(SIZE, 0) == expected
        volume.zero(AREA, AREA)
        volume.zero(3 * AREA + 10, 5000)
        expected[AREA : 2 * AREA] = bytes(AREA)
        expected[3 * AREA + 10 : 3 * AREA + 5010] = bytes(5000)
        assert volume.pread(SIZE, 0) == expected


@pytest.mark.parametrize(("level", "members"), [(0, 2), *REDUNDANT])
def test_a_loss_the_level_does_not_bear_is_refused_to_the_operator(level: int, members: int) -> None:
    _, pool = new_pool(level, members)
    bears = {0: 0, 1: members - 1, 5: 1, 6: 2, 10: 1}[level]
    for index in range(bears):
        pool.fail_member(f"m{index}")
    before = states(pool)
    with pytest.raises(Refused, match=f"group g cannot do without m{bears}"):
        pool.fail_member(f"m{bears}")
    assert states(pool) == before


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_member_that_takes_no_writes_is_failed_and_the_write_succeeds(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE, 1), 0)
    disk.fail_writes("m1")
    volume.pwrite(pattern(SIZE, 2), 0)
    assert states(pool)[1] == "failed"
    disk.heal("m1")
    disk.kill()
    pool = reopen(disk)
    assert states(pool)[1] == "failed", "the others remember"
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE, 2)


def test_a_write_error_of_raid0_is_reported_and_the_member_stays() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(pattern(AREA), 0)
    disk.fail_writes("m1", pool._groups[0].layout.data_offset)
    with pytest.raises((MediumError, OSError)):
        volume.pwrite(pattern(AREA), 0)
    with pytest.raises((MediumError, OSError)):
        volume.pwrite(pattern(512), 4096)
    disk.heal("m1")
    volume.pwrite(pattern(AREA), 0)
    assert states(pool) == ["in_sync"] * 2


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_sector_that_cannot_be_read_is_recovered_and_written_back(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    data = pool._groups[0].layout.data_offset
    for index in range(members):
        disk.fail_reads(f"m{index}", data, data + 512)
        assert volume.pread(SIZE, 0) == pattern(SIZE)
        disk.heal(f"m{index}")
    assert states(pool) == ["in_sync"] * members
    assert sum(m["read_errors"] for m in pool.status()["groups"][0]["members"]) > 0
    assert volume.pread(SIZE, 0) == pattern(SIZE)


def test_a_sector_that_cannot_be_written_back_either_fails_the_member() -> None:
    disk, pool = new_pool(5, 3)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    data = pool._groups[0].layout.data_offset
    disk.fail_reads("m0", data)
    disk.fail_writes("m0", data)
    assert volume.pread(SIZE, 0) == pattern(SIZE)
    assert states(pool) == ["failed", "in_sync", "in_sync"]


def test_a_partial_write_beside_an_unreadable_sector_succeeds() -> None:
    disk, pool = new_pool(6, 5)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    data = pool._groups[0].layout.data_offset
    for index in range(5):
        disk.fail_reads(f"m{index}", data, data + 4096)
        volume.pwrite(b"new", 10)
        disk.heal(f"m{index}")
    assert volume.pread(SIZE, 0) == pattern(SIZE)[:10] + b"new" + pattern(SIZE)[13:]


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_failed_sync_fails_the_member_for_good_and_is_not_repeated(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    disk.fail_next_sync("m0")
    pool.sync()
    assert states(pool)[0] == "failed"
    synced: list[str] = []
    disk.trace = lambda op, name, _off, _n: synced.append(name) if op == "sync" else None
    pool.sync()
    assert "m0" not in synced and len(synced) == members - 1
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    assert states(pool)[0] == "failed"
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


def test_a_failed_sync_that_nothing_makes_good_is_an_error_and_the_group_is_lost() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    disk.fail_next_sync("m0")
    with pytest.raises(MediumError, match="group g has lost more members than RAID 0 can bear: m0") as caught:
        pool.sync()
    assert caught.value.exit_code == 9
    assert pool.status()["groups"][0]["state"] == "lost"
    with pytest.raises(MediumError):
        volume.pread(SIZE, 0)
    with pytest.raises(MediumError):
        volume.pwrite(pattern(SIZE), 0)
    with pytest.raises(MediumError):
        pool.sync()


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_replacement_is_rebuilt_under_writes_and_then_carries_its_share(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", 12 * AREA)
    volume.pwrite(pattern(12 * AREA), 0)
    expected = bytearray(pattern(12 * AREA))
    pool.fail_member("m1")
    disk.create("new", 512 << 10)
    pool.replace_member("m1", "new", disk.open_exclusive)
    assert states(pool)[1] == "rebuilding"
    step = 0
    while pool.rebuild_step():
        step += 1
        off = step * 7919 % (11 * AREA)
        volume.pwrite(pattern(3000, step), off)
        expected[off : off + 3000] = pattern(3000, step)
        if step == 4:
            volume.zero(2 * AREA, AREA)
            expected[2 * AREA : 3 * AREA] = bytes(AREA)
        assert volume.pread(12 * AREA, 0) == expected
    assert step > 5 and states(pool) == ["in_sync"] * members
    for other in [f"m{i}" for i in range(members) if i != 1][: {1: members - 1, 10: 1}.get(level, level - 4)]:
        pool.fail_member(other)
    assert volume.pread(12 * AREA, 0) == expected


def test_a_rebuild_goes_on_where_it_was_after_a_crash() -> None:
    disk, pool = new_pool(5, 3, 2 << 20)
    size = 60 * AREA
    pool.create_volume("v", size).pwrite(pattern(size), 0)
    pool.fail_member("m0")
    disk.create("new", 2 << 20)
    pool.replace_member("m0", "new", disk.open_exclusive)
    for _ in range(40):
        left = pool.rebuild_step()
    disk.crash()
    pool = reopen(disk)
    assert states(pool) == ["rebuilding", "in_sync", "in_sync"]
    assert left - 1 <= pool.rebuild_step() <= left + 3 * 16
    while pool.rebuild_step():
        pass
    pool.fail_member("m1")
    assert pool.volume("v").pread(size, 0) == pattern(size)


def test_a_replacement_that_fails_leaves_the_group_as_it_was() -> None:
    disk, pool = new_pool(5, 3)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    pool.fail_member("m2")
    disk.create("new", 512 << 10)
    pool.replace_member("m2", "new", disk.open_exclusive)
    pool.rebuild_step()
    disk.fail_writes("new")
    while pool.rebuild_step():
        pass
    assert states(pool) == ["in_sync", "in_sync", "failed"]
    assert volume.pread(SIZE, 0) == pattern(SIZE)
    disk.create("newer", 512 << 10)
    pool.replace_member("new", "newer", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    assert states(pool) == ["in_sync"] * 3


def test_replacements_that_cannot_be_are_refused_and_nothing_changes() -> None:
    disk, pool = new_pool(5, 3)
    disk.create("small", 64 << 10)
    disk.create("new", 512 << 10)
    with pytest.raises(NotFound, match="nobody is not a member of pool tank"):
        pool.replace_member("nobody", "new", disk.open_exclusive)
    with pytest.raises(NotFound, match="nowhere does not exist"):
        pool.replace_member("m0", "nowhere", disk.open_exclusive)
    with pytest.raises(BadInput, match="small has 65536 bytes, group g needs"):
        pool.replace_member("m0", "small", disk.open_exclusive)
    with pytest.raises(MemberInUse, match="m1 is in use"):
        pool.replace_member("m0", "m1", disk.open_exclusive)
    pool.fail_member("m1")
    pool.replace_member("m1", "new", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    with pytest.raises(MemberInUse, match="m1 is a member of pool tank"):
        pool.replace_member("new", "m1", disk.open_exclusive)
    pool.replace_member("new", "m1", disk.open_exclusive, force=True)


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
def test_degraded_and_dirty_is_refused_unless_forced(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    disk.kill()
    disk.remove("m0")
    with pytest.raises(Refused, match="group g stopped uncleanly and m0 is missing: stripes in 5 areas") as caught:
        reopen(disk)
    assert "force" in caught.value.way_out
    with pytest.raises(Refused):
        reopen(disk)
    pool = reopen(disk, force=True)
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), [(5, 3), (6, 4)])
def test_a_crash_while_degraded_is_no_trouble_when_the_loss_was_known(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    pool.fail_member("m0")
    volume.pwrite(pattern(AREA, 2), 100)
    for _ in range(3):
        disk.kill()
        pool = reopen(disk)
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)[:100] + pattern(AREA, 2) + pattern(SIZE)[AREA + 100 :]


def test_a_member_that_fails_while_a_crash_is_repaired_does_not_pass_unseen() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    disk.kill()
    disk.fail_writes("m0")
    with pytest.raises(Refused, match="m0 is missing"):
        reopen(disk)
