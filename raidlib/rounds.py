"""Calls that come together share one round of work: group commit for Pool.sync.

A call is served by a round that began after the call did: what the caller wrote before is in it. At most one round
runs at a time. A round that fails serves nobody: its own caller gets the error, the others run another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Rounds:
    """Runs `work` for its callers. Thread-safe."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._turn = threading.Condition()
        self._begun = 0
        self._done = 0

    def join(self) -> None:
        """Return when a round that began after this call is complete. Raises what `work` raises."""
        turn = self._turn
        with turn:
            need = self._begun + 1
            while self._begun != self._done:
                turn.wait()
                if self._done >= need:
                    return
            self._begun += 1
            mine = self._begun
        try:
            self._work()
        except BaseException:
            with turn:
                self._begun = self._done
                turn.notify_all()
            raise
        with turn:
            self._done = mine
            turn.notify_all()
