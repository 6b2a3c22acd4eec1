"""The flow of records on one link: what StartShipping, StartReceiving and their ends mean in files and frames.

At most one direction flows at a time, and one stretch a link: so no record of a former stretch is under way on one of
its connections. A flow ends by itself with Stopped; the loop tells the session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from replicator.core.batching import FLYING_S, GATHER_BYTES, Crowd, gather_s
from replicator.core.errors import IntegrityError, ProtocolError
from replicator.core.lastword import LastWord
from replicator.core.rpo import RemoteClock
from replicator.core.session import QUIET_SLACK_S
from replicator.core.transfer import Transfer
from replicator.daemon.link import wire
from replicator.daemon.link.bundle import Bundle, Frame, Lane
from replicator.daemon.link.connection import Lost
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.packing import Gain
from replicator.daemon.link.receiver import ACK_LAZY_S, GAP_S, RING_LAZY_S, Receiver
from replicator.daemon.link.shipper import Shipper, Stopped
from replicator.journal.page import (
    APPLIED_SEQ,
    ARRIVED_TIME,
    BEACON_PACE_MS,
    DROPS,
    EDGE_ASLEEP,
    EDGE_LINK,
    EDGE_WANTS,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    LINK_DOWN,
    LINK_STREAMING,
    STATE_GEN,
    SYNC_ON,
    edge_slot,
)

BEAT_S = 1.0
RATE_S = 1.0
"""The schedule is looked at this often."""
QUIET_BEAT_S = 2.0
QUIET_S = 5.0
"""When nothing of the group has changed for so long, everything is looked at less often."""
STIR_LOOK_S = 0.1
"""Whether something has changed is looked at this often while something does; each time once nothing does."""
QUIET_LOOK_S = 3.0
"""Longer than the heartbeats' pause, which end most sleeps."""
REST_S = 30.0
"""Both while another link carries the heartbeat."""
LOOK_S = 0.2
"""A restarted target is noticed within this time."""
ROOM_S = 0.005
"""Room in the journal is looked for this often while a run waits for it."""
FRAMES_A_ROUND = 32
"""Frames shipped or taken, on each connection, before the loop looks at everything else again."""

_TELLING = (HEAD_SEQ, APPLIED_SEQ, INCARNATION, STATE_GEN, SYNC_ON, BEACON_PACE_MS)


class Flow:
    """The present direction of records, or none."""

    def __init__(self, open_files: Callable[[], GroupFiles], crowd: Crowd | None = None) -> None:
        """crowd: shared by all flows of the process, to know how many are busy."""
        self._open_files = open_files
        self._crowd = crowd or Crowd()
        self.files: GroupFiles | None = None
        self.shipper: Shipper | None = None
        self.receiver: Receiver | None = None
        self.settings = Transfer()
        """Those of the present or last flow."""
        self._rules = self.settings.rules()
        self._bundle: Bundle | None = None
        self._next_lazy = 0.0
        self._next_ring = 0.0
        self._next_beat = 0.0
        self._next_rate = 0.0
        self._gather_until = 0.0
        self._gathers = False
        self._other_bytes = 0  # of frames that are no DATA
        self.rests = False
        """Another link carries the heartbeat."""
        self.peer_beat: tuple[int, int] | None = None
        self._remote = RemoteClock()
        self._word = LastWord()
        self._seen: list[int] = []
        self._quiet_from = 0.0
        self._next_stir_look = 0.0
        self._asleep_slot = 0
        self.records = 0
        self.gain = Gain()
        """Of everything shipped since this process began."""
        self._drops = 0
        self._room_at: float | None = None
        """When a run was found to wait for room; None while none does."""

    # -- begin and end --------------------------------------------------------------------------------------------

    def ship(self, bundle: Bundle, from_seq: int, settings: Transfer, incarnation: int = 0) -> None:
        """Begin to ship. incarnation: that of the journal which `from_seq` was meant for, 0 for the present one.

        Raises Stopped, also when the journal was started over since: its records are of another history.
        """
        files = self._begin(bundle, settings)
        bundle.be_patient()
        if incarnation not in (0, files.incarnation):
            raise Stopped("journal", "the journal was started over since the copy was offered")
        self.shipper = Shipper(files, bundle, from_seq, settings, self.gain)
        self._next_beat = self._next_rate = 0.0

    def receive(self, bundle: Bundle, expect_seq: int, min_epoch: int) -> None:
        """Begin to receive; by which settings the peer says later, see `tune`. Raises Stopped."""
        files = self._begin(bundle, Transfer())
        self._say(EDGE_ASLEEP, 0)  # the follower's progress is looked at lazily, it need not ring
        self.receiver = Receiver(files, expect_seq, min_epoch)
        self.peer_beat, self._remote = None, RemoteClock()  # another peer's, perhaps
        self._word = self._word.of(min_epoch)
        self._next_lazy = 0.0

    def _begin(self, bundle: Bundle, settings: Transfer) -> GroupFiles:
        self.end()
        try:
            self.files = files = self._open_files()
        except (OSError, IntegrityError) as exc:
            raise Stopped("peer", f"the group's files cannot be opened: {exc}") from exc
        self._bundle = bundle
        self._asleep_slot = edge_slot(files.slot, EDGE_ASLEEP)
        self._take_up(settings)
        self._say(EDGE_LINK, LINK_STREAMING)
        self._drops = files.u64[DROPS + files.slot]
        return files

    def _take_up(self, settings: Transfer) -> None:
        self.settings, self._rules, self._next_rate = settings, settings.rules(), 0.0

    def tune(self, settings: Transfer) -> None:
        """Go on by other settings: ours changed, or the peer, which ships, states its own. Raises Lost, for a new link,
        when they cannot be changed under way."""
        if self.shipper is not None:
            if settings.needs_new_link(self.settings):
                raise Lost("the link starts over with other transfer settings")
            self.shipper.tune(settings)
        elif self.receiver is not None:
            self.receiver.tune(settings)
        else:
            return
        self._take_up(settings)

    @property
    def flows(self) -> bool:
        """Whether records flow, in either direction."""
        return self.files is not None

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
        self.shipper = self.receiver = self._bundle = None
        if self.files is not None:
            self._say(EDGE_LINK, LINK_DOWN)
            self._say(EDGE_ASLEEP, 0)
            self._say(EDGE_WANTS, 0)
            self.files.close()
            self.files = None

    def rest(self, rests: bool) -> None:
        """Beat and look rarely from now on, or as before."""
        if self.rests and not rests:
            self._next_beat = 0.0
        self.rests = rests

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
        bundle = self._bundle
        assert bundle is not None
        if self.shipper is not None:
            self._ship_some(self.shipper, files, bundle, now)
            return False
        return self.receiver is not None and self._answer(self.receiver, bundle, now)

    def _ship_some(self, shipper: Shipper, files: GroupFiles, bundle: Bundle, now: float) -> None:
        u64 = files.u64
        if u64[DROPS + files.slot] != self._drops:
            raise Stopped("journal", "the journal is no longer kept for the peer")
        if now >= self._next_rate:
            self._next_rate = now + RATE_S
            here = time.localtime()
            shipper.bucket.set_rate(self.settings.rate(self._rules, here.tm_wday, here.tm_hour * 60 + here.tm_min), now)
        if now >= self._next_beat + BEAT_S and not bundle.first.unsent:
            self._send_beat(shipper, bundle, now)  # with a backlog there is always something unsent afterwards
        waited_for = u64[SYNC_ON] >> files.slot & 1
        before = shipper.seq
        for _ in range(FRAMES_A_ROUND * len(bundle.lanes)):
            backlog = u64[HEAD_OFF] - shipper.off
            self._gathers = (
                now < self._gather_until and backlog < GATHER_BYTES and (not waited_for or shipper.flying.many)
            )
            if backlog <= 0 or self._gathers:
                break
            shipped = shipper.pump(now)
            if not shipped:
                break
            self.records += shipped
            if waited_for:
                self._gather_until = now + FLYING_S
        else:
            return
        if self._gathers and shipper.seq == before:
            return
        if shipper.seq != before and not waited_for:
            pause_s = gather_s(shipper.round_trip.seconds, self._crowd.note(self, now))
            self._gathers, self._gather_until = True, now + pause_s
        shipper.shrink()
        if self._beat_is_due(now) and not bundle.first.unsent:
            self._send_beat(shipper, bundle, now)

    def _send_beat(self, shipper: Shipper, bundle: Bundle, now: float) -> None:
        assert self.files is not None
        pace_s = self.files.u64[BEACON_PACE_MS] / 1000 or BEAT_S
        lazy_s = REST_S if self.rests else QUIET_BEAT_S
        self._next_beat = now + (lazy_s if pace_s >= BEAT_S and self.quiet(now) else pace_s)
        bundle.send(shipper.beat())

    def _answer(self, receiver: Receiver, bundle: Bundle, now: float) -> bool:
        if receiver.misses and receiver.gap_lasts(bundle.bytes_in - self._other_bytes, now):
            raise Lost(f"record {receiver.expect} was sent and did not come for {GAP_S:g} s")
        lazy = now >= self._next_lazy
        if lazy:
            self._next_lazy = now + ACK_LAZY_S
        caught_up = receiver.acknowledge(bundle.send, lazy)
        if receiver.grants is not None:
            total = receiver.grants.due(now, self.peer_beat[1] if self.peer_beat else 0)
            if total is not None:
                bundle.send(wire.grant(total))
        if now >= self._next_ring:
            self._next_ring = now + RING_LAZY_S
            receiver.ring()
        return caught_up

    def take_frame(
        self, lane: Lane, kind: int, flags: int, first_seq: int, body: memoryview, now: float
    ) -> tuple[int, int, int] | None:
        """Take a frame that is no CONTROL; returns the positions of an ACK that counts.

        A run that cannot be taken yet is left in the lane, `waiting`. Raises ProtocolError, Stopped.
        """
        if kind == wire.DATA:
            if self.receiver is not None:
                if self.settings.connections == 1 and first_seq > self.receiver.expect:
                    raise ProtocolError(f"the peer sent record {first_seq}, wanted {self.receiver.expect}")
                self.receiver.count(body)
                self._offer(self.receiver, lane, (flags, first_seq, body))
            return None
        self.count_other(lane, body)
        if kind == wire.GRANT:
            if self.shipper is not None and self.shipper.credit is not None:
                self.shipper.credit.grant(*wire.TOTAL.unpack(body))
            return None
        if kind == wire.NEED:
            if self.receiver is not None and self.receiver.grants is not None:
                self.receiver.grants.need(*wire.DOUBLE.unpack(body))
            return None
        if kind == wire.BEAT:
            head_seq, unsent_bytes, seq, time_ns, sent_seq = beat = wire.BEAT_BODY.unpack(body)
            self.peer_beat = head_seq, unsent_bytes
            if self.receiver is not None and self.files is not None:
                self._word.heard(beat, self.receiver.expect - 1, self.files.u64[HEAD_OFF], now)
                self.receiver.note_beacon(seq, time_ns)
                self.receiver.sent_seq = sent_seq
                if time_ns:
                    self._remote.heard(seq, time_ns, self.receiver.expect - 1, now)
            return None
        return self._acked(wire.TRIPLE.unpack(body), now)

    def count_other(self, lane: Lane, body: memoryview) -> None:
        """Count a frame that is no DATA. Raises ProtocolError when it came over another than the first connection."""
        if lane.number:
            raise ProtocolError(f"the peer sent something else than records over connection {lane.number + 1}")
        self._other_bytes += wire.HEAD_BYTES + len(body)

    def _offer(self, receiver: Receiver, lane: Lane, frame: Frame) -> bool:
        taken = receiver.offer(*frame)
        lane.waiting = frame if taken is None else None
        self.records += taken or 0
        return taken is not None

    def behind_s(self, now: float) -> float | None:
        """Seconds of the primary's time that have not come here, by its beacons; None when none came yet."""
        if self.receiver is not None and self.files is not None:
            self._remote.holds(self.receiver.expect - 1, self.files.u64[ARRIVED_TIME])
        return self._remote.behind_s(now)

    def positions(self, now: float) -> dict[str, Any]:
        """What is known of how far the fed side is behind.

        word: LastWord.facts, on the fed side; missing: {writes, bytes} that the peer lacks, on the side that ships;
        else None. behind_s: see `behind_s`. told_seq: the last record that a peer which feeds, or fed, us said there
        is, 0 for none. unsent_bytes: of journal, while we ship. peer_beat: what it said of that last, if it did.
        """
        shipper, files, beat = self.shipper, self.files, self.peer_beat
        writes, size = shipper.missing() if shipper is not None else (0, 0)
        return {
            "behind_s": self.behind_s(now),
            "word": self._heard(now),
            "missing": {"writes": writes, "bytes": size} if shipper is not None else None,
            "full_s": round(self.full_s(now), 1),
            "told_seq": self._word.head_seq,
            "unsent_bytes": max(0, files.u64[HEAD_OFF] - shipper.off) if shipper is not None and files else None,
            "peer_beat": {"head_seq": beat[0], "unsent_bytes": beat[1]} if beat is not None else None,
        }

    def _heard(self, now: float) -> dict[str, Any] | None:
        receiver, files, bundle = self.receiver, self.files, self._bundle
        if receiver is None or files is None or bundle is None:
            return None
        waiting = [lane.waiting for lane in bundle.lanes if lane.waiting is not None]
        arrived = max((first for _, first, _ in waiting), default=0), sum(len(body) for _, _, body in waiting)
        return self._word.facts(receiver.expect - 1, files.u64[HEAD_OFF], arrived, now)

    def heard_of_tree(self, durable: object) -> None:
        """Take in up to where the peer's whole tree holds the journal, from a heartbeat."""
        if self.shipper is not None and isinstance(durable, int) and durable >= 0:
            self.shipper.heard_of_tree(durable)

    def _acked(self, triple: tuple[int, int, int], now: float) -> tuple[int, int, int] | None:
        shipper, files = self.shipper, self.files
        if shipper is None or files is None or not files.current:
            return None  # what it says is of another journal: the target has forgotten it
        received, durable, applied = triple
        if received > files.u64[HEAD_SEQ] or durable > received or applied > received:
            raise ProtocolError(f"the peer acknowledged {triple}, the journal ends at {files.u64[HEAD_SEQ]}")
        if received >= shipper.seq:  # it holds some of what it is being sent again
            received = shipper.seq - 1
            durable, applied = min(durable, received), min(applied, received)
        shipper.acked(received, durable, applied, now)
        files.wake_target()
        return received, durable, applied

    def full_s(self, now: float) -> float:
        """Seconds for which the journal here has had no room for the run whose turn it is; 0.0 where it has."""
        if not self.blocked:
            self._room_at = None
        elif self._room_at is None:
            self._room_at = now
        return 0.0 if self._room_at is None else now - self._room_at

    @property
    def blocked(self) -> bool:
        """Whether a run waits for room in the journal: it is not the peer that is silent."""
        return self.receiver is not None and self.receiver.waits_for_room

    def unblock(self, bundle: Bundle) -> bool:
        """Take runs that wait, held or in their connection, if they can be taken now.

        Returns whether a connection may be read again. Raises as take_frame.
        """
        receiver, files = self.receiver, self.files
        if receiver is None or files is None:
            for lane in bundle.lanes:
                lane.waiting = None  # nobody wants it any more
            return True
        again = False
        if receiver.waits_for_room:
            self.records += receiver.settle()
        moved = True
        while moved:  # what one lane brings may be what others wait for
            moved = False
            for lane in bundle.lanes:
                if lane.waiting is not None and self._offer(receiver, lane, lane.waiting):
                    lane.readable = moved = again = True
        if receiver.waits_for_room:
            files.wake_target()
        return again

    # -- sleep ----------------------------------------------------------------------------------------------------

    def may_sleep(self, bundle: Bundle, now: float) -> bool:
        """Say to the target that we are going to sleep; False when there is work after all."""
        files, shipper = self.files, self.shipper
        if files is None or shipper is None:
            return True
        if bundle.busy or self._gathers or shipper.starved or shipper.bucket.wait_s(now):
            return True  # a socket wakes us, or the clock, or a grant
        files.u64[self._asleep_slot] = 1
        files.fence()
        if shipper.behind:
            files.u64[self._asleep_slot] = 0
            return False
        return True

    def awake(self) -> None:
        """Take that back."""
        if self.shipper is not None and self.files is not None:
            self.files.u64[self._asleep_slot] = 0

    def _beat_is_due(self, now: float) -> bool:
        due = self._next_beat
        return now >= due or (now >= due - QUIET_SLACK_S and self.quiet(now))

    def quiet(self, now: float) -> bool:
        """Whether nothing of the group has changed on this node for QUIET_S."""
        if self.files is None or now < self._next_stir_look:
            return False
        u64 = self.files.u64
        seen = [u64[slot] for slot in _TELLING]
        if seen != self._seen:
            self._seen, self._quiet_from = seen, now + QUIET_S
        if now >= self._quiet_from:
            return True
        self._next_stir_look = min(now + STIR_LOOK_S, self._quiet_from)
        return False

    def next_work(self, now: float) -> float:
        """Seconds until `work` has something to do without being woken."""
        shipper, receiver = self.shipper, self.receiver
        look_s = LOOK_S if not self.quiet(now) else REST_S if self.rests else QUIET_LOOK_S
        if shipper is not None:
            due = self._gather_until if self._gathers else self._next_beat
            wait_s = shipper.bucket.wait_s(now) if shipper.behind else 0.0
            return min(look_s, max(0.0, due - now), wait_s or look_s)
        if receiver is None:
            return look_s if self.files is not None else 3600.0
        if receiver.waits_for_room:
            return ROOM_S
        wait_s = look_s
        if receiver.lazy_pending:
            due = min(self._next_lazy, self._next_ring) if receiver.ring_pending else self._next_lazy
            wait_s = max(0.0, due - now)
        if receiver.grants is not None and receiver.grants.pending:
            wait_s = min(wait_s, max(0.0, receiver.grants.next_due - now))
        return wait_s

    def facts(self) -> dict[str, Any]:
        """Return what status shows of the transfer; see pairview.py."""
        gain, shipper, receiver, bundle = self.gain, self.shipper, self.receiver, self._bundle
        return {
            "connections": len(bundle.lanes) if bundle is not None else 0,
            "rate": shipper.bucket.rate if shipper is not None else None,
            "starved": shipper is not None and shipper.starved,
            "round_trip_s": shipper.round_trip.seconds if shipper is not None else None,
            "held_bytes": receiver.held_bytes if receiver is not None else 0,
            "plain_bytes": gain.plain_bytes,
            "wire_bytes": gain.wire_bytes,
            "skipped_bytes": gain.skipped_bytes,
            "cpu_s": round(gain.cpu_s, 3),
        }
