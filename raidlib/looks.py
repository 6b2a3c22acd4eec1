"""Looking at the members of an open pool for a while, to see how long they take (membertimes.py).

Invariant: after end() nothing is timed, however the look went. One look at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.membertimes import LOOK_REQUESTS, TimedFile
from raidlib.raidgroup import RaidGroup


class Look:
    """One look at all members; it begins when it is made."""

    def __init__(self, groups: list[RaidGroup], ledger: Ledger, full: Callable[[], None]) -> None:
        """full: called, perhaps more than once and from any thread, when enough was noted."""
        self._groups = groups
        self._ledger = ledger
        self._full = full
        self._left = LOOK_REQUESTS
        with ledger.lock:
            for member in self._members():
                if member.file is not None:
                    member.timed = TimedFile(member.file, self._noting(member))
            self._refresh()

    def end(self) -> None:
        """Time no more, and put what was seen into the members' means."""
        with self._ledger.lock:
            for member in self._members():
                member.timed = None
                member.times.count(monotonic())
            self._refresh()

    def _members(self) -> list[Member]:
        return [member for group in self._groups for member in group.members]

    def _refresh(self) -> None:
        for group in self._groups:
            group.refresh()

    def _noting(self, member: Member) -> Callable[[bool, float], None]:
        note, times = member.times.note, member.times

        def noted(is_read: bool, seconds: float) -> None:
            if member.times is times:  # else another medium has taken its place
                note(is_read, seconds)
            self._left -= 1
            if self._left < 0:
                self._full()

        return noted
