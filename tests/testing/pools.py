"""Small pools on a FakeDisk for unit tests: 4 KiB chunks, 16 KiB areas, members m0, m1, and so on."""

from __future__ import annotations

import random

from raidlib import GroupSpec, Pool
from tests.testing.fakedisk import FakeDisk

CHUNK = 4096
AREA = 16384
MEMBER_BYTES = 512 << 10


def new_disk(members: int, size: int = MEMBER_BYTES, seed: int = 0) -> FakeDisk:
    """A disk with files m0.. of `size` bytes."""
    disk = FakeDisk(random.Random(seed))
    for i in range(members):
        disk.create(f"m{i}", size)
    return disk


def new_pool(level: int, members: int, size: int = MEMBER_BYTES, *, checksums: bool = False) -> tuple[FakeDisk, Pool]:
    """A pool called tank with one group g over all files of a new disk."""
    disk = new_disk(members, size)
    spec = GroupSpec("g", level, disk.names(), CHUNK, checksums)
    return disk, Pool.create("tank", [spec], AREA, disk.open_exclusive)


def reopen(disk: FakeDisk, *, force: bool = False, boot_id: str = "boot") -> Pool:
    """Open the pool from every file the disk has."""
    return Pool.open(disk.names(), disk.open_exclusive, force=force, boot_id=boot_id)


def pattern(n: int, seed: int = 1) -> bytes:
    """n bytes that look like nothing else."""
    return random.Random(seed).randbytes(n)


def states(pool: Pool) -> list[str]:
    """The states of the first group's members."""
    return [member["state"] for member in pool.status()["groups"][0]["members"]]
