"""Background work on the pool: clearing idle write-intent marks, noticing failed members, moving areas, rebuilding
(rebuilder.py).

Three threads, because a step of a rebuild or move can be long. None holds a lock over its sleep, all end within a step
at stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from nbdplugin.poolhost import PoolHost
from nbdplugin.rebuilder import Rebuilder
from replicator.eventlog import EventLog

TICK_S = 5.0
MOVE_RETRY_S = 30.0
"""A move that found its target full, or a disk that failed, is tried again after this."""
MOVE_SHARE = 0.5
"""Part of the time a move may use: after a step it sleeps in proportion, so hosts keep the rest."""


class Maintenance:
    """The threads; `start` once, `stop` once."""

    def __init__(self, pools: PoolHost, events: EventLog, before_clear: Callable[[], Collection[str]]) -> None:
        """before_clear: makes durable what groups know of changes, before intent marks that cover them go; returns the
        volumes whose marks have to stay."""
        self._pools = pools
        self._before_clear = before_clear
        self._events = events
        self._stop = threading.Event()
        self._move = threading.Event()
        self._states: dict[str, str] = {}
        self._rebuilder = Rebuilder(pools, events)
        self._threads = [
            threading.Thread(target=self._tick_loop, name="maintenance", daemon=True),
            threading.Thread(target=self._move_loop, name="move", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads; a rebuild or move that was under way goes on."""
        self._move.set()
        self._rebuilder.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and wait for them."""
        self._stop.set()
        self._move.set()
        self._rebuilder.stop()
        for thread in self._threads:
            thread.join()

    def rebuild_soon(self) -> None:
        """A member was replaced, taken back or lost: begin."""
        self._rebuilder.soon()

    def move_soon(self) -> None:
        """Areas are to move: begin."""
        self._move.set()

    def _tick_loop(self) -> None:
        while not self._stop.wait(TICK_S):
            pool = self._pools.pool
            if pool is None:
                continue
            try:
                pool.clear_intents(self._before_clear)
                self._notice(pool.status())
            except Exception as exc:  # outermost loop: one bad tick must not end the thread
                self._events.add("pool.maintenance_failed", f"clearing write-intent marks failed: {exc}")
                self._stop.wait(10)

    def _notice(self, status: dict[str, Any]) -> None:
        """Add an event for every member whose state changed since the last look."""
        for group in status["groups"]:
            for member in group["members"]:
                path, state = member["path"], member["state"]
                before = self._states.get(path)
                self._states[path] = state
                if before is not None and before != state:
                    self._events.add(
                        f"member.{state}", f"member {path} of RAID group {group['name']}: {before} → {state}", path=path
                    )
                    self._rebuilder.soon()

    def _move_loop(self) -> None:
        retry_s: float | None = None
        while True:
            self._move.wait(retry_s)
            self._move.clear()
            if self._stop.is_set():
                return
            try:
                if self._pools.pool is not None:
                    self._run_moves(self._pools.pool)
                retry_s = None
            except Exception as exc:  # outermost loop: the move stays in the pool's state, and is tried again
                if retry_s is None:
                    self._events.add("move.stalled", f"moving stopped, and is tried again: {exc}")
                retry_s = MOVE_RETRY_S

    def _run_moves(self, pool: Any) -> None:
        under_way = {move["volume"] for move in pool.moves()}
        draining = _draining(pool)
        while not self._stop.is_set():
            began = time.monotonic()
            remaining = self._pools.move_step()
            left = {move["volume"] for move in pool.moves()}
            for name in sorted(under_way - left):
                self._events.add("move.done", f"{name} has moved", name=name)
            under_way = left
            now = _draining(pool)
            for name in sorted(draining - {group["name"] for group in pool.status()["groups"]}):
                self._pools.group_gone(name)
            draining = now
            if not remaining:
                return
            took = time.monotonic() - began
            self._stop.wait(min(took * (1 - MOVE_SHARE) / MOVE_SHARE, 1.0))


def _draining(pool: Any) -> set[str]:
    """Names of the RAID groups that are being removed."""
    return {group["name"] for group in pool.status()["groups"] if group["draining"]}
