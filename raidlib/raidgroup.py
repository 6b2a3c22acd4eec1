"""What the levels have in common: tables for the hot path, the healthy read, stripe locks, zeroing.

A group's data is reached by (area, offset in the area). For each chunk of an area a table holds the function that
reads it, so that the hot path is: two list look-ups, an addition, one system call. Where a member is gone the table
holds a function that answers -1, which sends the caller to the slow path; so the hot path never asks about states.

Subclasses (striped, mirrored, parity) say how to write, how to read when the table cannot, how to make an area
consistent after a crash and how to rebuild it on a new member.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NoReturn

from raidlib.blockfile import RawRead
from raidlib.checksums import BLOCK_BYTES
from raidlib.errors import MediumError, OutOfSpace
from raidlib.geometry import Geometry
from raidlib.intents import IntentMap
from raidlib.layout import Layout
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.parity import Engine
from raidlib.state import GroupInfo, MemberState

ReadTable = list[RawRead]
ZEROES = memoryview(bytes(1 << 20))
STRIPE_LOCKS = 256


def unavailable(_bufs: object, _off: int, _flags: int = 0) -> int:
    """Stands in the tables for a member that cannot be used."""
    return -1


class RaidGroup:
    """One open RAID group. Offsets and lengths are bytes; `off` counts from the start of an area."""

    def __init__(
        self,
        index: int,
        info: GroupInfo,
        geometry: Geometry,
        layout: Layout,
        members: list[Member],
        ledger: Ledger,
        engine: Engine,
        marked: Iterable[int] = (),
    ) -> None:
        self.index = index
        self.info = info
        self.geometry = geometry
        self.layout = layout
        self.members = members
        self.ledger = ledger
        self.engine = engine
        self.intents = IntentMap(-(-info.areas // info.region_areas), marked, self._store_intents, ledger.map_lock)
        self.checksums = layout.table_bytes > 0
        self.grain = BLOCK_BYTES if self.checksums else 1
        """Writes that begin and end at its multiples need nothing of what stood there."""
        self.unsettled_blocks = 0
        """Blocks being written at an unclean stop that fitted no checksum after it, and were kept as they were."""
        self.lost_blocks = 0
        """Blocks that rebuilds since the pool was opened could not restore."""
        self.vacating = threading.Lock()
        """Held while a free area is punched, and by a scrub while it writes to an area that is not free."""
        self.lost = False
        self.degraded = False
        self.writer = self.write
        """write(), bound once: hot closures hold it."""
        self.chunk_shift = geometry.chunk_bytes.bit_length() - 1
        self.row_offset = [c // geometry.data_chunks * geometry.chunk_bytes for c in range(geometry.chunks_per_area)]
        rotations = geometry.members if geometry.rotates else 1
        self.read_tables: list[ReadTable] = [[unavailable] * geometry.chunks_per_area for _ in range(rotations)]
        self._area_member_bytes = geometry.area_member_bytes
        self._locks = [threading.Lock() for _ in range(STRIPE_LOCKS)]
        self.refresh()

    # Tables

    def refresh(self) -> None:
        """Fill the tables anew after a member's state changed, in place: everybody holds the same lists."""
        lost = {member.index for member in self.members if member.info.state is not MemberState.IN_SYNC}
        self.degraded = bool(lost)
        self.lost = not self.geometry.survives(lost)
        files = [member.file for member in self.members if member.file is not None]
        self._once_flags = files[0].once_flags if len({file.once_flags for file in files}) == 1 else 0
        geometry = self.geometry
        for rotation, table in enumerate(self.read_tables):
            for chunk in range(geometry.chunks_per_area):
                row, column = divmod(chunk, geometry.data_chunks)
                member = self._reader(rotation + row, column, chunk)
                table[chunk] = unavailable if member is None else member.live_file().raw_preadv

    def entry(self, area: int) -> tuple[ReadTable, int]:
        """What the hot read path needs of an area: its table, and its place on every member."""
        first_row = area * self.geometry.rows_per_area
        return self.read_tables[first_row % len(self.read_tables)], self.member_offset(area)

    def member_offset(self, area: int) -> int:
        """Byte offset of an area on every member."""
        return self.layout.data_offset + area * self._area_member_bytes

    @property
    def least_bytes(self) -> int:
        """Bytes that a member must have."""
        return self.member_offset(self.info.areas)

    def region_of(self, area: int) -> int:
        """The write-intent region of an area."""
        return area // self.info.region_areas

    def _reader(self, row: int, column: int, chunk: int) -> Member | None:
        """The member the table reads a chunk from; None when the slow path must."""
        member = self.members[self.geometry.member_of(row, column)]
        return member if member.info.state is MemberState.IN_SYNC and member.file is not None else None

    # Data

    def read(self, area: int, off: int, view: memoryview, *, once: bool = False) -> None:
        """Fill `view`. Raises MediumError when the bytes cannot be had, not even from redundancy.

        once: nobody will want them again soon, the page cache need not keep them.
        """
        table, base = self.entry(area)
        flags = self._once_flags if once else 0
        shift, mask = self.chunk_shift, self.geometry.chunk_bytes - 1
        at, end = 0, len(view)
        while at < end:
            chunk, inner = off >> shift, off & mask
            n = min(mask + 1 - inner, end - at)
            piece = view[at : at + n]
            try:
                good = table[chunk]([piece], base + self.row_offset[chunk] + inner, flags) == n
            except OSError:
                good = False
            if not good:
                self._read_hard_by_blocks(area, chunk, inner, piece)
            at += n
            off += n

    def read_hard(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """Fill `piece` from within one chunk by all means there are; repair what turned out unreadable.

        With checksums it is a whole block. Raises MediumError.
        """
        raise NotImplementedError

    def _read_hard_by_blocks(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """read_hard; with checksums block by block, for each may be good on another member."""
        if not self.checksums:
            self.read_hard(area, chunk, inner, piece)
            return
        end = inner + len(piece)
        block = memoryview(bytearray(BLOCK_BYTES))
        for at in range(inner // BLOCK_BYTES * BLOCK_BYTES, end, BLOCK_BYTES):
            self.read_hard(area, chunk, at, block)
            start, stop = max(at, inner), min(at + BLOCK_BYTES, end)
            piece[start - inner : stop - inner] = block[start - at : stop - at]

    def heal(self, row: int, lo: int, hi: int, bad: set[int]) -> None:
        """Write bytes [lo, hi) of a row's chunks on the members `bad` anew, from the others.

        Call with the row's stripe lock held, in an allocated area; with checksums lo and hi are of one block.
        Raises MediumError when they cannot be had; then nothing was written. Durable: nothing.
        """
        raise NotImplementedError

    def write(self, area: int, off: int, view: memoryview) -> None:
        """Write `view`. The area's region must be marked. Raises MediumError when redundancy is exhausted.

        Durable: nothing; after a power cut the area may hold any mixture until the marks are dealt with.
        """
        raise NotImplementedError

    def zero(self, area: int, off: int, length: int) -> None:
        """Make a range read as zeroes; its space stays reserved. Otherwise like write()."""
        end = off + length
        while off < end:
            n = min(len(ZEROES), end - off)
            self.write(area, off, ZEROES[:n])
            off += n

    def reserve_areas(self, first: int, count: int) -> None:
        """Make sure that writes to a run of areas find space on every member, before any depends on it.

        A stripe that is half written when the filesystem under a member turns out to be full would cost redundancy.
        Raises OutOfSpace; then nothing but unused space is reserved. Durable: nothing.
        """
        at, length = self.member_offset(first), count * self._area_member_bytes
        for member in self.members:
            if member.carries:
                try:
                    member.live_file().reserve(at, length)
                except OSError as exc:
                    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise OutOfSpace(
                            f"the filesystem that {member.path} is on is full", "make space there, or trim volumes"
                        ) from exc
                    self.ledger.fail(member, f"reserve: {exc.strerror}")

    def punch_area(self, area: int) -> None:
        """Zero an unused area on every member, parity included. Raises MediumError. Durable: nothing."""
        at = self.member_offset(area)
        with self.vacating:
            for member in self.members:
                if member.carries:
                    try:
                        member.live_file().punch(at, self._area_member_bytes)
                    except OSError as exc:
                        self.ledger.fail(member, f"punch: {exc.strerror}")

    def secure_degraded(self) -> None:
        """After a member was lost: make sure that a crash from now on leaves no write hole. Raises MediumError.

        Before the next write in any case. Durable: that, and all data.
        """

    def begin_journal(self) -> None:
        """Have the next commit say that writes are journaled from now on, if this level needs that.

        Call with every stripe lock held, all data synced, under the ledger's lock, and commit.
        """

    def retire_member(self, member: Member, reason: str) -> None:
        """Take a member out in good order: unlike after an error, no crash meets a write hole on the way.

        Raises MediumError when the group cannot do without it. Durable: that it is out.
        """
        with self.all_rows():
            self.ledger.sync_members()
            self.ledger.fail(member, reason, in_order=True, before_commit=self.begin_journal)

    def replay_journal(self) -> int:
        """After an unclean stop, before anything else: finish journaled writes; return how many there were."""
        return 0

    def settle_row(self, row: int) -> None:
        """Finish a write that a member refused half way, if there was one. Its stripe lock is held. Raises MediumError.

        Durable: nothing.
        """

    def resync_area(self, area: int, *, trust_parity: bool = False) -> int:
        """Make parity or mirrors agree after a crash; return how many chunks had to be written.

        Call before the area is used. Raises MediumError; Refused when what cannot be read could be had only from parity
        that may not fit, unless it is to be trusted. Durable: nothing.
        """
        raise NotImplementedError

    def rebuild_area(self, area: int, member: Member) -> None:
        """Write the area's share of a rebuilding member, row by row, under load. Raises MediumError, OSError (target).

        Sets member.rebuilt_rows as it goes, under the rows' locks. Durable: nothing.
        """
        raise NotImplementedError

    def rebuild_row(self, row: int, member: Member) -> None:
        """Write one row's chunk of a member from the others. Raises MediumError, OSError (the member).

        A rebuilding member has the row from then on.
        """
        raise NotImplementedError

    def heal_area(self, area: int, member: Member) -> None:
        """Write from the others what of an area a member cannot give. Raises MediumError, OSError (the member)."""
        chunk_bytes, rows = self.geometry.chunk_bytes, self.geometry.rows_per_area
        for row in range(area * rows, (area + 1) * rows):
            try:
                member.live_file().pread(chunk_bytes, self.layout.data_offset + row * chunk_bytes)
            except OSError as exc:
                member.count_error(exc)
                self.rebuild_row(row, member)

    # Inside

    def _restore_blocks(self, member: Member, at: int, chunk: Callable[[int, int], bytes | memoryview]) -> None:
        """Write a chunk of a rebuilding member at `at`; chunk(lo, hi) gives bytes of it, or raises MediumError.

        With checksums what cannot be had is spoilt block by block: reads of it then fail, and all else is redundant
        again. Without them it stops the rebuild, for nobody could tell later. Raises MediumError, OSError (target).
        """
        size, file = self.geometry.chunk_bytes, member.live_file()
        try:
            file.pwrite(chunk(0, size), at)
            return
        except MediumError:
            if self.lost or member.checked is None:
                raise
        for lo in range(0, size, BLOCK_BYTES):
            try:
                data = chunk(lo, lo + BLOCK_BYTES)
            except MediumError:
                if self.lost:
                    raise
                member.checked.spoil(at + lo)
                self.lost_blocks += 1
            else:
                file.pwrite(data, at + lo)

    @staticmethod
    def _has_now(member: Member, row: int) -> None:
        """A row was written to a member whose rows below it are right. Call under the row's lock."""
        if member.info.state is MemberState.REBUILDING:
            member.rebuilt_rows = row + 1

    def _store_intents(self, offset: int, data: bytes, durable: bool) -> None:
        [(at, _, _)] = self.layout.intent_pieces(offset, offset + len(data))
        for member in self.members:
            if member.carries:
                try:
                    if durable:
                        member.live_file().pwrite_durable(data, at)
                    else:
                        member.live_file().pwrite(data, at)
                except OSError as exc:
                    self.ledger.fail(member, f"intent map write: {exc.strerror}", even_if_lost=True)

    def all_rows(self) -> ExitStack:
        """Hold every stripe lock: nobody is within a stripe."""
        return self._lock_rows(0, STRIPE_LOCKS - 1)

    def rewrite(self, member: Member, data: bytes | memoryview, at: int, why: str) -> None:
        """Write what a read found wrong; a member that does not take it is failed (MediumError if it cannot be)."""
        try:
            member.live_file().pwrite(data, at)
            member.repaired += 1
        except OSError as exc:
            self.ledger.fail(member, f"{why}: {exc.strerror}")

    def _lock_rows(self, first: int, last: int) -> ExitStack:
        """Hold the stripe locks of rows first..last, taken in one order everywhere."""
        stack = ExitStack()
        for index in sorted({row % STRIPE_LOCKS for row in range(first, last + 1)}):
            stack.enter_context(self._locks[index])
        return stack

    def raise_lost(self) -> NoReturn:
        """Raise MediumError for a group that has lost too many members."""
        names = ", ".join(member.path for member in self.members if member.info.state is not MemberState.IN_SYNC)
        raise MediumError(
            f"group {self.info.name} has lost more members than RAID {self.info.level} can bear: {names}",
            "take over on the replica; or restart the node with node start --force, then check the data",
        )
