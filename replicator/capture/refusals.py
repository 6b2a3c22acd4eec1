"""Telling that hosts get errors for what peers lack: once, and again while it goes on, but not for every write."""

from __future__ import annotations

import time
from collections.abc import Callable

TELL_AGAIN_S = 60.0


class Refusals:
    """Of one group. Thread-safe, up to an event too many."""

    def __init__(self, group: Callable[[], str], events: Callable[..., None]) -> None:
        """group: its name."""
        self._group, self._events = group, events
        self._tell_again = 0.0

    def tell(self, reason: str) -> None:
        """A write fails for `reason`."""
        now = time.monotonic()
        if now >= self._tell_again:
            self._tell_again = now + TELL_AGAIN_S
            self._events("writes-refused", group=self._group(), reason=reason)
