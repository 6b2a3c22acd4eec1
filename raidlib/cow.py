"""Copy on write: an area that images share is copied before one of them writes to it.

The order is everything:

    take a clean area -> mark the regions of both -> copy -> sync -> log the new mapping -> write

A mapping that is logged may be durable before anything else is; so the copy is durable before it is logged, or a power
cut would leave the image with an area that lacks what was flushed long ago. The region of the old area is marked, so
that when the mapping is lost and the image falls back to the old area, the range counts as unclean; the region of the
new one, because its stripes are half written until the sync.

Copies that come together share one sync (rounds.py). The caller is inside the gate all the time: marks are not cleared
while somebody who saw them is inside. The old area keeps its other references; when the last of those goes while we
copy, the copy is given up and the area written in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raidlib.areamap import area_of, group_of
from raidlib.errors import OutOfSpace, RaidError
from raidlib.space import Space
from raidlib.state import Kind, Record

if TYPE_CHECKING:
    from raidlib.volume import Volume

PIECE_BYTES = 4 << 20


def copy_shared(volume: Volume, index: int) -> None:
    """Give a logical area that other images share a place of its own; return when it has one.

    The caller has entered the gate. Raises OutOfSpace (nothing changed), MediumError.
    Durable: the copy; the mapping with the next sync.
    """
    with volume.turn:
        while index in volume.copying:
            volume.turn.wait()
        volume.copying.add(index)
    try:
        old = volume.info.areas[index]
        if old and volume.space.shared(old):
            _copy(volume, index, old)
    finally:
        with volume.turn:
            volume.copying.discard(index)
            volume.turn.notify_all()


def _copy(volume: Volume, index: int, old: int) -> None:
    space, ledger = volume.space, volume.space.ledger
    new = take_ready(space, space.order(volume.info, index, group_of(old)))
    try:
        volume.mark((old, new))
        copy_area(space, old, new)
        space.sync()
        if space.group_at(new).lost:
            space.group_at(new).raise_lost()
        with ledger.map_lock, ledger.lock:
            if volume.info.areas[index] == old and space.shared(old):
                volume.forget((index,))
                ledger.record([Record(Kind.ALLOC, group_of(new), volume.info.id, index, area_of(new))])
                space.pending.discard(new)
                space.release((old,))
    except (RaidError, OSError):
        abandon(space, [new])
        raise
    abandon(space, [new])


def take_ready(space: Space, order: list[int]) -> int:
    """Take a clean area of the first group of `order` that has one, cleaning some if need be. Raises OutOfSpace.

    It is pending until the caller maps it, or gives it to abandon().
    """
    while True:
        with space.ledger.lock:
            place, ready = space.take(order)
            if ready:
                space.pending.add(place)
                return place
        with contextlib.suppress(OutOfSpace):  # then take() says so, or finds room elsewhere
            space.prepare(place)


def copy_area(space: Space, old: int, new: int) -> None:
    """Copy a whole area to a clean one, zeroes left out. Raises MediumError. Durable: nothing."""
    source, target = space.group_at(old), space.group_at(new)
    size = space.ledger.state.area_bytes
    step = min(size, PIECE_BYTES)
    piece, zeroes = bytearray(step), bytes(step)
    for off in range(0, size, step):
        source.read(area_of(old), off, memoryview(piece), once=True)
        if piece != zeroes:
            target.write(area_of(new), off, memoryview(piece))


def abandon(space: Space, places: Sequence[int]) -> None:
    """Give back those of these places that are still pending: they may have been written to.

    Durable: nothing; their regions are marked until it is.
    """
    with space.ledger.lock:
        for place in places:
            if place in space.pending:
                space.pending.discard(place)
                space.ledger.record([Record(Kind.DIRTY, group_of(place), 0, 0, area_of(place))])
                space.allocators[group_of(place)].abandon(area_of(place))
