"""The thread that restores redundancy: it lets spares take over, and does the steps of rebuilds and replacements.

Two brakes. A limit in bytes per second that the operator sets (0: none), and way for the hosts: while requests come in,
a rebuild uses only HOST_SHARE of the time; alone it runs as fast as the members do.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from nbdplugin.poolhost import PoolHost
from raidlib.pool import Pool
from replicator.eventlog import EventLog

LOOK_S = 1.0
"""Between two looks for a member that was lost and a spare to take its place."""
HOST_SHARE = 0.5
RATE_SPAN_S = 5.0
"""Over about how long the speed shown is averaged."""


class Rebuilder:
    """The thread; `start` once, `stop` once."""

    def __init__(self, pools: PoolHost, events: EventLog) -> None:
        self._pools = pools
        self._events = events
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._remarks = 0
        self._rate_bytes_s = 0.0
        self._requests = 0
        self._thread = threading.Thread(target=self._loop, name="rebuild", daemon=True)
        pools.rebuild_speed = lambda: self._rate_bytes_s

    def start(self) -> None:
        """A rebuild that was under way goes on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def soon(self) -> None:
        """There may be work: begin."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            pool = self._pools.pool
            if pool is not None:
                try:
                    self._let_spares_take_over()
                    self._run(pool)
                except Exception as exc:  # outermost loop: the pool stays degraded, and says so
                    self._events.add("rebuild.failed", f"rebuild stopped: {exc}")
                    self._stop.wait(10)
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _let_spares_take_over(self) -> None:
        while not self._stop.is_set() and (taken := self._pools.take_spare()) is not None:
            lost, spare = taken
            self._events.add("spare.taken", f"spare {spare} takes the place of member {lost}", path=spare, lost=lost)

    def _run(self, pool: Pool) -> None:
        work = pool.rebuilds
        self._tell_remarks(pool)
        if not work:
            self._rate_bytes_s = 0.0
            return
        began = time.monotonic()
        self._events.add("rebuild.started", f"{_named(work)} started", members=[one["member"] for one in work])
        copied: dict[str, int] = {}
        while not self._stop.is_set() and self._pools.pool is pool:
            at = time.monotonic()
            before = sum(copied.values())
            remaining = pool.rebuild_step()
            work = pool.rebuilds
            copied.update({one["member"]: one["copied_bytes"] for one in work})
            if not remaining:
                break
            self._pause(pool, sum(copied.values()) - before, time.monotonic() - at, at)
            if pool.wants_spare:
                self._let_spares_take_over()
        else:
            return
        self._tell_remarks(pool)
        took = time.monotonic() - began
        self._events.add("rebuild.done", f"rebuild finished after {took:.1f} s, {pool.rebuilt_bytes} bytes copied")

    def _pause(self, pool: Pool, done_bytes: int, took_s: float, began: float) -> None:
        """Give way as both brakes want, and note the speed."""
        requests = pool.requests
        busy, self._requests = requests != self._requests, requests
        pause_s = min(took_s * (1 - HOST_SHARE) / HOST_SHARE, 1.0) if busy else 0.0
        if limit := self._pools.rebuild_limit_bytes_s:
            pause_s = max(pause_s, done_bytes / limit - took_s)
        if pause_s > 0:
            self._stop.wait(pause_s)
        span = max(time.monotonic() - began, 1e-6)
        weight = min(1.0, span / RATE_SPAN_S) if self._rate_bytes_s else 1.0
        self._rate_bytes_s += weight * (done_bytes / span - self._rate_bytes_s)

    def _tell_remarks(self, pool: Pool) -> None:
        """What became of replacements that did not come off."""
        remarks = pool.member_remarks
        for remark in remarks[self._remarks :]:
            self._events.add("member.remark", remark)
        self._remarks = len(remarks)


def _named(work: list[dict[str, Any]]) -> str:
    kinds = []
    for one in work:
        what = "copy of what it missed to" if one["by_difference"] else "rebuild of"
        kinds.append(
            f"replacement of {one['replaces']} by {one['member']}" if one["replaces"] else f"{what} {one['member']}"
        )
    return ", ".join(kinds)
