"""How long a record is kept, and how full the journal is getting.

By default a record goes once every peer has it on stable storage. With `retain=applied` it stays until every peer has
it in its pool too, so a peer whose journal is damaged can be sent again what it had not applied. Peers state seqs, the
tail is an offset: Marks remember some places of the sequence, so the tail may lag a little, never lead.

Times are seconds of a monotonic clock, sizes and rates bytes (a second).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from replicator.core.losspolicy import full_in_words, may_go_alone
from replicator.journal.page import EDGE_APPLIED_SEQ, EDGE_DURABLE_OFF, HEAD_OFF, HEAD_SEQ, TAIL_OFF, edge_slot

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine
    from replicator.capture.state import Edge

MOST_MARKS = 1024
SAMPLE_S = 1.0
WINDOW_S = 60.0
LEAST_WINDOW_S = 3.0
REARM_PERCENT = 10.0


class Marks:
    """Ends of records, as (seq, offset), rising."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._offs: list[int] = []

    def note(self, seq: int, off: int) -> None:
        """Note that record `seq` ends at `off`. What lies before an earlier note belongs to another journal: anew."""
        if self._seqs and (seq < self._seqs[-1] or off < self._offs[-1]):
            self._seqs.clear()
            self._offs.clear()
        if self._seqs and seq == self._seqs[-1]:
            self._offs[-1] = off
            return
        self._seqs.append(seq)
        self._offs.append(off)
        if len(self._seqs) > MOST_MARKS:
            del self._seqs[1:-1:2]
            del self._offs[1:-1:2]

    def end_of(self, seq: int) -> int:
        """An offset up to which the journal holds records up to `seq` only; 0 when no note reaches back so far."""
        at = bisect_right(self._seqs, seq)
        return self._offs[at - 1] if at else 0


def freed_off(engine: GroupEngine, edge: Edge) -> int:
    """Offset of our journal up to which the peer of an edge wants nothing any more."""
    u64 = engine.page.u64
    off = u64[edge_slot(edge.slot, EDGE_DURABLE_OFF)]
    if engine.state.policy.retain == "applied":
        off = min(off, engine.marks.end_of(u64[edge_slot(edge.slot, EDGE_APPLIED_SEQ)]))
    return off


class _Sample(NamedTuple):
    time: float
    head: int
    tail: int


class Trend:
    """How fast the journal is written and how fast it fills, over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def note(self, now: float, head: int, tail: int) -> None:
        """Note the journal's ends. An earlier head than before starts anew."""
        samples = self._samples
        if samples and head < samples[-1].head:
            samples.clear()
        if samples and now - samples[-1].time < SAMPLE_S:
            return
        samples.append(_Sample(now, head, tail))
        while now - samples[0].time > WINDOW_S:
            samples.popleft()

    def rates(self) -> tuple[float, float] | None:
        """(written, growth) a second; growth is negative while the journal empties. None when too little is known."""
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        took = last.time - first.time
        if took < LEAST_WINDOW_S:
            return None
        written = last.head - first.head
        return written / took, (written - (last.tail - first.tail)) / took

    def full_in_s(self, free_bytes: int) -> float | None:
        """When the journal is full at this rate; None when it does not fill, or nothing is known."""
        rates = self.rates()
        return None if rates is None or rates[1] <= 0 else max(0, free_bytes) / rates[1]


class Threshold:
    """Says once that a level was crossed, and again only after it was left by REARM_PERCENT."""

    def __init__(self) -> None:
        self._above = False

    def crossed(self, percent: float, limit: float) -> str:
        """ "" mostly; "above" when `percent` has reached `limit`, "below" when it has fallen well below it again."""
        if not self._above and limit and percent >= limit:
            self._above = True
            return "above"
        if self._above and (not limit or percent < max(0.0, limit - REARM_PERCENT)):
            self._above = False
            return "below"
        return ""


def used_percent(engine: GroupEngine) -> float:
    """How much of the journal is used."""
    u64 = engine.page.u64
    return 100.0 * (u64[HEAD_OFF] - u64[TAIL_OFF]) / engine.journal.capacity


def journal_view(engine: GroupEngine, trend: Trend) -> dict[str, Any]:
    """What status says of the journal beside its positions. Rates are bytes a second, None when not known."""
    u64, policy = engine.page.u64, engine.state.policy
    rates = trend.rates()
    return {
        "used_percent": round(used_percent(engine), 1),
        "retain": policy.retain,
        "warn_percent": policy.warn_percent,
        "write_rate": None if rates is None else round(rates[0]),
        "growth_rate": None if rates is None else round(rates[1]),
        "full_in_s": trend.full_in_s(engine.journal.capacity - (u64[HEAD_OFF] - u64[TAIL_OFF])),
        "when_full": full_in_words(policy.on_full, alone=may_go_alone(bool(engine.waits), policy.on_loss)),
    }


def note_marks(engine: GroupEngine) -> None:
    """Remember where the journal ends now."""
    with engine.lock:
        engine.marks.note(engine.page.u64[HEAD_SEQ], engine.page.u64[HEAD_OFF])
