"""Writes so short that giving up the interpreter lock for them costs more than they take.

os.pwritev releases the interpreter lock around the system call. With many threads in the target another one takes it at
once, and the caller, who holds the group lock meanwhile, has to win it back: two context switches for a call of 3 µs,
and everybody else queues up behind the group lock. The functions here keep the interpreter lock, so that a record is
numbered and appended in one go.

A write into the page cache can also be slow: memory is short, or the kernel throttles whoever makes pages dirty. Then
keeping the interpreter lock would stop every thread of the process. So a call that took longer than SLOW_S sends those
that follow the ordinary way, for REST times as long as it took.

What fails or falls short here is done once more the ordinary way, which knows how to go on and how to report errors.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence

SHORT_BYTES = 32 << 10
"""More bytes than this are written the ordinary way: copying them takes as long as a context switch."""
SLOW_S = 0.0005
REST = 20

_libc = ctypes.PyDLL(None)  # PyDLL, other than CDLL, keeps the interpreter lock during a call
_pwrite = _libc.pwrite64
_pwrite.argtypes, _pwrite.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64], ctypes.c_ssize_t
_write = _libc.write
_write.argtypes, _write.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_ssize_t


class ShortWrites:
    """Positioned writes to one descriptor."""

    __slots__ = ("_fd", "_rest_until")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest_until = 0.0

    def pwritev(self, bufs: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write the buffers back to back at `offset`; returns how many bytes are missing.

        That is 0 unless the write fell short. Raises OSError.
        """
        size = sum(map(len, bufs))
        begin = time.monotonic()
        if size <= SHORT_BYTES and begin >= self._rest_until:
            done: int = _pwrite(self._fd, b"".join(bufs), size, offset)
            took_s = time.monotonic() - begin
            if took_s > SLOW_S:
                self._rest_until = begin + (1 + REST) * took_s
            if done == size:
                return 0
        return size - os.pwritev(self._fd, bufs, offset)


def write_byte(fd: int) -> None:
    """Write one byte to the non-blocking `fd`. Raises BlockingIOError when it is full, OSError otherwise."""
    if _write(fd, b"!", 1) != 1:
        os.write(fd, b"!")
