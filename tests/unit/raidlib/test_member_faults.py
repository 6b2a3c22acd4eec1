"""Faults of single members on every level: short reads, a full filesystem, slowness; and how mirrors share reads."""

from __future__ import annotations

import errno
from collections import Counter

import msgpack
import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import MediumError, OutOfSpace
from raidlib.state import PoolState
from tests.testing.fakedisk import FakeFile
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool, pattern, reopen, states

SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]
REDUNDANT = SHAPES[1:]
SIZE = 6 * AREA


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_short_read_is_completed_and_never_taken_for_data(
    level: int, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = FakeFile._raw_preadv

    def short(self: FakeFile, bufs: list[memoryview], off: int, flags: int = 0) -> int:
        return good(self, [memoryview(bufs[0])[: len(bufs[0]) // 2]], off)

    monkeypatch.setattr(FakeFile, "_raw_preadv", short)
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    assert volume.pread(SIZE, 0) == pattern(SIZE) and volume.pread(100, 5000) == pattern(SIZE)[5000:5100]
    assert set(states(pool)) == {"in_sync"}


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_short_write_is_completed(level: int, members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: FakeFile, buf: bytes, off: int) -> int:
        n = max(1, len(buf) // 2)
        self.pwrite(memoryview(buf)[:n], off)
        return n

    monkeypatch.setattr(FakeFile, "_raw_pwrite", short)
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    for off in range(0, SIZE, 2048):
        volume.pwrite(pattern(SIZE)[off : off + 2048], off)
    assert volume.pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_full_filesystem_refuses_the_write_and_fails_nobody(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(AREA), 0)
    disk.full = True
    with pytest.raises(OutOfSpace, match="is full") as caught:
        volume.pwrite(pattern(AREA), AREA)
    assert caught.value.errno == errno.ENOSPC
    assert set(states(pool)) == {"in_sync"} and volume.pread(2 * AREA, 0) == pattern(AREA) + bytes(AREA)
    disk.full = False
    volume.pwrite(pattern(AREA), AREA)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_a_member_that_vanishes_fails_nothing_else_and_is_remembered_as_away(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    disk.vanish("m1")
    assert volume.pread(SIZE, 0) == pattern(SIZE)
    volume.pwrite(pattern(SIZE, 2), 0)
    pool.sync()
    found = pool.status()["groups"][0]["members"]
    assert [m["state"] == "failed" for m in found] == [m["path"] == "m1" for m in found] and found[1]["away"]
    disk.kill()
    pool = reopen(disk) if level != 1 else reopen(disk, force=True)
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE, 2)


@pytest.mark.parametrize(("level", "members"), [(1, 2), (1, 4), (10, 4)])
def test_reads_are_shared_evenly_between_the_copies(level: int, members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool = new_pool(level, members)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    served: Counter[str] = Counter()
    good = FakeFile.preadinto

    def count(self: FakeFile, buf: memoryview, off: int) -> int:
        served[self.path] += len(buf)
        return good(self, buf, off)

    monkeypatch.setattr(FakeFile, "preadinto", count)
    for off in range(0, SIZE, 4096):
        volume.pread(4096, off)
    share = SIZE / members
    assert len(served) == members and all(abs(n - share) <= 0.4 * share for n in served.values()), served


def test_metadata_of_version_1_is_read_and_written_as_2() -> None:
    _, pool = new_pool(5, 3)
    raw = msgpack.unpackb(pool._ledger.state.encode(), strict_map_key=False)
    assert raw["version"] == 2
    raw["version"] = 1
    del raw["spares"]
    for group in raw["groups"]:
        del group["missed"]
    state = PoolState.decode(msgpack.packb(raw), 7)
    assert state.spares == [] and state.groups[0].missed == set() and state.groups[0].members[0].away is None
    assert PoolState.decode(state.encode(), 7) == state


def test_an_area_of_raid_0_that_could_not_be_zeroed_is_free_again_once_it_can() -> None:
    disk, pool = new_pool(0, 2)
    areas = pool.status()["groups"][0]["free_areas"]
    volume = pool.create_volume("v", areas * AREA)
    for index in range(areas):
        volume.pwrite(b"old data", index * AREA)
    group = pool._groups[0]
    bad = group.member_offset(volume.info.areas[3] & 0xFFFFFFFF)
    disk.fail_writes("m0", bad, bad + 1)
    with pytest.raises(MediumError):
        volume.zero(0, 6 * AREA)
    assert pool.status()["groups"][0]["free_areas"] == 6
    for index in (0, 1, 2, 4, 5):
        volume.pwrite(b"new", index * AREA)
    with pytest.raises(MediumError):
        volume.pwrite(b"new", 3 * AREA)
    disk.heal("m0")
    volume.pwrite(b"new", 3 * AREA)
    assert volume.pread(6 * AREA, 0) == (b"new" + bytes(AREA - 3)) * 6
    assert pool.check()["problems"] == []


def test_one_area_that_cannot_be_zeroed_does_not_keep_others_from_being_used() -> None:
    disk, pool = new_pool(0, 2)
    areas = pool.status()["groups"][0]["free_areas"]
    volume = pool.create_volume("v", areas * AREA)
    volume.pwrite(b"x" * areas * AREA, 0)
    pool.delete_volume("v")
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    pool._groups[0].info.dirty.update(range(areas))
    pool._allocators[0]._clean.clear()
    bad = pool._groups[0].member_offset(0)
    disk.fail_writes("m1", bad, bad + 1)
    volume = pool.create_volume("w", areas * AREA)
    for index in range(areas - 1):
        volume.pwrite(b"y", index * AREA)
    with pytest.raises(MediumError):
        volume.pwrite(b"y", (areas - 1) * AREA)


def test_errors_of_a_member_are_counted_over_restarts_until_they_are_cleared_or_it_is_replaced() -> None:
    disk, pool = new_pool(1, 2, checksums=True)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    at = pool._groups[0].member_offset(0)
    for turn in (1, 2):
        disk.corrupt("m0", at + 100)
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)
        report = pool.status()["groups"][0]["members"][0]
        assert (report["checksum_errors"], report["repaired"]) == (turn, turn)
        assert report["since_open"]["checksum_errors"] == 1
        pool.close()
        pool = reopen(disk)
    report = pool.status()["groups"][0]["members"][0]
    assert (report["checksum_errors"], report["since_open"]["checksum_errors"]) == (2, 0)
    assert pool.check()["problems"] == []
    assert pool.clear_errors("m1") == 0 and pool.clear_errors() == 1
    disk.kill()
    pool = reopen(disk)
    assert pool.status()["groups"][0]["members"][0]["checksum_errors"] == 0
    disk.corrupt("m0", at + 100)
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)
    disk.create("n", 512 << 10)
    pool.replace_member("m0", "n", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    pool.close()
    assert reopen(disk).status()["groups"][0]["members"][0]["checksum_errors"] == 0


def test_raid_0_that_cannot_write_metadata_is_lost_until_the_disk_was_copied_to_one_that_works() -> None:
    disk, pool = new_pool(0, 2)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    pool.sync()
    layout = pool._groups[0].layout
    disk.fail_writes("m1", layout.slot_offset, layout.data_offset)
    volume = pool.create_volume("other", AREA)  # the metadata is on the member that takes it
    assert pool.status()["groups"][0]["state"] == "lost"
    with pytest.raises(MediumError, match="has lost more members"):
        volume.pwrite(bytes(AREA), 0)
    with pytest.raises(MediumError, match="has lost more members"):
        pool.volume("v").pread(SIZE, 0)
    disk.kill()
    with pytest.raises(MediumError, match="node start --force takes failed members back"):
        reopen(disk)
    pool = reopen(disk, force=True)
    with pytest.raises(MediumError, match="has lost more members"):  # it failed again
        pool.volume("v").pread(SIZE, 0)
    disk.kill()
    disk.copy("m1", "copy")
    disk.remove("m1")
    pool = reopen(disk, force=True)
    assert states(pool) == ["in_sync", "in_sync"] and pool.status()["groups"][0]["members"][1]["path"] == "copy"
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE) and pool.volume("other").size == AREA
    assert not pool.check()["problems"]
    pool.close()
    assert states(reopen(disk)) == ["in_sync", "in_sync"]


def test_a_lost_raid_0_does_not_take_the_other_groups_with_it() -> None:
    disk = new_disk(4)
    specs = [GroupSpec("g", 0, ["m0", "m1"], CHUNK), GroupSpec("h", 1, ["m2", "m3"], CHUNK)]
    pool = Pool.create("tank", specs, AREA, disk.open_exclusive)
    pool.create_volume("v", AREA, raid_group="h").pwrite(pattern(AREA), 0)
    layout = pool._groups[0].layout
    disk.fail_writes("m1", layout.slot_offset, layout.data_offset)
    pool.create_volume("w", AREA, raid_group="h")
    pool.volume("v").pwrite(pattern(AREA, 2), 0)
    pool.sync(pool.volume("v"))
    assert [group["state"] for group in pool.status()["groups"]] == ["lost", "ok"]
    disk.kill()
    pool = reopen(disk, force=True)
    assert pool.volume("v").pread(AREA, 0) == pattern(AREA, 2)


def test_a_durable_metadata_write_that_fails_may_have_dropped_data_which_is_why_the_member_fails() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", SIZE)
    volume.pwrite(pattern(SIZE), 0)
    disk.fail_next_sync("m1")
    pool.create_volume("other", AREA)  # a durable write; the error may as well be that of the data before it
    with pytest.raises(MediumError):
        volume.pread(SIZE, 0)
    with pytest.raises(MediumError):
        pool.sync()
