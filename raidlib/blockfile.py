"""Block files: the only door through which raidlib touches storage.

A BlockFile is an array of bytes, backed by a file or a block device. Everything above talks to the
protocol, so the same pool runs on real files (OSFile) and on tests.testing.fakedisk, which loses unsynced writes.

What a BlockFile promises:
* a write that returned survives the death of this process, but only a sync makes it survive a power cut;
* pwrite_durable makes just its own bytes durable (RWF_DSYNC), without flushing the whole file;
* a failed fdatasync or pwrite_durable raises OSError and must never be retried: the kernel has dropped the dirty pages.

raw_pwrite and raw_preadv are the hot path: one system call, may be short, and the caller looks at the count.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from ctypes import CDLL, c_int, c_long, get_errno
from functools import partial
from typing import Protocol

Buffer = bytes | bytearray | memoryview
RawWrite = Callable[[Buffer, int], int]
RawRead = Callable[..., int]

_RESERVE = 0x01  # FALLOC_FL_KEEP_SIZE alone
_PUNCH = 0x01 | 0x02  # FALLOC_FL_PUNCH_HOLE
_ZERO = 0x01 | 0x10  # FALLOC_FL_ZERO_RANGE
_DONTCACHE = 0x80  # RWF_DONTCACHE, since Linux 6.14: pages that this read brings into memory are let go after it
_ZEROES = memoryview(bytes(1 << 20))
_libc = CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [c_int, c_int, c_long, c_long]


class BlockFile(Protocol):
    """An array of bytes on storage. Offsets and lengths are bytes; every method is thread-safe."""

    @property
    def path(self) -> str:
        """The name it was opened by."""

    @property
    def raw_pwrite(self) -> RawWrite:
        """raw_pwrite(buf, off) -> bytes written; may be short."""

    @property
    def raw_preadv(self) -> RawRead:
        """raw_preadv([buf], off, flags=0) -> bytes read; may be short."""

    @property
    def once_flags(self) -> int:
        """Flags for raw_preadv of data that nobody will want again soon, 0 where the system has none."""

    @property
    def parallel_sync(self) -> bool:
        """Whether syncing several files from several threads is worth it."""

    @property
    def size(self) -> int:
        """Size in bytes, as far as it is known without asking another host."""

    def remeasure(self) -> int:
        """Find out how large it is by now, and let requests reach as far; return that. Raises OSError."""

    @property
    def gone(self) -> bool:
        """After an error: whether the medium went away with what it holds, rather than failed at what was asked of it.

        Never once a sync failed in another way: then what it holds is not known.
        """

    def pread(self, n: int, off: int) -> bytes:
        """Return exactly n bytes at off. Raises OSError; EIO when the file ends before."""

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """Fill buf from off; return its length. Raises OSError; EIO when the file ends before."""

    def read_medium(self, buf: memoryview, off: int) -> None:
        """Fill buf from the medium itself, past the page cache where the system can. Raises OSError as preadinto.

        buf begins at a multiple of 4096 in memory; off and the length are multiples too. Nothing is verified.
        """

    def pwrite(self, buf: Buffer, off: int) -> None:
        """Write all of buf at off. Raises OSError. Durable: nothing."""

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """Write the buffers one after another at off. Raises OSError. Durable: nothing."""

    def pwrite_durable(self, buf: Buffer, off: int) -> None:
        """Write buf at off. Raises OSError, never to be retried. Durable: these bytes."""

    def fdatasync(self) -> None:
        """Raises OSError, never to be retried. Durable: every write and punch that returned before the call."""

    def punch(self, off: int, length: int) -> None:
        """Make the range read as zeroes, giving its space back where the medium can. Durable: nothing."""

    def zero(self, off: int, length: int) -> None:
        """Make the range read as zeroes, keeping its space where the medium can. Durable: nothing."""

    def reserve(self, off: int, length: int) -> None:
        """Make sure that later writes to the range find space. Raises OSError ENOSPC. Durable: nothing."""

    def zeroes_fast(self) -> bool:
        """Whether punch() frees space instead of writing zeroes one by one."""

    def close(self) -> None:
        """Let go of the file. Durable: nothing."""


class OSFile:
    """A regular file or block device."""

    parallel_sync = True

    def __init__(self, fd: int, path: str, is_device: bool) -> None:
        self._fd = fd
        self.path = path
        self._is_device = is_device
        self._unsupported: set[int] = set()
        self._sync_failed = False
        self.raw_pwrite: RawWrite = partial(os.pwrite, fd)
        self.raw_preadv: RawRead = partial(os.preadv, fd)
        self._direct_fd = _open_direct(fd)
        self.once_flags = _DONTCACHE if _understands(fd, _DONTCACHE) else 0

    @classmethod
    def open(cls, path: str) -> OSFile:
        """Open an existing file or device for reading and writing, shared with whoever has it open.

        Raises OSError: ENOENT, EISDIR, EACCES and the like.
        """
        return cls._open(path, 0)

    @classmethod
    def open_exclusive(cls, path: str) -> OSFile:
        """Open like open(), for one user at a time: a lock on a file, O_EXCL (nobody mounts it) on a device.

        Raises OSError; EBUSY when somebody else has it open exclusively.
        """
        try:
            is_device = stat.S_ISBLK(os.stat(path).st_mode)
            file = cls._open(path, os.O_EXCL if is_device else 0)
            try:
                fcntl.flock(file._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise
        except BlockingIOError:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path) from None
        return file

    @classmethod
    def create(cls, path: str, size: int) -> None:
        """Make a sparse regular file of `size` bytes. Raises FileExistsError when the path exists.

        Durable: the file with its size, and its name in the directory.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def _open(cls, path: str, extra_flags: int) -> OSFile:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | extra_flags)
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(fd)
            raise OSError(errno.EINVAL, "neither a regular file nor a block device", path)
        return cls(fd, path, stat.S_ISBLK(mode))

    @property
    def size(self) -> int:
        """Size in bytes now. Raises OSError."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def remeasure(self) -> int:
        """See BlockFile."""
        return self.size

    @property
    def gone(self) -> bool:
        """See BlockFile. The path leads nowhere, or to something else."""
        if self._sync_failed:
            return False
        try:
            there, here = os.stat(self.path), os.fstat(self._fd)
        except OSError:
            return True
        if self._is_device:
            return there.st_rdev != here.st_rdev
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def fileno(self) -> int:
        """The file descriptor, for sendfile and mmap; it stays the file's."""
        return self._fd

    def pread(self, n: int, off: int) -> bytes:
        """See BlockFile."""
        data = os.pread(self._fd, n, off)
        if len(data) == n:
            return data
        buf = bytearray(n)
        self.preadinto(buf, off)
        return bytes(buf)

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """See BlockFile."""
        want = len(buf)
        got = os.preadv(self._fd, [buf], off)
        if got != want:
            view = memoryview(buf)
            while got < want:
                step = os.preadv(self._fd, [view[got:]], off + got)
                if step == 0:
                    raise OSError(errno.EIO, f"file ends at byte {off + got}", self.path)
                got += step
        return want

    def read_medium(self, buf: memoryview, off: int) -> None:
        """See BlockFile. Reads with O_DIRECT; Linux writes dirty pages of the range back first."""
        if self._direct_fd >= 0:
            try:
                if os.preadv(self._direct_fd, [buf], off) == len(buf):
                    return
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
        self.preadinto(buf, off)

    def pwrite(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        done = os.pwrite(self._fd, buf, off)
        if done != len(buf):
            view = memoryview(buf)
            while done < len(view):
                done += self._some(os.pwrite(self._fd, view[done:], off + done))

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """See BlockFile."""
        total = sum(map(len, bufs))
        if len(bufs) > 512 or os.pwritev(self._fd, bufs, off) != total:
            # Rewriting from the start is harmless: same bytes, same place.
            for buf in bufs:
                self.pwrite(buf, off)
                off += len(buf)

    def pwrite_durable(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        view = memoryview(buf)
        try:
            while len(view):
                done = self._some(os.pwritev(self._fd, [view], off, os.RWF_DSYNC))
                view = view[done:]
                off += done
        except OSError:
            self._sync_failed = True
            raise

    def fdatasync(self) -> None:
        """See BlockFile."""
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def punch(self, off: int, length: int) -> None:
        """See BlockFile. Tries to punch a hole, then to zero the range in one call, then writes zeroes."""
        self._zero_by((_PUNCH, _ZERO), off, length)

    def zero(self, off: int, length: int) -> None:
        """See BlockFile. Tries to zero the range in one call, then to punch a hole, then writes zeroes."""
        self._zero_by((_ZERO, _PUNCH), off, length)

    def reserve(self, off: int, length: int) -> None:
        """See BlockFile. Does nothing where the filesystem cannot; a device has its space."""
        if not self._is_device:
            self._fallocate(_RESERVE, off, length)

    def zeroes_fast(self) -> bool:
        """See BlockFile. True for files; a device may write zeroes for hours, so nobody should wait for it."""
        return not self._is_device and not {_PUNCH, _ZERO} <= self._unsupported

    def _some(self, written: int) -> int:
        """Return how much a write has written. Raises OSError EIO for nothing: going on would never end."""
        if not written:
            raise OSError(errno.EIO, "it takes no bytes", self.path)
        return written

    def _zero_by(self, modes: tuple[int, int], off: int, length: int) -> None:
        if length <= 0 or any(self._fallocate(mode, off, length) for mode in modes):
            return
        end = off + length
        while off < end:
            step = min(len(_ZEROES), end - off)
            self.pwrite(_ZEROES[:step], off)
            off += step

    def _fallocate(self, mode: int, off: int, length: int) -> bool:
        """Return whether it was done; False when this medium, or this alignment on it, does not support it."""
        if mode in self._unsupported:
            return False
        while _libc.fallocate(self._fd, mode, off, length) != 0:
            code = get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._unsupported.add(mode)
                return False
            if code == errno.EINVAL:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), self.path)
        return True

    def close(self) -> None:
        """See BlockFile."""
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


def _open_direct(fd: int) -> int:
    """The same file once more, read past the page cache; -1 where its filesystem cannot."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _understands(fd: int, flags: int) -> bool:
    """Whether the kernel and the filesystem of `fd` know these flags of preadv2()."""
    try:
        os.preadv(fd, [bytearray(1)], 0, flags)
    except OSError:
        return False
    return True
