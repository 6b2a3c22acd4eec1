"""Two numbers of the page that belong together: a seq and a time, each pair with one writer and any number of readers.

A pair says: every record with a write time up to `time` has a seq up to `seq`. BEACON is what this node tells others
so, ARRIVED what it knows of the records it receives. The third slot is the pair's generation, odd while it is being
stored.
"""

from __future__ import annotations

from typing import NamedTuple

_LOOKS = 100


class Beacon(NamedTuple):
    """Every record of the group with a write time up to `time_ns` has a seq up to `seq`; 0, 0 says nothing."""

    seq: int
    time_ns: int


NOTHING = Beacon(0, 0)


def publish(u64: memoryview, generation_slot: int, seq: int, time_ns: int) -> None:
    """Store the pair behind `generation_slot`."""
    generation = u64[generation_slot] | 1  # a writer that was killed may have left it odd
    u64[generation_slot] = generation
    u64[generation_slot + 1] = seq
    u64[generation_slot + 2] = time_ns
    u64[generation_slot] = generation + 1


def look(u64: memoryview, generation_slot: int) -> Beacon:
    """Return the pair behind `generation_slot`, NOTHING when its writer died while storing it."""
    for _ in range(_LOOKS):
        generation = u64[generation_slot]
        found = Beacon(u64[generation_slot + 1], u64[generation_slot + 2])
        if not generation & 1 and u64[generation_slot] == generation:
            return found
    return NOTHING
