"""Checksums and scrubs bite: each of these bugs, put into raidlib on purpose, is found.

Some only a crash shows, others damage at rest; for each there is the run that finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raidlib import checksums, mirrored, parityraid, striped
from raidlib.checksums import BLOCK_BYTES, ChecksummedFile
from raidlib.errors import MediumError, RaidError
from raidlib.image import Image
from raidlib.ledger import Ledger
from raidlib.parityraid import ParityGroup
from raidlib.pool import Pool
from raidlib.raidgroup import RaidGroup
from raidlib.recovery import allocated_areas
from raidlib.scrub import Scrub
from tests.testing.fakedisk import FakeDisk
from tests.testing.poolcrash import degraded_workload, explore, workload
from tests.testing.poolmodel import Violation
from tests.testing.pools import AREA, new_pool, pattern, reopen

Patch = pytest.MonkeyPatch
Found = (Violation, RaidError, OSError)
SIZE = 4 * AREA


# What a crash shows


def checksums_not_settled_after_a_crash(patch: Patch) -> None:
    for module, name in ((striped, "settle_striped"), (mirrored, "settle_mirrored"), (parityraid, "settle_parity")):
        patch.setattr(module, name, lambda *_: 0)


def solved_block_taken_unproven_after_a_crash(patch: Patch) -> None:
    patch.setattr(Image, "would_fit", lambda self, i, data: True)


def table_written_for_data_that_is_zeroed(patch: Patch) -> None:
    patch.setattr(ChecksummedFile, "_clear", lambda self, clear, off, length: clear(off, length))


def journal_replay_leaves_the_table(patch: Patch) -> None:
    good = ParityGroup.replay_journal

    def replay(self: ParityGroup) -> int:
        files = [member.file for member in self.members if isinstance(member.file, ChecksummedFile)]
        for file in files:
            file.pwrite = file.inner.pwrite  # type: ignore[method-assign]
        try:
            return good(self)
        finally:
            for file in files:
                del file.pwrite

    patch.setattr(ParityGroup, "replay_journal", replay)


def parts_of_blocks_written_degraded(patch: Patch) -> None:
    good = RaidGroup.__init__

    def init(self: RaidGroup, *args: Any, **more: Any) -> None:
        good(self, *args, **more)
        self.grain = 1

    patch.setattr(RaidGroup, "__init__", init)


CRASHES: list[tuple[Callable[[Patch], None], int, int, bool]] = [
    (checksums_not_settled_after_a_crash, 0, 2, False),
    (checksums_not_settled_after_a_crash, 1, 2, False),
    (checksums_not_settled_after_a_crash, 5, 3, False),
    (solved_block_taken_unproven_after_a_crash, 5, 3, False),
    (table_written_for_data_that_is_zeroed, 0, 2, False),
    (journal_replay_leaves_the_table, 5, 3, True),
    (parts_of_blocks_written_degraded, 5, 3, True),
]


@pytest.mark.parametrize(("bug", "level", "members", "degraded"), CRASHES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_bug_that_a_crash_shows_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, degraded: bool
) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for seed in range(1, 4):
            plan = degraded_workload(seed) if degraded else workload(seed)
            explore(level, members, seed, 3, plan, checksums=True)


# What damage at rest shows


def made(level: int, members: int, *, sums: bool = True) -> tuple[FakeDisk, Pool]:
    disk, pool = new_pool(level, members, checksums=sums)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    pool.sync()
    return disk, pool


def place(pool: Pool, row: int) -> int:
    return pool._groups[0].layout.data_offset + row * BLOCK_BYTES


def scrub(pool: Pool, *, repair: bool = False) -> dict[str, Any]:
    pool.scrub_start(repair=repair)
    while pool.scrub_step()[0]:
        pass
    return pool.scrub_status()["g"]


def expect_intact(pool: Pool) -> None:
    if pool.volume("v").pread(SIZE, 0) != pattern(SIZE):
        raise Violation("wrong bytes were read")


def a_lost_write_is_noticed() -> None:
    disk, pool = made(0, 2)
    disk.lose_writes("m0", place(pool, 0))
    pool.volume("v").pwrite(pattern(AREA, 5), 0)
    try:
        data = pool.volume("v").pread(AREA, 0)
    except MediumError:
        return
    if data != pattern(AREA, 5):
        raise Violation("wrong bytes were read")


def what_was_written_can_be_read() -> None:
    expect_intact(made(1, 2)[1])


def a_block_of_another_place_is_noticed() -> None:
    disk, pool = made(1, 2)
    table = pool._groups[0].layout.table_offset
    for off, n in ((place(pool, 0), BLOCK_BYTES), (table, 4)):
        disk.corrupt("m0", off, disk.open("m0").pread(n, off + 3 * n))
    expect_intact(pool)


def the_good_copy_survives_a_scrub() -> None:
    disk, pool = made(1, 2)
    disk.corrupt("m0", place(pool, 0))
    disk.corrupt("m1", place(pool, 3))
    scrub(pool, repair=True)
    expect_intact(pool)


def a_check_changes_nothing_it_cannot_know() -> None:
    disk, pool = made(5, 3, sums=False)
    disk.corrupt("m1", place(pool, 0))
    before = [disk.open(f"m{i}").pread(4 * AREA, place(pool, 0)) for i in range(3)]
    scrub(pool)
    if before != [disk.open(f"m{i}").pread(4 * AREA, place(pool, 0)) for i in range(3)]:
        raise Violation("a check wrote")


def located_columns_are_repaired() -> None:
    for index in range(4):
        disk, pool = made(6, 4, sums=False)
        disk.corrupt(f"m{index}", place(pool, 0))
        scrub(pool, repair=True)
        expect_intact(pool)
        if scrub(pool)["mismatches"]:
            raise Violation("the repair made it worse")


def corruption_far_from_writes_outlives_no_crash() -> None:
    disk, pool = made(0, 2)
    for _ in range(2):
        pool.clear_intents()
    pool.sync()
    disk.corrupt("m0", place(pool, 0))
    pool.volume("v").pwrite(pattern(AREA, 3), 3 * AREA)
    disk.crash()
    pool = reopen(disk, boot_id="next")
    try:
        data = pool.volume("v").pread(AREA, 0)
    except MediumError:
        return
    if data != pattern(SIZE)[:AREA]:
        raise Violation("a crash blessed corruption")


def repairs_are_durable_before_they_are_done() -> None:
    disk, pool = made(6, 4, sums=False)
    for _ in range(2):
        pool.clear_intents()
    pool.sync()  # no mark is left, so no resync after the crash makes parity fit the damage
    disk.corrupt("m0", place(pool, 0))
    if scrub(pool, repair=True)["repaired"] != 1:
        raise Violation("not repaired")
    disk.crash(lambda _i, _w: "drop")
    pool = reopen(disk, boot_id="next")
    if scrub(pool)["mismatches"]:
        raise Violation("the repair was lost")


def table_not_updated(patch: Patch) -> None:
    patch.setattr(ChecksummedFile, "pwrite", lambda self, buf, off: self.inner.pwrite(buf, off))


def table_never_checked(patch: Patch) -> None:
    patch.setattr(ChecksummedFile, "_verify", lambda self, view, off: None)


def location_not_bound(patch: Patch) -> None:
    patch.setattr(checksums, "_STEP", 0)


def scrub_repairs_the_good_copy(patch: Patch) -> None:
    good = RaidGroup.rewrite

    def heal(self: Any, row: int, lo: int, hi: int, bad: set[int]) -> None:
        member = self.members[min(bad)]
        at = self.layout.data_offset + row * self.geometry.chunk_bytes + lo
        data = member.live_file().inner.pread(hi - lo, at)
        for other in self.members:
            if other.index not in bad:
                good(self, other, data, at, "repair")

    patch.setattr(mirrored.MirroredGroup, "heal", heal)


def check_mode_repairs(patch: Patch) -> None:
    good = Scrub.start
    patch.setattr(Scrub, "start", lambda self, repair, limit: good(self, True, limit))


def wrong_column_located(patch: Patch) -> None:
    patch.setattr("raidlib.scrub.locate", lambda geometry, p, q: 0)


def crash_recounts_every_area(patch: Patch) -> None:
    patch.setattr(
        "raidlib.recovery.suspect_areas",
        lambda state, group, marked: sorted(allocated_areas(state, group)),
    )


def finished_before_its_repairs_are_durable(patch: Patch) -> None:
    good = Scrub._finish

    def finish(self: Scrub) -> None:
        sync = Ledger.sync_members
        Ledger.sync_members = lambda self: None  # type: ignore[method-assign]
        try:
            good(self)
        finally:
            Ledger.sync_members = sync  # type: ignore[method-assign]

    patch.setattr(Scrub, "_finish", finish)


def damaged_blocks_counted_and_left(patch: Patch) -> None:
    patch.setattr(RaidGroup, "heal", lambda *_: None)
    patch.setattr(ParityGroup, "heal", lambda *_: None)


def the_scrub_repairs_parity() -> None:
    disk, pool = made(5, 3)
    disk.corrupt("m2", place(pool, 0))
    scrub(pool)
    if found := scrub(pool)["checksum_errors"]:
        raise Violation(f"{found} blocks are still damaged")


AT_REST: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (table_not_updated, what_was_written_can_be_read),
    (table_never_checked, a_lost_write_is_noticed),
    (location_not_bound, a_block_of_another_place_is_noticed),
    (scrub_repairs_the_good_copy, the_good_copy_survives_a_scrub),
    (check_mode_repairs, a_check_changes_nothing_it_cannot_know),
    (wrong_column_located, located_columns_are_repaired),
    (crash_recounts_every_area, corruption_far_from_writes_outlives_no_crash),
    (finished_before_its_repairs_are_durable, repairs_are_durable_before_they_are_done),
    (damaged_blocks_counted_and_left, the_scrub_repairs_parity),
]


@pytest.mark.parametrize(("bug", "run"), AT_REST, ids=lambda value: value.__name__)
def test_a_bug_that_damage_shows_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], run: Callable[[], None]
) -> None:
    run()  # without the bug all is well
    bug(monkeypatch)
    with pytest.raises(Found):
        run()
