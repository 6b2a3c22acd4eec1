"""Checksummed areas after an unclean stop: making data, checksums, copies and parity agree again.

A write is several writes (data, entry, the same on other members), and a crash may have kept any of them. Called at
open for allocated areas of regions that the intent log marks, before anything is served. The rule, block by block:

1. A block that fits its entry is taken: it is as some write since the last sync left it, or as it was before.
2. One that does not is taken from redundancy, if what comes out fits: for a mirror another copy that fits its own
   entry; for parity the block solved for from blocks that fit, if it fits the damaged block's entry. (Only if: the
   other columns may be from before or after the write that was in flight, and then solving gives nonsense.)
3. Otherwise the block is kept as it reads and gets a new entry: a torn write, as on any disk. That is counted
   (RaidGroup.unsettled_blocks). It is the only place where a block that does not fit is ever taken over, and nothing
   outside marked regions comes here, so corruption anywhere else is still found by the next read or scrub. Nor does
   it happen once the stripe journal was replayed: then every row is as its last write left it, and a block that does
   not fit is damaged.
Last, copies are made equal (the first that fits is the truth) and parity is made to fit the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from raidlib.checksums import BLOCK_BYTES
from raidlib.gf256 import generator, recovery
from raidlib.image import Image
from raidlib.parity import Scratch, Span

if TYPE_CHECKING:
    from raidlib.mirrored import MirroredGroup
    from raidlib.parityraid import ParityGroup
    from raidlib.raidgroup import RaidGroup
    from raidlib.striped import StripedGroup


PIECE_BYTES = 4 << 20
"""Bytes of each member looked at together, about."""


def settle_striped(group: StripedGroup, area: int) -> int:
    """Rule 3 for every block that does not fit; return how many were written. Raises MediumError. Durable: nothing."""
    return sum(_settle_striped_rows(group, first, count) for first, count in _pieces(group, area))


def settle_mirrored(group: MirroredGroup, area: int) -> int:
    """Make the copies of an area agree; return how many blocks were written. Raises MediumError. Durable: nothing."""
    return sum(_settle_mirrored_rows(group, first, count) for first, count in _pieces(group, area))


def settle_parity(group: ParityGroup, area: int, replayed: bool) -> int:
    """Make data and parity of an area agree; return how many blocks or chunks were written.

    replayed: the stripe journal was: every row is as its last write left it. A data column that is missing is taken
    from parity as it stands. Raises MediumError. Durable: nothing.
    """
    return sum(_settle_parity_rows(group, first, count, replayed) for first, count in _pieces(group, area))


def _pieces(group: RaidGroup, area: int) -> Iterator[tuple[int, int]]:
    """The rows of an area in pieces (first, count) of about PIECE_BYTES."""
    rows, most = group.geometry.rows_per_area, max(1, PIECE_BYTES // group.geometry.chunk_bytes)
    for start in range(0, rows, most):
        yield area * rows + start, min(most, rows - start)


def _place(group: RaidGroup, row: int) -> int:
    return group.layout.data_offset + row * group.geometry.chunk_bytes


def _settle_striped_rows(group: StripedGroup, first_row: int, count: int) -> int:
    written = 0
    scratch = Scratch(1, count * group.geometry.chunk_bytes)
    for member in group.members:
        if member.file is None:
            continue
        image = Image(member, _place(group, first_row), scratch.spans[0])
        for i in np.flatnonzero(~image.fits & image.readable):
            image.write(group, int(i))
            group.unsettled_blocks += 1
            written += 1
    return written


def _settle_mirrored_rows(group: MirroredGroup, first_row: int, count: int) -> int:
    geometry, at, written = group.geometry, _place(group, first_row), 0
    for column in range(geometry.data_chunks):
        copies = [m for i in geometry.copies_of(column) if (m := group.members[i]).has_row(first_row)]
        if not copies:
            group.raise_lost()
        spans = Scratch(len(copies), count * geometry.chunk_bytes).spans
        images = [Image(member, at, span) for member, span in zip(copies, spans, strict=True)]
        for i in range(len(images[0].fits)):
            truth = next((image for image in images if image.fits[i]), None)
            if truth is None:
                truth = next((image for image in images if image.readable[i]), None)
                if truth is None:
                    continue  # no copy can be read: reads say so
                truth.write(group, i)
                group.unsettled_blocks += 1
                written += 1
            for image in images:
                if image is not truth and not (image.fits[i] and image.block(i) == truth.block(i)):
                    image.block(i)[:] = truth.block(i)
                    image.write(group, i)
                    written += 1
    return written


def _settle_parity_rows(group: ParityGroup, first_row: int, count: int, replayed: bool) -> int:
    geometry, at, written = group.geometry, _place(group, first_row), 0
    k, r, chunk = geometry.data_chunks, geometry.parity_chunks, geometry.chunk_bytes
    blocks = chunk // BLOCK_BYTES
    there = [member for member in group.members if member.has_row(first_row)]
    scratch = Scratch(len(there) + k + r, count * chunk)
    images = {m.index: Image(m, at, span) for m, span in zip(there, scratch.spans, strict=False)}
    spare = scratch.spans[len(there) :]
    for i in range(count):
        row = first_row + i
        columns = {c: image for c in range(k + r) if (image := images.get(geometry.member_of(row, c))) is not None}
        whole = True
        for block in range(i * blocks, (i + 1) * blocks):
            if any(not columns[c].fits[block] for c in columns if c < k):
                settled = _settle_block(group, columns, block, spare, replayed)
                whole = whole and settled >= 0
                written += max(settled, 0)
        if not whole:
            continue  # damaged, and not by the stop: reads say so
        spans = {c: image.span.part(i * chunk, (i + 1) * chunk) for c, image in columns.items()}
        missing = [c for c in range(k) if c not in spans]
        if missing:
            basis = sorted(columns)[:k]
            if len(basis) < k or any(not columns[c].fits[i * blocks : (i + 1) * blocks].all() for c in basis):
                continue
            solved = [span.part(0, chunk) for span in spare[: len(missing)]]
            group.engine.apply(recovery(k, r, tuple(basis), tuple(missing)), [spans[c] for c in basis], solved, chunk)
            spans.update(zip(missing, solved, strict=True))
        made = [span.part(0, chunk) for span in spare[k : k + r]]
        group.engine.apply(generator(k, r)[k:], [spans[c] for c in range(k)], made, chunk)
        for c, parity in enumerate(made, k):
            image = columns.get(c)
            if image is None:
                continue
            if image.fits[i * blocks : (i + 1) * blocks].all() and spans[c].view == parity.view:
                continue
            spans[c].view[:] = parity.view
            image.write(group, i * blocks, blocks)
            written += 1
    return written


def _settle_block(group: ParityGroup, columns: dict[int, Image], block: int, spare: list[Span], replayed: bool) -> int:
    """Settle the data columns of a row that do not fit at a block; return how many were written, -1 if none can be."""
    k, r = group.geometry.data_chunks, group.geometry.parity_chunks
    good = [c for c in columns if columns[c].fits[block]]
    bad = [c for c in columns if c < k and not columns[c].fits[block]]
    targets = [span.part(0, BLOCK_BYTES) for span in spare[: len(bad)]]
    for basis in itertools.islice(itertools.combinations(sorted(good), k), 64):
        sources = [columns[c].span.part(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES) for c in basis]
        group.engine.apply(recovery(k, r, basis, tuple(bad)), sources, targets, BLOCK_BYTES)
        if all(columns[c].would_fit(block, new.view) for c, new in zip(bad, targets, strict=True)):
            for c, new in zip(bad, targets, strict=True):
                columns[c].block(block)[:] = new.view
            break
    else:
        if replayed or not all(columns[c].readable[block] for c in bad):
            return -1
        group.unsettled_blocks += len(bad)
    for c in bad:
        columns[c].write(group, block)
    return len(bad)
