"""The ring: what it holds after wraps, lives, damage; what it gives up and when."""

from __future__ import annotations

import random
from typing import Any

import pytest

from replicator.capture.preimages import frames
from replicator.capture.preimages.frames import Entry, Instant
from replicator.capture.preimages.window import DATA_START, Span, TooLarge, Window
from replicator.core.errors import IntegrityError, Refused
from replicator.core.records import Kind
from tests.testing.fakedisk import FakeDisk

GROUP = b"g" * 16
SIZE = DATA_START + (64 << 10)
OK = frames.CONSISTENT


class Ring:
    """A window on a disk that forgets."""

    def __init__(self) -> None:
        self.disk = FakeDisk(random.Random(1))
        self.disk.create("ring", SIZE)
        self.window = Window.create(self.file, GROUP, SIZE)
        self.window.restart(Instant(10, 7, 10_000), consistent=True)

    @property
    def file(self) -> Any:
        return self.disk.open("ring")

    def add(self, seq: int, size: int = 4096, flags: int = OK, count: int = 1) -> None:
        entries = [
            Entry(n, n * 1000, 0, size, 0, int(Kind.WRITE), size, frames.crc32c(bytes([n % 256]) * size))
            for n in range(seq, seq + count)
        ]
        self.window.append(flags, 7, entries, [bytes([n % 256]) * size for n in range(seq, seq + count)])

    def reopen(self) -> Window:
        self.disk.kill()
        self.window = Window.open(self.file, GROUP)
        return self.window


def seqs(window: Window) -> list[int]:
    return [entry.seq for _, entries in window.heads() for entry in entries]


def test_frames_come_back_in_order_with_their_data_after_wraps_and_reopening() -> None:
    ring = Ring()
    for seq in range(11, 60):
        ring.add(seq, 3000)
        if seq % 7 == 0:
            ring.reopen()
    window = ring.window
    first = window.base.seq + 1
    assert first > 11 and seqs(window) == list(range(first, 60))
    for head, entries, data in window.contents(window.tail_off, window.end_off):
        assert bytes(data) == bytes([entries[0].seq % 256]) * 3000 and head.last_seq == entries[0].seq
    assert window.spans == [Span(Instant(first - 1, 7, (first - 1) * 1000), Instant(59, 7, 59_000))]
    assert window.used_bytes <= window.capacity


def test_a_torn_last_frame_is_dropped_and_its_place_used_again() -> None:
    ring = Ring()
    ring.add(11)
    ring.disk.cut_at(ring.disk.operations + 1)
    with pytest.raises(BaseException, match="cut at"):
        ring.add(12)
    ring.disk.crash(lambda _i, _w: "tear")
    window = Window.open(ring.file, GROUP)
    assert (window.last.seq, seqs(window)) == (11, [11])
    ring.window = window
    ring.add(12, 100)
    assert seqs(ring.reopen()) == [11, 12]


def test_a_record_counts_only_with_its_last_frame() -> None:
    ring = Ring()
    ring.add(11)
    ring.add(12, flags=OK | frames.PARTIAL)
    ring.add(12, flags=OK | frames.PARTIAL)
    assert ring.window.last.seq == 11
    assert seqs(ring.reopen()) == [11]
    ring.add(12, flags=OK | frames.PARTIAL)
    ring.add(12)
    assert seqs(ring.reopen()) == [11, 12, 12] and ring.window.last.seq == 12


def test_a_record_that_fills_the_ring_alone_is_too_large() -> None:
    ring = Ring()
    ring.add(11)
    with pytest.raises(TooLarge):
        for _ in range(20):
            ring.add(12, flags=OK | frames.PARTIAL)
    ring.window.restart(Instant(12, 7, 12_000), consistent=True)
    assert seqs(ring.reopen()) == [] and ring.window.base.seq == 12


def test_a_hole_in_the_chain_is_damage_and_not_its_end() -> None:
    ring = Ring()
    places = []
    for seq in range(11, 15):
        places.append(ring.window.head_off)
        ring.add(seq)
    ring.disk.corrupt("ring", DATA_START + places[1] + 90)
    with pytest.raises(IntegrityError, match="damaged"):
        ring.reopen()


def test_rotten_data_is_refused_when_it_is_needed() -> None:
    ring = Ring()
    ring.add(11)
    place = ring.window.head_off
    ring.add(12)
    ring.add(13)
    ring.disk.corrupt("ring", DATA_START + place + 1000)
    window = ring.reopen()
    with pytest.raises(IntegrityError, match="damaged at offset"):
        list(window.contents(window.tail_off, window.end_off))
    assert len(list(window.contents(ring.window.tail_off, place))) == 1


def test_a_reader_that_is_overtaken_is_told() -> None:
    ring = Ring()
    ring.add(11)
    ring.add(12)
    reading = ring.window.contents(ring.window.tail_off, ring.window.end_off)
    next(reading)
    for seq in range(13, 60):
        ring.add(seq)
    with pytest.raises(Refused, match="left the window"):
        next(reading)


def test_what_is_too_old_goes_unless_a_reader_needs_it() -> None:
    ring = Ring()
    ring.window.keep_ns = 5000
    ring.window.pins.append(ring.window.tail_off)
    for seq in range(11, 20):
        ring.add(seq, 100)
    assert ring.window.base.seq == 10
    ring.window.pins.clear()
    ring.add(20, 100)
    assert ring.window.base == Instant(15, 7, 15_000), "the state of 5 µs before the newest record is still there"
    assert ring.reopen().base.seq == 15


def test_spans_end_at_an_attach_and_begin_when_the_copy_is_complete() -> None:
    ring = Ring()
    ring.add(11)
    ring.window.attached(4, 8)
    ring.add(5, flags=0)
    ring.add(6, flags=0)
    ring.add(7)
    ring.add(8)
    spans = [(10, 11), (7, 8)]
    assert [(s.first.seq, s.last.seq) for s in ring.window.spans] == spans
    window = ring.reopen()
    assert [(s.first.seq, s.last.seq) for s in window.spans] == spans and window.last.seq == 8
    for seq in range(9, 21):
        ring.add(seq)
    assert [(s.first.seq, s.last.seq) for s in ring.window.spans][-1][1] == 20
    while ring.window.tail_off < ring.window.sequence_off:
        ring.add(ring.window.last.seq + 1)
    assert len(ring.window.spans) == 1 and ring.window.spans == ring.reopen().spans


def test_a_ring_that_ended_shows_nothing_and_another_group_has_no_use_of_it() -> None:
    ring = Ring()
    ring.add(11)
    ring.window.end()
    assert not ring.reopen().active and ring.window.spans == []
    with pytest.raises(IntegrityError, match="another group"):
        Window.open(ring.file, b"h" * 16)
    ring.window.restart(Instant(3, 9, 0), consistent=False)
    assert ring.window.spans == [] and seqs(ring.reopen()) == []


def test_a_failed_sync_is_raised_and_nothing_counts() -> None:
    ring = Ring()
    ring.disk.fail_next_sync("ring")
    with pytest.raises(OSError):
        ring.add(11)
    assert ring.window.last.seq == 10
