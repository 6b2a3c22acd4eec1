"""One thread for all groups of a node: keeps the clock's reserve ahead, sends beacons out, raises the bounds of sets.

A beacon says, under the group's lock, "everything up to this time has a seq up to this one", so that a group nobody
writes to does not hold others back (H1-03). On a secondary it says on what the primary said. It goes out with the
next BEAT.

Costs a look at a few counters for each group and tick, and a lock for each beacon; nothing when no peer listens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from replicator.capture.clock import WriteClock
from replicator.capture.engine import GroupEngine
from replicator.capture.service import GroupService
from replicator.capture.sets import SetHost
from replicator.capture.state import JOURNAL, PRIMARY
from replicator.core.errors import FarstripeError
from replicator.journal.beacons import look, publish
from replicator.journal.page import ARRIVED_GEN, BEACON_GEN, BEACON_PACE_MS, BEACON_TIME, HEAD_SEQ

TICK_S = 0.1
LAZY_TICK_S = 0.5
"""The same on a node without sets."""
BEACON_S = 1.0
SET_BEACON_S = 0.2
"""The same for a group of a set that orders by time, whose other groups wait for it."""
Note = Callable[[str, str], None]


class Cutter:
    """The thread. `groups` lists the services that exist now."""

    def __init__(
        self, clock: WriteClock, sets: SetHost, groups: Callable[[], Iterable[GroupService]], note: Note
    ) -> None:
        """note(kind, text): records what happened."""
        self._clock, self._sets, self._groups, self._note = clock, sets, groups, note
        self._stop = threading.Event()
        self._due: dict[str, float] = {}
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(TICK_S if self._sets.any else LAZY_TICK_S):
            try:
                self.tick(time.monotonic())
            except (FarstripeError, OSError) as exc:  # of one group's journal, which has failed and says so itself
                self._say("cutter.failed", f"consistency sets do not move: {exc}")

    def tick(self, now: float) -> None:
        """Do what is due at `now`, in seconds of a monotonic clock."""
        sent = False
        for service in self._groups():
            sent = self._beacon(service.engine, now) or sent
        if sent and self._clock.wants_extending and not self._clock.extend():
            self._say("clock.unreserved", self._clock.error)
        self._sets.tick()

    def _beacon(self, engine: GroupEngine, now: float) -> bool:
        """Publish a group's beacon when it is due."""
        uuid = engine.state.uuid
        if now < self._due.get(uuid, 0.0):
            return False
        in_set = self._sets.wants_beacons(uuid)
        pace_s = SET_BEACON_S if in_set else BEACON_S
        self._due[uuid] = now + pace_s - TICK_S / 2  # so that it is not a tick late
        pace_ms = int(pace_s * 1000) if in_set else 0
        if engine.page[BEACON_PACE_MS] != pace_ms:
            engine.page[BEACON_PACE_MS] = pace_ms
            engine.ring_replicators()  # a link that rests would not look for half a minute
        return publish_beacon(engine)

    def _say(self, kind: str, text: str) -> None:
        """Report something once, until something else is reported."""
        if text != self._said:
            self._said = text
            self._note(kind, text)


def publish_beacon(engine: GroupEngine) -> bool:
    """State a new time on a primary that journals for a peer; say on, on a secondary, what its primary stated."""
    u64 = engine.page.u64
    if engine.state.role != PRIMARY:
        if look(u64, ARRIVED_GEN).time_ns != u64[BEACON_TIME]:
            with engine.lock:  # under which another history is taken up
                if engine.state.role != PRIMARY:
                    publish(u64, BEACON_GEN, *look(u64, ARRIVED_GEN))
        return False
    if not engine.linked or engine.state.mode != JOURNAL or engine.failed:
        return False
    with engine.lock:
        if engine.state.role != PRIMARY or engine.state.mode != JOURNAL:
            return False
        publish(u64, BEACON_GEN, u64[HEAD_SEQ], engine.clock.next())
    return True
