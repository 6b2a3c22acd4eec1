"""Storage of a simulated node, all of it on one FakeDisk, so that one power cut hits everything at the same instant.

SimPool follows raidlib's contract: a region is durably marked in the intent log before its first write, and cleared
only when it stayed cool and a sync followed. Bitmaps live in mapped files: what was stored since the last sync is,
byte by byte, kept or lost in a power cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

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


class SimPool:
    """The volumes of a node and their intent log. Outlives the target process; `attach` gives it live handles."""

    def __init__(self, disk: FakeDisk, sizes: Sequence[int]) -> None:
        self.disk = disk
        self.sizes = list(sizes)
        self.marks: set[tuple[int, int]] = set()  # durable
        self._hot: set[tuple[int, int]] = set()
        self.syncs = 0
        for index, size in enumerate(sizes):
            disk.create(f"volume{index}", size)

    def open(self) -> list[SimVolume]:
        """Open the volumes for a new target process."""
        return [SimVolume(self, i, self.disk.open(f"volume{i}")) for i in range(len(self.sizes))]

    def raw(self, index: int) -> bytearray:
        """The bytes of a volume as any reader would see them now; not to be changed."""
        return self.disk._find(f"volume{index}").data

    def touch(self, index: int, offset: int, length: int) -> None:
        """Mark the regions of a write, durably, before it."""
        for region in range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1):
            self.marks.add((index, region))
            self._hot.add((index, region))

    def sync_with(self, files: Sequence[FakeFile]) -> None:
        """Durable: every write before the call."""
        for file in files:
            file.fdatasync()
        self.syncs += 1

    def clear_intents(self, files: Sequence[FakeFile], sync_group: Callable[[], bool]) -> None:
        """Clear marks of regions that stayed cool since the last call, when their writes, records, bits are stable."""
        cool = self.marks - self._hot
        self._hot.clear()
        if cool:
            if not sync_group():
                cool = set()
            self.sync_with(files)
            self.marks -= cool

    def unclean(self) -> list[tuple[int, int, int]]:
        """The marked ranges, as recovery.open_engine takes them."""
        return [(index, region * REGION_BYTES, REGION_BYTES) for index, region in sorted(self.marks)]


class SimVolume:
    """A volume as the engine sees it."""

    def __init__(self, pool: SimPool, index: int, file: FakeFile) -> None:
        self.size = pool.sizes[index]
        self.file = file
        self._pool, self._index = pool, index

    def pread_into(self, buf: memoryview, offset: int) -> None:
        """See engine.Volume."""
        self.file.preadinto(buf, offset)

    def pread_once(self, buf: memoryview, offset: int) -> None:
        """See engine.Volume."""
        self.file.preadinto(buf, offset)

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """See engine.Volume."""
        self._pool.touch(self._index, offset, len(buf))
        self.file.pwrite(buf, offset)

    def zero(self, offset: int, length: int, punch: bool) -> None:
        """See engine.Volume."""
        self._pool.touch(self._index, offset, length)
        self.file.punch(offset, length)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """See engine.Volume; a region that is all zero counts as never written."""
        raw = self._pool.raw(self._index)
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
