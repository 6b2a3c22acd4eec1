"""A backlog in the journals that is many times what the processes may have in memory: kept, restarted over, drained.

Size: FARSTRIPE_BACKLOG_MIB (default 2048). `make backlog` runs it with 6 GiB; it takes about three times that on disk.

The limit on memory is RLIMIT_DATA and not what was measured afterwards: a process that wants more gets ENOMEM and fails
the test at that moment. It counts what is private and writable (heap, anonymous mappings, stacks of threads), which is
where a queue would grow, and not the shared mappings and the page cache, which the kernel takes back; RLIMIT_AS would
count the libraries and every mapped file as well, and RLIMIT_RSS does nothing on Linux.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, PROCESSES, Node, Pair, kill_together, wait_until
from tests.testing.stamped import check_nothing_lost, check_prefix
from tests.testing.targetproc import MIB

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

BACKLOG_BYTES = int(os.environ.get("FARSTRIPE_BACKLOG_MIB", "2048")) * MIB
ROOM_BYTES = 128 * MIB
"""What each process may have more than one that has written a little. A tenth of the backlog, at most."""
STACK_BYTES = 2 * MIB
"""Of each thread. They count as memory, and nbdkit has sixteen for each connection."""
PIECE = MIB
DRAIN_S = 600.0
LOOKS = 5
"""Into so many parts the draining is divided; the copy is looked at between them."""
VOLUMES = {"data": 16 * MIB, "bulk": 160 * MIB}


def private_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) << 10


def peak_bytes(pid: int) -> int:
    """The most that was ever resident of a process, shared pages included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@pytest.fixture
def pair() -> Iterator[Pair]:
    needs("nbdkit", "prlimit", root=True)
    with NetNS() as net, Node("A", net) as a, Node("B", net, replication_port=10811) as b:
        pair = Pair.create(a.init(), b.init(), VOLUMES, ["--mode", "async", "--journal", "64M"], journal="64M")
        files = {a: [BACKLOG_BYTES * 5 // 4], b: [BACKLOG_BYTES // 4, BACKLOG_BYTES // 3]}
        for node, sizes in files.items():
            for number, size in enumerate(sizes):
                path = node.dir / f"more{number}"
                node.farstripe("group", "journal", "add", GROUP, path, "--size", size // 4096 * 4096)
        yield pair


def restart(*nodes: Node) -> None:
    """SIGKILL all their processes at once, and start them again."""
    kill_together(*nodes)
    for node in nodes:
        node.start()


def write_bulk(pair: Pair, total: int, seed: int) -> None:
    """Write `total` bytes to the volume `bulk`, over and over, several at a time; no error is tolerated."""
    handle = pair.primary.writer("bulk")
    pieces = [os.urandom(PIECE) for _ in range(4)]
    places = VOLUMES["bulk"] // PIECE
    for number in range(total // PIECE):
        handle.pwrite(pieces[(number + seed) % 4], number % places * PIECE)


def test_a_backlog_of_many_times_the_memory_outlives_both_nodes_and_drains_in_order(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    assert [len(node.group()["journal"]["files"]) for node in (a, b)] == [2, 3]
    for node in (a, b):
        node.limit(stack=STACK_BYTES)
        restart(node)
    pair.wait_in_sync()
    clients = [node.connect("bulk") for node in (a, a, b, b)]
    for number in range(200):  # until every thread has its buffer
        client = clients[number % 4]
        client.pread(PIECE, 0)
        if not client.is_read_only():
            client.pwrite(bytes(PIECE), 0)
    pair.wait_in_sync()
    small = {node: max(private_bytes(node.pid(process)) for process in PROCESSES) for node in (a, b)}
    del clients, client
    for node in (a, b):
        node.limit(stack=STACK_BYTES, data=small[node] + ROOM_BYTES)
        restart(node)
    pair.wait_in_sync()
    at_rest = [peak_bytes(node.pid(process)) for node in (a, b) for process in PROCESSES]
    assert BACKLOG_BYTES >= 10 * ROOM_BYTES

    a.net.ip("link", "set", "lo", "down")  # type: ignore[union-attr]  # both listen there; hosts come by Unix sockets
    load = pair.load("data", seed=3, writes_per_s=400)
    began = time.monotonic()
    half = BACKLOG_BYTES // 2 // PIECE * PIECE
    write_bulk(pair, half, 0)
    load.wait_acked(100)
    load.stop()
    print(f"first half after {time.monotonic() - began:.1f} s")
    restart(a, b)
    print(f"restarted after {time.monotonic() - began:.1f} s")
    load = pair.load("data", seed=4, ledger=load.ledger, writes_per_s=400)
    write_bulk(pair, half, 1)
    load.wait_acked(100)
    load.stop()
    assert a.group()["mode"] == "journal"
    waits = a.group()["journal"]
    print(f"backlog after {time.monotonic() - began:.1f} s", waits)
    restart(a, b)
    print(f"restarted after {time.monotonic() - began:.1f} s")
    assert a.group()["journal"]["first_seq"] == waits["first_seq"], "the backlog was not kept"
    image = b.generations("data", VOLUMES["data"] // 4096)
    missing = [check_prefix(load.ledger, image)]

    a.net.ip("link", "set", "lo", "up")  # type: ignore[union-attr]
    first, last = b.group()["pos"], a.group()["pos"]
    for part in range(1, LOOKS):
        goal = first + (last - first) * part // LOOKS
        wait_until(lambda goal=goal: b.group()["pos"] >= goal, pair.situation, DRAIN_S)  # type: ignore[misc]
        b.pause("replicator")  # what it has is applied; then the copy stands still and can be read
        try:
            wait_until(lambda: b.group()["pos"] == b.group()["applied"], pair.situation)
            seen = check_prefix(load.ledger, b.generations("data", VOLUMES["data"] // 4096))
        finally:
            b.resume("replicator")
        assert seen <= missing[-1], "the copy went back"
        missing.append(seen)
    pair.wait_in_sync(DRAIN_S)
    missing.append(check_prefix(load.ledger, b.generations("data", VOLUMES["data"] // 4096)))
    print(f"drained after {time.monotonic() - began:.1f} s", missing)
    pair.assert_images_equal()
    check_nothing_lost(load.ledger, b.generations("data", VOLUMES["data"] // 4096))
    assert 0 == missing[-1] < missing[-2] < missing[1] < missing[0], f"the copy was not looked at in between: {missing}"
    peaks = [peak_bytes(node.pid(process)) for node in (a, b) for process in PROCESSES]
    print("peaks", [p >> 20 for p in peaks], "at rest", [p >> 20 for p in at_rest], time.monotonic() - began)
