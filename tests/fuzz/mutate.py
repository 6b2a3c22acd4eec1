"""Seeded mutations: of bytes, of records and of msgpack values; and the loop that counts executions.

Speed is what matters here, for a million of them belong to every test run. So random bits are drawn in one piece an
execution where possible, and most mutations are a single one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

from crc32c import crc32c

from replicator.core.records import Header, Kind, pack_header

FACTOR = int(os.environ.get("FARSTRIPE_FUZZ_FACTOR", "1"))
SEED = int(os.environ.get("FARSTRIPE_FUZZ_SEED", "1"))
EXECUTIONS = {
    "parse_run": 330_000,
    "iter_run": 150_000,
    "unpack_header": 150_000,
    "journal scan": 70_000,
    "control frame": 110_000,
    "opening frame": 40_000,
    "link frame": 60_000,
    "hello": 50_000,
    "session frame": 25_000,
    "receiver": 25_000,
}
EPOCH = 5 << 24 | 7
EDGES = (0, 1, 63, 64, 65, 255, 256, 4095, 4096, (1 << 26), (1 << 26) + 1, (1 << 31) - 1, (1 << 32) - 1)
WIDE = (*EDGES, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WORDS: tuple[Any, ...] = (
    None, True, False, -1, 1.5, float("inf"), float("-inf"), float("nan"), "", "x", "é" * 70, b"", b"\xff" * 9,
    [], [[]], [1, 2, 3], [[1]], {}, {"t": "hello"}, {1: 2}, *WIDE,
)  # fmt: skip


def executions(what: str) -> Iterator[tuple[int, random.Random]]:
    """Yield (number, source of chance) for each execution of `what`; the same ones for the same seed."""
    rng = random.Random(f"{what} {SEED}")
    for number in range(EXECUTIONS[what] * FACTOR):
        yield number, rng


def record(seq: int, payload: bytes, epoch: int = EPOCH, kind: int = Kind.WRITE, flags: int = 0) -> bytes:
    """A right record."""
    size = len(payload)
    crc = crc32c(payload) if payload else 0
    return pack_header(kind, flags, epoch, seq, seq * 1000, 0, size, seq * 4096, size, crc) + payload


def change_header(header: Header, rng: random.Random) -> bytes:
    """The bytes of a header with one field changed and its CRC right: what a peer with a defect would send."""
    fields = list(header)
    which = rng.randrange(len(fields))
    narrow = which in (0, 1)
    limit = 8 if narrow else 32 if which in (5, 6, 9) else 64
    new = rng.choice((fields[which] + 1, fields[which] - 1, rng.choice(WIDE), rng.getrandbits(limit)))
    fields[which] = new % (1 << limit)
    return pack_header(*fields)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One mutation: a bit, a byte, a number, a cut, something doubled, moved or left out."""
    size = len(data)
    if not size:
        return rng.randbytes(rng.randrange(20))
    bits = rng.getrandbits(64)
    how, at, low = bits & 7, (bits >> 3 & 0xFFFFFF) % size, bits >> 27 & 0xFF
    if how == 0:
        return data[:at] + bytes((data[at] ^ (1 << (low & 7)),)) + data[at + 1 :]
    if how == 1:
        return data[:at] + bytes((low,)) + data[at + 1 :]
    if how == 2:
        width = (1, 2, 4, 8)[low & 3]
        new = (EDGES[low % len(EDGES)] % (1 << 8 * width)).to_bytes(width, "little")
        return data[:at] + new + data[at + width :]
    if how == 3:
        return data[:at]
    to = (bits >> 35) % size
    first, last = (at, to) if at < to else (to, at)
    if how == 4:
        return data[:last] + data[first:]
    if how == 5:
        return data[:first] + data[last:]
    if how == 6:
        return data[:first] + bytes(last - first) + data[last:]
    return data + rng.randbytes(low)


def mutate_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A msgpack value with something in it replaced, left out, doubled or given another type."""
    if depth > 4 or rng.random() < 0.15:
        return rng.choice(WORDS)
    if isinstance(value, dict) and value:
        changed = dict(value)
        key = rng.choice(list(changed))
        how = rng.random()
        if how < 0.15:
            del changed[key]
        elif how < 0.25:
            changed[rng.choice(("t", "seq", "", 7))] = rng.choice(WORDS)
        else:
            changed[key] = mutate_value(changed[key], rng, depth + 1)
        return changed
    if isinstance(value, list | tuple) and value:
        items = list(value)
        at = rng.randrange(len(items))
        how = rng.random()
        if how < 0.2:
            del items[at]
        elif how < 0.4:
            items.insert(at, items[at])
        else:
            items[at] = mutate_value(items[at], rng, depth + 1)
        return items
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return max(-(1 << 63), min((1 << 64) - 1, value + rng.choice((-1, 1, -value, 1 << 32))))
    if isinstance(value, bytes) and value:
        return mutate_bytes(value, rng)
    return rng.choice(WORDS)


def only(allowed: tuple[type[BaseException], ...], act: Callable[[], Any], what: Callable[[], object]) -> Any:
    """Run `act`; return its result, or the allowed error it raised. AssertionError that shows `what` for another."""
    try:
        return act()
    except allowed as exc:
        return exc
    except Exception as exc:
        raise AssertionError(f"{type(exc).__name__}: {exc}; for {what()!r}") from exc
