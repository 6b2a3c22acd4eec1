"""Storage of a simulated node, all of it on one FakeDisk, so that one power cut hits everything at the same instant.

A pool follows raidlib's contract: a region is durably marked in the intent log before its first write, and cleared
only when it stayed cool and a sync followed. Bitmaps live in mapped files: what was stored since the last sync is,
byte by byte, kept or lost in a power cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

from replicator.core.errors import IntegrityError
from replicator.journal.files import Buffer
from replicator.journal.page import INCARNATION, Page
from replicator.journal.ring import Journal
from tests.testing.fakedisk import FakeDisk, FakeFile

REGION_BYTES = 64 << 10


class SimMap:
    """A mapped file that survives the process; see replicator.journal.files.MappedFile."""

    def __init__(self, disk: FakeDisk, name: str, size: int) -> None:
        self.buf = bytearray(size)
        self._stable = bytes(size)
        self._disk, self._name = disk, name

    def sync(self) -> None:
        """Durable: every byte stored before."""
        if self._disk._change("sync", self._name, 0, 0):
            raise self._disk._cut(f"sync {self._name}", None)
        self._stable = bytes(self.buf)

    def crash(self, rng: random.Random) -> None:
        """Lose power: each byte changed since the last sync is new or old."""
        for index, (old, new) in enumerate(zip(self._stable, self.buf, strict=True)):
            if old != new and rng.random() < 0.5:
                self.buf[index] = old
        self._stable = bytes(self.buf)


K = TypeVar("K", int, str)
"""What a pool calls its volumes by: their index, or their name."""


class MarkedPool(Generic[K]):
    """Volumes in files of a disk, and their intent log. Outlives the target process, which gets live handles."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk
        self.sizes: dict[K, int] = {}
        self.marks: set[tuple[K, int]] = set()  # durable
        self._hot: set[tuple[K, int]] = set()
        self.syncs = 0

    @staticmethod
    def file_of(key: K) -> str:
        """The name of a volume's file."""
        return f"volume{key}"

    def handle(self, key: K) -> SimVolume[K]:
        """Open a volume for a new target process."""
        return SimVolume(self, key, self.disk.open(self.file_of(key)))

    def raw(self, key: K) -> bytearray:
        """The bytes of a volume as any reader would see them now; not to be changed."""
        data = self.disk._find(self.file_of(key)).data
        return data if len(data) == self.sizes[key] else data[: self.sizes[key]]

    def touch(self, key: K, offset: int, length: int) -> None:
        """Mark the regions of a write, durably, before it."""
        assert offset + length <= self.sizes[key], f"{key}: access beyond the end"
        for region in range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1):
            self.marks.add((key, region))
            self._hot.add((key, region))

    def sync_with(self, files: Iterable[FakeFile]) -> None:
        """Durable: every write before the call. files: of the volumes."""
        for file in files:
            file.fdatasync()
        self.syncs += 1

    def clear_idle(self, files: Iterable[FakeFile], settle: Callable[[], Collection[K]]) -> None:
        """Clear marks of regions that stayed cool since the last call, when their writes, records, bits are stable; see
        Pool.clear_intents."""
        cool = self.marks - self._hot
        self._hot.clear()
        if cool:
            kept = settle()
            self.sync_with(files)
            self.marks -= {mark for mark in cool if mark[0] not in kept}


class SimPool(MarkedPool[int]):
    """The volumes of a group whose list never changes, by index."""

    def __init__(self, disk: FakeDisk, sizes: Sequence[int]) -> None:
        super().__init__(disk)
        self.sizes = dict(enumerate(sizes))
        for index, size in self.sizes.items():
            disk.create(self.file_of(index), size)

    def open(self) -> list[SimVolume[int]]:
        """Open the volumes for a new target process."""
        return [self.handle(index) for index in self.sizes]

    def clear_intents(self, files: Sequence[FakeFile], sync_group: Callable[[], bool]) -> None:
        """See clear_idle. sync_group: of the group's engine, GroupEngine.sync_tracking."""
        self.clear_idle(files, lambda: () if sync_group() else list(self.sizes))

    def unclean(self) -> list[tuple[int, int, int]]:
        """The marked ranges, as recovery.open_engine takes them."""
        return [(index, region * REGION_BYTES, REGION_BYTES) for index, region in sorted(self.marks)]


class SimVolume(Generic[K]):
    """A volume as the engine sees it."""

    def __init__(self, pool: MarkedPool[K], key: K, file: FakeFile) -> None:
        self.file, self._pool, self._key = file, pool, key

    @property
    def size(self) -> int:
        """Bytes, as the pool has it now."""
        return self._pool.sizes[self._key]

    def pread_into(self, buf: memoryview, offset: int) -> None:
        """See engine.Volume."""
        self.file.preadinto(buf, offset)

    pread_once = pread_into

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """See engine.Volume."""
        self._pool.touch(self._key, offset, len(buf))
        self.file.pwrite(buf, offset)

    def zero(self, offset: int, length: int, punch: bool) -> None:
        """See engine.Volume."""
        self._pool.touch(self._key, offset, length)
        self.file.punch(offset, length)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """See engine.Volume; a region that is all zero counts as never written."""
        raw = self._pool.raw(self._key)
        found: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end:
            stop = min(end, (offset // REGION_BYTES + 1) * REGION_BYTES)
            found.append((stop - offset, raw.count(0, offset, stop) != stop - offset))
            offset = stop
        return found


class ReopeningFile:
    """A file handle of the replicator: it does not die with the target's handles on the same disk."""

    def __init__(self, disk: FakeDisk, name: str) -> None:
        self._disk, self._name = disk, name

    def known_blank(self, start: int) -> bool:
        """See RandomFile."""
        return False

    def pread(self, length: int, offset: int) -> bytes:
        """See RandomFile."""
        return self._disk.open(self._name).pread(length, offset)

    def preadinto(self, buf: bytearray | memoryview, offset: int) -> int:
        """See RandomFile."""
        return self._disk.open(self._name).preadinto(buf, offset)

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """See RandomFile."""
        self._disk.open(self._name).pwrite(buf, offset)

    def pwritev(self, bufs: Sequence[Buffer], offset: int) -> None:
        """See RandomFile."""
        self._disk.open(self._name).pwritev(bufs, offset)

    def pwrite_durable(self, buf: Buffer, offset: int) -> None:
        """See RandomFile."""
        self._disk.open(self._name).pwrite_durable(buf, offset)

    def fdatasync(self) -> None:
        """See RandomFile."""
        self._disk.open(self._name).fdatasync()

    def close(self) -> None:
        """Nothing is held."""


class SimGroupFiles:
    """Page and journal as the replicator opens them; see replicator.daemon.link.groupfiles.GroupFiles."""

    def __init__(self, disk: FakeDisk, page_buffer: bytearray, boot: int, slot: int = 0) -> None:
        self.slot = slot
        self.page = Page(page_buffer)
        if not self.page.valid(boot):
            raise IntegrityError("the page is of another boot", "start the target")
        self.u64 = self.page.u64
        self.incarnation = self.u64[INCARNATION]
        self.journal = Journal.open(ReopeningFile(disk, "journal"), self.page)

    @property
    def current(self) -> bool:
        """Whether offsets and roles are still those these files were opened under."""
        return bool(self.u64[INCARNATION] == self.incarnation)

    def wake_target(self) -> None:
        """The simulated target looks often enough."""

    def wake_edges(self) -> None:
        """The simulated edges look often enough."""

    def fence(self) -> None:
        """One thread needs none."""

    def sync_journal(self) -> None:
        """See GroupFiles."""
        self.journal.sync()

    def close(self) -> None:
        """See GroupFiles."""
