"""A pair whose secondary retains what it overwrites, and an oracle that knows every instant without it.

The ring lies on the side's FakeDisk with everything else, so a kill or power cut hits it at the same instant.
"""

from __future__ import annotations

import random
from typing import Any

from replicator.capture import follower, recovery, roles
from replicator.capture.preimages import instants, putback, recorder
from replicator.capture.preimages.frames import Instant
from replicator.capture.preimages.instants import Place
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.preimages.window import Window
from replicator.capture.state import PRIMARY, SECONDARY
from replicator.core.errors import IntegrityError
from replicator.journal.page import APPLIED_SEQ
from tests.testing.pairharness import GROUP, Pair, Side

RING_BYTES = (256 << 10) + 8192
PIECE_BYTES = 16 << 10
FRAME_DATA_BYTES = 32 << 10
NOTE = "given-up"


def shrink_frames(patch: Any) -> None:
    """Let rings of RING_BYTES do: `patch` is pytest's monkeypatch, or anything with its setattr."""
    patch.setattr(recorder, "PIECE_BYTES", PIECE_BYTES)
    patch.setattr(recorder, "FRAME_DATA_BYTES", FRAME_DATA_BYTES)


class RetainingSide(Side):
    """A Side with a ring of pre-images."""

    def __init__(self, name: str, *, ring_bytes: int = RING_BYTES, keep_s: float = 0, **shape: Any) -> None:
        super().__init__(name, **shape)
        self.keep_ns = int(keep_s * 1e9)
        self.disk.create("preimages", ring_bytes)
        self.disk.create(NOTE, 4096)
        file: Any = self.disk.open("preimages")
        Window.create(file, bytes.fromhex(GROUP), ring_bytes)

    def parts(self) -> recovery.Parts:
        parts = super().parts()
        note: Any = self.disk.open(NOTE)
        if note.pread(1, 0) == b"\0":
            parts.preimages = self._recorder(note)
        return parts

    def _recorder(self, note: Any) -> PreImages | None:
        def give_up(_reason: str) -> None:
            note.pwrite_durable(b"\1", 0)

        file: Any = self.disk.open("preimages")
        try:
            window = Window.open(file, bytes.fromhex(GROUP))
        except IntegrityError as e:
            give_up(str(e))
            return None
        window.keep_ns = self.keep_ns
        return PreImages(window, give_up)

    @property
    def recorder(self) -> PreImages:
        found = self.engine.preimages
        assert found is not None
        return found

    @property
    def window(self) -> Window:
        return self.recorder.window

    def view(self, place: Place) -> list[bytes]:
        """What the volumes held at an instant, made of what they hold now."""
        images = [_Bytes(data) for data in self.image()]
        for piece in putback.pieces(self.window, place, self.window.end_off):
            piece.put(images)
        return [bytes(image.data) for image in images]

    def instants(self) -> list[Instant]:
        """Every consistent instant of the window, newest history last."""
        window = self.window
        found = [span.first for span in window.spans[:1] if span.first == window.base]
        for head, entries in window.heads():
            if head.consistent and not head.partial:
                found += dict.fromkeys(Instant(entry.seq, head.epoch, entry.write_time) for entry in entries)
        return found


class _Bytes:
    """A writable image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def pwrite(self, buf: Any, offset: int) -> None:
        assert 0 <= offset <= offset + len(buf) <= len(self.data)
        self.data[offset : offset + len(buf)] = buf

    def zero(self, offset: int, length: int, punch: bool) -> None:
        self.pwrite(bytes(length), offset)


class Histories:
    """The histories that a pair has been through, by the epoch they end with."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._by_epoch: dict[int, list[list[int]]] = {}

    def look(self) -> None:
        """Take note of the histories of now."""
        for side in (self.pair.a, self.pair.b):
            hist = side.engine.state.hist
            for count in range(1, len(hist) + 1):
                self._by_epoch[hist[count - 1][0]] = [list(h) for h in hist[:count]]

    def image(self, instant: Instant) -> list[bytes]:
        """What the volumes held after a record, from the records alone."""
        return self.pair.image_at(self._by_epoch[instant.epoch], instant.seq)


def check_views(side: RetainingSide, known: Histories, rng: random.Random, count: int | None = None) -> int:
    """Compare the views of all instants of the window, or of `count` of them, with the records; returns how many."""
    known.look()
    last: dict[int, Instant] = {}
    shown = side.instants()
    for instant in shown:
        last[instant.seq] = instant
    chosen = [i for i in shown if last[i.seq] == i]
    for instant in chosen if count is None or count >= len(chosen) else rng.sample(chosen, count):
        place = instants.at_seq(side.window, instant.seq, side.page[APPLIED_SEQ])
        assert place.instant == instant
        assert side.view(place) == known.image(instant), f"the view at {instant} is not what was"
    return len(chosen)


def retaining_pair(*, seed: int = 0, **shape: Any) -> tuple[Pair, RetainingSide]:
    """A pair in sync: `a` primary, `b` secondary with retention, recording since the first copy began."""
    b = RetainingSide("b", seed=seed, **shape)
    pair = Pair(Side("a", seed=seed + 1), b)
    pair.a.create(PRIMARY)
    b.create(SECONDARY)
    roles.arm(pair.a.engine, b.node_id)
    roles.arm(b.engine, pair.a.node_id, upstream=True)
    pair.sync_up()
    follower.checkpoint(b.engine)
    return pair, b
