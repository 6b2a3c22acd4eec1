"""How far the clocks of peers are from ours: asked now and then, told when it is too much.

Write times need no synchronised clocks, but people compare them: the age of a copy, an image "as of" a time. The
offset is taken in the middle of a question and its answer, so it is known to half of what these took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from replicator.core.errors import FarstripeError
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer

ASK_S = 60.0
MOST_S = 1.0
"""Clocks that are certainly further apart are an event and a remark."""


class Offset(NamedTuple):
    """A peer's clock minus ours, and how far off that may be. Seconds."""

    offset_s: float
    error_s: float

    @property
    def too_far(self) -> bool:
        """Whether the clocks are certainly more than MOST_S apart."""
        return abs(self.offset_s) - self.error_s > MOST_S


def measure(ask: Callable[[], int], wall_ns: Callable[[], int] = time.time_ns) -> Offset:
    """Ask for a clock, in nanoseconds since 1970, and compare it with ours."""
    before = wall_ns()
    theirs = ask()
    after = wall_ns()
    return Offset((theirs - (before + after) / 2) / 1e9, (after - before) / 2e9)


class SkewWatch:
    """A thread that asks every peer."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stop = threading.Event()
        self.offsets: dict[str, Offset] = {}
        """Peer -> what was measured last."""
        self._thread = threading.Thread(target=self._run, name="skew", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(timeout=10)

    def status(self) -> list[dict[str, Any]]:
        """[{peer, offset_s, error_s, too_far}]."""
        return [
            {
                "peer": self._node.pairs.name_of(peer),
                "offset_s": round(found.offset_s, 3),
                "error_s": round(found.error_s, 3),
                "too_far": found.too_far,
            }
            for peer, found in sorted(self.offsets.items())
        ]

    def look(self) -> None:
        """Ask every peer once."""
        for peer in self._node.peers.all():
            try:
                self._node.call(peer, "clock.read", 3.0)  # the second answer comes over a path that is warm
                found = measure(partial(self._ask, peer))
            except (FarstripeError, KeyError, TypeError, ValueError):
                continue
            was = self.offsets.get(peer.node_id)
            self.offsets[peer.node_id] = found
            if found.too_far and not (was and was.too_far):
                self._node.events.add(
                    "clock.skew",
                    f"the clock of {peer.name} is {found.offset_s:+.1f} s from this node's: times of writes, and ages, "
                    "mislead; synchronise the clocks",
                    peer=peer.name,
                )

    def _ask(self, peer: Peer) -> int:
        return int(self._node.call(peer, "clock.read", 3.0)["wall_ns"])

    def _run(self) -> None:
        self._stop.wait(2.0)
        while not self._stop.is_set():
            self.look()
            self._stop.wait(ASK_S)
