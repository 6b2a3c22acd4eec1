"""Statistics of areas and balancing on a real target under load."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import nbd
import pytest

from replicator.core.errors import FarstripeError
from tests.testing.needs import needs
from tests.testing.stamped import BLOCK, StampedLoad, check_nothing_lost, read_generations
from tests.testing.targetproc import MIB, TargetProcess

KIB = 1 << 10
PEER = "bb" * 16


@pytest.fixture
def two_groups() -> Iterator[TargetProcess]:
    """A target whose pool has two groups, alike but that volumes begin on "one", which has more room."""
    needs("nbdkit")
    with TargetProcess() as target:
        target.start()
        groups = [
            {"name": name, "level": 5, "members": [target.disk(f"{name}{i}", mib * MIB) for i in range(3)]}
            for name, mib in (("one", 80), ("two", 64))
        ]
        target.call("pool.create", name="pool", groups=groups, area_bytes=MIB)
        yield target


def on(target: TargetProcess, volume: str) -> dict[str, int]:
    """How many MiB of a volume lie on each group."""
    found: dict[str, int] = {}
    for run in target.call("volume.map", name=volume)["ranges"]:
        found[run["group"]] = found.get(run["group"], 0) + run["length"] // MIB
    return found


def load(handle: nbd.NBD, seconds: float, step: Any) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        step()


def shares(target: TargetProcess) -> list[float]:
    """Which share of the requests each group gets: steadier within seconds than the time that they take."""
    counts = [sum(group["requests"].values()) for group in target.call("pool.stats")["groups"]]
    return [count / sum(counts) if sum(counts) else 0.0 for count in counts]


def areas(target: TargetProcess, **args: Any) -> dict[int, dict[str, Any]]:
    return {area["area"]: area for area in target.call("pool.stats", **args)["areas"]}


def test_random_and_sequential_areas_are_told_apart(target: TargetProcess) -> None:
    handle, rng, data = target.connect("v"), random.Random(1), os.urandom(16 * KIB)
    handle.pwrite(bytes(64 * MIB // 2), 0)
    target.call("pool.stats_switch", on=False)
    target.call("pool.stats_switch", on=True)
    at = 0

    def step() -> None:
        nonlocal at
        handle.pwrite(data[: 4 * KIB], 2 * MIB + rng.randrange(256) * 4 * KIB)
        handle.pread(4 * KIB, 5 * MIB + rng.randrange(256) * 4 * KIB)
        handle.pwrite(data, 8 * MIB + at)
        handle.pread(16 * KIB, 12 * MIB + at)
        at = (at + 16 * KIB) % MIB

    load(handle, 2.5, step)
    found = areas(target)
    assert sorted(found) == [2, 5, 8, 12]
    for area, kind in ((2, "random_write"), (5, "random_read"), (8, "sequential_write"), (12, "sequential_read")):
        requests = found[area]["requests"]
        assert requests[kind] > 0.8 * sum(requests.values()) > 0, (area, requests)
        assert found[area]["utilisation"] > 0
    [group] = target.call("pool.stats")["groups"]
    assert group["utilisation"] == pytest.approx(sum(area["utilisation"] for area in found.values()), rel=0.2)


def test_counts_of_busy_and_quiet_volumes_are_about_right(target: TargetProcess) -> None:
    target.call("volume.create", name="quiet", size=4 * MIB)
    busy, quiet, data = target.connect("v"), target.connect("quiet"), os.urandom(4 * KIB)
    quiet.pwrite(data, 0)
    busy.pwrite(data, 0)
    target.call("pool.stats_switch", on=False)
    target.call("pool.stats_switch", on=True)
    began, done, slow = time.monotonic(), 0, 0
    while time.monotonic() < began + 3.5:
        busy.pwrite(data, 0)
        done += 1
        if done % 200 == 0:
            quiet.pwrite(data, 0)
            slow += 1
    took = time.monotonic() - began
    found = {area["volume"]: area["requests"] for area in target.call("pool.stats")["areas"]}
    assert done / took / 4 < sum(found["v"].values()) < 4 * done / took
    assert slow / took / 4 < sum(found["quiet"].values()) < 4 * slow / took


def test_a_group_of_volumes_is_seen_and_nothing_is_while_statistics_are_off(target: TargetProcess) -> None:
    target.call("group.create", name="g", volumes=["v"], journal_bytes=32 * MIB)
    target.call("group.policy", group="g", startup_wait_s=0)
    target.call("group.arm", group="g", peer=PEER)
    handle, data = target.connect("v"), os.urandom(4 * KIB)
    load(handle, 2.2, lambda: handle.pwrite(data, 3 * MIB))
    assert areas(target)[3]["requests"]["random_write"] > 0
    target.call("pool.stats_switch", on=False)
    target.terminate()
    target.start()
    handle = target.connect("v")
    load(handle, 1.5, lambda: handle.pwrite(data, 3 * MIB))
    found = target.call("pool.stats")
    assert (found["on"], found["areas"]) == (False, [])
    with pytest.raises(FarstripeError, match="pool stats --on") as caught:
        target.call("pool.balance")
    assert caught.value.exit_code == 4


def test_random_load_on_parity_and_sequential_load_on_mirrors_change_places(bare: TargetProcess) -> None:
    groups = [
        {"name": "parity", "level": 5, "members": [bare.disk(f"p{i}") for i in range(3)]},
        {"name": "mirror", "level": 1, "members": [bare.disk(f"m{i}") for i in range(2)]},
    ]
    bare.call("pool.create", name="pool", groups=groups, area_bytes=4 * MIB)
    for name, group in (("rows", "parity"), ("log", "mirror")):
        bare.call("volume.create", name=name, size=4 * MIB, raid_group=group)
    rows, log, rng, data, at = bare.connect("rows"), bare.connect("log"), random.Random(1), os.urandom(256 * KIB), 0
    bare.call("pool.stats_switch", on=False)
    bare.call("pool.stats_switch", on=True)

    def step() -> None:
        nonlocal at
        for _ in range(3):
            rows.pwrite(data[: 12 * KIB], rng.randrange(341) * 12 * KIB)
        log.pwrite(data, at)
        at = (at + len(data)) % (4 * MIB)

    until = time.monotonic() + 30
    while len((made := bare.call("pool.balance", placed_too=True))["moves"]) < 2:
        assert time.monotonic() < until, (made, bare.call("pool.stats")["areas"])
        load(rows, 1.1, step)
    assert [(one["volume"], one["to"]) for one in made["moves"]] == [("rows", "mirror"), ("log", "parity")], made
    chosen = bare.call("pool.balance")
    assert chosen["moves"] == []
    assert {one["reason"] for one in chosen["skipped"]} == {"somebody chose its group"}
    bare.call("pool.balance", placed_too=True, apply=True, force=True)
    while bare.call("pool.balance_progress")["left"]:
        time.sleep(0.05)
    assert (on(bare, "rows"), on(bare, "log")) == ({"mirror": 4}, {"parity": 4})


def test_load_on_one_group_is_levelled_and_nothing_is_lost(two_groups: TargetProcess) -> None:
    target, blocks = two_groups, 16 * MIB // BLOCK
    target.call("volume.create", name="v", size=16 * MIB)
    target.connect("v").pwrite(bytes(16 * MIB), 0)
    assert set(on(target, "v")) == {"one"}
    target.call("volume.snapshot", volumes=["v"], names=["s"])
    stamped = StampedLoad(lambda: target.connect("v"), blocks, seed=7, depth=16, writes_per_s=8000).start()
    stamped.wait_acked(2000)
    with pytest.raises(FarstripeError, match="too young"):
        target.call("pool.balance", apply=True)
    target.call("pool.stats_switch", on=False)  # what the snapshot's copies cost is not what the load costs
    target.call("pool.stats_switch", on=True)
    until = time.monotonic() + 30
    while len((shown := target.call("pool.balance"))["moves"]) < 2:
        assert time.monotonic() < until, shown
        time.sleep(0.5)
    before = shares(target)
    assert not shown["applied"]
    assert all(one["from"] == "one" and "levels" in one["reason"] for one in shown["moves"])
    target.call("pool.balance", apply=True, force=True)
    deadline = time.monotonic() + 60
    while (progress := target.call("pool.balance_progress"))["left"]:
        assert time.monotonic() < deadline, progress
        time.sleep(0.05)
    assert (progress["moved"], progress["left_out"]) == (progress["planned"], [])
    lies = on(target, "v")
    assert lies["two"] == progress["moved"]
    target.call("pool.stats_switch", on=False)
    target.call("pool.stats_switch", on=True)
    until = time.monotonic() + 30
    while not any(shares(target)):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert statistics.pvariance(shares(target)) < 0.9 * statistics.pvariance(before), (shares(target), shown)
    again = target.call("pool.balance")
    assert not {one["area"] for one in shown["moves"]} & {one["area"] for one in again["moves"]}
    stamped.stop()
    check_nothing_lost(stamped.ledger, read_generations(target.connect("v"), blocks))
    assert target.connect("s").pread(16 * MIB, 0) == bytes(16 * MIB)
    assert target.call("pool.check")["problems"] == []
    kinds = [event["kind"] for event in target.call("events.list")]
    assert "balance.begun" in kinds and "balance.done" in kinds
    target.kill()
    target.start()
    assert on(target, "v") == lies
    check_nothing_lost(stamped.ledger, read_generations(target.connect("v"), blocks))
