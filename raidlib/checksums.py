"""Block checksums of one member: a BlockFile that finds silent corruption in what it reads.

A group is checksummed or not from its making (Layout.table_bytes says which). On a checksummed one every member's file
is wrapped here, and the RAID levels above see a block whose checksum does not fit as a block that cannot be read: they
get it from redundancy and write it anew. Metadata, marks and the stripe journal have CRCs of their own and pass
through.

The table lies on the member itself, before its data: one entry of 4 bytes for each block of 4096 bytes of data.
An entry is the block's CRC32C xor mask(n), mask(n) = CRC32C(member uuid) + n * 0x9E3779B1 mod 2^32: an entry fits at
one place of one member only. 0 stands for "never written, reads as zeroes", so that a hole needs no entry; where the
formula gives 0 the entry is 0xFFFFFFFF. On a group that has grown, each extension of the layout has the entries of the
blocks from there on, and the parts in it pass through like those before the data. No request goes across its start.

What is found: bits that flipped; blocks zeroed, torn, or written by somebody else; a write that went to another place
(both places are wrong then); a write of data that never reached the medium, because the entry did, with another write,
to another place; and the same for a lost or misplaced write of the table. What is not: data and entry both lost, so
that both are old together. Only redundancy can show that; a scrub compares it (scrub.py).

Data and entry are two writes, data first; a crash may leave one without the other. Such blocks lie in regions that the
intent log marks, and reconcile.py settles them at the next open. Nothing else ever takes over a block that does not
fit.

Locks: a write holds the block locks of its range over both writes. A read takes none; when something does not fit it
reads again under the lock, so a write in between is not taken for corruption. The locks are innermost: nothing is
called from within but the file itself.

Entries are not cached here: the page cache does that, in 1/1024 of the memory that the data would take.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from raidlib.blockfile import BlockFile, Buffer
from raidlib.layout import Layout

BLOCK_BYTES = 4096
ENTRY_BYTES = 4
_STEP = 0x9E3779B1
_LOW = 0xFFFFFFFF
_ZERO_CRC = crc32c(bytes(BLOCK_BYTES))
_LOCK_SHIFT = 8  # blocks that share a lock: 1 MiB
_LOCKS = 64

Entries = npt.NDArray[np.uint32]
Fits = npt.NDArray[np.bool_]


def table_bytes(data_bytes: int) -> int:
    """Bytes a table takes for so many bytes of data."""
    return -(-data_bytes // BLOCK_BYTES) * ENTRY_BYTES


class ChecksumMismatch(OSError):
    """Blocks do not fit their checksums. An OSError, for whoever reads must go the way of an unreadable block."""

    def __init__(self, path: str, blocks: Sequence[int]) -> None:
        many = f"{len(blocks)} blocks" if len(blocks) > 1 else "a block"
        super().__init__(errno.EBADMSG, f"the checksum of {many} does not fit", path)
        self.blocks = list(blocks)
        """Numbers of blocks, from the start of the member's data."""


class ChecksummedFile:
    """A member's file with verified data. Obeys BlockFile."""

    def __init__(self, inner: BlockFile, layout: Layout, member_uuid: str) -> None:
        self.inner = inner
        """The file itself, unverified."""
        self.path = inner.path
        self.once_flags = inner.once_flags
        self.parallel_sync = inner.parallel_sync
        self.raw_preadv = self._raw_preadv
        self.raw_pwrite = self._raw_pwrite
        self.pwrite_durable = inner.pwrite_durable  # of metadata; data is never written so
        self.fdatasync = inner.fdatasync
        self.zeroes_fast = inner.zeroes_fast
        self.close = inner.close
        self._data = layout.data_offset
        self._table = layout.table_offset
        self.extend(layout)
        self._salt = crc32c(bytes.fromhex(member_uuid))
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def extend(self, layout: Layout) -> None:
        """Know of all extensions of the layout from now on."""
        self._parts = tuple((extension.start, extension.end) for extension in layout.extensions)
        self._tables = tuple(
            (self.block_of(extension.start), extension.table_offset) for extension in reversed(layout.extensions)
        )
        self._first_blocks = self._tables[-1][0] if self._tables else 1 << 62

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.inner.size

    def remeasure(self) -> int:
        """See BlockFile."""
        return self.inner.remeasure()

    @property
    def gone(self) -> bool:
        """See BlockFile."""
        return self.inner.gone

    # Reading

    def pread(self, n: int, off: int) -> bytes:
        """See BlockFile. Raises ChecksumMismatch."""
        buf = bytearray(n)
        self.preadinto(buf, off)
        return bytes(buf)

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """See BlockFile. Raises ChecksumMismatch."""
        if self._is_part(off) or not len(buf):
            return self.inner.preadinto(buf, off)
        view = memoryview(buf).cast("B")
        if (off - self._data | len(view)) & BLOCK_BYTES - 1:
            start, end = self._cover(off, len(view))
            whole = bytearray(end - start)
            self.preadinto(whole, start)
            view[:] = memoryview(whole)[off - start : off - start + len(view)]
        else:
            self.inner.preadinto(view, off)
            self._verify(view, off)
        return len(view)

    def read_medium(self, buf: memoryview, off: int) -> None:
        """See BlockFile. Unverified; fits() tells."""
        self.inner.read_medium(buf, off)

    def _raw_preadv(self, bufs: Sequence[bytearray | memoryview], off: int, flags: int = 0) -> int:
        if self._is_part(off):
            return self.inner.raw_preadv(bufs, off, flags)
        total = sum(map(len, bufs))
        if (off - self._data) & BLOCK_BYTES - 1 or any(len(buf) & BLOCK_BYTES - 1 for buf in bufs):
            whole = memoryview(self.pread(total, off))
            for buf in bufs:
                memoryview(buf).cast("B")[:], whole = whole[: len(buf)], whole[len(buf) :]
            return total
        if self.inner.raw_preadv(bufs, off, flags) != total:
            return -1
        for buf in bufs:
            self._verify(memoryview(buf).cast("B"), off)
            off += len(buf)
        return total

    def _verify(self, view: memoryview, off: int) -> None:
        """Raise ChecksumMismatch unless whole blocks read at `off` fit, at the latest when no write is under way."""
        first = (off - self._data) // BLOCK_BYTES
        if len(view) == BLOCK_BYTES:
            entry = int.from_bytes(self.inner.pread(ENTRY_BYTES, self._entry_at(first)), "little")
            raw = crc32c(view)
            if entry == self._entry(raw, first) or (not entry and raw == _ZERO_CRC):
                return
        elif self.fits(view, first).all():
            return
        with self._locked(first, first + len(view) // BLOCK_BYTES):
            self.inner.preadinto(view, off)
            fits = self.fits(view, first)
        if not fits.all():
            raise ChecksumMismatch(self.path, [first + int(i) for i in np.flatnonzero(~fits)])

    def fits(self, view: memoryview, first: int) -> Fits:
        """For each whole block in `view`, as if read from block `first` on: whether its entry fits. Raises OSError."""
        raw = _crcs(view)
        stored = self.entries(first, len(raw))
        fits: Fits = (stored == self._entries(raw, first)) | ((stored == 0) & (raw == _ZERO_CRC))
        return fits

    def entries(self, first: int, count: int) -> Entries:
        """The entries of a run of blocks as they stand in the table. Raises OSError."""
        table = self.inner.pread(count * ENTRY_BYTES, self._entry_at(first))
        return np.frombuffer(table, "<u4")

    def block_of(self, off: int) -> int:
        """The number of the block that holds a byte of the member."""
        return (off - self._data) // BLOCK_BYTES

    # Writing

    def pwrite(self, buf: Buffer, off: int) -> None:
        """See BlockFile. Raises ChecksumMismatch when part of a block is written that does not fit: nothing changed."""
        if self._is_part(off) or not len(buf):
            self.inner.pwrite(buf, off)
            return
        view = memoryview(buf).cast("B")
        if (off - self._data | len(view)) & BLOCK_BYTES - 1:
            self._modify(view, off)
            return
        first = self.block_of(off)
        entries = self._make(view, first)
        with self._locked(first, first + len(view) // BLOCK_BYTES):
            self.inner.pwrite(view, off)
            self.inner.pwrite(entries, self._entry_at(first))

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """See BlockFile; and as pwrite."""
        self.pwrite(bufs[0] if len(bufs) == 1 else b"".join(bufs), off)

    def _raw_pwrite(self, buf: Buffer, off: int) -> int:
        try:
            self.pwrite(buf, off)
        except ChecksumMismatch:
            return -1  # the caller's slow path says what is wrong
        return len(buf)

    def _modify(self, view: memoryview, off: int) -> None:
        """Write parts of blocks: what stays of them is read and must fit, or its corruption would be taken over."""
        start, end = self._cover(off, len(view))
        first, last = self.block_of(start), self.block_of(end)
        with self._locked(first, last):
            whole = memoryview(bytearray(end - start))
            for block in {first, last - 1}:
                at = (block - first) * BLOCK_BYTES
                piece = whole[at : at + BLOCK_BYTES]
                self.inner.preadinto(piece, start + at)
                if not self.fits(piece, block).all():
                    raise ChecksumMismatch(self.path, [block])
            whole[off - start : off - start + len(view)] = view
            self.inner.pwrite(view, off)
            self.inner.pwrite(self._make(whole, first), self._entry_at(first))

    def punch(self, off: int, length: int) -> None:
        """See BlockFile. The blocks count as never written."""
        self._clear(self.inner.punch, off, length)

    def zero(self, off: int, length: int) -> None:
        """See BlockFile. The blocks count as never written."""
        self._clear(self.inner.zero, off, length)

    def _clear(self, clear: Any, off: int, length: int) -> None:
        if self._is_part(off) or length <= 0:
            clear(off, length)
            return
        end = off + length
        start, stop = self._cover(off, length)
        start += BLOCK_BYTES * (start < off)
        stop -= BLOCK_BYTES * (stop > end)
        if start >= stop:
            self.pwrite(bytes(length), off)
            return
        for at, n in ((off, start - off), (stop, end - stop)):
            if n:
                self.pwrite(bytes(n), at)
        first, last = self.block_of(start), self.block_of(stop)
        with self._locked(first, last):
            clear(start, stop - start)
            self.inner.pwrite(bytes((last - first) * ENTRY_BYTES), self._entry_at(first))

    def spoil(self, off: int) -> None:
        """Make the block at `off` one that does not fit: what belongs there is lost, and reads must say so."""
        block = self.block_of(off)
        entry = self._entry(_ZERO_CRC, block)
        entry ^= 1 if entry != 1 else 2
        with self._locked(block, block + 1):
            self.inner.pwrite(bytes(BLOCK_BYTES), off)
            self.inner.pwrite(entry.to_bytes(ENTRY_BYTES, "little"), self._entry_at(block))

    def reserve(self, off: int, length: int) -> None:
        """See BlockFile: data and its entries."""
        self.inner.reserve(off, length)
        if not self._is_part(off) and length > 0:
            start, end = self._cover(off, length)
            first = self.block_of(start)
            self.inner.reserve(self._entry_at(first), (self.block_of(end) - first) * ENTRY_BYTES)

    # Inside

    def _is_part(self, off: int) -> bool:
        """Whether what begins at `off` has no entries: marks, metadata, the stripe journal, the table itself."""
        return off < self._data or (bool(self._parts) and any(start <= off < end for start, end in self._parts))

    def _entry_at(self, block: int) -> int:
        """The byte of the member where a block's entry is; those of the blocks behind it follow."""
        if block < self._first_blocks:
            return self._table + block * ENTRY_BYTES
        return next(at + (block - first) * ENTRY_BYTES for first, at in self._tables if block >= first)

    def _cover(self, off: int, length: int) -> tuple[int, int]:
        """The whole blocks that cover a range, as offsets on the member."""
        start, end = off - self._data, off - self._data + length
        return (
            self._data + start // BLOCK_BYTES * BLOCK_BYTES,
            self._data + -(-end // BLOCK_BYTES) * BLOCK_BYTES,
        )

    def _entry(self, raw: int, block: int) -> int:
        return raw ^ (self._salt + block * _STEP & _LOW) or _LOW

    def _entries(self, raw: Entries, first: int) -> Entries:
        blocks = np.arange(first, first + len(raw), dtype=np.uint64)
        masks = (self._salt + blocks * np.uint64(_STEP) & np.uint64(_LOW)).astype(np.uint32)
        made = raw ^ masks
        made[made == 0] = _LOW
        return made

    def _make(self, view: memoryview, first: int) -> bytes:
        """The table's bytes for whole blocks."""
        if len(view) == BLOCK_BYTES:
            return self._entry(crc32c(view), first).to_bytes(ENTRY_BYTES, "little")
        return self._entries(_crcs(view), first).astype("<u4").tobytes()

    def _locked(self, first: int, last: int) -> threading.Lock | ExitStack:
        """The locks of blocks [first, last), in one order everywhere; a context manager."""
        low, high = first >> _LOCK_SHIFT, last - 1 >> _LOCK_SHIFT
        if low == high:
            return self._locks[low % _LOCKS]
        stack = ExitStack()
        for index in sorted({part % _LOCKS for part in range(low, high + 1)}):
            stack.enter_context(self._locks[index])
        return stack


def _crcs(view: memoryview) -> Entries:
    return np.array([crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)], np.uint32)
