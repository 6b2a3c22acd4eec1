"""The file under a journal, a group's state and its bitmaps: what the shell offers and the simulator replaces."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from replicator.journal.shortcalls import ShortWrites

Buffer = bytes | bytearray | memoryview


class RandomFile(Protocol):
    """A file of fixed size, written in place. Offsets and lengths are bytes. Errors are OSError."""

    def known_blank(self, start: int) -> bool:
        """Say whether the file is known, without reading it, to hold nothing but zeroes from `start` on."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly `length` bytes, fewer only at the end of the file."""

    def preadinto(self, buf: Buffer, offset: int) -> int:
        """Fill `buf`; returns the bytes read, fewer than asked only at the end of the file."""

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """Write all of `buf`. Durable: nothing until fdatasync."""

    def pwritev(self, bufs: Sequence[Buffer], offset: int) -> None:
        """Write all buffers back to back. Durable: nothing until fdatasync."""

    def pwrite_durable(self, buf: Buffer, offset: int) -> None:
        """Write all of `buf`. Durable: these bytes, and no others. A failure is final, as that of fdatasync."""

    def fdatasync(self) -> None:
        """Durable: all bytes written before the call. A failure is final: never call it again on this file."""

    def close(self) -> None:
        """Release the file."""


class PlainFile:
    """A RandomFile on a real file or block device."""

    def __init__(self, path: str | os.PathLike[str], *, create_bytes: int | None = None) -> None:
        """Open `path`; with `create_bytes` make it, preallocated to that size (it must not exist yet)."""
        self.path = str(path)
        flags = os.O_RDWR | os.O_CLOEXEC
        if create_bytes is None:
            self._fd = os.open(self.path, flags)
        else:
            self._fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(self._fd, 0, create_bytes)
                os.fsync(self._fd)
                sync_directory(Path(self.path).parent)
            except OSError:
                os.close(self._fd)
                os.unlink(self.path)
                raise
        self._short = ShortWrites(self._fd)

    @property
    def size(self) -> int:
        """Bytes of the file or device."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def known_blank(self, start: int) -> bool:
        """See RandomFile. True for a file whose filesystem says that nothing was ever written there."""
        try:
            os.lseek(self._fd, start, os.SEEK_DATA)
        except OSError as e:
            return e.errno == errno.ENXIO
        return False

    def pread(self, length: int, offset: int) -> bytes:
        """See RandomFile."""
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def preadinto(self, buf: Buffer, offset: int) -> int:
        """See RandomFile."""
        view = memoryview(buf)
        done = 0
        while done < len(view):
            n = os.preadv(self._fd, (view[done:],), offset + done)
            if n == 0:
                break
            done += n
        return done

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """See RandomFile."""
        n = os.pwrite(self._fd, buf, offset)
        if n != len(buf):
            self._finish((buf,), n, offset)

    def pwritev(self, bufs: Sequence[Buffer], offset: int) -> None:
        """See RandomFile."""
        missing = self._short.pwritev(bufs, offset)
        if missing:
            self._finish(bufs, sum(map(len, bufs)) - missing, offset)

    def _finish(self, bufs: Sequence[Buffer], done: int, offset: int) -> None:
        """Write what a short write left over."""
        rest = memoryview(b"".join(bufs))
        while done < len(rest):
            n = os.pwrite(self._fd, rest[done:], offset + done)
            if n == 0:
                raise OSError(errno.EIO, "write made no progress", self.path)
            done += n

    def pwrite_durable(self, buf: Buffer, offset: int) -> None:
        """See RandomFile."""
        view = memoryview(buf)
        while len(view):
            done = os.pwritev(self._fd, (view,), offset, os.RWF_DSYNC)
            view = view[done:]
            offset += done

    def fdatasync(self) -> None:
        """See RandomFile."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """See RandomFile."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._short = ShortWrites(-1)


class NoFile:
    """A RandomFile that is not there: every access is EIO."""

    def _broken(self, *_args: object) -> Any:
        raise OSError(errno.EIO, "the file is broken")

    known_blank = pread = preadinto = pwrite = pwritev = pwrite_durable = fdatasync = _broken

    def close(self) -> None:
        """See RandomFile."""


class MappedFile:
    """A file mapped into memory: what is stored there survives the process at once, power loss after sync()."""

    def __init__(self, path: str | os.PathLike[str], size: int) -> None:
        """Map `path`, made (zero-filled) or extended to `size` bytes when it is shorter."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
                os.posix_fallocate(fd, 0, size)
                os.fsync(fd)
                sync_directory(Path(path).parent)
            self.buf = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Durable: all bytes stored before the call. A failure is final."""
        self.buf.flush()

    def close(self) -> None:
        """Unmap; views of the buffer must be gone."""
        self.buf.close()


def sync_directory(path: Path) -> None:
    """Durable: the names of files made or renamed in `path` before the call."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
