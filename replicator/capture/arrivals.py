"""Reading ahead in a secondary's journal: write times and numbers of records, in order, without their data.

It begins at the applied position and runs ahead of the follower, which does not pass what the set's bound holds back.
"""

from __future__ import annotations

from replicator.capture.engine import GroupEngine
from replicator.core.epochs import tag_of
from replicator.core.errors import IntegrityError
from replicator.core.numbering import Arrival
from replicator.core.records import FLAG_NUMBERED, HEADER_BYTES, NUMBER_BYTES, BadRecord, unpack_header, unpack_number
from replicator.journal.page import APPLIED_OFF, HEAD_OFF, INCARNATION

PIECE_BYTES = 256 << 10
"""Read at once; several small records fit, and of a larger one its data is passed over."""


class JournalArrivals:
    """The records of one group that have arrived; see numbering.Arrivals."""

    def __init__(self, engine: GroupEngine) -> None:
        """Begin with the first one that is not applied."""
        self._engine = engine
        self._incarnation = engine.page[INCARNATION]
        self._off = engine.page[APPLIED_OFF]
        self._next: Arrival | None = None
        self._next_off = self._off
        self._piece, self._piece_off = b"", 0

    @property
    def valid(self) -> bool:
        """Whether the journal is still the one that was read: not reset, cut, or opened anew."""
        u64 = self._engine.page.u64
        return bool(u64[INCARNATION] == self._incarnation and u64[APPLIED_OFF] <= self._off <= u64[HEAD_OFF])

    def peek(self) -> Arrival | None:
        """The next record. Raises IntegrityError when the journal is damaged there, OSError."""
        if self._next is None and self._off < self._engine.page[HEAD_OFF]:
            try:
                header = unpack_header(self._bytes(self._off, HEADER_BYTES))
            except BadRecord as exc:
                name = self._engine.state.name
                raise IntegrityError(f"journal of group {name} is damaged at offset {self._off}: {exc}") from exc
            self._next_off = self._off + header.total_bytes
            number = series = 0
            if header.flags & FLAG_NUMBERED:
                number, series = unpack_number(self._bytes(self._next_off - NUMBER_BYTES, NUMBER_BYTES))
            self._next = Arrival(header.write_time, number, tag_of(header.epoch) << 32 | series)
        return self._next

    def take(self) -> None:
        """Go on to the record after it."""
        self._off, self._next = self._next_off, None

    def _bytes(self, off: int, length: int) -> bytes:
        at = off - self._piece_off
        if not 0 <= at <= len(self._piece) - length:
            have = self._engine.page[HEAD_OFF] - off
            self._piece, self._piece_off, at = (
                self._engine.journal.read(off, max(length, min(PIECE_BYTES, have))),
                off,
                0,
            )
        return self._piece[at : at + length]
