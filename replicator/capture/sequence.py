"""SequencedGroup: gives every change of a group its place in the one order, and begins epochs.

A number, a write time, the bits of every live bitmap and the record in the journal are one step under the group lock,
so there is never a number without a record, nor a record whose bits are not set. An error of the journal in that step
leaves no trace of the change.

What it does not do: touch volumes (engine.py).
"""

from __future__ import annotations

from typing import cast

from crc32c import crc32c

from replicator.capture.bitmaps import TODO
from replicator.capture.groupbase import JOURNALING, PARK, PLAIN, REFUSE, GroupBase
from replicator.capture.numbers import Numbers
from replicator.capture.parking import NoRoom, Parked
from replicator.capture.state import JOURNAL, PRIMARY
from replicator.core.records import FLAG_NUMBERED, HEADER_BYTES, NUMBER_BYTES, Kind, pack_header, pack_number
from replicator.journal.files import Buffer
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, TAIL_OFF

SEQ_RESERVE = 1 << 20  # numbers reserved at a time in bitmap mode
HIST_ENTRIES = 128


class SequencedGroup(GroupBase):
    """The sequence of one group. Public methods are thread-safe where they do not say who holds the group lock."""

    def _record(
        self,
        kind: int,
        flags: int,
        volume: int,
        offset: int,
        length: int,
        payload: Buffer | None,
        payload_len: int,
        crc: int,
    ) -> int:
        """Give the change its place in the sequence. The caller holds its range locks and then changes the pool."""
        with self.lock:
            if self._admit != JOURNALING:
                return self._record_other(volume, offset, length)
            u64, state = self._u64, self.state
            if u64[HEAD_OFF] + payload_len - u64[TAIL_OFF] > self._room_bytes:
                raise NoRoom
            if state.new_epoch_wanted:
                self.open_epoch()
            seq = u64[HEAD_SEQ] + 1
            if self.numbers is None:
                now = self._last_time = self.clock.next()
            else:
                now, flags, payload, payload_len, crc = self._numbered(self.numbers, flags, payload, payload_len, crc)
            self._maps[volume].mark(self.bitmaps.live, offset, length)
            epoch = state.hist[-1][0]
            header = pack_header(kind, flags, epoch, seq, now, volume, payload_len, offset, length, crc)
            try:
                self.journal.append(header, payload, seq, epoch)
            except OSError as e:
                raise self.lose_journal(f"its journal cannot be written: {e}") from e
            if self.waits:
                self.unanswered.add(seq, volume, offset, length, flags)
            self._inflight.add(seq)
            self.last_host_seq = seq
            return seq

    def _numbered(
        self, numbers: Numbers, flags: int, payload: Buffer | None, payload_len: int, crc: int
    ) -> tuple[int, int, Buffer, int, int]:
        """Draw write time and number of the next record; returns (time, flags, payload, its length, its CRC) with it.

        A number that is drawn is in the record that the caller appends now, or, after an error or a crash, in none.
        """
        now, number = self.clock.next_numbered(numbers)
        self._last_time = now
        end = pack_number(number, numbers.series)
        whole = end if payload is None else b"".join((payload, end))
        return now, flags | FLAG_NUMBERED, whole, payload_len + NUMBER_BYTES, crc32c(end, crc)

    def _record_other(self, volume: int, offset: int, length: int) -> int:
        """Admit a change that makes no record: no pair, or the journal has overflowed."""
        admit = self._admit
        if admit == PARK:
            raise Parked
        if admit == REFUSE:
            raise self._refusal()
        if admit == PLAIN:
            self._ticket -= 1
            self._inflight.add(self._ticket)
            return self._ticket
        if self.state.new_epoch_wanted:
            self.new_history_entry()
        self._maps[volume].mark(self.bitmaps.live, offset, length)
        seq = self.last_host_seq = self.take_number()
        self._inflight.add(seq)
        return seq

    def take_number(self) -> int:
        """Give out the next seq in bitmap mode. The caller holds the group lock. Durable: that it may have been."""
        state, seq = self.state, self._u64[HEAD_SEQ] + 1
        if seq >= state.seq_limit:
            state.seq_limit = seq + SEQ_RESERVE
            self.save()
        self._u64[HEAD_SEQ] = seq
        self._last_time = self.clock.next()
        return seq

    def _append_control(
        self, kind: int, *, volume: int = 0, offset: int = 0, length: int = 0, payload: bytes | None = None
    ) -> int:
        """Append a record that is no host write. The caller holds the group lock and has checked for room."""
        if self.journal_lost:
            raise self.lose_journal(self.journal_lost)
        seq, flags, record = self._u64[HEAD_SEQ] + 1, 0, cast("Buffer | None", payload)
        size = len(payload) if payload is not None else 0
        crc = crc32c(payload) if payload is not None else 0
        if self.numbers is None:
            self._last_time = self.clock.next()
        else:
            _, flags, record, size, crc = self._numbered(self.numbers, flags, record, size, crc)
        epoch = self.state.hist[-1][0]
        header = pack_header(kind, flags, epoch, seq, self._last_time, volume, size, offset, length, crc)
        try:
            self.journal.append(header, record, seq, epoch)
        except OSError as e:
            raise self.lose_journal(f"its journal cannot be written: {e}") from e
        return seq

    def append_control(
        self, kind: int, *, volume: int = 0, offset: int = 0, length: int = 0, payload: bytes | None = None
    ) -> int:
        """Append a control record (`kind` as in records.Kind) and return its seq. The caller holds the group lock.

        Opens the epoch that is due first. Raises NoRoom when even the reserve is used up.
        """
        if not self.journal.room_for(2 * (HEADER_BYTES + NUMBER_BYTES) + (len(payload) if payload else 0)):
            raise NoRoom
        if self.state.new_epoch_wanted:
            self.open_epoch()
        return self._append_control(kind, volume=volume, offset=offset, length=length, payload=payload)

    def new_history_entry(self) -> None:
        """Begin a new epoch after the current position. Durable: the history entry. Caller holds the group lock.

        An epoch that began at the same position and has no record, because a crash or an error came between, gives way:
        a copy that follows the sequence could never learn of it.
        """
        state, pos = self.state, self.pos
        self.note_epoch(state.hist[-1][0] if state.hist else 0)
        state.epoch_counter += 1
        begun = {0}
        while state.hist and state.hist[-1][1] >= pos:
            begun.add(state.hist.pop()[0])
        epoch = state.epoch_counter << 24 | state.node_tag
        state.hist.append([epoch, pos])
        state.rewound = [
            [epoch, *line[1:]] if line[0] in begun else line
            for line in state.rewound
            if line[0] not in begun or line[1] == pos
        ]
        del state.hist[:-HIST_ENTRIES]
        state.new_epoch_wanted = False
        self.save()

    def note_epoch(self, epoch: int) -> None:
        """Remember that an epoch exists, so that ours will be newer also when the history has forgotten it."""
        self.state.epoch_counter = max(self.state.epoch_counter, epoch >> 24)

    def open_epoch(self) -> None:
        """Begin a new epoch and say so in the sequence. Durable: the history entry, not yet its record.

        When the record cannot be written the epoch stays wanted, so that nothing is recorded in an epoch without one.
        """
        if not self.journal.room_for(HEADER_BYTES + NUMBER_BYTES):
            raise NoRoom
        self.new_history_entry()
        self.state.new_epoch_wanted = True
        self._append_control(Kind.EPOCH)
        self.state.new_epoch_wanted = False

    def append_copy(
        self, volume: int, offset: int, length: int, data: Buffer | None, *, of_host_write: bool = False
    ) -> bool:
        """Append what a range holds (None: zeroes) as a COPY record and take the blocks it covers off the copy list.

        The caller holds the range locks under which it read. Returns False when there is no room, the group is parked
        (but a host write under way may still speak: `of_host_write`) or no longer journals; nothing changed then.
        """
        size = len(data) if data is not None else 0
        crc = crc32c(data) if data is not None else 0
        kind = Kind.COPY_ZERO if data is None else Kind.COPY
        u64 = self._u64
        with self.lock:
            if self.state.role != PRIMARY or self.state.mode != JOURNAL or self.failed:
                return False
            if self.journal_lost:
                raise self.lose_journal(self.journal_lost)
            if self.parked_for and not of_host_write:
                return False
            if offset + length > self._maps[volume].size:
                return False  # the volume has left the group, or become smaller, since the caller read
            if u64[HEAD_OFF] + size - u64[TAIL_OFF] > self._room_bytes:
                return False
            if self.state.new_epoch_wanted:
                self.open_epoch()
            seq, flags, record = u64[HEAD_SEQ] + 1, 0, data
            if self.numbers is None:
                self._last_time = self.clock.next()
            else:
                _, flags, record, size, crc = self._numbered(self.numbers, flags, record, size, crc)
            self._maps[volume].mark(self.bitmaps.live, offset, length)
            epoch = self.state.hist[-1][0]
            header = pack_header(kind, flags, epoch, seq, self._last_time, volume, size, offset, length, crc)
            try:
                self.journal.append(header, record, seq, epoch)
            except OSError as e:
                raise self.lose_journal(f"its journal cannot be written: {e}") from e
            self._maps[volume].clear_covered(TODO, offset, length)
            if of_host_write and self.waits:
                self.unanswered.add(seq, volume, offset, length, 0)
            return True
