"""The wires between nodes: connections of whole frames, in order within a connection, nothing promised across them.

Faults: a connection breaks and both ends hear of it; or it goes silent and nobody does until heartbeats fail; frames
of a broken connection arrive late, with the number of their old link; a data frame that was delivered before is
delivered again on the next connection; everything becomes slow; the sender's window closes; one wire of several is
down.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from replicator.daemon.link import wire
from replicator.daemon.link.connection import Lost
from tests.testing.sim.clock import Clock

WINDOW_BYTES = 192 << 10


class End(Protocol):
    """What a replicator offers to the wire."""

    place: str  # the same for this end of a wire in every life of its process: "node<peer"

    def linked(self, conn: SimConnection) -> None:
        """A connection stands."""

    def frame(self, conn: SimConnection, data: bytes) -> None:
        """A whole frame arrived."""

    def unlinked(self, conn: SimConnection, reason: str) -> None:
        """The connection broke."""


class SimConnection:
    """One end of a connection; looks like replicator.daemon.link.connection.Connection to the flow."""

    def __init__(self, network: Network, owner: End, number: int) -> None:
        self.number = number
        self.owner = owner
        self.peer: SimConnection | None = None
        self.open = True
        self.silent = False  # what is sent disappears
        self._network = network
        self.bundle = "simulated"  # the name of every link
        self.more: list[SimConnection] = []  # further connections of the link, at its first one
        self.bytes_in = 0
        self.in_flight_bytes = 0
        self.last_arrival = 0.0
        self.delivered: list[bytes] = []

    @property
    def unsent(self) -> bool:
        """Whether the window is closed."""
        return self.in_flight_bytes > WINDOW_BYTES

    def be_patient(self) -> None:
        """There is no kernel that could lose patience."""

    def fileno(self) -> int:
        """There is nothing to poll."""
        return -1

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one frame. Raises Lost."""
        if not self.open:
            raise Lost("the connection is closed")
        self._network.carry(self, bytes(data))

    def close(self) -> None:
        """End it; the peer hears of it after what was sent before."""
        if self.open:
            self._network.closed(self)

    def drop(self) -> None:
        """End it without a word: a further connection ends after the first one, of which the peer hears."""
        for end in (self, self.peer):
            if end is not None:
                end.open, end.silent = False, True


class Network:
    """Makes connections and carries frames between two ends."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self.down = False
        self.cut: set[frozenset[str]] = set()
        """Wires that are down, by the names of their nodes."""
        self.delay_s = 0.002
        self.replay = 0.0  # probability that a delivered data frame comes again on a later connection
        self.connections = 1  # of each link
        self.late = 0.0  # probability that a frame in flight when its connection breaks still arrives
        self._number = 0
        self._pairs: list[tuple[SimConnection, SimConnection]] = []
        self._again: deque[tuple[str, int, bytes]] = deque(maxlen=8)  # (place, connection, frame)

    def dial(self, caller: End, find_other: Callable[[], End | None], failed: Callable[[str], None]) -> None:
        """Try to connect `caller` to whoever listens there; both hear `linked`, or the caller hears why not."""

        def arrive() -> None:
            other = find_other()
            down = self.no_way(caller)
            if down or other is None:
                failed("no route" if down else "connection refused")
                return
            self._number += 1
            self._pairs = [pair for pair in self._pairs if pair[0].open or pair[1].open]
            one, two = self._join(caller, other)
            for _ in range(self.connections - 1):
                mine, theirs = self._join(caller, other)
                one.more.append(mine)
                two.more.append(theirs)
            other.linked(two)
            if one.open:
                caller.linked(one)

        self._clock.after(self._latency() * 2, arrive)

    def _join(self, caller: End, other: End) -> tuple[SimConnection, SimConnection]:
        one, two = SimConnection(self, caller, self._number), SimConnection(self, other, self._number)
        one.peer, two.peer = two, one
        self._pairs.append((one, two))
        return one, two

    def cut_off(self, one: str, other: str) -> bool:
        """Whether nothing goes between two nodes now."""
        return self.down or frozenset((one, other)) in self.cut

    def no_way(self, end: End) -> bool:
        """Whether nothing goes over the wire of this end now."""
        return self.cut_off(*end.place.split("<"))

    def _latency(self) -> float:
        return self.delay_s * (0.5 + self._rng.random())

    def carry(self, sender: SimConnection, data: bytes) -> None:
        """Deliver a frame to the other end after a while, in order."""
        receiver = sender.peer
        assert receiver is not None
        if sender.silent or self.no_way(sender.owner):
            sender.silent = True
            return
        if data[4] == wire.DATA and self._again:
            self._replay(sender, receiver)
        self._post(sender, receiver, data)

    def _replay(self, sender: SimConnection, receiver: SimConnection) -> None:
        """Send again what a former connection delivered to the same place."""
        place, number = receiver.owner.place, sender.number
        due = [kept for kept in self._again if kept[0] == place and kept[1] < number]
        if due and self._rng.random() < 0.5:
            for kept in due:
                self._post(sender, receiver, kept[2])
                self._again.remove(kept)

    def _post(self, sender: SimConnection, receiver: SimConnection, data: bytes) -> None:
        at = max(self._clock.now + self._latency(), sender.last_arrival + 1e-6)
        sender.last_arrival = at
        sender.in_flight_bytes += len(data)
        self._clock.after(at - self._clock.now, self._deliver, sender, receiver, data)

    def _deliver(self, sender: SimConnection, receiver: SimConnection, data: bytes) -> None:
        sender.in_flight_bytes -= len(data)
        if not receiver.open and self._rng.random() >= self.late:
            return
        if data[4] == wire.DATA and self.replay and self._rng.random() < self.replay:
            self._again.append((receiver.owner.place, receiver.number, data))
        receiver.bytes_in += len(data)
        receiver.owner.frame(receiver, data)

    def closed(self, conn: SimConnection) -> None:
        """One end closed: the other hears after what was in flight."""
        conn.open = False
        peer = conn.peer
        assert peer is not None
        if not peer.open or conn.silent or self.no_way(conn.owner):
            return
        at = max(self._latency(), conn.last_arrival - self._clock.now + 1e-6)
        self._clock.after(at, self._hear, peer, "closed by the peer")

    def _hear(self, conn: SimConnection, reason: str) -> None:
        if conn.open:
            conn.open = False
            conn.owner.unlinked(conn, reason)

    def break_all(self, reason: str, only: frozenset[str] | None = None) -> None:
        """Reset every connection, or that between two nodes only; both ends hear soon."""
        for pair in self._pairs:
            for conn in pair:
                if conn.open and only in (None, frozenset(conn.owner.place.split("<"))):
                    conn.silent = True
                    self._clock.after(self._latency(), self._hear, conn, reason)

    def silence_all(self, only: frozenset[str] | None = None) -> None:
        """Every connection, or that between two nodes only, goes quiet without anybody being told."""
        for pair in self._pairs:
            for conn in pair:
                if only in (None, frozenset(conn.owner.place.split("<"))):
                    conn.silent = True

    def drop_owner(self, owner: End) -> None:
        """The process at one end died: its kernel resets the connections."""
        for pair in self._pairs:
            for conn in pair:
                if conn.owner is owner and conn.open:
                    self.closed(conn)
