"""The moves of a balancing plan that are still to be made, and which areas moved lately.

Both are in memory only. Each move is whole and durable by itself, so a plan that ends with the process leaves nothing
unfinished; the next plan begins from what lies where then. A move that cannot be made any more (the volume is gone, the
area lies elsewhere, the group is full) is left out, and so are the later moves of the same plan that rely on it, as far
as they find things other than expected.

Threads: `step` is called by the thread that moves areas, everything else by anybody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from raidlib.balance import Move
from raidlib.errors import NotFound, OutOfSpace, Refused
from raidlib.pool import Pool
from replicator.core.errors import Refused as RefusedOperation
from replicator.eventlog import EventLog

REST_S = 900.0
"""An area that was moved stays for so long: three times the half-life of the rates that a plan is made from."""


class Relocations:
    """The queue."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._queue: deque[Move] = deque()
        self._moved_at: dict[tuple[str, int], float] = {}
        self._planned = 0
        self._moved = 0
        self._left_out: list[str] = []

    def add(self, moves: Sequence[Move]) -> None:
        """Have these moves made, in this order. Raises Refused while others are."""
        with self._lock:
            if self._queue:
                raise RefusedOperation(
                    f"the pool is being balanced: {len(self._queue)} of {self._planned} moves are left",
                    "wait for them, or cancel them: farstripe pool balance --cancel",
                )
            self._queue.extend(moves)
            self._planned, self._moved, self._left_out = len(moves), 0, []
        if moves:
            self._events.add("balance.begun", f"balancing begins: {len(moves)} areas move", moves=len(moves))

    def cancel(self) -> int:
        """Make no more moves; what has moved stays. Returns how many there were."""
        with self._lock:
            left = len(self._queue)
            self._queue.clear()
        if left:
            self._events.add("balance.cancelled", f"balancing was cancelled: {left} moves were left", left=left)
        return left

    def step(self, pool: Pool) -> int:
        """Make one move; returns how many are left. Raises MediumError: that move is lost, the others stay."""
        with self._lock:
            if not self._queue:
                return 0
            move = self._queue[0]
        try:
            moved = pool.relocate(move.volume, move.index, move.source, move.target)
            why, uuid = "" if moved else f"it does not lie on {move.source}", pool.volume(move.volume).uuid
        except (NotFound, OutOfSpace, Refused) as exc:
            return self._finish(move, str(exc), "")
        except BaseException as exc:
            self._finish(move, str(exc), "")
            raise
        return self._finish(move, why, uuid)

    def _finish(self, move: Move, why: str, uuid: str) -> int:
        """A move was made, or left out for a reason; returns how many are left."""
        with self._lock:
            if self._queue and self._queue[0] is move:
                self._queue.popleft()
            left, planned = len(self._queue), self._planned
            if why:
                self._left_out.append(f"area {move.index} of {move.volume} did not move to {move.target}: {why}")
            else:
                self._moved += 1
                self._moved_at[uuid, move.index] = monotonic()
            moved, left_out = self._moved, self._left_out[:20]
        if not left:
            text = f"balancing ended: {moved} of {planned} areas moved"
            self._events.add("balance.done", text, moved=moved, left_out=left_out)
        return left

    def resting(self) -> set[tuple[str, int]]:
        """The areas (uuid of the volume, logical area) that moved lately."""
        since = monotonic() - REST_S
        with self._lock:
            self._moved_at = {key: at for key, at in self._moved_at.items() if at > since}
            return set(self._moved_at)

    def report(self) -> dict[str, Any]:
        """How far it is: moves planned, made, left, and what was left out and why."""
        with self._lock:
            return {
                "planned": self._planned,
                "moved": self._moved,
                "left": len(self._queue),
                "left_out": list(self._left_out),
            }
