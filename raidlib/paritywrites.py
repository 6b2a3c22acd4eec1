"""How a write changes a row of a RAID 5 or 6 group. Three ways, the cheapest in reads wins:

* the whole row: encode, write; nothing is read and nothing copied, data goes out as slices of the caller's buffer;
* read-modify-write: old data and old parity in, new parity = old parity + coefficient * (old + new);
* reconstruct-write: read the data that does not change, encode.

While a member is missing from the row there is one way only: recover the whole old row, put the new data in, encode,
write what changed to those that are there.

The caller holds the row's stripe lock.
"""

from __future__ import annotations

from collections.abc import Sequence

from raidlib.gf256 import generator, update
from raidlib.parity import Span
from raidlib.parityrows import ParityRows, ReadFailed

Piece = tuple[int, int, int, int]
"""Part of a write: column, offset in the chunk, offset in the write, size."""


class ParityWrites(ParityRows):
    """The part of a RAID 5 or 6 group that chooses how to write a row."""

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
            pieces = cut(start, n, chunk_bytes)
            lo, hi = self._byte_range(pieces)
            reads_to_reconstruct = k - sum(size == hi - lo for _, _, _, size in pieces)
            try:
                if len(pieces) + self.geometry.parity_chunks <= reads_to_reconstruct:
                    self._modify(row, lo, hi, pieces, new)
                else:
                    self._reconstruct_write(row, lo, hi, pieces, new)
            except ReadFailed:
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
        pieces = cut(start, n, self.geometry.chunk_bytes)
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


def cut(start: int, n: int, chunk_bytes: int) -> list[Piece]:
    """Cut a write into a row at the chunks."""
    pieces = []
    at = 0
    while at < n:
        column, inner = divmod(start + at, chunk_bytes)
        size = min(chunk_bytes - inner, n - at)
        pieces.append((column, inner, at, size))
        at += size
    return pieces
