"""Groups whose members were enlarged take the new room, while they are used."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest

from raidlib import GroupSpec, Pool
from raidlib.blockfile import OSFile
from raidlib.errors import MediumError, NotFound, RaidError, Refused
from raidlib.intents import SECTOR_REGIONS
from tests.testing.fakedisk import FakeDisk, FakeFile
from tests.testing.naiveraid import NaivePool
from tests.testing.poolaudit import audit
from tests.testing.pools import AREA, MEMBER_BYTES, new_disk, new_pool, pattern, reopen, states

SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]
MORE = 300 << 10


def enlarge(disk: FakeDisk, names: list[str] | None = None, by: int = MORE) -> None:
    """Make files longer by what a disk may hold that was used before."""
    for name in names or disk.names():
        disk.enlarge(name, random.Random(name).randbytes(by))


def grown_pool(level: int, members: int, *, checksums: bool = False) -> tuple[FakeDisk, Pool]:
    """A pool of one group that has grown once, with data on both sides of where it grew."""
    disk, pool = new_pool(level, members, checksums=checksums)
    enlarge(disk)
    pool.grow()
    fill(pool)
    return disk, pool


def fill(pool: Pool, left: int = 3) -> None:
    """Volume v takes all areas but a few."""
    size = (pool.status()["groups"][0]["free_areas"] - left) * AREA
    pool.create_volume("v", size).pwrite(pattern(size), 0)


def holds(pool: Pool) -> bool:
    """Whether v holds what fill() wrote."""
    volume = pool.volume("v")
    return volume.pread(volume.size, 0) == pattern(volume.size)


def sound(pool: Pool, disk: FakeDisk) -> None:
    audit(pool, disk)
    assert pool.check()["problems"] == []


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_group_grows_again_and_again_and_what_it_holds_survives_power_cuts(
    level: int, members: int, checksums: bool
) -> None:
    disk, pool = new_pool(level, members, checksums=checksums)
    superblocks = {name: bytes(disk._find(name).data[:8192]) for name in disk.names()}
    for turn in range(3):
        enlarge(disk)
        before = pool.status()["groups"][0]
        assert before["growable"] > 0
        (grown,) = pool.grow()["groups"]
        after = pool.status()["groups"][0]
        assert (grown["old_size"], grown["size"]) == (before["size"], after["size"])
        assert after["size"] == before["size"] + before["growable"] and after["growable"] == 0
        size = (after["free_areas"] - 2) * AREA
        pool.create_volume(f"v{turn}", size).pwrite(pattern(size, turn), 0)
        pool.sync()
        sound(pool, disk)
        disk.crash(lambda _i, _w: "drop")
        pool = reopen(disk, boot_id=f"{turn}")
        for number in range(turn + 1):
            volume = pool.volume(f"v{number}")
            assert volume.pread(volume.size, 0) == pattern(volume.size, number)
        sound(pool, disk)
    assert {name: bytes(disk._find(name).data[:8192]) for name in disk.names()} == superblocks


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_reader_that_knows_only_the_formats_reads_a_grown_pool(level: int, members: int) -> None:
    disk, pool = grown_pool(level, members)
    enlarge(disk)
    pool.grow()
    pool.volume("v").zero(3 * AREA, 5 * AREA)
    pool.create_volume("w", 10 * AREA).pwrite(pattern(10 * AREA, 5), 0)
    content = {volume.name: volume.pread(volume.size, 0) for volume in pool.volumes}
    pool.close()
    naive = NaivePool([disk._find(name).data for name in disk.names()])
    assert {name: naive.read(name) for name in content} == content
    assert naive.check() > 0 or level == 0


def test_what_cannot_grow_says_why_and_stays_as_it_is() -> None:
    disk, pool = new_pool(5, 3)
    generation = pool.status()["generation"]
    with pytest.raises(Refused, match="no room for more areas: the smallest, m0, has"):
        pool.grow()
    enlarge(disk, ["m0", "m1"])
    with pytest.raises(Refused, match="the smallest, m2, has"):
        pool.grow("g")
    enlarge(disk, ["m2"])
    with pytest.raises(NotFound):
        pool.grow("h")
    assert pool.grow("g", dry_run=True)["groups"][0]["size"] > pool.status()["groups"][0]["size"]
    assert pool.status()["generation"] == generation
    pool.fail_member("m1")
    with pytest.raises(Refused, match="m1 is failed"):
        pool.grow("g")
    disk.create("n", MEMBER_BYTES + MORE)
    pool.replace_member("m1", "n", disk.open_exclusive)
    with pytest.raises(Refused, match="n is rebuilding"):
        pool.grow("g")
    while pool.rebuild_step():
        pass
    disk.create("o", MEMBER_BYTES + MORE)
    pool.replace_member("m0", "o", disk.open_exclusive)
    with pytest.raises(Refused, match="m0 of RAID group g is being replaced by o"):
        pool.grow("g")
    while pool.rebuild_step():
        pass
    pool.grow("g")
    fill(pool)
    assert holds(pool)


def test_of_several_groups_those_grow_that_can() -> None:
    disk = new_disk(4)
    specs = [GroupSpec("g", 1, ["m0", "m1"], 4096), GroupSpec("h", 0, ["m2", "m3"], 4096)]
    pool = Pool.create("tank", specs, AREA, disk.open_exclusive)
    with pytest.raises(Refused, match=r"no RAID group can grow: .* m0, .* m2, "):
        pool.grow()
    enlarge(disk, ["m2", "m3"])
    found = pool.grow()
    assert [one["name"] for one in found["groups"]] == ["h"]
    assert [one["name"] for one in found["refused"]] == ["g"]


def test_a_member_that_refuses_the_extension_leaves_the_group_as_it_was() -> None:
    disk, pool = new_pool(5, 3)
    enlarge(disk)
    disk.fail_writes("m1", MEMBER_BYTES)
    before = pool.status()["groups"][0]
    with pytest.raises(MediumError, match="m1 cannot be written"):
        pool.grow("g")
    assert pool.status()["groups"][0] == before
    disk.heal("m1")
    pool.grow("g")
    assert states(pool) == ["in_sync"] * 3


def test_a_member_whose_sync_fails_meanwhile_is_failed_and_nothing_grows() -> None:
    disk, pool = new_pool(1, 2)
    size = pool.status()["groups"][0]["size"]
    enlarge(disk)
    disk.fail_next_sync("m1")
    with pytest.raises(MediumError, match="m1"):
        pool.grow("g")
    assert states(pool) == ["in_sync", "failed"]
    assert pool.status()["groups"][0]["size"] == size


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
def test_a_member_that_vanishes_while_the_group_grows_can_be_taken_back(checksums: bool) -> None:
    disk, pool = new_pool(5, 3, checksums=checksums)
    enlarge(disk)
    slot = pool._groups[0].layout.slot_offset

    def trace(op: str, name: str, off: int, length: int) -> None:
        if op == "write_durable" and name == "m0" and off >= slot:
            disk.trace = None
            disk.vanish("m1")

    disk.trace = trace
    pool.grow("g")
    assert states(pool) == ["in_sync", "failed", "in_sync"]
    fill(pool)
    pool.sync()
    disk.come_back("m1")
    pool.readd_member("m1", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    sound(pool, disk)
    pool.fail_member("m2")
    assert holds(pool)


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize("works", [False, True], ids=["lost", "works"])
@pytest.mark.parametrize(("level", "members"), SHAPES[1:])
def test_a_member_of_a_grown_group_can_be_replaced(level: int, members: int, works: bool, checksums: bool) -> None:
    disk, pool = grown_pool(level, members, checksums=checksums)
    if not works:
        pool.fail_member("m1")
    disk.create("n", MEMBER_BYTES + MORE)
    disk.corrupt("n", 0, random.Random(1).randbytes(MEMBER_BYTES + MORE))
    pool.replace_member("m1", "n", disk.open_exclusive)
    pool.rebuild_step()
    volume = pool.volume("v")
    volume.pwrite(b"meanwhile", 5)
    volume.pwrite(pattern(volume.size)[:14], 0)
    disk.crash(lambda _i, _w: "keep")
    pool = reopen(disk, boot_id="again")
    while pool.rebuild_step():
        pass
    sound(pool, disk)
    pool.fail_member("m0")
    assert holds(pool)
    with pytest.raises(RaidError, match="take a larger one"):
        disk.create("small", MEMBER_BYTES)
        pool.replace_member("m0", "small", disk.open_exclusive)


def test_a_member_that_shrank_again_is_left_out() -> None:
    disk, pool = grown_pool(5, 3)
    pool.close()
    del disk._find("m1").data[MEMBER_BYTES:]
    pool = reopen(disk)
    assert states(pool) == ["in_sync", "failed", "in_sync"]
    assert "it has shrunk" in pool.status()["groups"][0]["members"][1]["reason"]
    assert holds(pool)
    with pytest.raises(RaidError):
        pool.readd_member("m1", disk.open_exclusive)


def test_new_room_that_cannot_be_zeroed_fast_is_zeroed_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeFile, "zeroes_fast", lambda self: False)
    disk, pool = new_pool(5, 3, checksums=True)
    enlarge(disk)
    pool.grow()
    volume = pool.create_volume("v", (pool.status()["groups"][0]["free_areas"]) * AREA)
    for at in range(0, volume.size, AREA):
        volume.pwrite(b"x", at)
    assert volume.pread(volume.size, 0) == (b"x" + bytes(AREA - 1)) * (volume.size // AREA)
    pool.fail_member("m2")
    disk.create("n", MEMBER_BYTES + MORE)
    disk.corrupt("n", 0, random.Random(1).randbytes(MEMBER_BYTES + MORE))
    pool.replace_member("m2", "n", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    pool.fail_member("m0")
    assert volume.pread(volume.size, 0) == (b"x" + bytes(AREA - 1)) * (volume.size // AREA)
    sound(pool, disk)


def scatter(pool: Pool, name: str, areas: int, seed: int = 1) -> None:
    """A volume whose map has a run for nearly every area."""
    volume = pool.create_volume(name, areas * AREA)
    for index in random.Random(seed).sample(range(areas), areas):
        volume.pwrite(b"%8d" % index, index * AREA)


def test_a_checkpoint_that_outgrows_its_slot_goes_on_in_the_extension() -> None:
    disk, pool = new_pool(0, 2)
    layout = pool._groups[0].layout
    enlarge(disk, by=20 << 20)
    pool.grow()
    scatter(pool, "v", 2300)
    pool.create_volume("w", AREA).pwrite(b"after", 0)
    pool.sync()
    assert len(pool._ledger.state.encode()) > layout.checkpoint_bytes
    assert pool.check()["problems"] == []
    names = disk.names()
    saved = disk.snapshot()

    disk.crash(lambda _i, _w: "drop")
    again = reopen(disk)
    assert again.volume("v").pread(8, 2299 * AREA) == b"%8d" % 2299
    assert again.volume("w").pread(5, 0) == b"after"
    again.close()
    assert NaivePool([disk._find(name).data for name in names]).read("w").startswith(b"after")

    # A crash in the middle of one leaves the checkpoint before it.
    for cut in range(4):
        disk.restore(saved)
        pool = reopen(disk)
        disk.cut_at(disk.operations + cut)
        with pytest.raises(BaseException, match="cut at operation"):
            pool.create_volume("x", AREA)
        disk.crash()
        pool = reopen(disk)
        assert pool.volume("w").pread(5, 0) == b"after"
        pool._ledger.close()


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
def test_parts_in_the_extension_go_to_a_successor_too_and_data_only_once_it_is_copied(checksums: bool) -> None:
    disk, pool = grown_pool(0, 2, checksums=checksums)
    enlarge(disk)
    pool.grow()
    disk.create("n", MEMBER_BYTES + 2 * MORE)
    pool.replace_member("m0", "n", disk.open_exclusive)
    twin, layout = pool._groups[0].members[0].live_file(), pool._groups[0].layout
    for extension in layout.extensions:
        twin.pwrite(b"part", extension.start)
        twin.pwrite_durable(b"of a checkpoint", extension.overflow_offset(1))
        twin.pwrite(pattern(4096), extension.end)
        for name in ("m0", "n"):
            assert disk.open(name).pread(4, extension.start) == b"part"
            assert disk.open(name).pread(15, extension.overflow_offset(1)) == b"of a checkpoint"
        assert disk.open("m0").pread(4096, extension.end) == pattern(4096)
        assert disk.open("n").pread(4096, extension.end) == bytes(4096)
        disk.fail_reads("m0", extension.start, extension.start + 4)
        assert twin.pread(4, extension.start) == b"part"


def test_marks_beyond_the_first_room_of_the_intent_map_are_found_after_a_kill(tmp_path: Path) -> None:
    area, members = 4096, [str(tmp_path / name) for name in ("m0", "m1")]
    for path in members:
        OSFile.create(path, 300 << 10)
    pool = Pool.create("tank", [GroupSpec("g", 1, members, 4096, True)], area, OSFile.open_exclusive)
    first_room = pool._groups[0].layout.intent_bytes // 512 * SECTOR_REGIONS
    for path in members:
        with open(path, "r+b") as file:
            file.truncate(first_room * area + (4 << 20))
    pool.grow()
    volume = pool.create_volume("v", pool.status()["groups"][0]["free"] - area)
    at = next(i for i in range(0, volume.size, area) if volume.info.areas[i // area] == 0)
    allocator = pool._allocators[0]
    with pool._ledger.lock:
        allocator._clean = sorted(area for area in allocator._clean if area > first_room)
    volume.pwrite(b"far out", at)
    assert volume.info.areas[at // area] & 0xFFFFFFFF > first_room
    for group in pool._groups:  # the process dies: locks and descriptors go, and nothing is written
        for member in group.members:
            member.live_file().close()
    pool = Pool.open(members, OSFile.open_exclusive)
    assert any(start <= at < start + length for start, length in pool.unclean_ranges["v"])
    assert pool.volume("v").pread(7, at) == b"far out"
    pool.close()


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_writers_do_not_notice(level: int, members: int) -> None:
    disk, pool = new_pool(level, members, checksums=level == 5)
    size = 7 * AREA
    volumes = [pool.create_volume(f"v{i}", size) for i in range(3)]
    stop, trouble = threading.Event(), []

    def work(number: int) -> None:
        rng = random.Random(number)
        content = bytearray(size)
        try:
            while not stop.is_set():
                at = rng.randrange(size - 9000)
                data = rng.randbytes(rng.choice([512, 4096, 9000]))
                volumes[number].pwrite(data, at)
                content[at : at + len(data)] = data
                assert volumes[number].pread(9000, at) == content[at : at + 9000]
            assert volumes[number].pread(size, 0) == content
        except BaseException as exc:
            trouble.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        enlarge(disk, by=100 << 10)
        pool.grow()
        pool.clear_intents()
    stop.set()
    for thread in threads:
        thread.join()
    assert not trouble
    sound(pool, disk)


def test_a_scrub_under_way_goes_on_and_the_next_one_sees_the_new_room() -> None:
    disk, pool = new_pool(1, 2, checksums=True)
    fill(pool)
    pool.scrub_start("g")
    pool.scrub_step()
    enlarge(disk)
    pool.grow("g")
    while pool.scrub_step()[0]:
        pass
    assert pool.scrub_status()["g"]["state"] == "finished"
    volume = pool.create_volume("w", 12 * AREA)
    volume.pwrite(pattern(12 * AREA), 0)
    group = pool._groups[0]
    area = volume.info.areas[11] & 0xFFFFFFFF
    assert group.member_offset(area) > MEMBER_BYTES
    disk.corrupt("m1", group.member_offset(area) + 77)
    pool.scrub_start("g")
    while pool.scrub_step()[0]:
        pass
    assert pool.scrub_status()["g"]["checksum_errors"] == pool.scrub_status()["g"]["repaired"] == 1


def test_spares_that_become_too_small_are_named_and_serve_again_once_they_are_enlarged() -> None:
    disk, pool = new_pool(1, 2)
    members = disk.names()
    disk.create("s", MEMBER_BYTES)
    pool.add_spare("s", "", disk.open_exclusive)
    enlarge(disk, members)
    assert pool.grow("g")["groups"][0]["unfit_spares"] == ["s"]
    pool.fail_member("m0")
    assert pool.take_spare() is None
    enlarge(disk, ["s"])
    assert pool.take_spare() == ("m0", "s")


def test_only_a_pool_that_has_grown_is_of_the_new_version() -> None:
    disk, pool = new_pool(1, 2)
    assert msgpack.unpackb(pool._ledger.state.encode())["version"] == 2
    enlarge(disk)
    pool.grow()
    assert msgpack.unpackb(pool._ledger.state.encode())["version"] == 3


def test_a_group_that_joins_a_grown_pool_has_room_for_its_metadata() -> None:
    disk, pool = grown_pool(0, 2)
    disk.create("n0", MEMBER_BYTES)
    pool.add_group(GroupSpec("h", 0, ["n0"], 4096), disk.open_exclusive)
    rooms = [group.layout.checkpoint_room for group in pool._groups]
    assert rooms[1] >= rooms[0]
    sound(pool, disk)


def test_a_grown_group_can_leave_and_its_index_is_used_again() -> None:
    disk, pool = grown_pool(1, 2)
    for name in ("n0", "n1"):
        disk.create(name, 2 * MEMBER_BYTES)
    pool.add_group(GroupSpec("h", 1, ["n0", "n1"], 4096), disk.open_exclusive)
    pool.remove_group("g")
    while pool.move_step():
        pass
    assert [group["name"] for group in pool.status()["groups"]] == ["h"]
    pool.add_group(GroupSpec("g", 1, ["m0", "m1"], 4096), disk.open_exclusive)
    assert holds(pool)
    sound(pool, disk)
