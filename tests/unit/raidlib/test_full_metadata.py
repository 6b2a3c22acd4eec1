"""A pool whose metadata is full still records what must be recorded: a member that fails, and it still opens."""

from __future__ import annotations

import pytest

from raidlib import Pool
from raidlib.errors import OutOfSpace
from raidlib.ledger import METADATA_RESERVE_BYTES
from raidlib.metastore import HEADER_BYTES
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, new_pool, pattern, reopen, states

AREAS = 1200


def full_pool() -> tuple[FakeDisk, Pool]:
    """A pool with volume v, wholly written, and as much other metadata as users can bring about."""
    disk, pool = new_pool(1, 2, 24 << 20)
    volume = pool.create_volume("v", AREAS * AREA)
    for index in range(AREAS):
        volume.pwrite(bytes([1 + index % 255]) * 512, index * AREA)
    settle(pool)
    ledger = pool._ledger
    volume.info.attributes["ballast"] = "x" * (room_left(pool) - 100)
    ledger.check_room()
    ledger.commit()
    return disk, pool


def room_left(pool: Pool) -> int:
    ledger = pool._ledger
    room = ledger.layouts()[0].checkpoint_bytes - HEADER_BYTES - METADATA_RESERVE_BYTES
    return room - len(ledger.state.encode())


def settle(pool: Pool) -> None:
    for _ in range(3):
        pool.clear_intents()


def check_that_a_failure_is_recorded(disk: FakeDisk, pool: Pool) -> None:
    disk.fail_writes("m0")
    pool.volume("v").pwrite(pattern(AREA), AREA)
    pool.sync()
    assert states(pool) == ["failed", "in_sync"]
    disk.heal("m0")
    disk.kill()
    pool = reopen(disk)
    assert states(pool) == ["failed", "in_sync"]
    assert pool.volume("v").pread(AREA, AREA) == pattern(AREA)
    assert not pool.check()["problems"]


def test_areas_that_go_are_refused_before_there_is_no_room_for_a_failure() -> None:
    disk, pool = full_pool()
    with pytest.raises(OutOfSpace, match="no room left for metadata"):
        for index in range(0, AREAS, 2):
            pool.volume("v").zero(index * AREA, AREA)
    check_that_a_failure_is_recorded(disk, pool)


def test_regions_that_a_member_missed_leave_room_for_a_failure() -> None:
    disk, pool = full_pool()
    regions = pool._groups[0].info.region_areas
    disk.vanish("m1")
    for index in range(0, AREAS, 2 * regions):
        pool.volume("v").pwrite(b"missed", index * AREA)
    settle(pool)
    pool._ledger.state.volumes[1].attributes["ballast"] += "x" * (METADATA_RESERVE_BYTES - 500)
    pool._ledger.commit()
    disk.kill()
    pool = reopen(disk)
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    pool.fail_member("m0")
    assert all(pool.volume("v").pread(6, index * AREA) == b"missed" for index in range(0, AREAS, 2 * regions))


def test_a_deletion_that_would_make_the_metadata_too_large_is_refused() -> None:
    _, pool = full_pool()
    volume = pool.volume("v")
    ballast = volume.info.attributes.pop("ballast")
    names = ["c", "d", "e", "f", "g"]
    for name in names:
        pool.clone("v", name)
    for index in range(0, AREAS, 2):
        pool.volume("c").zero(index * AREA, AREA)  # the others would have to say that they differ from it
    pool.volume("g").info.attributes["ballast"] = ballast[: room_left(pool) - 100]
    pool._ledger.commit()
    with pytest.raises(OutOfSpace, match="pool metadata would take"):
        pool.delete_volume("v")
    assert pool.volume("v").pread(1, 0) == b"\1"
    for name in names:
        pool.delete_volume(name)
    pool.delete_volume("v")
    assert not pool.volumes and not pool.check()["problems"]


def test_a_trim_of_everything_needs_no_room_for_each_area() -> None:
    _, pool = full_pool()
    volume = pool.volume("v")
    ballast = volume.info.attributes["ballast"]
    volume.info.attributes["ballast"] = ballast[:-8000]
    pool._ledger.commit()
    volume.zero(0, AREAS * AREA)
    assert not len(volume.info.areas) and volume.pread(AREA, AREA) == bytes(AREA)
    pool.sync()
    assert not pool.check()["problems"]
