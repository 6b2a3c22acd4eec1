"""The flow of records on one connection: what StartShipping, StartReceiving and their ends mean in files and frames.

At most one direction flows at a time. A flow ends by itself with Stopped; the loop tells the session.
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.core.errors import IntegrityError, ProtocolError
from replicator.daemon.link import wire
from replicator.daemon.link.connection import Connection
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.receiver import ACK_LAZY_S, RING_LAZY_S, Receiver
from replicator.daemon.link.shipper import Shipper, Stopped
from replicator.journal.page import (
    DROPS,
    EDGE_ASLEEP,
    EDGE_LINK,
    EDGE_WANTS,
    HEAD_OFF,
    HEAD_SEQ,
    LINK_DOWN,
    LINK_STREAMING,
    SYNC_ON,
    edge_slot,
)

BEAT_S = 1.0
LOOK_S = 0.2
"""A restarted target is noticed within this time."""
GATHER_S = 0.002
GATHER_BYTES = 256 << 10
"""While no write waits for the peer, records gather for GATHER_S or until there are GATHER_BYTES of them: waking two
processes on each node for a record costs more than all that is done with it. The first after a pause goes at once."""
FRAMES_A_ROUND = 32
"""Frames shipped or taken before the loop looks at everything else again."""


class Flow:
    """The present direction of records, or none."""

    def __init__(self, open_files: Callable[[], GroupFiles]) -> None:
        self._open_files = open_files
        self.files: GroupFiles | None = None
        self.shipper: Shipper | None = None
        self.receiver: Receiver | None = None
        self._conn: Connection | None = None
        self._held: tuple[int, memoryview] | None = None  # a run for which the journal has no room yet
        self._next_lazy = 0.0
        self._next_ring = 0.0
        self._next_beat = 0.0
        self._gather_until = 0.0
        self._gathers = False
        self.peer_beat: tuple[int, int, int] | None = None
        self.records = 0
        self._drops = 0

    # -- begin and end --------------------------------------------------------------------------------------------

    def ship(self, conn: Connection, from_seq: int, compress_level: int) -> None:
        """Begin to ship. Raises Stopped."""
        files = self._begin(conn)
        self.shipper = Shipper(files, conn, from_seq, compress_level)
        self._next_beat = 0.0

    def receive(self, conn: Connection, expect_seq: int, min_epoch: int) -> None:
        """Begin to receive. Raises Stopped."""
        files = self._begin(conn)
        self._say(EDGE_ASLEEP, 0)  # the follower's progress is looked at lazily, it need not ring
        self.receiver = Receiver(files, expect_seq, min_epoch)
        self._next_lazy = 0.0

    def _begin(self, conn: Connection) -> GroupFiles:
        self.end()
        try:
            self.files = files = self._open_files()
        except (OSError, IntegrityError) as exc:
            raise Stopped("peer", f"the group's files cannot be opened: {exc}") from exc
        self._conn = conn
        self._say(EDGE_LINK, LINK_STREAMING)
        self._drops = files.u64[DROPS + files.slot]
        return files

    def _say(self, what: int, value: int) -> None:
        """Store a counter of our edge in the page, while files are open."""
        if self.files is not None:
            self.files.u64[edge_slot(self.files.slot, what)] = value

    @property
    def waited_for(self) -> bool:
        """Whether host writes wait for our peer."""
        return self.files is not None and bool(self.files.u64[SYNC_ON] >> self.files.slot & 1)

    def end(self) -> None:
        """Stop whatever flows. What was appended stays."""
        self.shipper = self.receiver = self._held = self._conn = None
        if self.files is not None:
            self._say(EDGE_LINK, LINK_DOWN)
            self._say(EDGE_ASLEEP, 0)
            self._say(EDGE_WANTS, 0)
            self.files.close()
            self.files = None

    # -- work -----------------------------------------------------------------------------------------------------

    def work(self, now: float) -> bool:
        """Ship what waits, or acknowledge what came. Raises Stopped, Lost.

        Returns whether the peer was just told that everything received is applied here.
        """
        files = self.files
        if files is None:
            return False
        if not files.current:
            raise Stopped("journal", "the target was restarted, or the group's journal was started over")
        shipper, receiver, conn = self.shipper, self.receiver, self._conn
        assert conn is not None
        if shipper is not None:
            u64 = files.u64
            if u64[DROPS + files.slot] != self._drops:
                raise Stopped("journal", "the journal is no longer kept for the peer")
            self._gathers = now < self._gather_until and u64[HEAD_OFF] - shipper.off < GATHER_BYTES and not self.waited_for
            if self._gathers:
                return False
            before = shipper.seq
            for _ in range(FRAMES_A_ROUND):
                shipped = shipper.pump()
                if not shipped:
                    break
                self.records += shipped
            else:
                return False
            if shipper.seq != before and not self.waited_for:
                self._gathers, self._gather_until = True, now + GATHER_S
            shipper.shrink()
            if now >= self._next_beat and not conn.unsent:
                self._next_beat = now + BEAT_S
                conn.send(shipper.beat())
        elif receiver is not None:
            lazy = now >= self._next_lazy
            if lazy:
                self._next_lazy = now + ACK_LAZY_S
            caught_up = receiver.acknowledge(conn.send, lazy)
            if now >= self._next_ring:
                self._next_ring = now + RING_LAZY_S
                receiver.ring()
            return caught_up
        return False

    def take_frame(self, kind: int, flags: int, first_seq: int, body: memoryview) -> tuple[int, int, int] | None:
        """Take a DATA, ACK or BEAT frame; returns the positions of an ACK that counts.

        Raises ProtocolError, Stopped.
        """
        if kind == wire.DATA:
            if self.receiver is not None:
                if first_seq > self.receiver.expect:
                    raise ProtocolError(f"the peer sent record {first_seq}, wanted {self.receiver.expect}")
                if self.receiver.room_for(body, flags):
                    self.records += self.receiver.take(body, flags)
                else:
                    self._held = (flags, body)
                    self._say(EDGE_WANTS, len(body))
            return None
        triple: tuple[int, int, int] = wire.TRIPLE.unpack(body)
        if kind == wire.BEAT:
            self.peer_beat = triple
            return None
        return self._acked(triple)

    def heard_of_tree(self, durable: object) -> None:
        """Take in up to where the peer's whole tree holds the journal, from a heartbeat."""
        if self.shipper is not None and isinstance(durable, int) and durable >= 0:
            self.shipper.heard_of_tree(durable)

    def _acked(self, triple: tuple[int, int, int]) -> tuple[int, int, int] | None:
        shipper, files = self.shipper, self.files
        if shipper is None or files is None:
            return None
        received, durable, applied = triple
        if received > files.u64[HEAD_SEQ] or durable > received or applied > received:
            raise ProtocolError(f"the peer acknowledged {triple}, the journal ends at {files.u64[HEAD_SEQ]}")
        if received >= shipper.seq:  # it holds some of what it is being sent again
            received = shipper.seq - 1
            durable, applied = min(durable, received), min(applied, received)
        shipper.acked(received, durable, applied)
        files.wake_target()
        return received, durable, applied

    @property
    def blocked(self) -> bool:
        """Whether a run waits for room in the journal; no frame may be read meanwhile."""
        return self._held is not None

    def unblock(self) -> bool:
        """Take the held run if there is room now. Returns whether reading may go on. Raises as take_frame."""
        if self._held is None:
            return True
        assert self.receiver is not None and self.files is not None
        flags, body = self._held
        if not self.receiver.room_for(body, flags):
            self.files.wake_target()
            return False
        self._held = None
        self._say(EDGE_WANTS, 0)
        self.records += self.receiver.take(body, flags)
        return True

    # -- sleep ----------------------------------------------------------------------------------------------------

    def may_sleep(self, conn: Connection) -> bool:
        """Say to the target that we are going to sleep; False when there is work after all."""
        files, shipper = self.files, self.shipper
        if files is None or shipper is None:
            return True
        if conn.unsent:
            return True  # the socket wakes us
        if self._gathers:
            return True  # the clock wakes us
        self._say(EDGE_ASLEEP, 1)
        files.fence()
        if shipper.behind:
            self._say(EDGE_ASLEEP, 0)
            return False
        return True

    def awake(self) -> None:
        """Take that back."""
        if self.shipper is not None:
            self._say(EDGE_ASLEEP, 0)

    def next_work(self, now: float) -> float:
        """Seconds until `work` has something to do without being woken."""
        if self.blocked:
            return 0.005
        if self.shipper is not None:
            due = self._gather_until if self._gathers else self._next_beat
            return min(LOOK_S, max(0.0, due - now))
        if self.receiver is not None and self.receiver.lazy_pending:
            due = min(self._next_lazy, self._next_ring) if self.receiver.ring_pending else self._next_lazy
            return max(0.0, due - now)
        return LOOK_S if self.files is not None else 3600.0
