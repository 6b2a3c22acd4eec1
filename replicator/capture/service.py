"""GroupService: a group's engine with threads, as the target runs it.

    host threads    write, zero, flush: call the engine, then wait where the policy says so
    follower        a secondary's redo, woken by the doorbell
    copier          initial copy and resync, paced by the journal's room
    keeper          checkpoints, bitmap rotation, the deadline of holds

Public methods are what the plugin and the control ops call. Waiting happens here and in peerwaits.py, deciding in
replicator.core.losspolicy, everything durable in engine.py, follower.py and roles.py.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from replicator.capture import (
    copier,
    copies,
    edges,
    follower,
    limits,
    recovery,
    retention,
    ringchange,
    roles,
    volumeset,
)
from replicator.capture.backlog import Backlog
from replicator.capture.damage import DamagedJournal
from replicator.capture.engine import GroupEngine
from replicator.capture.fulljournal import FullJournal
from replicator.capture.guardedreads import GuardedReads
from replicator.capture.hardship import ROOM, Hardship
from replicator.capture.parking import NoRoom, Parked
from replicator.capture.peerwaits import PeerWaits
from replicator.capture.recordlog import DamagedRecord, records_from
from replicator.capture.relayloss import RelayWatch
from replicator.capture.retention import Threshold, Trend
from replicator.capture.state import JOURNAL, OK, PRIMARY, SECONDARY, UNTRACKED
from replicator.capture.writerates import WriteRates
from replicator.core.batching import Crowd, apply_gather_s
from replicator.core.errors import IntegrityError, MediumError, Refused, TimedOut
from replicator.core.records import BadRecord, Kind
from replicator.journal.files import Buffer
from replicator.journal.page import (
    APPLIED_OFF,
    EDGE_RECEIVED_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    SYNC_ON,
    TAIL_OFF,
    TARGET_ASLEEP,
    Doorbell,
    edge_slot,
)

T = TypeVar("T")
Events = Callable[..., None]

KEEPER_S = 0.25
QUIET_KEEPER_S = 15.0
QUIET_ROUNDS = 20
"""The keeper has looked so often before it rests: what a copy or the last write leaves to do, such as the change of
bitmaps, is done by then."""
NAP_S = 0.05
QUIET_NAP_S = 5.0
QUIET_S = 15.0
"""A thread that is kicked when there is work looks this often all the same."""
CHECKPOINT_S = 5.0
CHECKPOINT_FRACTION = 0.5
CHECKPOINT_WORTH = 0.125
"""During a copy a checkpoint is made for this much of the journal, and not for each bit of it that the peers free."""
COPY_FULL_FRACTION = 0.9
"""A copy that finds no room in a journal filled so far waits for a peer that is away."""
LARGEST_WRITE_BYTES = 4 << 20
"""A larger write becomes several records: the host was promised no atomicity, and the journal has room sooner."""
DRAIN_S = 30.0
RETRY_APPLY_S = 1.0
GATHER_BYTES = 1 << 20
"""After a batch smaller than this the follower lets the next one gather: each costs a sync, and nobody waits for the
pool."""


class GroupService:
    """One group of this node, served."""

    def __init__(
        self,
        engine: GroupEngine,
        own_bell: Doorbell,
        edge_bell: Callable[[int], Doorbell],
        events: Events,
        rates: WriteRates | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        """own_bell wakes the target; edge_bell opens the doorbell that wakes the replicator of an edge, by its slot.
        events(name, **detail) records what happened. rates: what hosts have written so far, by the hour.
        crowd: shared by all groups of the process, to know how many are busy."""
        self.engine = engine
        self._own_bell = own_bell
        self._edge_bell = edge_bell
        self._bells: dict[int, Doorbell] = {}
        engine.announce = self._ring_edge
        self._events = events
        self._u64 = engine.page.u64
        self._hardship = Hardship(partial(events, group=engine.state.name), self._still_hard)
        self.peers = PeerWaits(engine, own_bell, events, self._refuse_when_closing, self._hardship)
        self.reads = GuardedReads(engine, self.peers.wait)
        self._answered = engine.unanswered.entries.pop
        self._stop = threading.Event()
        self._kick_keeper = threading.Event()
        self._kick_copier = threading.Event()
        self._checkpointing = threading.Lock()
        self._hold_until = 0.0
        self._held_at_start = False
        """The hold is that of the start: it ends when every peer was reached."""
        self._keeper_saw = self._still_rounds = 0
        self._role_changed = threading.Event()
        self._closing = False
        self._backlog = Backlog()
        self._trend = Trend()
        self._threshold = Threshold()
        self.rates = rates or WriteRates(None)
        self._crowd = crowd or Crowd()
        self._backlog_lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._last_checkpoint = time.monotonic()
        self._nothing_to_free: tuple[object, ...] | None = None
        """Positions at the last checkpoint, if that changed nothing."""
        self._relay_watch = RelayWatch(engine)
        self._full = FullJournal(
            engine,
            events,
            lambda tail_off: self.checkpoint(tail_off=tail_off),
            self._drain,
            self.peers.wake_all,
            self._ring_all,
            self._hardship,
        )
        self._damaged = DamagedJournal(engine, events, lambda: self.checkpoint(whole=True), self._look_anew)

    def _look_anew(self) -> None:
        self._role_changed.set()
        self.peers.wake_all()
        self._ring_all()

    def _still_hard(self, what: str, peer: str) -> bool:
        """Whether a host write would wait or fail again for want of room, or of the peer's answer."""
        engine, u64 = self.engine, self._u64
        if engine.state.role != PRIMARY or engine.state.mode != JOURNAL or engine.failed:
            return False
        if what == ROOM:
            return not engine.journal.room_for(min(LARGEST_WRITE_BYTES, engine.journal.capacity // 16))
        edge = engine.state.edge_of(peer)
        return edge is not None and edge.sync_on and u64[edge_slot(edge.slot, EDGE_RECEIVED_SEQ)] < u64[HEAD_SEQ]

    def _ring_edge(self, slot: int) -> None:
        bell = self._bells.get(slot)
        if bell is None:
            bell = self._bells.setdefault(slot, self._edge_bell(slot))
        bell.ring()

    def _ring_all(self) -> None:
        for edge in self.engine.state.edges:
            self._ring_edge(edge.slot)

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self, *, wait_for_peer: bool = False) -> None:
        """Start the threads. With `wait_for_peer` a primary holds writes until it is released or startup_wait_s passed:
        its replicator may find that a peer has taken over meanwhile."""
        state = self.engine.state
        if wait_for_peer and state.role == PRIMARY and state.mode != UNTRACKED and state.policy.startup_wait_s:
            self.wait_for_peers(state.policy.startup_wait_s)
        self.engine.unanswered.take_stock(self.engine, self.engine.waits)
        for name, loop in (("follower", self._follow), ("copier", self._copy), ("keeper", self._keep)):
            thread = threading.Thread(target=loop, name=f"{state.name}-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._ring_all()  # a replicator that rests learns of the new target

    def wait_for_peers(self, seconds: float) -> None:
        """Hold writes until every peer was reached, or `seconds` have passed from now on."""
        roles.park(self.engine, "hold")
        self._hold_until = time.monotonic() + seconds
        self._held_at_start = True

    def end_waits(self) -> None:
        """Answer host requests that wait (for the peer, for room, in a hold) with an error: the target stops."""
        self._closing = True
        with self.engine.opened:
            self.engine.opened.notify_all()
        self.peers.wake_all()

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise MediumError("the target is stopping", "connect again when it has restarted")

    def stop(self) -> None:
        """Stop the threads, then the group in order. Durable: everything."""
        self.end_waits()  # of reads: nobody else waits any more
        roles.park(self.engine, "hold")
        self._hold_until = 0.0
        self._stop.set()
        for event in (self._kick_keeper, self._kick_copier, self._role_changed):
            event.set()
        self._own_bell.ring()
        for thread in self._threads:
            thread.join(timeout=DRAIN_S)
        self._drain(roles.park(self.engine, "hold"))
        self.rates.save()
        recovery.close_engine(self.engine)

    # -- host requests --------------------------------------------------------------------------------------------

    def write(self, volume: int, offset: int, buf: Buffer, fua: bool = False) -> None:
        """Write; returns when the host may be answered. Hot path. Errors as GroupEngine.write, and MediumError when a
        synchronous group that stalls had no answer from its peer in time."""
        engine = self.engine
        if len(buf) > LARGEST_WRITE_BYTES:
            view = memoryview(buf)
            for at in range(0, len(buf), LARGEST_WRITE_BYTES):
                self.write(volume, offset + at, view[at : at + LARGEST_WRITE_BYTES], fua)
            return
        try:
            seq = engine.write(volume, offset, buf, fua)
        except Parked as parked:
            made = parked.made
            seq = self._patiently(lambda: engine.make_durable(made) if made else engine.write(volume, offset, buf, fua))
        except NoRoom:
            seq = self._patiently(lambda: engine.write(volume, offset, buf, fua))
        if seq > 0 and engine.waits:
            self.peers.wait(seq, fua or engine.state.policy.ack == "durable")
            self._answered(seq, None)

    def zero(self, volume: int, offset: int, length: int, punch: bool, fua: bool = False, trim: bool = False) -> None:
        """Write zeroes or discard; as `write`."""
        engine = self.engine
        seq = self._patiently(lambda: engine.zero(volume, offset, length, punch, fua, trim))
        if seq > 0 and engine.waits:
            self.peers.wait(seq, fua or engine.state.policy.ack == "durable")
            self._answered(seq, None)

    def flush(self) -> None:
        """Make every answered write durable, here and on the peers of synchronous edges."""
        barrier = self._patiently(self.engine.flush)
        if barrier:
            self._ring_all()
            self.peers.wait(barrier, True)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Run `action`, waiting while the group is held or its journal is full."""
        began = time.monotonic()
        while True:
            try:
                return action()
            except Parked as parked:
                if made := parked.made:  # only what makes it durable is left to do
                    action = cast("Callable[[], T]", partial(self.engine.make_durable, made))
                self._refuse_when_closing()
                if self.engine.journal_lost:
                    self._full.go_over()
                with self.engine.opened:
                    if self.engine.parked_for:
                        self.engine.opened.wait(0.1)
            except NoRoom:
                self._refuse_when_closing()
                with suppress(Parked):
                    self._full.make_room(began)

    def overflow(self) -> None:
        """See FullJournal.overflow."""
        self._full.overflow()

    # -- threads --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        page, engine = self.engine.page, self.engine
        fence = threading.Lock()
        nap_until = 0.0
        while not self._stop.is_set():
            if engine.state.role != SECONDARY or engine.failed:
                self._role_changed.wait(QUIET_S)
                self._role_changed.clear()
                continue
            try:
                busy = follower.apply_some(engine)
                if self._full.is_waited_for():
                    self._full.relieve()
                else:
                    self._full.eased()
                if engine.apply_error:
                    engine.apply_error, engine.wants_room = "", False
                    self._events("apply-resumed", group=engine.state.name)
            except Exception as e:  # outermost loop; a pool raises errors of its own
                engine.wants_room = getattr(e, "errno", 0) == errno.ENOSPC
                if str(e) != engine.apply_error:
                    engine.apply_error = str(e)
                    self._events("apply-stopped", group=engine.state.name, reason=str(e))
                if self._damaged.pending:
                    self._kick_keeper.set()
                self._stop.wait(RETRY_APPLY_S)
                continue
            if busy:
                nap_until = time.monotonic() + QUIET_NAP_S
                engine.wake_replicator()
                if self._journal_used() > CHECKPOINT_FRACTION:
                    self._kick_keeper.set()
                if busy < GATHER_BYTES and engine.state.copy == OK:
                    self._stop.wait(apply_gather_s(self._crowd.note(self, time.monotonic())))
                continue
            now = time.monotonic()
            page[TARGET_ASLEEP] = 1
            with fence:
                pass  # a lock is a barrier: what the replicator appended before it could see that we sleep is seen here
            waits = limits.still_waits(engine, page[APPLIED_OFF])
            if waits or page[HEAD_OFF] == page[APPLIED_OFF]:
                self._own_bell.wait(NAP_S if waits or now < nap_until else QUIET_NAP_S)
            page[TARGET_ASLEEP] = 0

    def _copy(self) -> None:
        engine = self.engine
        while not self._stop.is_set():
            done = 0
            if copier.may_copy(engine):
                try:
                    done = copier.copy_some(engine)
                except Exception as e:  # outermost loop; a pool raises errors of its own
                    self._events("copy-stopped", group=engine.state.name, reason=str(e))
                    self._stop.wait(RETRY_APPLY_S)
            if done:
                self._full.eased()
                engine.wake_replicator()
                if self._journal_used() > CHECKPOINT_FRACTION and self._peers_free_much():
                    self._kick_keeper.set()
                continue
            if copier.may_copy(engine) and self._journal_used() > COPY_FULL_FRACTION:
                self._full.relieve()
            copies_run = engine.state.copying and engine.state.role == PRIMARY
            if copies_run and self._peers_free_much():
                self._kick_keeper.set()
            self._kick_copier.wait(0.005 if copies_run else 0.5 if engine.state.copying else QUIET_S)
            self._kick_copier.clear()

    def _peers_free_much(self) -> bool:
        """Whether the peers hold so much of the journal durably that freeing it is worth a checkpoint during a copy."""
        freeable = (edges.kept_from(self.engine) or 0) - self._u64[TAIL_OFF]
        return freeable > self.engine.journal.capacity * CHECKPOINT_WORTH

    def _keep(self) -> None:
        engine = self.engine
        while not self._stop.is_set():
            self._kick_keeper.wait(self._keeper_pause_s())
            self._kick_keeper.clear()
            now = time.monotonic()
            if self._hold_until and now >= self._hold_until:
                self.release("its deadline passed")
            try:
                engine.unanswered.purge(engine)
                for path in ringchange.release_files(engine):
                    self._events("journal-released", group=engine.state.name, path=path)
                self._damaged.look(now)
                self._hardship.look(now)
                if engine.journal_lost:
                    self._full.go_over()
                if engine.unsettled and engine.state.role == PRIMARY and not engine.parked_for:
                    volumeset.settle(engine)
                if engine.failed or engine.state.mode != JOURNAL:
                    continue
                for peer in self._relay_watch.look(now):
                    self._events(
                        "degraded", group=engine.state.name, peer=peer, waited_s=engine.state.policy.loss_timeout_s
                    )
                self._note_head(now)
                self._watch_room(now)
                if self._checkpoint_is_due(now):
                    self.checkpoint()
                copier.rotate_bitmaps(engine)
            except Parked:
                continue  # its journal failed just now
            except Exception as e:  # outermost loop; a pool raises errors of its own
                self._events("group-failed", group=engine.state.name, reason=str(e))

    def _keeper_pause_s(self) -> float:
        """How long the keeper rests: less often while nothing is written and nothing waits."""
        head, before = self._u64[HEAD_SEQ], self._keeper_saw
        self._keeper_saw = head
        engine = self.engine
        waits = self._hold_until or engine.parked_for or engine.journal_lost or self._damaged.pending
        busy = head != before or waits or self._u64[SYNC_ON] or self._hardship.told
        self._still_rounds = 0 if busy else self._still_rounds + 1
        return KEEPER_S if self._still_rounds < QUIET_ROUNDS else QUIET_KEEPER_S

    def _watch_room(self, now: float) -> None:
        """Note how the journal fills, and tell once when it has passed the threshold, or fallen below it again."""
        engine, u64 = self.engine, self._u64
        retention.note_marks(engine)
        self._trend.note(now, u64[HEAD_OFF], u64[TAIL_OFF])
        self.rates.note(u64[HEAD_OFF])
        percent = retention.used_percent(engine)
        crossed = self._threshold.crossed(percent, engine.state.policy.warn_percent)
        if crossed:
            free = engine.journal.capacity - (u64[HEAD_OFF] - u64[TAIL_OFF])
            what = "journal-filling" if crossed == "above" else "journal-relieved"
            name, full_in_s = engine.state.name, self._trend.full_in_s(free)
            self._events(what, group=name, percent=round(percent), full_in_s=full_in_s)

    def journal(self) -> dict[str, Any]:
        """What status says of the journal, the age of its oldest record, and what was written hour by hour."""
        u64, now_ns = self._u64, self.engine.clock.wall_ns()
        oldest = None
        if u64[HEAD_OFF] > u64[TAIL_OFF]:
            with suppress(OSError, BadRecord):
                oldest = max(0, now_ns - self.engine.journal.header_at(u64[TAIL_OFF]).write_time) / 1e9
        return {**self.status()["journal"], "oldest_age_s": oldest, "history": self.rates.history()}

    def _journal_used(self) -> float:
        u64 = self._u64
        return (u64[HEAD_OFF] - u64[TAIL_OFF]) / self.engine.journal.capacity

    def look_after(self) -> None:
        """Let the keeper look now whether there is something to do."""
        self._last_checkpoint, self._nothing_to_free = 0.0, None
        self._role_changed.set()
        self._kick_keeper.set()

    def checkpoint(self, tail_off: int | None = None, *, whole: bool = False) -> bool:
        """Sync the pool and free journal space; waits for host writes under way.

        Durable: see follower.finish_checkpoint.

        tail_off: do nothing when the tail has left this offset meanwhile; somebody else's checkpoint did that.
        whole: as for follower.begin_checkpoint.
        """
        with self._checkpointing:
            if tail_off is not None and self._u64[TAIL_OFF] != tail_off:
                return True
            seen = self._positions()
            begun = follower.begin_checkpoint(self.engine, whole=whole)
            self._last_checkpoint = time.monotonic()
            if begun is None:
                return False
            self._drain(begun.pending)
            moved = follower.finish_checkpoint(self.engine, begun)
            self._nothing_to_free = None if moved else seen
            return moved

    def _checkpoint_is_due(self, now: float) -> bool:
        if self._journal_used() > CHECKPOINT_FRACTION:
            return True
        return now - self._last_checkpoint > CHECKPOINT_S and self._positions() != self._nothing_to_free

    def _positions(self) -> tuple[object, ...]:
        """All that says how far a checkpoint can go; while it is the same, another one would find nothing new."""
        engine, u64 = self.engine, self._u64
        return (
            *(u64[slot] for slot in (INCARNATION, HEAD_OFF, HEAD_SEQ, APPLIED_OFF, TAIL_OFF)),
            engine.journal.super.redo_off,
            engine.unjournaled,
            engine.unjournaled_synced,
            engine.state.role,
            engine.state.mode,
            edges.kept_from(engine),
        )

    def _drain(self, pending: set[int]) -> None:
        """Wait until the changes in `pending` have reached the pool."""
        deadline = time.monotonic() + DRAIN_S
        while self.engine.still_in_flight(pending):
            if time.monotonic() > deadline:
                raise TimedOut(f"writes of group {self.engine.state.name} hang in the pool", "see 'pool status'")
            time.sleep(0.0002)

    # -- control --------------------------------------------------------------------------------------------------

    def status(self, settle: bool = False, peer: str = "") -> dict[str, Any]:
        """All facts about the group; with `peer`, what concerns one peer is said of that one. With `settle` a secondary
        first applies everything it has received, so that
        history and position belong together; the replicator asks so before it shakes hands, when nothing comes in."""
        if settle and self.engine.state.role == SECONDARY:
            try:
                follower.settle(self.engine)
            except IntegrityError:
                if not self._damaged.end_before():
                    raise
                follower.settle(self.engine)
        edge = edges.edge_of(self.engine, peer) if peer else None
        status = self.engine.status(edge)
        status["behind"] = self._behind(status["peer"]["received"])
        for one in status["edges"]:
            one["behind"] = None if one["upstream"] else self._behind(one["received"])
        status["writers"] = self._hardship.facts(time.monotonic())
        status["journal"] |= retention.journal_view(self.engine, self._trend)
        return status

    def _note_head(self, now: float) -> None:
        with self._backlog_lock:
            self._backlog.note(self._u64[HEAD_SEQ], self._u64[HEAD_OFF], now)

    def _behind(self, received: int) -> dict[str, Any] | None:
        """What a peer of a primary lacks that has received `received`, as backlog.Behind; None when it is not known."""
        engine, u64 = self.engine, self._u64
        if engine.state.role != PRIMARY or engine.state.mode != JOURNAL or not received:
            return None
        now = time.monotonic()
        with self._backlog_lock:
            found = self._backlog.behind(received, u64[HEAD_SEQ], u64[HEAD_OFF], now)
            self._backlog.note(u64[HEAD_SEQ], u64[HEAD_OFF], now)  # the keeper may be resting
        return None if found is None else found._asdict()

    def records(self, since: int, limit: int) -> dict[str, Any]:
        """See recordlog.records_from. Damage that is found on the way is seen to, as any."""
        try:
            return records_from(self.engine, since, limit)
        except DamagedRecord as exc:
            self.journal_damaged(exc.off, exc.seq)
            raise

    def journal_damaged(self, off: int, seq: int) -> dict[str, Any]:
        """The replicator cannot ship what lies in the journal from `off`, where record `seq` begins, on. Returns
        {damaged}: whether it is so. See DamagedJournal.reported."""
        found = self._damaged.reported(off, seq)
        self._kick_keeper.set()
        return {"damaged": found}

    def set_link(self, peer: str, up: bool) -> None:
        """The replicator says whether records flow to the peer."""
        edges.set_link(self.engine, edges.edge_of(self.engine, peer), up)
        self._note_head(time.monotonic())  # from here on it can be said how far the peer is behind
        if up:
            downstream = self.engine.state.downstream
            if self._held_at_start and all(e.slot in self.engine.linked for e in downstream):
                self.release("all peers were reached" if len(downstream) > 1 else "the peer was reached")
        self.peers.wake_all()

    def follow(self, peer: str) -> None:
        """See edges.follow."""
        edges.follow(self.engine, peer)

    def note_source(self, peer: str, seq: int) -> None:
        """See edges.note_source."""
        edges.note_source(self.engine, peer, seq)

    def hold(self, deadline_s: float) -> dict[str, Any]:
        """Park new host writes for at most `deadline_s` seconds and wait for those under way. Returns {seq}."""
        pending = roles.park(self.engine, "hold")
        self._held_at_start = False
        self._hold_until = time.monotonic() + deadline_s
        self._kick_keeper.set()
        self._drain(pending)
        self._ring_all()
        return {"seq": self.engine.pos}

    def release(self, why: str = "") -> None:
        """Let parked writers go on."""
        self._hold_until = 0.0
        self._held_at_start = False
        if self.engine.parked_for == "hold":
            roles.unpark(self.engine, "hold")
            self._events("hold-released", group=self.engine.state.name, reason=why)

    def change_volumes(self, kind: Kind, name: str, size: int = 0) -> dict[str, Any]:
        """See volumeset.change. Writers wait meanwhile: for those under way, and for a sync of the pool."""
        engine = self.engine
        with self._full.changing:
            if engine.parked_for:
                raise Refused(f"group {engine.state.name} is held just now", "try again in a moment")
            try:
                self._drain(roles.park(engine, "volumes"))
                entry = volumeset.change(engine, kind, name, size)
            finally:
                roles.unpark(engine, "volumes")
        with suppress(Refused, TimedOut):
            volumeset.settle(engine)  # else the keeper does
        self._ring_all()
        self._events("volumes-changed", group=engine.state.name, change=kind.name, volume=name, size=entry["size"])
        return entry

    def set_sync(self, peer: str, on: bool) -> dict[str, Any]:
        """See GuardedReads.set_sync."""
        self._kick_keeper.set()  # a relay watches the peers below it, also right after a quiet time
        return self.reads.set_sync(edges.edge_of(self.engine, peer), on)

    def set_policy(self, changes: dict[str, Any], peer: str = "") -> dict[str, Any]:
        """See edges.set_policy."""
        policy = edges.set_policy(self.engine, changes, peer)
        self.reads.relax()
        self.peers.wake_all()
        self._ring_all()
        return policy

    def arm(self, peer: str, mode: str = "", upstream: bool = False) -> dict[str, Any]:
        """See roles.arm."""
        return roles.arm(self.engine, peer, mode, upstream)

    def disarm(self, peer: str) -> None:
        """See roles.disarm."""
        try:
            roles.disarm(self.engine, peer)
        finally:
            self.reads.relax()
            self.peers.wake_all()

    def common_bitmap(self, c: int | None) -> dict[str, Any]:
        """See copies.common_bitmap."""
        return copies.common_bitmap(self.engine, c)

    def begin_copy(
        self, peer: str, c: int | None, peer_bitmaps: dict[int, bytes | None] | None, copy_id: str
    ) -> dict[str, Any]:
        """See copies.begin_copy. The copier starts with resume_copy, when the peer is attached."""
        return copies.begin_copy(self.engine, edges.edge_of(self.engine, peer), c, peer_bitmaps, copy_id)

    def pin_copy(
        self, peer: str, c: int | None, peer_bitmaps: dict[int, bytes | None] | None, copy_id: str
    ) -> dict[str, Any]:
        """See copies.pin_copy."""
        return copies.pin_copy(self.engine, edges.edge_of(self.engine, peer), c, peer_bitmaps, copy_id)

    def copy_until(self, peer: str, copy_id: str, seq: int, epoch: int) -> dict[str, Any]:
        """See copies.copy_until."""
        return copies.copy_until(self.engine, edges.edge_of(self.engine, peer), copy_id, seq, epoch)

    def extend_copy(self, copy_id: str, masks: dict[int, bytes] | None) -> dict[str, Any]:
        """See copies.extend_copy."""
        result = copies.extend_copy(self.engine, copy_id, masks)
        self.resume_copy()
        return result

    def resume_copy(self) -> None:
        """Let the copier look for work now."""
        self._kick_copier.set()

    def attach(self, peer: str, **step: Any) -> dict[str, Any]:
        """See roles.attach."""
        return roles.attach(self.engine, edges.edge_of(self.engine, peer), **step)

    def promote(self, force: bool = False, at_limit: bool = False) -> dict[str, Any]:
        """See roles.promote. The replicator has stopped appending to the journal. `force` accepts a former primary that
        was replaced; it does not make an inconsistent copy acceptable: nothing does."""
        result = roles.promote(self.engine, accept_diverged=force, at_limit=at_limit)
        self._events("promoted", group=self.engine.state.name, **result)
        return result

    def demote(self, diverged: bool = False, upto: int | None = None) -> dict[str, Any]:
        """Park and drain writers, then roles.demote. Parked writers are refused then; when it fails they go on."""
        engine = self.engine
        self._hold_until = 0.0  # a hold that led here must not end half way
        try:
            if engine.state.role == PRIMARY:
                self._drain(roles.park(engine, "hold"))
            result = roles.demote(engine, diverged, upto)
        except BaseException:
            self.release("the role could not be given up")
            raise
        self._role_changed.set()
        self.peers.wake_all()
        self._events("demoted", group=self.engine.state.name, **result)
        return result

    def wake_follower(self) -> None:
        """Let the follower look for work: a limit was raised."""
        self._own_bell.ring()

    @property
    def seq(self) -> int:
        """The last seq given out or received."""
        return self._u64[HEAD_SEQ]
