"""The write-intent map of a RAID group: which regions may differ after a crash.

A region is a run of areas of the group. It is durably marked on every member before the first write into it, and
cleared lazily, some time after everything written into it has become stable. So after a crash every write that may be
torn, lost or half done lies in a marked region: parity and mirrors are made good there, free areas there are not
trusted to be zero, and replication learns which ranges may differ.

A region is clear, cool or hot. Marked on the members means cool or hot. Writers heat (mark), and a write may take the
shortcut past mark() only through the hot maps of volume.py, whose entries are put in while the region is hot and
removed when it cools, both under `lock`. So: a region that stays cool while every call in flight ends and a sync
follows has no write that is not stable, and can be cleared. Heating a cool region costs no I/O.

First touches that come together share one write per member: the first of them writes for all (group commit). A touch
right after a marked region marks some regions ahead, so that a sequential writer waits seldom.

On a member: sectors of 512 bytes, each 508 bytes of bits (bit k of byte j: region 8 j + k of the sector) and their
CRC32C. A sector that does not match its CRC counts as all marked. Where sectors lie is the layout's to say (layout.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from struct import Struct

from crc32c import crc32c

from raidlib.blockfile import BlockFile
from raidlib.layout import Layout

SECTOR_BYTES = 512
_BITS_BYTES = 508
SECTOR_REGIONS = _BITS_BYTES * 8
_CRC = Struct("<I")
AHEAD_REGIONS = 8

CLEAR, COOL, HOT = 0, 1, 2


def map_bytes(regions: int) -> int:
    """Bytes the map of so many regions takes on a member."""
    return -(-regions // SECTOR_REGIONS) * SECTOR_BYTES


def encode_sector(marked: bytes) -> bytes:
    """Return the 512 bytes for 508 bytes of bits."""
    return marked + _CRC.pack(crc32c(marked))


def empty_map(regions: int) -> bytes:
    """Return a map with nothing marked."""
    return encode_sector(bytes(_BITS_BYTES)) * (map_bytes(regions) // SECTOR_BYTES)


def decode_map(data: bytes, regions: int) -> set[int]:
    """Return the marked regions of a map; all regions of a sector with a wrong CRC."""
    found: set[int] = set()
    for at in range(0, len(data), SECTOR_BYTES):
        bits = data[at : at + _BITS_BYTES]
        first = at // SECTOR_BYTES * SECTOR_REGIONS
        if _CRC.unpack_from(data, at + _BITS_BYTES)[0] != crc32c(bits):
            found.update(range(first, min(first + SECTOR_REGIONS, regions)))
        elif any(bits):
            found.update(
                first + byte * 8 + bit
                for byte, value in enumerate(bits)
                if value
                for bit in range(8)
                if value >> bit & 1
            )
    return {region for region in found if region < regions}


def write_image(file: BlockFile, layout: Layout, image: bytes, start: int = 0) -> None:
    """Write part of a map, from its byte `start` on, on a member. Raises OSError. Durable: that."""
    for at, lo, hi in layout.intent_pieces(start, start + len(image)):
        file.pwrite_durable(image[lo - start : hi - start], at)


def read_image(file: BlockFile, layout: Layout, length: int) -> bytes:
    """Read the first `length` bytes of the map on a member. Raises OSError."""
    return b"".join(file.pread(hi - lo, at) for at, lo, hi in layout.intent_pieces(0, length))


class IntentMap:
    """The map of one group. store(offset, data, durable) writes into the map on every member of the group."""

    def __init__(
        self,
        regions: int,
        marked: Iterable[int],
        store: Callable[[int, bytes, bool], None],
        lock: threading.Condition | None = None,
    ) -> None:
        self.lock = lock if lock is not None else threading.Condition()
        """Guards the regions' states and the volumes' hot maps; one for all groups of a pool."""
        self.states = bytearray(regions)
        for region in marked:
            self.states[region] = COOL
        self._store = store
        self._bits = bytearray(-(-regions // SECTOR_REGIONS) * _BITS_BYTES)
        for region in marked:
            self._bits[_byte_of(region)] |= _bit_of(region)
        self._wanted: set[int] = set()
        self._busy = False

    def mark(self, regions: Iterable[int]) -> None:
        """Heat the regions. Raises MediumError when the group is lost. Durable: their marks."""
        needed = set(regions)
        states = self.states
        while True:
            with self.lock:
                while True:
                    missing = [region for region in needed if states[region] == CLEAR]
                    if not missing:
                        for region in needed:
                            states[region] = HOT
                        return
                    self._wanted.update(missing)
                    if not self._busy:
                        break
                    self.lock.wait()
                self._busy = True
                batch = self._wanted
                self._wanted = set()
                for region in list(batch):
                    if region and states[region - 1] != CLEAR:
                        end = min(region + AHEAD_REGIONS, len(states))
                        batch.update(ahead for ahead in range(region, end) if states[ahead] == CLEAR)
                for region in batch:
                    self._bits[_byte_of(region)] |= _bit_of(region)
            done = False
            try:
                self._write_sectors(batch, True)
                done = True
            finally:
                with self.lock:
                    self._busy = False
                    if done:
                        for region in batch:
                            states[region] = HOT if region in needed else max(states[region], COOL)
                    self.lock.notify_all()

    def heat(self, region: int) -> bool:
        """Make a marked region hot; return False when it is not marked. Call under `lock`."""
        if self.states[region] == CLEAR:
            return False
        self.states[region] = HOT
        return True

    def is_hot(self, region: int) -> bool:
        """Whether writes may go to a region without mark(). Call under `lock`."""
        return self.states[region] == HOT

    def cool(self) -> list[int]:
        """Turn hot regions cool; return those that were cool already. Call under `lock`, and empty the hot maps."""
        states = self.states
        idle = [region for region, state in enumerate(states) if state == COOL]
        for region, state in enumerate(states):
            if state == HOT:
                states[region] = COOL
        return idle

    def clear(self, regions: Iterable[int]) -> int:
        """Clear those of the regions that are still cool; return how many. Call when nothing in them is unstable.

        Durable: nothing; a mark that comes back after a crash costs time, not data.
        """
        with self.lock:
            self.wait_idle()
            gone = {region for region in regions if self.states[region] == COOL}
            if not gone:
                return 0
            for region in gone:
                self.states[region] = CLEAR
                self._bits[_byte_of(region)] &= ~_bit_of(region)
            # Under the lock: a mark that follows must reach the members after this.
            self._write_sectors(gone, False)
        return len(gone)

    def grow(self, regions: int) -> None:
        """Make it a map of so many regions, the new ones clear; the members have them. Call under `lock`, when idle."""
        self.states.extend(bytes(regions - len(self.states)))
        self._bits.extend(bytes(-(-regions // SECTOR_REGIONS) * _BITS_BYTES - len(self._bits)))

    def wait_idle(self) -> None:
        """Return when no mark is being written. Call under `lock`, which is given up meanwhile."""
        while self._busy:
            self.lock.wait()

    def image(self) -> bytes:
        """The whole map as it stands on a member, for a new member. Call under `lock`."""
        return b"".join(
            encode_sector(bytes(self._bits[at : at + _BITS_BYTES])) for at in range(0, len(self._bits), _BITS_BYTES)
        )

    def marked(self) -> list[int]:
        """All marked regions."""
        return [region for region, state in enumerate(self.states) if state != CLEAR]

    def _write_sectors(self, regions: Iterable[int], durable: bool) -> None:
        for sector in sorted({region // SECTOR_REGIONS for region in regions}):
            bits = bytes(self._bits[sector * _BITS_BYTES : (sector + 1) * _BITS_BYTES])
            self._store(sector * SECTOR_BYTES, encode_sector(bits), durable)


def _byte_of(region: int) -> int:
    return region // SECTOR_REGIONS * _BITS_BYTES + region % SECTOR_REGIONS // 8


def _bit_of(region: int) -> int:
    return 1 << region % 8
