"""A reader that was written from docs/FORMATS.md alone reads and checks what raidlib has written."""

from __future__ import annotations

import random

import pytest

from raidlib import GroupSpec, Pool
from tests.testing import naiveraid
from tests.testing.fakedisk import FakeDisk
from tests.testing.naiveraid import NaivePool

SHAPES = [
    *[(0, n, 4096) for n in (1, 2, 3, 5)],
    *[(1, n, 4096) for n in (2, 3)],
    *[(5, n, 4096) for n in (3, 4, 5, 7)],
    *[(6, n, 4096) for n in (4, 5, 6, 8)],
    *[(10, n, 4096) for n in (4, 6)],
    *[(level, 4, 8192) for level in (0, 1, 5, 6, 10)],
    (5, 9, 4096),
    (6, 3 + 7, 4096),
]
AREA = 32768


def write_pool(
    level: int, members: int, chunk: int, seed: int, lose: int = 0
) -> tuple[list[bytearray], dict[str, bytes]]:
    """Write at random, lose and rebuild members on the way; return images of the closed pool and what it holds."""
    rng = random.Random(seed)
    disk = FakeDisk(rng)
    for i in range(members):
        disk.create(f"m{i}", (256 << 10) + 6 * AREA)
    pool = Pool.create("tank", [GroupSpec("g", level, disk.names(), chunk)], AREA, disk.open_exclusive)
    content = {"a": bytearray(2 * AREA + 4096), "b": bytearray(AREA)}
    for name, data in content.items():
        pool.create_volume(name, len(data))
    for number in range(24):
        name = rng.choice("ab")
        data = content[name]
        off = rng.randrange(len(data))
        n = min(rng.choice([1, 500, 4096, 9000, AREA]), len(data) - off)
        if rng.random() < 0.8:
            new = rng.randbytes(n)
            pool.volume(name).pwrite(new, off)
        else:
            new = bytes(n)
            pool.volume(name).zero(off, n)
        data[off : off + n] = new
        if number in (6, 12):
            content[f"s{number}"] = bytearray(data)
            pool.snapshot({name: f"s{number}"})
        if number == 8 and lose:
            for i in range(lose):
                pool.fail_member(f"m{i}")
        if number == 16 and lose:
            for i in range(lose):
                disk.create(f"n{i}", (256 << 10) + 6 * AREA)
                pool.replace_member(f"m{i}", f"n{i}", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    pool.close()
    names = [member["path"] for member in pool.status()["groups"][0]["members"]]
    return [disk._stores[name].data for name in names], {name: bytes(data) for name, data in content.items()}


@pytest.mark.parametrize(("level", "members", "chunk"), SHAPES)
def test_it_reads_the_same_bytes_and_finds_all_parity_right(level: int, members: int, chunk: int) -> None:
    images, content = write_pool(level, members, chunk, seed=level * 100 + members)
    naive = NaivePool(list(images))
    for name, data in content.items():
        assert naive.read(name) == data
    assert naive.check() > 0 or level == 0


@pytest.mark.parametrize(("level", "members", "lose"), [(1, 3, 2), (5, 4, 1), (6, 5, 2), (10, 4, 1)])
def test_it_finds_nothing_wrong_after_members_were_lost_and_rebuilt(level: int, members: int, lose: int) -> None:
    images, content = write_pool(level, members, 4096, seed=level, lose=lose)
    naive = NaivePool(list(images))
    for name, data in content.items():
        assert naive.read(name) == data
    assert naive.check() > 0


@pytest.mark.parametrize(("level", "members"), [(1, 2), (5, 3), (6, 4), (10, 4)])
def test_it_finds_a_single_wrong_bit(level: int, members: int) -> None:
    images, _ = write_pool(level, members, 4096, seed=3)
    naive = NaivePool(list(images))
    volume = naive.volumes["a"]
    index = next(iter(volume["areas"]))
    rows = AREA // 4096 // {1: 1, 5: members - 1, 6: members - 2, 10: members // 2}[level]
    member = next(iter(naive.members.values()))
    assert isinstance(member.image, bytearray)
    member.image[member.data_offset + volume["areas"][index][1] * rows * 4096 + 7] ^= 1
    with pytest.raises(AssertionError, match=r"is wrong|differ"):
        naive.check()


def test_it_knows_nothing_of_raidlib() -> None:
    assert "raidlib" not in [line.split()[1].split(".")[0] for line in _imports(naiveraid.__file__)]


def _imports(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return [line for line in file if line.startswith(("import ", "from "))]
