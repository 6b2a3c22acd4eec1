"""How long to wait before the next attempt to connect: exponential, with full jitter, bounded.

Without jitter, many pairs that lost one switch would all call again in the same instant.
"""

from __future__ import annotations

import random

FIRST_S = 0.1
FACTOR = 2.0
MAX_S = 10.0


class Backoff:
    """Waiting times of one pair. The random numbers come from outside, so a run can be repeated."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next_s = FIRST_S

    def next_s(self) -> float:
        """Return the next waiting time in seconds, between half and all of a ceiling that doubles up to MAX_S."""
        ceiling = self._next_s
        self._next_s = min(MAX_S, ceiling * FACTOR)
        return ceiling * (0.5 + 0.5 * self._rng.random())

    def reset(self) -> None:
        """A handshake succeeded: begin small again."""
        self._next_s = FIRST_S
