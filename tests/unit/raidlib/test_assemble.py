"""Which members an opening pool believes."""

from __future__ import annotations

import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import BadInput, IntegrityError, MediumError, MemberInUse, NotFound, Refused
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool, pattern, reopen, states


def test_one_path_is_enough_to_find_the_others() -> None:
    disk, pool = new_pool(6, 4)
    pool.close()
    assert states(Pool.open(["m2"], disk.open_exclusive)) == ["in_sync"] * 4


def test_members_are_known_by_their_superblocks_not_their_names() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", AREA).pwrite(pattern(AREA), 0)
    pool.close()
    disk.rename("m0", "x")
    disk.rename("m1", "m0")
    disk.rename("x", "m1")
    pool = reopen(disk)
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA)
    assert sorted(m["path"] for m in pool.status()["groups"][0]["members"]) == ["m0", "m1", "m2"]


def test_a_missing_member_leaves_the_group_degraded_and_is_remarked() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", AREA).pwrite(pattern(AREA), 0)
    pool.close()
    disk.remove("m1")
    pool = reopen(disk)
    assert states(pool) == ["in_sync", "failed", "in_sync"]
    assert any("m1" in remark for remark in pool.remarks)
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA)


def test_a_member_that_was_away_is_stale_and_is_not_used() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", AREA).pwrite(pattern(AREA), 0)
    pool.close()
    disk.rename("m1", "unplugged")
    pool = Pool.open(["m0", "m2"], disk.open_exclusive)
    pool.volume("v").pwrite(pattern(AREA, 2), 0)
    pool.close()
    disk.rename("unplugged", "m1")
    pool = reopen(disk)
    assert states(pool) == ["in_sync", "failed", "in_sync"]
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA, 2)


def test_a_member_restored_from_a_backup_is_stale_though_nobody_saw_it_fail() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", AREA)
    pool.close()
    disk.copy("m1", "backup")
    pool = Pool.open(["m0"], disk.open_exclusive)
    pool.volume("v").pwrite(pattern(AREA), 0)
    pool.close()
    disk.remove("m1")
    disk.rename("backup", "m1")
    pool = reopen(disk)
    assert states(pool) == ["in_sync", "failed", "in_sync"]
    assert any("m1: stale: it is at generation" in remark for remark in pool.remarks)
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA)


def test_a_stale_member_alone_does_not_pass_for_the_pool() -> None:
    disk, pool = new_pool(1, 2)
    pool.fail_member("m0")
    pool.close()
    disk.remove("m1")
    with pytest.raises(Refused, match="only 1 of 2 members that were in sync are there") as caught:
        reopen(disk)
    assert "force" in caught.value.way_out
    assert states(reopen(disk, force=True)) == ["in_sync", "failed"]


def test_the_member_that_went_on_alone_is_enough() -> None:
    disk, pool = new_pool(1, 2)
    pool.fail_member("m0")
    pool.close()
    disk.remove("m0")
    assert states(reopen(disk)) == ["failed", "in_sync"]


def test_paths_of_two_pools_are_refused_and_named() -> None:
    disk = new_disk(2)
    for i, name in enumerate(["red", "blue"]):
        Pool.create(name, [GroupSpec("g", 0, [f"m{i}"], CHUNK)], AREA, disk.open_exclusive).close()
    with pytest.raises(BadInput, match=r"m1 belongs to pool .*, not to .* as m0 does"):
        reopen(disk)
    for name in ("m0", "m1"):
        assert Pool.open([name], disk.open_exclusive).name


def test_a_disk_of_another_pool_in_a_members_place_is_not_used() -> None:
    disk, pool = new_pool(1, 2)
    pool.close()
    disk.rename("m1", "elsewhere")
    disk.create("m1", 512 << 10)
    Pool.create("other", [GroupSpec("g", 0, ["m1"], CHUNK)], AREA, disk.open_exclusive).close()
    with pytest.raises(Refused, match="m1 belongs to pool"):
        Pool.open(["m0"], disk.open_exclusive)
    assert states(Pool.open(["m0", "elsewhere"], disk.open_exclusive)) == ["in_sync"] * 2


def test_a_clone_of_a_member_is_refused() -> None:
    disk, pool = new_pool(1, 2)
    pool.close()
    disk.copy("m0", "clone")
    with pytest.raises(BadInput, match="clone and m0 both claim to be member"):
        reopen(disk)


def test_a_pool_that_is_open_is_in_use() -> None:
    disk, _pool = new_pool(1, 2)
    with pytest.raises(MemberInUse, match="m0 is in use"):
        reopen(disk)


def test_files_that_are_no_members_are_not_a_pool() -> None:
    disk = new_disk(2)
    with pytest.raises(NotFound, match="m0 has no superblock: it is not a pool member; m1 has no superblock"):
        reopen(disk)
    with pytest.raises(NotFound, match="nowhere does not exist"):
        Pool.open(["nowhere"], disk.open_exclusive)


def test_a_member_that_shrank_is_not_used() -> None:
    disk, pool = new_pool(5, 3)
    pool.close()
    data = disk.open("m2").pread(256 << 10, 0)
    disk.remove("m2")
    disk.create("m2", 256 << 10)
    disk.open("m2").pwrite(data, 0)
    pool = reopen(disk)
    assert states(pool) == ["in_sync", "in_sync", "failed"]
    assert any("m2 has shrunk from 524288 to 262144 bytes" in remark for remark in pool.remarks)


def test_damaged_metadata_on_one_member_is_its_own_trouble() -> None:
    disk, pool = new_pool(5, 3)
    pool.close()
    disk.open("m0").pwrite(bytes(200 << 10), 16 << 10)
    pool = reopen(disk)
    assert states(pool) == ["failed", "in_sync", "in_sync"]
    assert any("m0: its metadata is damaged" in remark for remark in pool.remarks)


def test_damaged_metadata_on_all_members_is_an_integrity_error() -> None:
    disk, pool = new_pool(1, 2)
    pool.close()
    for name in ("m0", "m1"):
        disk.open(name).pwrite(bytes(200 << 10), 16 << 10)
    with pytest.raises(IntegrityError, match=r"no member of pool .* has valid metadata"):
        reopen(disk)


@pytest.mark.parametrize(("level", "members", "bears"), [(0, 3, 0), (5, 3, 1), (6, 5, 2)])
def test_one_loss_too_many_is_refused_and_says_who_is_missing(level: int, members: int, bears: int) -> None:
    disk, pool = new_pool(level, members)
    pool.close()
    for i in range(bears + 1):
        disk.remove(f"m{i}")
    with pytest.raises((MediumError, Refused), match="m0"):
        reopen(disk)


def test_force_takes_a_failed_member_back_when_there_is_no_other_way() -> None:
    disk, pool = new_pool(0, 2)
    pool.create_volume("v", AREA).pwrite(pattern(AREA), 0)
    pool.sync()
    disk.fail_next_sync("m1")
    with pytest.raises(MediumError):
        pool.sync()
    disk.kill()
    with pytest.raises((MediumError, Refused)):
        reopen(disk)
    pool = reopen(disk, force=True)
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA)
    assert any("m1: taken back by force" in remark for remark in pool.remarks)
