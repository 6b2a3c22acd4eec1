"""Statistics of requests, by looking at each volume for a part of the time.

A request that is counted costs about as much Python as a third of a 4 KiB write; so most are not. Time goes in rounds
of a second. At its beginning every volume that somebody uses is watched: each request is noted with its times. A volume
is let alone for the rest of the round once it had its share of requests, so a busy one is watched for some
milliseconds, in which consecutive requests are seen, and a quiet one all the time. What is seen counts in proportion.

What is measured is the time in the pool. A volume in a group is watched where its group writes to the pool: that
includes what a secondary applies, and not what a write waits for its peer.

Off or on is kept in STATE/stats.json. The statistics themselves live as long as the process: rates of minutes.

Invariant: nothing is watched after a round, however it ends.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from nbdplugin.exports import Exports
from nbdplugin.poolhost import PoolHost
from nbdplugin.routes import VolumeRoute
from raidlib.stats import AreaRates, Request
from replicator.eventlog import EventLog
from replicator.journal.files import sync_directory

ROUND_S = 1.0
ROUND_REQUESTS = 512
"""Requests of one volume that are noted in a round."""
ROUND_VOLUMES = 32
"""With more volumes than that in use rounds are longer in proportion, so the cost has a bound."""


class Watch:
    """One volume during one round."""

    def __init__(self, route: VolumeRoute, full: Callable[[], None]) -> None:
        """full: called, perhaps more than once, when no more requests are noted."""
        self.route = route
        self.requests: list[Request] = []
        self._full = full
        self._writes_in_pool = route.group is not None
        self._on = True
        self._began = monotonic()
        if self._writes_in_pool:
            route.volume.watch_writes(self._around(False))
            route.watch(self._around(True), None)
        else:
            route.watch(self._around(True), self._around(False))

    @property
    def is_full(self) -> bool:
        """Whether no more requests are noted."""
        return len(self.requests) >= ROUND_REQUESTS

    def end(self) -> None:
        """Watch no more; calls after the first do nothing."""
        if self._on:
            self._on = False
            self.route.unwatch()
            if self._writes_in_pool:
                self.route.volume.unwatch_writes()

    def seconds(self, now: float) -> float:
        """For how long requests were noted."""
        until = self.requests[-1][3] if self.is_full else now
        return max(until - self._began, 1e-6)

    def _around(self, is_read: bool) -> Callable[[Callable[[Any, int], Any]], Callable[[Any, int], Any]]:
        requests, note, full, most, clock = self.requests, self.requests.append, self._full, ROUND_REQUESTS, monotonic

        def around(inner: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
            def request(buf: Any, off: int) -> Any:
                began = clock()
                result = inner(buf, off)
                if len(requests) < most:
                    note((off, len(buf), began, clock(), is_read))
                else:
                    full()
                return result

            return request

        return around


class Sampling:
    """The statistics of a node's volumes, and the thread that takes them. Methods may be called from any thread."""

    def __init__(self, state_dir: Path, pools: PoolHost, exports: Exports, events: EventLog) -> None:
        self._path = state_dir / "stats.json"
        self._pools = pools
        self._exports = exports
        self._events = events
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._rates: dict[str, AreaRates] = {}
        self._choice = 0
        """Rises whenever somebody switches: a round that began before does not count."""
        self._began = self._counted = monotonic()
        """The time that the rates cover: from the first round to the end of the last one."""
        self.on = _read(self._path)
        """Whether they are."""
        self._thread = threading.Thread(target=self._run, name="statistics", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def switch(self, on: bool) -> None:
        """Count requests, or no longer; what was counted goes in both cases. Durable: the choice."""
        _write(self._path, on)
        with self._lock:
            changed, self.on = self.on != on, on
            self._rates = {}
            self._choice += 1
            self._began = self._counted = monotonic()
        if changed:
            self._events.add("stats.switched", f"statistics of areas are {'on' if on else 'off'}")

    def age_s(self) -> float:
        """How many seconds the rates cover."""
        with self._lock:
            return self._counted - self._began

    def rates(self) -> dict[str, dict[int, Any]]:
        """The rates of every area that had requests lately, by volume (its uuid) and logical area."""
        with self._lock:
            return {uuid: one.rates(self._counted) for uuid, one in self._rates.items()}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except Exception as exc:  # outermost loop: statistics must not end what they describe
                self._events.add("stats.failed", f"statistics of areas: {exc!r}")
                self._stop.wait(60)

    def _round(self) -> None:
        in_use = [
            route for route in self._exports.routes() if route.writers or route.readers or route.group is not None
        ]
        choice, start = self._choice, monotonic()
        until = start + ROUND_S * max(1.0, len(in_use) / ROUND_VOLUMES)
        self._wake.clear()
        if not self.on or not in_use or self._pools.pool is None:
            self._stop.wait(ROUND_S)
            self._count([], choice, start, monotonic())
            return
        watches: list[Watch] = []
        try:
            for route in in_use:
                watches.append(Watch(route, self._wake.set))
            while not self._stop.is_set() and (left_s := until - monotonic()) > 0:
                if self._wake.wait(left_s):
                    self._wake.clear()
                    for watch in watches:
                        if watch.is_full:
                            watch.end()
            now = monotonic()
        finally:
            for watch in watches:
                watch.end()
        self._count(watches, choice, start, now)

    def _count(self, watches: list[Watch], choice: int, start: float, now: float) -> None:
        with self._lock:
            if choice != self._choice:
                return
            if self._counted == self._began:
                self._began = start
            self._counted = now
            known = {route.volume.uuid for route in self._exports.routes()}
            self._rates = {uuid: one for uuid, one in self._rates.items() if uuid in known}
            for watch in watches:
                uuid = watch.route.volume.uuid
                if uuid not in known or not watch.requests:
                    continue
                rates = self._rates.get(uuid)
                if rates is None:
                    rates = self._rates[uuid] = AreaRates(self._pools.require().area_bytes, self._began)
                rates.add(watch.requests[:], (now - start) / watch.seconds(now), now, missed=watch.is_full)
                rates.forget_old(now)


def _read(path: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads(path.read_text(encoding="utf-8")).get("on", True))
    return True


def _write(path: Path, on: bool) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as f:
        json.dump({"on": on}, f)
        f.flush()
        os.fsync(f.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
