"""GroupService: a group's engine with threads, as the target runs it.

    host threads    write, zero, flush: call the engine, then wait where the policy says so
    follower        a secondary's redo, woken by the doorbell
    copier          initial copy and resync, paced by the journal's room
    keeper          checkpoints, bitmap rotation, the deadline of holds

Public methods are what the plugin and the control ops call. Waiting happens here, deciding in
replicator.core.losspolicy, everything durable in engine.py, follower.py and roles.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from replicator.capture import copier, follower, limits, recovery, ringchange, roles
from replicator.capture.backlog import Backlog
from replicator.capture.engine import GroupEngine, NoRoom, Parked
from replicator.capture.state import JOURNAL, OK, PRIMARY, SECONDARY
from replicator.capture.waiters import Waiters
from replicator.core.errors import MediumError, Refused, TimedOut
from replicator.core.losspolicy import Verdict, may_go_alone, on_full, on_unanswered
from replicator.journal.files import Buffer
from replicator.journal.page import (
    APPLIED_OFF,
    HEAD_OFF,
    HEAD_SEQ,
    PEER_DURABLE_OFF,
    PEER_DURABLE_SEQ,
    PEER_RECEIVED_SEQ,
    REPLICATOR_ASLEEP,
    TAIL_OFF,
    TARGET_ASLEEP,
    Doorbell,
)

T = TypeVar("T")
Events = Callable[..., None]

KEEPER_S = 0.25
CHECKPOINT_S = 5.0
CHECKPOINT_FRACTION = 0.5
LARGEST_WRITE_BYTES = 4 << 20
"""A larger write becomes several records: the host was promised no atomicity, and the journal has room sooner."""
DRAIN_S = 30.0
RETRY_APPLY_S = 1.0
GATHER_BYTES = 1 << 20
GATHER_S = 0.02
"""After a small batch the follower lets the next one gather: each costs a sync, and nobody waits for the pool."""


class GroupService:
    """One group of this node, served."""

    def __init__(self, engine: GroupEngine, own_bell: Doorbell, peer_bell: Doorbell, events: Events) -> None:
        """own_bell wakes the target, peer_bell the replicator. events(name, **detail) records what happened."""
        self.engine = engine
        self._own_bell = own_bell
        self._bell = peer_bell
        engine.announce = peer_bell.ring
        self._events = events
        self._u64 = engine.page.u64
        self._waiters = Waiters(engine.page, own_bell)
        self._stop = threading.Event()
        self._kick_keeper = threading.Event()
        self._kick_copier = threading.Event()
        self._checkpointing = threading.Lock()
        self._overflowing = threading.Lock()
        self._hold_until = 0.0
        self._role_changed = threading.Event()
        self._closing = False
        self._backlog = Backlog()
        self._backlog_lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._last_checkpoint = time.monotonic()

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self, *, wait_for_peer: bool = False) -> None:
        """Start the threads. With `wait_for_peer` a primary holds writes until it is released or startup_wait_s passed:
        its replicator may find that the peer has taken over meanwhile."""
        state = self.engine.state
        if wait_for_peer and state.role == PRIMARY and state.mode == JOURNAL and state.policy.startup_wait_s:
            roles.park(self.engine, "hold")
            self._hold_until = time.monotonic() + state.policy.startup_wait_s
        for name, loop in (("follower", self._follow), ("copier", self._copy), ("keeper", self._keep)):
            thread = threading.Thread(target=loop, name=f"{state.name}-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end_waits(self) -> None:
        """Answer host requests that wait (for the peer, for room, in a hold) with an error: the target stops."""
        self._closing = True
        with self.engine.opened:
            self.engine.opened.notify_all()
        self._waiters.wake_all()

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise MediumError("the target is stopping", "connect again when it has restarted")

    def stop(self) -> None:
        """Stop the threads, then the group in order. Durable: everything."""
        roles.park(self.engine, "hold")
        self._hold_until = 0.0
        self._stop.set()
        for event in (self._kick_keeper, self._kick_copier, self._role_changed):
            event.set()
        self._own_bell.ring()
        for thread in self._threads:
            thread.join(timeout=DRAIN_S)
        self._drain(roles.park(self.engine, "hold"))
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
        except (Parked, NoRoom):
            seq = self._patiently(lambda: engine.write(volume, offset, buf, fua))
        if seq > 0 and engine.state.sync_on:
            self._wait_peer(seq, fua or engine.state.policy.ack == "durable")

    def zero(self, volume: int, offset: int, length: int, punch: bool, fua: bool = False, trim: bool = False) -> None:
        """Write zeroes or discard; as `write`."""
        engine = self.engine
        seq = self._patiently(lambda: engine.zero(volume, offset, length, punch, fua, trim))
        if seq > 0 and engine.state.sync_on:
            self._wait_peer(seq, fua or engine.state.policy.ack == "durable")

    def flush(self) -> None:
        """Make every answered write durable, here and, in a synchronous group, on the peer."""
        barrier = self._patiently(self.engine.flush)
        if barrier:
            self._bell.ring()
            self._wait_peer(barrier, True)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Run `action`, waiting while the group is held or its journal is full."""
        began = time.monotonic()
        while True:
            try:
                return action()
            except Parked:
                self._refuse_when_closing()
                with self.engine.opened:
                    if self.engine.parked_for:
                        self.engine.opened.wait(0.1)
            except NoRoom:
                self._refuse_when_closing()
                self._make_room(began)

    def _make_room(self, began: float) -> None:
        engine, u64 = self.engine, self._u64
        before = u64[TAIL_OFF]
        if min(u64[HEAD_OFF], u64[PEER_DURABLE_OFF]) > before:
            self.checkpoint(tail_off=before)
        if u64[TAIL_OFF] != before:
            return
        policy = engine.state.policy
        waited = time.monotonic() - began
        alone = may_go_alone(engine.state.sync_on, policy.on_loss)
        verdict = on_full(policy.on_full, engine.link_up, waited, policy.full_timeout_s, alone=alone)
        if verdict is Verdict.WAIT:
            self._bell.ring()
            with engine.opened:
                engine.opened.wait(0.05)
        elif verdict is Verdict.OVERFLOW:
            self.overflow()
        elif not alone:
            raise MediumError(
                f"the journal of group {engine.state.name} is full, and on_loss=stall lets nothing exist here only",
                "reconnect the peer, or choose on_loss=degrade to go on alone",
            )
        else:
            raise MediumError(
                f"the journal of group {engine.state.name} is full and its policy is on_full={policy.on_full}",
                "reconnect the peer, or choose on_full=bitmap",
            )

    def overflow(self) -> None:
        """Give up the journal, with writers parked meanwhile. Durable before any writer goes on."""
        with self._overflowing:
            engine = self.engine
            if engine.state.mode != JOURNAL or engine.journal.room_for(engine.journal.capacity // 2):
                return
            try:
                done = False
                while not done:
                    self._drain(roles.park(engine, "full"))
                    done = roles.overflow(engine)
                self._events("journal-overflow", group=engine.state.name, pos=engine.pos)
            finally:
                roles.unpark(engine, "full")
            self._waiters.wake_all()
            self._bell.ring()

    def _wait_peer(self, seq: int, durable: bool) -> None:
        """Wait for the peer to hold `seq`, as long as the policy allows."""
        engine = self.engine
        began = time.monotonic()

        def give_up() -> bool:
            if not engine.state.sync_on:
                return True
            self._refuse_when_closing()
            policy = engine.state.policy
            verdict = on_unanswered(policy.on_loss, time.monotonic() - began, policy.loss_timeout_s)
            if verdict is Verdict.DEGRADE:
                if roles.degrade(engine):
                    self._events("degraded", group=engine.state.name, seq=seq, waited_s=policy.loss_timeout_s)
                self._waiters.wake_all()
                return True
            if verdict is Verdict.FAIL or engine.failed:
                raise MediumError(
                    f"the peer of group {engine.state.name} has not answered for {policy.loss_timeout_s:g} s",
                    "restore the link, or choose on_loss=degrade to go on alone",
                )
            return False

        if not self._waiters.wait(seq, PEER_DURABLE_SEQ if durable else PEER_RECEIVED_SEQ, give_up):
            self._check_still_primary(seq)

    def _check_still_primary(self, seq: int) -> None:
        """A write whose waiting ended with the primary role is answered only if the handover included it."""
        engine = self.engine
        if engine.state.role != PRIMARY and engine.state.copy != "ok":
            raise Refused(f"group {engine.state.name} gave up the primary role before write {seq} was copied")

    # -- threads --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        page, engine = self.engine.page, self.engine
        while not self._stop.is_set():
            if engine.state.role != SECONDARY or engine.failed:
                self._role_changed.wait(0.5)
                self._role_changed.clear()
                continue
            try:
                busy = follower.apply_some(engine)
                if engine.apply_error:
                    engine.apply_error = ""
                    self._events("apply-resumed", group=engine.state.name)
            except Exception as e:  # outermost loop; a pool raises errors of its own
                if str(e) != engine.apply_error:
                    engine.apply_error = str(e)
                    self._events("apply-stopped", group=engine.state.name, reason=str(e))
                self._stop.wait(RETRY_APPLY_S)
                continue
            if busy:
                if page[REPLICATOR_ASLEEP]:
                    self._bell.ring()
                if self._journal_used() > CHECKPOINT_FRACTION:
                    self._kick_keeper.set()
                if busy < GATHER_BYTES and engine.state.copy == OK:
                    self._stop.wait(GATHER_S)
                continue
            page[TARGET_ASLEEP] = 1
            waits = limits.still_waits(engine, page[APPLIED_OFF])
            if waits or page[HEAD_OFF] == page[APPLIED_OFF]:  # else a run came before anybody knew that we sleep
                self._own_bell.wait(0.05)
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
                if self._u64[REPLICATOR_ASLEEP]:
                    self._bell.ring()
                if self._journal_used() > CHECKPOINT_FRACTION:
                    self._kick_keeper.set()
                continue
            freeable = self._u64[PEER_DURABLE_OFF] - self._u64[TAIL_OFF]
            if engine.state.copying and freeable > engine.journal.capacity // 16:
                self._kick_keeper.set()  # the peer has made room that a checkpoint frees
            self._kick_copier.wait(0.005 if engine.state.copying else 0.5)
            self._kick_copier.clear()

    def _keep(self) -> None:
        engine = self.engine
        while not self._stop.is_set():
            self._kick_keeper.wait(KEEPER_S)
            self._kick_keeper.clear()
            now = time.monotonic()
            if self._hold_until and now >= self._hold_until:
                self.release("its deadline passed")
            try:
                for path in ringchange.release_files(engine):
                    self._events("journal-released", group=engine.state.name, path=path)
                if engine.failed or engine.state.mode != JOURNAL:
                    continue
                self._note_head(now)
                if self._journal_used() > CHECKPOINT_FRACTION or now - self._last_checkpoint > CHECKPOINT_S:
                    self.checkpoint()
                copier.rotate_bitmaps(engine)
            except Exception as e:  # outermost loop; a pool raises errors of its own
                self._events("group-failed", group=engine.state.name, reason=str(e))

    def _journal_used(self) -> float:
        u64 = self._u64
        return (u64[HEAD_OFF] - u64[TAIL_OFF]) / self.engine.journal.capacity

    def look_after(self) -> None:
        """Let the keeper look now whether there is something to do."""
        self._last_checkpoint = 0.0
        self._kick_keeper.set()

    def checkpoint(self, tail_off: int | None = None) -> bool:
        """Sync the pool and free journal space; waits for host writes under way.

        Durable: see follower.finish_checkpoint.

        tail_off: do nothing when the tail has left this offset meanwhile; somebody else's checkpoint did that.
        """
        with self._checkpointing:
            if tail_off is not None and self._u64[TAIL_OFF] != tail_off:
                return True
            begun = follower.begin_checkpoint(self.engine)
            self._last_checkpoint = time.monotonic()
            if begun is None:
                return False
            self._drain(begun.pending)
            return follower.finish_checkpoint(self.engine, begun)

    def _drain(self, pending: set[int]) -> None:
        """Wait until the changes in `pending` have reached the pool."""
        deadline = time.monotonic() + DRAIN_S
        while self.engine.still_in_flight(pending):
            if time.monotonic() > deadline:
                raise TimedOut(f"writes of group {self.engine.state.name} hang in the pool", "see 'pool status'")
            time.sleep(0.0002)

    # -- control --------------------------------------------------------------------------------------------------

    def status(self, settle: bool = False) -> dict[str, Any]:
        """All facts about the group. With `settle` a secondary first applies everything it has received, so that
        history and position belong together; the replicator asks so before it shakes hands, when nothing comes in."""
        if settle and self.engine.state.role == SECONDARY:
            follower.settle(self.engine)
        status = self.engine.status()
        status["behind"] = self._behind()
        return status

    def _note_head(self, now: float) -> None:
        with self._backlog_lock:
            self._backlog.note(self._u64[HEAD_SEQ], self._u64[HEAD_OFF], now)

    def _behind(self) -> dict[str, Any] | None:
        """What the peer of a primary lacks, as backlog.Behind; None when it is not known."""
        engine, u64 = self.engine, self._u64
        received = u64[PEER_RECEIVED_SEQ]
        if engine.state.role != PRIMARY or engine.state.mode != JOURNAL or not received:
            return None
        now = time.monotonic()
        with self._backlog_lock:
            found = self._backlog.behind(received, u64[HEAD_SEQ], u64[HEAD_OFF], now)
        return None if found is None else found._asdict()

    def set_link(self, up: bool) -> None:
        """The replicator says whether records flow to the peer."""
        self.engine.link_up = up
        if up:
            self._note_head(time.monotonic())  # from here on it can be said how far the peer is behind
            self.release("the peer was reached")
        self._waiters.wake_all()

    def hold(self, deadline_s: float) -> dict[str, Any]:
        """Park new host writes for at most `deadline_s` seconds and wait for those under way. Returns {seq}."""
        pending = roles.park(self.engine, "hold")
        self._hold_until = time.monotonic() + deadline_s
        self._drain(pending)
        self._bell.ring()
        return {"seq": self.engine.pos}

    def release(self, why: str = "") -> None:
        """Let parked writers go on."""
        self._hold_until = 0.0
        if self.engine.parked_for == "hold":
            roles.unpark(self.engine, "hold")
            self._events("hold-released", group=self.engine.state.name, reason=why)

    def set_sync(self, on: bool) -> dict[str, Any]:
        """See roles.set_sync."""
        return roles.set_sync(self.engine, on)

    def set_policy(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change the policy. Durable: the new one."""
        engine = self.engine
        with engine.lock:
            state = engine.state
            policy = state.policy.changed(changes)
            stays = policy.mode == "sync"
            engine.commit(policy=policy, sync_on=state.sync_on and stays, degraded=state.degraded and stays)
        self._waiters.wake_all()
        return dict(vars(engine.state.policy))

    def arm(self) -> dict[str, Any]:
        """See roles.arm."""
        return roles.arm(self.engine)

    def disarm(self) -> None:
        """See roles.disarm."""
        roles.disarm(self.engine)
        self._waiters.wake_all()

    def common_bitmap(self, c: int | None) -> dict[str, Any]:
        """See roles.common_bitmap."""
        return roles.common_bitmap(self.engine, c)

    def begin_copy(self, c: int | None, peer_bitmaps: dict[int, bytes] | None, copy_id: str) -> dict[str, Any]:
        """See roles.begin_copy. The copier starts with resume_copy, when the peer is attached."""
        return roles.begin_copy(self.engine, c, peer_bitmaps, copy_id)

    def resume_copy(self) -> None:
        """Let the copier look for work now."""
        self._kick_copier.set()

    def attach(self, **step: Any) -> dict[str, Any]:
        """See roles.attach."""
        return roles.attach(self.engine, **step)

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
        self._waiters.wake_all()
        self._events("demoted", group=self.engine.state.name, **result)
        return result

    def wake_follower(self) -> None:
        """Let the follower look for work: a limit was raised."""
        self._own_bell.ring()

    @property
    def seq(self) -> int:
        """The last seq given out or received."""
        return self._u64[HEAD_SEQ]
