"""How large frames are, and how long records gather before they are sent.

Frames: with a backlog, large ones, for they cost the least a byte; without, whatever is there, at once. Shared
between several connections the backlog is cut so that each gets a part, but not below SHARE_BYTES. Under a limit a
frame takes no longer than LIMITED_FRAME_S of it, and of a pulled window it is a quarter at most, so that neither comes
in bursts.

Gathering: while no write waits for the peer, records gather for a while after each frame: waking two processes on each
node for a record costs more than all that is done with it. For how long depends on the round trip: a quarter of it adds
little to what the line adds anyway and makes frames that compress better, GATHER_MIN_S at least, GATHER_MAX_S at most.
The first record after a pause goes at once. Where several links of a process are busy they gather for longer, so that
all of them together send no more frames than one would: the processors are shared, and with sixteen groups the frames
would cost more than the writes.

While writes do wait for the peer, frames go at once, and records gather only while FLYING frames are under way: until
the peer has taken one, or for FLYING_S. So one writer, or two, never wait for that; with many the processors have less
to do for each write, and all of them are answered sooner.
"""

from __future__ import annotations

from collections import deque

SHARE_BYTES = 64 << 10
LEAST_BYTES = 4 << 10
LIMITED_FRAME_S = 0.1
GATHER_MIN_S = 0.002
GATHER_MAX_S = 0.010
GATHER_CROWD_S = 0.05
"""The most that busy neighbours add up to."""
APPLY_GATHER_S = 0.02
APPLY_CROWD_S = 0.2
GATHER_BYTES = 256 << 10
"""So much is sent without gathering further."""
FLYING = 2
FLYING_S = 0.001
"""See above: a small part of what a line adds on which more frames than FLYING would be under way."""
_SMOOTH = 8


def frame_bytes(most: int, backlog: int, connections: int, rate: int, window_bytes: int) -> int:
    """Return how many bytes of the journal the next frame may hold; whole records, so it holds less, or one record.

    most: upper end. backlog: bytes not sent. rate: bytes a second, 0 for no limit. window_bytes: of a pulled transfer,
    0 when pushed.
    """
    size = min(most, backlog)
    if connections > 1:
        size = min(size, max(SHARE_BYTES, backlog // connections))
    if rate:
        size = min(size, max(LEAST_BYTES, int(rate * LIMITED_FRAME_S)))
    if window_bytes:
        size = min(size, max(LEAST_BYTES, window_bytes // 4))
    return size


def gather_s(round_trip_s: float, busy_links: int = 1) -> float:
    """Return for how long records gather; `busy_links` of this process are, this one included."""
    alone = min(GATHER_MAX_S, max(GATHER_MIN_S, round_trip_s / 4))
    return max(alone, min(GATHER_CROWD_S, GATHER_MIN_S * busy_links))


def apply_gather_s(busy_groups: int) -> float:
    """Return how long a secondary lets records gather after a small batch; `busy_groups` of its process are."""
    return min(APPLY_CROWD_S, APPLY_GATHER_S * busy_groups)


class Crowd:
    """How many of a process's links, or groups, are busy at the moment: those noted in this stretch or the last one.

    Any thread may note itself; a count that is off by some does no harm.
    """

    STRETCH_S = 0.2

    def __init__(self) -> None:
        self._stretch = 0
        self._present: set[int] = set()
        self._before = 0

    def note(self, who: object, now: float) -> int:
        """Note that `who` is busy; returns how many are, at least 1. now: seconds of a monotonic clock."""
        stretch = int(now / self.STRETCH_S)
        if stretch != self._stretch:
            self._before = len(self._present) if stretch == self._stretch + 1 else 0
            self._stretch, self._present = stretch, set()
        self._present.add(id(who))
        return max(self._before, len(self._present))


class Flying:
    """The frames that are under way: sent, and not acknowledged as received."""

    def __init__(self) -> None:
        self._last_seqs: deque[int] = deque()

    def sent(self, last_seq: int) -> None:
        """A frame went out whose last record is `last_seq`."""
        self._last_seqs.append(last_seq)

    def acked(self, received_seq: int) -> None:
        """The peer holds everything up to `received_seq`."""
        last_seqs = self._last_seqs
        while last_seqs and last_seqs[0] <= received_seq:
            last_seqs.popleft()

    @property
    def many(self) -> bool:
        """Whether another small frame is not worth its cost now."""
        return len(self._last_seqs) >= FLYING


class RoundTrip:
    """The round trip of a link, from frames that were sent while nothing else was under way; so without queues."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Smoothed; 0.0 before the first sample."""
        self._seq = 0
        self._at = 0.0

    def sent(self, last_seq: int, acked_seq: int, first_seq: int, now: float) -> None:
        """A frame with records first_seq..last_seq goes out; the peer has acknowledged `acked_seq`."""
        if not self._seq and acked_seq == first_seq - 1:
            self._seq, self._at = last_seq, now

    def acked(self, received_seq: int, now: float) -> None:
        """The peer has acknowledged `received_seq`."""
        if self._seq and received_seq >= self._seq:
            sample, self._seq = now - self._at, 0
            self.seconds += (sample - self.seconds) / _SMOOTH if self.seconds else sample
