"""What requests do to each logical area of an image: random or sequential, read or written, how much, how long.

Rates decay: a request counts half after HALF_LIFE_S seconds. The rate of something is ln 2 / half-life times the sum of
what it counts for now; while the statistics are younger than that tells, it is divided by the part of the past that
they have seen.

A request is sequential when it begins where another one of the same image and direction ended shortly before. Requests
under way together start in any order, so that other one may as well have begun a little later.

Utilisation of an area is the time spent in its requests, in seconds a second: 1.0 means that one is always under way.
It adds up: that of a RAID group is the sum over its areas. Source: JP 2000-132343 A, [0139].

Memory: pages of 256 areas, 9 KiB each, only where requests came; a page that nothing came to for long goes.
Not thread-safe: one thread adds; who reads while it does sees a page before or after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

HALF_LIFE_S = 300.0
NEAR = 16
"""How many requests before or after may be the one that this one goes on from."""
PAGE_AREAS = 256
_FORGET_HALF_LIVES = 24

RANDOM_READ, RANDOM_WRITE, SEQUENTIAL_READ, SEQUENTIAL_WRITE = range(4)
CLASSES = ("random_read", "random_write", "sequential_read", "sequential_write")
_BYTES = len(CLASSES)
_BUSY = 2 * len(CLASSES)
COLUMNS = _BUSY + 1
"""Of a row: requests of each class, bytes of each class, seconds busy."""

Row = np.ndarray[Any, np.dtype[np.float64]]


Request = tuple[int, int, float, float, bool]
"""One request that has ended: offset, length (bytes), beginning, end (seconds on one clock), whether it is a read."""


class Rates(NamedTuple):
    """Of one area or the sum of several, a second."""

    requests: dict[str, float]
    """By class, see CLASSES."""
    bytes: dict[str, float]
    """By class."""
    utilisation: float

    @property
    def random(self) -> float:
        """Random requests a second."""
        return self.requests["random_read"] + self.requests["random_write"]

    @property
    def sequential(self) -> float:
        """Sequential requests a second."""
        return self.requests["sequential_read"] + self.requests["sequential_write"]


def named(row: Row) -> Rates:
    """Return a row of rates with names."""
    values = row.tolist()
    return Rates(
        dict(zip(CLASSES, values[:_BYTES], strict=True)),
        dict(zip(CLASSES, values[_BYTES:_BUSY], strict=True)),
        values[_BUSY],
    )


def which_are_sequential(requests: Sequence[Request]) -> list[bool]:
    """Tell for each request of one image, in order of their beginnings, whether it is sequential."""
    result = [False] * len(requests)
    order = range(len(requests))
    for indexes in (order, reversed(order)):
        ends: dict[tuple[int, bool], int] = {}
        for at in indexes:
            off, length, _, _, is_read = requests[at]
            other = ends.get((off, is_read))
            if other is not None and abs(at - other) <= NEAR:
                result[at] = True
            ends[off + length, is_read] = at
    return result


class _Page:
    __slots__ = ("at", "rows")

    def __init__(self, at: float) -> None:
        self.at = at
        self.rows = np.zeros((PAGE_AREAS, COLUMNS), np.float32)

    def decay(self, now: float, half_life_s: float) -> None:
        self.rows *= np.float32(0.5 ** ((now - self.at) / half_life_s))
        self.at = now


class AreaRates:
    """The decayed rates of one image."""

    def __init__(self, area_bytes: int, now: float, half_life_s: float = HALF_LIFE_S) -> None:
        """area_bytes: size of an area. now: when the statistics begin, seconds on any clock that all calls share."""
        self._area_bytes = area_bytes
        self._half_life_s = half_life_s
        self._began = now
        self._pages: dict[int, _Page] = {}
        self._last: list[Request] = []
        """The requests just before those that come next, when none is missing between."""

    def add(self, requests: Sequence[Request], weight: float, now: float, *, missed: bool = False) -> None:
        """Count requests, each `weight` times: one over the share of the time that was looked at.

        missed: others came after them and before the next ones that are added.
        """
        ordered = sorted(requests, key=itemgetter(2))
        sequential_ones = which_are_sequential(self._last + ordered)[len(self._last) :]
        self._last = [] if missed else (self._last + ordered)[-NEAR:]
        for (off, length, began, ended, is_read), sequential in zip(ordered, sequential_ones, strict=True):
            kind = 2 * sequential + (not is_read)
            end = off + length
            busy = (ended - began) / max(length, 1)
            first = True
            while off < end:
                index = off // self._area_bytes
                n = min((index + 1) * self._area_bytes, end) - off
                row = self._row(index, now)
                row[kind] += weight * first
                row[_BYTES + kind] += weight * n
                row[_BUSY] += weight * n * busy
                off += n
                first = False

    def rates(self, now: float) -> dict[int, Row]:
        """Return the rates of every area that had requests lately, by logical area, rising."""
        seen = 1 - 0.5 ** (max(now - self._began, 1e-3) / self._half_life_s)
        scale = math.log(2) / self._half_life_s / seen
        found: dict[int, Row] = {}
        for number, page in sorted(self._pages.items()):
            rows = page.rows.astype(np.float64) * (scale * 0.5 ** (max(now - page.at, 0.0) / self._half_life_s))
            for at in np.flatnonzero(rows[:, :_BUSY].any(axis=1)).tolist():
                found[number * PAGE_AREAS + at] = rows[at]
        return found

    def forget_old(self, now: float) -> None:
        """Drop the pages that nothing came to for long."""
        limit_s = _FORGET_HALF_LIVES * self._half_life_s
        for number in [number for number, page in self._pages.items() if now - page.at > limit_s]:
            del self._pages[number]

    @property
    def memory_bytes(self) -> int:
        """What the pages take."""
        return sum(page.rows.nbytes for page in list(self._pages.values()))

    def _row(self, index: int, now: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        page = self._pages.get(index // PAGE_AREAS)
        if page is None:
            page = self._pages[index // PAGE_AREAS] = _Page(now)
        elif page.at != now:
            page.decay(now, self._half_life_s)
        row: np.ndarray[Any, np.dtype[np.float32]] = page.rows[index % PAGE_AREAS]
        return row
