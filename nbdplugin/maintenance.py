"""Background work on the pool: clearing idle write-intent marks, noticing failed members, rebuilding (rebuilder.py).

Two threads, because a rebuild step can be long. Neither holds a lock over its sleep, both end within a step at stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nbdplugin.poolhost import PoolHost
from nbdplugin.rebuilder import Rebuilder
from replicator.eventlog import EventLog

TICK_S = 5.0


class Maintenance:
    """The threads; `start` once, `stop` once."""

    def __init__(self, pools: PoolHost, events: EventLog, before_clear: Callable[[], None]) -> None:
        """before_clear: makes durable what groups know of changes, before intent marks that cover them go."""
        self._pools = pools
        self._before_clear = before_clear
        self._events = events
        self._stop = threading.Event()
        self._states: dict[str, str] = {}
        self._rebuilder = Rebuilder(pools, events)
        self._thread = threading.Thread(target=self._tick_loop, name="maintenance", daemon=True)

    def start(self) -> None:
        """Start both threads; a rebuild that was under way goes on."""
        self._rebuilder.start()
        self._thread.start()

    def stop(self) -> None:
        """End both threads and wait for them."""
        self._stop.set()
        self._rebuilder.stop()
        self._thread.join()

    def rebuild_soon(self) -> None:
        """A member was replaced, taken back or lost: begin."""
        self._rebuilder.soon()

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
