"""How far the peer is behind, in writes, bytes and seconds.

The journal's head is noted now and then with the time. The newest note that the peer has reached bounds what it lacks:
everything after that note's offset, written after that note's time. Bytes and seconds are therefore at most so much,
never less than the truth; writes are exact.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

MOST_NOTES = 1024


class Behind(NamedTuple):
    """What would be lost with the primary: writes exactly, bytes of journal and seconds at most."""

    writes: int
    bytes: int
    seconds: float


class Backlog:
    """Notes of one group's journal head. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._notes: list[tuple[int, float]] = []

    def note(self, seq: int, offset: int, now: float) -> None:
        """Note that the journal ends at record `seq` and byte `offset`. An earlier head than before starts anew."""
        if self._seqs and (seq < self._seqs[-1] or offset < self._notes[-1][0]):
            self._seqs.clear()
            self._notes.clear()
        if self._seqs and seq == self._seqs[-1]:
            self._notes[-1] = (offset, now)  # nothing came in: whoever has this record was up to date until now
            return
        self._seqs.append(seq)
        self._notes.append((offset, now))
        if len(self._seqs) > MOST_NOTES:
            del self._seqs[1:-1:2]
            del self._notes[1:-1:2]

    def behind(self, peer_seq: int, head_seq: int, head_off: int, now: float) -> Behind | None:
        """Return what a peer that has received up to `peer_seq` lacks; None when no note reaches back so far."""
        if peer_seq >= head_seq:
            return Behind(0, 0, 0.0)
        at = bisect_right(self._seqs, peer_seq)
        if at == 0:
            return None
        offset, noted = self._notes[at - 1]
        return Behind(head_seq - peer_seq, max(0, head_off - offset), max(0.0, now - noted))
