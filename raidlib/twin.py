"""Two files that are one member: the old one, and the new one that is to take its place.

While a member is replaced in place, its group sees a TwinFile in the place of the old file and notices nothing: reads
come from the old one, writes go to the old one and, where the new one has been filled already, to both. So redundancy
is never less than before, on RAID 0 too. raidlib/replacing.py moves the frontier and decides when the old one may go.

Invariants:
* all parts (marks, metadata, journal) are written to both; data below the frontier too; a punch always;
* a write holds the locks of the 1 MiB stripes it touches while it writes both, and so does the piece that is copied.
  So overlapping writes reach both files in one order, and the frontier passes a write either wholly or not at all;
* the frontier moves over free areas without a lock: nobody writes to them but punches, which go to both.

A file that fails is reported once, with no lock of this file held, before the write that met it returns: the loss of
the new one is durable before that write is acknowledged. The locks here are innermost: nothing is called under them but
the two files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from raidlib.blockfile import BlockFile, Buffer, RawRead, RawWrite
from raidlib.checksums import BLOCK_BYTES, ChecksummedFile

_STRIPE_SHIFT = 20
STRIPE_BYTES = 1 << _STRIPE_SHIFT
_LOCKS = 64


class OldUnreadable(Exception):
    """The old file could not be read where it is to be copied: other means are needed there."""


class TwinFile:
    """See the top of the file; obeys BlockFile.

    on_new_loss(reason): the new file failed and is no longer used.
    on_old_loss(reason) -> bool: the old file failed; True when the group goes on with what the new one has.
    parts: what of [start, end) beyond `data_offset` is no data (layout.py).
    """

    def __init__(
        self,
        old: BlockFile,
        new: BlockFile,
        data_offset: int,
        frontier: int,
        on_new_loss: Callable[[str], None],
        on_old_loss: Callable[[str], bool],
        parts: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.old: BlockFile | None = old
        self.new: BlockFile | None = new
        self.frontier = frontier
        """Byte of the member up to which the new file has what the old one has."""
        self.copied_bytes = 0
        self._data_offset = data_offset
        self._on_new_loss = on_new_loss
        self._on_old_loss = on_old_loss
        self._parts = ((0, data_offset), *parts)
        self._path, self._size = old.path, old.size
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._frontier_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._restarts = 0
        self._buffer = bytearray(STRIPE_BYTES)
        self.parallel_sync = old.parallel_sync and new.parallel_sync
        self.once_flags = old.once_flags
        self.raw_preadv: RawRead = old.raw_preadv
        self.raw_pwrite: RawWrite = self._raw_pwrite

    @property
    def path(self) -> str:
        """The old file's: it is the member until the new one is complete."""
        return self._path

    @property
    def size(self) -> int:
        """The old file's size in bytes."""
        return self._size

    def remeasure(self) -> int:
        """See BlockFile. While there are two it stays as it is."""
        return self._size

    @property
    def gone(self) -> bool:
        """See BlockFile. The old one, or the new one once it is alone."""
        file = self.old or self.new
        return file is None or file.gone

    # BlockFile

    def pread(self, n: int, off: int) -> bytes:
        """See BlockFile."""
        buf = bytearray(n)
        self.preadinto(buf, off)
        return bytes(buf)

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """See BlockFile. What the old file cannot give comes from the new one where that has it."""
        old = self.old
        trouble: OSError | None = None
        if old is not None:
            try:
                return old.preadinto(buf, off)
            except OSError as exc:
                trouble = exc
        with self._hold(off, len(buf)):
            new = self.new
            if new is not None and (self._is_part(off) or off + len(buf) <= self.frontier):
                return new.preadinto(buf, off)
        raise trouble or OSError(5, "the member is gone", self._path)

    def read_medium(self, buf: memoryview, off: int) -> None:
        """See BlockFile. The old file's, or the new one's once it is alone."""
        file = self.old or self.new
        if file is None:
            raise OSError(5, "the member is gone", self._path)
        file.read_medium(buf, off)

    def pwrite(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        view = memoryview(buf)
        self._both(off, len(view), lambda file, n: file.pwrite(view[:n], off))

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """See BlockFile."""
        total = sum(map(len, bufs))

        def write(file: BlockFile, n: int) -> None:
            if n == total:
                file.pwritev(bufs, off)
            else:
                file.pwrite(b"".join(bufs)[:n], off)

        self._both(off, total, write)

    def pwrite_durable(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        view = memoryview(buf)
        self._both(off, len(view), lambda file, n: file.pwrite_durable(view[:n], off))

    def fdatasync(self) -> None:
        """See BlockFile. Both files; the new one's failure costs the new one only."""
        old_error = new_error = None
        with self._sync_lock:
            old, new = self.old, self.new
            if old is not None:
                try:
                    old.fdatasync()
                except OSError as exc:
                    old_error = exc
            if new is not None:
                try:
                    new.fdatasync()
                except OSError as exc:
                    new_error = exc
        self._settle("sync", old_error, new_error)

    def sync_new(self) -> None:
        """Raises OSError. Durable: the new file."""
        with self._sync_lock:
            if self.new is not None:
                self.new.fdatasync()

    def punch(self, off: int, length: int) -> None:
        """See BlockFile. On the new file also above the frontier: a free area must be zero on it as well."""
        self._both(off, length, lambda file, n: file.punch(off, n), always=True)

    def zero(self, off: int, length: int) -> None:
        """See BlockFile."""
        self._both(off, length, lambda file, n: file.zero(off, n))

    def reserve(self, off: int, length: int) -> None:
        """See BlockFile. A new file without space fails alone."""
        old, new = self.old, self.new
        if old is not None:
            old.reserve(off, length)
        trouble: OSError | None = None
        if new is not None:
            with self._sync_lock:
                try:
                    new.reserve(off, length)
                except OSError as exc:
                    trouble = exc
        if trouble is not None:
            self._settle("reserve", None, trouble)

    def zeroes_fast(self) -> bool:
        """See BlockFile."""
        return all(file.zeroes_fast() for file in (self.old, self.new) if file is not None)

    def close(self) -> None:
        """See BlockFile. Both files."""
        self.close_old()
        self.close_new()

    # For replacing.py

    def copy_piece(self, end: int, *, without_lost: bool = False) -> None:
        """Copy from the frontier up to `end`, or to the end of the stripe.

        without_lost: of checksummed files; blocks that the old one cannot give are spoilt on the new one.
        Raises OldUnreadable, OSError (the new file). Durable: nothing.
        """
        restarts, at = self._restarts, self.frontier
        stop = min(end, (at | STRIPE_BYTES - 1) + 1)
        with self._hold(at, stop - at):
            self._copy(at, stop, without_lost)
            with self._frontier_lock:
                if restarts == self._restarts:
                    self.frontier = stop
        self.copied_bytes += stop - at

    def copy_again(self, start: int, end: int) -> None:
        """Copy a range below the frontier once more. Errors as copy_piece()."""
        while start < end:
            stop = min(end, (start | STRIPE_BYTES - 1) + 1)
            with self._hold(start, stop - start):
                self._copy(start, stop)
            start = stop

    def pass_over(self, end: int) -> None:
        """Move the frontier over what needs no copying. Call while nobody can write to it."""
        with self._frontier_lock:
            self.frontier = max(self.frontier, end)

    def restart(self) -> None:
        """Forget what was copied: the files may differ somewhere."""
        with self._frontier_lock:
            self._restarts += 1
            self.frontier = self._data_offset

    def give_up_old(self) -> BlockFile | None:
        """Use the new file alone from now on; return the old one, which calls in flight may still use."""
        old, self.old = self.old, None
        return old

    def give_up_new(self) -> BlockFile | None:
        """Use the old file alone from now on; return the new one, which calls in flight may still use."""
        new, self.new = self.new, None
        return new

    def wait(self) -> None:
        """Return when every write and sync that was in flight has ended."""
        with self._sync_lock, ExitStack() as stack:
            for lock in self._locks:
                stack.enter_context(lock)

    def close_old(self) -> None:
        """Let go of the old file, if it is still held."""
        if (old := self.give_up_old()) is not None:
            old.close()

    def close_new(self) -> None:
        """Let go of the new file, if it is still held."""
        if (new := self.give_up_new()) is not None:
            new.close()

    # Inside

    def _is_part(self, off: int) -> bool:
        return any(start <= off < end for start, end in self._parts)

    def _copy(self, start: int, stop: int, without_lost: bool = False) -> None:
        old, new = self.old, self.new
        if old is None or new is None:
            return
        view = memoryview(self._buffer)[: stop - start]
        try:
            if old.raw_preadv([view], start, old.once_flags) != len(view):
                old.preadinto(view, start)
        except OSError as exc:
            if without_lost and isinstance(new, ChecksummedFile):
                self._copy_blocks(old, new, view, start)
                return
            raise OldUnreadable(f"{old.path}: read at byte {start}: {exc.strerror or exc}") from exc
        new.pwrite(view, start)

    def _copy_blocks(self, old: BlockFile, new: ChecksummedFile, view: memoryview, start: int) -> None:
        for at in range(0, len(view), BLOCK_BYTES):
            block = view[at : at + BLOCK_BYTES]
            try:
                old.preadinto(block, start + at)
            except OSError:
                new.spoil(start + at)
            else:
                new.pwrite(block, start + at)

    def _raw_pwrite(self, buf: Buffer, off: int) -> int:
        self.pwrite(buf, off)
        return len(buf)

    def _both(self, off: int, length: int, act: Callable[[BlockFile, int], None], *, always: bool = False) -> None:
        old_error = new_error = None
        with self._hold(off, length):
            old, new = self.old, self.new
            if old is not None:
                try:
                    act(old, length)
                except OSError as exc:
                    old_error = exc
            n = length if always or self._is_part(off) else min(length, self.frontier - off)
            if new is not None and n > 0:
                try:
                    act(new, n)
                except OSError as exc:
                    new_error = exc
        self._settle("write", old_error, new_error)

    def _settle(self, what: str, old_error: OSError | None, new_error: OSError | None) -> None:
        """Report failures. Raises the one of the member itself, when the group cannot do without what failed."""
        if new_error is not None:
            if self.old is None:
                raise new_error  # the new file is the member by now
            self._on_new_loss(f"{what}: {new_error.strerror or new_error}")
        if old_error is not None:
            if self.old is None:
                return  # it was given up meanwhile
            if self.new is None or not self._on_old_loss(f"{what}: {old_error.strerror or old_error}"):
                raise old_error

    def _hold(self, off: int, length: int) -> threading.Lock | ExitStack:
        first, last = off >> _STRIPE_SHIFT, off + max(length, 1) - 1 >> _STRIPE_SHIFT
        if first == last:
            return self._locks[first % _LOCKS]
        stack = ExitStack()
        for index in sorted({stripe % _LOCKS for stripe in range(first, min(last + 1, first + _LOCKS))}):
            stack.enter_context(self._locks[index])
        return stack
