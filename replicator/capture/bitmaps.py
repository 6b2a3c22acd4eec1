"""History bitmaps and the copy list: one byte for each 64 KiB block of a volume, one bit of it for each bitmap.

    bit 0..2  history bitmaps; bit k is the bitmap in slot k, whose start seq the group's state holds
    bit 7     TODO: the block is still to be copied to the peer

Invariant J1 (seed 000, section 9.2): a bitmap with start s marks every block that a record with seq >= s touches here,
before the data is on stable storage. The bytes lie in a mapped file: stored, they survive the process. Power loss may
take them back to the last sync(); whatever changed since lies in regions that the pool's intent log still marks, and
those are OR-ed into every bitmap at start-up. So a stray 1 is always allowed, a missing 1 never.

Setting bits and bulk changes happen under the group lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from replicator.core.errors import Refused

BLOCK_SHIFT = 16
BLOCK_BYTES = 1 << BLOCK_SHIFT
HISTORY_SLOTS = 3
TODO = 0x80

Bytes = npt.NDArray[np.uint8]


class MapFile(Protocol):
    """A mapped file: `buf` is its memory."""

    @property
    def buf(self) -> object: ...

    def sync(self) -> None:
        """Durable: all bytes stored before the call."""


def blocks_of(size: int) -> int:
    """Number of blocks that cover `size` bytes."""
    return (size + BLOCK_BYTES - 1) >> BLOCK_SHIFT


def union_packed(one: bytes, other: bytes) -> bytes:
    """The union of two packed bitmaps of the same length."""
    return (np.frombuffer(one, dtype=np.uint8) | np.frombuffer(other, dtype=np.uint8)).tobytes()


class BlockMap:
    """The byte map of one volume."""

    def __init__(self, file: MapFile, size: int) -> None:
        """Wrap a mapped file of at least blocks_of(size) bytes."""
        self._file = file
        self.blocks = blocks_of(size)
        self.size = size
        self.bytes: memoryview = memoryview(file.buf)[: self.blocks]  # type: ignore[arg-type]  # mmap is a buffer
        self.array: Bytes = np.frombuffer(self.bytes, dtype=np.uint8)

    def mark(self, bits: int, offset: int, length: int) -> None:
        """Set `bits` for every block that [offset, offset + length) touches. Hot path."""
        m = self.bytes
        first = offset >> BLOCK_SHIFT
        last = (offset + length - 1) >> BLOCK_SHIFT
        if first == last:
            b = m[first]
            if b | bits != b:
                m[first] = b | bits
        elif length:
            self.array[first : last + 1] |= bits

    def clear_blocks(self, bits: int, first: int, count: int) -> None:
        """Clear `bits` of `count` blocks."""
        self.array[first : first + count] &= ~bits & 0xFF

    def clear_covered(self, bits: int, offset: int, length: int) -> None:
        """Clear `bits` of the blocks that lie wholly in [offset, offset + length), the volume's short last one too."""
        first = (offset + BLOCK_BYTES - 1) >> BLOCK_SHIFT
        end = offset + length
        last = self.blocks if end >= self.size else end >> BLOCK_SHIFT
        if first < last:
            self.clear_blocks(bits, first, last - first)

    def clear_all(self, bits: int) -> None:
        """Clear `bits` everywhere."""
        self.array &= np.uint8(~bits & 0xFF)

    def set_all(self, bits: int) -> None:
        """Set `bits` everywhere."""
        self.array |= np.uint8(bits)

    def count(self, bits: int) -> int:
        """Number of blocks with any of `bits`."""
        return int(np.count_nonzero(self.array & bits))

    def packed(self, bit: int) -> bytes:
        """The bitmap `bit` (a mask of one bit) as packed bits, lowest block in the lowest bit."""
        return np.packbits((self.array & bit) != 0, bitorder="little").tobytes()

    def packed_all(self) -> bytes:
        """A packed bitmap of every block."""
        return np.packbits(np.ones(self.blocks, dtype=bool), bitorder="little").tobytes()

    def merge_packed(self, bits: int, packed: bytes) -> None:
        """Set `bits` where the packed bitmap has a 1. Raises ValueError when its length does not fit."""
        if len(packed) != (self.blocks + 7) // 8:
            raise ValueError(f"bitmap of {len(packed)} bytes for {self.blocks} blocks")
        wanted = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=self.blocks, bitorder="little")
        self.array[wanted != 0] |= np.uint8(bits)

    def copy_bits(self, source: int, target: int) -> None:
        """Set `target` where `source` is set."""
        self.array[(self.array & source) != 0] |= np.uint8(target)

    def next_run(self, bit: int, start: int, most: int) -> tuple[int, int] | None:
        """Find blocks with `bit` at or after block `start`: (first, count), count <= most; None when there is none."""
        step = 1 << 16
        for at in range(start, self.blocks, step):
            window = self.array[at : at + step] & bit
            hit = int(window.argmax())  # the first of the largest
            if window[hit]:
                clear = (self.array[at + hit : at + hit + most] & bit) == 0
                gap = int(clear.argmax())
                return at + hit, gap if clear[gap] else len(clear)
        return None

    def sync(self) -> None:
        """Durable: all bits set before the call."""
        self._file.sync()


class NoMap(BlockMap):
    """Stands where a volume has left the group, or is not in it yet: it has no blocks, and nothing may change them."""

    def __init__(self) -> None:
        self.blocks = self.size = 0
        self.array = np.zeros(0, dtype=np.uint8)
        self.bytes = memoryview(b"")

    def mark(self, bits: int, offset: int, length: int) -> None:
        """Raise Refused."""
        raise Refused("the volume is not in the group any more", "connect to it again")

    def sync(self) -> None:
        """Nothing is there."""


class Bitmaps:
    """The block maps of a group's volumes, and which slots are live. `starts` is the state's own dict, not a copy."""

    def __init__(self, maps: Sequence[BlockMap], starts: dict[int, int]) -> None:
        self.maps = list(maps)
        """By volume index; a NoMap where there is no volume."""
        self.starts = starts
        self.live = 0
        self._newest = 0
        self._todo_at = (0, 0)
        self.refresh()

    def present(self) -> list[tuple[int, BlockMap]]:
        """(index, map) of the volumes that the group has."""
        return [(i, m) for i, m in enumerate(self.maps) if not isinstance(m, NoMap)]

    def refresh(self) -> None:
        """Recompute the mask of live slots after `starts` changed."""
        self.live = sum(1 << slot for slot in self.starts)
        self._newest = max(self.starts.values(), default=0)

    def live_at(self, seq: int) -> int:
        """The mask of the bitmaps that had begun when record `seq` was made; less than `live` only in redo."""
        if seq >= self._newest:
            return self.live
        return sum(1 << slot for slot, start in self.starts.items() if start <= seq)

    def open(self, start: int) -> None:
        """Open an empty bitmap with `start`; when all slots are in use the two newest are merged into the older one.

        The caller saves the state. Nothing happens when a bitmap with that start is open already.
        """
        if start in self.starts.values():
            return
        free = [slot for slot in range(HISTORY_SLOTS) if slot not in self.starts]
        if not free:
            newest = max(self.starts, key=lambda slot: self.starts[slot])
            del self.starts[newest]  # older ones mark all it marked: they were open longer
            free = [newest]
        for m in self.maps:
            m.clear_all(1 << free[0])
        self.starts[free[0]] = start
        self.refresh()

    def drop_older(self, start: int) -> None:
        """Drop every bitmap older than `start`, provided one with exactly that start is open. The caller saves."""
        if start not in self.starts.values():
            return
        for slot in [s for s, v in self.starts.items() if v < start]:
            del self.starts[slot]
        self.refresh()

    def newest_for(self, common: int) -> int | None:
        """Bit of the newest bitmap whose start <= common + 1, None when no bitmap reaches back so far."""
        fit = [slot for slot, start in self.starts.items() if start <= common + 1]
        return 1 << max(fit, key=lambda slot: self.starts[slot]) if fit else None

    def mark_unclean(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Set all live bitmaps for (volume index, offset, length) ranges that power loss may have changed."""
        for volume, offset, length in ranges:
            if volume < len(self.maps) and offset < self.maps[volume].size:
                m = self.maps[volume]
                m.mark(self.live, offset, min(length, m.size - offset))

    def todo_blocks(self) -> int:
        """Blocks still to be copied."""
        return sum(m.count(TODO) for m in self.maps)

    def next_todo(self, most: int) -> tuple[int, int, int] | None:
        """Find blocks to copy: (volume, first block, count <= most); None when none is left.

        Looks from where the last call found some and goes round once: a look from the start of a large volume takes
        longer than a copy.
        """
        volume, at = self._todo_at
        for step in range(len(self.maps) + 1):
            index = (volume + step) % len(self.maps)
            run = self.maps[index].next_run(TODO, at if step == 0 else 0, most)
            if run is not None:
                self._todo_at = index, run[0]
                return index, *run
        return None

    def sync(self) -> None:
        """Durable: all bits set before the call."""
        for m in self.maps:
            m.sync()
