"""Credits of a pulled transfer: the sender sends what the receiver has asked for, and not a byte more.

Both sides count the bytes of DATA frames since the link began to carry records, headers included. The receiver states
a total up to which the sender may go (GRANT, `wire.py`): what it has finished with and its window. So at most a window
is under way or held at the receiver. One large record may need more than half of the window: it is announced (NEED) and
granted without a pause. When it is larger than the window it is granted once nothing else is under way: then it is
the one that comes next and needs no room among held ones.

How soon used credit is given back follows the lag: at once when half of the window is used; otherwise after a
pause, which shrinks from PAUSE_IDLE_S to PAUSE_BUSY_S as what waits at the sender grows from nothing to a window. So an
idle pair exchanges a grant a second at most, and one that lags keeps its window open.
"""

from __future__ import annotations

from replicator.core.errors import ProtocolError

PAUSE_IDLE_S = 1.0
PAUSE_BUSY_S = 0.005
MIN_WINDOW_BYTES = 64 << 10
MAX_WINDOW_BYTES = 1 << 30


def pause_s(lag_bytes: int, window_bytes: int) -> float:
    """Seconds between grants that nothing hurries, when `lag_bytes` wait at the sender."""
    share = min(1.0, lag_bytes / window_bytes)
    return PAUSE_IDLE_S - share * (PAUSE_IDLE_S - PAUSE_BUSY_S)


class Credit:
    """The sender's side."""

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.granted = 0
        self.sent = 0
        self._asked = 0

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return self.granted - self.sent

    def grant(self, total: int) -> None:
        """Take in a GRANT. Raises ProtocolError when it takes back what was given."""
        if total < self.granted:
            raise ProtocolError(f"the peer took credit back: {total} bytes after {self.granted}")
        self.granted = total

    def spend(self, size: int) -> None:
        """Note that a frame of `size` bytes is sent; the caller has seen that `room` holds it."""
        self.sent += size

    def need(self, size: int) -> bool:
        """Whether to ask for credit for the next frame, of `size` bytes after the `sent` ones; once for each."""
        total = self.sent + size
        if size <= self.window_bytes // 2 or total <= max(self.granted, self._asked):
            return False
        self._asked = total
        return True


class Grants:
    """The receiver's side."""

    def __init__(self, window_bytes: int, most_frame_bytes: int) -> None:
        """most_frame_bytes: no frame is larger."""
        self.window_bytes = window_bytes
        self._most = most_frame_bytes
        self.granted = 0
        self._came = self._done = 0
        self._needed = (0, 0)  # the sender has sent so much, and needs credit up to so much
        self._next = 0.0

    @property
    def outstanding(self) -> int:
        """Bytes that came and are not finished with."""
        return self._came - self._done

    def came(self, size: int) -> None:
        """Count a frame that was read. Raises ProtocolError when the sender had no credit for it."""
        self._came += size
        if self._came > self.granted:
            raise ProtocolError(f"the peer sent {self._came} bytes, {self.granted} were granted")

    def done(self, size: int) -> None:
        """Count a frame that is in the journal, or held nothing new."""
        self._done += size

    def need(self, sent: int, total: int) -> None:
        """Take in a NEED. Raises ProtocolError when it cannot be right."""
        if not self._came <= sent <= self.granted or not 0 < total - sent <= self._most:
            raise ProtocolError(f"the peer has sent {sent} bytes and asks for credit up to {total}")
        self._needed = (sent, total)

    def due(self, now: float, lag_bytes: int) -> int | None:
        """Return the total to grant now, None when the present one will do. `lag_bytes`: what waits at the sender."""
        total = self._done + self.window_bytes
        sent, needed = self._needed
        if self._done == sent:
            total = max(total, needed)
        if total <= self.granted:
            return None
        asked = self.granted < needed <= total
        hurried = asked or 2 * (self.granted - self._came) <= self.window_bytes
        if not hurried and now < self._next:
            return None
        self._next = now + pause_s(lag_bytes, self.window_bytes)
        self.granted = total
        return total

    @property
    def pending(self) -> bool:
        """Whether used credit is yet to be given back, at `next_due`."""
        return self._done + self.window_bytes > self.granted

    @property
    def next_due(self) -> float:
        """Until when a grant that nothing hurries pauses."""
        return self._next
