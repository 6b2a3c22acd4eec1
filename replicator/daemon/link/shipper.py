"""Journal -> frames: the sending half of a pair.

The idea: a cursor (offset, seq) in the journal. Whenever one of the link's connections has nothing unsent, the next
stretch of the journal is read into that connection's buffer behind room for a frame header, judged by parse_run, and
sent as one frame. TCP is the window, and in a pulled transfer the receiver's credit as well: nothing is queued here, so
memory does not depend on the lag. How long a frame may be: core/batching.py. A limit holds back frames, never what else
the link carries.

Every stretch is checked before it leaves: that its records follow one another, and for the first PROVE_BYTES of a
connection their CRCs too. The peer checks all of it before it keeps a byte. So rot ends the connection at most,
and the next one, which begins with that frame, finds that our medium is to blame and not the peer. A stretch that was
overwritten while we read it, because the target gave it up, is told apart by tail and incarnation.

Hot path: `pump`, `acked`.
"""

from __future__ import annotations

from collections import deque

from replicator.core.batching import Flying, RoundTrip, frame_bytes
from replicator.core.credits import Credit
from replicator.core.errors import IntegrityError
from replicator.core.events import DataStopped
from replicator.core.ratelimit import TokenBucket
from replicator.core.records import HEADER_BYTES, MAX_PAYLOAD_BYTES, BadRecord, unpack_header
from replicator.core.runs import Run, parse_run
from replicator.core.transfer import PULL, Transfer
from replicator.daemon.link import wire
from replicator.daemon.link.bundle import Bundle, Lane
from replicator.daemon.link.connection import Lost
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.packing import Gain, Packer
from replicator.journal.beacons import look
from replicator.journal.page import (
    BEACON_GEN,
    EDGE_APPLIED_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    EDGE_TREE_DURABLE,
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    TAIL_SEQ,
    edge_slot,
)

RUN_BYTES = (1 << 20) + HEADER_BYTES  # what a copy of 1 MiB takes
_ROOM = wire.HEAD_BYTES
_MARKS = 4096
_SCAN_BYTES = 1 << 20
PROVE_BYTES = 16 << 20


class Stopped(Exception):
    """Shipping or receiving cannot go on; `cause` as in events.DataStopped."""

    off = seq = 0

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause

    def event(self, link: int) -> DataStopped:
        """What the session is told."""
        return DataStopped(link, self.cause, str(self), self.off, self.seq)


class Damaged(Stopped):
    """A record of our journal cannot be shipped: the medium does not give it back as it was written."""

    def __init__(self, off: int, seq: int, why: object) -> None:
        """off, seq: a place in the journal, and the record there; the damage is there or behind."""
        if isinstance(why, OSError):
            message = f"the journal cannot be read at record {seq}: {why.strerror or why}"
        else:
            message = f"the journal is damaged at record {seq}: {why}"
        super().__init__("damaged", message)
        self.off, self.seq = off, seq


class Shipper:
    """Sends one group's records over one link, from a given seq on."""

    def __init__(self, files: GroupFiles, bundle: Bundle, from_seq: int, settings: Transfer, gain: Gain) -> None:
        """gain: counted into. Raises Stopped("journal") when `from_seq` is not in the journal."""
        self._files = files
        self._bundle = bundle
        self._u64 = files.u64
        self._gain = gain
        self.bucket = TokenBucket()
        """The limit in force; its owner sets the rate."""
        self.credit = Credit(settings.window) if settings.transfer == PULL else None
        self.round_trip = RoundTrip()
        self.flying = Flying()
        self.tune(settings)
        self.seq = from_seq
        """The next seq to send."""
        self.off = locate(files, from_seq)
        """Its offset in the journal."""
        self.epoch = 0
        self._to_prove = PROVE_BYTES
        self._starved_until = 0  # credit that the next frame needs
        self._marks: deque[tuple[int, int]] = deque()  # (last seq, end offset) of frames not yet durable at the peer
        u64, edge = self._u64, files.slot
        self._received, self._durable = edge_slot(edge, EDGE_RECEIVED_SEQ), edge_slot(edge, EDGE_DURABLE_SEQ)
        self._applied, self._durable_off = edge_slot(edge, EDGE_APPLIED_SEQ), edge_slot(edge, EDGE_DURABLE_OFF)
        self._tree_durable = edge_slot(edge, EDGE_TREE_DURABLE)
        u64[self._received] = from_seq - 1
        u64[self._durable] = min(u64[self._durable], from_seq - 1)
        u64[self._applied] = min(u64[self._applied], from_seq - 1)
        u64[self._durable_off] = min(u64[self._durable_off], self.off)
        u64[self._tree_durable] = min(u64[self._tree_durable], from_seq - 1)
        self._marks.append((from_seq - 1, self.off))

    def tune(self, settings: Transfer) -> None:
        """Take up changed settings, as far as they need no new link."""
        self._packer = Packer(settings.compress, self._gain)

    @property
    def behind(self) -> bool:
        """Whether the journal holds records that were not sent."""
        return self._u64[HEAD_OFF] > self.off

    @property
    def starved(self) -> bool:
        """Whether the next frame waits for credit of the peer."""
        return self.credit is not None and self.credit.granted < self._starved_until

    def pump(self, now: float) -> int:
        """Send the next frame if a connection is free, a record waits, and limit and credit allow it.

        Returns the records sent. Raises Stopped, Lost.
        """
        u64 = self._u64
        backlog = u64[HEAD_OFF] - self.off
        if backlog <= 0 or self.starved or self.bucket.wait_s(now):
            return 0
        lane = self._bundle.free()
        if lane is None:
            return 0
        credit, lanes = self.credit, len(self._bundle.lanes)
        want = frame_bytes(RUN_BYTES, backlog, lanes, self.bucket.rate, credit.window_bytes if credit else 0)
        if credit is not None and not self._has_credit(min(want, _ROOM + HEADER_BYTES)):
            return 0
        if credit is not None:
            want = min(want, credit.room - _ROOM)
        run = self._read(lane, want)
        if run.records == 0:
            total = self._next_total(lane)
            if credit is not None and not self._has_credit(_ROOM + total):
                return 0
            run = self._read(lane, total)
            if run.records == 0:
                raise Damaged(self.off, self.seq, "its length is wrong")
        self._send(lane, run, now)
        return run.records

    def _has_credit(self, size: int) -> bool:
        """Whether a frame of `size` bytes may go out; else remember what it waits for, and ask for it."""
        credit = self.credit
        assert credit is not None
        if credit.room >= size:
            return True
        self._starved_until = credit.sent + size
        if credit.need(size):
            self._bundle.send(wire.need(credit.sent, credit.sent + size))
        return False

    def _send(self, lane: Lane, run: Run, now: float) -> None:
        end = run.end
        first_seq, self.seq, self.off, self.epoch = self.seq, run.last_seq + 1, self.off + end, run.last_epoch
        self._to_prove -= end
        self.round_trip.sent(run.last_seq, self._u64[self._received], first_seq, now)
        self.flying.sent(run.last_seq)
        marks = self._marks
        marks.append((run.last_seq, self.off))
        if len(marks) > _MARKS:
            self._marks = deque(list(marks)[1::2])  # coarser marks free journal space later, never too early
        view = memoryview(lane.buf)[: _ROOM + end]
        packed = self._packer.pack(view[_ROOM:])
        frame: bytes | memoryview = view
        if packed is None:
            wire.HEAD.pack_into(lane.buf, 0, end, wire.DATA, 0, 0, first_seq)
        else:
            frame = wire.HEAD.pack(len(packed), wire.DATA, wire.FLAG_ZSTD, 0, first_seq) + packed
        self.bucket.spend(len(frame))
        if self.credit is not None:
            self.credit.spend(len(frame))
        try:
            lane.conn.send(frame)
        except Lost as exc:
            raise lane.lost(exc) from exc

    def _read(self, lane: Lane, want: int) -> Run:
        """Read and judge `want` bytes from the cursor, into the lane's buffer behind room for a frame header."""
        if len(lane.buf) < _ROOM + want:
            lane.buf = bytearray(_ROOM + max(want, RUN_BYTES))
        view = memoryview(lane.buf)[_ROOM : _ROOM + want]
        files = self._files
        try:
            files.journal.read_into(view, self.off)
            run = parse_run(view, self.seq, self.epoch, prove=self._to_prove > 0)
        except (OSError, BadRecord) as exc:
            self._check_still_there()
            raise Damaged(self.off, self.seq, exc) from exc
        self._check_still_there()
        if run.begin:
            raise Stopped("journal", f"record {self.seq} is not where it was in the journal")
        return run

    def _next_total(self, lane: Lane) -> int:
        """Return the length of the next record, whose beginning was just read into the lane's buffer."""
        try:
            total = unpack_header(lane.buf, _ROOM).total_bytes
        except BadRecord as exc:
            raise Damaged(self.off, self.seq, exc) from exc
        if self.off + total > self._u64[HEAD_OFF] or total > MAX_PAYLOAD_BYTES + HEADER_BYTES:
            raise Damaged(self.off, self.seq, "it reaches beyond the journal's end")
        return total

    def shrink(self) -> None:
        """Give back the buffers of long records once they were sent."""
        for lane in self._bundle.lanes:
            if len(lane.buf) > _ROOM + RUN_BYTES and not lane.conn.unsent:
                lane.buf = bytearray()

    def _check_still_there(self) -> None:
        if not self._files.current or self._u64[TAIL_OFF] > self.off:
            raise Stopped("journal", "the journal was started over, or no longer reaches back far enough")

    def acked(self, received: int, durable: int, applied: int, now: float) -> None:
        """Take in what the peer says it has; store it for the target's waiting writers and the journal's trimming.

        The caller has checked that the numbers are possible and rings the target.
        """
        u64, marks = self._u64, self._marks
        self.round_trip.acked(received, now)
        self.flying.acked(received)
        u64[self._received] = received
        u64[self._applied] = applied
        if durable > u64[self._durable]:
            end = 0
            while marks and marks[0][0] <= durable:
                end = marks.popleft()[1]
            if end:
                u64[self._durable_off] = end
            u64[self._durable] = durable

    def missing(self) -> tuple[int, int]:
        """Records, and bytes of journal, that the peer has not said it has: counted from one place, so they belong
        together. After a very long backlog, at most so many bytes."""
        u64, received = self._u64, self._u64[self._received]
        off = next((end for seq, end in reversed(self._marks) if seq <= received), u64[self._durable_off])
        writes = max(0, u64[HEAD_SEQ] - received)
        return writes, max(0, u64[HEAD_OFF] - off) if writes else 0

    def heard_of_tree(self, durable: int) -> None:
        """The peer and all nodes below it hold the records durably up to this seq, as the peer says."""
        u64 = self._u64
        u64[self._tree_durable] = min(durable, u64[self._durable])

    def beat(self) -> bytes:
        """Return the BEAT frame that states how far behind the peer is, seen from here.

        A beacon goes along also before all the records it speaks of were sent: so the peer knows how old what it hears
        is. It says nothing of its copy until it has them.
        """
        u64 = self._u64
        beacon = look(u64, BEACON_GEN)
        return wire.beat(u64[HEAD_SEQ], max(0, u64[HEAD_OFF] - self.off), *beacon, self.seq - 1)


def locate(files: GroupFiles, seq: int) -> int:
    """Return the offset of record `seq` in the journal (the head's for the seq that comes next).

    Starts at the peer's durable offset where that lies before it, else at the tail. Raises Stopped("journal") when the
    record is not there, Damaged when one before it is.
    """
    u64 = files.u64
    head_off, head_seq = u64[HEAD_OFF], u64[HEAD_SEQ]
    if seq == head_seq + 1 and files.current:
        return head_off
    tail_off, tail_seq = u64[TAIL_OFF], u64[TAIL_SEQ]
    try:
        off, at = files.journal.tail()
    except (IntegrityError, OSError) as exc:
        if not files.current or u64[TAIL_OFF] != tail_off:
            raise Stopped("journal", "the journal was started over, or trimmed meanwhile") from exc
        raise Damaged(tail_off, tail_seq, exc) from exc
    if not at <= seq <= head_seq:
        raise Stopped("journal", f"record {seq} is not in the journal, which holds {at} to {head_seq}")
    try:
        hint = u64[edge_slot(files.slot, EDGE_DURABLE_OFF)]
        if off < hint < head_off:
            found = files.journal.header_at(hint).seq
            if at <= found <= seq:
                off, at = hint, found
    except (BadRecord, OSError):
        pass  # the hint is of another journal, or damaged: start at the tail
    return _walk(files, off, at, seq, head_off)


def _walk(files: GroupFiles, off: int, at: int, seq: int, head_off: int) -> int:
    buf = bytearray(_SCAN_BYTES)
    view = memoryview(buf)
    base, have = off, 0
    while at < seq:
        try:
            if off < base or off + HEADER_BYTES > base + have:
                base, have = off, min(_SCAN_BYTES, head_off - off)
                files.journal.read_into(view[:have], base)
            header = unpack_header(buf, off - base)
            if header.seq != at or have < HEADER_BYTES:
                raise BadRecord(f"record {header.seq} where {at} belongs")
        except (BadRecord, OSError) as exc:
            if not files.current or files.u64[TAIL_OFF] > off:
                raise Stopped("journal", "the journal was started over, or trimmed meanwhile") from exc
            raise Damaged(off, at, exc) from exc
        off += header.total_bytes
        at += 1
    return off
