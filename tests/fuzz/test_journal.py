"""The scan of the journal after a crash, over rings with mutated bytes: it ends where a plain walk ends."""

from __future__ import annotations

import random
from collections.abc import Sequence

from crc32c import crc32c

from replicator.core.errors import IntegrityError
from replicator.core.records import HEADER_BYTES, Kind
from replicator.journal.page import EPOCH as EPOCH_SLOT
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, Page
from replicator.journal.ring import DATA_START, Journal
from tests.fuzz.mutate import EPOCH, EXECUTIONS, FACTOR, change_header, executions, mutate_bytes, record
from tests.fuzz.test_records import plain_header

CAPACITY = 1000
MOST_READS = 60
Buffer = bytes | bytearray | memoryview


class RingFile:
    """A file in memory that knows how often it was read, and minds reads beyond its end."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.reads = 0

    def pread(self, length: int, offset: int) -> bytes:
        self._mind(length, offset)
        return bytes(self.data[offset : offset + length])

    def preadinto(self, buf: memoryview, offset: int) -> int:
        self._mind(len(buf), offset)
        buf[:] = self.data[offset : offset + len(buf)]
        return len(buf)

    def _mind(self, length: int, offset: int) -> None:
        self.reads += 1
        assert offset >= 0 and offset + length <= len(self.data), f"read of {length} bytes at {offset}"

    def pwrite(self, buf: Buffer, offset: int) -> None:
        assert offset + len(buf) <= len(self.data)
        self.data[offset : offset + len(buf)] = buf

    def pwritev(self, bufs: Sequence[Buffer], offset: int) -> None:
        self.pwrite(b"".join(bufs), offset)

    def pwrite_durable(self, buf: Buffer, offset: int) -> None:
        self.pwrite(buf, offset)

    def fdatasync(self) -> None:
        pass

    def known_blank(self, start: int) -> bool:
        return True

    def close(self) -> None:
        pass


def right_rings(rng: random.Random, count: int) -> list[bytes]:
    """Images of journals that wrapped round some times, their tails moved along."""
    images = []
    for _ in range(count):
        file, page = RingFile(bytearray(DATA_START + CAPACITY)), Page.in_memory()
        journal = Journal.create(file, page, bytes(16), CAPACITY)  # type: ignore[arg-type]  # a file by shape
        epoch, sizes = EPOCH, []
        for seq in range(1, rng.randrange(2, 40)):
            kind = Kind.EPOCH if rng.random() < 0.1 else Kind.WRITE
            epoch += (1 << 24) if kind == Kind.EPOCH else 0
            data = record(seq, rng.randbytes(rng.randrange(120)) if kind == Kind.WRITE else b"", epoch, kind)
            while not journal.room_for(len(data)):
                tail = journal.super.tail_off + sizes.pop(0)
                journal.set_tail(tail, journal.super.tail_seq + 1, tail, journal.super.tail_seq + 1)
            journal.append(data[:HEADER_BYTES], data[HEADER_BYTES:] or None, seq, epoch)
            sizes.append(len(data))
        images.append(bytes(file.data))
    return images


def plain_walk(ring: bytes, journal: Journal) -> tuple[int, int, int]:
    """Where the chain of records that begins at the tail ends: offset, seq, epoch of the last."""
    sup = journal.super
    off, seq, epoch = sup.tail_off, sup.tail_seq - 1, sup.min_epoch
    end = off + CAPACITY
    twice = ring + ring
    while end - off >= HEADER_BYTES:
        at = off % CAPACITY
        header = plain_header(twice, at)
        if header is None or header.seq != seq + 1 or header.epoch < epoch or off + header.total_bytes > end:
            break
        if header.epoch != epoch and header.kind != Kind.EPOCH and off != sup.tail_off:
            break
        payload = twice[at + HEADER_BYTES : at + header.total_bytes]
        if payload and crc32c(payload) != header.payload_crc:
            break
        off, seq, epoch = off + header.total_bytes, header.seq, header.epoch
    return off, seq, epoch


def mutated(image: bytes, rng: random.Random) -> bytearray:
    """Bytes of the ring or of a superblock changed; a header that says something else; a stretch of another time."""
    data = bytearray(image)
    how = rng.getrandbits(3)
    if how < 2:
        slot = DATA_START // 2 * (how & 1)
        data[slot : slot + 84] = mutate_bytes(bytes(data[slot : slot + 84]), rng)[:84].ljust(84, b"\0")
    elif how < 5:
        at = data.find(b"FSR1", DATA_START + rng.randrange(CAPACITY))
        header = plain_header(bytes(data[at : at + HEADER_BYTES]), 0) if at > 0 else None
        if header is not None:
            data[at : at + HEADER_BYTES] = change_header(header, rng)
    if how > 3:
        ring = mutate_bytes(bytes(data[DATA_START:]), rng)[:CAPACITY].ljust(CAPACITY, b"\0")
        data[DATA_START:] = ring
    return data


def test_a_damaged_journal_is_read_up_to_the_damage_and_no_further() -> None:
    images = right_rings(random.Random(4), 100)
    done = opened = 0
    for number, rng in executions("journal scan"):
        file, page = RingFile(mutated(images[number % len(images)], rng)), Page.in_memory()
        done += 1
        try:
            journal = Journal.open(file, page)  # type: ignore[arg-type]  # a file by shape
        except IntegrityError:
            continue
        opened += 1
        if journal.capacity != CAPACITY:
            continue  # not possible without a right CRC
        journal.recover(None)
        found = page[HEAD_OFF], page[HEAD_SEQ], page[EPOCH_SLOT]
        assert found == plain_walk(bytes(file.data[DATA_START:]), journal), (number, found)
        assert file.reads <= MOST_READS, f"{file.reads} reads of a ring of {CAPACITY} bytes"
    assert done == EXECUTIONS["journal scan"] * FACTOR and opened > done * 0.9
