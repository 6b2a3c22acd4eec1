"""Pools on block devices: loop devices stand in for disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidlib import GroupSpec, OSFile, Pool
from raidlib.errors import MemberInUse
from tests.testing.pools import pattern

AREA = 1 << 20


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[list[str]]:
    """Three block devices of 24 MiB full of old data."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    made: list[str] = []
    try:
        for i in range(3):
            path = tmp_path / f"disk{i}"
            path.write_bytes(b"old!" * (6 << 20))
            done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no loop devices here: {done.stderr.strip()}")
            made.append(done.stdout.strip())
        yield made
    finally:
        for device in made:
            subprocess.run(["losetup", "-d", device], check=False)


def test_a_pool_on_devices_shows_no_old_data_and_survives_a_reopen(devices: list[str]) -> None:
    pool = Pool.create("tank", [GroupSpec("g", 5, devices)], AREA)
    total = pool.status()["groups"][0]["areas"]
    volume = pool.create_volume("v", total * AREA)
    for area in range(total):
        volume.pwrite(b"new", area * AREA + 1000)
    expected = (bytes(1000) + b"new" + bytes(AREA - 1003)) * total
    assert volume.pread(total * AREA, 0) == expected
    volume.zero(AREA + 700, 900)
    expected = expected[: AREA + 700] + bytes(900) + expected[AREA + 1600 :]
    pool.close()
    pool = Pool.open(devices[:1])
    pool.fail_member(devices[2])
    assert pool.volume("v").pread(total * AREA, 0) == expected
    pool.close()


def test_a_device_in_use_is_refused(devices: list[str]) -> None:
    pool = Pool.create("tank", [GroupSpec("g", 1, devices[:2])], AREA)
    with pytest.raises(MemberInUse, match=f"{devices[0]} is in use"):
        Pool.create("other", [GroupSpec("g", 0, devices[:1])], AREA, force=True)
    pool.close()


def test_a_device_is_rebuilt(devices: list[str]) -> None:
    pool = Pool.create("tank", [GroupSpec("g", 1, devices[:2])], AREA)
    volume = pool.create_volume("v", 6 * AREA)
    volume.pwrite(pattern(3 * AREA), AREA)
    pool.replace_member(devices[0], devices[2])
    while pool.rebuild_step():
        pass
    pool.fail_member(devices[1])
    volume.pwrite(b"x", 5 * AREA)
    assert volume.pread(6 * AREA, 0) == bytes(AREA) + pattern(3 * AREA) + bytes(AREA) + b"x" + bytes(AREA - 1)
    pool.close()


def test_zeroing_an_unaligned_range_of_a_device_keeps_the_fast_way_for_the_rest(devices: list[str]) -> None:
    file = OSFile.open_exclusive(devices[0])
    for call in (file.punch, file.zero):
        call(1001, 77)
        call(8192, 4096)
    assert file.pread(12288, 0) == (b"old!" * 3072)[:1001] + bytes(77) + (b"old!" * 3072)[1078:8192] + bytes(4096)
    file.close()
