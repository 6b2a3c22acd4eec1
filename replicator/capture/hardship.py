"""Host writes that wait, or fail, because the journal has no room or a synchronous peer does not answer.

Every write that meets this knows it, and nobody else does; so what each of them notes is put together here to episodes
that people can be told of: one event when writers have waited for a while, one when the first write fails, one when it
is over. It is over when nobody has noted anything for a while and the cause is gone; that nobody writes any more, after
errors, does not end it.

Pure but for the lock: times are seconds of a monotonic clock and come in. Notes come from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

ROOM, PEER = "room", "peer"
"""What is missing: room in the journal, or the answer of a peer."""
NOTABLE_S = 2.0
"""Writers wait for a moment in every back-pressure; it is told when that has gone on for so long."""
EASE_S = 3.0
"""Notes further apart than this belong to two episodes, and so long the cause has to be gone for one to end."""


class Hardship:
    """The episodes of one group."""

    def __init__(self, events: Callable[..., None], stands: Callable[[str, str], bool]) -> None:
        """events(name, **detail) records what happened. stands(what, peer): whether the cause is still there."""
        self._events, self._stands = events, stands
        self._lock = threading.Lock()
        self._what = self._peer = ""
        self._since = self._last = 0.0
        self._told = False
        self._fails = False
        self.failed = 0
        """Writes that failed so, since this process began."""

    def waits(self, what: str, peer: str, now: float) -> None:
        """A write waits, and has met at `now` that it has to go on waiting for `what` (ROOM, PEER) of node `peer`."""
        with self._lock:
            self._note(what, peer, now)
            news = not self._told and now - self._since >= NOTABLE_S
            self._told = self._told or news
        if news:
            self._events("writers-wait", want=what, peer=peer)

    def fails(self, what: str, peer: str, now: float) -> None:
        """A write was answered with an error for want of `what`."""
        with self._lock:
            self._note(what, peer, now)
            self.failed += 1
            news = not self._fails
            self._told = self._fails = True
        if news:
            self._events("writes-fail", want=what, peer=peer)

    def _note(self, what: str, peer: str, now: float) -> None:
        if not self._told and now - self._last > EASE_S:
            self._since = now
        self._what, self._peer, self._last = what, peer, now

    @property
    def told(self) -> bool:
        """Whether an episode has been told of and not yet its end."""
        return self._told

    def look(self, now: float) -> None:
        """End the episode when it is over. Call it now and then."""
        with self._lock:
            if not self._told or now - self._last < EASE_S:
                return
            if self._stands(self._what, self._peer):
                return
            what, peer, lasted_s = self._what, self._peer, now - self._since
            self._told = self._fails = False
        self._events("writers-go-on", want=what, peer=peer, lasted_s=round(lasted_s, 1))

    def facts(self, now: float) -> dict[str, Any]:
        """Return {waits, fails, what, peer, since_s, failed}: whether writes wait (for a while) or fail, for want of
        what, of which node, since when; and how many have failed since this process began."""
        with self._lock:
            told = self._told
            return {
                "waits": told and not self._fails,
                "fails": self._fails,
                "what": self._what if told else "",
                "peer": self._peer if told else "",
                "since_s": round(now - self._since, 1) if told else None,
                "failed": self.failed,
            }
