"""RAID 5 and 6: stripes with one or two parity chunks.

A write holds the stripe lock of its row while it reads what it needs and writes data and parity. Three ways, the
cheapest in reads wins:
* the whole row: encode, write; nothing is read and nothing copied, data goes out as slices of the caller's buffer;
* read-modify-write: old data and old parity in, new parity = old parity + coefficient * (old + new);
* reconstruct-write: read the data that does not change, encode.
While a member is missing from the row there is one way only: recover the whole old row, put the new data in, encode,
write what changed to those that are there.

Between the writes of one row a crash leaves parity that fits neither the old nor the new data: the write hole. The
region's mark is durable before the first of them (the caller's duty), and resync_area makes parity good at the next
open. That needs every data column: while a member is missing, each row first goes to the stripe journal
(stripejournal.py), which repeats it whole.

Columns: data 0..k-1, P = k, Q = k + 1. Work is limited to the columns' byte range [lo, hi) that the write touches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from raidlib.errors import MediumError
from raidlib.fillrows import fill_parity, rows_at_a_time
from raidlib.gf256 import generator, recovery, update
from raidlib.member import Member
from raidlib.parity import Scratch, Span, span_of
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState
from raidlib.stripejournal import COLUMNS, PUNCHED, StripeJournal, read_journal

Piece = tuple[int, int, int, int]
"""Part of a write: column, offset in the chunk, offset in the write, size."""


class _ReadFailed(Exception):
    """A column could not be read: try again without that member."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


class ParityGroup(RaidGroup):
    """A RAID 5 or RAID 6 group."""

    _local = threading.local()
    _journal: StripeJournal | None = None

    def write(self, area: int, off: int, view: memoryview) -> None:
        """See RaidGroup."""
        geometry = self.geometry
        row_bytes = geometry.data_chunks * geometry.chunk_bytes
        span = span_of(view)
        at, end = off, off + len(view)
        while at < end:
            row_in_area, start = divmod(at, row_bytes)
            n = min(row_bytes - start, end - at)
            row = area * geometry.rows_per_area + row_in_area
            if self.degraded and not self.info.journaled:
                self.secure_degraded()
            with self._locks[row & 255]:
                self._write_row(row, start, span.part(at - off, at - off + n), n)
            at += n

    def punch_area(self, area: int) -> None:
        """See RaidGroup."""
        journal = self._journal if self.info.journaled else None
        if journal is None:
            super().punch_area(area)
        else:
            with journal.journaled(PUNCHED, area, {}):
                super().punch_area(area)

    def secure_degraded(self) -> None:
        """See RaidGroup. Waits for every row write in progress, syncs, and starts the stripe journal."""
        if not self.degraded or self.lost or self.info.journaled:
            return
        with self.all_rows():
            if self.info.journaled or self.lost:
                return
            self.ledger.sync_members()
            with self.ledger.lock:
                self.begin_journal()
                self.ledger.commit()

    def begin_journal(self) -> None:
        """See RaidGroup."""
        if self.info.journaled:
            return
        good = [member for member in self.members if member.info.state is MemberState.IN_SYNC]
        copies = self.geometry.parity_chunks - (len(self.members) - len(good)) + 1
        generation = self.ledger.state.generation + 1
        self._journal = StripeJournal(
            self.layout, good[:copies], generation, self.ledger.sync_members, self.ledger.fail
        )
        self.info.journaled = generation

    def replay_journal(self) -> int:
        """See RaidGroup."""
        if not self.info.journaled:
            return 0
        entries = read_journal(self.layout, self.members, self.info.journaled)
        for entry in entries:
            if entry.kind == PUNCHED:
                super().punch_area(entry.row)
                continue
            at = self._row_offset(entry.row)
            for column, (inner, data) in entry.columns.items():
                member = self._holder(entry.row, column)
                if member.has_row(entry.row):
                    try:
                        member.live_file().pwrite(data, at + inner)
                    except OSError as exc:
                        self.ledger.fail(member, f"replay of the stripe journal: {exc.strerror}")
        self.ledger.sync_members()
        # The durable state names this journal until secure_degraded() starts the next: replaying it twice is harmless.
        self.info.journaled = 0
        return len(entries)

    def zero(self, area: int, off: int, length: int) -> None:
        """See RaidGroup. Whole rows are zeroed at once, parity too: the parity of zeroes is zero."""
        geometry = self.geometry
        row_bytes = geometry.data_chunks * geometry.chunk_bytes
        first, last = -(-off // row_bytes), (off + length) // row_bytes
        if first >= last or self.degraded:
            super().zero(area, off, length)
            return
        super().zero(area, off, first * row_bytes - off)
        super().zero(area, last * row_bytes, off + length - last * row_bytes)
        for row in range(area * geometry.rows_per_area + first, area * geometry.rows_per_area + last):
            with self._locks[row & 255]:
                at = self._row_offset(row)
                for member in self.members:
                    if member.has_row(row):
                        try:
                            member.live_file().zero(at, geometry.chunk_bytes)
                        except OSError as exc:
                            self.ledger.fail(member, f"zero: {exc.strerror}")

    def read_hard(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """See RaidGroup. Recovers the piece from the other columns; writes it back when the member is there."""
        row_in_area, column = divmod(chunk, self.geometry.data_chunks)
        row = area * self.geometry.rows_per_area + row_in_area
        member = self.members[self.geometry.member_of(row, column)]
        at = self._row_offset(row) + inner
        with self._locks[row & 255]:
            if member.has_row(row):
                try:
                    member.live_file().preadinto(piece, at)
                    return
                except OSError:
                    member.read_errors += 1
            found = self._recover(row, inner, inner + len(piece), [column], {column})
            piece[:] = found[column].view
            if member.has_row(row):
                try:
                    member.live_file().pwrite(piece, at)
                except OSError as exc:
                    self.ledger.fail(member, f"read and rewrite: {exc.strerror}")

    def resync_area(self, area: int) -> int:
        """See RaidGroup. With a data column missing, it is taken from P as it stands: call so only when forced."""
        geometry = self.geometry
        k, written = geometry.data_chunks, 0
        parity = list(range(k, k + geometry.parity_chunks))
        first_row = area * geometry.rows_per_area
        for row in range(first_row, first_row + geometry.rows_per_area):
            data = self._recover(row, 0, geometry.chunk_bytes, list(range(k)), set())
            made = [span.part(0, geometry.chunk_bytes) for span in self._scratch().spans[-len(parity) :]]
            sources = [data[column] for column in range(k)]
            self.engine.apply(generator(k, len(parity))[k:], sources, made, geometry.chunk_bytes)
            for column, new in zip(parity, made, strict=True):
                member = self._holder(row, column)
                if member.has_row(row):
                    written += self._make_equal(member, new.view, self._row_offset(row))
        return written

    def rebuild_area(self, area: int, member: Member) -> None:
        """See RaidGroup."""
        geometry = self.geometry
        first_row = area * geometry.rows_per_area
        step = rows_at_a_time(geometry.chunk_bytes)
        for row in range(first_row, first_row + geometry.rows_per_area, step):
            count = min(step, first_row + geometry.rows_per_area - row)
            with self._lock_rows(row, row + count - 1):
                if fill_parity(self, member, row, count):
                    member.rebuilt_rows = row + count
                    continue
            for single in range(row, row + count):
                self.rebuild_row(single, member)

    def rebuild_row(self, row: int, member: Member) -> None:
        """See RaidGroup."""
        column = self._column_of(row, member)
        with self._locks[row & 255]:
            found = self._recover(row, 0, self.geometry.chunk_bytes, [column], {column})
            member.live_file().pwrite(found[column].view, self._row_offset(row))
            self._has_now(member, row)

    # One row; its stripe lock is held

    def _write_row(self, row: int, start: int, new: Span, n: int) -> None:
        k, chunk_bytes = self.geometry.data_chunks, self.geometry.chunk_bytes
        if self.degraded and any(not member.has_row(row) for member in self.members):
            self._write_degraded(row, start, new, n)
        elif n == k * chunk_bytes:
            sources = [new.part(i * chunk_bytes, (i + 1) * chunk_bytes) for i in range(k)]
            self._encode_and_write(row, 0, chunk_bytes, sources, {i: (0, s.view) for i, s in enumerate(sources)})
        else:
            pieces = _pieces(start, n, chunk_bytes)
            lo, hi = _byte_range(pieces)
            reads_to_reconstruct = k - sum(size == hi - lo for _, _, _, size in pieces)
            try:
                if len(pieces) + self.geometry.parity_chunks <= reads_to_reconstruct:
                    self._modify(row, lo, hi, pieces, new)
                else:
                    self._reconstruct_write(row, lo, hi, pieces, new)
            except _ReadFailed:
                self._write_degraded(row, start, new, n)

    def _modify(self, row: int, lo: int, hi: int, pieces: list[Piece], new: Span) -> None:
        """Read-modify-write."""
        k, length = self.geometry.data_chunks, hi - lo
        scratch = iter(self._scratch().spans)
        old, fresh = [], []
        data: dict[int, tuple[int, memoryview]] = {}
        for column, inner, at, size in pieces:
            before = next(scratch).part(0, length)
            self._read_column(row, column, lo, before.view)
            old.append(before)
            view = new.view[at : at + size]
            data[column] = inner, view
            if size == length:
                fresh.append(new.part(at, at + size))
            else:
                after = next(scratch).part(0, length)
                after.view[:] = before.view
                after.view[inner - lo : inner - lo + size] = view
                fresh.append(after)
        kept, made = [], []
        parity = tuple(range(self.geometry.parity_chunks))
        for which in parity:
            before = next(scratch).part(0, length)
            self._read_column(row, k + which, lo, before.view)
            kept.append(before)
            made.append(next(scratch).part(0, length))
        matrix = update(k, len(parity), tuple(data), parity)
        self.engine.apply(matrix, [*old, *fresh, *kept], made, length)
        for which in parity:
            data[k + which] = lo, made[which].view
        self._write_columns(row, data)

    def _reconstruct_write(self, row: int, lo: int, hi: int, pieces: list[Piece], new: Span) -> None:
        """Read the columns that stay, encode all."""
        length = hi - lo
        changed = {piece[0]: piece for piece in pieces}
        scratch = iter(self._scratch().spans)
        sources: list[Span] = []
        data: dict[int, tuple[int, memoryview]] = {}
        for column in range(self.geometry.data_chunks):
            _, inner, at, size = changed.get(column, (column, 0, 0, 0))
            if size == length:
                span = new.part(at, at + size)
                data[column] = inner, span.view
            else:
                span = next(scratch).part(0, length)
                self._read_column(row, column, lo, span.view)
                if size:
                    view = new.view[at : at + size]
                    data[column] = inner, view
                    span.view[inner - lo : inner - lo + size] = view
            sources.append(span)
        self._encode_and_write(row, lo, length, sources, data)

    def _write_degraded(self, row: int, start: int, new: Span, n: int) -> None:
        """Recover the old row without what is missing or unreadable, put the new data in, encode, write."""
        k = self.geometry.data_chunks
        pieces = _pieces(start, n, self.geometry.chunk_bytes)
        lo, hi = _byte_range(pieces)
        whole = {column for column, _, _, size in pieces if size == hi - lo}
        wanted = [column for column in range(k) if column not in whole]
        found = self._recover(row, lo, hi, wanted, set()) if wanted else {}
        data: dict[int, tuple[int, memoryview]] = {}
        for column, inner, at, size in pieces:
            view = new.view[at : at + size]
            data[column] = inner, view
            if column in whole:
                found[column] = new.part(at, at + size)
            else:
                found[column].view[inner - lo : inner - lo + size] = view
        self._encode_and_write(row, lo, hi - lo, [found[column] for column in range(k)], data)

    def _encode_and_write(
        self, row: int, lo: int, length: int, sources: Sequence[Span], data: dict[int, tuple[int, memoryview]]
    ) -> None:
        """Compute parity of all data columns over [lo, lo + length); write the changed data and it."""
        k, r = self.geometry.data_chunks, self.geometry.parity_chunks
        made = [span.part(0, length) for span in self._scratch().spans[-r:]]
        self.engine.apply(generator(k, r)[k:], sources, made, length)
        for i, span in enumerate(made):
            data[k + i] = lo, span.view
        self._write_columns(row, data)

    def _write_columns(self, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        """Write (offset in the chunk, bytes) of each column to its member, where the row has it.

        A member that cannot be written is failed, and the rest is written: its content is then in the parity.
        """
        if self.info.journaled and self._journal is not None:
            with self._journal.journaled(COLUMNS, row, columns):
                self._write_in_place(row, columns)
        else:
            self._write_in_place(row, columns)
        if self.lost:
            self.raise_lost()

    def _write_in_place(self, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        at = self._row_offset(row)
        for column, (inner, view) in columns.items():
            member = self._holder(row, column)
            if member.has_row(row):
                try:
                    member.live_file().pwrite(view, at + inner)
                except OSError as exc:
                    self.ledger.fail(member, f"write: {exc.strerror}")

    def _recover(self, row: int, lo: int, hi: int, wanted: list[int], without: set[int]) -> dict[int, Span]:
        """Return the wanted columns over [lo, hi), read or solved for, in scratch buffers.

        Columns in `without` are not read. Raises MediumError when too many columns are gone.
        """
        geometry = self.geometry
        k, r, length = geometry.data_chunks, geometry.parity_chunks, hi - lo
        gone = set(without)
        while True:
            present = [c for c in range(k + r) if c not in gone and self._holder(row, c).has_row(row)]
            direct = [c for c in wanted if c in present]
            solved = [c for c in wanted if c not in present]
            basis = present[:k] if solved else direct
            if solved and len(basis) < k:
                raise MediumError(
                    f"group {self.info.name}: row {row} has lost more chunks than RAID {self.info.level} can bear",
                    "restore the volume from a replica",
                )
            scratch = iter(self._scratch().spans)
            spans: dict[int, Span] = {}
            try:
                for column in sorted({*basis, *direct}):
                    spans[column] = next(scratch).part(0, length)
                    self._read_column(row, column, lo, spans[column].view)
            except _ReadFailed as exc:
                gone.add(exc.column)
                continue
            if solved:
                for column in solved:
                    spans[column] = next(scratch).part(0, length)
                matrix = recovery(k, r, tuple(basis), tuple(solved))
                self.engine.apply(matrix, [spans[c] for c in basis], [spans[c] for c in solved], length)
            return spans

    def _read_column(self, row: int, column: int, lo: int, view: memoryview) -> None:
        member = self._holder(row, column)
        try:
            member.live_file().preadinto(view, self._row_offset(row) + lo)
        except OSError:
            member.read_errors += 1
            raise _ReadFailed(column) from None

    def _make_equal(self, member: Member, truth: memoryview, at: int) -> int:
        have = self._scratch().spans[-3].part(0, len(truth)).view
        try:
            member.live_file().preadinto(have, at)
            if have == truth:
                return 0
        except OSError:
            member.read_errors += 1  # writing it may make it readable again
        try:
            member.live_file().pwrite(truth, at)
        except OSError as exc:
            self.ledger.fail(member, f"resync write: {exc.strerror}")
        return 1

    def _holder(self, row: int, column: int) -> Member:
        return self.members[self.geometry.member_of(row, column)]

    def _column_of(self, row: int, member: Member) -> int:
        geometry = self.geometry
        return next(c for c in range(geometry.members) if geometry.member_of(row, c) == member.index)

    def _row_offset(self, row: int) -> int:
        return self.layout.data_offset + row * self.geometry.chunk_bytes

    def _scratch(self) -> Scratch:
        """This thread's buffers: one per column twice over, and the last three for new parity and comparing."""
        key = 2 * self.geometry.members + 6, self.geometry.chunk_bytes
        pools: dict[tuple[int, int], Scratch] | None = getattr(self._local, "pools", None)
        if pools is None:
            pools = self._local.pools = {}
        scratch = pools.get(key)
        if scratch is None:
            scratch = pools[key] = Scratch(*key)
        return scratch


def _pieces(start: int, n: int, chunk_bytes: int) -> list[Piece]:
    """Cut a write into a row at the chunks."""
    pieces = []
    at = 0
    while at < n:
        column, inner = divmod(start + at, chunk_bytes)
        size = min(chunk_bytes - inner, n - at)
        pieces.append((column, inner, at, size))
        at += size
    return pieces


def _byte_range(pieces: list[Piece]) -> tuple[int, int]:
    """The byte range within chunks that covers all pieces."""
    lo = min(inner for _, inner, _, _ in pieces)
    hi = max(inner + size for _, inner, _, size in pieces)
    return lo, hi
