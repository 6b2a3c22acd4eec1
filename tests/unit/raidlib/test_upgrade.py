"""Pools made by older versions open and hold what they held; what an older version can read stays as it was."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from raidlib import Pool
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, reopen

MEMBERS, MEMBER_BYTES = 3, 200 << 10
"""pool-v1.zlib: the members of a RAID 5 pool, killed with allocations and a free in its log. pool-v2.zlib: of one with
checksums, killed after a snapshot and writes to what it shares."""


def old_pool(version: int = 1) -> FakeDisk:
    data = zlib.decompress((Path(__file__).parent / f"pool-v{version}.zlib").read_bytes())
    disk = FakeDisk(random.Random(0))
    for i in range(MEMBERS):
        disk.create(f"m{i}", MEMBER_BYTES)
        disk.open(f"m{i}").pwrite(data[i * MEMBER_BYTES : (i + 1) * MEMBER_BYTES], 0)
    return disk


def check(pool: Pool) -> None:
    thin, thick = pool.volume("v"), pool.volume("w")
    assert thin.pread(AREA, 0) == bytes(AREA)
    assert thin.pread(AREA, AREA) == bytes(7) + b"\x04" * 50 + bytes(AREA - 57)
    assert thin.pread(2 * AREA, 2 * AREA) == b"\x02" * (AREA + 100) + bytes(AREA - 100)
    assert thick.pread(2 * AREA, 0) == b"\x03" * 2 * AREA
    assert (thin.info.thin, thick.info.thin, thin.extents(0, AREA)) == (True, False, [(AREA, False)])


def test_a_version_1_pool_opens_and_becomes_one_of_this_version() -> None:
    disk = old_pool()
    pool = reopen(disk)
    check(pool)
    pool.volume("v").pwrite(b"new", 0)
    pool.close()
    pool = reopen(disk)
    assert msgpack.unpackb(pool._ledger.state.encode())["version"] == 2
    pool.volume("v").zero(0, AREA)
    check(pool)


def test_a_version_1_pool_can_be_killed_in_its_first_new_life() -> None:
    disk = old_pool()
    reopen(disk)
    disk.kill()
    check(reopen(disk))


def test_a_version_2_pool_opens_unchanged_and_becomes_version_3_when_it_grows() -> None:
    disk = old_pool(2)
    snapshot = bytes(AREA) + b"\2" * (2 * AREA + 100) + bytes(3 * AREA - 100)
    volume = bytearray(snapshot)
    volume[AREA + 7 : AREA + 57] = b"\4" * 50
    volume[4 * AREA : 4 * AREA + 9000] = b"\5" * 9000
    for turn in range(3):
        pool = reopen(disk)
        assert pool.volume("s").pread(6 * AREA, 0) == snapshot
        assert pool.volume("v").pread(6 * AREA, 0) == volume
        assert pool.check()["problems"] == []
        assert msgpack.unpackb(pool._ledger.state.encode())["version"] == (2 if turn < 2 else 3)
        if turn == 1:
            for name in disk.names():
                disk.enlarge(name, b"\x99" * (200 << 10))
            pool.grow()
        pool.close()
