"""A database on real nodes whose copies belong together, and what is needed to set such nodes up and judge them.

The load is what a database does: a block of the log, then the block of the data that it announces, each only after
the one before was answered. Both hold the number of the transaction, so images are judged by what they hold: data
that was never announced is a cut through time.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

import nbd

from tests.testing.nodes import MEMBER_BYTES, Node

BLOCK, SLOTS = 4096, 64
SIZE = 8 << 20
_NUMBER = struct.Struct("<Q")
HOLDER = """d={0}; rm -f $d/held; touch $d/hold; trap 'rm -f $d/hold' EXIT
while [ ! -e $d/held ]; do sleep 0.01; done; echo held; read word && echo released"""
"""Has a Database hold, as farstripe-freeze has filesystems."""


class Database:
    """Commits transactions to a log on one node and data on the same or another one until it is stopped or cut off."""

    def __init__(self, log: nbd.NBD, data: nbd.NBD, hold: Path | None = None, pause_s: float = 0.0) -> None:
        """hold: a file; while it is there no transaction is begun, which a file `held` beside it says.
        pause_s: rest after each transaction, for who does not want the journals to fill."""
        self._log, self._data, self._hold, self._pause_s = log, data, hold, pause_s
        self._stop = threading.Event()
        self.committed = 0
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(nbd.Error):
            for number in range(1, 1 << 40):
                while self._hold is not None and self._hold.exists() and not self._stop.is_set():
                    self._hold.with_name("held").touch()
                    time.sleep(0.002)
                if self._stop.is_set():
                    return
                block, began = _NUMBER.pack(number).ljust(BLOCK, b"\0"), time.monotonic()
                self._log.pwrite(block, number % SLOTS * BLOCK)
                self._data.pwrite(block, number % SLOTS * BLOCK)
                self.committed, self.longest_s = number, max(self.longest_s, time.monotonic() - began)
                if self._pause_s:
                    time.sleep(self._pause_s)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30)


def newest(node: Node, volume: str) -> int:
    """The newest transaction in a volume, which must hold all before it."""
    raw = node.connect(volume).pread(SLOTS * BLOCK, 0)
    found = {number for at in range(SLOTS) if (number := _NUMBER.unpack_from(raw, at * BLOCK)[0])}
    top = max(found, default=0)
    assert found == set(range(max(1, top - SLOTS + 1), top + 1)), f"{volume} holds no prefix of its writes"
    return top


def judge(log: tuple[Node, str], data: tuple[Node, str]) -> int:
    """Raise unless the two images are of one instant. Returns the newest transaction in the data."""
    announced, done = newest(*log), newest(*data)
    assert announced - 1 <= done <= announced, f"the data is at {done}, the log at {announced}"
    return done


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_pool(node: Node) -> Node:
    node.init()
    disks = [node.dir / f"disk{n}" for n in range(2)]
    node.farstripe("pool", "create", "pool", "raid0", *disks, "--make-files", MEMBER_BYTES)
    return node


def join(a: Node, b: Node) -> None:
    a.farstripe("peer", "join", b.farstripe("peer", "token").split()[-1])


def replicate(source: Node, volume: str, sink: Node, *options: object) -> None:
    """A group of its own for a volume, copied to `sink`."""
    source.farstripe("volume", "create", volume, "--size", SIZE)
    source.farstripe("group", "create", volume, volume, "--journal", "16M")
    source.farstripe("pair", "create", volume, "--peer", sink.name, *options)
    source.farstripe("pair", "wait", volume, "--state", "ok")


def standing(node: Node, name: str = "shop") -> str:
    listed = [one for one in node.ask("replicator", "set.list") if one["name"] == name]
    return str(listed[0]["standing"]) if listed else ""
