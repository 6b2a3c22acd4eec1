"""Knowing when every call that may hold an old view of a map is over, at next to no cost to those calls.

A call enters and leaves; wait() returns when every call that had entered before it has left. That is sleepable RCU
(Linux, kernel/rcu/srcutree.c) with two pairs of counters. itertools.count is the counter because its step is one
atomic C call under the interpreter lock: about 30 ns, no lock, no allocation.

Reader:                                     Waiter: first unmap, then wait(), then reuse.
    enter, leave = gate.pair
    enter()
    try: look up the map, do the I/O
    finally: leave()

Invariant: a reader looks at the map after enter(). So a reader that wait() does not see started after the unmapping.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

Pair = tuple[Callable[[], int], Callable[[], int]]


class Gate:
    """Counts calls in flight. `pair` is (enter, leave) for a call that starts now."""

    __slots__ = ("_counters", "_current", "_lock", "_pairs", "pair")

    def __init__(self) -> None:
        self._counters = [(itertools.count(), itertools.count()) for _ in range(2)]
        self._pairs: list[Pair] = [(entered.__next__, left.__next__) for entered, left in self._counters]
        self._current = 0
        self._lock = threading.Lock()
        self.pair = self._pairs[0]

    @property
    def entered(self) -> int:
        """How many calls have entered so far."""
        return sum(_value(entered) for entered, _ in self._counters)

    def wait(self) -> None:
        """Return when every call that entered before has left. Never call it between enter and leave."""
        with self._lock:
            # A call may have taken the idle pair just before the last flip and entered after it: drain that first.
            self._drain(1 - self._current)
            old = self._current
            self._current = 1 - old
            self.pair = self._pairs[self._current]
            self._drain(old)

    def _drain(self, which: int) -> None:
        entered, left = self._counters[which]
        pause_s = 0.00002
        # `left` is read first: equal values then mean that nobody was inside at that instant.
        while True:
            gone = _value(left)
            if gone == _value(entered):
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.002)


def _value(counter: itertools.count[int]) -> int:
    """The next value of a counter, without taking it."""
    return int(repr(counter)[6:-1])
