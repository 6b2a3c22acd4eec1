"""Reads of several chunks while members are gone: any range of rows, any two members, and trouble with a third."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.testing.pools import AREA, new_pool, pattern

SIZE = 2 * AREA


@pytest.mark.parametrize(("level", "members"), [(5, 4), (6, 6)])
@pytest.mark.parametrize("checksums", [False, True])
def test_any_range_is_read_whichever_members_are_gone(level: int, members: int, checksums: bool) -> None:
    rng = random.Random(1)
    content = pattern(SIZE)
    for lost in itertools.combinations(range(members), level - 4):
        _, pool = new_pool(level, members, checksums=checksums)
        volume = pool.create_volume("v", SIZE)
        volume.pwrite(content, 0)
        for index in lost:
            pool.fail_member(f"m{index}")
        for _ in range(60):
            off = rng.randrange(SIZE)
            n = rng.randrange(1, min(SIZE - off, AREA) + 1)
            assert volume.pread(n, off) == content[off : off + n], (lost, off, n)
            buf = bytearray(n)
            volume.pread_once(buf, off)
            assert buf == content[off : off + n], (lost, off, n)


def test_an_unreadable_place_beside_a_lost_member_is_read_from_what_is_left() -> None:
    content = pattern(SIZE)
    for lost, bad in itertools.permutations(range(6), 2):
        disk, pool = new_pool(6, 6)
        volume = pool.create_volume("v", SIZE)
        volume.pwrite(content, 0)
        pool.fail_member(f"m{lost}")
        disk.fail_reads(f"m{bad}")
        assert volume.pread(SIZE, 0) == content, (lost, bad)
