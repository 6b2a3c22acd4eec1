"""RAID groups that join and leave a pool while it is used."""

from __future__ import annotations

import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import AlreadyExists, BadInput, MemberInUse, NotFound, OutOfSpace, Refused
from tests.testing.fakedisk import FakeDisk, PowerCut
from tests.testing.pools import AREA, CHUNK, pattern, reopen
from tests.unit.raidlib.test_move import fill, finish, new_pool, used

TWO = [("fast", 0, 2), ("safe", 5, 3)]


def spec(disk: FakeDisk, name: str, level: int, members: int, size: int = 512 << 10) -> GroupSpec:
    paths = [f"{name}-{i}" for i in range(members)]
    for path in paths:
        if path not in disk.names():
            disk.create(path, size)
    return GroupSpec(name, level, paths, CHUNK)


def names(pool: Pool) -> list[str]:
    return [group["name"] for group in pool.status()["groups"]]


@pytest.mark.parametrize(("level", "members"), [(0, 1), (1, 2), (5, 3), (6, 4)])
def test_a_group_joins_and_is_used_at_once(level: int, members: int) -> None:
    disk, pool = new_pool(TWO)
    volume = pool.create_volume("v", 400 * AREA)
    fill(pool, "fast")
    fill(pool, "safe")
    with pytest.raises(OutOfSpace):
        volume.pwrite(b"x", 0)
    pool.add_group(spec(disk, "new", level, members), disk.open_exclusive)
    volume.pwrite(pattern(5 * AREA), 0)
    assert used(pool)["new"] == 5
    pool.sync()
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    assert names(pool) == ["fast", "safe", "new"]
    assert pool.volume("v").pread(5 * AREA, 0) == pattern(5 * AREA)
    used(pool)


def test_what_cannot_join_changes_nothing() -> None:
    disk, pool = new_pool(TWO)
    generation = pool.status()["generation"]
    with pytest.raises(AlreadyExists):
        pool.add_group(spec(disk, "fast", 0, 2), disk.open_exclusive)
    with pytest.raises(MemberInUse):
        pool.add_group(GroupSpec("new", 0, ["fast0"], CHUNK), disk.open_exclusive)
    with pytest.raises(NotFound):
        pool.add_group(GroupSpec("new", 0, ["nosuch"], CHUNK), disk.open_exclusive)
    with pytest.raises(BadInput, match="too small"):
        pool.add_group(spec(disk, "tiny", 0, 1, 32 << 10), disk.open_exclusive)
    assert pool.status()["generation"] == generation
    pool.add_group(spec(disk, "new", 0, 1), disk.open_exclusive)


def test_a_group_leaves_when_it_is_empty_and_its_members_are_free() -> None:
    disk, pool = new_pool(TWO)
    volume = pool.create_volume("v", 9 * AREA, "fast", placement=[(2 * AREA, AREA, "safe")])
    volume.pwrite(pattern(8 * AREA), 0)
    pool.snapshot({"v": "s"})
    volume.pwrite(b"mine", 0)
    assert pool.remove_group("fast") == 8
    with pytest.raises(Refused, match="being removed"):
        pool.create_volume("w", AREA, "fast")
    volume.pwrite(b"new", 8 * AREA)
    pool.move_step()
    disk.kill()
    pool = reopen(disk)
    finish(pool)
    assert names(pool) == ["safe"] and used(pool) == {"safe": 10}
    for _ in range(2):
        assert pool.volume("v").pread(8 * AREA + 3, 0) == b"mine" + pattern(8 * AREA)[4:] + b"new"
        assert pool.volume("s").pread(8 * AREA, 0) == pattern(8 * AREA)
        pool.volume("v").pwrite(b"mine", 0)
        disk.kill()
        pool = reopen(disk)
    assert not any("fast" in remark for remark in pool.remarks if "replaced" in remark)
    pool.add_group(GroupSpec("again", 0, ["fast0", "fast1"], CHUNK), disk.open_exclusive)
    other = pool.create_volume("o", AREA, "again")
    other.pwrite(b"on it", 0)
    disk.kill()
    pool = reopen(disk)
    assert names(pool) == ["again", "safe"] and pool.volume("o").pread(5, 0) == b"on it"
    used(pool)


def test_a_spare_that_was_kept_for_a_group_that_leaves_serves_all() -> None:
    disk, pool = new_pool(TWO)
    disk.create("spare", 1 << 20)
    pool.add_spare("spare", "fast", disk.open_exclusive)
    pool.remove_group("fast")
    finish(pool)
    assert names(pool) == ["safe"] and any("spare" in remark for remark in pool.remarks)
    disk.kill()
    pool = reopen(disk)
    assert pool.status()["spares"][0]["group"] is None
    member = pool.status()["groups"][0]["members"][0]["path"]
    pool.fail_member(member)
    assert pool.take_spare() == (member, "spare")


def test_a_group_that_cannot_go_stays() -> None:
    _, pool = new_pool(TWO)
    pool.create_volume("v", 6 * AREA, "fast").pwrite(pattern(6 * AREA), 0)
    fill(pool, "safe")
    with pytest.raises(OutOfSpace, match="room for 0"):
        pool.remove_group("fast")
    with pytest.raises(NotFound):
        pool.remove_group("nosuch")
    with pytest.raises(NotFound):
        pool.keep_group("fast")
    pool.delete_volume("fills-safe")
    pool.remove_group("fast")
    with pytest.raises(Refused, match="only one"):
        pool.remove_group("safe")
    pool.keep_group("fast")
    assert pool.move_step() == 0 and names(pool) == ["fast", "safe"]
    pool.create_volume("w", AREA, "fast", thin=False)


@pytest.mark.parametrize("power", [False, True])
def test_no_crash_leaves_half_a_group(power: bool) -> None:
    """Cut at every operation of: add a group, use it, remove another."""
    cut = 0
    while True:
        disk, pool = new_pool([("fast", 0, 2)], 200 << 10)
        pool.create_volume("v", 6 * AREA).pwrite(pattern(4 * AREA), 0)
        pool.sync()
        new = spec(disk, "new", 1, 2, 300 << 10)
        disk.cut_at(disk.operations + cut)
        try:
            pool.add_group(new, disk.open_exclusive)
            pool.remove_group("fast")
            finish(pool)
            break
        except PowerCut:
            if power:
                disk.crash()
            else:
                disk.kill()
        known = [name for name in disk.names() if name.startswith("fast")]
        try:
            pool = reopen(disk)
        except NotFound:  # the old members are wiped: the new ones are the pool
            pool = Pool.open([name for name in disk.names() if name.startswith("new")], disk.open_exclusive)
        assert pool.volume("v").pread(4 * AREA, 0) == pattern(4 * AREA), known
        assert names(pool) in (["fast"], ["fast", "new"], ["new"])
        finish(pool)
        used(pool)
        assert pool.volume("v").pread(4 * AREA, 0) == pattern(4 * AREA)
        cut += 3
    assert cut > 30
