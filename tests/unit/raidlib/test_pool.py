"""Administration of a pool: volumes made and unmade, marks cleared, a pool closed and opened."""

from __future__ import annotations

import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import AlreadyExists, BadInput, NotFound, OutOfSpace, RaidError, Refused
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool, pattern, reopen, states


def test_volumes_and_their_data_are_there_after_closing() -> None:
    disk, pool = new_pool(6, 4)
    first, second = pool.create_volume("a", 3 * AREA), pool.create_volume("b", AREA, thin=False)
    first.pwrite(pattern(2 * AREA), AREA)
    second.pwrite(pattern(100), 5)
    uuids = [volume.uuid for volume in pool.volumes]
    pool.close()
    pool = reopen(disk)
    assert [(v.name, v.size, v.uuid) for v in pool.volumes] == [("a", 3 * AREA, uuids[0]), ("b", AREA, uuids[1])]
    assert pool.volume("a").pread(3 * AREA, 0) == bytes(AREA) + pattern(2 * AREA)
    assert pool.volume("b").pread(100, 5) == pattern(100)
    assert pool.stopped == "clean" and pool.unclean_ranges == {}


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097])
def test_a_size_that_is_no_multiple_of_4096_is_refused(size: int) -> None:
    _, pool = new_pool(0, 1)
    with pytest.raises(BadInput, match=f"volume v: size {size} is not a positive multiple of 4096") as caught:
        pool.create_volume("v", size)
    assert "the next size is" in caught.value.way_out
    pool.create_volume("v", 8192)
    with pytest.raises(BadInput, match=f"size {size}"):
        pool.resize_volume("v", size)
    assert pool.volume("v").size == 8192


def test_names_are_unique_and_proper() -> None:
    _, pool = new_pool(0, 1)
    pool.create_volume("v", AREA)
    with pytest.raises(AlreadyExists, match="there is a volume v already"):
        pool.create_volume("v", AREA)
    with pytest.raises(BadInput, match="'a b' is not a name for a volume"):
        pool.create_volume("a b", AREA)
    with pytest.raises(NotFound, match="there is no RAID group h in pool tank") as caught:
        pool.create_volume("w", AREA, "h")
    assert "its groups are: g" in caught.value.way_out
    for call in (pool.volume, pool.delete_volume, lambda name: pool.resize_volume(name, AREA)):
        with pytest.raises(NotFound, match="there is no volume nope in pool tank"):
            call("nope")


def test_a_thick_volume_needs_its_space_now_and_a_refusal_changes_nothing() -> None:
    disk, pool = new_pool(0, 1)
    free = pool.status()["groups"][0]["free_areas"]
    with pytest.raises(OutOfSpace, match="group g"):
        pool.create_volume("v", (free + 1) * AREA, thin=False)
    assert pool.volumes == [] and pool.status()["groups"][0]["free_areas"] == free
    pool.create_volume("v", free * AREA, thin=False)
    disk.kill()
    assert reopen(disk).volume("v").extents(0, free * AREA) == [(free * AREA, True)]


def test_the_group_with_most_space_is_taken_unless_one_is_named() -> None:
    disk = new_disk(3)
    disk.create("big", 2 << 20)
    groups = [GroupSpec("r5", 5, ["m0", "m1", "m2"], CHUNK), GroupSpec("r0", 0, ["big"], CHUNK)]
    pool = Pool.create("tank", groups, AREA, disk.open_exclusive)
    pool.create_volume("a", AREA)
    pool.create_volume("b", AREA, "r5")
    assert [volume["group"] for volume in pool.status()["volumes"]] == ["r0", "r5"]
    for volume in pool.volumes:
        volume.pwrite(pattern(AREA), 0)
    pool.close()
    assert all(volume.pread(AREA, 0) == pattern(AREA) for volume in reopen(disk).volumes)


def test_a_deleted_volume_is_gone_and_its_space_is_free() -> None:
    disk, pool = new_pool(5, 3)
    free = pool.status()["groups"][0]["free_areas"]
    volume = pool.create_volume("v", 3 * AREA)
    volume.pwrite(pattern(3 * AREA), 0)
    pool.delete_volume("v")
    assert pool.status()["groups"][0]["free_areas"] == free
    with pytest.raises(RaidError):
        volume.pwrite(b"x", 0)
    with pytest.raises(RaidError):
        volume.pread(1, 0)
    disk.kill()
    assert reopen(disk).volumes == []


@pytest.mark.parametrize("thin", [True, False])
def test_a_grown_volume_shows_zeroes_beyond_its_old_end(thin: bool) -> None:
    disk, pool = new_pool(6, 4)
    volume = pool.create_volume("v", AREA, thin=thin)
    volume.pwrite(pattern(AREA), 0)
    pool.resize_volume("v", 4096, force=True)
    pool.resize_volume("v", 2 * AREA)
    assert volume.size == 2 * AREA
    assert volume.pread(2 * AREA, 0) == pattern(AREA)[:4096] + bytes(2 * AREA - 4096)
    volume.pwrite(b"end", 2 * AREA - 3)
    disk.kill()
    assert reopen(disk).volume("v").pread(3, 2 * AREA - 3) == b"end"


def test_shrinking_that_cuts_data_needs_force() -> None:
    _, pool = new_pool(0, 2)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(3 * AREA), 0)
    with pytest.raises(Refused, match="shrinking to 16384 bytes would cut allocated data") as caught:
        pool.resize_volume("v", AREA)
    assert "force" in caught.value.way_out and volume.size == 4 * AREA
    pool.resize_volume("v", 3 * AREA)
    pool.resize_volume("v", AREA, force=True)
    assert volume.pread(AREA, 0) == pattern(3 * AREA)[:AREA]
    with pytest.raises(BadInput):
        volume.pread(1, AREA)


def test_too_many_volumes_for_the_metadata_are_refused_and_nothing_is_lost() -> None:
    disk, pool = new_pool(0, 1, 256 << 10)
    made = []
    with pytest.raises(OutOfSpace, match="pool metadata would take"):
        for i in range(2000):
            made.append(pool.create_volume(f"volume-with-a-long-name-{i:04d}", 4096).name)
    assert len(made) > 50
    disk.kill()
    assert [volume.name for volume in reopen(disk).volumes] == made


def test_idle_marks_are_cleared_at_the_second_call_and_come_back_with_a_write() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", 4 * AREA)
    pool.close()
    pool = reopen(disk)
    pool.volume("v").pwrite(b"x", 0)
    assert pool.clear_intents() == 0
    assert pool.clear_intents() > 0
    disk.kill()
    pool = reopen(disk)
    assert pool.stopped == "killed" and pool.unclean_ranges == {}
    pool.volume("v").pwrite(b"y", 0)
    disk.kill()
    assert reopen(disk).unclean_ranges == {"v": [(0, AREA)]}


def test_unclean_ranges_stay_until_marks_are_cleared() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", 70 * AREA).pwrite(b"x", 64 * AREA)
    for _ in range(3):
        disk.kill()
        pool = reopen(disk)
        assert pool.unclean_ranges["v"][-1] == (64 * AREA, 6 * AREA)
    pool.clear_intents()
    disk.kill()
    assert reopen(disk).unclean_ranges == {}


def test_marks_stay_when_the_caller_cannot_settle() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", AREA).pwrite(b"x", 0)
    pool.clear_intents()
    with pytest.raises(ZeroDivisionError):
        pool.clear_intents(lambda: 1 // 0)
    disk.kill()
    assert reopen(disk).unclean_ranges == {"v": [(0, AREA)]}


def test_marks_of_volumes_that_the_caller_could_not_settle_stay_also_over_an_orderly_stop() -> None:
    disk, pool = new_pool(5, 3)
    pool.create_volume("v", 40 * AREA).pwrite(b"x", 0)
    pool.create_volume("w", 40 * AREA).pwrite(b"y", 0)
    pool.create_volume("sparse", 64 << 20).zero(0, 4096, True)
    pool.volume("w").pwrite(b"y", 39 * AREA)
    for _ in range(3):
        pool.clear_intents(lambda: {"w", "sparse"})
    assert disk.kill() is None
    pool = reopen(disk)
    kept = pool.unclean_ranges
    assert kept["w"][0][0] == 0 and sum(kept["w"][-1]) == 40 * AREA
    for _ in range(2):
        pool.clear_intents(lambda: {"w"})
        pool.close(kept={"w"})
        pool = reopen(disk)
        assert pool.unclean_ranges["w"] == kept["w"]
        assert pool.stopped != "clean"
    pool.close()
    assert reopen(disk).stopped == "clean"


def test_how_the_pool_stopped_is_told_by_the_boot() -> None:
    disk, _ = new_pool(0, 1)
    disk.kill()
    assert reopen(disk, boot_id="first").stopped == "lost power"
    disk.kill()
    assert reopen(disk, boot_id="first").stopped == "killed"
    disk.crash()
    assert reopen(disk, boot_id="second").stopped == "lost power"


def test_status_tells_of_groups_members_and_volumes() -> None:
    _, pool = new_pool(6, 4)
    pool.create_volume("v", 4 * AREA).pwrite(b"x", 0)
    status = pool.status()
    [group], [volume] = status["groups"], status["volumes"]
    assert status["name"] == "tank" and status["parity"] in ("isa-l", "numpy") and status["area_bytes"] == AREA
    assert group["level"] == 6 and group["state"] == "ok" and group["chunk_bytes"] == CHUNK
    assert group["free"] == group["size"] - AREA
    assert states(pool) == ["in_sync"] * 4
    assert volume["created"] > 1_600_000_000
    assert volume == {
        "name": "v",
        "uuid": pool.volume("v").uuid,
        "size": 4 * AREA,
        "group": "g",
        "thin": True,
        "allocated": AREA,
        "kind": "volume",
        "origin": None,
        "created": volume["created"],
    }


def test_closing_twice_is_harmless() -> None:
    _, pool = new_pool(0, 1)
    pool.close()
    pool.close()


@pytest.mark.parametrize("force", [False, True])
def test_a_write_behind_the_new_end_just_before_it_is_neither_lost_nor_left_behind(
    monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    _, pool = new_pool(5, 3)
    volume = pool.create_volume("v", 4 * AREA)
    set_size = volume.set_size

    def write_and_set_size(size: int) -> None:
        if size < volume.size:
            volume.pwrite(pattern(AREA), 2 * AREA)
        set_size(size)

    monkeypatch.setattr(volume, "set_size", write_and_set_size)
    if force:
        pool.resize_volume("v", AREA, force=True)
        pool.resize_volume("v", 4 * AREA)
        assert volume.pread(4 * AREA, 0) == bytes(4 * AREA)
    else:
        with pytest.raises(Refused, match="would cut allocated data"):
            pool.resize_volume("v", AREA)
        assert volume.pread(4 * AREA, 0) == bytes(2 * AREA) + pattern(AREA) + bytes(AREA)
    assert not pool.check()["problems"]
