"""The receiving side on mutated, reordered and repeated DATA frames: what is in its journal is always a right chain.

A frame whose bytes were changed has a wrong CRC and must end the link. One that was made anew with right CRCs may say
anything; then the journal still holds a chain: seqs without gap, epochs that do not fall. Where nothing was altered,
only reordered and repeated, everything arrives.
"""

from __future__ import annotations

import random

import zstandard

from replicator.core.errors import ProtocolError
from replicator.core.records import Kind, unpack_header
from replicator.core.runs import iter_run
from replicator.core.transfer import PULL, Transfer
from replicator.daemon.link import wire
from replicator.daemon.link.receiver import HELD_BYTES, Receiver
from replicator.daemon.link.shipper import Stopped
from replicator.journal.page import EPOCH as EPOCH_SLOT
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, Page
from replicator.journal.ring import DATA_START, Journal
from tests.fuzz.mutate import EPOCH, EXECUTIONS, FACTOR, change_header, executions, mutate_bytes, record
from tests.fuzz.test_journal import RingFile

CAPACITY = 8 << 10
Frame = tuple[int, int, bytes]
"""Flags, first seq, body."""


class Files:
    """What a Receiver wants of GroupFiles, in memory."""

    def __init__(self) -> None:
        self.page = Page.in_memory()
        self.u64 = self.page.u64
        file = RingFile(bytearray(DATA_START + CAPACITY))
        self.journal = Journal.create(file, self.page, bytes(16), CAPACITY)  # type: ignore[arg-type]  # by shape
        self.current = True
        self.slot = 0

    def wake_target(self) -> None:
        pass

    def wake_edges(self) -> None:
        pass

    def sync_journal(self) -> None:
        pass

    def contents(self) -> bytes:
        return self.journal.read(0, self.page[HEAD_OFF])


def right_frames(rng: random.Random) -> tuple[list[Frame], bytes]:
    """Frames of a whole history, some compressed, and the bytes of all its records."""
    seq, epoch, frames, whole = 1, EPOCH, [], b""
    packer = zstandard.ZstdCompressor(level=1)
    for _ in range(rng.randrange(3, 9)):
        first, parts = seq, []
        for _ in range(rng.randrange(1, 4)):
            kind = Kind.EPOCH if rng.random() < 0.1 else Kind.WRITE
            epoch += (1 << 24) if kind == Kind.EPOCH else 0
            parts.append(record(seq, bytes([seq]) * rng.randrange(90) if kind == Kind.WRITE else b"", epoch, kind))
            seq += 1
        run = b"".join(parts)
        whole += run
        packed = rng.random() < 0.3
        frames.append((wire.FLAG_ZSTD if packed else 0, first, packer.compress(run) if packed else run))
    return frames, whole


def disturb(frames: list[Frame], rng: random.Random) -> tuple[list[Frame], bool]:
    """Reorder and repeat; half of the time alter one frame too. Returns the frames and whether none was altered."""
    mixed = list(frames)
    for _ in range(rng.randrange(4)):
        a, b = rng.randrange(len(mixed)), rng.randrange(len(mixed))
        mixed[a], mixed[b] = mixed[b], mixed[a]
    for _ in range(rng.getrandbits(1)):
        mixed.insert(rng.randrange(len(mixed)), rng.choice(frames))
    how = rng.getrandbits(3)
    if how > 3:
        return mixed, True
    at = rng.randrange(len(mixed))
    flags, first, body = mixed[at]
    if how == 0:
        first = rng.choice((first + 1, max(0, first - 1), rng.randrange(40), (1 << 64) - 1))
    elif how == 1 and not flags:
        body = change_header(unpack_header(body), rng) + body[64:]
    elif how == 2:
        flags ^= wire.FLAG_ZSTD
    else:
        body = mutate_bytes(body, rng)
    mixed[at] = flags, first, body
    return mixed, False


def deliver(receiver: Receiver, frames: list[Frame]) -> None:
    """Offer all frames, those that cannot be taken again after the others. Raises as Receiver.offer."""
    waiting = list(frames)
    while waiting:
        refused = [frame for frame in waiting if receiver.offer(frame[0], frame[1], memoryview(frame[2])) is None]
        if len(refused) == len(waiting):
            return
        waiting = refused


def test_the_journal_of_a_receiver_is_a_right_chain_whatever_comes() -> None:
    done = complete = broken = 0
    chance = random.Random(9)
    histories = [right_frames(chance) for _ in range(200)]
    for number, rng in executions("receiver"):
        frames, whole = histories[number % len(histories)]
        mixed, unaltered = disturb(frames, rng)
        files = Files()
        receiver = Receiver(files, 1, 0)  # type: ignore[arg-type]  # files by shape
        if number & 1:
            receiver.tune(Transfer(transfer=PULL))
        try:
            deliver(receiver, mixed)
        except ProtocolError:
            assert not unaltered, mixed
            broken += 1
        except Stopped as exc:
            assert exc.cause == "medium" and not unaltered  # a run that no journal could take
        assert receiver.held_bytes <= HELD_BYTES
        contents, page = files.contents(), files.page
        if unaltered:
            assert contents == whole, f"{len(contents)} of {len(whole)} bytes arrived"
            complete += 1
        elif not whole.startswith(contents):
            records = iter_run(memoryview(contents))
            assert [header.seq for header, _ in records] == list(range(1, page[HEAD_SEQ] + 1))
            epochs = [header.epoch for header, _ in records]
            assert epochs == sorted(epochs) and epochs[-1:] == [page[EPOCH_SLOT]]
        assert page[HEAD_SEQ] == receiver.expect - 1
        done += 1
    assert done == EXECUTIONS["receiver"] * FACTOR and complete > done // 4 and broken > done // 8
