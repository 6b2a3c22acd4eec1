"""What creating a pool refuses, naming the thing, with nothing changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from raidlib import GroupSpec, OSFile, Pool
from raidlib.create import plan_layouts
from raidlib.errors import BadInput, MemberInUse, NotFound, RaidError
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, CHUNK, new_disk, new_pool


def create(disk: FakeDisk, *groups: GroupSpec, name: str = "tank", area: int = AREA, force: bool = False) -> Pool:
    return Pool.create(name, groups, area, disk.open_exclusive, force=force)


REFUSED = [
    ([GroupSpec("g", 6, ["m0", "m1", "m2"])], BadInput, "RAID 6 needs at least 4 members, 3 given"),
    ([GroupSpec("g", 3, ["m0", "m1", "m2"])], BadInput, "no RAID level 3"),
    ([GroupSpec("g", 0, ["m0"], 5000)], BadInput, "chunk size 5000"),
    ([GroupSpec("g", 1, ["m0", "m0"], CHUNK)], BadInput, "m0 is given twice"),
    ([GroupSpec("g", 0, ["m0"], CHUNK), GroupSpec("h", 0, ["m0"], CHUNK)], BadInput, "m0 is given twice"),
    ([GroupSpec("g", 0, ["m0"], CHUNK), GroupSpec("g", 0, ["m1"], CHUNK)], BadInput, "two groups are called g"),
    ([GroupSpec("bad name", 0, ["m0"], CHUNK)], BadInput, "'bad name' is not a name for a group"),
    ([GroupSpec("g", 0, ["nowhere"], CHUNK)], NotFound, "nowhere does not exist"),
    ([GroupSpec("g", 1, ["m0", "small"], CHUNK)], BadInput, "small is too small for group g: 8192 bytes"),
    ([], BadInput, "1 to 64 groups"),
]


@pytest.mark.parametrize(("groups", "error", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_bad_input_is_named_and_nothing_is_written(groups: list[GroupSpec], error: type[RaidError], says: str) -> None:
    disk = new_disk(4)
    disk.create("small", 8192)
    with pytest.raises(error, match=says) as caught:
        create(disk, *groups)
    assert caught.value.way_out
    assert caught.value.exit_code in (3, 5)
    assert disk.operations == 0
    for name in disk.names():
        disk.open_exclusive(name).close()


@pytest.mark.parametrize("name", ["", "-x", "a/b", "x" * 64, "ä"])
def test_a_pool_needs_a_proper_name(name: str) -> None:
    with pytest.raises(BadInput, match="is not a name for a pool"):
        create(new_disk(1), GroupSpec("g", 0, ["m0"], CHUNK), name=name)


@pytest.mark.parametrize("area", [3 << 20, 1024, 2 << 30])
def test_area_sizes_that_cannot_be_are_refused(area: int) -> None:
    with pytest.raises(BadInput, match=f"area size {area}"):
        create(new_disk(1), GroupSpec("g", 0, ["m0"], CHUNK), area=area)


def test_a_member_of_another_pool_is_refused_and_the_pool_is_named() -> None:
    disk, pool = new_pool(1, 2)
    pool.close()
    before = disk.operations
    with pytest.raises(MemberInUse, match=f"m0 is a member of pool tank \\({pool.uuid}\\)"):
        create(disk, GroupSpec("h", 0, ["m0"], CHUNK), name="other")
    assert disk.operations == before


def test_force_takes_a_member_from_another_pool() -> None:
    disk, pool = new_pool(1, 2)
    pool.close()
    other = create(disk, GroupSpec("h", 0, ["m0"], CHUNK), name="other", force=True)
    assert other.name == "other" and other.uuid != pool.uuid


def test_a_member_that_is_open_is_refused_even_with_force() -> None:
    disk, _pool = new_pool(1, 2)
    with pytest.raises(MemberInUse, match="m0 is in use"):
        create(disk, GroupSpec("h", 0, ["m0"], CHUNK), force=True)


def test_the_same_file_under_two_names_is_refused(tmp_path: Path) -> None:
    OSFile.create(str(tmp_path / "a"), 1 << 20)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(MemberInUse, match="b is in use"):
        Pool.create("tank", [GroupSpec("g", 1, [str(tmp_path / "a"), str(tmp_path / "b")], CHUNK)], AREA)


def test_a_directory_is_no_member(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither a file nor a block device"):
        Pool.create("tank", [GroupSpec("g", 0, [str(tmp_path)])])


def test_old_data_of_the_files_never_shows() -> None:
    disk = new_disk(3)
    for name in disk.names():
        file = disk.open(name)
        file.pwrite(b"old" * (file.size // 3), 0)
    pool = create(disk, GroupSpec("g", 5, disk.names(), CHUNK))
    volume = pool.create_volume("v", 4 * AREA)
    for area in range(4):
        volume.pwrite(b"n", area * AREA + 100)
    expected = (bytes(100) + b"n" + bytes(AREA - 101)) * 4
    assert volume.pread(4 * AREA, 0) == expected


def test_files_that_cannot_be_zeroed_fast_are_zeroed_area_by_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.testing.fakedisk.FakeFile.zeroes_fast", lambda self: False)
    disk = new_disk(2)
    for name in disk.names():
        file = disk.open(name)
        file.pwrite(b"old" * (file.size // 3), 0)
    pool = create(disk, GroupSpec("g", 0, disk.names(), CHUNK))
    assert pool.status()["groups"][0]["dirty_areas"] == pool.status()["groups"][0]["areas"]
    volume = pool.create_volume("v", 2 * AREA)
    volume.pwrite(b"n", AREA)
    assert volume.pread(2 * AREA, 0) == bytes(AREA) + b"n" + bytes(AREA - 1)


def test_most_of_a_large_member_is_data() -> None:
    spec = GroupSpec("g", 6, [f"m{i}" for i in range(6)])
    [(geometry, _, areas)] = plan_layouts([spec], [[1 << 40] * 6], 4 << 20)
    assert areas * geometry.area_member_bytes > 0.999 * (1 << 40)
