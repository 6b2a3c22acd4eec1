"""The rows that need a pair: replicated writes, resync, shipping, takeover, memory."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.load import Load, fio, nbdcopy
from benchmarks.measure import Result, against_limit, compare
from benchmarks.pair import GROUP, VOLUME, Pair
from benchmarks.peers import FilePlugin, QemuMirror
from benchmarks.settings import Settings
from benchmarks.workspace import BenchmarkError, Workspace, settle
from nbdplugin.ops_group import DEFAULT_JOURNAL_BYTES

QEMU_GRANULARITY = 65536  # QEMU's own default for a raw image
RECORD_BYTES = 64 << 10
TAKEOVER_LIMIT_S = 2.0
MEMORY_LIMIT_MB = 200.0
SHIPPING_FLOOR_MB_S, SHIPPING_ZSTD_FLOOR_MB_S = 500.0, 150.0


def async_against_file(settings: Settings) -> Result:
    """A volume replicated asynchronously against nbdkit's file plugin, which replicates nothing."""
    load = Load("randwrite", 4096, 32)
    with Workspace(settings.directory) as space:
        peer = FilePlugin(space, "peer", settings.size_bytes)
        pair = Pair(space, settings.size_bytes, "async")
        nbdcopy(str(peer.file), pair.uri)

        def ours() -> float:
            pair.drain()
            settle(space.path)
            return fio(pair.uri, load, settings.seconds, settings.size_bytes).iops

        def theirs() -> float:
            pair.drain()
            settle(space.path)
            return fio(peer.uri, load, settings.seconds, settings.size_bytes).iops

        return compare("async-randwrite-4k", "nbdkit file plugin", "IOPS", ours, theirs, settings.rounds)


def _against_mirror(name: str, settings: Settings, mode: str, copy_mode: str, depth: int) -> Result:
    load = Load("randwrite", 4096, depth)
    with Workspace(settings.directory) as space:
        mirror = QemuMirror(space, "qemu", settings.size_bytes, copy_mode, QEMU_GRANULARITY)
        pair = Pair(space, settings.size_bytes, mode)
        nbdcopy(str(mirror.file), pair.uri)

        def run(uri: str) -> float:
            pair.drain()
            mirror.drain()
            settle(space.path)
            return fio(uri, load, settings.seconds, settings.size_bytes).iops

        peer_name = f"QEMU {copy_mode} mirror to an NBD export"
        return compare(name, peer_name, "IOPS", lambda: run(pair.uri), lambda: run(mirror.uri), settings.rounds)


def async_against_mirror(settings: Settings) -> Result:
    """Asynchronous replication against QEMU's background mirror."""
    return _against_mirror("async-randwrite-4k-vs-qemu-mirror", settings, "async", "background", 32)


def sync_against_mirror(depth: int) -> Callable[[Settings], Result]:
    """Synchronous replication against QEMU's write-blocking mirror, with `depth` requests in flight."""

    def run(settings: Settings) -> Result:
        return _against_mirror(f"sync-randwrite-4k-qd{depth}", settings, "sync", "write-blocking", depth)

    return run


def resync(settings: Settings) -> Result:
    """Resync of a volume whose every block has changed, against nbdcopy of the same bytes between two file plugins."""
    size = settings.resync_bytes
    with Workspace(settings.directory) as space:
        source, target = FilePlugin(space, "source", size), FilePlugin(space, "target", size)
        # A journal of the default size does not hold what is written during the split: the difference is a bitmap.
        pair = Pair(space, size, "async", journal_bytes=DEFAULT_JOURNAL_BYTES)

        def ours() -> float:
            pair.a.run("pair", "split", GROUP)
            nbdcopy(str(source.file), pair.uri)
            settle(space.path)
            begin = time.monotonic()
            pair.a.run("pair", "resync", GROUP)
            pair.wait_paired()
            return size / (time.monotonic() - begin) / 1e6

        def theirs() -> float:
            settle(space.path)
            return size / nbdcopy(source.uri, target.uri) / 1e6

        ours()  # as nbdcopy's target, our second node's files have been written through once then
        return compare("resync-1g", "nbdcopy", "MB/s", ours, theirs, settings.rounds)


def shipping(compress_level: int) -> Callable[[Settings], Result]:
    """Journal shipping: a backlog of 64 KiB records, in bytes per second of processor time of the busier replicator."""

    def run(settings: Settings) -> Result:
        name = "ship-64k-zstd" if compress_level else "ship-64k"
        backlog = min(settings.size_bytes, 512 << 20)
        with Workspace(settings.directory) as space:
            pair = Pair(space, settings.size_bytes, "async", compress_level=compress_level)
            payload = space.path / "payload"
            write_compressible(payload, backlog)
            rates, walls = [], []
            for _ in range(min(3, settings.rounds)):
                pair.drain()
                pair.a.kill("replicator")
                nbdcopy(str(payload), pair.uri, request_bytes=RECORD_BYTES)
                pair.a.start()
                before = pair.b.cpu_seconds("replicator")
                wall = pair.seconds_until_received()
                busiest = max(pair.a.cpu_seconds("replicator"), pair.b.cpu_seconds("replicator") - before)
                rates.append(backlog / max(busiest, 0.01) / 1e6)
                walls.append(backlog / wall / 1e6)
            limit = SHIPPING_ZSTD_FLOOR_MB_S if compress_level else SHIPPING_FLOOR_MB_S
            result = against_limit(name, limit, "the bar", "MB/s", statistics.median(rates), lower_is_better=False)
            return replace(result, note=f"{statistics.median(walls):.0f} MB/s by the clock")

    return run


def write_compressible(path: Path, size_bytes: int) -> None:
    """Create a file of `size_bytes` that looks like a log: zstd makes about a third of it."""
    rng = random.Random(1)
    lines = [
        f"{rng.getrandbits(48):012x} request {rng.randrange(10**6)} served in {rng.random():.6f} s\n"
        for _ in range(40000)
    ]
    block = "".join(lines).encode()
    with path.open("wb") as f:
        left = size_bytes
        while left:
            left -= f.write(block[: min(left, len(block))])


def takeover(settings: Settings) -> Result:
    """Kill the primary under load; seconds from the takeover command on B to the first write answered there."""
    times = []
    for _ in range(min(3, settings.rounds)):
        with Workspace(settings.directory) as space:
            pair = Pair(space, settings.size_bytes, "async")
            load = threading.Thread(target=_load_until_killed, args=(pair, settings))
            load.start()
            time.sleep(min(settings.seconds, 2.0))
            for process in ("target", "replicator"):
                pair.a.kill(process)
            load.join()
            begin = time.monotonic()
            pair.b.run("takeover", GROUP, "--yes")
            _first_write(pair)
            times.append(time.monotonic() - begin)
    return against_limit(
        "takeover-first-write", TAKEOVER_LIMIT_S, "the bar", "s", statistics.median(times), lower_is_better=True
    )


def _load_until_killed(pair: Pair, settings: Settings) -> None:
    try:
        fio(pair.uri, Load("randwrite", 4096, 32), settings.seconds * 3 + 10, settings.size_bytes)
    except BenchmarkError:
        pass  # the server was killed, which is the point


def _first_write(pair: Pair) -> None:
    fio(pair.b.uri(VOLUME), Load("randwrite", 4096, 1), 0, 4096)


def memory(settings: Settings) -> Result:
    """The most memory a replicator had resident while it worked off a backlog and then a resync."""
    with Workspace(settings.directory) as space:
        pair = Pair(space, settings.size_bytes, "async", journal_bytes=DEFAULT_JOURNAL_BYTES)
        payload = space.path / "payload"
        write_compressible(payload, settings.size_bytes)
        pair.b.kill("replicator")
        nbdcopy(str(payload), pair.uri)
        pair.b.start()
        pair.wait_paired()
        pair.a.run("pair", "split", GROUP)
        nbdcopy(str(payload), pair.uri)
        pair.a.run("pair", "resync", GROUP)
        pair.wait_paired()
        peak = max(node.peak_memory_bytes("replicator") for node in (pair.a, pair.b)) / 1e6
        return against_limit("replicator-memory", MEMORY_LIMIT_MB, "the bar", "MB", peak, lower_is_better=True)
