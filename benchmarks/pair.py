"""Two of our nodes on loopback with one volume paired from A to B."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.nodes import Node
from benchmarks.workspace import BenchmarkError, Workspace, wait_for
from replicator.journal.page import (
    EDGE_APPLIED_SEQ,
    EDGE_LINK,
    EDGE_RECEIVED_SEQ,
    HEAD_SEQ,
    LINK_STREAMING,
    Page,
    edge_slot,
)

GROUP, VOLUME = "group", "vol"
JOURNAL_BYTES = 1 << 30
APPLIED, RECEIVED, LINK = (edge_slot(0, what) for what in (EDGE_APPLIED_SEQ, EDGE_RECEIVED_SEQ, EDGE_LINK))


class Pair:
    """Nodes `a` (primary) and `b`, their link running, the copy equal."""

    def __init__(
        self,
        space: Workspace,
        size_bytes: int,
        mode: str,
        compress_level: int = 0,
        journal_bytes: int = JOURNAL_BYTES,
    ) -> None:
        """Make both nodes with a RAID-0 of four files each, a volume of `size_bytes`, and pair it.

        mode: "async" or "sync"; compress_level: of zstd on the wire, 0 for none.
        """
        self._wanted = "sync" if mode == "sync" else "ok"
        self.a, self.b = Node(space, "a"), Node(space, "b")
        for node in (self.a, self.b):
            node.make_pool("raid0", 4, size_bytes // 4 + (64 << 20))
        self.a.make_volume(VOLUME, size_bytes)
        self.a.run("group", "create", GROUP, VOLUME, "--journal", str(journal_bytes))
        token = self.b.run("peer", "token")["token"]
        self.a.run("peer", "join", token)
        self.a.run("pair", "create", GROUP, "--peer", "b", "--mode", mode, "--compress", str(compress_level))
        self.wait_paired()
        uuid = self.group_status()["uuid"]
        self.page = Page.map(self.a.run_dir / f"{uuid}.page")
        self.uri = self.a.uri(VOLUME)

    def group_status(self) -> dict[str, Any]:
        """What node A says of the group."""
        for group in self.a.run("group", "list"):
            if group["name"] == GROUP:
                return dict(group)
        raise BenchmarkError("the group is gone")

    def wait_paired(self, timeout_s: float = 300) -> None:
        """Wait until the copy on B is consistent and follows, in sync mode so that every write waits for it."""
        self.a.run(
            "pair", "wait", GROUP, "--state", self._wanted, "--timeout", str(timeout_s), timeout_s=timeout_s + 10
        )

    def backlog(self) -> int:
        """Records that B has not applied yet."""
        return self.page[HEAD_SEQ] - self.page[APPLIED]

    def drain(self, timeout_s: float = 120) -> None:
        """Wait until B has applied everything, so that the next run does not inherit this one's backlog."""
        wait_for(lambda: self.backlog() <= 0, "node B applies what it was sent", timeout_s)

    def seconds_until_received(self, timeout_s: float = 300) -> float:
        """Seconds from the link's start of streaming until B has received everything."""
        page = self.page
        end = time.monotonic() + timeout_s
        begin = 0.0
        first = page[RECEIVED]
        while page[RECEIVED] < page[HEAD_SEQ]:
            if not begin and (page[LINK] == LINK_STREAMING or page[RECEIVED] > first):
                begin = time.monotonic()
            if time.monotonic() > end:
                raise BenchmarkError(f"node B has not received everything within {timeout_s:g} s")
            time.sleep(0.001)
        return time.monotonic() - (begin or end - timeout_s)
