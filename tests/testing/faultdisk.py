"""A FakeDisk on which the N-th I/O of a kind on one member fails, once or for ever.

What a failing I/O does is what a real one may do:
* a write or punch with EIO or ENOSPC leaves the first half of its sectors written;
* a sync, or a durable write, with EIO drops what was dirty in the file, and the next one says all is well;
* a short read or write transfers half and says so (only the one-call hot path can see that; the others go on).
"""

from __future__ import annotations

import errno
import os
import random
from typing import NamedTuple

from tests.testing.fakedisk import SECTOR_BYTES, FakeDisk, FakeFile, Unsynced

KINDS = ("read", "write", "sync", "punch", "reserve")
_KIND_OF = {"write_durable": "write"}


class Fault(NamedTuple):
    """The `number`-th I/O (from 1) of a kind on a file fails."""

    file: str
    kind: str
    error: str
    """EIO, ENOSPC or short."""
    number: int
    for_ever: bool


class FaultDisk(FakeDisk):
    """See the top of the file. Set `fault` to arm it; `hit` tells whether it came to that."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.fault: Fault | None = None
        self.hit = False
        self.syncs_after_failure = 0
        """Syncs asked of the file after one of its syncs has failed: there must be none in the life of a process."""
        self._count = 0
        self._sync_failed = False

    def arm(self, fault: Fault | None) -> None:
        """Begin to count for a fault; None takes it away."""
        self.fault, self.hit, self._count, self._sync_failed, self.syncs_after_failure = fault, False, 0, False, 0

    def open_exclusive(self, name: str) -> FakeFile:
        """See FakeDisk."""
        file = super().open_exclusive(name)
        whole_write, whole_read = file.raw_pwrite, file.raw_preadv
        # The hot path may be told less than it asked for.
        file.raw_pwrite = lambda buf, off: whole_write(buf[: self._length("write", name, len(buf))], off)

        def raw_preadv(bufs: list[memoryview], off: int, flags: int = 0) -> int:
            total = sum(map(len, bufs))
            length = self._length("read", name, total)
            if length == total:
                return whole_read(bufs, off, flags)
            return whole_read([memoryview(bufs[0])[:length]], off, flags)

        file.raw_preadv = raw_preadv  # type: ignore[method-assign,assignment]
        return file

    def before(self, op: str, name: str, off: int, length: int, data: bytes = b"") -> None:
        """See FakeDisk."""
        if op == "sync" and self._sync_failed and self.fault is not None and name == self.fault.file:
            self.syncs_after_failure += 1
        if self.fault is None or self.fault.error == "short" or not self._due(op, name):
            return
        if op in ("sync", "write_durable") and self.fault.error == "EIO":
            self._find(name).sync_fails = True  # raises, and drops what was dirty
            self._sync_failed |= op == "sync"
            return
        if data:
            self._write_half(name, off, data)
        code = getattr(errno, self.fault.error)
        raise OSError(code, os.strerror(code), name)

    def _due(self, op: str, name: str) -> bool:
        assert self.fault is not None
        if name != self.fault.file or _KIND_OF.get(op, op) != self.fault.kind:
            return False
        self._count += 1
        due = self._count == self.fault.number or (self.fault.for_ever and self._count > self.fault.number)
        self.hit |= due
        return due

    def _length(self, kind: str, name: str, length: int) -> int:
        """How much of a request of the hot path is done."""
        if self.fault is None or self.fault.error != "short" or not self._due(kind, name):
            return length
        return length // 2

    def _write_half(self, name: str, off: int, data: bytes) -> None:
        half = data[: len(data) // 2 // SECTOR_BYTES * SECTOR_BYTES]
        store = self._find(name)
        if half and off + len(half) <= len(store.data):
            store.unsynced.append(Unsynced(name, off, half, bytes(store.data[off : off + len(half)])))
            store.data[off : off + len(half)] = half
