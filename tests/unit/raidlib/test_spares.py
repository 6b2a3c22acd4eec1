"""Hot spares: formatted, durable, taken smallest first; and the end of a pool."""

from __future__ import annotations

import pytest

from raidlib import GroupSpec, Pool
from raidlib.destroy import wipe_members
from raidlib.errors import AlreadyExists, BadInput, MemberInUse, NotFound, Refused
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool, pattern, reopen, states

SIZE = 8 * AREA


def finish(pool: Pool) -> None:
    while pool.rebuild_step():
        pass


@pytest.mark.parametrize(("level", "members"), [(1, 2), (5, 3), (6, 4), (10, 4)])
def test_the_smallest_spare_that_fits_takes_over_and_survives_crashes(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    disk.create("large", 2 << 20)
    disk.create("medium", 1 << 20)
    for path in ("large", "medium"):
        pool.add_spare(path, open_file=disk.open_exclusive)
    pool.sync()
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    assert [s["there"] for s in pool.status()["spares"]] == [True, True] and not pool.wants_spare
    assert pool.take_spare() is None
    disk.fail_writes("m0")
    pool.volume("v").pwrite(pattern(SIZE, 2), 0)
    assert pool.wants_spare and pool.take_spare() == ("m0", "medium")
    assert states(pool)[0] == "rebuilding" and [s["path"] for s in pool.status()["spares"]] == ["large"]
    pool.sync()
    disk.crash()
    pool = reopen(disk)
    finish(pool)
    assert states(pool) == ["in_sync"] * members
    pool.fail_member("m1")
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE, 2)


def test_a_spare_of_one_group_serves_no_other() -> None:
    disk = new_disk(4)
    groups = [GroupSpec("a", 1, ["m0", "m1"], CHUNK), GroupSpec("b", 1, ["m2", "m3"], CHUNK)]
    pool = Pool.create("tank", groups, AREA, disk.open_exclusive)
    disk.create("s", 1 << 20)
    pool.add_spare("s", "b", disk.open_exclusive)
    pool.fail_member("m0")
    assert pool.take_spare() is None
    pool.fail_member("m2")
    assert pool.take_spare() == ("m2", "s")


def test_a_spare_that_cannot_be_written_is_passed_over() -> None:
    disk, pool = new_pool(1, 2)
    for name, size in (("bad", 1 << 20), ("good", 2 << 20)):
        disk.create(name, size)
        pool.add_spare(name, open_file=disk.open_exclusive)
    disk.fail_writes("bad")
    pool.fail_member("m1")
    assert pool.take_spare() == ("m1", "good")
    assert pool.status()["spares"] == [] and any("spare bad cannot be used" in r for r in pool.status()["remarks"])


def test_spares_that_cannot_be_are_refused_and_nothing_changes() -> None:
    disk, pool = new_pool(5, 3)
    disk.create("small", 64 << 10)
    disk.create("s", 1 << 20)
    with pytest.raises(BadInput, match="small has 65536 bytes, a member of this pool needs"):
        pool.add_spare("small", open_file=disk.open_exclusive)
    with pytest.raises(NotFound, match="no RAID group x"):
        pool.add_spare("s", "x", disk.open_exclusive)
    with pytest.raises(MemberInUse):
        pool.add_spare("m0", open_file=disk.open_exclusive)
    other = Pool.create(
        "other", [GroupSpec("g", 0, [disk.create("o", 1 << 20) or "o"], CHUNK)], AREA, disk.open_exclusive
    )
    other.close()
    with pytest.raises(MemberInUse, match="o is a member of pool other"):
        pool.add_spare("o", open_file=disk.open_exclusive)
    assert pool.status()["spares"] == []
    pool.add_spare("s", open_file=disk.open_exclusive)
    with pytest.raises((AlreadyExists, MemberInUse)):
        pool.add_spare("s", open_file=disk.open_exclusive)
    pool.remove_member("s")
    assert pool.status()["spares"] == []
    Pool.create("third", [GroupSpec("g", 0, ["s"], CHUNK)], AREA, disk.open_exclusive).close()


def test_a_missing_spare_is_named_and_can_be_given_up() -> None:
    disk, pool = new_pool(1, 2)
    disk.create("s", 1 << 20)
    pool.add_spare("s", open_file=disk.open_exclusive)
    pool.close()
    disk.remove("s")
    pool = reopen(disk)
    assert "spare s: missing" in pool.remarks and not pool.status()["spares"][0]["there"]
    pool.fail_member("m0")
    assert pool.take_spare() is None
    pool.remove_member("s")
    assert pool.status()["spares"] == []


def test_a_destroyed_pool_frees_its_members() -> None:
    disk, pool = new_pool(1, 2)
    disk.create("s", 1 << 20)
    pool.add_spare("s", open_file=disk.open_exclusive)
    pool.create_volume("v", SIZE)
    with pytest.raises(Refused, match="pool tank has volumes: v"):
        pool.destroy()
    assert pool.destroy(force=True) == []
    with pytest.raises(NotFound):
        reopen(disk)
    Pool.create("next", [GroupSpec("g", 1, ["m0", "m1", "s"], CHUNK)], AREA, disk.open_exclusive).close()


def test_what_a_crash_left_of_a_destroyed_pool_is_wiped_and_nothing_else() -> None:
    disk, pool = new_pool(1, 3)
    pool.close()
    disk.create("o", 1 << 20)
    Pool.create("other", [GroupSpec("g", 0, ["o"], CHUNK)], AREA, disk.open_exclusive).close()
    (trouble,) = wipe_members(["m0", "m1", "m2", "o", "nowhere"], disk.open_exclusive)
    assert "nowhere" in trouble
    assert Pool.open(["o"], disk.open_exclusive).name == "other"
    with pytest.raises(NotFound):
        Pool.open(["m0", "m1", "m2"], disk.open_exclusive)
