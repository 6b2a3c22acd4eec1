"""Where a byte of a RAID group lies. Pure arithmetic, no I/O.

A group has n members. A *row* is one chunk on each member at the same place; rows count from 0 at the start of the
members' data region. An *area* is a whole number of rows, so each area is a group of its own as far as parity goes:
parity of unallocated areas means nothing, freeing an area is punching its rows on every member, and a hole reads as
zero data with zero parity.

Columns of a row: data chunks are columns 0..data_chunks-1, then parity P, then Q. On a mirror every copy of a data
chunk has that chunk's column.

Rotation is left-symmetric as in Linux md: P moves left by one member per row, Q stands right of P, data starts right
of the parity and wraps. Levels 0, 1 and 10 do not rotate; level 10 pairs members (0,1), (2,3), and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raidlib.errors import BadInput

LEVELS = (0, 1, 5, 6, 10)
MIN_MEMBERS = {0: 1, 1: 2, 5: 3, 6: 4, 10: 4}
MAX_MEMBERS = 32
MIN_CHUNK_BYTES = 4 << 10
MAX_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Geometry:
    """The shape of one RAID group. Raises BadInput when it cannot be."""

    level: int
    members: int
    chunk_bytes: int
    area_bytes: int
    data_chunks: int = field(init=False)
    parity_chunks: int = field(init=False)
    copies: int = field(init=False)
    rows_per_area: int = field(init=False)
    chunks_per_area: int = field(init=False)

    def __post_init__(self) -> None:
        check_shape(self.level, self.members, self.chunk_bytes)
        parity = {5: 1, 6: 2}.get(self.level, 0)
        copies = {1: self.members, 10: 2}.get(self.level, 1)
        data = self.members // copies - parity
        if self.area_bytes < data * self.chunk_bytes:
            raise BadInput(
                f"an area of {self.area_bytes} bytes is smaller than a row of {data} chunks of {self.chunk_bytes}",
                "take larger areas, smaller chunks or fewer members",
            )
        rows = -(-self.area_bytes // (data * self.chunk_bytes))
        put = object.__setattr__
        put(self, "data_chunks", data)
        put(self, "parity_chunks", parity)
        put(self, "copies", copies)
        put(self, "rows_per_area", rows)
        put(self, "chunks_per_area", rows * data)

    @property
    def rotates(self) -> bool:
        """Whether the place of a column depends on the row."""
        return self.parity_chunks > 0

    @property
    def area_member_bytes(self) -> int:
        """Bytes one area takes on each member."""
        return self.rows_per_area * self.chunk_bytes

    def member_of(self, row: int, column: int) -> int:
        """The member that holds a column of a row; on a mirror the first of the copies."""
        if self.copies > 1:
            return column * self.copies
        if not self.parity_chunks:
            return column
        p = self.members - 1 - row % self.members
        if column < self.data_chunks:
            return (p + self.parity_chunks + column) % self.members
        return (p + column - self.data_chunks) % self.members

    def copies_of(self, column: int) -> tuple[int, ...]:
        """The members that hold a data column of a mirror or of level 0."""
        first = column * self.copies
        return tuple(range(first, first + self.copies))

    def survives(self, lost: set[int]) -> bool:
        """Whether every byte is still there when these members are lost."""
        if self.copies > 1:
            return all(not set(self.copies_of(column)) <= lost for column in range(self.data_chunks))
        return len(lost) <= self.parity_chunks


def check_shape(level: int, members: int, chunk_bytes: int) -> None:
    """Raise BadInput unless a group of this level, member count and chunk size can be."""
    if level not in LEVELS:
        raise BadInput(f"there is no RAID level {level}", f"levels are {', '.join(map(str, LEVELS))}")
    if members < MIN_MEMBERS[level]:
        raise BadInput(f"RAID {level} needs at least {MIN_MEMBERS[level]} members, {members} given", "add members")
    if members > MAX_MEMBERS:
        raise BadInput(f"a group has at most {MAX_MEMBERS} members, {members} given", "make several groups")
    if level == 10 and members % 2:
        raise BadInput(f"RAID 10 needs an even number of members, {members} given", "add or remove one")
    if chunk_bytes & (chunk_bytes - 1) or not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise BadInput(
            f"chunk size {chunk_bytes} is not a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes",
            "65536 suits most uses",
        )
