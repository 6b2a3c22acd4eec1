"""Which of a group's sessions on this node may append to its journal: at most one, whatever their peers do.

A secondary may have several peers that could feed it: the node that does, and after a takeover one that it fed until
then. Each has its own thread and its own idea. A journal has one writer, so a session that is about to receive claims
it first. A claim is granted only when nobody else had it since the session asked for the facts of its HELLO (`look`):
otherwise what the two sides agreed on rests on a position that may have moved, and they have to agree anew. Whoever
claims takes the journal away from the former holder, which loses its link: the newcomer has just compared histories.

Source: events.ClaimJournal says what a shell owes the session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable


class Claims:
    """The claim on one group's journal. Thread-safe; `who` is anything that names a session of the group."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: Hashable | None = None
        self._evict: Callable[[], None] | None = None
        self._grants = 0
        self._seen: dict[Hashable, int] = {}

    def look(self, who: Hashable) -> None:
        """Remember how things stand while `who` asks for the facts of its HELLO."""
        with self._changed:
            self._seen[who] = self._grants if self._holder in (None, who) else -1

    def take(self, who: Hashable, evict: Callable[[], None]) -> bool:
        """Claim the journal for a session that is about to receive. False: compare again, the facts may have moved.

        evict: ends the session's link soon, in its own thread; called when somebody else wants the journal.
        """
        with self._changed:
            if self._holder == who:
                return True
            if self._holder is None and self._seen.get(who) == self._grants:
                self._grant(who, evict)
                return True
            former = self._evict
        if former is not None:
            former()
        return False

    def take_alone(self, who: Hashable, evict: Callable[[], None], timeout_s: float) -> bool:
        """Claim the journal for a session that becomes primary; waits until the former holder has let go of it."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._holder not in (None, who):
                if self._evict is not None:
                    self._evict()
                if not self._changed.wait(min(0.1, timeout_s)) and time.monotonic() > until:
                    return False
            if self._holder is None:
                self._grant(who, evict)
            return True

    def _grant(self, who: Hashable, evict: Callable[[], None]) -> None:
        self._holder, self._evict = who, evict
        self._grants += 1

    def release(self, who: Hashable) -> None:
        """Let go of the journal, if `who` has it."""
        with self._changed:
            if self._holder == who:
                self._holder = self._evict = None
                self._changed.notify_all()

    @property
    def holder(self) -> Hashable | None:
        """Who has it, None for nobody."""
        return self._holder
