"""Every image that a crash can leave: a disk that records its changes, and a walk over the record.

A crash at change n (n is in flight) leaves what is stable and, of each change that no sync has covered, any part, each
decided on its own: all of it, nothing, or some of its sectors of 512 or pages of 4096 bytes. A kill leaves everything,
of the change in flight a whole number of pages, and what was unsynced stays so: power may still take it.

Walk goes through a record once, keeping the stable bytes and the list of pending changes; an image of an outcome is
made by copying the stable bytes and laying the chosen parts over them. Each image has a digest that does not depend on
how it came about (the exclusive or over all changed sectors of hash(before) and hash(now)), so equal ones are known
without looking at all bytes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tests.testing.fakedisk import PAGE_BYTES, SECTOR_BYTES, FakeDisk, Unsynced, _Store

Pieces = Sequence[tuple[int, int]]
"""Half-open ranges of a change's bytes that reached the medium."""


class Change(NamedTuple):
    """One recorded change; see FakeDisk.changed for the names."""

    op: str
    file: str
    off: int
    data: bytes


class Pending(NamedTuple):
    """A write that no sync has covered."""

    file: str
    off: int
    data: bytes


class Outcome(NamedTuple):
    """What a crash did: the pieces that each pending change left, and whether the power went."""

    name: str
    kept: Sequence[Pieces]
    power: bool


class RecordingDisk(FakeDisk):
    """A FakeDisk that keeps a record from the moment record() is called."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.base: dict[str, tuple[bytes, list[Unsynced]]] = {}
        self.log: list[Change] | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called with each change, after it was recorded."""

    def record(self) -> None:
        """Begin a record: from here on `log` grows, and `base` is what was there."""
        self.base = self.snapshot()
        self.log = []

    def create(self, name: str, size: int) -> None:
        """See FakeDisk."""
        super().create(name, size)
        self.changed("create", name, size, b"")

    def changed(self, op: str, name: str, off: int, data: bytes) -> None:
        """See FakeDisk."""
        if self.log is not None:
            self.log.append(Change(op, name, off, data))
            self.on_change()

    @classmethod
    def of(cls, rng: random.Random, stores: dict[str, _Store]) -> RecordingDisk:
        """A disk that holds these files; they become its own."""
        disk = cls(rng)
        disk._stores = stores
        return disk


class Walk:
    """Goes through the changes made to `base`. At each, images() of outcomes; then advance()."""

    def __init__(self, base: dict[str, tuple[bytes, list[Unsynced]]], digest: int = 0) -> None:
        self.stable: dict[str, bytearray] = {}
        self.pending: list[Pending] = []
        self._digest = digest
        for name, (data, unsynced) in base.items():
            self.stable[name] = stable = bytearray(data)
            for write in reversed(unsynced):
                self._digest ^= _digest_of(name, stable, write.off, len(write.old))
                stable[write.off : write.off + len(write.old)] = write.old
                self._digest ^= _digest_of(name, stable, write.off, len(write.old))
            self.pending += [Pending(name, write.off, write.new) for write in unsynced]

    def begin(self, change: Change) -> bool:
        """A change starts: a crash now may leave any part of it. Returns whether it is a write."""
        if change.op not in ("write", "write_durable", "punch", "lost_write"):
            return False
        self.pending.append(Pending(*change[1:]))
        return True

    def end(self, change: Change) -> None:
        """The change that began is complete."""
        op, name, off, data = change
        if op == "create":
            self.stable[name] = bytearray(off)
        elif op == "enlarge":
            self.stable[name] += data
            self._digest ^= _digest_of(name, self.stable[name], off, len(data))
        elif op == "sync":
            for write in self.pending:
                if write.file == name:
                    self._settle(write)
            self._forget(name)
        elif op == "lost_sync":
            self._forget(name)
        elif op == "lost_write":
            self.pending.pop()
        elif op == "write_durable":
            self._settle(self.pending.pop())
            self.pending = [_shadowed(write, name, off, data) for write in self.pending]

    def build(self, rng: random.Random, outcome: Outcome) -> tuple[int, Callable[[], RecordingDisk]]:
        """Return the digest of what an outcome leaves, and a function that makes the disk."""
        images = {name: bytearray(data) for name, data in self.stable.items()}
        unsynced: dict[str, list[Unsynced]] = {name: [] for name in images}
        touched: set[tuple[str, int]] = set()
        for (name, off, data), pieces in zip(self.pending, outcome.kept, strict=True):
            image = images[name]
            if not pieces:
                continue
            old = b"" if outcome.power else bytes(image[off : off + len(data)])
            for start, end in pieces:
                image[off + start : off + end] = data[start:end]
            touched.update(
                (name, sector) for sector in range(off // SECTOR_BYTES, -(-(off + len(data)) // SECTOR_BYTES))
            )
            if not outcome.power:
                unsynced[name].append(Unsynced(name, off, bytes(image[off : off + len(data)]), old))
        digest = self._digest
        for name, sector in touched:
            at = sector * SECTOR_BYTES
            digest ^= _sector_digest(name, self.stable[name], at) ^ _sector_digest(name, images[name], at)

        def make() -> RecordingDisk:
            return RecordingDisk.of(rng, {name: _Store(data, unsynced[name]) for name, data in images.items()})

        return digest, make

    def _settle(self, write: Pending) -> None:
        name, off, data = write
        stable = self.stable[name]
        self._digest ^= _digest_of(name, stable, off, len(data))
        stable[off : off + len(data)] = data
        self._digest ^= _digest_of(name, stable, off, len(data))

    def _forget(self, name: str) -> None:
        self.pending = [write for write in self.pending if write.file != name]


def outcomes(pending: Sequence[Pending], in_flight: bool, rng: random.Random, most: int) -> Iterator[Outcome]:
    """Ways a crash can end: kills, then torn ones, every combination of lost and kept where they are few, samples.

    in_flight: the last of the pending changes has not returned. At most `most`, plus the kills.
    """
    all_kept = [_whole(write) for write in pending]
    if in_flight:
        pages = -(-len(pending[-1].data) // PAGE_BYTES)
        for done in sorted({0, pages // 2, pages}):
            kept = [*all_kept[:-1], _prefix(pending[-1], done * PAGE_BYTES)]
            yield Outcome(f"kill after {done} pages", kept, False)
    else:
        yield Outcome("kill", all_kept, False)
    for name, kept in itertools.islice(_choices(pending, rng), most):
        yield Outcome(name, kept, True)


def _choices(pending: Sequence[Pending], rng: random.Random) -> Iterator[tuple[str, list[Pieces]]]:
    count = len(pending)
    all_kept: list[Pieces] = [_whole(write) for write in pending]
    yield "all lost", [()] * count
    if not count:
        return
    yield "all kept", all_kept
    yield "last torn", [*all_kept[:-1], _torn(pending[-1], rng, SECTOR_BYTES)]
    yield "only last torn", [*([()] * (count - 1)), _torn(pending[-1], rng, PAGE_BYTES)]
    if count <= 3:
        for bits in range(1, (1 << count) - 1):
            yield f"kept {bits:b}", [all_kept[i] if bits >> i & 1 else () for i in range(count)]
    else:
        for i in rng.sample(range(count), min(count, 6)):
            yield f"{i} lost", [*all_kept[:i], (), *all_kept[i + 1 :]]
            yield f"{i} kept", [all_kept[i] if j == i else () for j in range(count)]
    for number in itertools.count():
        unit = SECTOR_BYTES if number % 2 else PAGE_BYTES
        kept: list[Pieces] = []
        for write in pending:
            dice = rng.random()
            kept.append(_whole(write) if dice < 0.4 else () if dice < 0.8 else _torn(write, rng, unit))
        yield f"mixture {number}", kept


def _whole(write: Pending) -> Pieces:
    return ((0, len(write.data)),)


def _prefix(write: Pending, end: int) -> Pieces:
    return ((0, min(len(write.data), end)),) if end else ()


def _torn(write: Pending, rng: random.Random, unit: int) -> Pieces:
    """A prefix, a suffix, or any of the units of the medium that the write touches."""
    size = len(write.data)
    cuts = [0, *range(unit - write.off % unit, size, unit), size]
    if len(cuts) == 2:
        return _whole(write) if rng.random() < 0.5 else ()
    dice = rng.random()
    if dice < 0.7:
        at = rng.choice(cuts[1:-1])
        return ((0, at),) if dice < 0.35 else ((at, size),)
    return [piece for piece in itertools.pairwise(cuts) if rng.random() < 0.5]


def _shadowed(write: Pending, name: str, off: int, data: bytes) -> Pending:
    """An earlier unsynced write under bytes that are durable now: there they show, whatever becomes of it."""
    if write.file != name:
        return write
    start, end = max(off, write.off), min(off + len(data), write.off + len(write.data))
    if start >= end:
        return write
    a, b = start - write.off, end - write.off
    return Pending(name, write.off, write.data[:a] + data[start - off : end - off] + write.data[b:])


def _sector_digest(name: str, data: bytearray, at: int) -> int:
    return hash((name, at, bytes(data[at : at + SECTOR_BYTES])))


def _digest_of(name: str, data: bytearray, off: int, length: int) -> int:
    digest = 0
    for at in range(off // SECTOR_BYTES * SECTOR_BYTES, off + length, SECTOR_BYTES):
        digest ^= _sector_digest(name, data, at)
    return digest
