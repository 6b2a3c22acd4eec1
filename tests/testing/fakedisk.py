"""A disk in memory that forgets like a real one.

FakeDisk holds named FakeFiles that obey raidlib's BlockFile protocol. Reads always see the last write (the page
cache). A sync makes writes stable; crash() is a power cut: each write that no sync covered is, by the seeded
generator, kept, dropped or torn at 512-byte sectors, independently of the others. kill() is the death of the process
alone: the page cache survives, and a later power cut can still take what was never synced.
The operation that cut_at stops is in flight: a power cut may keep any of it, a kill a whole number of its pages.

Both end the life of every open handle: a handle from before raises EBADF, so a forgotten thread of the dead process
cannot write into the next life.

Faults: fail_reads, fail_writes and fail_next_sync raise EIO; a failed sync drops the file's dirty pages, as Linux may.
corrupt, lose_writes and misdirect_writes are silent: whoever reads gets wrong bytes and no error.
cut_at stops the process before the n-th change with PowerCut, for explorers that cut at every operation.

What it does not do: space accounting beyond `full`, latency, threads racing inside one call (a lock makes each
call atomic).
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Buffer = bytes | bytearray | memoryview
Fate = Literal["keep", "drop", "tear"]
SECTOR_BYTES = 512
PAGE_BYTES = 4096


class PowerCut(BaseException):
    """Raised by a handle at the operation where cut_at() told it to stop. Not an Exception: nothing may swallow it."""


@dataclass(slots=True)
class Unsynced:
    """One write or punch that no sync has covered yet."""

    file: str
    off: int
    new: bytes
    old: bytes


@dataclass(slots=True)
class _Deceit:
    """Writes to [start, end) that say they succeeded: lost (to is None), or gone `to` bytes further."""

    start: int
    end: int
    count: int
    to: int | None


@dataclass
class _Store:
    """What one file holds: `data` as reads see it, `unsynced` in the order written."""

    data: bytearray
    unsynced: list[Unsynced] = field(default_factory=list)
    bad_reads: list[tuple[int, int]] = field(default_factory=list)
    bad_writes: list[tuple[int, int]] = field(default_factory=list)
    sync_fails: bool = False
    deceits: list[_Deceit] = field(default_factory=list)
    vanished: bool = False
    lives: int = 0


class FakeDisk:
    """Named files in memory with a seeded power cut. Thread-safe."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.rng = rng or random.Random(0)
        self.operations = 0
        """Changes so far: writes, punches and syncs."""
        self.trace: Callable[[str, str, int, int], None] | None = None
        """Called as trace(op, file, off, length) before each change; op is write, write_durable, punch or sync."""
        self.full = False
        """The filesystem under the files has no space to reserve."""
        self._stores: dict[str, _Store] = {}
        self._life = 0
        self._cut_at: int | None = None
        self._exclusive: set[str] = set()
        self._in_flight: Unsynced | None = None
        self._lock = threading.RLock()

    # Files

    def create(self, name: str, size: int) -> None:
        """Add a file of zeroes. Raises FileExistsError. Durable: the file."""
        if name in self._stores:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._stores[name] = _Store(bytearray(size))

    def enlarge(self, name: str, tail: bytes) -> None:
        """Make a file longer by bytes that it happens to hold there, while it is used. Durable: that."""
        store = self._find(name)
        with self._lock:
            self.changed("enlarge", name, len(store.data), tail)
            store.data += tail

    def length(self, name: str) -> int:
        """How long a file is, in bytes."""
        return len(self._find(name).data)

    def remove(self, name: str) -> None:
        """Take a file away, like a pulled disk. Raises FileNotFoundError."""
        self._find(name)
        del self._stores[name]

    def rename(self, old: str, new: str) -> None:
        """Give a file another name: a disk that comes back elsewhere."""
        self._stores[new] = self._find(old)
        del self._stores[old]
        for write in self._stores[new].unsynced:
            write.file = new

    def copy(self, old: str, new: str) -> None:
        """Make `new` a stable copy of what `old` reads now: a backup, or a clone of a disk."""
        self._stores[new] = _Store(bytearray(self._find(old).data))

    def names(self) -> list[str]:
        """All files, in the order they were made."""
        return list(self._stores)

    def open(self, name: str) -> FakeFile:
        """Open a file, shared. Raises FileNotFoundError."""
        self._find(name)
        return FakeFile(self, name, exclusive=False)

    def open_exclusive(self, name: str) -> FakeFile:
        """Open a file for one user at a time, like OSFile.open_exclusive. Raises OSError EBUSY, FileNotFoundError."""
        if self._find(name).vanished:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        if name in self._exclusive:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        self._exclusive.add(name)
        return FakeFile(self, name, exclusive=True)

    # Crashes

    def crash(self, fate: Callable[[int, Unsynced], Fate] | None = None) -> None:
        """Cut the power: decide each unsynced write's fate, then let everything open die.

        fate(index, write) decides; by default the seeded generator does. Afterwards what is left is stable.
        """
        with self._lock:
            choose = fate or self._random_fate
            index = 0
            for store in self._stores.values():
                for write in reversed(store.unsynced):
                    store.data[write.off : write.off + len(write.old)] = write.old
                for write in store.unsynced:
                    self._settle(store, write, choose(index, write))
                    index += 1
                store.unsynced.clear()
            self._end_life()

    def kill(self) -> None:
        """End the process: every handle dies, the page cache stays."""
        with self._lock:
            write = self._in_flight
            if write is not None:
                pages = len(write.new) // PAGE_BYTES
                done = self.rng.randrange(pages + 2) * PAGE_BYTES
                store = self._find(write.file)
                store.data[write.off : write.off + len(write.new)] = write.new[:done] + write.old[done:]
                write.new = write.new[:done] + write.old[done:]
            self._end_life()

    def cut_at(self, operation: int | None) -> None:
        """Raise PowerCut in the change with this number (see `operations`); None takes it back.

        Nothing of that change has happened for certain; crash() or kill() must follow, and say what did.
        """
        self._cut_at = operation

    def unsynced(self) -> list[Unsynced]:
        """The writes a power cut could take now, file by file, in the order crash() asks about them."""
        return [write for store in self._stores.values() for write in store.unsynced]

    def snapshot(self) -> dict[str, tuple[bytes, list[Unsynced]]]:
        """Contents and unsynced writes of every file, for restore()."""
        return {name: (bytes(store.data), _copies(store.unsynced)) for name, store in self._stores.items()}

    def restore(self, saved: dict[str, tuple[bytes, list[Unsynced]]]) -> None:
        """Go back to a snapshot; every handle dies and all faults are gone."""
        with self._lock:
            self._stores = {name: _Store(bytearray(data), _copies(writes)) for name, (data, writes) in saved.items()}
            self._end_life()

    def fork(self, rng: random.Random) -> FakeDisk:
        """Return another disk with the same contents, dead handles and all, to try another outcome on."""
        other = FakeDisk(rng)
        with self._lock:
            other.operations = self.operations
            other.restore(self.snapshot())
            if self._in_flight is not None:
                # It is the last change of its file.
                other._in_flight = other._stores[self._in_flight.file].unsynced[-1]
        return other

    # Faults

    def fail_reads(self, name: str, start: int = 0, end: int = 1 << 62) -> None:
        """Reads that touch [start, end) raise EIO until heal(); a write over a byte range repairs that range."""
        self._find(name).bad_reads.append((start, end))

    def fail_writes(self, name: str, start: int = 0, end: int = 1 << 62) -> None:
        """Writes and punches that touch [start, end) raise EIO and change nothing, until heal()."""
        self._find(name).bad_writes.append((start, end))

    def fail_next_sync(self, name: str) -> None:
        """The next fdatasync or durable write raises EIO and drops what was dirty; later ones succeed, deceptively."""
        self._find(name).sync_fails = True

    def corrupt(self, name: str, off: int, data: bytes | None = None) -> None:
        """Change bytes at rest, which no read notices: flip one bit at `off`, or put `data` there. Stable at once."""
        store = self._find(name)
        new = bytes([store.data[off] ^ 0x10]) if data is None else data
        store.data[off : off + len(new)] = new
        for write in store.unsynced:
            _overlay(write, off, new)

    def peek(self, name: str, off: int, length: int) -> bytes:
        """What a read would give, whatever faults there are."""
        return bytes(self._find(name).data[off : off + length])

    def lose_writes(self, name: str, start: int = 0, end: int = 1 << 62, count: int = 1) -> None:
        """The next `count` writes that touch [start, end) succeed and change nothing."""
        self._find(name).deceits.append(_Deceit(start, end, count, None))

    def misdirect_writes(self, name: str, to: int, start: int = 0, end: int = 1 << 62, count: int = 1) -> None:
        """The next `count` writes that touch [start, end) succeed and go `to` bytes further (or back) instead."""
        self._find(name).deceits.append(_Deceit(start, end, count, to))

    def vanish(self, name: str) -> None:
        """Every call raises ENODEV until it comes back: a cable was pulled. What it holds stays as it is."""
        self._find(name).vanished = True

    def come_back(self, name: str) -> None:
        """End vanish(). Handles from before stay dead."""
        store = self._find(name)
        store.vanished = False
        store.lives += 1
        self._exclusive.discard(name)

    def is_vanished(self, name: str) -> bool:
        """Whether it vanished and has not come back."""
        return self._find(name).vanished

    def heal(self, name: str) -> None:
        """Take every fault of the file back."""
        store = self._find(name)
        store.bad_reads.clear()
        store.bad_writes.clear()
        store.sync_fails = False
        store.deceits.clear()

    def before(self, op: str, name: str, off: int, length: int, data: bytes = b"") -> None:
        """Called before each I/O on a file; raises what it is to fail with. For disks that fail on demand.

        op: read, write, write_durable, punch, sync or reserve.
        """

    def changed(self, op: str, name: str, off: int, data: bytes) -> None:
        """Called with each change as it begins, after all that can refuse it; for disks that keep a record.

        op: write, write_durable, punch, sync, enlarge; where the disk drops what was dirty, lost_write and lost_sync.
        """

    # Used by FakeFile

    def _find(self, name: str) -> _Store:
        store = self._stores.get(name)
        if store is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return store

    def _change(self, op: str, name: str, off: int, length: int) -> bool:
        """Count a change; return whether the process ends in it."""
        if self.trace is not None:
            self.trace(op, name, off, length)
        if self.operations == self._cut_at:
            return True
        self.operations += 1
        return False

    def _cut(self, op: str, write: Unsynced | None) -> PowerCut:
        self._end_life()
        self._in_flight = write
        return PowerCut(f"cut at operation {self.operations}: {op}")

    def _random_fate(self, _index: int, _write: Unsynced) -> Fate:
        return self.rng.choice(("keep", "drop", "tear"))

    def _settle(self, store: _Store, write: Unsynced, fate: Fate) -> None:
        if fate == "keep":
            store.data[write.off : write.off + len(write.new)] = write.new
        elif fate == "tear":
            end = write.off + len(write.new)
            at = write.off
            while at < end:
                stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
                if self.rng.random() < 0.5:
                    store.data[at:stop] = write.new[at - write.off : stop - write.off]
                at = stop

    def _end_life(self) -> None:
        self._life += 1
        self._cut_at = None
        self._in_flight = None
        self._exclusive.clear()


class FakeFile:
    """A handle on a file of a FakeDisk; obeys raidlib.blockfile.BlockFile. Made by FakeDisk.open."""

    parallel_sync = False
    once_flags = 0

    def __init__(self, disk: FakeDisk, name: str, *, exclusive: bool) -> None:
        self.path = name
        self.raw_pwrite = self._raw_pwrite
        self.raw_preadv = self._raw_preadv
        self._disk = disk
        self._life = disk._life
        self._exclusive = exclusive
        self._closed = False
        self._its_life = disk._find(name).lives

    @property
    def gone(self) -> bool:
        """See BlockFile."""
        store = self._disk._stores.get(self.path)
        return store is None or store.vanished or store.lives != self._its_life

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self._store().data)

    def remeasure(self) -> int:
        """See BlockFile."""
        return self.size

    def known_blank(self, start: int) -> bool:
        """See RandomFile."""
        return False

    def pread(self, n: int, off: int) -> bytes:
        """See BlockFile."""
        buf = bytearray(n)
        self.preadinto(buf, off)
        return bytes(buf)

    def preadinto(self, buf: bytearray | memoryview, off: int) -> int:
        """See BlockFile."""
        with self._disk._lock:
            store = self._store()
            self._disk.before("read", self.path, off, len(buf))
            end = off + len(buf)
            if off < 0 or end > len(store.data):
                raise OSError(errno.EIO, f"read of {off}+{len(buf)} beyond the end", self.path)
            if any(start < end and off < stop for start, stop in store.bad_reads):
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
            memoryview(buf)[:] = memoryview(store.data)[off:end]
        return len(buf)

    def read_medium(self, buf: memoryview, off: int) -> None:
        """See BlockFile."""
        self.preadinto(buf, off)

    def pwrite(self, buf: Buffer, off: int) -> None:
        """See BlockFile."""
        with self._disk._lock:
            self._change("write", bytes(buf), off)

    def pwritev(self, bufs: Sequence[Buffer], off: int) -> None:
        """See BlockFile. One write for crash(): it is torn as a whole."""
        with self._disk._lock:
            self._change("write", b"".join(bufs), off)

    def pwrite_durable(self, buf: Buffer, off: int) -> None:
        """See BlockFile. Earlier unsynced writes stay unsynced; where they overlap, these bytes win."""
        data = bytes(buf)
        with self._disk._lock:
            store = self._store()
            self._change("write_durable", data, off)
            write = store.unsynced.pop()
            if store.sync_fails:
                store.sync_fails = False
                store.data[off : off + len(data)] = write.old
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
            for earlier in store.unsynced:
                _overlay(earlier, off, data)

    def fdatasync(self) -> None:
        """See BlockFile."""
        with self._disk._lock:
            store = self._store()
            self._disk.before("sync", self.path, 0, 0)
            if self._disk._change("sync", self.path, 0, 0):
                raise self._disk._cut("sync", None)
            self._disk.changed("lost_sync" if store.sync_fails else "sync", self.path, 0, b"")
            if store.sync_fails:
                store.sync_fails = False
                for write in reversed(store.unsynced):
                    store.data[write.off : write.off + len(write.old)] = write.old
                store.unsynced.clear()
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
            store.unsynced.clear()

    def punch(self, off: int, length: int) -> None:
        """See BlockFile."""
        if length > 0:
            with self._disk._lock:
                self._change("punch", bytes(length), off)

    def zero(self, off: int, length: int) -> None:
        """See BlockFile."""
        self.punch(off, length)

    def reserve(self, off: int, length: int) -> None:
        """See BlockFile. ENOSPC while the disk is called full."""
        self._store()
        self._disk.before("reserve", self.path, off, length)
        if self._disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def zeroes_fast(self) -> bool:
        """See BlockFile."""
        return True

    def close(self) -> None:
        """See BlockFile."""
        if self._exclusive and not self._closed and self._life == self._disk._life:
            self._disk._exclusive.discard(self.path)
        self._closed = True

    def _store(self) -> _Store:
        if self._closed or self._life != self._disk._life:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        store = self._disk._find(self.path)
        if store.vanished or store.lives != self._its_life:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), self.path)
        return store

    def _change(self, op: str, data: bytes, off: int) -> None:
        store = self._store()
        end = off + len(data)
        if off < 0 or end > len(store.data):
            raise OSError(errno.ENOSPC, f"{op} of {off}+{len(data)} beyond the end", self.path)
        self._disk.before(op, self.path, off, len(data), data)
        cut = self._disk._change(op, self.path, off, len(data))
        if any(start < end and off < stop for start, stop in store.bad_writes):
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
        for deceit in store.deceits:
            if deceit.count and deceit.start < end and off < deceit.end:
                deceit.count -= 1
                if deceit.to is None:
                    data = bytes(store.data[off:end])
                else:
                    off, end = off + deceit.to, end + deceit.to
                break
        lost = op == "write_durable" and store.sync_fails
        self._disk.changed("lost_write" if lost else op, self.path, off, data)
        write = Unsynced(self.path, off, data, bytes(store.data[off:end]))
        store.unsynced.append(write)
        store.data[off:end] = data
        if cut:
            raise self._disk._cut(f"{op} {self.path} {off}+{len(data)}", write)
        if store.bad_reads:
            store.bad_reads = [piece for bad in store.bad_reads for piece in _without(bad, off, end)]

    def _raw_pwrite(self, buf: Buffer, off: int) -> int:
        self.pwrite(buf, off)
        return len(buf)

    def _raw_preadv(self, bufs: Sequence[bytearray | memoryview], off: int, flags: int = 0) -> int:
        done = 0
        for buf in bufs:
            done += self.preadinto(buf, off + done)
        return done


def _copies(writes: list[Unsynced]) -> list[Unsynced]:
    return [replace(write) for write in writes]


def _overlay(earlier: Unsynced, off: int, data: bytes) -> None:
    """Let the durable bytes at off show through an earlier unsynced write, whatever becomes of it."""
    start, end = max(off, earlier.off), min(off + len(data), earlier.off + len(earlier.new))
    if start < end:
        piece = data[start - off : end - off]
        a, b = start - earlier.off, end - earlier.off
        earlier.new = earlier.new[:a] + piece + earlier.new[b:]
        earlier.old = earlier.old[:a] + piece + earlier.old[b:]


def _without(span: tuple[int, int], start: int, end: int) -> list[tuple[int, int]]:
    """What is left of a span when [start, end) is taken out of it."""
    pieces = [(span[0], min(span[1], start)), (max(span[0], end), span[1])]
    return [piece for piece in pieces if piece[0] < piece[1]]
