"""Snapshots and clones: what they hold, what they cost, what becomes of their space."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from raidlib import GroupSpec, OSFile, Pool
from raidlib.errors import AlreadyExists, BadInput, NotFound, OutOfSpace, Refused
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool, pattern, reopen

LEVELS = pytest.mark.parametrize(("level", "members"), [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)])


def used(pool: Pool) -> int:
    return int(pool.check()["groups"][0]["used"])


def sound(pool: Pool) -> None:
    assert pool.check()["problems"] == []


@LEVELS
def test_a_snapshot_keeps_what_was_there_and_survives_a_crash(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(2 * AREA, 1), 0)
    [snapshot] = pool.snapshot({"v": "s"})
    volume.pwrite(pattern(700, 2), AREA - 300)
    volume.zero(AREA, AREA)
    volume.pwrite(b"later", 3 * AREA)
    for crash in (disk.kill, lambda: disk.crash(lambda _i, _w: "drop")):
        sound(pool)
        assert snapshot.pread(4 * AREA, 0) == pattern(2 * AREA, 1) + bytes(2 * AREA)
        crash()
        pool = reopen(disk)
        snapshot = pool.volume("s")
    assert (snapshot.info.kind, pool.status()["volumes"][1]["origin"]) == ("snapshot", "v")


def test_a_snapshot_is_never_written(tmp_path: Path) -> None:
    _, pool = new_pool(0, 2)
    pool.create_volume("v", AREA).pwrite(b"x", 0)
    [snapshot] = pool.snapshot({"v": "s"})
    for change in (
        lambda: snapshot.pwrite(b"y", 0),
        lambda: snapshot.zero(0, 4096),
        lambda: pool.resize_volume("s", 2 * AREA),
        lambda: pool.rollback("s", "s"),
    ):
        with pytest.raises(Refused, match="never changes"):
            change()
    assert snapshot.pread(2, 0) == b"x\0"


@LEVELS
def test_a_clone_is_written_apart_from_its_origin(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    volume = pool.create_volume("v", 3 * AREA)
    volume.pwrite(pattern(3 * AREA, 1), 0)
    pool.snapshot({"v": "s"})
    clone, other = pool.clone("s", "c"), pool.clone("v", "d")
    assert used(pool) == 3
    clone.pwrite(pattern(AREA, 2), AREA // 2)
    volume.pwrite(pattern(AREA, 3), AREA)
    other.zero(0, 2 * AREA)
    pool.sync()
    for _ in range(2):
        was = pattern(3 * AREA, 1)
        assert pool.volume("s").pread(3 * AREA, 0) == was
        assert pool.volume("c").pread(3 * AREA, 0) == was[: AREA // 2] + pattern(AREA, 2) + was[AREA + AREA // 2 :]
        assert pool.volume("v").pread(3 * AREA, 0) == was[:AREA] + pattern(AREA, 3) + was[2 * AREA :]
        assert pool.volume("d").pread(3 * AREA, 0) == bytes(2 * AREA) + was[2 * AREA :]
        sound(pool)
        disk.kill()
        pool = reopen(disk)


@pytest.mark.parametrize("order", ["vsct", "tcsv", "svtc", "cvst"])
def test_deleting_in_any_order_gives_all_space_back(order: str) -> None:
    disk, pool = new_pool(5, 3)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    pool.snapshot({"v": "s"})
    volume.pwrite(b"1", 0)
    pool.snapshot({"v": "t"})
    volume.pwrite(b"2", AREA)
    pool.clone("s", "c").pwrite(b"3", 2 * AREA)
    assert used(pool) == 7
    contents = {name: pool.volume(name).pread(4 * AREA, 0) for name in "vstc"}
    for name in order:
        pool.delete_volume(name)
        del contents[name]
        disk.kill()
        pool = reopen(disk, boot_id=name)
        assert {volume.name: volume.pread(4 * AREA, 0) for volume in pool.volumes} == contents
        sound(pool)
    assert used(pool) == 0
    pool.sync()
    areas = pool.status()["groups"][0]["free_areas"]
    assert pool.create_volume("n", areas * AREA, thin=False).pread(AREA * areas, 0) == bytes(AREA * areas)


def test_several_volumes_are_taken_at_one_instant_while_they_are_written(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"m{i}") for i in range(2)]
    for path in paths:
        OSFile.create(path, 2 << 20)
    pool = Pool.create("tank", [GroupSpec("g", 0, paths, CHUNK)], AREA)
    volumes = [pool.create_volume(name, 2 * AREA) for name in "ab"]
    stop = threading.Event()
    done = [0]

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            volumes[number % 2].pwrite(number.to_bytes(8, "little"), number % 3 * 512)
            done[0] = number

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for taken in range(12):
            time.sleep(0.01)
            before = done[0]
            pool.snapshot({"a": f"a{taken}", "b": f"b{taken}"})
            after = done[0]
            newest = [
                max(int.from_bytes(pool.volume(f"{name}{taken}").pread(8, at * 512), "little") for at in range(3))
                for name in "ab"
            ]
            # Writes follow one another, so an image of one instant holds a prefix of them.
            assert abs(newest[0] - newest[1]) == 1
            assert before <= max(newest) <= after + 1
    finally:
        stop.set()
        thread.join()
    sound(pool)
    pool.close()


def test_a_snapshot_waits_for_a_write_that_is_inside_and_keeps_later_ones_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool = new_pool(1, 2)
    volume = pool.create_volume("v", 2 * AREA)
    volume.pwrite(b"old", 0)
    pool.clear_intents()
    inside, go_on = threading.Event(), threading.Event()
    write = volume.group.write

    def slow_write(*args: object) -> None:
        inside.set()
        assert go_on.wait(30)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(volume.group, "write", slow_write)
    first = threading.Thread(target=volume.pwrite, args=(b"new", 0))
    first.start()
    assert inside.wait(30)
    taking = threading.Thread(target=pool.snapshot, args=({"v": "s"},))
    taking.start()
    while not volume._bars:
        time.sleep(0.001)
    second = threading.Thread(target=volume.pwrite, args=(b"later", AREA))
    second.start()
    time.sleep(0.02)
    assert taking.is_alive() and second.is_alive() and [one.name for one in pool.volumes] == ["v"]
    go_on.set()
    for thread in (first, taking, second):
        thread.join(30)
    assert pool.volume("s").pread(2 * AREA, 0) == b"new" + bytes(2 * AREA - 3)
    assert volume.pread(5, AREA) == b"later"


def test_writers_of_one_shared_area_make_one_copy() -> None:
    _, pool = new_pool(5, 3)
    volume = pool.create_volume("v", AREA)
    volume.pwrite(pattern(AREA), 0)
    pool.snapshot({"v": "s"})
    threads = [threading.Thread(target=volume.pwrite, args=(bytes([i]) * 512, 512 * i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = b"".join(bytes([i]) * 512 for i in range(8)) + pattern(AREA)[4096:]
    assert volume.pread(AREA, 0) == expected and pool.volume("s").pread(AREA, 0) == pattern(AREA)
    assert used(pool) == 2
    sound(pool)


def test_a_full_pool_fails_the_write_and_keeps_the_snapshot() -> None:
    _, pool = new_pool(0, 2)
    areas = pool.status()["groups"][0]["areas"]
    volume = pool.create_volume("v", areas * AREA)
    volume.pwrite(pattern(areas * AREA), 0)
    pool.snapshot({"v": "s"})
    with pytest.raises(OutOfSpace) as caught:
        volume.pwrite(b"x", 0)
    assert caught.value.errno == errno.ENOSPC
    for name in "vs":
        assert pool.volume(name).pread(areas * AREA, 0) == pattern(areas * AREA)
    sound(pool)
    pool.delete_volume("s")
    volume.pwrite(b"x", 0)
    assert volume.pread(1, 0) == b"x"


def test_a_snapshot_that_the_metadata_has_no_room_for_changes_nothing() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    with pytest.raises(OutOfSpace, match="metadata"):
        for taken in range(1000):
            pool.snapshot({"v": f"{taken:050}"})
    sound(pool)
    names = {volume.name for volume in pool.volumes}
    disk.kill()
    pool = reopen(disk)
    assert {volume.name for volume in pool.volumes} == names
    pool.delete_volume(f"{0:050}")
    pool.snapshot({"v": "s"})


def test_areas_that_the_metadata_has_no_room_for_are_refused_before_anything_changed() -> None:
    disk = new_disk(1, 4 << 20)
    pool = Pool.create("tank", [GroupSpec("g", 0, disk.names(), CHUNK)], AREA, disk.open_exclusive)
    volume = pool.create_volume("v", 64 * AREA)
    volume.pwrite(pattern(64 * AREA), 0)
    with pytest.raises(OutOfSpace, match="metadata"):
        for taken in range(1000):
            pool.snapshot({"v": f"s{taken}"})
            for area in range(taken % 3, 64, 5):
                if taken < 2:
                    volume.pwrite(b"x", area * AREA)
    ledger = pool._ledger
    ledger._slack = -1
    before = volume.pread(64 * AREA, 0)
    with pytest.raises(OutOfSpace, match="metadata"):
        for area in range(64):
            volume.pwrite(before[area * AREA : area * AREA + 1], area * AREA)
            ledger._slack = -1
    assert volume.pread(64 * AREA, 0) == before
    sound(pool)
    disk.kill()
    pool = reopen(disk)
    assert pool.volume("v").pread(64 * AREA, 0) == before
    sound(pool)


def test_names_and_kinds_are_checked() -> None:
    _, pool = new_pool(0, 2)
    pool.create_volume("v", AREA)
    pool.create_volume("w", AREA)
    pool.snapshot({"v": "s"})
    with pytest.raises(AlreadyExists):
        pool.snapshot({"v": "w"})
    with pytest.raises(BadInput):
        pool.snapshot({"v": "t", "w": "t"})
    with pytest.raises(BadInput):
        pool.snapshot({})
    with pytest.raises(BadInput, match="snapshot itself"):
        pool.snapshot({"s": "t"})
    with pytest.raises(NotFound):
        pool.snapshot({"nobody": "t"})
    with pytest.raises(BadInput):
        pool.clone("s", "no/name")
    assert [volume.name for volume in pool.volumes] == ["v", "w", "s"]


def test_the_difference_of_two_snapshots_is_what_changed_between_them() -> None:
    disk, pool = new_pool(1, 2)
    volume = pool.create_volume("v", 8 * AREA - 4096)
    pool.create_volume("other", AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    pool.snapshot({"v": "a"})
    volume.pwrite(b"x", AREA + 5)
    volume.pwrite(b"x", 2 * AREA)
    volume.zero(0, AREA)
    volume.pwrite(b"x", 8 * AREA - 5000)
    pool.snapshot({"v": "b"})
    expected = [(0, 3 * AREA), (7 * AREA, AREA - 4096)]
    assert pool.snapshot_diff("a", "b") == pool.snapshot_diff("b", "a") == expected
    assert pool.snapshot_diff("b", "v") == []
    volume.pwrite(b"y", 3 * AREA)
    assert pool.snapshot_diff("b", "v") == [(3 * AREA, AREA)]
    disk.kill()
    pool = reopen(disk)
    assert pool.snapshot_diff("a", "b") == expected
    with pytest.raises(BadInput, match="nothing in common"):
        pool.snapshot_diff("a", "other")


@pytest.mark.parametrize("crash", ["kill", "drop"])
def test_a_volume_goes_back_to_its_snapshot(crash: str) -> None:
    disk, pool = new_pool(5, 3)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(3 * AREA), 0)
    pool.snapshot({"v": "s"})
    volume.pwrite(pattern(2 * AREA, 9), AREA // 2)
    pool.resize_volume("v", 6 * AREA)
    volume.pwrite(b"z", 5 * AREA)
    pool.rollback("v", "s")
    assert volume.size == 4 * AREA and used(pool) == 3
    if crash == "kill":
        disk.kill()
    else:
        disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    assert pool.volume("v").pread(4 * AREA, 0) == pattern(3 * AREA) + bytes(AREA)
    pool.volume("v").pwrite(b"n", 0)
    assert pool.volume("s").pread(3 * AREA, 0) == pattern(3 * AREA)
    sound(pool)


def test_shrinking_and_growing_leave_the_snapshot_alone() -> None:
    _, pool = new_pool(0, 2)
    volume = pool.create_volume("v", 3 * AREA)
    volume.pwrite(pattern(3 * AREA), 0)
    pool.snapshot({"v": "s"})
    pool.resize_volume("v", AREA + 4096, force=True)
    pool.resize_volume("v", 3 * AREA)
    assert volume.pread(3 * AREA, 0) == pattern(3 * AREA)[: AREA + 4096] + bytes(2 * AREA - 4096)
    assert pool.volume("s").pread(3 * AREA, 0) == pattern(3 * AREA)
    sound(pool)


def test_a_snapshot_of_a_tebibyte_is_instant() -> None:
    disk = new_disk(1, 8 << 20)
    pool = Pool.create("tank", [GroupSpec("g", 0, disk.names(), CHUNK)], AREA, disk.open_exclusive)
    volume = pool.create_volume("v", (1 << 18) * AREA)
    for area in range(0, 1 << 18, 1 << 10):
        volume.pwrite(b"x", area * AREA)
    took = []
    for number in range(3):
        before = time.process_time()
        pool.snapshot({"v": f"s{number}"})
        took.append(time.process_time() - before)
    assert min(took) < 0.05


def test_no_writer_of_a_replicated_range_is_missed_when_the_copy_is_lost() -> None:
    disk, pool = new_pool(0, 2)
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(4 * AREA), 0)
    pool.snapshot({"v": "s"})
    while pool.clear_intents() or pool.status()["groups"][0]["marked_regions"]:
        pass
    volume.pwrite(b"new", 2 * AREA)
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk, boot_id="other")
    assert pool.volume("v").pread(3, 2 * AREA) == pattern(4 * AREA)[2 * AREA : 2 * AREA + 3]
    assert any(off <= 2 * AREA < off + n for off, n in pool.unclean_ranges["v"])


@LEVELS
def test_clones_of_one_instant_are_written_to_and_then_never_change(level: int, members: int) -> None:
    disk, pool = new_pool(level, members)
    for name in ("a", "b"):
        pool.create_volume(name, 2 * AREA).pwrite(name.encode() * 512, 0)
    clones = pool.clone_all({"a": "a1", "b": "b1"}, {"building": True})
    clones[0].pwrite(b"x" * 512, 100)
    disk.kill()
    pool = reopen(disk)
    assert [pool.volume(name).info.attributes for name in ("a1", "b1", "a")] == [{"building": True}] * 2 + [{}]
    pool.volume("b1").pwrite(b"y" * 512, AREA)
    frozen = pool.finish_clones(["a1", "b1"], {"seq": 7}, freeze=True)
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk)
    sound(pool)
    for volume, name in zip(frozen, ("a1", "b1"), strict=True):
        assert volume.readonly and pool.volume(name).info.kind == "snapshot"
        assert pool.volume(name).info.attributes == {"seq": 7}
    assert pool.volume("a1").pread(700, 0) == b"a" * 100 + b"x" * 512 + bytes(88)
    assert pool.volume("b1").pread(512, AREA) == b"y" * 512
    assert pool.volume("a").pread(512, 0) == b"a" * 512
    with pytest.raises(Refused, match="never changes"):
        pool.volume("a1").pwrite(b"z", 0)
    pool.snapshot({"a": "later"})
    for name in ("a1", "later", "b1"):
        pool.delete_volume(name)
    sound(pool)


def test_only_clones_are_finished_and_without_room_for_the_metadata_nothing_changes() -> None:
    _, pool = new_pool(0, 2)
    pool.create_volume("a", AREA).pwrite(b"x", 0)
    with pytest.raises(BadInput, match="no clone"):
        pool.finish_clones(["a"], {})
    with pytest.raises(NotFound):
        pool.finish_clones(["none"], {})
    pool.clone("a", "c")
    with pytest.raises(OutOfSpace):
        pool.finish_clones(["c"], {"note": "x" * (8 << 20)}, freeze=True)
    clone = pool.volume("c")
    assert clone.info.attributes == {} and not clone.readonly
    clone.pwrite(b"y", 0)
    sound(pool)
