"""The connections of one link: all of them carry records, the first one everything else too.

They belong together by a name the dialling side makes up for each link. The first connection makes the link; more are
added while it lives, and the end of any of them ends the link: the next one begins with what the peer has not
acknowledged, so nothing that was under way has to be sorted out (it costs a handshake, and lines that fail singly are
rare). Order among connections there is none; `reassembly.py` makes it.

A lane is one connection with what the link's thread knows of it. Used by that thread only.
"""

from __future__ import annotations

import select
import threading

from replicator.daemon.link.connection import Connection, Lost

OPEN_EVERY_S = 5.0
"""A connection that could not be added is tried again after this."""
Frame = tuple[int, int, memoryview]
"""Flags, first seq and body of a DATA frame."""


class Lane:
    """One connection of a link."""

    __slots__ = ("buf", "conn", "fd", "hung_up", "number", "readable", "waiting")

    def __init__(self, number: int, conn: Connection) -> None:
        self.number = number
        self.conn = conn
        self.fd = conn.fileno()
        self.readable = True
        """Whether it may have bytes for us."""
        self.hung_up = False
        self.waiting: Frame | None = None
        """A run that cannot be taken yet; it lies in the connection's buffer, so nothing is read meanwhile."""
        self.buf = bytearray()
        """What is being sent over it."""

    def lost(self, exc: Lost) -> Lost:
        """The error for the end of this connection, which says which one it is."""
        return Lost(str(exc) if self.number == 0 else f"connection {self.number + 1} of the link: {exc}")


class Bundle:
    """The lanes of one link."""

    def __init__(self, first: Connection, name: str = "") -> None:
        """name: by which further connections know where they belong; "": there are none."""
        self.first = first
        self.name = name
        self.lanes = [Lane(0, first)]
        self._patient = False
        self._last = 0
        self._next_open = 0.0
        self._opening = 0

    def add(self, conn: Connection) -> bool:
        """Add a connection; returns False, with nothing done, when it belongs to another link."""
        if not self.name or conn.bundle != self.name:
            return False
        self.lanes.append(Lane(len(self.lanes), conn))
        if self._patient:
            conn.be_patient()
        self._opening = max(0, self._opening - 1)
        return True

    def be_patient(self) -> None:
        """Records go out: a peer that takes none for long is no reason to end a connection; see Connection."""
        self._patient = True
        for lane in self.lanes:
            lane.conn.be_patient()

    def lane(self, fd: int) -> Lane | None:
        """The lane with this descriptor, None when it is none of ours."""
        for lane in self.lanes:
            if lane.fd == fd:
                return lane
        return None

    def to_open(self, now: float, wanted: int) -> int:
        """Return how many connections to try to add now, so that there are `wanted`; those asked for lately count."""
        if now >= self._next_open:
            self._opening = 0
        missing = wanted - len(self.lanes) - self._opening
        if missing <= 0 or not self.name:
            return 0
        self._opening += missing
        self._next_open = now + OPEN_EVERY_S
        return missing

    # -- out ------------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send a frame that is no DATA, after those sent before. Raises Lost."""
        self.first.send(data)

    def free(self) -> Lane | None:
        """Return a lane with nothing unsent, the one after that used last if possible; None when all are busy."""
        lanes, last = self.lanes, self._last
        if len(lanes) == 1:
            return None if self.first.unsent else lanes[0]
        for step in range(1, len(lanes) + 1):
            lane = lanes[(last + step) % len(lanes)]
            if not lane.conn.unsent:
                self._last = lane.number
                return lane
        return None

    @property
    def busy(self) -> bool:
        """Whether every lane has something unsent, so that its socket wakes us."""
        for lane in self.lanes:  # noqa: SIM110  # no generator, as in `waiting`
            if not lane.conn.unsent:
                return False
        return True

    def flush(self) -> None:
        """Send what the sockets take. Raises Lost."""
        for lane in self.lanes:
            if lane.conn.wants_write:
                try:
                    lane.conn.flush()
                except Lost as exc:
                    raise lane.lost(exc) from exc

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a run that cannot be taken yet keeps one of the lanes from being read."""
        for lane in self.lanes:  # noqa: SIM110  # no generators here and below: this runs several times for each record
            if lane.waiting is not None:
                return True
        return False

    @property
    def bytes_in(self) -> int:
        """Bytes that came over all connections."""
        return sum(lane.conn.bytes_in for lane in self.lanes)

    @property
    def bytes_out(self) -> int:
        """Bytes that went over all connections."""
        return sum(lane.conn.bytes_out for lane in self.lanes)

    def wanted(self, flows: bool) -> tuple[tuple[int, int], ...]:
        """What to poll for: (descriptor, events). Records on further lanes are left there until they `flow`."""
        found = []
        for lane in self.lanes:
            conn = lane.conn
            events = select.POLLIN if lane.waiting is None and (flows or not lane.number) else 0
            found.append((lane.fd, events | select.POLLOUT if conn.wants_write else events))
        return tuple(found)

    def close(self, *, gently: bool) -> None:
        """End all connections. `gently`: the first one delivers what was sent, and the others end after it."""
        others = [lane.conn for lane in self.lanes[1:]]
        if gently and others:
            threading.Thread(target=_close_in_turn, args=(self.first, others), name="link-close", daemon=True).start()
            return
        self.first.close(gently=gently)
        for conn in others:
            conn.close(gently=False)


def _close_in_turn(first: Connection, others: list[Connection]) -> None:
    first.close_after_linger()
    for conn in others:
        conn.close(gently=False)
