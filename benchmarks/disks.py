"""Rows on disks of a known speed: rebuild and scrub against nbdcopy going through one disk.

A disk is an NBD export of nbdkit's file plugin behind its rate filter, a token bucket for reads and one for writes,
that hold a tenth of a second: so the members do not share a disk, as files in one directory do, and a write takes as
long as a read. RATE_BYTES_S is low enough for all of them together to stay far below what an idle machine can do;
nbdcopy on the same disks tells what it can do now.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from benchmarks.load import nbdcopy
from benchmarks.measure import Result, compare
from benchmarks.nodes import Node
from benchmarks.peers import unix_uri
from benchmarks.settings import Settings
from benchmarks.workspace import Workspace, make_file, wait_for

RATE_BYTES_S = 32 << 20
MEMBER_BYTES = 96 << 20
"""Of each member, that rebuild and scrub go through."""
DISK_BYTES = MEMBER_BYTES + (32 << 20)


class Disk:
    """One limited disk; `uri` is its path as a member."""

    def __init__(self, space: Workspace, name: str, size_bytes: int) -> None:
        file, sock = space.path / f"{name}.disk", space.sockets / f"{name}.sock"
        file.touch()
        os.truncate(file, size_bytes)
        self.uri = unix_uri(sock)
        rate = [f"rate={8 * RATE_BYTES_S}", "burstiness=0.1"]
        filters = ["--filter=noextents", "--filter=rate"]
        space.spawn_server(["nbdkit", "-f", "-U", str(sock), *filters, "file", str(file), *rate], sock)


def _pool(space: Workspace, level: str, members: int, data: int) -> tuple[Node, list[str]]:
    """A node with a pool of one group on limited disks, and a thick volume that is full of data."""
    size = MEMBER_BYTES * data
    uris = [Disk(space, f"disk{i}", DISK_BYTES).uri for i in range(members)]
    node = Node(space, "a")
    node.run("pool", "create", "pool", level, *uris)
    node.make_volume("vol", size)
    source = space.path / "source"
    make_file(source, size)
    nbdcopy(str(source), node.uri("vol"))
    source.unlink()
    return node, uris


def rebuild(level: str, members: int, data: int) -> Callable[[Settings], Result]:
    """The speed at which a new disk is filled, against that of nbdcopy from one disk to another."""

    def run(settings: Settings) -> Result:
        with Workspace(settings.directory) as space:
            node, uris = _pool(space, level, members, data)

            def ours() -> float:
                new = _another(space)
                node.run("pool", "fail", uris[-1], "--yes")
                begin = time.monotonic()
                node.ask("pool.replace", old=uris[-1], new=new, force=False)
                wait_for(lambda: _state(node, new) == "in_sync", "the end of the rebuild", 300)
                uris[-1] = new
                return MEMBER_BYTES / (time.monotonic() - begin) / 1e6

            def theirs() -> float:
                return _copied_mb_s(uris[0], _another(space))

            return compare(f"rebuild-disks-{level}", "nbdcopy", "MB/s", ours, theirs, settings.rounds)

    return run


def scrub(level: str, members: int, data: int) -> Callable[[Settings], Result]:
    """The speed at which each disk is scrubbed, all at once, against that at which nbdcopy reads one."""

    def run(settings: Settings) -> Result:
        with Workspace(settings.directory) as space:
            node, uris = _pool(space, level, members, data)

            def ours() -> float:
                begin = time.monotonic()
                node.ask("pool.scrub.start", group=None, mode="check", limit_bytes_s=0)
                wait_for(lambda: _scrubbed(node), "the end of the scrub", 300)
                return MEMBER_BYTES / (time.monotonic() - begin) / 1e6

            def theirs() -> float:
                return _copied_mb_s(uris[0], "null:")

            return compare(f"scrub-disks-{level}", "nbdcopy", "MB/s", ours, theirs, settings.rounds)

    return run


def _another(space: Workspace) -> str:
    """The URI of a new disk."""
    return Disk(space, f"new{random.getrandbits(32):08x}", DISK_BYTES).uri


def _copied_mb_s(source: str, target: str) -> float:
    """Copy a whole disk."""
    begin = time.monotonic()
    nbdcopy(source, target)
    return DISK_BYTES / (time.monotonic() - begin) / 1e6


def _state(node: Node, path: str) -> str:
    members = [one for group in node.ask("pool.status")["groups"] for one in group["members"]]
    return next((str(one["state"]) for one in members if one["path"] == path), "")


def _scrubbed(node: Node) -> bool:
    (scrub,) = node.ask("pool.status")["scrubs"].values()
    return bool(scrub["state"] == "finished")
