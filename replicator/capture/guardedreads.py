"""Reads of a group that may be synchronous: after each, a look whether it met a write that still waits for its peers.

The look costs a call and the test of an empty dict, and only volumes of a group with a synchronous edge pay it: their
reads are guarded before the first write waits, and every read that began unguarded has ended by then. So what a read
returns was either in the pool before that, or has its entry (unanswered.py) until it may be told.

Invariant: while `GroupEngine.waits` is not empty, `on` is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from replicator.capture import edges
from replicator.capture.engine import GroupEngine
from replicator.capture.state import Edge


class GuardedReads:
    """Of one group. Thread-safe."""

    def __init__(self, engine: GroupEngine, wait_peers: Callable[[int, bool], None]) -> None:
        """wait_peers(seq, durable): returns when a write of that seq may be answered, or raises as that does."""
        self._engine = engine
        self._wait_peers = wait_peers
        self._changing = threading.Lock()
        self.unanswered = engine.unanswered.entries
        """While it is not empty a guarded read calls `settle`."""
        self.on = self._wanted()
        """Reads are to be guarded. Who serves a further volume looks here after he has made it known to `install`."""
        self.install: Callable[[bool], None] = _unread
        """Guards the reads of all volumes, or no longer. Returns when none is under way that began unguarded; raises
        TimedOut."""

    def settle(self, volume: int, offset: int, length: int) -> bool:
        """Wait until what was just read there (bytes) may be told; returns whether there was anything to wait for.

        Raises what the write would: MediumError, Refused.
        """
        engine, waits = self._engine, None
        found = engine.unanswered.over(volume, offset, length)
        while found and waits != engine.waits:  # one more peer may become synchronous meanwhile
            waits = engine.waits
            for seq, durable in found:
                self._wait_peers(seq, durable or engine.state.policy.ack == "durable")
        return bool(found)

    def _wanted(self) -> bool:
        return any(edge.mode == "sync" for edge in self._engine.state.edges)

    def set_sync(self, edge: Edge, on: bool) -> dict[str, Any]:
        """See edges.set_sync; reads are guarded first."""
        with self._changing:
            if on and not self.on:
                self.on = True
                try:
                    self.install(True)
                except BaseException:
                    self.on = False
                    raise
            return edges.set_sync(self._engine, edge, on)

    def relax(self) -> None:
        """Guard no longer when no edge can be synchronous any more."""
        with self._changing:
            if self.on and not self._wanted():
                self.on = False
                self.install(False)


def _unread(on: bool) -> None:
    """Nobody reads."""
