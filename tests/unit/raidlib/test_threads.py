"""Many threads on one pool: each owns a part of a volume and must always read what it wrote, whatever goes on."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raidlib import GroupSpec, OSFile, Pool, Volume
from raidlib.errors import OutOfSpace, RaidError
from raidlib.scrub import COUNTS
from tests.testing.pools import AREA, CHUNK, new_disk

RUN_S = 1.0
WORKERS = 6
PART = 10 * AREA // 3 // 512 * 512
"""Bytes of a volume that one worker owns; its ends lie within areas that it shares."""
MEMBER_BYTES = 1 << 20


def worker(pool: Pool, volume: Volume, start: int, rng: random.Random, stop: float) -> None:
    """Write, zero, trim, sync and read within [start, start + PART)."""
    expected = bytearray(PART)
    while time.monotonic() < stop:
        off = rng.randrange(PART)
        n = min(rng.choice([512, 4096, 9000, 20000]), PART - off)
        dice = rng.random()
        try:
            if dice < 0.5:
                data = rng.randbytes(n)
                volume.pwrite(data, start + off)
                expected[off : off + n] = data
            elif dice < 0.7:
                volume.zero(start + off, n, rng.random() < 0.7)
                expected[off : off + n] = bytes(n)
            elif dice < 0.75:
                volume.zero(start, PART)
                expected[:] = bytes(PART)
            elif dice < 0.76:
                pool.sync()
        except OutOfSpace:
            expected[off : off + n] = volume.pread(n, start + off)
        assert volume.pread(n, start + off) == expected[off : off + n]
    assert volume.pread(PART, start) == expected


def administrator(pool: Pool, level: int, spare: Callable[[], str], open_file: object, stop: float) -> None:
    """Clear marks, fail, replace and rebuild members, make and unmake a volume."""
    rng = random.Random(level)
    while time.monotonic() < stop:
        dice = rng.random()
        members = pool.status()["groups"][0]["members"]
        if dice < 0.4:
            pool.clear_intents()
        elif dice < 0.5 and level:
            failed = [member["uuid"] for member in members if member["state"] == "failed"]
            if failed:
                pool.replace_member(failed[0], spare(), open_file)  # type: ignore[arg-type]
            elif all(member["state"] == "in_sync" for member in members):
                pool.fail_member(rng.choice(members)["uuid"])
        elif dice < 0.6:
            try:
                pool.create_volume("tmp", 4 * AREA).pwrite(b"x" * 100, AREA)
                pool.delete_volume("tmp")
            except RaidError:
                if any(volume.name == "tmp" for volume in pool.volumes):
                    pool.delete_volume("tmp")
        else:
            pool.rebuild_step()
        time.sleep(0.001)


def scrubber(pool: Pool, stop: float) -> None:
    """Scrub again and again, with leave to repair: nothing is damaged, so nothing is ever found."""
    while time.monotonic() < stop:
        pool.scrub_start(repair=True)
        while pool.scrub_step()[0]:
            time.sleep(0)
        found = {key: n for key, n in pool.scrub_status()["g"].items() if key in COUNTS and n}
        assert not found, found


def run_all(pool: Pool, level: int, spare: Callable[[], str], open_file: object) -> None:
    volumes = [pool.create_volume(name, (WORKERS // 2) * 4 * AREA) for name in "ab"]
    stop = time.monotonic() + RUN_S
    errors: list[BaseException] = []

    def guarded(call: Callable[..., None], *args: object) -> None:
        try:
            call(*args)
        except BaseException as exc:  # carried to the test's own thread
            errors.append(exc)

    jobs: list[tuple[object, ...]] = [
        (worker, pool, volumes[i % 2], i // 2 * PART, random.Random(i), stop) for i in range(WORKERS)
    ]
    jobs.append((administrator, pool, level, spare, open_file, stop))
    jobs.append((scrubber, pool, stop))
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    if errors:
        raise errors[0]
    while pool.rebuild_step():
        pass
    assert not any(member["checksum_errors"] for member in pool.status()["groups"][0]["members"])
    images = {volume.name: volume.pread(volume.size, 0) for volume in pool.volumes}
    members = pool.status()["groups"][0]["members"]
    bears = {0: 0, 1: 1, 5: 1, 6: 2, 10: 1}[level] - sum(member["state"] != "in_sync" for member in members)
    for member in [member for member in members if member["state"] == "in_sync"][:bears]:
        pool.fail_member(member["uuid"])
    assert {volume.name: volume.pread(volume.size, 0) for volume in pool.volumes} == images
    pool.close()


@pytest.mark.parametrize(("level", "members"), [(0, 3), (1, 2), (5, 3), (6, 4), (10, 4)])
@pytest.mark.parametrize("checksums", [False, True])
def test_threads_read_what_they_wrote(level: int, members: int, checksums: bool) -> None:
    disk = new_disk(members, MEMBER_BYTES)
    pool = Pool.create("tank", [GroupSpec("g", level, disk.names(), CHUNK, checksums)], AREA, disk.open_exclusive)

    def spare() -> str:
        name = f"spare{len(disk.names())}"
        disk.create(name, MEMBER_BYTES)
        return name

    run_all(pool, level, spare, disk.open_exclusive)


@pytest.mark.parametrize(("level", "members", "checksums"), [(0, 3, False), (6, 4, False), (5, 4, True)])
def test_threads_read_what_they_wrote_on_real_files(tmp_path: Path, level: int, members: int, checksums: bool) -> None:
    def spare() -> str:
        path = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        OSFile.create(str(path), MEMBER_BYTES)
        return str(path)

    paths = [spare() for _ in range(members)]
    pool = Pool.create("tank", [GroupSpec("g", level, paths, CHUNK, checksums)], AREA)
    run_all(pool, level, spare, OSFile.open_exclusive)


def test_syncing_threads_run_on_all_processors_whoever_starts_them(tmp_path: Path) -> None:
    """A worker that is kept on one processor may be the first to sync; its threads are everybody's."""
    paths = [str(tmp_path / f"m{index}") for index in range(2)]
    for path in paths:
        OSFile.create(path, 64 << 20)
    pool = Pool.create("p", [GroupSpec("g", 0, paths, 64 << 10)], 1 << 20)
    pool.create_volume("v", 8 << 20)
    everywhere = os.sched_getaffinity(0)

    def narrow_worker() -> None:
        os.sched_setaffinity(0, {min(everywhere)})
        pool.volume("v").pwrite(b"x" * 4096, 0)
        pool.sync()

    before = threading.enumerate()
    thread = threading.Thread(target=narrow_worker)
    thread.start()
    thread.join()
    syncing = [t for t in threading.enumerate() if t not in before and t.name.startswith("raidlib-sync")]
    assert syncing
    for t in syncing:
        assert t.native_id is not None and os.sched_getaffinity(t.native_id) == everywhere
    pool.close()
