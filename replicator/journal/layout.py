"""Where a logical offset of the ring lies, when the ring is made of several files that come and go.

Reasoning. A *layout* is a cyclic list of extents (stretches of files) and holds from one logical offset on, its
`start`. `phase` is the place in the list at which `start` lies; from there the ring runs through the list again and
again. A journal has a list of layouts with rising starts: offset o lies where the last layout with start <= o puts it,
so records stay where they were written although the ring has been changed since.

A file is added by putting its extent into the list exactly where the ring stands at the new layout's start, and taken
away by leaving its extents out. What makes that safe, whatever the history of changes is:

    Go round the list from the write position. The offsets last written to the bytes one meets rise, never fall:
    the oldest come first, the byte before the write position is the newest. Inserting bytes that hold nothing, or
    leaving bytes out, keeps that true. So the byte at distance d holds an offset of at most head - capacity + d, and
    writing offset o = head + d destroys nothing kept as long as o - tail < capacity.

Hence ONE rule whatever was added or taken away: head - tail <= capacity of the newest layout. A file that was added
while the ring is full gives its room at once, for it comes next; a file that was taken away is needed until the tail
has passed the start of the layout without it.

Who appends must not go beyond a start it does not know of. `next_start` says where a layout can begin so that nobody
can, also an appender in another process that has not heard of it yet: nothing is ever written at or beyond tail +
capacity, and the tail stands still until the change has been published (ring.py).

All offsets and lengths are bytes; those in a file count from the beginning of its part of the ring (ring.DATA_START).
Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from replicator.core.errors import InternalError


class Extent(NamedTuple):
    """A stretch of one file."""

    file: int  # index of the file in the journal
    begin: int
    length: int


class Piece(NamedTuple):
    """Logical offsets [lo, hi) lie in one file without a gap; `lo` lies at byte `at`."""

    lo: int
    hi: int
    file: int
    at: int


class Layout(NamedTuple):
    """What the ring is made of from logical offset `start` on."""

    start: int
    phase: int
    extents: tuple[Extent, ...]

    @property
    def capacity(self) -> int:
        """Bytes of the ring."""
        return sum(extent.length for extent in self.extents)

    def position(self, off: int) -> int:
        """Place of offset `off` in the list of extents."""
        return (off - self.start + self.phase) % self.capacity

    def piece(self, off: int) -> Piece:
        """The largest piece that holds `off`, as if this layout held for all offsets."""
        position = at = self.position(off)
        for file, begin, length in self.extents:
            if at < length:
                lo = off - at
                return Piece(lo, lo + length, file, begin)
            at -= length
        raise InternalError(f"place {position} is outside the ring")


Layouts = tuple[Layout, ...]
"""Starts rise strictly. Offsets below the first start are nobody's: they are looked up in the first layout."""


def single(capacity: int) -> Layouts:
    """The layouts of a journal that is one file, file 0, and always was."""
    return (Layout(0, 0, (Extent(0, 0, capacity),)),)


def piece_at(layouts: Layouts, off: int) -> Piece:
    """The largest piece that holds `off`."""
    at = len(layouts) - 1
    while at > 0 and layouts[at].start > off:
        at -= 1
    piece = layouts[at].piece(off)
    lo, hi = piece.lo, piece.hi
    if at > 0 and layouts[at].start > lo:
        lo = layouts[at].start
    if at + 1 < len(layouts):
        hi = min(hi, layouts[at + 1].start)
    return Piece(lo, hi, piece.file, piece.at + lo - piece.lo)


def pieces(layouts: Layouts, off: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (file, offset in it, length) for the bytes [off, off + length) in order."""
    while length > 0:
        piece = piece_at(layouts, off)
        n = min(length, piece.hi - off)
        yield piece.file, piece.at + off - piece.lo, n
        off += n
        length -= n


def files_of(layouts: Layouts) -> set[int]:
    """Indices of all files that may hold something."""
    return {extent.file for layout in layouts for extent in layout.extents}


def anchor_of(layouts: Layouts) -> int:
    """The file whose superblock counts: the lowest of the newest layout."""
    return min(extent.file for extent in layouts[-1].extents)


def next_start(layouts: Layouts, tail: int, head: int | None) -> int:
    """Where a new layout can begin.

    head: the end of the journal if nobody appends meanwhile; None when somebody may, with the tail standing still.
    """
    last = layouts[-1]
    return max(last.start, tail + last.capacity if head is None else head)


def with_file(layouts: Layouts, start: int, file: int, length: int) -> Layouts:
    """Return the layouts with a new file that comes first from `start` on, as `next_start` gave it."""
    last = layouts[-1]
    left = last.position(start)
    before, after = [], []
    for extent in last.extents:
        n = min(max(left, 0), extent.length)
        if n:
            before.append(Extent(extent.file, extent.begin, n))
        if n < extent.length:
            after.append(Extent(extent.file, extent.begin + n, extent.length - n))
        left -= extent.length
    phase = sum(extent.length for extent in before)
    return _followed(layouts, Layout(start, phase, (*before, Extent(file, 0, length), *after)))


def without_file(layouts: Layouts, start: int, file: int) -> Layouts:
    """Return the layouts in which `file` has no part from `start` on. Another file must remain."""
    last = layouts[-1]
    left, phase = last.position(start), 0
    kept: list[Extent] = []
    for extent in last.extents:
        n = min(max(left, 0), extent.length)
        left -= extent.length
        if extent.file == file:
            continue
        phase += n
        joins = kept and kept[-1].file == extent.file and kept[-1].begin + kept[-1].length == extent.begin
        if joins:
            kept[-1] = Extent(extent.file, kept[-1].begin, kept[-1].length + extent.length)
        else:
            kept.append(extent)
    if not kept:
        raise InternalError("a journal keeps at least one file")
    return _followed(layouts, Layout(start, phase % sum(e.length for e in kept), tuple(kept)))


def _followed(layouts: Layouts, new: Layout) -> Layouts:
    """Append a layout; one that begins where the last one does takes its place."""
    return (*(old for old in layouts if old.start < new.start), new)


def pruned(layouts: Layouts, tail: int) -> Layouts:
    """Leave out layouts by which nothing at or behind `tail` lies."""
    at = 0
    while at + 1 < len(layouts) and layouts[at + 1].start <= tail:
        at += 1
    return layouts[at:]
