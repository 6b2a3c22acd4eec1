"""Putting back what was overwritten since an instant, into an image of now.

What was overwritten since is walked from the instant upward. The first pre-image of a byte is what it held at the
instant; later ones are passed over, so each byte is written once. Upward is also the order in which the ring is
overwritten, so a reader that is fast enough is never caught up with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from replicator.capture.preimages.frames import Entry
from replicator.capture.preimages.instants import Place
from replicator.capture.preimages.window import Window
from replicator.core.records import DATA_KINDS
from replicator.journal.files import Buffer

_DATA = frozenset(int(kind) for kind in DATA_KINDS)
BLOCK_BYTES = 4096
_CHUNK = 1024  # blocks in one number of a bit each


class Image(Protocol):
    """What is taken back: a writable image of a volume. Errors are the pool's."""

    def pwrite(self, buf: Buffer, offset: int) -> None:
        """Write all of `buf`."""

    def zero(self, offset: int, length: int, punch: bool) -> None:
        """Make the range read as zeroes."""


class Piece(NamedTuple):
    """Bytes to be put back; `data` None: zeroes."""

    volume: int
    offset: int
    length: int
    data: memoryview | None

    def put(self, images: Mapping[int, Image]) -> None:
        """Write it to the image of its volume, by index."""
        if self.data is None:
            images[self.volume].zero(self.offset, self.length, True)
        else:
            images[self.volume].pwrite(self.data, self.offset)


class Restored:
    """Which bytes of a volume have been put back: a bit for each whole block, ranges within the others."""

    def __init__(self) -> None:
        self._whole: dict[int, int] = {}
        self._parts: dict[int, dict[int, list[tuple[int, int]]]] = {}

    def take(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Add a range; return the ranges (begin, end) of it that were not there, rising."""
        end = offset + length
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        if first == last:
            return self._take_part(first, offset, end)
        gaps: list[tuple[int, int]] = []
        if offset % BLOCK_BYTES:
            _join(gaps, self._take_part(first, offset, (first + 1) * BLOCK_BYTES))
            first += 1
        stop = last if end % BLOCK_BYTES else last + 1
        self._take_blocks(first, stop, gaps)
        if stop == last:
            _join(gaps, self._take_part(last, last * BLOCK_BYTES, end))
        return gaps

    def _take_blocks(self, first: int, stop: int, gaps: list[tuple[int, int]]) -> None:
        while first < stop:
            chunk, bit = divmod(first, _CHUNK)
            count = min(stop - first, _CHUNK - bit)
            wanted = ((1 << count) - 1) << bit
            have, parts = self._whole.get(chunk, 0), self._parts.get(chunk, {})
            if not have & wanted and not parts:
                _join(gaps, [(first * BLOCK_BYTES, (first + count) * BLOCK_BYTES)])
            elif have & wanted != wanted:
                for block in range(first, first + count):
                    if not have >> (block % _CHUNK) & 1:
                        begin = block * BLOCK_BYTES
                        _join(gaps, _without(parts.pop(block, []), begin, begin + BLOCK_BYTES))
            self._whole[chunk] = have | wanted
            first += count

    def _take_part(self, block: int, begin: int, end: int) -> list[tuple[int, int]]:
        chunk, bit = divmod(block, _CHUNK)
        have = self._whole.get(chunk, 0)
        if have >> bit & 1:
            return []
        parts = self._parts.setdefault(chunk, {})
        gaps = _without(parts.get(block, []), begin, end)
        merged: list[tuple[int, int]] = []
        _join(merged, sorted([*parts.get(block, []), *gaps]))
        if merged == [(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)]:
            self._whole[chunk] = have | 1 << bit
            parts.pop(block, None)
        else:
            parts[block] = merged
        return gaps


def _without(parts: list[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """[begin, end) without rising, disjoint parts."""
    gaps = []
    for start, stop in parts:
        if stop <= begin or start >= end:
            continue
        if begin < start:
            gaps.append((begin, start))
        begin = stop
    if begin < end:
        gaps.append((begin, end))
    return gaps


def _join(ranges: list[tuple[int, int]], more: Sequence[tuple[int, int]]) -> None:
    """Append ranges that begin at the end of the last or later."""
    for begin, end in more:
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((begin, end))


def pieces(window: Window, place: Place, end: int) -> Iterator[Piece]:
    """What takes an image, taken when the ring ended at logical offset `end`, back to `place`; no byte twice.

    Raises Refused when the ring has overwritten what is needed, IntegrityError when it is damaged.
    """
    restored: dict[int, Restored] = {}
    for head, entries, data in window.contents(place.begin, end):
        skip_seq = place.skip_seq if head.off == place.begin else -1
        at = 0
        for entry in entries:
            begin, at = at, at + entry.data_len
            if entry.seq > skip_seq and entry.length and entry.kind in _DATA:
                have = restored.setdefault(entry.volume, Restored())
                yield from _of_entry(entry, have, data[begin:at])


def _of_entry(entry: Entry, have: Restored, data: memoryview) -> Iterator[Piece]:
    for begin, stop in have.take(entry.offset, entry.length):
        at = begin - entry.offset
        yield Piece(entry.volume, begin, stop - begin, data[at : at + stop - begin] if entry.data_len else None)
