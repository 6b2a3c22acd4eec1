"""Members on other hosts: a BlockFile over NBD, by libnbd.

    nbd://host:port/export     nbds://…     nbd+unix:///export?socket=/path     nbds+unix:///…

Several connections where the server says that they are one disk (multi-conn), else one; a request takes whichever is
free. Requests are asynchronous calls that are waited for with a deadline: a server that stops answering becomes an
error after TIMEOUT_S instead of a thread that hangs.

Once one request met a dead connection, the file is gone for good: every later call fails at once with ENOTCONN and
nothing connects again behind its back, for a server that comes back may have lost what it had not made stable. The
group marks the member as away, and taking it back (readd.py) opens it anew and copies what may be missing. (A server
that hung must have been restarted by then: a write that it still had in its hands would come late.) A server that
answers with an error is another matter: that is an error of the medium, like a disk's.

Durable writes use FUA where the server has it, else a flush. Holes are punched by write-zeroes, which may be slow: the
pool is told that zeroing is fast only where the server says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

from raidlib.blockfile import BlockFile, Buffer, OSFile, RawRead, RawWrite

CONNECTIONS = 4
TIMEOUT_S = 10.0
"""A request, or a connection being made, that takes longer counts as a dead server."""
MAX_REQUEST_BYTES = 32 << 20
_ZEROES = memoryview(bytes(1 << 20))


def is_uri(path: str) -> bool:
    """Whether a member's path is an NBD URI."""
    return path.startswith(("nbd://", "nbds://", "nbd+unix://", "nbds+unix://"))


def open_exclusive(path: str) -> BlockFile:
    """Open a file, a device or an NBD URI as a member. Raises OSError."""
    return NbdFile.open(path) if is_uri(path) else OSFile.open_exclusive(path)


class NbdFile:
    """One export. Thread-safe."""

    parallel_sync = True
    once_flags = 0

    def __init__(self, path: str, handles: list[Any]) -> None:
        first = handles[0]
        self.path = path
        self._size: int = first.get_size()
        self._handles = handles
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for handle in handles:
            self._free.put(handle)
        self._swap = threading.Lock()
        """Held while connections are exchanged, and while one is put back."""
        self._dead = ""
        self._sync_failed = False
        self._fua: bool = first.can_fua()
        self._zero: bool = first.can_zero()
        self._fast_zero: bool = self._zero and first.can_fast_zero()
        self._flush: bool = first.can_flush()
        most = first.get_block_size(2)  # LIBNBD_SIZE_MAXIMUM
        self._most: int = min(most, MAX_REQUEST_BYTES) if most > 0 else MAX_REQUEST_BYTES
        self.raw_pwrite: RawWrite = self._raw_pwrite
        self.raw_preadv: RawRead = self._raw_preadv

    @classmethod
    def open(cls, path: str) -> NbdFile:
        """Connect. Raises OSError: ENOTCONN and the like for no server, EROFS for a read-only export."""
        handles = [_connect(path)]
        try:
            if handles[0].is_read_only():
                raise OSError(errno.EROFS, "the export is read-only", path)
            if handles[0].get_block_size(0) > 1:  # LIBNBD_SIZE_MINIMUM
                raise OSError(errno.EOPNOTSUPP, "the server does not take requests of any size", path)
            if handles[0].can_multi_conn():
                handles += [_connect(path) for _ in range(CONNECTIONS - 1)]
            return cls(path, handles)
        except BaseException:
            for handle in handles:
                _drop(handle)
            raise

    @property
    def size(self) -> int:
        """Size of the export in bytes when it was opened, or measured last."""
        return self._size

    def remeasure(self) -> int:
        """See BlockFile. A server tells the size to new connections only: a larger one is used from them on.

        They take over where the server promises that all connections are one disk, and once a flush on an old one has
        said that it is the same server still. Raises OSError, ENOTSUP without that promise.
        """
        handles = [_connect(self.path)]
        try:
            size: int = handles[0].get_size()
            if size <= self._size:
                return size
            if not handles[0].can_multi_conn() or len(self._handles) < CONNECTIONS:
                raise OSError(errno.ENOTSUP, "it is larger by now, which is seen when the node is restarted", self.path)
            handles += [_connect(self.path) for _ in range(CONNECTIONS - 1)]
            self.pread(1, 0)
            self.fdatasync()
            with self._swap:
                self._handles, handles = handles, []
                with contextlib.suppress(queue.Empty):
                    while True:
                        _drop(self._free.get_nowait())
                for handle in self._handles:
                    self._free.put(handle)
                self._size = size
            return size
        finally:
            for handle in handles:
                _drop(handle)

    @property
    def gone(self) -> bool:
        """See BlockFile. The connection is dead, and no sync failed in another way."""
        return bool(self._dead) and not self._sync_failed

    def pread(self, n: int, off: int) -> bytes:
        """See BlockFile."""
        buf = bytearray(n)
        self.preadinto(buf, off)
        return bytes(buf)

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """See BlockFile."""
        view = memoryview(buf)
        if off + len(view) > self._size:
            raise OSError(errno.EIO, f"file ends at byte {self._size}", self.path)
        for at in range(0, len(view), self._most):
            piece = view[at : at + self._most]
            self._request(partial(_send_read, piece, off + at))
        return len(view)

    def read_medium(self, buf: memoryview, off: int) -> None:
        """See BlockFile. What the server gives."""
        self.preadinto(buf, off)

    def pwrite(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        self._write(buf, off, 0)

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """See BlockFile."""
        self._write(b"".join(bufs), off, 0)

    def pwrite_durable(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        try:
            self._write(buf, off, 1 if self._fua else 0)  # LIBNBD_CMD_FLAG_FUA
            if not self._fua:
                self.fdatasync()
        except OSError:
            self._sync_failed |= not self._dead
            raise

    def fdatasync(self) -> None:
        """See BlockFile. A server without flush promises that what it answered is stable."""
        if self._flush:
            try:
                self._request(lambda h: h.aio_flush())
            except OSError:
                self._sync_failed |= not self._dead
                raise
        elif self._dead:
            self._raise_dead()

    def punch(self, off: int, length: int) -> None:
        """See BlockFile."""
        self._zero_by(off, length, 0)

    def zero(self, off: int, length: int) -> None:
        """See BlockFile."""
        self._zero_by(off, length, 2)  # LIBNBD_CMD_FLAG_NO_HOLE

    def reserve(self, off: int, length: int) -> None:
        """NBD cannot ask for space."""

    def zeroes_fast(self) -> bool:
        """See BlockFile."""
        return self._fast_zero

    def close(self) -> None:
        """See BlockFile."""
        self._dead = self._dead or "closed"
        for handle in self._handles:
            _drop(handle)
        self._handles = []

    # Inside

    def _write(self, buf: Buffer, off: int, flags: int) -> None:
        view = memoryview(buf)
        if off + len(view) > self._size:
            raise OSError(errno.ENOSPC, f"file ends at byte {self._size}", self.path)
        for at in range(0, len(view), self._most):
            piece = view[at : at + self._most]
            self._request(partial(_send_write, piece, off + at, flags))

    def _zero_by(self, off: int, length: int, flags: int) -> None:
        end = off + length
        step = 1 << 30 if self._zero else len(_ZEROES)
        while off < end:
            n = min(step, end - off)
            if self._zero:
                self._request(partial(_send_zero, n, off, flags))
            else:
                self._write(_ZEROES[:n], off, 0)
            off += n

    def _raw_pwrite(self, buf: Buffer, off: int) -> int:
        self.pwrite(buf, off)
        return len(buf)

    def _raw_preadv(self, bufs: Sequence[bytearray | memoryview], off: int, _flags: int = 0) -> int:
        if len(bufs) == 1:
            return self.preadinto(bufs[0], off)
        whole = bytearray(sum(map(len, bufs)))
        self.preadinto(whole, off)
        at = 0
        for buf in bufs:
            memoryview(buf)[:] = whole[at : at + len(buf)]
            at += len(buf)
        return at

    def _request(self, send: Callable[[Any], int]) -> None:
        """Send one request on a free connection and wait for its answer. Raises OSError."""
        if self._dead:
            self._raise_dead()
        deadline = time.monotonic() + TIMEOUT_S
        with self._connection(deadline) as handle:
            try:
                cookie = send(handle)
                while not handle.aio_command_completed(cookie):
                    if self._dead:
                        self._raise_dead()
                    left_ms = int((deadline - time.monotonic()) * 1000)
                    if left_ms <= 0:
                        self._dead = f"no answer within {TIMEOUT_S:g} s"
                        self._raise_dead()
                    handle.poll(min(left_ms, 1000))
            except OSError:
                raise
            except Exception as exc:  # nbd.Error; the module is loaded where it is needed
                self._judge(handle, exc)

    @contextlib.contextmanager
    def _connection(self, deadline: float) -> Iterator[Any]:
        try:
            handle = self._free.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._dead = f"no answer within {TIMEOUT_S:g} s"
            self._raise_dead()
        try:
            yield handle
        finally:
            with self._swap:
                if handle in self._handles:
                    self._free.put(handle)
                else:
                    _drop(handle)  # newer ones took over

    def _judge(self, handle: Any, exc: Exception) -> NoReturn:
        """Raise what libnbd reported: of a connection that is alive, the server's answer."""
        code = getattr(exc, "errnum", 0) or errno.EIO
        if self._dead:
            self._raise_dead()
        if handle.aio_is_ready() or handle.aio_is_processing():
            raise OSError(code, os.strerror(code), self.path) from exc
        self._dead = f"the connection is lost: {getattr(exc, 'string', exc)}"
        self._raise_dead()

    def _raise_dead(self) -> NoReturn:
        raise OSError(errno.ENOTCONN, self._dead, self.path)


def _connect(path: str) -> Any:
    """One connection, ready. Raises OSError."""
    try:
        import nbd
    except ImportError as exc:
        raise OSError(errno.EPROTONOSUPPORT, "NBD members need libnbd (python3-libnbd)", path) from exc
    handle = nbd.NBD()
    try:
        handle.set_uri_allow_local_file(True)
        handle.aio_connect_uri(path)
        deadline = time.monotonic() + TIMEOUT_S
        while not handle.aio_is_ready():
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise OSError(errno.ENOTCONN, "the server ended the connection", path)
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise OSError(errno.ETIMEDOUT, f"no answer within {TIMEOUT_S:g} s", path)
            handle.poll(min(left_ms, 1000))
    except nbd.Error as exc:
        raise OSError(exc.errnum or errno.ENOTCONN, exc.string, path) from exc
    return handle


def _drop(handle: Any) -> None:
    """End a connection; a server that does not answer is not waited for."""
    try:
        if handle.aio_is_ready():
            handle.aio_disconnect()
        handle.close()
    except Exception:  # whatever it says, the connection is given up
        pass


def _send_read(view: memoryview, off: int, handle: Any) -> int:
    cookie: int = handle.aio_pread(_buffer(view), off)
    return cookie


def _send_write(view: memoryview, off: int, flags: int, handle: Any) -> int:
    cookie: int = handle.aio_pwrite(_buffer(view), off, flags=flags)
    return cookie


def _send_zero(length: int, off: int, flags: int, handle: Any) -> int:
    cookie: int = handle.aio_zero(length, off, flags=flags)
    return cookie


def _buffer(view: memoryview) -> Any:
    """A view as a libnbd buffer, without copying."""
    import nbd

    return nbd.Buffer.from_buffer(view)
