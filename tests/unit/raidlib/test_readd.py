"""A member that was away is taken back by copying what it missed; one that cannot be trusted is not."""

from __future__ import annotations

import pytest

from raidlib import Pool
from raidlib.errors import NotFound, Refused
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, new_pool, pattern, reopen, states

REDUNDANT = [(1, 2), (1, 3), (5, 3), (6, 4), (10, 4)]
SIZE = 60 * AREA
MEMBER = 2 << 20


def prepared(level: int, members: int) -> tuple[FakeDisk, Pool]:
    """A pool with volume v full of a pattern, and no region marked."""
    disk, pool = new_pool(level, members, MEMBER)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    settle(pool)
    return disk, pool


def settle(pool: Pool) -> None:
    for _ in range(3):
        pool.clear_intents()
    assert pool.status()["groups"][0]["marked_regions"] == 0


def finish(pool: Pool) -> None:
    while pool.rebuild_step():
        pass


def check_without_others(pool: Pool, level: int, expected: bytes, name: str = "v") -> None:
    """m1 carries its share."""
    assert set(states(pool)) == {"in_sync"}
    for index in {1: (0,), 5: (0,), 6: (0, 2), 10: (0,)}[level]:
        pool.fail_member(f"m{index}")
    assert pool.volume(name).pread(len(expected), 0) == expected


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_only_what_was_written_meanwhile_is_copied(level: int, members: int) -> None:
    disk, pool = prepared(level, members)
    volume, expected = pool.volume("v"), bytearray(pattern(SIZE))
    disk.vanish("m1")
    for off in (10, 30 * AREA):
        volume.pwrite(pattern(2000, 3), off)
        expected[off : off + 2000] = pattern(2000, 3)
    member = pool.status()["groups"][0]["members"][1]
    assert member["state"] == "failed" and member["away"]
    settle(pool)
    disk.come_back("m1")
    written: list[int] = []
    data = pool._groups[0].layout.data_offset
    disk.trace = lambda op, name, off, n: written.append(n) if name == "m1" and off >= data and op == "write" else None
    todo = pool.readd_member("m1", disk.open_exclusive)
    finish(pool)
    disk.trace = None
    assert 0 < sum(written) == todo <= 4 * pool._groups[0].geometry.area_member_bytes
    check_without_others(pool, level, expected)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
@pytest.mark.parametrize("when", ["while it is away", "while it comes back"])
def test_writes_trims_and_crashes_meanwhile_are_made_good(level: int, members: int, when: str) -> None:
    disk, pool = prepared(level, members)
    expected = bytearray(pattern(SIZE))
    disk.vanish("m1")
    pool.volume("v").pwrite(pattern(100, 1), 7 * AREA)
    expected[7 * AREA : 7 * AREA + 100] = pattern(100, 1)
    pool.volume("v").zero(20 * AREA, 3 * AREA)
    expected[20 * AREA : 23 * AREA] = bytes(3 * AREA)
    pool.sync()
    settle(pool)
    if when == "while it comes back":
        disk.come_back("m1")
        pool.readd_member("m1", disk.open_exclusive)
        pool.rebuild_step()
    pool.volume("v").pwrite(pattern(5000, 2), 40 * AREA)
    expected[40 * AREA : 40 * AREA + 5000] = pattern(5000, 2)
    pool.sync()
    if when == "while it is away":
        disk.come_back("m1")
    disk.crash()
    pool = reopen(disk)
    if when == "while it is away":
        assert any("m1 was away and is back: farstripe pool readd m1" in remark for remark in pool.remarks)
        pool.readd_member("m1", disk.open_exclusive)
    finish(pool)
    volume = pool.volume("v")
    for area in (20, 21, 22):
        volume.pwrite(b"x", area * AREA + 8192)
        expected[area * AREA + 8192 : area * AREA + 8193] = b"x"
    check_without_others(pool, level, expected)


def test_an_area_that_was_freed_meanwhile_does_not_show_old_data() -> None:
    disk, pool = prepared(1, 2)
    disk.vanish("m1")
    pool.delete_volume("v")
    pool.sync()
    settle(pool)
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    finish(pool)
    volume = pool.create_volume("w", SIZE)
    for area in range(60):
        volume.pwrite(b"x", area * AREA)
    pool.fail_member("m0")
    assert volume.pread(SIZE, 0) == (b"x" + bytes(AREA - 1)) * 60


def test_one_that_was_missing_at_open_or_stopped_in_order_is_taken_back_too() -> None:
    disk, pool = prepared(5, 3)
    pool.close()
    disk.rename("m1", "elsewhere")
    saved = disk._stores.pop("elsewhere")
    pool = reopen(disk)
    pool.volume("v").pwrite(pattern(10, 4), 0)
    disk._stores["elsewhere"] = saved
    assert pool.readd_member("elsewhere", disk.open_exclusive) < SIZE // 4
    finish(pool)
    assert [m["path"] for m in pool.status()["groups"][0]["members"]] == ["m0", "elsewhere", "m2"]
    pool.fail_member("m0")
    pool.volume("v").pwrite(pattern(10, 5), 0)
    pool.readd_member("m0", disk.open_exclusive)
    finish(pool)
    pool.fail_member("m2")
    assert pool.volume("v").pread(SIZE, 0) == pattern(10, 5) + pattern(SIZE)[10:]


def test_one_that_vanishes_again_while_it_is_brought_up_loses_nothing() -> None:
    disk, pool = prepared(6, 4)
    disk.vanish("m1")
    pool.volume("v").pwrite(pattern(30 * AREA, 1), 0)
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    pool.rebuild_step()
    disk.vanish("m1")
    pool.volume("v").pwrite(pattern(10, 2), 50 * AREA)
    finish(pool)
    assert pool.status()["groups"][0]["members"][1]["away"]
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    finish(pool)
    tail = pattern(SIZE)[30 * AREA :]
    at = 20 * AREA
    check_without_others(pool, 6, pattern(30 * AREA, 1) + tail[:at] + pattern(10, 2) + tail[at + 10 :])


@pytest.mark.parametrize("fault", ["write error", "failed sync"])
def test_one_that_failed_for_its_own_errors_is_refused(fault: str) -> None:
    disk, pool = prepared(1, 2)
    if fault == "write error":
        disk.fail_writes("m1")
    else:
        disk.fail_next_sync("m1")
    pool.volume("v").pwrite(pattern(10, 2), 0)
    pool.sync()
    assert states(pool)[1] == "failed"
    disk.heal("m1")
    with pytest.raises(Refused, match="it did not merely go away") as caught:
        pool.readd_member("m1", disk.open_exclusive)
    assert "pool replace" in caught.value.way_out
    pool.close()
    pool = reopen(disk)
    assert any("m1 is there but stays out: it did not merely go away" in remark for remark in pool.remarks)


def test_copies_strangers_and_the_replaced_are_refused_with_the_reason() -> None:
    disk, pool = prepared(5, 3)
    pool.close()
    disk.copy("m1", "backup")
    pool = Pool.open(["m0"], disk.open_exclusive)
    disk.copy("m0", "twin")
    disk.vanish("m1")
    pool.volume("v").pwrite(pattern(10, 2), 0)
    with pytest.raises(Refused, match="backup cannot be taken back by difference: it holds an older state"):
        pool.readd_member("backup", disk.open_exclusive)
    with pytest.raises(Refused, match="twin is the same member as m0, which is in use"):
        pool.readd_member("twin", disk.open_exclusive)
    disk.create("blank", MEMBER)
    with pytest.raises(NotFound, match="blank is not a pool member"):
        pool.readd_member("blank", disk.open_exclusive)
    other, _ = new_pool(1, 2, MEMBER)
    disk._stores["foreign"] = other._stores["m0"]
    with pytest.raises(Refused, match="foreign belongs to another pool"):
        pool.readd_member("foreign", disk.open_exclusive)
    with pytest.raises(Refused, match="m0 is a member in use"):
        pool.readd_member("m0", disk.open_exclusive)
    pool.replace_member("m1", "blank", disk.open_exclusive)
    finish(pool)
    disk.come_back("m1")
    with pytest.raises(Refused, match="m1 was replaced and is no longer part of pool tank"):
        pool.readd_member("m1", disk.open_exclusive)


def test_one_that_another_process_used_meanwhile_is_refused() -> None:
    disk, pool = prepared(1, 2)
    pool.close()
    saved = disk._stores.pop("m0")
    split = Pool.open(["m1"], disk.open_exclusive, force=True)
    split.volume("v").pwrite(b"other history", 0)
    split.close()
    other = disk._stores.pop("m1")
    disk._stores["m0"] = saved
    pool = Pool.open(["m0"], disk.open_exclusive, force=True)
    disk._stores["m1"] = other
    with pytest.raises(Refused, match="another pool process has used it since"):
        pool.readd_member("m1", disk.open_exclusive)


def test_a_member_let_go_of_is_not_taken_back() -> None:
    disk, pool = prepared(1, 2)
    pool.fail_member("m1")
    pool.remove_member("m1")
    assert pool.status()["groups"][0]["missed_regions"] == 0
    with pytest.raises(Refused, match="it did not merely go away"):
        pool.readd_member("m1", disk.open_exclusive)
    with pytest.raises(Refused, match="m0 is a member in use"):
        pool.remove_member("m0")


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
@pytest.mark.parametrize("crash", [False, True])
def test_areas_taken_meanwhile_and_never_written_are_zero_on_who_comes_back(
    level: int, members: int, crash: bool
) -> None:
    disk, pool = prepared(level, members)
    pool.create_volume("other", AREA)
    disk.vanish("m1")
    pool.sync()
    pool.delete_volume("v")
    pool.create_volume("thick", SIZE, thin=False)
    if crash:
        disk.kill()
        pool = reopen(disk)
    else:
        settle(pool)
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    finish(pool)
    check_without_others(pool, level, bytes(SIZE), "thick")
