"""A token bucket: how much may be sent when no more than so many bytes a second shall be.

Bytes may be sent while the balance is above zero; what was sent is taken off, so the balance may fall below by one
frame and is waited for afterwards. Over any time the rate is kept, but for BURST_S of it and that one frame.
Pure: `now` is seconds of a monotonic clock, so steps of the wall clock change nothing.
"""

from __future__ import annotations

BURST_S = 0.1
"""What was not sent is saved up for no longer than this."""


class TokenBucket:
    """One stream's allowance."""

    def __init__(self) -> None:
        """Start without a limit."""
        self.rate = 0
        """Bytes a second; 0: no limit."""
        self._balance = 0.0
        self._at = 0.0

    def set_rate(self, rate: int, now: float) -> None:
        """Keep to `rate` from now on. A debt stays, in bytes; so changing the rate often gains nothing."""
        if rate == self.rate:
            return
        if not self.rate:
            self._balance, self._at = min(self._balance, 0.0), now
        self._fill(now)
        self.rate = rate
        self._balance = min(self._balance, rate * BURST_S)

    def wait_s(self, now: float) -> float:
        """Seconds until something may be sent; 0.0: now."""
        if not self.rate:
            return 0.0
        self._fill(now)
        return 0.0 if self._balance > 0 else -self._balance / self.rate + 1e-4

    def spend(self, size: int) -> None:
        """Note that `size` bytes are sent."""
        if self.rate:
            self._balance -= size

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._balance = min(self.rate * BURST_S, self._balance + passed * self.rate)
