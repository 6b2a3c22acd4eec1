"""Placing volumes on chosen groups, and moving areas between groups while they are used."""

from __future__ import annotations

import random
import threading

import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import BadInput, NotFound, OutOfSpace, Refused
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, CHUNK, pattern, reopen

GROUPS = [("fast", 0, 2), ("safe", 5, 3), ("twin", 1, 2)]


def new_pool(groups: list[tuple[str, int, int]] = GROUPS, size: int = 512 << 10) -> tuple[FakeDisk, Pool]:
    disk = FakeDisk(random.Random(0))
    specs = []
    for name, level, members in groups:
        paths = [f"{name}{i}" for i in range(members)]
        for path in paths:
            disk.create(path, size)
        specs.append(GroupSpec(name, level, paths, CHUNK))
    return disk, Pool.create("tank", specs, AREA, disk.open_exclusive)


def used(pool: Pool) -> dict[str, int]:
    report = pool.check()
    assert report["problems"] == []
    return {group["name"]: group["used"] for group in report["groups"]}


def finish(pool: Pool) -> None:
    while pool.move_step():
        pass


def fill(pool: Pool, group: str) -> None:
    free = next(g["free_areas"] for g in pool.status()["groups"] if g["name"] == group)
    if free:
        pool.create_volume(f"fills-{group}", free * AREA, group, thin=False)


@pytest.mark.parametrize("thin", [True, False])
def test_ranges_of_a_volume_lie_on_the_groups_chosen_for_them(thin: bool) -> None:
    disk, pool = new_pool()
    placement = [(0, 3 * AREA, "twin"), (3 * AREA, AREA, "safe"), (6 * AREA, 2 * AREA, "twin")]
    volume = pool.create_volume("v", 8 * AREA, "fast", thin, placement=placement)
    volume.pwrite(pattern(8 * AREA), 0)
    assert used(pool) == {"fast": 2, "safe": 1, "twin": 5}
    assert volume.pread(8 * AREA, 0) == pattern(8 * AREA)
    pool.close()
    for path in ("safe1", "twin0"):
        disk.remove(path)  # redundancy is each group's own
    pool = reopen(disk)
    assert pool.volume("v").pread(8 * AREA, 0) == pattern(8 * AREA)


def test_a_request_may_span_areas_of_several_groups() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA, "safe", placement=[(AREA, AREA, "fast"), (2 * AREA, AREA, "twin")])
    expected = bytearray(4 * AREA)
    for i, (off, n) in enumerate([(100, 3 * AREA), (AREA - 5, 10), (2 * AREA - 700, AREA), (0, 4 * AREA)]):
        volume.pwrite(pattern(n, i), off)
        expected[off : off + n] = pattern(n, i)
        assert volume.pread(4 * AREA, 0) == expected
    volume.zero(AREA // 2, 3 * AREA)
    expected[AREA // 2 : AREA // 2 + 3 * AREA] = bytes(3 * AREA)
    assert volume.pread(4 * AREA, 0) == expected
    assert used(pool) == {"fast": 0, "safe": 2, "twin": 0}


def test_the_mapped_range_is_whole_areas_and_the_next_one_must_not_overlap() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", AREA + 4096, placement=[(0, AREA + 4096, "fast")])
    with pytest.raises(BadInput, match=f"can begin at {2 * AREA}"):
        pool.extend_volume("v", AREA + 4096, AREA, "safe")
    assert pool.extend_volume("v", 2 * AREA, AREA + 4096, "safe") == (2 * AREA, 4 * AREA)
    volume.pwrite(pattern(3 * AREA + 4096), 0)
    assert used(pool) == {"fast": 2, "safe": 2, "twin": 0}
    with pytest.raises(BadInput, match="overlaps"):
        pool.create_volume("w", 4 * AREA, placement=[(0, AREA + 4096, "fast"), (AREA + 8192, AREA, "safe")])
    with pytest.raises(NotFound, match="nosuch"):
        pool.create_volume("w", 4 * AREA, placement=[(0, AREA, "nosuch")])
    with pytest.raises(BadInput, match="within"):
        pool.create_volume("w", 4 * AREA, placement=[(4 * AREA, AREA, "fast")])
    assert [volume.name for volume in pool.volumes] == ["v"]


@pytest.mark.parametrize("thin", [True, False])
def test_what_cannot_be_allocated_leaves_nothing_behind(thin: bool) -> None:
    _, pool = new_pool()
    fill(pool, "twin")
    before, volumes = used(pool), len(pool.volumes)
    with pytest.raises(OutOfSpace, match="twin"):
        pool.create_volume("v", 4 * AREA, "fast", thin, placement=[(AREA, AREA, "twin")])
    assert (used(pool), len(pool.volumes)) == (before, volumes)
    volume = pool.create_volume("v", AREA, "fast", thin)
    with pytest.raises(OutOfSpace, match="twin"):
        pool.extend_volume("v", AREA, AREA, "twin")
    assert volume.size == AREA and volume.info.placement == []


def test_without_a_choice_other_groups_are_tried_when_one_is_full() -> None:
    _, pool = new_pool()
    areas = sum(group["free_areas"] for group in pool.status()["groups"])
    volume = pool.create_volume("v", (areas + 1) * AREA)
    volume.pwrite(pattern(areas * AREA), 0)
    assert volume.pread(areas * AREA, 0) == pattern(areas * AREA)
    with pytest.raises(OutOfSpace, match="no free area"):
        volume.pwrite(b"x", areas * AREA)
    used(pool)


def test_a_chosen_group_that_is_full_is_an_error_and_no_other_is_taken() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA, "twin")
    fill(pool, "twin")
    with pytest.raises(OutOfSpace, match="group twin has no free area"):
        volume.pwrite(b"x", 0)
    with pytest.raises(OutOfSpace):
        pool.create_volume("w", AREA, "twin", thin=False)


@pytest.mark.parametrize("crash", [None, "kill", "drop"])
def test_a_range_moves_and_nothing_else_does(crash: str | None) -> None:
    disk, pool = new_pool()
    volume = pool.create_volume("v", 8 * AREA, "fast")
    volume.pwrite(pattern(7 * AREA), 0)
    pool.snapshot({"v": "s"})
    volume.pwrite(b"mine", AREA)
    pool.sync()
    assert pool.move("v", AREA + 1, 3 * AREA, "safe") == (AREA, 5 * AREA)
    with pytest.raises(Refused, match="moved already"):
        pool.move("v", 4 * AREA, AREA, "twin")
    assert pool.moves()[0] == {
        "volume": "v", "start": AREA, "end": 5 * AREA, "group": "safe", "areas": 4, "remaining": 4,
    }  # fmt: skip
    if crash:
        pool.move_step()
        disk.kill() if crash == "kill" else disk.crash(lambda _i, _w: "drop")
        pool = reopen(disk)
        volume = pool.volume("v")
    finish(pool)
    assert pool.moves() == []
    assert volume.pread(7 * AREA, 0) == pattern(7 * AREA)[:AREA] + b"mine" + pattern(7 * AREA)[AREA + 4 :]
    assert pool.volume("s").pread(7 * AREA, 0) == pattern(7 * AREA)
    # The snapshot's own copy of the area that was written since stays; the three that are shared went along.
    assert used(pool) == {"fast": 4, "safe": 4, "twin": 0}
    volume.zero(AREA, AREA)
    volume.pwrite(b"again", AREA)
    assert used(pool)["safe"] == 4


@pytest.mark.parametrize(("source", "target"), [("fast", "safe"), ("safe", "fast"), ("safe", "twin"), ("twin", "fast")])
def test_a_volume_that_moved_wholly_is_served_the_fast_way_again(source: str, target: str) -> None:
    disk, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA, source)
    volume.pwrite(pattern(3 * AREA), 0)
    told: list[str] = []
    pool.on_rehome(lambda volume: told.append(volume.name))
    old_write, old_read = volume.pwrite, volume.pread_into
    pool.move("v", 0, 4 * AREA, target)
    finish(pool)
    assert told == ["v"] and volume.group.info.name == target
    # What was captured before goes on working.
    old_write(b"old way", 3 * AREA)
    buf = bytearray(7)
    old_read(buf, 3 * AREA)
    assert buf == b"old way"
    volume.pwrite(b"new way", 3 * AREA)
    volume.pread(7, 3 * AREA)
    assert volume._writable[3] is not None and volume._readable[3] is not None
    assert pool.volume("v").pread(3 * AREA + 7, 0) == pattern(3 * AREA) + b"new way"
    assert used(pool)[target] == 4
    disk.kill()
    assert reopen(disk).volume("v").group.info.name == target


def test_a_cancelled_move_leaves_what_it_has_moved() -> None:
    _, pool = new_pool(size=4 << 20)
    volume = pool.create_volume("v", 8 * AREA, "fast")
    volume.pwrite(pattern(8 * AREA), 0)
    pool.move("v", 0, 8 * AREA, "safe")
    assert pool.cancel_move("v") == 1 and pool.cancel_move("v") == 0
    assert pool.move_step() == 0 and pool.moves() == []
    assert used(pool)["fast"] == 8


def test_a_move_to_a_group_that_is_full_stops_and_goes_on_when_there_is_room() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA, "fast")
    volume.pwrite(pattern(4 * AREA), 0)
    fill(pool, "twin")
    pool.move("v", 0, 4 * AREA, "twin")
    with pytest.raises(OutOfSpace, match="twin"):
        finish(pool)
    assert volume.pread(4 * AREA, 0) == pattern(4 * AREA)
    pool.delete_volume("fills-twin")
    finish(pool)
    assert used(pool) == {"fast": 0, "safe": 0, "twin": 4}


def test_moving_while_everybody_writes_and_takes_snapshots_loses_nothing() -> None:
    _, pool = new_pool(size=2 << 20)
    volume = pool.create_volume("v", 24 * AREA, "fast")
    stop = threading.Event()
    errors: list[BaseException] = []
    parts = 3

    def work(part: int) -> None:
        rng = random.Random(part)
        start, size = part * 8 * AREA, 8 * AREA
        expected = bytearray(size)
        try:
            while not stop.is_set():
                off = rng.randrange(size)
                n = min(rng.choice([512, 4096, 20000]), size - off)
                if rng.random() < 0.75:
                    expected[off : off + n] = data = rng.randbytes(n)
                    volume.pwrite(data, start + off)
                else:
                    expected[off : off + n] = bytes(n)
                    volume.zero(start + off, n, rng.random() < 0.5)
                assert volume.pread(n, start + off) == expected[off : off + n]
            assert volume.pread(size, start) == expected
        except BaseException as exc:  # carried to the test's own thread
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(parts)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(4):
            pool.move("v", 0, 24 * AREA, ["safe", "twin", "fast", "safe"][round_])
            pool.snapshot({"v": f"s{round_}"})
            frozen = pool.volume(f"s{round_}").pread(24 * AREA, 0)
            finish(pool)
            pool.clear_intents()
            assert pool.volume(f"s{round_}").pread(24 * AREA, 0) == frozen
            if round_ > 1:
                pool.delete_volume(f"s{round_ - 2}")
            used(pool)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if errors:
        raise errors[0]
    used(pool)
