"""The counter of a consistency set on its primary: the numbers that records of all its groups get. See core/numbering.

Numbers of a series are given out once, whatever stops the process or the machine:

    killed        the last one lies on tmpfs, as unsynced journal bytes do
    power lost    numbers go on above the reserve, a durable number ahead of the last one, and room for those that were
                  counted above a reserve which could not be written
    in order      the last one is noted, and the next one follows it

After the first two, numbers may be missing that no record has: `doubtful`. The owner (capture/sets.py) stores what
`stored` says in the set's file, and has a note put into every group then.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

AHEAD: Final = 1 << 20
"""How far the reserve reaches beyond the last number; half of it may be used between two writes of it."""
COUNTED: Final = 1 << 33
"""Numbers that may be given out above a reserve that cannot be written: a day of 100 000 records a second."""
_BOOT, _LAST = 0, 1


class Numbers:
    """Gives out the numbers of one set. `draw` is called under the clock's lock, which is the node's."""

    def __init__(self, stored: dict[str, Any], boot: int = 0, page: memoryview | None = None) -> None:
        """Go on above every number given out before.

        stored: what `stored` said last, {} for a new series. boot: a number that names this boot of the machine. page:
        two u64 that live as long as the machine is up; None for one that lives as long as this object.
        """
        self._page = memoryview(bytearray(16)).cast("Q") if page is None else page
        self.series = int(stored.get("series", 0)) or secrets.randbits(31) + 1
        self._limit = int(stored.get("limit", 0))
        ended_at = int(stored.get("ended_at", -1))
        fresh = not stored.get("series")
        self.doubtful = fresh or ended_at < 0
        """Numbers up to the last one may be in no record, and no note has said so yet."""
        if fresh or ended_at >= 0:
            self._page[_LAST] = max(0, ended_at)
        elif self._page[_BOOT] != boot or not boot:
            self._page[_LAST] = self._limit + COUNTED
        self._page[_BOOT] = boot
        self.reserve()

    def draw(self) -> int:
        """Return the next number."""
        number = self._page[_LAST] = self._page[_LAST] + 1
        return number

    @property
    def last(self) -> int:
        """The last number given out or noted."""
        return self._page[_LAST]

    def note(self, number: int) -> None:
        """Give out only higher numbers from now on. Nothing is being drawn: the node is no primary of the set."""
        self._page[_LAST] = max(self._page[_LAST], number)

    @property
    def wants_reserve(self) -> bool:
        """Whether the reserve is to be extended: `reserve`, then `stored` made durable."""
        return self.last + AHEAD // 2 > self._limit

    def reserve(self) -> None:
        """Reserve numbers ahead; they are reserved when what `stored` says then is durable."""
        self._limit = max(self._limit, self.last + AHEAD)

    def stored(self, *, ended: bool = False) -> dict[str, Any]:
        """What is to be kept. ended: nothing is drawn any more, and every number drawn is in a record."""
        at = self.last if ended and not self.doubtful else -1
        return {"series": self.series, "limit": self._limit, "ended_at": at}
