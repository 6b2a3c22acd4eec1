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

A write that a member refuses and that cannot go on without it leaves a row half written: its caller gets an error, but
what other columns of the row hold must not change with it. So the row is kept in `_torn` with what was to be written,
and whoever comes to it next completes that first, or gets the error too. The stripe journal does not begin anew before.

Columns: data 0..k-1, P = k, Q = k + 1. Work is limited to the columns' byte range [lo, hi) that the write touches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from raidlib.checksums import BLOCK_BYTES
from raidlib.degradedread import read_row
from raidlib.errors import MediumError, Refused
from raidlib.fillrows import fill_parity, rows_at_a_time
from raidlib.gf256 import generator, recovery, update
from raidlib.member import Member
from raidlib.parity import Scratch, Span, span_of
from raidlib.raidgroup import RaidGroup
from raidlib.reconcile import settle_parity
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
    _replayed = False

    def __init__(self, *args: Any, **more: Any) -> None:
        self._torn: dict[int, dict[int, tuple[int, memoryview]]] = {}
        """Rows half written: column -> (offset in the chunk, bytes) to be written before anything else there."""
        super().__init__(*args, **more)
        n = self.geometry.members
        self._row_members = [[self.geometry.member_of(row, column) for column in range(n)] for row in range(n)]

    def _reader(self, row: int, column: int, chunk: int) -> Member | None:
        """See RaidGroup. While a row is torn every read goes the slow way, where that is looked at."""
        return None if self._torn else super()._reader(row, column, chunk)

    def read(self, area: int, off: int, view: memoryview, *, once: bool = False) -> None:
        """See RaidGroup. While members are gone, row by row."""
        if not self.degraded or self._torn:
            super().read(area, off, view, once=once)
            return
        geometry = self.geometry
        row_bytes = geometry.data_chunks * geometry.chunk_bytes
        span = span_of(view)
        flags = self._once_flags if once else 0
        at, end = off, off + len(view)
        while at < end:
            row_in_area, start = divmod(at, row_bytes)
            n = min(row_bytes - start, end - at)
            row = area * geometry.rows_per_area + row_in_area
            into = span.part(at - off, at - off + n)
            with self._locks[row & 255]:
                done = not self._torn and read_row(self, row, _pieces(start, n, geometry.chunk_bytes), into, flags)
            if not done:
                super().read(area, at, into.view, once=once)
            at += n

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
        first_row = area * self.geometry.rows_per_area
        for row in range(first_row, first_row + self.geometry.rows_per_area):
            self._forget_torn(row)
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
        if self._torn:
            self._complete_and_sync()
        good = [member for member in self.members if member.info.state is MemberState.IN_SYNC]
        copies = self.geometry.parity_chunks - (len(self.members) - len(good)) + 1
        generation = self.ledger.state.generation + 1
        self._journal = StripeJournal(
            self.layout, good[:copies], generation, self._complete_and_sync, self.ledger.fail
        )
        self.info.journaled = generation

    def replay_journal(self) -> int:
        """See RaidGroup."""
        if not self.info.journaled:
            return 0
        self._replayed = True
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
                self._forget_torn(row)

    def read_hard(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """See RaidGroup. Recovers the piece from the other columns; writes it back when the member is there."""
        row_in_area, column = divmod(chunk, self.geometry.data_chunks)
        row = area * self.geometry.rows_per_area + row_in_area
        member = self.members[self.geometry.member_of(row, column)]
        at = self._row_offset(row) + inner
        with self._locks[row & 255]:
            if self._torn:
                self.settle_row(row)
            if member.has_row(row):
                try:
                    member.live_file().preadinto(piece, at)
                    return
                except OSError as exc:
                    member.count_error(exc)
            found = self._recover(row, inner, inner + len(piece), [column], {column})
            piece[:] = found[column].view
            if member.has_row(row):
                self.rewrite(member, piece, at, "read and rewrite")

    def heal(self, row: int, lo: int, hi: int, bad: set[int]) -> None:
        """See RaidGroup."""
        columns = [column for column in range(len(self.members)) if self.geometry.member_of(row, column) in bad]
        found = self._recover(row, lo, hi, columns, set(columns))
        for column in columns:
            self.rewrite(self._holder(row, column), found[column].view, self._row_offset(row) + lo, "repair")

    def resync_area(self, area: int, *, trust_parity: bool = False) -> int:
        """See RaidGroup. With trust_parity, missing and unreadable data is taken from parity as it stands."""
        if self.checksums:
            return settle_parity(self, area, self._replayed)
        geometry = self.geometry
        k, written = geometry.data_chunks, 0
        parity = list(range(k, k + geometry.parity_chunks))
        first_row = area * geometry.rows_per_area
        for row in range(first_row, first_row + geometry.rows_per_area):
            errors = sum(member.read_errors for member in self.members)
            data = self._recover(row, 0, geometry.chunk_bytes, list(range(k)), set())
            if not trust_parity and errors != sum(member.read_errors for member in self.members):
                raise self._torn_and_unreadable(row)
            made = [span.part(0, geometry.chunk_bytes) for span in self.scratch().spans[-len(parity) :]]
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
                for one in range(row, row + count):
                    self.settle_row(one)
                if fill_parity(self, member, row, count):
                    member.rebuilt_rows = row + count
                    continue
            for single in range(row, row + count):
                self.rebuild_row(single, member)

    def rebuild_row(self, row: int, member: Member) -> None:
        """See RaidGroup."""
        column = self._column_of(row, member)
        with self._locks[row & 255]:
            self._restore_blocks(member, self._row_offset(row), partial(self._missing, row, column))
            self._has_now(member, row)

    def _torn_and_unreadable(self, row: int) -> Refused:
        names = ", ".join(member.path for member in self.members if member.read_errors)
        return Refused(
            f"group {self.info.name} stopped uncleanly; row {row} may be damaged, and cannot be read from {names}",
            "copy what can be read of that disk to a new one and put it in its place; or take over on the replica; or"
            " node start --force, then check the data",
        )

    # One row; its stripe lock is held

    def _missing(self, row: int, column: int, lo: int, hi: int) -> memoryview:
        """Bytes of a column, from the others."""
        return self._recover(row, lo, hi, [column], {column})[column].view

    def _write_row(self, row: int, start: int, new: Span, n: int) -> None:
        k, chunk_bytes = self.geometry.data_chunks, self.geometry.chunk_bytes
        if self._torn:
            self.settle_row(row)
        if self.degraded and any(not member.has_row(row) for member in self.members):
            self._write_degraded(row, start, new, n)
        elif n == k * chunk_bytes:
            sources = [new.part(i * chunk_bytes, (i + 1) * chunk_bytes) for i in range(k)]
            self._encode_and_write(row, 0, chunk_bytes, sources, {i: (0, s.view) for i, s in enumerate(sources)})
        else:
            pieces = _pieces(start, n, chunk_bytes)
            lo, hi = self._byte_range(pieces)
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
        scratch = iter(self.scratch().spans)
        old, fresh = [], []
        data: dict[int, tuple[int, memoryview]] = {}
        for column, inner, at, size in pieces:
            before = next(scratch).part(0, length)
            self._read_column(row, column, lo, before.view)
            old.append(before)
            if size == length:
                after = new.part(at, at + size)
                data[column] = inner, after.view
            else:
                after = next(scratch).part(0, length)
                after.view[:] = before.view
                data[column] = self._put(after.view, lo, inner, new.view[at : at + size])
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
        scratch = iter(self.scratch().spans)
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
                    data[column] = self._put(span.view, lo, inner, new.view[at : at + size])
            sources.append(span)
        self._encode_and_write(row, lo, length, sources, data)

    def _write_degraded(self, row: int, start: int, new: Span, n: int) -> None:
        """Recover the old row without what is missing or unreadable, put the new data in, encode, write."""
        k = self.geometry.data_chunks
        pieces = _pieces(start, n, self.geometry.chunk_bytes)
        lo, hi = self._byte_range(pieces)
        whole = {column for column, _, _, size in pieces if size == hi - lo}
        wanted = [column for column in range(k) if column not in whole]
        found = self._recover(row, lo, hi, wanted, set()) if wanted else {}
        data: dict[int, tuple[int, memoryview]] = {}
        for column, inner, at, size in pieces:
            if column in whole:
                found[column] = new.part(at, at + size)
                data[column] = inner, found[column].view
            else:
                data[column] = self._put(found[column].view, lo, inner, new.view[at : at + size])
        self._encode_and_write(row, lo, hi - lo, [found[column] for column in range(k)], data)

    def _encode_and_write(
        self, row: int, lo: int, length: int, sources: Sequence[Span], data: dict[int, tuple[int, memoryview]]
    ) -> None:
        """Compute parity of all data columns over [lo, lo + length); write the changed data and it."""
        k, r = self.geometry.data_chunks, self.geometry.parity_chunks
        made = [span.part(0, length) for span in self.scratch().spans[-r:]]
        self.engine.apply(generator(k, r)[k:], sources, made, length)
        for i, span in enumerate(made):
            data[k + i] = lo, span.view
        self._write_columns(row, data)

    def _put(self, column: memoryview, lo: int, inner: int, part: memoryview) -> tuple[int, memoryview]:
        """Put a part of a write into a column's bytes from `lo` on; return (offset in the chunk, bytes) to write.

        Those are the part, or the whole blocks around it on a checksummed group: writing them again needs nothing of
        what stands there, which after a crash may fit no checksum.
        """
        column[inner - lo : inner - lo + len(part)] = part
        start, end = inner // self.grain * self.grain, -(-(inner + len(part)) // self.grain) * self.grain
        return start, column[start - lo : end - lo]

    def _byte_range(self, pieces: list[Piece]) -> tuple[int, int]:
        """The byte range within chunks that covers all pieces; whole blocks on a checksummed group."""
        lo = min(inner for _, inner, _, _ in pieces)
        hi = max(inner + size for _, inner, _, size in pieces)
        return lo // self.grain * self.grain, -(-hi // self.grain) * self.grain

    def _write_columns(self, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        """Write (offset in the chunk, bytes) of each column to its member, where the row has it.

        A member that cannot be written is failed, and the rest is written: its content is then in the parity.
        """
        if self.info.journaled and self._journal is not None:
            with self._journal.journaled(COLUMNS, row, columns):
                self._write_or_tear(row, columns)
        else:
            self._write_or_tear(row, columns)
        if self.lost:
            self.raise_lost()

    def _write_or_tear(self, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        try:
            self._write_in_place(row, columns)
        except MediumError:
            with self.ledger.lock:
                self._torn[row] = {column: (at, memoryview(bytes(view))) for column, (at, view) in columns.items()}
                self.refresh()
            raise

    def settle_row(self, row: int) -> None:
        """See RaidGroup. Its stripe lock is held, or nobody is within a stripe."""
        columns = self._torn.get(row)
        if columns is not None:
            self._write_in_place(row, columns)
            self._forget_torn(row)

    def _forget_torn(self, row: int) -> None:
        if row in self._torn:
            with self.ledger.lock:
                self._torn.pop(row, None)
                self.refresh()

    def _complete_and_sync(self) -> None:
        """Raises MediumError. Durable: every row written before, whole."""
        for row in list(self._torn):
            self.settle_row(row)
        self.ledger.sync_members()

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
        try:
            return self._recover_range(row, lo, hi, wanted, without)
        except MediumError:
            if not self.checksums or hi - lo <= BLOCK_BYTES:
                raise
        # Block by block: each may be damaged on another member.
        made = dict(zip(wanted, Scratch(len(wanted), hi - lo).spans, strict=True))
        for at in range(lo, hi, BLOCK_BYTES):
            found = self._recover_range(row, at, at + BLOCK_BYTES, wanted, without)
            for column in wanted:
                made[column].view[at - lo : at - lo + BLOCK_BYTES] = found[column].view
        return made

    def _recover_range(self, row: int, lo: int, hi: int, wanted: list[int], without: set[int]) -> dict[int, Span]:
        geometry = self.geometry
        k, r, length = geometry.data_chunks, geometry.parity_chunks, hi - lo
        if self._torn:
            self.settle_row(row)
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
            scratch = iter(self.scratch().spans)
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
                unproven = [c for c in solved if not self._fits_place(row, c, lo, spans[c].view)]
                if unproven and not self._agrees(row, lo, spans, basis, present, next(scratch), next(scratch)):
                    names = ", ".join(self._holder(row, c).path for c in unproven)
                    raise MediumError(
                        f"group {self.info.name}: row {row}: {names} is damaged, and so is what could repair it",
                        "restore the volume from a replica",
                    )
            return spans

    def _fits_place(self, row: int, column: int, lo: int, made: memoryview) -> bool:
        """Whether what was solved for a column is what it should hold, as far as its checksums know.

        If it does not fit them, but is what the column holds, it is the checksum that is wrong.
        """
        member = self._holder(row, column)
        file = member.checked
        if not member.has_row(row) or file is None:
            return True
        at = self._row_offset(row) + lo
        try:
            if file.fits(made, file.block_of(at)).all():
                return True
        except OSError:
            return True  # the entries cannot be read, so they say nothing
        try:
            return file.inner.pread(len(made), at) == bytes(made)
        except OSError:
            return False

    def _agrees(
        self, row: int, lo: int, spans: dict[int, Span], basis: list[int], present: list[int], have: Span, made: Span
    ) -> bool:
        """Whether a column that was not needed to solve agrees with those that were: then none of them is stale."""
        others = [column for column in present if column not in basis]
        length = len(spans[basis[0]].view)
        for column in others[:1]:
            have, made = have.part(0, length), made.part(0, length)
            try:
                self._read_column(row, column, lo, have.view)
            except _ReadFailed:
                return False
            matrix = recovery(self.geometry.data_chunks, self.geometry.parity_chunks, tuple(basis), (column,))
            self.engine.apply(matrix, [spans[c] for c in basis], [made], length)
            return bytes(have.view) == bytes(made.view)
        return False

    def _read_column(self, row: int, column: int, lo: int, view: memoryview) -> None:
        member = self._holder(row, column)
        try:
            member.live_file().preadinto(view, self._row_offset(row) + lo)
        except OSError as exc:
            member.count_error(exc)
            raise _ReadFailed(column) from None

    def _make_equal(self, member: Member, truth: memoryview, at: int) -> int:
        have = self.scratch().spans[-3].part(0, len(truth)).view
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

    def members_of_row(self, row: int) -> list[int]:
        """The members that hold the columns of a row, by column."""
        return self._row_members[row % len(self._row_members)]

    def _row_offset(self, row: int) -> int:
        return self.layout.data_offset + row * self.geometry.chunk_bytes

    def scratch(self) -> Scratch:
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
