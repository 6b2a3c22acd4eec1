"""Frames -> journal: the receiving half of a pair.

A frame's records are judged as a whole before a byte of them is kept. One that came before its turn, over another of
the link's connections, is held as it is (core/reassembly.py). What was appended is acknowledged once a poll round; what
is durable or applied here is told when it changes, but not at once: nobody waits for it, except that records which must
be durable (the group's policy, a barrier, a FUA write) are synced at once and told at once.

When the journal is full, or too much is held, the frame waits in its connection, unread frames wait in TCP, and the
primary feels it: backpressure. In a pulled transfer it has not even sent them (core/credits.py).
Hot path: `offer`, `take`.
"""

from __future__ import annotations

from collections.abc import Callable

import zstandard

from replicator.core.credits import Grants
from replicator.core.errors import ProtocolError
from replicator.core.reassembly import Reassembly
from replicator.core.records import BadRecord
from replicator.core.runs import parse_run
from replicator.core.transfer import PULL, Transfer
from replicator.daemon.link import wire
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.shipper import Stopped
from replicator.journal.beacons import publish
from replicator.journal.page import (
    APPLIED_SEQ,
    ARRIVED_GEN,
    ARRIVED_TIME,
    DURABLE_SEQ,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    EDGE_WANTS,
    EDGES,
    EPOCH,
    HEAD_SEQ,
    SYNC_ON,
    edge_slot,
)

ACK_LAZY_S = 0.01
"""Durable and applied positions that nobody waits for are acknowledged at most this often."""

RING_LAZY_S = 0.004
RING_BYTES = 1 << 20
"""The follower is woken at most so often, or for so much: applying each small write by itself would cost the primary's
writers the processor they wait for."""
HELD_BYTES = 16 << 20
"""At most so much is held of what came before its turn; in a pulled transfer its window, which is what can be."""
GAP_S = 5.0
"""A link is given up when a run is missing for so long and nothing else comes that could be it."""


class Receiver:
    """Appends one group's records as they come."""

    def __init__(self, files: GroupFiles, expect_seq: int, min_epoch: int) -> None:
        """Begin at `expect_seq`; records of an epoch below `min_epoch` are refused.

        Raises Stopped("journal") when the journal does not end just before `expect_seq`.
        """
        self._files = files
        self._u64 = files.u64
        self._journal = files.journal
        if files.u64[HEAD_SEQ] != expect_seq - 1:
            raise Stopped("journal", f"the journal ends at record {files.u64[HEAD_SEQ]}, wanted {expect_seq - 1}")
        self._journal.forget_beyond_head()  # what a killed replicator had written and not published
        self.expect = expect_seq
        self._epoch = max(min_epoch, files.u64[EPOCH])
        self.durable_acks = False
        """Sync the journal before each acknowledgement."""
        self._must_sync = False
        self._synced = 0
        self._beacon = 0, 0
        self._unrung_bytes = 0
        self._told = (0, 0, 0)
        self._unzstd = zstandard.ZstdDecompressor(max_window_size=128 << 20)
        self._early: Reassembly[tuple[int, bytes]] = Reassembly(HELD_BYTES)
        self.grants: Grants | None = None
        """What the sender may send, once it has said that it is to be pulled."""
        self._wanted = 0
        self.sent_seq = 0
        """The last record that the sender says it has sent."""
        self._gap: tuple[int, int] = (0, 0)
        self._gap_since = 0.0

    def tune(self, settings: Transfer) -> None:
        """Take up how the sender sends; for the life of the link."""
        if settings.transfer == PULL and self.grants is None:
            self.grants = Grants(settings.window, wire.MAX_DATA_BYTES + wire.HEAD_BYTES)

    @property
    def held_bytes(self) -> int:
        """Bytes held that came before their turn."""
        return self._early.held_bytes

    def count(self, body: memoryview) -> None:
        """Count a DATA frame when it is read. Raises ProtocolError when nobody has asked for it."""
        if self.grants is not None:
            self.grants.came(len(body) + wire.HEAD_BYTES)

    def offer(self, flags: int, first_seq: int, body: memoryview) -> int | None:
        """Take a frame, or hold it until its turn comes. Returns how many records were appended, held ones included.

        None: it cannot be taken now and is to be offered again; its connection is not read until then.
        Raises as `take` and `room_for`.
        """
        if first_seq > self.expect:
            if not self._early.fits(len(body)):
                return None
            self._early.hold(first_seq, len(body), (flags, bytes(body)))
            return 0
        if not self._finds_room(body, flags):
            return None
        taken = self.take(body, flags)
        self._done(len(body))
        return taken + self.settle()

    def settle(self) -> int:
        """Append held runs whose turn has come and for which the journal has room. Returns how many records."""
        taken = 0
        while (run := self._early.ready(self.expect)) is not None:
            flags, body = run
            view = memoryview(body)
            if not self._finds_room(view, flags):
                break
            taken += self.take(view, flags)
            self._early.release()
            self._done(len(body))
        return taken

    def _finds_room(self, body: memoryview, flags: int) -> bool:
        """As `room_for`, and lets the target know what waits."""
        wanted = 0 if self.room_for(body, flags) else len(body)
        if wanted != self._wanted:
            self._wanted = self._u64[edge_slot(self._files.slot, EDGE_WANTS)] = wanted
        return not wanted

    @property
    def waits_for_room(self) -> bool:
        """Whether a run whose turn it is waits because the journal is full."""
        return self._wanted > 0

    def _done(self, size: int) -> None:
        if self.grants is not None:
            self.grants.done(size + wire.HEAD_BYTES)

    @property
    def misses(self) -> bool:
        """Whether a record is missing that was sent: later ones are held, or the sender has said so."""
        return self.expect <= self.sent_seq or self._early.held_bytes > 0

    def gap_lasts(self, data_bytes: int, now: float) -> bool:
        """Whether what is missing has been for GAP_S, and no byte came that could be of it.

        data_bytes: that came over the link so far, other frames left out.
        """
        mark = (self.expect, data_bytes)
        if not self.misses or self.waits_for_room or mark != self._gap:
            self._gap, self._gap_since = mark, now
        return now - self._gap_since >= GAP_S

    def room_for(self, body: memoryview, flags: int) -> bool:
        """Whether the journal can take the frame now. Raises ProtocolError or Stopped when it never can."""
        size = len(body) if not flags else _plain_bytes(body)
        try:
            if self._journal.room_for(size):
                return True
        except OSError as exc:
            raise Stopped("medium", f"the journal's files have changed: {exc.strerror or exc}") from exc
        capacity = self._journal.capacity
        if size > capacity:
            raise Stopped("medium", f"a run of {size} bytes can never fit into this node's journal of {capacity} bytes")
        return False

    def take(self, body: memoryview, flags: int) -> int:
        """Judge and append a frame's records; the caller has asked `room_for`. Returns how many were new.

        Raises ProtocolError (nothing of the frame was kept), Stopped (our journal failed or was started over).
        """
        data: bytes | memoryview = body
        if flags & wire.FLAG_ZSTD:
            try:
                data = self._unzstd.decompress(body, max_output_size=_plain_bytes(body))
            except zstandard.ZstdError as exc:
                raise ProtocolError(f"the peer sent a run that does not decompress: {exc}") from exc
        try:
            run = parse_run(data, self.expect, self._epoch)
        except BadRecord as exc:
            raise ProtocolError(f"the peer sent a bad run: {exc}") from exc
        if run.end != len(data):
            raise ProtocolError("the peer sent a record cut short")
        if not run.records:
            return 0
        if not self._files.current:
            raise Stopped("journal", "the journal was started over")
        try:
            self._journal.append_run(memoryview(data)[run.begin : run.end], run.last_seq, run.last_epoch)
        except OSError as exc:
            raise Stopped("medium", f"the journal cannot be written: {exc}") from exc
        self.expect, self._epoch = run.last_seq + 1, run.last_epoch
        publish(self._u64, ARRIVED_GEN, run.last_seq, run.last_time_ns)
        if self._beacon[0]:
            beacon, self._beacon = self._beacon, (0, 0)
            self.note_beacon(*beacon)
        self._files.wake_edges()
        if run.wants_durable:
            self._must_sync = True
        self._unrung_bytes += run.end - run.begin
        if self._unrung_bytes >= RING_BYTES:
            self.ring()
        return run.records

    def note_beacon(self, seq: int, time_ns: int) -> None:
        """The peer says that every record up to `time_ns` has a seq up to `seq`: true here once they have come."""
        if seq >= self.expect:
            self._beacon = seq, time_ns  # it overtook them on another connection
        elif seq and time_ns > self._u64[ARRIVED_TIME] and self._files.current:
            publish(self._u64, ARRIVED_GEN, seq, time_ns)

    def ring(self) -> None:
        """Tell the follower that there is work."""
        if self._unrung_bytes:
            self._unrung_bytes = 0
            self._files.wake_target()

    def acknowledge(self, send: Callable[[bytes], None], lazy_due: bool) -> bool:
        """Send the ACK frames that are due. `lazy_due`: also when only durable or applied positions moved.

        Returns whether an ACK went out that says that everything received is applied.

        Durable: what the sent frames call durable. Raises Stopped when the journal cannot be synced (never retried),
        and what `send` raises.
        """
        received = self.expect - 1
        if (self._must_sync or self.durable_acks) and self._synced < received:
            if not self.durable_acks and received > self._told[0]:
                self._tell(send)  # writes that only need us to have them do not wait for the disk
            self._sync(received)
        elif received == self._told[0] and not lazy_due:
            return False
        return self._tell(send) and self._told[2] == received

    def _tell(self, send: Callable[[bytes], None]) -> bool:
        u64 = self._u64
        received = self.expect - 1
        durable = min(received, max(self._synced, u64[DURABLE_SEQ]))
        if u64[SYNC_ON]:
            received, durable = held_below(u64, received, durable)
        now = (received, durable, min(received, u64[APPLIED_SEQ]))
        if now == self._told:
            return False
        self._told = now
        send(wire.ack(*now))
        return True

    def _sync(self, received: int) -> None:
        try:
            self._files.sync_journal()
        except OSError as exc:
            raise Stopped("medium", f"the journal cannot be synced: {exc}") from exc
        if not self._files.current:
            raise Stopped("journal", "the group failed or was started over: this sync proves nothing")
        self._synced = received
        self._must_sync = False

    @property
    def lazy_pending(self) -> bool:
        """Whether durable or applied positions may still move towards what was received."""
        return min(self._told) < self.expect - 1

    @property
    def ring_pending(self) -> bool:
        """Whether the follower has not been told of everything."""
        return self._unrung_bytes > 0


def held_below(u64: memoryview, received: int, durable: int) -> tuple[int, int]:
    """Limit what this node calls received and durable to what the peers below it hold that writes wait for.

    The page says which those are; their sessions store there what they acknowledged. So whoever waits above for this
    node waits for all of them.
    """
    waits = u64[SYNC_ON]
    for edge in range(EDGES):
        if waits >> edge & 1:
            received = min(received, u64[edge_slot(edge, EDGE_RECEIVED_SEQ)])
            durable = min(durable, u64[edge_slot(edge, EDGE_DURABLE_SEQ)])
    return received, min(received, durable)


def _plain_bytes(body: memoryview) -> int:
    """Return the size a zstd frame states for its content. Raises ProtocolError when it states none, or too much."""
    try:
        size = zstandard.frame_content_size(body)
    except zstandard.ZstdError as exc:
        raise ProtocolError(f"the peer sent a run that is no zstd frame: {exc}") from exc
    if not 0 < size <= wire.MAX_DATA_BYTES:
        raise ProtocolError(f"the peer sent a run of {size} bytes, compressed")
    return int(size)
