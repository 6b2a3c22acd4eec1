"""A write load that knows what it was promised, and the oracles that hold a volume's content against the promises.

Every 4 KiB block written is filled with a stamp (generation, block number); generations count up over the whole load.
For each write the load notes two points on one logical clock: when it was issued and when it was acknowledged. No
block has two writes in flight, so the generations of one block are totally ordered. A write whose answer never came
may or may not have happened.

What an image may then show, block by block:

* nothing lost     the generation is that of the last acknowledged write, or a later one that was issued;
* a prefix         (asynchronous copy) let C be the latest issue time seen anywhere in the image: a write acknowledged
                   before C came before the write issued at C, so it must show too, or something later in its place;
* never torn       all 4096 bytes carry the same stamp.

The load survives its server: when the connection ends, it asks `connect` for a new one until it gets it or is stopped.
It is a client like any other: it knows nothing of farstripe but NBD. Not here: files and file systems (see writer.py).
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import nbd

BLOCK = 4096
_STAMP = struct.Struct("<QQ")


class OracleError(AssertionError):
    """An image shows something that the acknowledgements rule out."""


@dataclass
class Write:
    generation: int
    issued: int
    acked: int | None = None


@dataclass
class Ledger:
    """All writes of a load, block by block, oldest first. `clock` counts issues and acknowledgements."""

    writes: dict[int, list[Write]] = field(default_factory=dict)
    clock: int = 0
    acked_count: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def restart_from(self, image: Sequence[int]) -> None:
        """Take what an image shows as the new truth: after an asynchronous takeover the tail is lost for good.

        `image[block]` is the generation seen there."""
        for block, generation in enumerate(image):
            if generation:
                self.writes[block] = [w for w in self.writes[block] if w.generation == generation]
                self.writes[block][0].acked = self.writes[block][0].acked or self.clock
            else:
                self.writes.pop(block, None)


def stamp(generation: int, block: int) -> bytes:
    return _STAMP.pack(generation, block) * (BLOCK // _STAMP.size)


def read_generations(handle: nbd.NBD, blocks: int) -> list[int]:
    """The generation each block shows (0: never written). OracleError when a block is torn or shows another's data."""
    seen = []
    step = 256
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        data = bytes(handle.pread(count * BLOCK, first * BLOCK))
        for index in range(count):
            seen.append(_generation(data[index * BLOCK : (index + 1) * BLOCK], first + index))
    return seen


def _generation(data: bytes, block: int) -> int:
    generation, _ = _STAMP.unpack_from(data)
    expected = stamp(generation, block) if generation else bytes(BLOCK)
    if data != expected:
        kinds = {_STAMP.unpack_from(data, at) for at in range(0, BLOCK, _STAMP.size)}
        raise OracleError(f"block {block} is torn or misplaced: it shows {sorted(kinds)[:8]} (generation, block)")
    return int(generation)


def check_nothing_lost(ledger: Ledger, image: Sequence[int]) -> None:
    """Every acknowledged write shows, or a later one in its place."""
    for block, writes in ledger.writes.items():
        _check_block(writes, block, image[block], acked_before=ledger.clock + 1, promise="acknowledged")


def check_prefix(ledger: Ledger, image: Sequence[int]) -> int:
    """The image is what some instant of the load left behind. Returns how many acknowledged writes it misses."""
    by_generation = {w.generation: w for writes in ledger.writes.values() for w in writes}
    cut = max((by_generation[g].issued for g in image if g in by_generation), default=0)
    lost = 0
    for block, writes in ledger.writes.items():
        _check_block(writes, block, image[block], acked_before=cut, promise=f"acknowledged before the cut at {cut}")
        lost += sum(1 for w in writes if w.acked is not None and w.generation > image[block])
    return lost


def _check_block(writes: list[Write], block: int, seen: int, acked_before: int, promise: str) -> None:
    promised = max((w.generation for w in writes if w.acked is not None and w.acked < acked_before), default=0)
    if seen < promised:
        raise OracleError(f"block {block} shows generation {seen}, but {promised} was {promise}")
    if seen and all(w.generation != seen for w in writes):
        raise OracleError(f"block {block} shows generation {seen}, which was never written there")


class StampedLoad:
    """Random single-block writes, `depth` in flight, from a thread of its own, until stopped.

    `connect` returns a connected handle or raises; it is asked again every 50 ms while the server is away."""

    def __init__(
        self, connect: Callable[[], nbd.NBD], blocks: int, seed: int, depth: int = 8,
        writes_per_s: float = 1500.0, ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        self.ledger = ledger or Ledger()
        self.reconnects = 0
        self.refused: list[str] = []
        self._connect, self._blocks, self._depth, self._pause_s = connect, blocks, depth, depth / writes_per_s
        self._rng = random.Random(seed)
        self._busy: set[int] = set()
        self._broken = False
        self._stop = threading.Event()
        self._generation = max((w.generation for ws in self.ledger.writes.values() for w in ws), default=0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> StampedLoad:
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 60.0) -> None:
        """Wait for the writes in flight, then end. AssertionError when the server does not answer them in time."""
        self._stop.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), (
            f"the load did not end in {timeout_s} s: {len(self._busy)} writes unanswered"
        )

    def wait_acked(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until `count` more writes are acknowledged than now."""
        goal = self.ledger.acked_count + count
        deadline = time.monotonic() + timeout_s
        while self.ledger.acked_count < goal:
            assert time.monotonic() < deadline, (
                f"only {count - goal + self.ledger.acked_count} of {count} writes acknowledged in {timeout_s} s; "
                f"connected anew {self.reconnects} times; last refusals: {self.refused[-3:]}"
            )
            time.sleep(0.005)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                handle = self._connect()
            except (nbd.Error, OSError) as error:
                self.refused.append(str(error))
                self._stop.wait(0.05)
                continue
            self.reconnects += 1
            self._broken = False
            try:
                self._write_through(handle)
            except nbd.Error as error:
                self.refused.append(str(error))
            del handle  # closes the connection: libnbd has no other way
            self._busy.clear()  # whatever was in flight stays in the ledger without an acknowledgement

    def _write_through(self, handle: nbd.NBD) -> None:
        next_burst = time.monotonic()
        while not self._broken and (self._busy or not self._stop.is_set()):
            now = time.monotonic()
            if now >= next_burst and not self._stop.is_set():
                while len(self._busy) < self._depth:
                    self._issue(handle)
                next_burst = now + self._pause_s
            if handle.poll(max(1, int((next_burst - now) * 1000))) < 0:
                return

    def _issue(self, handle: nbd.NBD) -> None:
        block = self._rng.randrange(self._blocks)
        while block in self._busy:
            block = self._rng.randrange(self._blocks)
        self._generation += 1
        write = Write(self._generation, self.ledger.tick())
        self.ledger.writes.setdefault(block, []).append(write)
        self._busy.add(block)

        def answered(error: nbd.Buffer | int) -> int:
            number = error if isinstance(error, int) else error.value
            if number:
                self._broken = True
                self.refused.append(f"write of block {block}: errno {number}")
            else:
                write.acked = self.ledger.tick()
                self.ledger.acked_count += 1
                self._busy.discard(block)
            return 1

        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(stamp(write.generation, block))), block * BLOCK, answered)
