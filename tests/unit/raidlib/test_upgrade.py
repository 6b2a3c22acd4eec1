"""A pool made by the first version of the metadata opens, holds what it held, and is of the present version then."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from raidlib import Pool
from raidlib.state import STATE_VERSION
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, reopen

MEMBERS, MEMBER_BYTES = 3, 200 << 10
"""pool-v1.zlib: the members of a RAID 5 pool, killed with allocations and a free in its log."""


def old_pool() -> FakeDisk:
    data = zlib.decompress((Path(__file__).parent / "pool-v1.zlib").read_bytes())
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
    assert msgpack.unpackb(pool._ledger.state.encode())["version"] == STATE_VERSION
    pool.volume("v").zero(0, AREA)
    check(pool)


def test_a_version_1_pool_can_be_killed_in_its_first_new_life() -> None:
    disk = old_pool()
    reopen(disk)
    disk.kill()
    check(reopen(disk))
