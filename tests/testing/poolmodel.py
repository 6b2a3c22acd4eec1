"""What a pool's volumes may hold: the model beside which PoolWorld puts a pool, and the bytes that tell them apart.

The model knows nothing of raidlib's insides. Every write fills its sectors with a tag of its own, so a sector that
reads as something else tells what it is: an older write, another volume's data, garbage.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache

from tests.testing.fakedisk import SECTOR_BYTES

TOLERATES = {0: 0, 1: 1, 5: 1, 6: 2, 10: 1}
"""Members that any group of a level can lose (RAID 1 of two)."""
_ZERO_SECTOR = bytes(SECTOR_BYTES)


class DoubleFault(Exception):
    """The pool refused to open: it lost power, or was killed, in the very moment it lost a member. Not a defect."""


class Violation(AssertionError):
    """The pool holds something it must not."""


@dataclass
class VolumeModel:
    """What one volume may hold. Sector values are tags; 0 is zeroes."""

    size: int
    current: list[int] = field(default_factory=list)
    frozen: bool = False
    """A snapshot."""
    since_sync: dict[int, frozenset[int]] = field(default_factory=dict)
    """For sectors written since the last sync: every value a power cut may leave."""

    def __post_init__(self) -> None:
        self.current = self.current or [0] * (self.size // SECTOR_BYTES)

    def put(self, sectors: range, tag: int) -> None:
        """A write completed."""
        for sector in sectors:
            before = self.current[sector]
            self.since_sync[sector] = self.since_sync.get(sector, frozenset((before,))) | {tag}
            self.current[sector] = tag

    def bytes(self) -> bytes:
        """What a read of all of it gives, if nothing was lost."""
        return b"".join(map(sector_bytes, self.current, range(len(self.current))))

    def image(self, *, frozen: bool) -> VolumeModel:
        """A snapshot or clone of it."""
        return VolumeModel(self.size, list(self.current), frozen)

    def copy(self) -> VolumeModel:
        """An independent copy."""
        return VolumeModel(self.size, list(self.current), self.frozen, dict(self.since_sync))

    def resize(self, size: int) -> None:
        """A resize completed."""
        sectors = size // SECTOR_BYTES
        self.current = self.current[:sectors] + [0] * (sectors - len(self.current))
        self.since_sync = {sector: values for sector, values in self.since_sync.items() if sector < sectors}
        self.size = size


@dataclass
class InFlight:
    """The call that has not returned."""

    kind: str
    volume: str
    sectors: range = range(0)
    tag: int = 0
    size: int = 0
    images: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1 << 16)
def sector_bytes(tag: int, sector: int) -> bytes:
    """The 512 bytes of a sector written with a tag; zeroes for tag 0."""
    return _ZERO_SECTOR if not tag else struct.pack("<QQ", tag, sector + 1) * (SECTOR_BYTES // 16)


def tag_of(data: bytes, sector: int) -> int:
    """The tag a sector holds; -1 when it is nothing that was ever written there."""
    if data == _ZERO_SECTOR:
        return 0
    tag, place = struct.unpack_from("<QQ", data)
    if place == sector + 1 and data == sector_bytes(tag, sector):
        return int(tag)
    return -1


def sector_set(ranges: list[tuple[int, int]]) -> set[int]:
    return {sector for off, n in ranges for sector in range(off // SECTOR_BYTES, (off + n) // SECTOR_BYTES)}
