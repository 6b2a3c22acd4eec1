"""Numbers over all groups of a consistency set: how far there is no gap in what has arrived.

In a set that orders by counter every record gets, together with its write time, the next number of its series, over all
groups of the set on their primary: 1, 2, 3, …, each once. So a copy can tell by the numbers alone that nothing is
missing, and a group nobody writes to holds nobody back: no beacons are needed (seed 001 [0051]-[0053], claim 6).

Numbers and write times are given out in one critical section (capture/clock.py), so their orders are one order, and the
bound of a set can stay a time: the write time of the last record before the first gap.

    its number follows the last one     nothing between them can be missing: the bound goes on to it
    there is a gap before it            it waits for what is missing; unless everything up to its own time has arrived
                                        in every group. Then nobody has the numbers of the gap, nor ever will: they
                                        were drawn by writes whose records a crash took. They are void

The second rule asks for the arrived times of all groups (core/cuts.py). After a stop that may have lost numbers the
primary puts a note into every group of the set, a record with a time after all those numbers: so the gap is declared
void by every group, durably and in its place of the sequence, and no group skips a number that is merely late.
Records without a number, from before the set was made, pass by the second rule alone.

A series is of one node and one set of groups; that numbers follow each other says something only within a series.
Pure: the records come from capture/arrivals.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgpack


class Cut(NamedTuple):
    """Everything with a write time up to `bound_ns` has arrived; the last number of it that is known is `number`, of
    `domain`, of a record written at `number_ns` or before."""

    bound_ns: int
    number: int = 0
    domain: int = 0
    """Node tag << 32 | series; 0: no number is known."""
    number_ns: int = 0


NO_CUT: Final = Cut(0)


class Arrival(NamedTuple):
    """The next record that has arrived of one group."""

    time_ns: int
    number: int
    """0: it has none."""
    domain: int


class Arrivals(Protocol):
    """Those of one group, in order."""

    def peek(self) -> Arrival | None:
        """The next one, None when there is none yet."""

    def take(self) -> None:
        """It was dealt with."""


def advance(cut: Cut, groups: Sequence[Arrivals], complete_ns: int) -> Cut:
    """Return how far there is no gap, from `cut` on. complete_ns: everything up to it has arrived in every group.

    Takes what lies before the new cut from `groups`, which are all groups of the set. A number that is not the last one
    before the cut does no harm: those that follow it lie before the cut as well, so none behind it can seem to.
    """
    while True:
        best: tuple[Arrival, Arrivals] | None = None
        for group in groups:
            found = group.peek()
            while found is not None and found.time_ns <= cut.bound_ns:
                group.take()
                if found.number and found.time_ns > cut.number_ns:
                    cut = Cut(cut.bound_ns, found.number, found.domain, found.time_ns)
                found = group.peek()
            if found is not None and (best is None or found.time_ns < best[0].time_ns):
                best = found, group
        if best is None:
            return cut
        arrival, group = best
        follows = arrival.number == cut.number + 1 and arrival.domain == cut.domain != 0
        if not follows and arrival.time_ns > complete_ns:
            return cut
        group.take()
        if arrival.number:
            cut = Cut(arrival.time_ns, arrival.number, arrival.domain, arrival.time_ns)
        else:
            cut = cut._replace(bound_ns=arrival.time_ns)


def note_payload(set_name: str, upto: int) -> bytes:
    """The payload of a note: numbers of the set up to `upto` that are in no record are void."""
    packed: bytes = msgpack.packb({"numbers": {"set": set_name, "upto": upto}})
    return packed
