"""What really was written: every record by (epoch, seq), taken where it enters the journal, and what hosts were told.

Kept apart from the code under test: it knows nothing of bitmaps, positions or roles. An image at position n of a
history is the genesis image with every record up to n applied, each found by the epoch that the history gives to its
seq.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack

from replicator.core.records import DATA_KINDS, LIST_KINDS, Header, Kind

Hist = list[tuple[int, int]]


class Violation(AssertionError):
    """A promise was broken."""


class Change(NamedTuple):
    """What one record does to the volumes. `data` None: zeroes."""

    volume: int
    offset: int
    length: int
    data: bytes | None
    listing: str = ""
    """VOLUME_ADD, RESIZE (both to `length` bytes) or VOLUME_REMOVE, when it changes which volumes there are; RESTORED
    (to `data`) when a change is taken back that was said and did not come about."""


def change_of_record(header: Header, payload: bytes | None) -> Change:
    """What a record does."""
    if header.kind == Kind.VOLUME_ADD:
        return Change(header.volume, 0, int(msgpack.unpackb(payload or b"")["size"]), None, "VOLUME_ADD")
    if header.kind in LIST_KINDS:
        return Change(header.volume, 0, header.length, None, Kind(header.kind).name)
    return Change(header.volume, header.offset, header.length, payload)


@dataclass
class Promise:
    """A write that a host was told is safe on both sides."""

    holder: str  # the node that was secondary then
    epoch: int
    seq: int
    durable: bool  # told to be on stable storage there
    via: tuple[frozenset[str], ...] = ()  # the edges on the way there, by the names of their ends; all were in sync


@dataclass
class Truth:
    """The whole run's records."""

    sizes: list[int]
    records: dict[tuple[int, int], Change | None] = field(default_factory=dict)
    by_seq: dict[int, list[Change]] = field(default_factory=dict)
    by_epoch: dict[int, list[int]] = field(default_factory=dict)
    """Seqs of the records that change something, ascending: between them may be millions of numbers given to none."""
    genesis: list[bytes] = field(default_factory=list)
    power_left: dict[int, list[Change]] = field(default_factory=dict)
    """By epoch: what a power loss left in the image that the epoch begins with and no record tells of."""
    promises: list[Promise] = field(default_factory=list)

    def add(self, epoch: int, seq: int, kind: int, change: Change) -> None:
        """A record entered a primary's journal, or a write its bitmap-mode sequence."""
        value = change if kind in DATA_KINDS or change.listing else None
        key = (epoch, seq)
        if key in self.records and self.records[key] != value:
            raise Violation(f"record {seq} of epoch {epoch:#x} was given out twice with different contents")
        if key not in self.records and value is not None:
            self.by_seq.setdefault(seq, []).append(value)
            insort(self.by_epoch.setdefault(epoch, []), seq)
        self.records[key] = value

    def learn(self, other: Truth) -> None:
        """Take over every record of another run, which went the same way as this one up to now."""
        self.records.update(other.records)
        self.by_seq.update({seq: list(changes) for seq, changes in other.by_seq.items()})
        self.by_epoch.update({epoch: list(seqs) for epoch, seqs in other.by_epoch.items()})

    def at(self, seq: int) -> list[Change]:
        """What the records with this seq do, in any epoch."""
        return self.by_seq.get(seq, [])

    def lineage(self, hist: Hist, after: int, upto: int) -> list[tuple[int, int]]:
        """(epoch, seq) of the records after < seq <= upto along `hist`; 0 as seq marks the beginning of an epoch."""
        found: list[tuple[int, int]] = []
        for index, (epoch, base) in enumerate(hist):
            end = hist[index + 1][1] if index + 1 < len(hist) else upto
            if base >= after and base <= upto and (index or not after):
                found.append((epoch, 0))
            seqs = self.by_epoch.get(epoch, [])
            first, last = bisect_right(seqs, max(base, after)), bisect_right(seqs, min(end, upto))
            found += [(epoch, seq) for seq in seqs[first:last]]
        return found

    def holds(self, hist: Hist, pos: int, epoch: int, seq: int) -> bool:
        """Whether the history up to `pos` contains the record."""
        if seq > pos:
            return False
        owner = [e for e, base in hist if base < seq]
        return bool(owner) and owner[-1] == epoch

    def change_of(self, epoch: int, seq: int) -> list[Change]:
        """What a position does to the image."""
        if seq == 0:
            return self.power_left.get(epoch, [])
        change = self.records.get((epoch, seq))
        return [] if change is None else [change]


class Image:
    """The image a node should have, carried along as its position moves. `volumes` by index; a volume that is not there
    has no bytes."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self.volumes = [bytearray(size) for size in truth.sizes]
        self._hist: Hist | None = None
        self._pos = 0

    def move(self, hist: Hist, pos: int) -> None:
        """Make it the image at position `pos` of `hist`."""
        old = self._hist
        continues = old is not None and pos >= self._pos and self._same_up_to_here(old, hist)
        if not continues:
            self.volumes = [bytearray(start) for start in self._truth.genesis]
            self._pos = 0
        known = {epoch for epoch, _ in old} if continues and old is not None else set()
        for epoch, seq in self._truth.lineage(hist, self._pos if continues else 0, pos):
            if seq == 0 and epoch in known:
                continue
            for change in self._truth.change_of(epoch, seq):
                apply(self.volumes, change)
        self._hist, self._pos = list(hist), pos

    def _same_up_to_here(self, old: Hist, new: Hist) -> bool:
        cut_old = [entry for entry in old if entry[1] < self._pos]
        cut_new = [entry for entry in new if entry[1] < self._pos]
        return cut_old == cut_new and len(new) >= len(old) and new[: len(old)] == old


def apply(volumes: list[bytearray], change: Change) -> None:
    """Apply a change to an image."""
    if change.listing:
        volumes += [bytearray() for _ in range(change.volume + 1 - len(volumes))]
        volume = volumes[change.volume]
        if change.data is not None:
            volume[:] = change.data
        if change.listing != "RESIZE" and change.data is None:
            volume.clear()
        volume[change.length :] = bytes(max(0, change.length - len(volume)))
        return
    if change.volume >= len(volumes) or change.offset + change.length > len(volumes[change.volume]):
        return  # what a power loss left in a volume that has left since, or become smaller
    data = bytes(change.length) if change.data is None else change.data
    volumes[change.volume][change.offset : change.offset + change.length] = data
