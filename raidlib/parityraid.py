"""RAID 5 and 6: stripes with one or two parity chunks.

A write holds the stripe lock of its row while it reads what it needs and writes data and parity (paritywrites.py). What
there is to know of single rows is in parityrows.py.

Between the writes of one row a crash leaves parity that fits neither the old nor the new data: the write hole. The
region's mark is durable before the first of them (the caller's duty), and resync_area makes parity good at the next
open. That needs every data column: while a member is missing, each row first goes to the stripe journal
(stripejournal.py), which repeats it whole.
"""

from __future__ import annotations

from functools import partial

from raidlib.degradedread import read_row
from raidlib.errors import Refused
from raidlib.fillrows import fill_parity, rows_at_a_time
from raidlib.gf256 import generator
from raidlib.member import Member
from raidlib.parity import span_of
from raidlib.paritywrites import ParityWrites, cut
from raidlib.reconcile import settle_parity
from raidlib.state import MemberState
from raidlib.stripejournal import PUNCHED, StripeJournal, read_journal


class ParityGroup(ParityWrites):
    """A RAID 5 or RAID 6 group."""

    _replayed = False

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
                done = not self._torn and read_row(self, row, cut(start, n, geometry.chunk_bytes), into, flags)
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
        self._journal = StripeJournal(self.layout, good[:copies], generation, self._complete_and_sync, self.ledger.fail)
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
