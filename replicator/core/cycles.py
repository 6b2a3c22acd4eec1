"""Cycles of a consistency set: at intervals its copies stand at one cut, and an image of all volumes is kept of it.

    1  the set's bound stands still; each group applies up to it, in the order of seq, at its own pace
    2  all are there: one snapshot of all volumes of all groups, taken together, while nothing is applied
    3  the bound rises again; the oldest images go when there are more than are to be kept

So the next cycle begins when the snapshot of the last one exists (H1-12), and an image never shows a group that was on
its way. It is offered only when it is whole, and older ones stay until then.

Pure: which settings there may be, which images may go. What is durable: capture/cyclebook.py; who takes the snapshots:
nbdplugin/cyclehost.py. Source: seed 001 [0046] and hazard H1-12.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from replicator.core.errors import BadInput

MIN_EVERY_S: Final = 0.5
MAX_EVERY_S: Final = 31 * 86400.0
MAX_KEEP: Final = 32
NO_ROOM_PART: Final = 64
"""No image is taken, and only the newest is kept, while less than this part of the pool is free."""


class Cycle(NamedTuple):
    """How often an image is taken, and how many of them are kept; 0 and 0: none."""

    every_ms: int = 0
    keep: int = 0

    @property
    def every_s(self) -> float:
        """Seconds from one image to the next."""
        return self.every_ms / 1000


NO_CYCLE: Final = Cycle()


def checked(every_s: float, keep: int) -> Cycle:
    """Return the settings. every_s: 0 ends the cycles. Raises BadInput."""
    if not every_s:
        return NO_CYCLE
    if not MIN_EVERY_S <= every_s <= MAX_EVERY_S:
        raise BadInput(f"a cycle of {every_s:g} s makes no sense", f"{MIN_EVERY_S:g} s to {MAX_EVERY_S:g} s")
    if not 1 <= keep <= MAX_KEEP:
        raise BadInput(f"{keep} images cannot be kept", f"1 to {MAX_KEEP}")
    return Cycle(round(every_s * 1000), keep)


def short_of_room(free_bytes: int, all_bytes: int) -> bool:
    """Whether what is free is left to replication."""
    return free_bytes < all_bytes // NO_ROOM_PART


def may_go(whole: Iterable[int], keep: int, held: Collection[int] = (), *, short: bool = False) -> list[int]:
    """Return the numbers of those of the `whole` images that are no longer kept, oldest first.

    held: those that stay in any case. short: the pool is, so the newest one has to do; it stays even so, for where a
    group can apply nothing more it is the only instant that all groups have. keep: 0 where its room is what that group
    needs to go on.
    """
    numbers = sorted(whole)
    kept = min(keep, 1) if short else keep
    return [n for n in numbers[: max(0, len(numbers) - kept)] if n not in held]
