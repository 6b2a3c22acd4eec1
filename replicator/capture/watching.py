"""Whether a lone writer watches for its answer or sleeps: whichever has brought answers sooner lately.

Being woken takes as long as a third of a synchronous write on a machine with a processor to spare, so there it is
better to watch. Where the processors are busy, the watching takes from the replicator what it needs to bring the
answer, and sleeping is better. Which it is cannot be read off any counter, so both are tried: answers are timed in
stretches of STRETCH, and every TRY_EVERY stretches one is done the other way. Watching costs a processor, so it has to
be better by GAIN. Pure; seconds throughout.
"""

from __future__ import annotations

STRETCH = 64
TRY_EVERY = 16
GAIN = 0.1


class Watching:
    """Of one group's lone writer. `now` says what to do, `note` what it took."""

    def __init__(self, most_s: float) -> None:
        """most_s: an answer that takes longer counts as this; one that was held up says little of the others."""
        self.now = True
        """Whether to watch for the next answer."""
        self._most_s = most_s
        self._sum_s = 0.0
        self._count = 0
        self._mean_s: dict[bool, float] = {}
        self._stretches = 0

    def note(self, took_s: float) -> None:
        """An answer has taken this long, with what `now` said."""
        self._sum_s += min(took_s, self._most_s)
        self._count += 1
        if self._count == STRETCH:
            self._decide(self._sum_s / STRETCH)

    def _decide(self, mean_s: float) -> None:
        self._mean_s[self.now] = mean_s
        self._sum_s, self._count = 0.0, 0
        self._stretches += 1
        if len(self._mean_s) < 2:
            self.now = not self.now
            return
        better = self._mean_s[True] < self._mean_s[False] * (1 - GAIN)
        self.now = better if self._stretches % TRY_EVERY else not better
