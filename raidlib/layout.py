"""Where the parts of a member lie: what its superblock says, and what growing added since.

A member begins with its parts, each of a size fixed when its group was made, then come rows of data. When a group's
members were enlarged and the group takes the new room (extending.py), that room becomes further rows, and the parts
that it needs more of get an *extension*, a piece in the first of the new rows, whose areas are given to nobody. So
nothing that is there moves, and row r stays at data offset + r x chunk. Superblocks stay as they are: which extensions
there are is in the pool's state.

An extension, from its start on: more of the intent map (its sectors follow those before it); for each metadata slot
room for what of a checkpoint is too long for the slot (the last extension's counts); the checksum table for the blocks
from its start to the start of the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

PLACE_BYTES = 8
"""What naming the place of its second part takes in a checkpoint that has one."""


@dataclass(frozen=True)
class Extension:
    """Parts that a growth added. Bytes from the start of the member; [start, end) is whole areas."""

    start: int
    end: int
    intent_bytes: int
    overflow_bytes: int
    """For each of the two metadata slots."""
    table_bytes: int

    def overflow_offset(self, slot: int) -> int:
        """Where the room of a slot is."""
        return self.start + self.intent_bytes + slot * self.overflow_bytes

    @property
    def table_offset(self) -> int:
        """The entry of the block at `start`."""
        return self.start + self.intent_bytes + 2 * self.overflow_bytes


@dataclass(frozen=True)
class Layout:
    """Where the parts of every member of a group lie. Bytes from the start of the member."""

    intent_offset: int
    intent_bytes: int
    slot_offset: int
    checkpoint_bytes: int
    log_bytes: int
    journal_offset: int
    journal_bytes: int
    data_offset: int
    table_offset: int = 0
    table_bytes: int = 0
    """0 when the group has no checksums."""
    extensions: tuple[Extension, ...] = ()
    """Rising. Not in the superblock."""

    @property
    def at_first(self) -> Layout:
        """The layout as superblocks have it."""
        return replace(self, extensions=())

    def extended(self, extensions: Iterable[Extension]) -> Layout:
        """This layout with more extensions behind those it has."""
        return replace(self, extensions=(*self.extensions, *extensions))

    @property
    def checkpoint_room(self) -> int:
        """Bytes that a checkpoint with its header can have."""
        if not self.extensions:
            return self.checkpoint_bytes
        return self.checkpoint_bytes + self.extensions[-1].overflow_bytes - PLACE_BYTES

    @property
    def intent_room(self) -> int:
        """Bytes of intent map that there is room for."""
        return self.intent_bytes + sum(extension.intent_bytes for extension in self.extensions)

    def intent_pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Where bytes [start, end) of the intent map lie: (byte of the member, from, to), whole sectors each."""
        first = 0
        for offset, length in [
            (self.intent_offset, self.intent_bytes),
            *((extension.start, extension.intent_bytes) for extension in self.extensions),
        ]:
            lo, hi = max(start, first), min(end, first + length)
            if lo < hi:
                yield offset + lo - first, lo, hi
            first += length


NOWHERE = Layout(0, 0, 0, 0, 0, 0, 0, 0)
"""The layout of a spare: it has no parts yet."""
