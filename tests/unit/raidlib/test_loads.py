"""Rates laid over groups, and one area moved by itself."""

from __future__ import annotations

import numpy as np
import pytest

from raidlib.errors import OutOfSpace
from raidlib.pool import Pool
from raidlib.stats import COLUMNS
from tests.testing.pools import AREA, pattern, reopen
from tests.unit.raidlib.test_move import fill, new_pool, used


def row(utilisation: float) -> np.ndarray:  # type: ignore[type-arg]
    rates = np.zeros(COLUMNS)
    rates[1], rates[-1] = 10 * utilisation, utilisation
    return rates


def on(pool: Pool, name: str) -> dict[int, str]:
    return {
        run["start"] // AREA + at: run["group"] for run in pool.volume_map(name) for at in range(run["length"] // AREA)
    }


def test_the_load_of_a_group_is_the_sum_of_its_areas_and_what_is_not_mapped_has_none() -> None:
    _, pool = new_pool()
    v = pool.create_volume("v", 8 * AREA, "fast", placement=[(0, AREA, "safe")])
    v.pwrite(pattern(3 * AREA), 0)
    found = pool.loads({v.uuid: {0: row(0.1), 1: row(0.2), 2: row(0.3), 7: row(0.9)}})
    assert {name: rates.utilisation for name, rates in found.group_rates.items()} == pytest.approx(
        {"fast": 0.5, "safe": 0.1, "twin": 0.0}
    )
    assert [(a.index, a.group) for a in found.areas if a.utilisation] == [(2, "fast"), (1, "fast"), (0, "safe")]


def test_a_shared_area_is_listed_once_with_the_load_of_all_and_moves_for_all() -> None:
    disk, pool = new_pool()
    v = pool.create_volume("v", 4 * AREA)
    v.pwrite(pattern(2 * AREA), 0)
    (snapshot,) = pool.snapshot({"v": "s"})
    home = on(pool, "v")[0]
    found = pool.loads({v.uuid: {0: row(0.1)}, snapshot.uuid: {0: row(0.2)}})
    (area,) = [area for area in found.areas if area.utilisation]
    assert (area.volume, area.utilisation) == ("v", pytest.approx(0.3))
    assert found.area_rates["v", 0].images == ["v", "s"]
    target = next(name for name in ("safe", "twin", "fast") if name != home)
    before = used(pool)
    assert pool.relocate("v", 0, home, target)
    assert on(pool, "v")[0] == on(pool, "s")[0] == target
    assert used(pool) == {**before, home: before[home] - 1, target: before[target] + 1}
    pool.close()
    pool = reopen(disk)
    assert pool.volume("s").pread(2 * AREA, 0) == pool.volume("v").pread(2 * AREA, 0) == pattern(2 * AREA)


def test_what_somebody_placed_or_what_moved_lately_stays() -> None:
    _, pool = new_pool()
    chosen = pool.create_volume("chosen", 4 * AREA, "fast")
    free = pool.create_volume("free", 4 * AREA, placement=[(AREA, AREA, "safe")])
    for volume in (chosen, free):
        volume.pwrite(pattern(3 * AREA), 0)
    rates = {chosen.uuid: {0: row(0.1)}, free.uuid: {0: row(0.1), 1: row(0.1), 2: row(0.1)}}
    kept = {a.order: a.keep for a in pool.loads(rates, {(free.uuid, 2)}).areas if a.utilisation}
    choice = "somebody chose its group"
    assert kept == {
        ("chosen", 0): choice, ("free", 0): "", ("free", 1): choice, ("free", 2): "it moved a short while ago",
    }  # fmt: skip
    assert not any(a.keep for a in pool.loads(rates, (), True).areas if a.utilisation)


def test_an_area_that_is_elsewhere_by_now_or_for_which_there_is_no_room_stays() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA, "fast")
    volume.pwrite(pattern(AREA), 0)
    assert not pool.relocate("v", 0, "twin", "safe")
    assert not pool.relocate("v", 1, "fast", "safe")
    fill(pool, "safe")
    with pytest.raises(OutOfSpace, match="safe"):
        pool.relocate("v", 0, "fast", "safe")
    assert on(pool, "v") == {0: "fast"}
    assert volume.pread(AREA, 0) == pattern(AREA)
    used(pool)


def test_a_moved_area_leaves_where_the_volume_takes_new_ones_from() -> None:
    _, pool = new_pool()
    volume = pool.create_volume("v", 4 * AREA)
    volume.pwrite(pattern(AREA), 0)
    home = on(pool, "v")[0]
    pool.relocate("v", 0, home, "twin")
    volume.zero(0, AREA)
    volume.pwrite(pattern(AREA), 0)
    assert on(pool, "v") == {0: home}
    assert not volume.info.placement and not volume.info.pinned
