"""A process that writes to a pool until it is killed, and a way to know what the pool must hold then.

Threads write, trim and read parts of a volume of their own. What they do follows from the seed, so all that has to
survive the kill is how many steps each has begun and finished: two counters in a mapped file, which a SIGKILL leaves.

    python -m tests.testing.poolwriter COUNTERS SEED ROUND MEMBER...
"""

from __future__ import annotations

import itertools
import mmap
import random
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from raidlib import Pool

THREADS = 3
PART_BYTES = 3 << 20
"""Bytes of the volume each thread owns; not a multiple of the area."""
SECTOR_BYTES = 512
_PAIR = struct.Struct("<QQ")


class Step(NamedTuple):
    """One thing a thread does; data is None for a trim."""

    off: int
    length: int
    data: bytes | None


def steps(seed: int, generation: int, thread: int) -> Iterator[Step]:
    """The steps of a thread, without end."""
    rng = random.Random(f"{seed} {generation} {thread}")
    for _ in itertools.count():
        length = rng.choice([512, 4096, 4096, 4096, 12288, 70000 // 512 * 512, 1 << 18])
        off = rng.randrange((PART_BYTES - length) // 512 + 1) * 512 + thread * PART_BYTES
        yield Step(off, length, rng.randbytes(length) if rng.random() < 0.85 else None)


def counters(path: Path) -> list[tuple[int, int]]:
    """How many steps each thread has (begun, finished)."""
    return [_PAIR.unpack_from(path.read_bytes(), thread * _PAIR.size) for thread in range(THREADS)]


def apply_steps(image: bytearray, seed: int, generation: int, path: Path) -> list[Step]:
    """Do to the image what was finished; return the steps that were in flight."""
    in_flight = []
    for thread, (begun, finished) in enumerate(counters(path)):
        sequence = steps(seed, generation, thread)
        for step in itertools.islice(sequence, finished):
            image[step.off : step.off + step.length] = step.data or bytes(step.length)
        if begun > finished:
            in_flight.append(next(sequence))
    return in_flight


def _write(pool: Pool, shared: mmap.mmap, seed: int, generation: int, thread: int) -> None:
    volume = pool.volume("v")
    rng = random.Random(thread)
    for number, step in enumerate(steps(seed, generation, thread)):
        _PAIR.pack_into(shared, thread * _PAIR.size, number + 1, number)
        if step.data is None:
            volume.zero(step.off, step.length)
        else:
            volume.pwrite(step.data, step.off)
        _PAIR.pack_into(shared, thread * _PAIR.size, number + 1, number + 1)
        if rng.random() < 0.01:
            pool.sync()


def main() -> None:
    """Open the pool and write until killed."""
    path, seed, generation, *members = sys.argv[1:]
    pool = Pool.open(members)
    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    for thread in range(THREADS):
        args = (pool, shared, int(seed), int(generation), thread)
        threading.Thread(target=_write, args=args, daemon=True).start()
    print("writing", flush=True)
    while True:
        pool.clear_intents()
        if pool.rebuild_step() == 0:
            threading.Event().wait(0.02)


if __name__ == "__main__":
    main()
