"""Real nodes: the pool of a copy gets full while its set takes images in cycles, and gets room again."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator

import nbd
import pytest

from tests.testing.database import free_port, join, standing, with_pool
from tests.testing.nodes import MEMBER_BYTES, Node, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = 24 * MIB
VOLUMES = ("log", "data")


class Scattered:
    """Writes blocks all over the volumes until it is stopped: every area differs from an image soon."""

    def __init__(self, node: Node) -> None:
        self._stop = threading.Event()
        self.written = 0
        self.longest_s = 0.0
        self.error = ""
        self._threads = [threading.Thread(target=self._run, args=(node.writer(v), v)) for v in VOLUMES]
        for thread in self._threads:
            thread.start()

    def _run(self, handle: nbd.NBD, volume: str) -> None:
        rng = random.Random(volume)
        try:
            while not self._stop.wait(0.003):
                began = time.monotonic()
                handle.pwrite(os.urandom(4096), rng.randrange(SIZE // 4096) * 4096)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.written += 1
        except nbd.Error as error:
            self.error = str(error)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)


def free(node: Node) -> int:
    return sum(int(group["free"]) for group in node.ask("target", "pool.status")["groups"])


def ballast(node: Node, name: str, left: int) -> None:
    """Leave so many bytes of the pool free."""
    size = (free(node) - left) // MIB
    node.farstripe("volume", "create", name, "--size", size * MIB)
    handle = node.writer(name)
    for at in range(size):
        handle.pwrite(b"x" * MIB, at * MIB)
    handle.flush()


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    with contextlib.ExitStack() as stack:
        a, b = (with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "AB")
        join(a, b)
        for volume in VOLUMES:
            a.farstripe("volume", "create", volume, "--size", SIZE)
            a.farstripe("group", "create", volume, volume, "--journal", "32M")
            a.farstripe("pair", "create", volume, "--peer", "B", "--mode", "async")
            handle = a.writer(volume)
            for at in range(SIZE // MIB):
                handle.pwrite(os.urandom(MIB), at * MIB)
            a.farstripe("pair", "wait", volume, "--state", "equal", "--timeout", 90)
        a.farstripe("set", "create", "shop", *VOLUMES)
        wait_until(lambda: standing(b) == "whole", lambda: b.ask("replicator", "set.list"))
        yield a, b


def trouble(node: Node) -> str:
    return str(node.ask("replicator", "set.list")[0]["trouble"])


def applied(node: Node) -> list[int]:
    return [int(node.group(volume)["applied"]) for volume in VOLUMES]


def test_images_give_way_to_what_is_received_and_come_back_when_there_is_room(pair: tuple[Node, Node]) -> None:
    a, b = pair
    ballast(b, "ballast", 40 * MIB)  # of 48 that the volumes take
    a.farstripe("set", "cycle", "shop", "--every", 0.5, "--keep", 3)
    load = Scattered(a)
    try:
        wait_until(lambda: "given up" in trouble(b), lambda: b.farstripe("set", "list"))
        before = applied(b)
        wait_until(lambda: all(now > then + 50 for now, then in zip(applied(b), before, strict=True)), b.logs)
        ballast(b, "more", 0)  # and the copies still fit: their areas are there
        b.farstripe("volume", "snapshot", "log=pinned")
        wait_until(lambda: b.group("log")["apply_error"], "a full pool stops nothing")
        assert "APPLY-STOPPED" in b.farstripe("status")
        assert "no free area" in b.farstripe("explain", "log")
        stood = applied(b)[0]
        time.sleep(2.0)
        assert applied(b)[0] == stood and b.group("log")["state"] == "ok"
        disks = [b.dir / f"more{n}" for n in range(2)]
        b.farstripe("pool", "add-group", "second=raid0", *disks, "--make-files", MEMBER_BYTES)
        wait_until(lambda: applied(b)[0] > stood + 50, b.logs)
        assert not load.error and load.longest_s < 8.0, f"{load.error}: a write took {load.longest_s:.1f} s"
        assert {a.group(volume)["mode"] for volume in VOLUMES} == {"journal"}, "the primary gave its journal up"
        b.farstripe("volume", "delete", "pinned", "--yes")
        wait_until(lambda: b.ask("replicator", "set.images", name="shop")["here"], lambda: b.farstripe("set", "list"))
        wait_until(lambda: not trouble(b), lambda: b.farstripe("set", "list"), 20)
    finally:
        load.stop()
    for volume in VOLUMES:
        a.farstripe("pair", "wait", volume, "--state", "equal", "--timeout", 90)
        one, other = a.connect(volume), b.connect(volume)
        assert all(one.pread(MIB, at * MIB) == other.pread(MIB, at * MIB) for at in range(SIZE // MIB))
