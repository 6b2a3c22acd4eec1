"""Unanswered: what a synchronous group's pool holds and its peers may lack, so that no host learns of it from a read.

A write is in the pool before the peers have it. A host that reads it then and writes something of that to another group
could have the second survive this node without the first. So a read that meets a write which waits for its peers waits
with it, and fails when it does (guardedreads.py).

    add         in the group lock, when the write gets its record, thus before the pool is changed
    over        by a reader, AFTER it has read: whatever it saw was added before
    (removed)   by the writer, when its wait has ended well. One that failed stays: its data is in the pool
    purge       what the peers have got since, by the group's keeper
    take_stock  at a start, and when a peer becomes synchronous: what the journal holds beyond the peers' positions

When nobody is waited for (all edges are degraded, gone or asynchronous, or the role is) `GroupEngine.refresh` forgets
everything: that is on stable storage by then, as it is before a write is answered alone.

Most often there are as many entries as writes under way. Where a stalling group lets many fail, ranges that touch are
joined, and then those of a volume: more than what is missing waits then, never less.

Source: seed 001, hazard H1-15 and invariant I9.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from replicator.core.errors import IntegrityError
from replicator.core.records import DATA_KINDS, FLAG_FUA, BadRecord
from replicator.journal.page import EDGE_DURABLE_OFF, EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ, HEAD_OFF, edge_slot

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine
    from replicator.capture.state import Edge

MOST = 1024
"""More entries than that are joined."""
MOST_RECORDS = 10_000
"""Of a longer part of the journal no stock is taken: then it may be anywhere."""
ANY_VOLUME = -1
_END = 1 << 63


Range = tuple[int, int, int, int, bool]
"""seq, volume, begin, end (bytes) of what a record changed, and whether it is answered only when the peers hold it on
stable storage."""


class Unanswered:
    """Of one group. `add` and `take_stock` are called under the group lock, or before the group is served."""

    def __init__(self) -> None:
        self.entries: dict[int, Range] = {}
        """Those of writes under seq, where they take them out, without a lock; others under negative numbers. Readers
        test whether it is empty."""
        self._others = 0

    def add(self, seq: int, volume: int, offset: int, length: int, flags: int) -> None:
        """A record (`flags` as in its header) is about to change the pool."""
        self.entries[seq] = (seq, volume, offset, offset + length, flags & FLAG_FUA != 0)

    def over(self, volume: int, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return what a reader of these bytes waits for: positions (seq, whether on stable storage), at most two."""
        newest: dict[bool, int] = {}
        for seq, where, begin, end, durable in list(self.entries.values()):
            if begin < offset + length and offset < end and where in (volume, ANY_VOLUME):
                newest[durable] = max(seq, newest.get(durable, 0))
        return [(seq, durable) for durable, seq in newest.items()]

    def purge(self, engine: GroupEngine) -> None:
        """Forget what every peer has that is waited for. Takes the group lock."""
        if not self.entries:
            return
        with engine.lock:
            if not engine.waits:
                return
            stable, received = (_least(engine, engine.waits, what) for what in (EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ))
            if engine.state.policy.ack == "durable":
                received = stable
            for key, (seq, _, _, _, durable) in list(self.entries.items()):
                if seq <= (stable if durable else received):
                    self.entries.pop(key, None)
            if len(self.entries) > MOST:
                self._join(touching=True)
            if len(self.entries) > MOST:
                self._join(touching=False)

    def _join(self, *, touching: bool) -> None:
        """Make one entry of those of a volume, or only of those that touch each other."""
        before = dict(self.entries)
        joined: list[Range] = []
        for seq, volume, begin, end, durable in sorted(before.values(), key=lambda entry: entry[1:]):
            last = joined[-1] if joined else None
            if last is not None and last[1] == volume and (not touching or begin <= last[3]):
                joined[-1] = (max(last[0], seq), volume, last[2], max(last[3], end), last[4] or durable)
            else:
                joined.append((seq, volume, begin, end, durable))
        for entry in joined:  # first, so that no reader misses anything
            self._put(entry)
        for key in before:
            self.entries.pop(key, None)

    def _put(self, entry: Range) -> None:
        self._others -= 1
        self.entries[self._others] = entry

    def take_stock(self, engine: GroupEngine, waits: Iterable[Edge]) -> None:
        """Add every record of a primary's journal that would wait now for a peer of the edges `waits`."""
        waits = tuple(waits)
        if not waits or _least(engine, waits, EDGE_DURABLE_SEQ) >= engine.pos:
            return
        try:
            for entry in _records_beyond(engine, waits):
                self._put(entry)
        except (_TooMany, BadRecord, IntegrityError, OSError):  # whoever has to read the journal will say so
            self._put((engine.pos, ANY_VOLUME, 0, _END, False))


def _records_beyond(engine: GroupEngine, waits: Iterable[Edge]) -> list[Range]:
    """What those records changed. Raises _TooMany, and as the journal does."""
    found: list[Range] = []
    stable, received = (_least(engine, waits, what) for what in (EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ))
    if engine.state.policy.ack == "durable":
        received = stable
    off, _ = engine.journal.tail()
    stable_off = _least(engine, waits, EDGE_DURABLE_OFF)
    if off < stable_off <= engine.page[HEAD_OFF]:
        off = stable_off
    for _ in range(MOST_RECORDS):
        if off >= engine.page[HEAD_OFF]:
            return found
        h = engine.journal.header_at(off)
        durable = h.flags & FLAG_FUA != 0
        if h.seq > (stable if durable else received) and h.kind in DATA_KINDS:
            found.append((h.seq, h.volume, h.offset, h.offset + h.length, durable))
        off += h.total_bytes
    raise _TooMany


def _least(engine: GroupEngine, edges: Iterable[Edge], what: int) -> int:
    """The lowest of the edges' positions `what`."""
    return min(engine.page[edge_slot(e.slot, what)] for e in edges)


class _TooMany(Exception):
    """Nobody reads so many headers while hosts wait."""
