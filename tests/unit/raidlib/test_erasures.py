"""Every set of members that a group can lose is survived, every other one is refused loudly.

Exhaustive over the sets: read, write, close and open again without them, rebuild; and one member more.
"""

from __future__ import annotations

import itertools
import random

import pytest

from raidlib import GroupSpec, Pool
from raidlib.errors import MediumError, RaidError, Refused
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import pattern

SHAPES = [
    *[(0, n, 4096) for n in (1, 2, 4)],
    *[(1, n, 4096) for n in (2, 3, 4)],
    *[(5, n, 4096) for n in (3, 4, 6)],
    *[(6, n, 4096) for n in (4, 5, 7)],
    *[(10, n, 4096) for n in (4, 6)],
    (5, 4, 8192),
    (6, 5, 8192),
    (10, 4, 16384),
]
AREA = 32768
SIZE = AREA + 12288
MEMBER_BYTES = 512 << 10


def survives(level: int, members: int, lost: tuple[int, ...]) -> bool:
    """By the definition of the level."""
    if level == 10:
        return all(not {pair, pair + 1} <= set(lost) for pair in range(0, members, 2))
    return len(lost) <= {0: 0, 1: members - 1, 5: 1, 6: 2}[level]


def made(level: int, members: int, chunk: int) -> tuple[FakeDisk, bytes]:
    """A closed pool with a volume v, and what v holds."""
    disk = FakeDisk(random.Random(1))
    for i in range(members):
        disk.create(f"m{i}", MEMBER_BYTES)
    pool = Pool.create("tank", [GroupSpec("g", level, disk.names(), chunk)], AREA, disk.open_exclusive)
    content = pattern(SIZE)
    pool.create_volume("v", SIZE).pwrite(content, 0)
    pool.close()
    return disk, content


def sets_of(members: int, level: int) -> list[tuple[int, ...]]:
    """Every set of members up to one more than the largest that can be lost."""
    most = {0: 0, 1: members - 1, 5: 1, 6: 2, 10: members // 2}[level] + 1
    return [lost for size in range(1, min(most, members) + 1) for lost in itertools.combinations(range(members), size)]


@pytest.mark.parametrize(("level", "members", "chunk"), SHAPES)
def test_members_that_are_gone_at_open(level: int, members: int, chunk: int) -> None:
    disk, content = made(level, members, chunk)
    saved = disk.snapshot()
    for lost in sets_of(members, level):
        disk.restore(saved)
        for index in lost:
            disk.remove(f"m{index}")
        left = disk.names()
        if not survives(level, members, lost):
            for force in (False, True) if not left else (False,):
                with pytest.raises(RaidError):
                    Pool.open(left, disk.open_exclusive, boot_id="b", force=force)
            continue
        # Half of the members or fewer may be the half that missed something: the operator has to say that they are not.
        few = len(left) * 2 <= members
        if few:
            with pytest.raises(Refused):
                Pool.open(left, disk.open_exclusive, boot_id="b")
        pool = Pool.open(left, disk.open_exclusive, boot_id="b", force=few)
        expected = check_use(pool, content)
        for index in lost:
            disk.create(f"n{index}", MEMBER_BYTES)
            pool.replace_member(f"m{index}", f"n{index}", disk.open_exclusive)
        while pool.rebuild_step():
            pass
        assert pool.status()["groups"][0]["state"] == "ok", lost
        assert pool.volume("v").pread(SIZE, 0) == expected
        pool.close()
        # What was rebuilt is worth as much as what was lost: now others go.
        others = [name for name in left if survives(level, members, (int(name[1:]),))][:1]
        for name in others:
            disk.remove(name)
        again = Pool.open(disk.names(), disk.open_exclusive, boot_id="b", force=members == 2)
        assert again.volume("v").pread(SIZE, 0) == expected, lost
        again.close()


@pytest.mark.parametrize(("level", "members", "chunk"), SHAPES)
def test_members_that_stop_working_while_the_pool_is_used(level: int, members: int, chunk: int) -> None:
    disk, content = made(level, members, chunk)
    saved = disk.snapshot()
    for lost in sets_of(members, level):
        disk.restore(saved)
        pool = Pool.open(disk.names(), disk.open_exclusive, boot_id="b")
        for index in lost:
            disk.fail_reads(f"m{index}")
            disk.fail_writes(f"m{index}")
        if survives(level, members, lost):
            check_use(pool, content)
            pool.sync()
            pool.close()
        else:
            with pytest.raises(MediumError):
                pool.volume("v").pread(SIZE, 0)
            with pytest.raises(MediumError):
                pool.volume("v").pwrite(pattern(SIZE, 5), 0)


def check_use(pool: Pool, content: bytes) -> bytes:
    """Read, write and trim; return what it holds then."""
    volume = pool.volume("v")
    assert volume.pread(SIZE, 0) == content
    expected = bytearray(content)
    for off, n in [(5, 100), (4096, 8192), (AREA - 700, 3000), (0, AREA)]:
        volume.pwrite(pattern(n, off), off)
        expected[off : off + n] = pattern(n, off)
    volume.zero(AREA + 100, 5000)
    expected[AREA + 100 : AREA + 5100] = bytes(5000)
    assert volume.pread(SIZE, 0) == expected
    return bytes(expected)
