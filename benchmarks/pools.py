"""The rows of a pool alone: degraded reads, rebuild, scrub, checksums, snapshots, memory.

Rebuild and scrub are compared with dd doing the same transfers on the member files themselves, the same way: a scrub
reads every member past the page cache, a rebuild reads as many members as there are data chunks and writes one.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import Load, fio, nbdcopy
from benchmarks.mapped import AREA_BYTES
from benchmarks.md import MdGuest
from benchmarks.measure import Result, against_limit, compare
from benchmarks.nodes import CHECKOUT, Node
from benchmarks.peers import FilePlugin
from benchmarks.settings import Settings
from benchmarks.workspace import BenchmarkError, Workspace, make_file, settle, wait_for
from raidlib.blockfile import OSFile
from raidlib.superblock import read_superblock

VOLUME = "vol"
MEMBERS, DATA_MEMBERS = 6, 4
SNAPSHOT_LIMIT_MS = 50.0
MEMORY_LIMIT_MIB = 64.0
AREAS_PER_TIB = 1 << 18
"""Of 4 MiB."""


def _filled(space: Workspace, name: str, source: Path, level: str, members: int, data: int, *options: str) -> Node:
    """A node with a pool of one group and a thick volume that holds the bytes of `source`."""
    size = source.stat().st_size
    node = Node(space, name)
    node.make_pool(level, members, size // data + (64 << 20), *options)
    node.make_volume(VOLUME, size)
    nbdcopy(str(source), node.uri(VOLUME))
    return node


def against_md(name: str, level: int, members: int, data: int, load: Load) -> Callable[[Settings], Result]:
    """What is left of a plain file's speed here and with Linux md: see md.py."""

    def run(settings: Settings) -> Result:
        with Workspace(settings.directory) as space:
            plain = FilePlugin(space, "plain-nbd", settings.size_bytes)
            node = _filled(space, "a", plain.file, f"raid{level}", members, data)
            guest = MdGuest(space, level, members, data, settings.size_bytes)

            def ours() -> float:
                settle(space.path)
                rates = [
                    fio(uri, load, settings.seconds, settings.size_bytes).iops for uri in (node.uri(VOLUME), plain.uri)
                ]
                return rates[0] / rates[1]

            def theirs() -> float:
                settle(space.path)
                return guest.share(load, settings.seconds)

            return compare(name, "md in User Mode Linux", "share", ours, theirs, settings.rounds)

    return run


def degraded_read(name: str, gone: int) -> Callable[[Settings], Result]:
    """64 KiB random reads of a RAID-6 with `gone` members lost, against another that holds the same and is whole."""

    def run(settings: Settings) -> Result:
        load = Load("randread", 64 << 10, 32)
        with Workspace(settings.directory) as space:
            source = space.path / "source"
            make_file(source, settings.size_bytes)
            whole, degraded = (
                _filled(space, name, source, "raid6", MEMBERS, DATA_MEMBERS) for name in ("whole", "degraded")
            )
            for i in range(gone):
                degraded.run("pool", "fail", str(degraded.directory / f"member{i}"), "--yes")

            def rate(node: Node) -> float:
                settle(space.path)
                return fio(node.uri(VOLUME), load, settings.seconds, settings.size_bytes).bytes_per_s / 1e6

            return compare(
                name, "the same pool healthy", "MB/s", lambda: rate(degraded), lambda: rate(whole), settings.rounds
            )

    return run


def checksummed(name: str, load: Load) -> Callable[[Settings], Result]:
    """The load on a RAID-6 with checksums against one without."""

    def run(settings: Settings) -> Result:
        with Workspace(settings.directory) as space:
            source = space.path / "source"
            make_file(source, settings.size_bytes)
            plain = _filled(space, "plain", source, "raid6", MEMBERS, DATA_MEMBERS)
            checked = _filled(space, "checked", source, "raid6", MEMBERS, DATA_MEMBERS, "--checksums")

            def rate(node: Node) -> float:
                settle(space.path)
                return fio(node.uri(VOLUME), load, settings.seconds, settings.size_bytes).iops

            return compare(
                name, "the same without checksums", "IOPS", lambda: rate(checked), lambda: rate(plain), settings.rounds
            )

    return run


def scrub(level: str, members: int, data: int) -> Callable[[Settings], Result]:
    """A scrub without limit and without hosts, against dd reading the same bytes of all members at the same time."""

    def run(settings: Settings) -> Result:
        name = f"scrub-{level}"
        with Workspace(settings.directory) as space:
            source = space.path / "source"
            make_file(source, settings.size_bytes)
            node = _filled(space, "a", source, level, members, data)
            paths = [node.directory / f"member{i}" for i in range(members)]
            each = settings.size_bytes // data
            start = _data_offset(paths[0])

            def ours() -> float:
                settle(space.path)
                node.ask("pool.scrub.start", group=None, mode="check", limit_bytes_s=0)
                return _scrubbed_mb_s(node)

            def theirs() -> float:
                settle(space.path)
                return members * each / _dd(paths, [], start, each, direct=True) / 1e6

            return compare(name, "dd on the members", "MB/s", ours, theirs, settings.rounds)

    return run


def _scrubbed_mb_s(node: Node) -> float:
    """Wait for the end of a scrub; return its speed by the times that it notes itself."""
    found: dict[str, Any] = {}

    def finished() -> bool:
        (found["scrub"],) = node.ask("pool.status")["scrubs"].values()
        return bool(found["scrub"]["state"] == "finished")

    wait_for(finished, "the end of the scrub", 300)
    status = found["scrub"]
    if status["mismatches"] or status["unreadable"]:
        raise BenchmarkError(f"the scrub found what is not there: {status}")
    return float(status["bytes_read"] / (status["finished"] - status["started"]) / 1e6)


def rebuild(settings: Settings) -> Result:
    """A member of a RAID-6 rebuilt, without limit and hosts, against dd reading and writing the same amounts."""
    with Workspace(settings.directory) as space:
        source = space.path / "source"
        make_file(source, settings.size_bytes)
        node = _filled(space, "a", source, "raid6", MEMBERS, DATA_MEMBERS)
        each = settings.size_bytes // DATA_MEMBERS
        sources = [node.directory / f"member{i}" for i in range(DATA_MEMBERS)]
        start = _data_offset(sources[0])
        size = sources[0].stat().st_size
        last = [node.directory / f"member{MEMBERS - 1}"]

        def ours() -> float:
            settle(space.path)
            _forget(sources)
            new = node.directory / f"member{MEMBERS - 1}.{random.getrandbits(40):010x}"
            node.run("pool", "fail", str(last[0]), "--yes")
            last[0].unlink()
            OSFile.create(str(new), size)
            begin = time.monotonic()
            node.ask("pool.replace", old=str(last[0]), new=str(new), force=False)
            last[0] = new
            wait_for(lambda: _state(node, new) == "in_sync", "the end of the rebuild", 300)
            return each / (time.monotonic() - begin) / 1e6

        def theirs() -> float:
            settle(space.path)
            scratch = space.path / "written"
            _forget(sources)
            seconds = _dd(sources, [scratch], start, each, direct=False)
            scratch.unlink()
            return each / seconds / 1e6

        return compare("rebuild-raid6", "dd on the members", "MB/s", ours, theirs, settings.rounds)


def _state(node: Node, path: Path) -> str:
    members = [one for group in node.ask("pool.status")["groups"] for one in group["members"]]
    return next((str(one["state"]) for one in members if one["path"] == str(path)), "")


def _data_offset(member: Path) -> int:
    file = OSFile.open(str(member))
    try:
        superblock = read_superblock(file)
    finally:
        file.close()
    if superblock is None:
        raise BenchmarkError(f"{member} is no member")
    return superblock.layout.data_offset


def _forget(paths: Sequence[Path]) -> None:
    """Take files out of the page cache, the peer's turn and ours alike."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _dd(read: Sequence[Path], write: Sequence[Path], start: int, length: int, direct: bool) -> float:
    """Have dd transfer `length` bytes of every file from `start` on, all at once; return the seconds until all is done.

    direct: past the page cache. What is written is synced within the time.
    """
    flags = "direct," if direct else ""
    count = [f"count={length}", "bs=4M", "status=none"]
    argvs = [
        ["dd", f"if={path}", "of=/dev/null", f"skip={start}", f"iflag={flags}skip_bytes,count_bytes", *count]
        for path in read
    ]
    argvs += [["dd", "if=/dev/zero", f"of={path}", "iflag=count_bytes", "conv=fdatasync", *count] for path in write]
    begin = time.monotonic()
    running = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for argv in argvs]
    for one in running:
        _, error = one.communicate(timeout=300)
        if one.returncode:
            raise BenchmarkError(f"dd: {error.strip()[-300:]}")
    return time.monotonic() - begin


def snapshot(settings: Settings) -> Result:
    """A snapshot of a thin volume of as many areas as 1 TiB has, from the call to its return."""
    areas, found = _mapped(settings, max(3, settings.rounds))
    times = found["snapshots_ms"]
    took = statistics.median(times)
    result = against_limit("snapshot-1tib", SNAPSHOT_LIMIT_MS, "the bar", "ms", took, lower_is_better=True)
    return replace(result, note=f"{areas} areas, {min(times):.0f}-{max(times):.0f} ms")


def memory(settings: Settings) -> Result:
    """The memory a pool keeps for each TiB mapped, when every area was just written and read."""
    areas, found = _mapped(settings, 0)
    grown = found["memory_bytes"] / areas * AREAS_PER_TIB / (1 << 20)
    result = against_limit("memory-per-tib", MEMORY_LIMIT_MIB, "the bar", "MiB", grown, lower_is_better=True)
    return replace(result, note=f"{areas} areas")


def _mapped(settings: Settings, snapshots: int) -> tuple[int, dict[str, Any]]:
    """Run benchmarks.mapped; return the number of areas and what it measured."""
    areas = min(AREAS_PER_TIB, 2 * settings.size_bytes // AREA_BYTES)
    with Workspace(settings.directory) as space:
        argv = [sys.executable, "-m", "benchmarks.mapped", str(space.path), str(areas), str(snapshots)]
        done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise BenchmarkError(f"benchmarks.mapped: {done.stderr[-500:]}")
    return areas, json.loads(done.stdout)
