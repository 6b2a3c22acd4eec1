"""Moving areas to another group while they are used.

A move is an intention in the pool's state: this range of that image goes to that group. It is durable before the first
area moves and gone after the last, so a crash only pauses it. A group that is being removed is the same intention for
whatever lies on it. Progress is not noted anywhere: what lies on the target has been moved.

One step moves a few areas that follow one another:

    take areas of the target -> bar writers of the old ones, wait until none is inside -> mark -> copy -> sync
    -> log, durably, the new place for every image that shares an area, and the old one as free
    -> lift the bars -> wait until no reader has the old places -> zero them

Reads go on all the time, from the old places until the log record is durable. The copy is durable before it is logged,
and the record before the first write to the new place and before the old one is zeroed: whatever a power cut keeps,
each image has a place with all that was acknowledged. Marks of the new regions are durable before the copy begins, and
the step is inside the gate until the record is: nobody clears them meanwhile.

Source: JP 2000-132343 A, [0132]-[0134], with the map itself as the progress pointer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raidlib import cow, placing
from raidlib.areamap import area_of, group_of
from raidlib.errors import BadInput, OutOfSpace, RaidError, Refused
from raidlib.space import Space
from raidlib.state import Kind, MoveInfo, Record, VolumeInfo
from raidlib.volume import Volume

STEP_BYTES = 16 << 20
"""Bytes of areas that one step moves at most; their writers wait for it."""


class Mover:
    """The moves of a pool. All methods are called under the pool's administrative lock."""

    def __init__(self, space: Space, volumes: dict[str, Volume]) -> None:
        self._space = space
        self._volumes = volumes
        self.on_rehome: Callable[[Volume], None] = lambda _volume: None
        """Called when a volume got another home: who holds its pwrite and pread_into takes the new ones."""

    def begin(self, volume: Volume, start: int, length: int, group: str) -> tuple[int, int]:
        """Have a range of an image moved; return the range of bytes, whole areas, that moves.

        Raises BadInput, NotFound, Refused. Durable: the intention.
        """
        space, info = self._space, volume.info
        state, area_bytes = space.ledger.state, space.ledger.state.area_bytes
        target = placing.group_named(space, group)
        if start < 0 or length <= 0 or start + length > volume.size:
            raise BadInput(
                f"the range {start}+{length} does not lie within the {volume.size} bytes of {volume.name}",
                "give a range of the volume",
            )
        first, end = start // area_bytes, -(-(start + length) // area_bytes)
        for move in state.moves:
            if move.volume == info.id and move.first < end and first < move.end:
                raise Refused(
                    f"a part of the range {start}+{length} of {volume.name} is being moved already",
                    "wait for that move, or cancel it",
                )
        with space.ledger.lock:
            state.moves.append(MoveInfo(info.id, first, end, target))
            try:
                space.ledger.check_room()
            except OutOfSpace:
                state.moves.pop()
                raise
            space.ledger.commit()
        return first * area_bytes, end * area_bytes

    def cancel(self, volume: Volume) -> int:
        """End all moves of an image; what has moved stays. Returns how many there were. Durable: that."""
        ledger = self._space.ledger
        with ledger.lock:
            kept = [move for move in ledger.state.moves if move.volume != volume.info.id]
            ended = len(ledger.state.moves) - len(kept)
            if ended:
                ledger.state.moves = kept
                ledger.commit()
        return ended

    def report(self) -> list[dict[str, Any]]:
        """What is being moved: name of the image, range and target, areas in all and still to move."""
        state = self._space.ledger.state
        return [
            {
                "volume": state.volumes[move.volume].name,
                "start": move.first * state.area_bytes,
                "end": move.end * state.area_bytes,
                "group": self._space.groups[move.group].info.name,
                "areas": _mapped(state.volumes[move.volume], move.first, move.end),
                "remaining": len(_elsewhere(state.volumes[move.volume], move)),
            }
            for move in state.moves
        ]

    def remaining(self) -> int:
        """Areas that still have to move, for moves and for groups that are being removed."""
        state = self._space.ledger.state
        moves = sum(len(_elsewhere(state.volumes[move.volume], move)) for move in state.moves)
        draining = sum(len(self._space.allocators[index].allocated) for index in self.draining())
        return moves + draining

    def draining(self) -> list[int]:
        """Groups that are being removed."""
        return [index for index, group in self._space.groups.items() if group.info.draining]

    def step(self) -> bool:
        """Move a few areas, or finish a move that has nothing left; return whether there was anything to do.

        Raises OutOfSpace when the target is full, MediumError; the move stays, and a later step tries again.
        Durable: that they moved.
        """
        state = self._space.ledger.state
        for move in list(state.moves):
            info = state.volumes[move.volume]
            indexes = _elsewhere(info, move)
            if len(indexes):
                self._move(info, indexes.tolist(), [move.group])
            else:
                self._finish(move)
            return True
        for group in self.draining():
            for info in list(state.volumes.values()):
                indexes = _on(info, group)
                if len(indexes):
                    run = indexes.tolist()
                    # Where its new areas would come from; when that is full, wherever there is room.
                    order = self._space.order(info, run[0])
                    self._move(info, run, list(dict.fromkeys([*order, *self._space.groups])))
                    return True
        return False

    def relocate(self, volume: Volume, index: int, source: str, target: str) -> bool:
        """Move one area, if it lies on `source`, for all images that share it; return whether it did.

        Nothing is intended beyond it: where new areas of the volume come from stays as it is. Raises NotFound, Refused,
        OutOfSpace, MediumError; then the area is where it was. Durable: that it moved.
        """
        place = volume.info.areas[index]
        if not place or self._space.group_at(place).info.name != source:
            return False
        group = placing.group_named(self._space, target)
        self._move(volume.info, [index], [group])
        return group_of(volume.info.areas[index]) == group

    # Inside

    def _move(self, info: VolumeInfo, indexes: list[int], targets: list[int]) -> None:
        """Move the first few of these logical areas, for all images that share them."""
        space = self._space
        most = max(1, STEP_BYTES // space.ledger.state.area_bytes)
        run = [index for at, index in enumerate(indexes[:most]) if index == indexes[0] + at]
        family = [volume for volume in self._volumes.values() if volume.info.family == info.family]
        gate = space.gate(info.family)
        fresh = self._take(len(run), targets)
        gone: list[int] = []
        try:
            with contextlib.ExitStack() as bars:
                for volume in family:
                    if volume.info.writable:
                        bars.enter_context(volume.barred(run[0], run[-1] + 1))
                gate.wait()
                enter, leave = gate.pair
                enter()
                try:
                    pairs = [(i, old, new) for i, new in zip(run, fresh, strict=False) if (old := info.areas[i])]
                    gone = self._copy(family, pairs)
                finally:
                    leave()
        except (RaidError, OSError):
            cow.abandon(space, fresh)
            raise
        cow.abandon(space, fresh)  # what was trimmed meanwhile needed no copy
        gate.wait()
        space.punch(gone)

    def _take(self, count: int, targets: list[int]) -> list[int]:
        """Take that many clean areas, or as many as there are. Raises OutOfSpace when there is none."""
        taken = [cow.take_ready(self._space, targets)]
        with contextlib.suppress(OutOfSpace):
            while len(taken) < count:
                taken.append(cow.take_ready(self._space, targets))
        return taken

    def _copy(self, family: Sequence[Volume], pairs: list[tuple[int, int, int]]) -> list[int]:
        """Copy (logical area, old place, new place) and change the maps; return the places that are free now."""
        if not pairs:
            return []
        space, ledger = self._space, self._space.ledger
        family[0].mark(new for _, _, new in pairs)
        for _, old, new in pairs:
            cow.copy_area(space, old, new)
        space.sync()
        for group in {group_of(new) for _, _, new in pairs}:
            if space.groups[group].lost:
                space.groups[group].raise_lost()
        with ledger.map_lock, ledger.lock:
            records: list[Record] = []
            sharers: dict[int, list[Volume]] = {}
            for index, old, new in pairs:
                sharers[index] = [volume for volume in family if volume.info.areas[index] == old]
                records += [
                    Record(Kind.ALLOC, group_of(new), volume.info.id, index, area_of(new)) for volume in sharers[index]
                ]
                records.append(Record(Kind.DIRTY, group_of(old), 0, 0, area_of(old)))
            ledger.record(records, durable=True)
            gone: list[int] = []
            for index, old, new in pairs:
                space.pending.discard(new)
                for _ in sharers[index][1:]:
                    space.allocators[group_of(new)].allocated.add(area_of(new))
                for volume in sharers[index]:
                    volume.forget([index])
                gone += space.release([old] * len(sharers[index]))
            return gone

    def _finish(self, move: MoveInfo) -> None:
        """Nothing is left to move: new areas of the range come from the target too, and the intention ends."""
        ledger = self._space.ledger
        info = ledger.state.volumes[move.volume]
        last = -(-info.size // ledger.state.area_bytes)
        home, end = info.group, min(move.end, last)
        with ledger.lock:
            ledger.state.moves.remove(move)
            if info.writable and move.first < end:
                placement = placing.replaced(info.placement, move.first, end, move.group)
                if placement[0][0] == 0 and placement[0][1] >= last:
                    home, info.pinned, placement = move.group, True, []
                info.placement = placement
            elif move.first == 0 and end >= last:
                home = move.group
            before, info.group = info.group, home
            ledger.commit()
        if home != before:
            volume = self._volumes[info.name]
            volume.rehome(home)
            self.on_rehome(volume)


def _elsewhere(info: VolumeInfo, move: MoveInfo) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The mapped logical areas of a move's range that do not lie on its target yet."""
    places = info.areas.places()[move.first : move.end]
    there = places >> np.uint64(32) == move.group + 1
    return np.flatnonzero((places != 0) & ~there) + move.first


def _on(info: VolumeInfo, group: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The logical areas that lie on a group."""
    return np.flatnonzero(info.areas.places() >> np.uint64(32) == group + 1)


def _mapped(info: VolumeInfo, first: int, end: int) -> int:
    return int(np.count_nonzero(info.areas.places()[first:end]))
