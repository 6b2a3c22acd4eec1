"""Runs that came before their turn: held until what is missing has come.

A link may have several connections, and the runs of a group are spread over them. Each connection keeps order, but the
next run may be on a slower one. Records are appended strictly in the order of seq, so a run that begins beyond the
next seq waits here.

Bounded: at most `window_bytes` are held. A run for which there is no room stays in its connection, which is not read
meanwhile. The run that comes next is never held and so always taken, whatever else waits (seed 001, H1-13); as each
connection carries rising seqs, that run is either the first unread one of its connection or still under way. So the
window cannot be filled for good.

Duplicates: a run that begins before the next seq is given out at once, and whoever appends it leaves out what it has
(`runs.parse_run`). Which records are whole and right is not judged here, but when their turn comes.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Run = TypeVar("Run")

OVERHEAD_BYTES = 256
"""Counted for each held run beside its bytes, so that many tiny ones are bounded too."""


class Reassembly(Generic[Run]):
    """The held runs of one link. `Run` is whatever the caller wants back."""

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.held_bytes = 0
        """Of all held runs, with OVERHEAD_BYTES each."""
        self.most_bytes = 0
        """The most that was ever held."""
        self._heap: list[tuple[int, int, int, Run]] = []  # (first seq, order of arrival, size, run)
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    def fits(self, size: int) -> bool:
        """Whether a run of `size` bytes may be held now."""
        return self.held_bytes + size + OVERHEAD_BYTES <= self.window_bytes

    def hold(self, first_seq: int, size: int, run: Run) -> None:
        """Keep a run that begins at `first_seq`, beyond what comes next. The caller has asked `fits`."""
        heapq.heappush(self._heap, (first_seq, self._arrivals, size, run))
        self._arrivals += 1
        self.held_bytes += size + OVERHEAD_BYTES
        self.most_bytes = max(self.most_bytes, self.held_bytes)

    def ready(self, expect_seq: int) -> Run | None:
        """Return the held run whose turn it is when `expect_seq` comes next, or None. It stays held until `release`."""
        if self._heap and self._heap[0][0] <= expect_seq:
            return self._heap[0][3]
        return None

    def release(self) -> None:
        """Let go of the run that `ready` returned."""
        _first_seq, _arrival, size, _run = heapq.heappop(self._heap)
        self.held_bytes -= size + OVERHEAD_BYTES
