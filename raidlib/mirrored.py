"""RAID 1 and 10: every data chunk on several members.

Two writes that overlap must reach all copies in one order, or the copies differ for ever: so a write holds the stripe
locks of its rows while it writes every copy. Reads spread over the copies by row and take no lock. A copy that
cannot be read is read elsewhere and written back; if that write fails too, the member is failed.

After a crash the copies of a marked region may differ. The first member in sync is made the truth: any answer is right
for writes that were in flight, but all copies must give the same.
"""

from __future__ import annotations

from functools import partial

from raidlib.checksums import BLOCK_BYTES
from raidlib.errors import MediumError
from raidlib.fillrows import fill_mirror, rows_at_a_time
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.reconcile import settle_mirrored
from raidlib.state import MemberState


class MirroredGroup(RaidGroup):
    """A RAID 1 or RAID 10 group."""

    def _reader(self, row: int, column: int, chunk: int) -> Member | None:
        good = [
            self.members[i]
            for i in self.geometry.copies_of(column)
            if self.members[i].info.state is MemberState.IN_SYNC and self.members[i].file is not None
        ]
        return good[row % len(good)] if good else None

    def read_hard(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """See RaidGroup."""
        row_in_area, column = divmod(chunk, self.geometry.data_chunks)
        row = area * self.geometry.rows_per_area + row_in_area
        at = self.member_offset(area) + self.row_offset[chunk] + inner
        copies = [self.members[i] for i in self.geometry.copies_of(column)]
        with self._lock_rows(row, row):
            unreadable: list[Member] = []
            for member in copies:
                if not member.has_row(row):
                    continue
                try:
                    member.live_file().preadinto(piece, at)
                    break
                except OSError as exc:
                    member.count_error(exc)
                    unreadable.append(member)
            else:
                if unreadable:
                    names = ", ".join(member.path for member in unreadable)
                    raise MediumError(f"group {self.info.name}: no copy can be read ({names})", "check the disks")
                self.raise_lost()
            for member in unreadable:
                self.rewrite(member, piece, at, "read and rewrite")

    def heal(self, row: int, lo: int, hi: int, bad: set[int]) -> None:
        """See RaidGroup."""
        at = self.layout.data_offset + row * self.geometry.chunk_bytes + lo
        for column in sorted({index // self.geometry.copies for index in bad}):
            copies = self.geometry.copies_of(column)
            sources = [m for i in copies if i not in bad and (m := self.members[i]).has_row(row)]
            if not sources:
                names = ", ".join(self.members[i].path for i in copies)
                raise MediumError(
                    f"group {self.info.name}: row {row} is good on no member ({names})", "restore it from a replica"
                )
            data = self._read_any(sources, hi - lo, at)
            for index in bad & set(copies):
                self.rewrite(self.members[index], data, at, "repair")

    def write(self, area: int, off: int, view: memoryview) -> None:
        """See RaidGroup."""
        geometry = self.geometry
        if self.checksums and (off | len(view)) & BLOCK_BYTES - 1:
            self._write_parts(area, off, view)
            return
        first_row, base = area * geometry.rows_per_area, self.member_offset(area)
        if geometry.data_chunks == 1:
            # Level 1: the area is contiguous on each copy.
            first = first_row + (off >> self.chunk_shift)
            last = first_row + ((off + len(view) - 1) >> self.chunk_shift)
            with self._locks[first & 255] if first == last else self._lock_rows(first, last):
                self._write_copies(0, first, base + off, view)
            return
        at, end, chunk_bytes = off, off + len(view), geometry.chunk_bytes
        while at < end:
            chunk, inner = divmod(at, chunk_bytes)
            n = min(chunk_bytes - inner, end - at)
            row_in_area, column = divmod(chunk, geometry.data_chunks)
            row = first_row + row_in_area
            with self._locks[row & 255]:
                self._write_copies(column, row, base + self.row_offset[chunk] + inner, view[at - off : at - off + n])
            at += n

    def zero(self, area: int, off: int, length: int) -> None:
        """See RaidGroup."""
        if self.geometry.data_chunks != 1 or (self.checksums and (off | length) & BLOCK_BYTES - 1):
            super().zero(area, off, length)
            return
        first_row = area * self.geometry.rows_per_area
        first = first_row + (off >> self.chunk_shift)
        with self._lock_rows(first, first_row + ((off + length - 1) >> self.chunk_shift)):
            self._write_copies(0, first, self.member_offset(area) + off, None, length)

    def resync_area(self, area: int, *, trust_parity: bool = False) -> int:
        """See RaidGroup."""
        if self.checksums:
            return settle_mirrored(self, area)
        geometry = self.geometry
        size, written = geometry.area_member_bytes, 0
        at = self.member_offset(area)
        for column in range(geometry.data_chunks):
            copies = [self.members[i] for i in geometry.copies_of(column)]
            sources = [m for m in copies if m.info.state is MemberState.IN_SYNC]
            if not sources:
                self.raise_lost()
            truth = self._read_any(sources, size, at)
            for member in copies:
                if member.info.state is MemberState.IN_SYNC or area < member.info.rebuilt_areas:
                    written += self._make_equal(member, truth, at)
        return written

    def rebuild_area(self, area: int, member: Member) -> None:
        """See RaidGroup."""
        geometry = self.geometry
        sources = self._sources(member)
        first_row = area * geometry.rows_per_area
        step = rows_at_a_time(geometry.chunk_bytes)
        for row in range(first_row, first_row + geometry.rows_per_area, step):
            count = min(step, first_row + geometry.rows_per_area - row)
            with self._lock_rows(row, row + count - 1):
                if fill_mirror(self, sources, member, row, count):
                    member.rebuilt_rows = row + count
                    continue
            for single in range(row, row + count):
                self.rebuild_row(single, member)

    def rebuild_row(self, row: int, member: Member) -> None:
        """See RaidGroup."""
        at = self.layout.data_offset + row * self.geometry.chunk_bytes
        with self._lock_rows(row, row):
            self._restore_blocks(member, at, partial(self._part, self._sources(member), at))
            self._has_now(member, row)

    def _sources(self, member: Member) -> list[Member]:
        """The other copies of a member that are in sync."""
        geometry = self.geometry
        copies = geometry.copies_of(member.index // geometry.copies)
        sources = [
            self.members[i] for i in copies if i != member.index and self.members[i].info.state is MemberState.IN_SYNC
        ]
        if not sources:
            self.raise_lost()
        return sources

    def _write_parts(self, area: int, off: int, view: memoryview) -> None:
        """Write parts of checksummed blocks: the rest of each comes from a copy whose checksum fits."""
        end = off + len(view)
        first, last = off // BLOCK_BYTES * BLOCK_BYTES, end // BLOCK_BYTES * BLOCK_BYTES
        for at in sorted({first, last}):
            start, stop = max(at, off), min(at + BLOCK_BYTES, end)
            if start < stop and stop - start < BLOCK_BYTES:
                self._modify_block(area, at, start - at, view[start - off : stop - off])
        start, stop = -(-off // BLOCK_BYTES) * BLOCK_BYTES, last
        if start < stop:
            self.write(area, start, view[start - off : stop - off])

    def _modify_block(self, area: int, off: int, inner: int, part: memoryview) -> None:
        """Put `part` at byte `inner` into the block of an area that begins at `off`, on every copy."""
        chunk, start = divmod(off, self.geometry.chunk_bytes)
        row_in_area, column = divmod(chunk, self.geometry.data_chunks)
        row = area * self.geometry.rows_per_area + row_in_area
        at = self.member_offset(area) + self.row_offset[chunk] + start
        with self._locks[row & 255]:
            sources = [m for i in self.geometry.copies_of(column) if (m := self.members[i]).has_row(row)]
            if not sources:
                self.raise_lost()
            block = memoryview(bytearray(self._read_any(sources, BLOCK_BYTES, at)))
            block[inner : inner + len(part)] = part
            self._write_copies(column, row, at, block)

    def _write_copies(self, column: int, row: int, at: int, view: memoryview | None, length: int = 0) -> None:
        """Write (or with view None zero) at `at` on every copy; the range begins in `row`. Locks are held."""
        length = length if view is None else len(view)
        members = [self.members[index] for index in self.geometry.copies_of(column)]
        if self.degraded:
            # What the last good copy refuses must not come to light later, on a copy that is being filled.
            members.sort(key=lambda member: member.info.state is not MemberState.IN_SYNC)
        for member in members:
            n = length
            if member.info.state is MemberState.REBUILDING:
                n = min(n, self.layout.data_offset + member.rebuilt_rows * self.geometry.chunk_bytes - at)
            elif member.info.state is not MemberState.IN_SYNC:
                continue
            if n <= 0:
                continue
            try:
                if view is None:
                    member.live_file().zero(at, n)
                else:
                    member.live_file().pwrite(view if n == length else view[:n], at)
            except OSError as exc:
                self.ledger.fail(member, f"write: {exc.strerror}")
        if self.lost:
            self.raise_lost()

    def _part(self, sources: list[Member], at: int, lo: int, hi: int) -> bytes:
        return self._read_any(sources, hi - lo, at + lo)

    def _read_any(self, sources: list[Member], n: int, at: int) -> bytes:
        trouble: OSError | None = None
        for member in sources:
            try:
                return member.live_file().pread(n, at)
            except OSError as exc:
                member.count_error(exc)
                trouble = exc
        if self.checksums and n > BLOCK_BYTES:
            # Each block may be good on another copy.
            return b"".join(self._read_any(sources, BLOCK_BYTES, at + i) for i in range(0, n, BLOCK_BYTES))
        raise MediumError(f"group {self.info.name}: no copy can be read: {trouble}", "check the disks")

    def _make_equal(self, member: Member, truth: bytes, at: int) -> int:
        try:
            if member.live_file().pread(len(truth), at) == truth:
                return 0
        except OSError:
            member.read_errors += 1  # writing it may make it readable again
        try:
            member.live_file().pwrite(truth, at)
        except OSError as exc:
            self.ledger.fail(member, f"resync write: {exc.strerror}")
        return 1
