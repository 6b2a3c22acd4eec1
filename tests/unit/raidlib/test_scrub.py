"""A scrub reads everything, finds what is damaged, repairs what can be known, and says what cannot."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raidlib import scrub as scrub_module
from raidlib.errors import MediumError, NotFound, Refused
from raidlib.pool import Pool
from raidlib.scrub import Scrub
from raidlib.scrubs import rest_s
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, CHUNK, new_pool, pattern, reopen

REDUNDANT = [(1, 2), (1, 3), (5, 3), (6, 4), (6, 5), (10, 4)]
LEVELS = [(0, 2), *REDUNDANT]
SIZE = 6 * AREA


def made(level: int, members: int, checksums: bool = False) -> tuple[FakeDisk, Pool]:
    disk, pool = new_pool(level, members, checksums=checksums)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    pool.sync()
    return disk, pool


def scrub(pool: Pool, *, repair: bool = False) -> dict[str, Any]:
    pool.scrub_start("g", repair=repair)
    while pool.scrub_step()[0]:
        pass
    status = pool.scrub_status()["g"]
    assert status["state"] == "finished" and status["left_bytes"] == 0
    return status


def place(pool: Pool, row: int) -> int:
    return pool._groups[0].layout.data_offset + row * CHUNK


def found(status: dict[str, Any]) -> dict[str, int]:
    return {key: status[key] for key in scrub_module.COUNTS if status[key]}


@pytest.mark.parametrize(("level", "members"), LEVELS)
@pytest.mark.parametrize("checksums", [False, True])
def test_a_good_group_is_read_wholly_and_nothing_is_found_or_written(level: int, members: int, checksums: bool) -> None:
    disk, pool = made(level, members, checksums)
    before = disk.snapshot()
    status = scrub(pool, repair=True)
    assert found(status) == {}
    assert status["bytes_read"] == status["total_bytes"] > 0
    offset = pool._groups[0].layout.data_offset
    assert all(disk.snapshot()[name][0][offset:] == data[offset:] for name, (data, _) in before.items())


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
@pytest.mark.parametrize("checksums", [False, True])
def test_an_unreadable_place_is_written_anew_also_by_a_check(level: int, members: int, checksums: bool) -> None:
    for index in range(members):
        disk, pool = made(level, members, checksums)
        disk.fail_reads(f"m{index}", place(pool, 2), place(pool, 2) + 100)
        assert found(scrub(pool)) == {"unreadable": 1, "repaired": 1}
        assert found(scrub(pool)) == {}
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
@pytest.mark.parametrize("what", ["flipped", "zeroed", "entry"])
def test_with_checksums_the_right_one_is_known_and_the_wrong_one_repaired(level: int, members: int, what: str) -> None:
    for index in range(members):
        disk, pool = made(level, members, True)
        at = place(pool, 2)
        if what == "entry":
            disk.corrupt(f"m{index}", pool._groups[0].layout.table_offset + 2 * 4)
        else:
            disk.corrupt(f"m{index}", at, bytes(CHUNK) if what == "zeroed" else None)
        assert found(scrub(pool)) == {"checksum_errors": 1, "repaired": 1}
        assert found(scrub(pool)) == {}
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)
        assert pool.status()["groups"][0]["members"][index]["checksum_errors"] == 1


@pytest.mark.parametrize(("level", "members"), [(1, 2), (5, 3), (10, 4)])
def test_without_checksums_a_check_reports_and_changes_nothing(level: int, members: int) -> None:
    for index in range(members):
        disk, pool = made(level, members)
        disk.corrupt(f"m{index}", place(pool, 2))
        before = disk.open(f"m{index}").pread(CHUNK, place(pool, 2))
        status = scrub(pool)
        assert found(status) == {"mismatches": 1}
        assert disk.open(f"m{index}").pread(CHUNK, place(pool, 2)) == before
        [one] = status["ranges"]
        assert one["kind"] == "mismatch" and one["volumes"][0]["volume"] == "v"


@pytest.mark.parametrize(("level", "members"), [(1, 2), (1, 3), (5, 3), (10, 4)])
def test_a_repair_without_checksums_brings_members_into_agreement(level: int, members: int) -> None:
    for index in range(members):
        disk, pool = made(level, members)
        disk.corrupt(f"m{index}", place(pool, 2))
        assert scrub(pool, repair=True)["mismatches"] == 1
        assert found(scrub(pool)) == {}
        changed = pool.volume("v").pread(SIZE, 0)
        assert sum(a != b for a, b in zip(changed, pattern(SIZE), strict=True)) <= 1


@pytest.mark.parametrize("members", [4, 5, 6])
def test_raid_6_locates_the_one_wrong_column_and_a_repair_brings_the_data_back(members: int) -> None:
    for index in range(members):
        disk, pool = made(6, members)
        for row, damage in ((0, None), (2, bytes(CHUNK)), (4, pattern(CHUNK, 99))):
            disk.corrupt(f"m{index}", place(pool, row), damage)
        assert found(scrub(pool)) == {"mismatches": 3, "located": 3}
        assert found(scrub(pool, repair=True)) == {"mismatches": 3, "located": 3, "repaired": 3}
        assert found(scrub(pool)) == {}
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), [(1, 2), (5, 3), (6, 4), (10, 4)])
@pytest.mark.parametrize("how", ["lost", "misdirected"])
def test_a_write_that_went_nowhere_or_elsewhere_is_a_mismatch_without_checksums(
    level: int, members: int, how: str
) -> None:
    for index in range(members):
        disk, pool = made(level, members)
        if how == "lost":
            disk.lose_writes(f"m{index}", place(pool, 0))
        else:
            disk.misdirect_writes(f"m{index}", 4 * CHUNK, place(pool, 0))
        pool.volume("v").pwrite(pattern(AREA, 9), 0)
        status = scrub(pool)
        assert status["mismatches"] >= 1 and status["repaired"] == 0
        if level == 6:
            scrub(pool, repair=True)
            assert pool.volume("v").pread(SIZE, 0) == pattern(AREA, 9) + pattern(SIZE)[AREA:]


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_areas_larger_than_a_step_are_looked_at_in_pieces(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int
) -> None:
    monkeypatch.setattr(scrub_module, "UNIT_BYTES", CHUNK)
    disk, pool = made(level, members, True)
    rows = pool._groups[0].geometry.rows_per_area
    for row in (0, rows - 1, rows):
        disk.fail_reads(f"m{row % members}", place(pool, row), place(pool, row) + 1)
    status = scrub(pool)
    assert found(status) == {"unreadable": len({0, rows - 1, rows}), "repaired": len({0, rows - 1, rows})}
    assert status["bytes_read"] == status["total_bytes"]


def test_raid_6_does_not_locate_what_two_columns_caused() -> None:
    disk, pool = made(6, 5)
    for index in (0, 1):
        disk.corrupt(f"m{index}", place(pool, 1), pattern(CHUNK, index))
    assert found(scrub(pool)) == {"mismatches": 1}


def test_raid_0_reports_what_cannot_be_read_by_volume_and_offset() -> None:
    disk, pool = made(0, 2)
    disk.fail_reads("m1", place(pool, 2), place(pool, 2) + 1)
    status = scrub(pool, repair=True)
    assert found(status) == {"unreadable": 1, "unrepairable": 1}
    assert status["ranges"][0]["volumes"] == [{"volume": "v", "offset": 5 * CHUNK, "length": CHUNK}]
    assert not status["compares"]


def test_what_no_member_has_is_reported_and_the_scrub_goes_on() -> None:
    disk, pool = made(5, 3, True)
    disk.corrupt("m0", place(pool, 0))
    disk.corrupt("m1", place(pool, 0))
    disk.corrupt("m1", place(pool, 5))
    assert found(scrub(pool)) == {"checksum_errors": 3, "repaired": 1, "unrepairable": 2}


def test_a_write_that_never_came_on_any_way_to_the_medium_is_a_mismatch_that_checksums_cannot_judge() -> None:
    disk, pool = made(5, 3, True)
    disk.lose_writes("m0", pool._groups[0].layout.table_offset, count=2)
    pool.volume("v").pwrite(pattern(CHUNK, 9), 0)
    assert found(scrub(pool)) == {"mismatches": 1}


def test_a_degraded_group_is_read_and_repaired_as_far_as_it_can() -> None:
    disk, pool = made(6, 4, True)
    pool.fail_member("m3")
    disk.corrupt("m0", place(pool, 1))
    assert found(scrub(pool)) == {"checksum_errors": 1, "repaired": 1}
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


def test_a_lost_group_is_refused_and_one_that_gets_lost_pauses() -> None:
    disk, pool = made(0, 2)
    pool.scrub_start("g")
    disk.fail_next_sync("m1")
    with pytest.raises(MediumError):
        pool.sync()
    with pytest.raises(MediumError):
        pool.scrub_step()
    assert pool.scrub_status()["g"]["state"] == "paused"
    with pytest.raises(Refused, match="lost"):
        pool.scrub_start("g")


def test_orders_that_make_no_sense_are_refused() -> None:
    _, pool = made(1, 2)
    for order in (pool.scrub_pause, pool.scrub_resume, pool.scrub_stop):
        with pytest.raises(Refused, match=r"^RAID group g (is not being scrubbed|has no paused scrub|has no scrub) ?"):
            order("g")
    with pytest.raises(NotFound):
        pool.scrub_start("other")
    pool.scrub_start("g")
    pool.scrub_start("g")
    with pytest.raises(Refused, match="mode check"):
        pool.scrub_start("g", repair=True)
    pool.scrub_pause()
    assert pool.scrub_step() == (0, 0.0)
    pool.scrub_resume("g")
    pool.scrub_stop("g")
    assert pool.scrub_status()["g"]["state"] == "stopped"


@pytest.mark.parametrize("saves", [True, False])
def test_a_scrub_goes_on_after_a_crash_from_where_it_was_last_noted(
    monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    monkeypatch.setattr(scrub_module, "SAVE_S", 0.0 if saves else 1e9)
    monkeypatch.setattr(scrub_module, "UNIT_BYTES", AREA)
    disk, pool = made(5, 3)
    disk.corrupt("m0", place(pool, 0))
    pool.scrub_start()
    pool.scrub_step()
    done = pool._groups[0].info.scrub["next"]
    assert done > 0
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk, boot_id="next")
    status = pool.scrub_status()["g"]
    assert status["state"] == "running"
    assert (status["next"], status["mismatches"]) == ((done, 1) if saves else (0, 0))
    while pool.scrub_step()[0]:
        pass
    assert pool.scrub_status()["g"]["state"] == "finished"


def test_a_repair_is_durable_before_the_note_that_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "SAVE_S", 0.0)
    disk, pool = made(6, 4)
    disk.corrupt("m0", place(pool, 0))
    pool.scrub_start(repair=True)
    pool.scrub_step()
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk, boot_id="next")
    assert pool.scrub_status()["g"]["next"] > 0
    pool.scrub_stop()
    assert found(scrub(pool)) == {}


def test_a_freed_area_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, pool = made(5, 3)
    pool.scrub_start(repair=True)
    one = pool._scrubs.all[0]
    disk.corrupt("m0", place(pool, 0))
    good = Scrub._judge

    def freed_first(self: Scrub, row: int) -> None:
        if pool.volumes:
            pool.delete_volume("v")
        good(self, row)

    monkeypatch.setattr(Scrub, "_judge", freed_first)
    while one.step():
        pass
    assert found(one.status()) == {}
    rows = range(24)
    assert all(disk.open(f"m{i}").pread(CHUNK, place(pool, row)) == bytes(CHUNK) for i in range(3) for row in rows)


@pytest.mark.parametrize(("level", "members"), REDUNDANT)
def test_random_damage_to_one_member_is_always_repaired_with_checksums(level: int, members: int) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        disk, pool = made(level, members, True)
        rows = 6 * pool._groups[0].geometry.rows_per_area
        for row in range(rows):
            if rng.random() < 0.5:
                disk.corrupt(f"m{rng.randrange(members)}", place(pool, row) + rng.randrange(CHUNK))
        assert scrub(pool)["unrepairable"] == 0
        assert found(scrub(pool)) == {}
        assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


def test_the_rest_after_a_step_keeps_the_limit_and_gives_way_to_hosts() -> None:
    assert rest_s(4 << 20, 0.1, 0, 0) == 0
    assert rest_s(4 << 20, 0.1, 8 << 20, 0) == pytest.approx(0.4)
    assert rest_s(4 << 20, 0.1, 0, 7) == pytest.approx(0.3)
    assert rest_s(4 << 20, 1.0, 8 << 20, 0) == 0


def test_hosts_are_noticed() -> None:
    _, pool = made(1, 2)
    pool.scrub_start()
    pool._scrubs._host_requests = sum(volume.gate.entered for volume in pool.volumes)
    pool.volume("v").pread(CHUNK, 0)
    assert pool.scrub_step()[1] > 0
