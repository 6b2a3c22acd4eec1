"""Do the members of a group agree: copies with each other, parity with data? Arithmetic on buffers, no I/O.

Buffers hold the same rows of every member, one after another. What differs is found in blocks of 4096 bytes.

Locating, RAID 6: when exactly one column c is wrong by an error e, the syndromes are S_P = e and S_Q = 2^c e, so their
quotient names the column; S_Q = 0 says it is P, S_P = 0 that it is Q (Anvin, "The mathematics of RAID-6", section 4).
Every byte of the block that differs must name the same column. Errors in several columns look like an error in one
only by chance: one in 255/k for a single byte, next to never for a block. RAID 5 and mirrors of two cannot locate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from raidlib import gf256
from raidlib.checksums import BLOCK_BYTES
from raidlib.geometry import Geometry
from raidlib.parity import Engine, Span

Blocks = npt.NDArray[np.bool_]
_LOG = np.array([0, *(next(e for e in range(255) if gf256.power_of_two(e) == v) for v in range(1, 256))], np.int16)


def unequal_copies(geometry: Geometry, spans: Mapping[int, Span]) -> Blocks:
    """For each block place of a mirror: whether any copy differs from the first of its column.

    spans: by member; members that are not there are left out.
    """
    length = len(next(iter(spans.values())).view)
    wrong = np.zeros(length // BLOCK_BYTES, np.bool_)
    for column in range(geometry.data_chunks):
        copies = [_words(spans[i]) for i in geometry.copies_of(column) if i in spans]
        for other in copies[1:]:
            if not np.array_equal(copies[0], other):
                wrong |= (copies[0] != other).reshape(-1, BLOCK_BYTES // 8).any(axis=1)
    return wrong


def syndromes(
    geometry: Geometry, engine: Engine, first_row: int, spans: Mapping[int, Span], targets: Sequence[Span]
) -> Blocks:
    """Fill one target per parity with what it differs by; return for each block place whether any is not zero.

    spans: by member, all of them. targets are as long as they.
    """
    k, r, chunk = geometry.data_chunks, geometry.parity_chunks, geometry.chunk_bytes
    rows = len(targets[0].view) // chunk
    parity = gf256.generator(k, r)[k:]
    matrix = tuple(row + tuple(int(i == j) for j in range(r)) for i, row in enumerate(parity))
    for i in range(rows):
        lo, hi = i * chunk, (i + 1) * chunk
        sources = [spans[geometry.member_of(first_row + i, column)].part(lo, hi) for column in range(k + r)]
        engine.apply(matrix, sources, [target.part(lo, hi) for target in targets], chunk)
    wrong = np.zeros(rows * chunk // BLOCK_BYTES, np.bool_)
    for target in targets:
        words = _words(target)
        if words.any():
            wrong |= words.reshape(-1, BLOCK_BYTES // 8).any(axis=1)
    return wrong


def locate(geometry: Geometry, s_p: memoryview, s_q: memoryview) -> int | None:
    """The one column that explains the syndromes of a block on RAID 6; None when no single one does."""
    p, q = np.frombuffer(s_p, np.uint8), np.frombuffer(s_q, np.uint8)
    k = geometry.data_chunks
    if not q.any():
        return k
    if not p.any():
        return k + 1
    differ = (p != 0) | (q != 0)
    p, q = p[differ], q[differ]
    if not p.all() or not q.all():
        return None
    column = (_LOG[q] - _LOG[p]) % 255
    return int(column[0]) if column[0] < k and (column == column[0]).all() else None


def _words(span: Span) -> npt.NDArray[np.uint64]:
    return np.frombuffer(span.view, np.uint64)
