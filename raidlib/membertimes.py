"""How long members take for reads and writes, by looking at them for a part of the time.

Requests reach a member's file through Member.live_file(), or through tables made from it. While a group is looked at,
that is a TimedFile, which notes the duration of each read and write; then the tables are made anew without it. So what
nobody looks at costs nothing. A look ends when enough requests were noted: on a busy pool after some milliseconds. One
that began in a look is noted when it ends, however late.

What is measured is what raidlib waits for: the page cache answers for a disk where it can. All members of a group have
the same kinds of requests, so a member is judged by the others of its group (slow_members), and by LONG_S alone.

Means decay: a request counts half after HALF_LIFE_S seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from raidlib.blockfile import BlockFile, Buffer

LONG_S = 2.0
"""A read, write or sync that takes longer is counted."""
HALF_LIFE_S = 120.0
LOOK_REQUESTS = 512
"""Requests of a pool that are noted in one look."""
ENOUGH = 16.0
"""A mean of fewer requests says nothing."""
TIMES_SLOWER = 4.0
"""A member whose mean is so many times that of the others of its group is slow,"""
SLOW_MEAN_S = 0.01
"""if it is longer than this."""


@dataclass
class Mean:
    """The decayed mean of durations in seconds."""

    total_s: float = 0.0
    weight: float = 0.0
    at: float = 0.0
    """When it was last added to, by the monotonic clock."""

    def add(self, durations: Sequence[float], now: float) -> None:
        """Count durations that were measured about now."""
        kept = 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE_S)
        self.total_s = self.total_s * kept + sum(durations)
        self.weight = self.weight * kept + len(durations)
        self.at = now

    def value_s(self, now: float) -> float | None:
        """The mean; None while, or after, there is too little to tell."""
        enough = self.weight * 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE_S) >= ENOUGH
        return self.total_s / self.weight if enough else None


class Times:
    """What is known of one member."""

    def __init__(self) -> None:
        self.reads = Mean()
        self.writes = Mean()
        self.long = 0
        """Reads, writes and syncs that took longer than LONG_S. Whether it is failed for that is the operator's."""
        self.longest_s = 0.0
        self._fresh: list[tuple[bool, float]] = []

    def note_sync(self, seconds: float) -> None:
        """A sync took so long; syncs are all measured."""
        self._note_long(seconds)

    def note(self, is_read: bool, seconds: float) -> None:
        """A read or write took so long."""
        self._fresh.append((is_read, seconds))
        self._note_long(seconds)

    def count(self, now: float) -> None:
        """Put what was noted into the means. One thread at a time."""
        fresh, self._fresh = self._fresh, []
        for mean, kind in ((self.reads, True), (self.writes, False)):
            if durations := [seconds for is_read, seconds in fresh if is_read is kind]:
                mean.add(durations, now)

    def _note_long(self, seconds: float) -> None:
        if seconds > LONG_S:
            self.long += 1
        if seconds > self.longest_s:
            self.longest_s = seconds


def slow_members(means_s: Sequence[float | None]) -> list[float | None]:
    """For each member of a group, from its mean: the median of the others, if it is slow beside that; else None."""
    found: list[float | None] = []
    for index, mean_s in enumerate(means_s):
        others = [other for at, other in enumerate(means_s) if at != index and other is not None]
        usual_s = statistics.median(others) if others else None
        slow = mean_s is not None and usual_s is not None and mean_s > max(SLOW_MEAN_S, TIMES_SLOWER * usual_s)
        found.append(usual_s if slow else None)
    return found


class TimedFile:
    """A member's file, with reads and writes timed. Obeys BlockFile; syncs and durable writes are not its business."""

    def __init__(self, inner: BlockFile, note: Callable[[bool, float], None]) -> None:
        """note(is_read, seconds) is called after each, also after one that failed."""
        self.inner = inner
        self.path = inner.path
        self.once_flags = inner.once_flags
        self.parallel_sync = inner.parallel_sync
        self.read_medium = inner.read_medium
        self.pwrite_durable = inner.pwrite_durable
        self.fdatasync = inner.fdatasync
        self.punch = inner.punch
        self.zero = inner.zero
        self.reserve = inner.reserve
        self.zeroes_fast = inner.zeroes_fast
        self.close = inner.close
        self.raw_preadv = _timed(inner.raw_preadv, True, note)
        self.preadinto = _timed(inner.preadinto, True, note)
        self.pread = _timed(inner.pread, True, note)
        self.raw_pwrite = _timed(inner.raw_pwrite, False, note)
        self.pwrite: Callable[[Buffer, int], None] = _timed(inner.pwrite, False, note)
        self.pwritev: Callable[[Sequence[Buffer], int], None] = _timed(inner.pwritev, False, note)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.inner.size

    def remeasure(self) -> int:
        """See BlockFile."""
        return self.inner.remeasure()

    @property
    def gone(self) -> bool:
        """See BlockFile."""
        return self.inner.gone


def _timed(call: Callable[..., Any], is_read: bool, note: Callable[[bool, float], None]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        began = monotonic()
        try:
            return call(*args)
        finally:
            note(is_read, monotonic() - began)

    return timed
