"""The rows of a RAID 5 or 6 group: where columns lie, recovering what is missing, writing what was computed.

Whoever calls in here holds the row's stripe lock. Columns: data 0..k-1, P = k, Q = k + 1. Work is limited to a byte
range [lo, hi) of the columns.

A write that a member refuses and that cannot go on without it leaves a row half written: its caller gets an error, but
what other columns of the row hold must not change with it. So the row is kept in `_torn` with what was to be written,
and whoever comes to it next completes that first, or gets the error too. The stripe journal does not begin anew before.
"""

from __future__ import annotations

import threading
from typing import Any

from raidlib.checksums import BLOCK_BYTES
from raidlib.errors import MediumError
from raidlib.gf256 import recovery
from raidlib.member import Member
from raidlib.parity import Scratch, Span
from raidlib.raidgroup import RaidGroup
from raidlib.stripejournal import COLUMNS, StripeJournal


class ReadFailed(Exception):
    """A column could not be read: try again without that member."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


class ParityRows(RaidGroup):
    """The part of a RAID 5 or 6 group that knows single rows."""

    _local = threading.local()
    _journal: StripeJournal | None = None

    def __init__(self, *args: Any, **more: Any) -> None:
        self._torn: dict[int, dict[int, tuple[int, memoryview]]] = {}
        """Rows half written: column -> (offset in the chunk, bytes) to be written before anything else there."""
        super().__init__(*args, **more)
        n = self.geometry.members
        self._row_members = [[self.geometry.member_of(row, column) for column in range(n)] for row in range(n)]

    def _reader(self, row: int, column: int, chunk: int) -> Member | None:
        """See RaidGroup. While a row is torn every read goes the slow way, where that is looked at."""
        return None if self._torn else super()._reader(row, column, chunk)

    # Writing a row

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

    # Recovering columns of a row

    def _missing(self, row: int, column: int, lo: int, hi: int) -> memoryview:
        """Bytes of a column, from the others."""
        return self._recover(row, lo, hi, [column], {column})[column].view

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
            except ReadFailed as exc:
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
            except ReadFailed:
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
            raise ReadFailed(column) from None

    # Where things lie

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
