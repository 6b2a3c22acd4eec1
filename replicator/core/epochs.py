"""Epochs: which history a record belongs to, and where two histories parted.

An epoch begins whenever a node becomes primary and writes (takeover, switchover, or the first write after a start in a
new boot). Its number is `counter << 24 | tag`: the counter rises along a history, the tag is taken from the node's id,
so two nodes that open an epoch at the same time never open the same one. After a start in a new boot the counter is at
least the time of day in seconds, so a node that was set back to an older state never opens one that it opened before.

A history is the list of (epoch, base); base is the last seq before that epoch. Two nodes compare lists: up to the
base of the first entry that differs they hold the same writes, whatever each of them did later. That answers at once
whether one is behind the other (it can follow by seq) or holds writes the other never saw (it has parted, and
something of it must be overwritten).

Invariants: the counter rises along a list, bases never fall, a node's position is at least the base of its last entry.
This file knows no roles and decides nothing; handshake.py does. Source: seed 000 section 9.1 (common position).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

TAG_BITS = 24
TAG_MASK = (1 << TAG_BITS) - 1
MAX_COUNTER = (1 << 40) - 1

Hist = Sequence[tuple[int, int]]
"""[(epoch, base), ...], oldest first."""


class Rewound(NamedTuple):
    """A line that an operator cut: by a takeover at a marker, everything in it after `base` was given up.

    What was given up is named exactly: the records after `base` up to `pos` of the line that went on with `dropped`.
    """

    epoch: int  # that goes on instead; 0 until it has begun
    base: int
    dropped: tuple[tuple[int, int], ...]  # the epochs of the old line that began at or after `base`
    pos: int  # last seq of the old line that the node held which the operator took back


class Relation(enum.Enum):
    """How the position of Y relates to that of X, from X's point of view."""

    SAME = "same"  # the same list of epochs, Y's position is not beyond X's
    BEHIND = "behind"  # X has newer epochs, and all of Y lies before them: Y can follow
    PARTED = (
        "parted"  # Y's epochs are all X's, but Y holds records beyond the point where X's history goes on otherwise
    )
    FORKED = "forked"  # both opened an epoch of their own after the common point
    OUTDATED = "outdated"  # Y has newer epochs on top of all of X's: X's own time as primary is over
    UNRELATED = "unrelated"  # Y has a history, and no epoch of it is X's
    FRESH = "fresh"  # Y has no history at all


class Comparison(NamedTuple):
    """Result of compare()."""

    relation: Relation
    shared_upto: int  # seq up to which both histories are the same (not the position of either)
    y_tail: int  # records of Y that X's history does not contain
    x_tail: int  # records of X that Y's history does not contain, counted from the common point


def make_epoch(counter: int, tag: int) -> int:
    """Return the epoch number for `counter` (1 .. 2**40 - 1) and the 24-bit node `tag`."""
    if not 0 < counter <= MAX_COUNTER:
        raise ValueError(f"epoch counter {counter} out of range")
    if not 0 <= tag <= TAG_MASK:
        raise ValueError(f"node tag {tag:#x} out of range")
    return counter << TAG_BITS | tag


def counter_of(epoch: int) -> int:
    """Return the counter part of an epoch."""
    return epoch >> TAG_BITS


def tag_of(epoch: int) -> int:
    """Return the node tag part of an epoch."""
    return epoch & TAG_MASK


def epoch_text(epoch: int) -> str:
    """An epoch for people: its counter, and the first six digits of the node that opened it."""
    return f"{counter_of(epoch)} of {tag_of(epoch):06x}"


def node_tag(node_id: str) -> int:
    """Return the 24-bit tag of a node id (32 hex digits): its first six digits."""
    return int(node_id[:6], 16)


def next_epoch(hist: Hist, tag: int) -> int:
    """Return the epoch that node `tag` opens on top of `hist`."""
    return make_epoch(counter_of(hist[-1][0]) + 1 if hist else 1, tag)


def check_hist(hist: Hist) -> None:
    """Raise ValueError unless counters rise and bases do not fall along `hist`."""
    for (epoch, base), (later, later_base) in pairwise(hist):
        if counter_of(later) <= counter_of(epoch) or later_base < base:
            raise ValueError(f"history out of order at epoch {later:#x}, base {later_base}")


def _part(x_hist: Hist, y_hist: Hist) -> tuple[bool, Hist, Hist]:
    """Return (they share an epoch, what only x has after that, what only y has after that).

    Either list may have lost its oldest entries: they are aligned at the first entry of the one that begins later.
    """
    x_list, y_list = list(x_hist), list(y_hist)
    if x_list and y_list and x_list[0] != y_list[0]:
        if x_list[0] in y_list:
            del y_list[: y_list.index(x_list[0])]
        elif y_list[0] in x_list:
            del x_list[: x_list.index(y_list[0])]
    shared = 0
    while shared < min(len(x_list), len(y_list)) and x_list[shared] == y_list[shared]:
        shared += 1
    return shared > 0, x_list[shared:], y_list[shared:]


def compare(x_hist: Hist, x_pos: int, y_hist: Hist, y_pos: int) -> Comparison:
    """Compare two positions; see Relation. `x_pos` and `y_pos` are the last seqs the sides hold."""
    if not y_hist:
        return Comparison(Relation.FRESH, 0, 0, x_pos)
    if not x_hist:
        return Comparison(Relation.UNRELATED, 0, y_pos, 0)
    shared, x_more, y_more = _part(x_hist, y_hist)
    if not shared:
        return Comparison(Relation.UNRELATED, 0, y_pos, x_pos)
    if not x_more and not y_more:
        tail = max(0, y_pos - x_pos)
        relation = Relation.PARTED if tail else Relation.SAME
        return Comparison(relation, min(x_pos, y_pos), tail, max(0, x_pos - y_pos))
    base = min(more[0][1] for more in (x_more, y_more) if more)
    x_tail, y_tail = max(0, x_pos - base), max(0, y_pos - base)
    if x_more and y_more:
        return Comparison(Relation.FORKED, base, y_tail, x_tail)
    if y_more:
        return Comparison(Relation.OUTDATED, base, y_tail, x_tail)
    return Comparison(Relation.PARTED if y_tail else Relation.BEHIND, base, y_tail, x_tail)


def common_position(x_hist: Hist, x_floor: int, y_hist: Hist, y_floor: int) -> int:
    """Return c: up to this seq the contents of both sides are certain and the same write order.

    c = min(both floors, base of the first entry that differs). Everything beyond c that either side touched must be
    copied: the union of both sides' newest bitmap whose start is <= c + 1. An empty history gives 0.
    """
    if not x_hist or not y_hist:
        return 0
    shared, x_more, y_more = _part(x_hist, y_hist)
    return min([x_floor, y_floor] + [more[0][1] for more in (x_more, y_more) if more]) if shared else 0


def gave_up(x_hist: Hist, rewound: Sequence[Rewound], y_hist: Hist, y_pos: int) -> bool:
    """Return whether everything that Y holds lies on a line that was cut where X's goes on, and within what was given
    up."""
    for cut in rewound:
        at = next((n for n, (epoch, _) in enumerate(x_hist) if epoch == cut.epoch), None)
        if at is None:
            continue
        line = [*x_hist[:at], *cut.dropped]
        if compare(line, cut.pos, y_hist, y_pos).relation in (Relation.SAME, Relation.BEHIND):
            return True
    return False


def epochs_of_tail(hist: Hist, pos: int, after: int) -> list[int]:
    """Return the epochs of `hist` that hold records in (after, pos], oldest first."""
    found = []
    for index, (epoch, base) in enumerate(hist):
        end = hist[index + 1][1] if index + 1 < len(hist) else pos
        if max(base, after) < min(end, pos):
            found.append(epoch)
    return found
