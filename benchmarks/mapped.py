"""A volume with as many areas as 1 TiB has, in a process of its own: what snapshots cost, and memory.

    python -m benchmarks.mapped DIRECTORY AREAS SNAPSHOTS

prints {"snapshots_ms": [...], "memory_bytes": ...}. A TiB in areas of 4 MiB has 262,144 of them. What a pool keeps of
an area does not depend on its size, so here areas are of 4 KiB, less than a node takes, and a TiB is a volume of 1 GiB.
The process is a target without server and groups: nothing else takes memory meanwhile.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from pathlib import Path

from raidlib.blockfile import OSFile
from raidlib.create import GroupSpec
from raidlib.pool import Pool

AREA_BYTES = 4096
VOLUME = "vol"


def measure(directory: Path, areas: int, snapshots: int) -> dict[str, object]:
    """Write every area of a thin volume on RAID-1, in random order, read all, then take snapshots; see above.

    memory_bytes: what the process has more than before, when every area was just written and read. Between snapshots 1
    of 256 areas is written again, and synced: what is left for the snapshot to write are maps.
    """
    members = [str(directory / f"member{i}") for i in range(2)]
    for path in members:
        OSFile.create(path, areas * (AREA_BYTES + AREA_BYTES // 8) + (64 << 20))
    pool = Pool.create("pool", [GroupSpec("group", 1, members, AREA_BYTES)], AREA_BYTES)
    for path in members:
        _take_space(path)
    try:
        volume = pool.create_volume(VOLUME, areas * AREA_BYTES)
        data, buffer = os.urandom(AREA_BYTES), bytearray(AREA_BYTES)
        order = list(range(areas))
        random.Random(1).shuffle(order)
        before = _memory_bytes()
        for index in order:
            volume.pwrite(data, index * AREA_BYTES)
        for index in order:
            volume.pread_into(buffer, index * AREA_BYTES)
        memory = _memory_bytes() - before
        took_ms = []
        for i in range(snapshots):
            pool.sync()
            begin = time.monotonic()
            pool.snapshot({VOLUME: f"snapshot{i}"})
            took_ms.append(1000 * (time.monotonic() - begin))
            for index in order[i::256]:
                volume.pwrite(data, index * AREA_BYTES)
    finally:
        pool.close()
    return {"snapshots_ms": took_ms, "memory_bytes": memory}


def _take_space(path: str) -> None:
    """Reserve all of a file: a filesystem lays files that grow in turn in the pieces by which they grow, here 4 KiB."""
    file = OSFile.open(path)
    try:
        file.reserve(0, file.size)
    finally:
        file.close()


def _memory_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
