"""Virtual time: a heap of events, and a hash over everything that happens."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

KEEP_LINES = 400


class Clock:
    """Runs callbacks in the order of (time, order of scheduling). `now` is seconds since the start of the run."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.now = 0.0
        self.events = 0
        self.after_event: Callable[[], None] = lambda: None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._hash = hashlib.sha256()
        self._verbose = verbose
        self.lines: deque[str] = deque(maxlen=KEEP_LINES)

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` `delay_s` seconds from now."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, action, args))

    def run_until(self, end: float) -> None:
        """Run every event due before `end`; oracles look after each."""
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action, args = heapq.heappop(self._heap)
            self.events += 1
            action(*args)
            self.after_event()
        self.now = max(self.now, end)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now:10.4f} {text}"
        self._hash.update(line.encode())
        self.lines.append(line)
        if self._verbose:
            print(line)

    def trace_hash(self) -> str:
        """Hash of all lines so far."""
        return self._hash.hexdigest()[:16]
