"""The stripe journal: closes the write hole of a degraded RAID 5 or 6 group.

While a data chunk of a row is known only through parity, a crash between the writes of that row loses it, even if
nobody wrote to it. So as long as a group is degraded, everything a row write will change (data and parity) is first
made durable here, then written in place. After a crash the journal is written in place again, in order, and every row
is as after its last journaled write.

The journal is a log at a fixed place on the members, begun anew (a new session) when it is full: by then all in-place
writes are done (gate) and stable (sync). Rules that make replaying safe:
* from start() until the group is whole again *every* change of a row is journaled, punching included: replay cannot
  undo a newer change that it does not know;
* records are made durable one after the other, so the first one that is not valid ends the log;
* a session number is never used twice: its upper half is the pool generation at start(), which the group's durable
  state names; records of any other start are not replayed.
It is kept on as many members as could still be lost when it began, plus one: so each loss that the group survives
leaves at least one copy, and the journal goes on without the lost one.

Record, little-endian, padded with zeroes to 512 bytes:

    offset  size  field
         0     4  magic     "FSSJ"
         4     4  crc       CRC32C of bytes 8..end, without padding
         8     8  session   generation << 32 | count
        16     4  number    in the session, from 0
        20     2  kind      1 columns, 2 punched area
        22     2  columns   how many follow
        24     8  row       row, or area
        32        for each column: u32 column, u32 offset in the chunk, u32 length; then their bytes
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from crc32c import crc32c

from raidlib.gate import Gate
from raidlib.geometry import Geometry
from raidlib.layout import Layout
from raidlib.member import Member
from raidlib.state import MemberState

MAGIC = b"FSSJ"
COLUMNS, PUNCHED = 1, 2
_HEAD = struct.Struct("<4sIQIHHQ")
_COLUMN = struct.Struct("<III")
_ALIGN = 512


@dataclass(frozen=True)
class Entry:
    """One decoded record. columns: column -> (offset in the chunk, bytes)."""

    kind: int
    row: int
    columns: dict[int, tuple[int, bytes]]


def journal_bytes(geometry: Geometry, usable: int) -> int:
    """Room for a group's journal on each member: eight full rows where that is little, at least one."""
    if not geometry.parity_chunks:
        return 0
    record = _ALIGN + geometry.members * (geometry.chunk_bytes + _COLUMN.size)
    record = -(-record // 4096) * 4096
    return max(1, min(8, usable // 32 // record)) * record


class StripeJournal:
    """The journal of one group, while it runs.

    sync() makes every member's writes stable; fail(member, reason) takes a member out.
    """

    def __init__(
        self,
        layout: Layout,
        holders: list[Member],
        generation: int,
        sync: Callable[[], None],
        fail: Callable[[Member, str], None],
    ) -> None:
        self._layout = layout
        self._holders = holders
        self._session = generation << 32
        self._sync = sync
        self._fail = fail
        self._lock = threading.Lock()
        self._gate = Gate()
        self._used = 0
        self._number = 0

    @contextmanager
    def journaled(self, kind: int, row: int, columns: Mapping[int, tuple[int, memoryview]]) -> Iterator[None]:
        """Journal a change; make it in place within the with block. Raises MediumError.

        Durable when the block begins: the record.
        """
        leave = self._append(kind, row, columns)
        try:
            yield
        finally:
            leave()

    def _append(self, kind: int, row: int, columns: Mapping[int, tuple[int, memoryview]]) -> Callable[[], int]:
        with self._lock:
            size = _record_bytes(sum(len(view) for _, view in columns.values()), len(columns))
            if self._used + size > self._layout.journal_bytes:
                self._gate.wait()
                self._sync()
                self._session += 1
                self._used = self._number = 0
            record = encode(self._session, self._number, kind, row, columns)
            enter, leave = self._gate.pair
            enter()
            try:
                for member in self._holders:
                    if member.info.state is not MemberState.FAILED:
                        try:
                            member.live_file().pwrite_durable(record, self._layout.journal_offset + self._used)
                        except OSError as exc:
                            self._fail(member, f"stripe journal: {exc.strerror}")
            except BaseException:
                leave()
                raise
            self._used += size
            self._number += 1
            return leave


def encode(session: int, number: int, kind: int, row: int, columns: Mapping[int, tuple[int, memoryview]]) -> bytes:
    """Return the bytes of a record, padded."""
    parts = [_HEAD.pack(MAGIC, 0, session, number, kind, len(columns), row)]
    parts += [_COLUMN.pack(column, inner, len(view)) for column, (inner, view) in columns.items()]
    body = b"".join([*parts, *(view for _, view in columns.values())])
    body = body[:4] + struct.pack("<I", crc32c(body[8:])) + body[8:]
    return body + bytes(-len(body) % _ALIGN)


def decode(journal: bytes, generation: int) -> list[tuple[int, int, Entry]]:
    """Return (session, number, entry) of the records at the start of a journal that belong to a start()."""
    found: list[tuple[int, int, Entry]] = []
    at = 0
    while at + _HEAD.size <= len(journal):
        magic, crc, session, number, kind, count, row = _HEAD.unpack_from(journal, at)
        if magic != MAGIC or session >> 32 != generation or number != len(found):
            break
        if found and session != found[0][0]:
            break
        places = at + _HEAD.size
        data_at = places + count * _COLUMN.size
        if data_at > len(journal):
            break
        heads = [_COLUMN.unpack_from(journal, places + i * _COLUMN.size) for i in range(count)]
        end = data_at + sum(length for _, _, length in heads)
        if end > len(journal) or crc != crc32c(journal[at + 8 : end]):
            break
        columns: dict[int, tuple[int, bytes]] = {}
        for column, inner, length in heads:
            columns[column] = inner, journal[data_at : data_at + length]
            data_at += length
        found.append((session, number, Entry(kind, row, columns)))
        at = -(-end // _ALIGN) * _ALIGN
    return found


def read_journal(layout: Layout, members: list[Member], generation: int) -> list[Entry]:
    """Return what must be written in place again: the longest journal of the latest session on any member."""
    best: list[tuple[int, int, Entry]] = []
    for member in members:
        if member.carries:
            try:
                journal = member.live_file().pread(layout.journal_bytes, layout.journal_offset)
            except OSError:
                member.read_errors += 1
                continue
            found = decode(journal, generation)
            if found and (not best or (found[0][0], len(found)) > (best[0][0], len(best))):
                best = found
    return [entry for _, _, entry in best]


def _record_bytes(data: int, columns: int) -> int:
    size = _HEAD.size + columns * _COLUMN.size + data
    return -(-size // _ALIGN) * _ALIGN
