"""SIGKILL of a real process that writes to a pool on real files, again and again, also degraded and rebuilding."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raidlib import GroupSpec, OSFile, Pool
from raidlib.scrub import COUNTS
from tests.testing.poolwriter import PART_BYTES, SECTOR_BYTES, THREADS, apply_steps

SIZE = THREADS * PART_BYTES
MEMBER_BYTES = 24 << 20
ROUNDS = 5


@pytest.mark.kill
@pytest.mark.parametrize(
    ("level", "members", "checksums"),
    [
        *[(0, 2, False), (1, 2, False), (5, 3, False), (6, 4, False), (10, 4, False)],
        *[(0, 2, True), (1, 2, True), (5, 3, True)],
    ],
)
def test_what_was_written_before_a_kill_is_there(tmp_path: Path, level: int, members: int, checksums: bool) -> None:
    seed = 1000 + level
    rng = random.Random(seed)
    paths = [str(tmp_path / f"m{i}") for i in range(members)]
    for path in paths:
        OSFile.create(path, MEMBER_BYTES)
    pool = Pool.create("tank", [GroupSpec("g", level, paths, checksums=checksums)], 1 << 20)
    pool.create_volume("v", SIZE)
    image = bytearray(SIZE)
    for number in range(ROUNDS):
        if level and number == 2:
            pool.fail_member(paths[1])
        if level and number == 3:
            OSFile.create(str(tmp_path / "new"), MEMBER_BYTES)
            pool.replace_member(paths[1], str(tmp_path / "new"))
            paths[1] = str(tmp_path / "new")
        pool.close()
        counters = tmp_path / "counters"
        counters.write_bytes(bytes(16 * THREADS))
        kill_writer(counters, seed, number, paths, rng.uniform(0.05, 0.5))
        pool = Pool.open(paths)
        assert pool.stopped == "killed"
        in_flight = apply_steps(image, seed, number, counters)
        found = pool.volume("v").pread(SIZE, 0)
        for at in range(0, SIZE, SECTOR_BYTES):
            sector = found[at : at + SECTOR_BYTES]
            if sector == image[at : at + SECTOR_BYTES]:
                continue
            new = [
                (step.data or bytes(step.length))[at - step.off : at - step.off + SECTOR_BYTES]
                for step in in_flight
                if step.off <= at < step.off + step.length
            ]
            assert sector in new, f"round {number}, byte {at}"
        image[:] = found
    while pool.rebuild_step():
        pass
    pool.scrub_start()
    while pool.scrub_step()[0]:
        pass
    assert not any(count for key, count in pool.scrub_status()["g"].items() if key in COUNTS)
    bears = {0: 0, 1: 1, 5: 1, 6: 2, 10: 1}[level]
    for path in paths[:bears]:
        pool.fail_member(path)
    assert pool.volume("v").pread(SIZE, 0) == image
    pool.close()


def kill_writer(counters: Path, seed: int, number: int, paths: list[str], after_s: float) -> None:
    """Run a writer and kill it so many seconds after its first write."""
    command = [sys.executable, "-m", "tests.testing.poolwriter", str(counters), str(seed), str(number), *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(after_s)
        assert writer.poll() is None, "the writer must live until it is killed"
        writer.kill()
