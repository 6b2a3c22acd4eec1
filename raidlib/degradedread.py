"""Reading rows of RAID 5 and 6 of which members are gone: each row once, every column once.

A request that covers several chunks of a row has most of what a missing chunk is solved from; only the rest is read in
addition. Data goes straight into the caller's buffer, what is solved as well.

It is read under the row's stripe lock, for a write changes several columns. Any trouble (an unreadable column, a torn
row, a block that does not fit its checksum) is left to the caller's way chunk by chunk, which can find and repair it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raidlib.gf256 import recovery
from raidlib.parity import Span

if TYPE_CHECKING:
    from raidlib.parityrows import ParityRows
    from raidlib.paritywrites import Piece


def read_row(group: ParityRows, row: int, pieces: list[Piece], into: Span, flags: int) -> bool:
    """Fill `into` with pieces of a row, solving for those whose member is gone; return False when that did not do.

    flags: those of raw_preadv. Call with the row's stripe lock held. Raises nothing; after False `into` holds anything.
    """
    geometry = group.geometry
    k, r = geometry.data_chunks, geometry.parity_chunks
    holders = [group.members[i] for i in group.members_of_row(row)]
    at_row = group.layout.data_offset + row * geometry.chunk_bytes
    missing = [piece for piece in pieces if not holders[piece[0]].has_row(row)]
    lo = min((inner for _, inner, _, _ in missing), default=0)
    hi = max((inner + size for _, inner, _, size in missing), default=0)
    basis: dict[int, Span] = {}
    try:
        for column, inner, at, size in pieces:
            if (column, inner, at, size) in missing:
                continue
            part = into.part(at, at + size)
            if holders[column].live_file().raw_preadv([part.view], at_row + inner, flags) != size:
                return False
            if inner <= lo and hi <= inner + size:
                basis[column] = part.part(lo - inner, hi - inner)
        if not missing:
            return True
        buffers = iter(group.scratch().spans)
        for column, member in enumerate(holders):
            if len(basis) == k:
                break
            if column not in basis and member.has_row(row):
                basis[column] = part = next(buffers).part(0, hi - lo)
                if member.live_file().raw_preadv([part.view], at_row + lo, flags) != hi - lo:
                    return False
    except OSError:
        return False
    if len(basis) < k:
        return False
    known = sorted(basis)
    made = [
        into.part(at, at + size) if size == hi - lo else next(buffers).part(0, hi - lo) for _, _, at, size in missing
    ]
    matrix = recovery(k, r, tuple(known), tuple(piece[0] for piece in missing))
    group.engine.apply(matrix, [basis[column] for column in known], made, hi - lo)
    for (_, inner, at, size), span in zip(missing, made, strict=True):
        if size != hi - lo:
            into.view[at : at + size] = span.view[inner - lo : inner - lo + size]
    return True
