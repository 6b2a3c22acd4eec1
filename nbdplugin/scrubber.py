"""Scrubbing in the background, and telling of corruption that anybody found.

One thread: it does the pool's scrub steps with the rests they ask for, and now and then looks whether members have
more checksum errors than before, whoever met them. It holds no lock over its rests and ends within a step at stop.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from nbdplugin.poolhost import PoolHost
from raidlib.errors import MediumError
from raidlib.pool import Pool
from raidlib.scrub import COUNTS
from replicator.eventlog import EventLog

LOOK_S = 5.0


class Scrubber:
    """The thread; `start` once, `stop` once."""

    def __init__(self, pools: PoolHost, events: EventLog) -> None:
        self._pools = pools
        self._events = events
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._looked_at = 0.0
        self._corrupt: dict[str, int] = {}
        self._seen: dict[str, tuple[float, str]] = {}
        """When each group's scrub began and the state that was told of last."""
        self._begun_at = time.time()
        self._thread = threading.Thread(target=self._loop, name="scrub", daemon=True)

    def start(self) -> None:
        """Start the thread; a scrub that was under way goes on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def soon(self) -> None:
        """An order was given: act on it now, and tell."""
        self._looked_at = 0.0
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            rest = LOOK_S
            try:
                rest = self._turn()
            except MediumError as exc:
                self._events.add("scrub.paused", f"scrub paused: {exc.message}")
            except Exception as exc:  # outermost loop: the next turn may do better
                self._events.add("scrub.failed", f"scrub stopped for a while: {exc}")
            if self._wake.wait(rest):
                self._wake.clear()

    def _turn(self) -> float:
        """Do one step if there is one to do; return the seconds to rest."""
        pool = self._pools.pool
        if pool is None:
            return LOOK_S
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look(pool)
        done, rest = pool.scrub_step()
        if not done:
            self._look(pool)
            return LOOK_S
        return rest

    def _look(self, pool: Pool) -> None:
        self._looked_at = time.monotonic()
        status = pool.status()
        for group in status["groups"]:
            for member in group["members"]:
                self._look_at_member(group["name"], member["path"], member["since_open"]["checksum_errors"])
        for name, scrub in status["scrubs"].items():
            if scrub["state"]:
                self._look_at_scrub(name, scrub)

    def _look_at_member(self, group: str, path: str, count: int) -> None:
        more = count - self._corrupt.get(path, 0)
        self._corrupt[path] = count
        if more > 0:
            text = f"member {path} of RAID group {group} gave wrong bytes: {more} blocks did not fit their checksums"
            self._events.add("member.corrupt", text, path=path, blocks=more)

    def _look_at_scrub(self, name: str, scrub: dict[str, Any]) -> None:
        seen, now = self._seen.get(name), (scrub["started"], scrub["state"])
        self._seen[name] = now
        if now == seen or (seen is None and scrub["state"] != "running" and scrub["started"] < self._begun_at):
            return
        if scrub["state"] == "running" or seen is None or seen[0] != now[0]:
            how = "goes on" if scrub["state"] == "running" and scrub["bytes_read"] else "started"
            self._events.add("scrub.started", f"scrub of RAID group {name} ({scrub['mode']}) {how}", group=name)
        if scrub["state"] != "running":
            found = ", ".join(f"{scrub[key]} {key.replace('_', ' ')}" for key in COUNTS if scrub[key])
            text = f"scrub of RAID group {name} {scrub['state']}: {found or 'nothing was wrong'}"
            self._events.add(f"scrub.{scrub['state']}", text, group=name, **{key: scrub[key] for key in COUNTS})
