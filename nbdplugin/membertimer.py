"""The thread that looks how long members take for reads and writes (raidlib/looks.py), and tells of slow ones.

Time goes in rounds of five seconds. A look begins with the round and ends when enough requests were noted, or with the
round: a busy pool is looked at for some milliseconds of it, a quiet one always. A member that is slow beside the others
of its group stays in use: what to do with it is the operator's choice.
"""

from __future__ import annotations

import threading
from time import monotonic

from nbdplugin.poolhost import PoolHost
from raidlib.pool import Pool
from replicator.eventlog import EventLog

ROUND_S = 5.0


class MemberTimer:
    """The thread; `start` once, `stop` once."""

    def __init__(self, pools: PoolHost, events: EventLog) -> None:
        self._pools = pools
        self._events = events
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._slow: set[str] = set()
        """Paths of the members that were slow in the last round."""
        self._thread = threading.Thread(target=self._loop, name="member times", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; nothing is timed any more."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            began = monotonic()
            try:
                if (pool := self._pools.pool) is not None:
                    self._look(pool)
            except Exception as exc:  # outermost loop: measuring must not end what it measures
                self._events.add("member.times_failed", f"how long members take: {exc!r}")
            self._stopping.wait(max(began + ROUND_S - monotonic(), 0.0))

    def _look(self, pool: Pool) -> None:
        self._wake.clear()
        look = pool.look_at_members(self._wake.set)
        try:
            if not self._stopping.is_set():
                self._wake.wait(ROUND_S)
        finally:
            look.end()
        members = [member for group in pool.status()["groups"] for member in group["members"]]
        slow = {member["path"]: member["slow"] for member in members if member["slow"]}
        for path in slow.keys() - self._slow:
            self._events.add("member.slow", f"{path} is slow: {slow[path]}", path=path)
        self._slow = set(slow)
