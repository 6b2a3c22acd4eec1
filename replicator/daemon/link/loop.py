"""The thread of one pair: waits in poll() for the doorbell, the connection and the inbox; feeds the session; obeys it.

    inbox        events of other threads: replies of the target, new connections, the operator's commands
    connections  frames of the peer
    doorbell     the target has appended to the journal

Invariants: the session is touched by this thread only. Effects are carried out in order, each before the next, except
that answers of the target and dialling come back as events. Whatever the peer does wrong costs it the connection,
nothing else.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replicator.core.errors import BadInput, FarstripeError, ProtocolError, Refused, to_map
from replicator.core.events import (
    Acked,
    Answer,
    AskTarget,
    ClaimJournal,
    CloseLink,
    Command,
    Dial,
    Effect,
    Event,
    FrameIn,
    LinkDown,
    LinkUp,
    Log,
    Persist,
    Reply,
    Send,
    StartReceiving,
    StartShipping,
    StopReceiving,
    StopShipping,
    Tick,
)
from replicator.core.session import QUIET_SLACK_S, NotExpected, Session
from replicator.core.session.operating import numbers, texts
from replicator.core.transfer import Transfer, from_map
from replicator.core.transitions import State
from replicator.daemon.link import wire
from replicator.daemon.link.bundle import Bundle, Lane
from replicator.daemon.link.claims import Claims
from replicator.daemon.link.connection import Connection, Lost
from replicator.daemon.link.flow import FRAMES_A_ROUND, Flow
from replicator.daemon.link.mailbox import Evicted, Incoming, Item, Knock, LookAgain, Mailbox, Query, Retune, Stir
from replicator.daemon.link.pulse import Pulse
from replicator.daemon.link.shipper import Stopped
from replicator.journal.page import Doorbell

log = logging.getLogger("farstripe.link")

MAX_SLEEP_S = 2.0
REST_SLEEP_S = 30.0
MIN_TICK_S = 0.02
_ENDED = select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True)
class Surroundings:
    """What a pair's thread needs from the rest of the process. Each is called from that thread and returns soon."""

    name: str
    """Of the group, for logs."""
    ask: Callable[[AskTarget], None]
    dial: Callable[[], None]
    """Try to connect in the background; ends in PairLoop.connected or PairLoop.not_connected."""
    open_more: Callable[[str, int], None]
    """Try to add so many connections to the link of this name, in the background; each ends in PairLoop.joined."""
    persist: Callable[[dict[str, Any]], None]
    event: Callable[[str, dict[str, Any]], None]
    transfer: Callable[[], Transfer]
    """The settings of this node."""
    failed: Callable[[], None]
    """The thread ends because of an error nobody expected."""
    claims: Claims = field(default_factory=Claims)
    """Which session of the group may append to its journal."""
    pulse: Pulse = field(default_factory=lambda: Pulse(""))
    """The heartbeat that the links to the peer share."""
    beside: Callable[[], dict[str, Any]] = dict
    """What is known besides; see SessionBase.beside."""
    acked: Callable[[], None] = lambda: None
    """The peer has acknowledged: whoever receives the group's records may have to pass it on."""


class PairLoop:
    """One pair's thread. Methods without underscore may be called from any thread."""

    def __init__(self, session: Session, flow: Flow, around: Surroundings) -> None:
        self._session = session
        self._flow = flow
        self._around = around
        self._box = Mailbox(around.name)
        self._stopping = False
        self._poller: select.poll | None = None
        self._watched: tuple[object, ...] = ()
        self._bundle: Bundle | None = None
        """The connections of the present link."""
        self._link = 0
        self._last_rx = self._last_tick = 0.0
        self._deadline: float | None = None
        self._fed = True
        """The session has been told something since it was asked for its deadline."""
        self._peer_instance = ""
        """The peer's process at the other end of the link, once it has said so."""
        self._shared_policy: dict[str, Any] | None = None
        self._policy_looked_up: dict[str, Any] | None = None
        """The target's status in which the policy was looked up last."""
        self._thread = threading.Thread(target=self._run, name=f"pair-{around.name}", daemon=True)

    # -- from other threads ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the connection. Open commands fail."""
        self._stopping = True
        self._box.wake()
        self._thread.join(timeout=10)

    def reply(self, reply: Reply) -> None:
        """Pass the target's answer on."""
        self._box.put(reply)

    def connected(self, conn: Connection) -> None:
        """Hand over an authenticated connection to the peer. It replaces one that stands."""
        self._box.put(Incoming(conn))

    def joined(self, conn: Connection) -> None:
        """Hand over one more authenticated connection of the present link; one of another link is closed."""
        self._box.put(Incoming(conn, more=True))

    @property
    def connected_now(self) -> bool:
        """Whether a connection to the peer stands at this moment; asks without waking the thread."""
        return self._bundle is not None

    def retune(self) -> None:
        """Take up changed transfer settings."""
        self._box.put(Retune())

    def knock(self) -> None:
        """Call the peer at once: it has asked for it."""
        self._box.put(Knock())

    def look_again(self) -> None:
        """Another pair of the group has changed this node's part in it: a pair that waits may find more now."""
        self._box.put(LookAgain())

    def nudge(self) -> None:
        """A peer below has acknowledged: what is told to the one above may grow."""
        self._box.wake()

    def evict(self) -> None:
        """Let go of the group's journal soon: another pair's peer is to feed it."""
        self._box.put(Evicted())

    def not_connected(self, reason: str) -> None:
        """Report that dialling failed."""
        self._box.put(LinkDown(0, reason))

    def command(self, op: str, timeout_s: float, **args: Any) -> dict[str, Any]:
        """Have the session carry out a command and return its result. Raises as Mailbox.command."""
        return self._box.command(op, args, timeout_s)

    def facts(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return Session.facts() and what the data path knows: bytes and records moved, the peer's last beat."""
        return self._box.query(timeout_s)

    @property
    def refused(self) -> tuple[str, str] | None:
        """Label and cause of the decision that refused this pair, None while it is not refused."""
        decision = self._session.decision
        if self._session.state is not State.REFUSED or decision is None:
            return None
        return decision.label, decision.cause

    @property
    def copies(self) -> dict[str, int]:
        """Of the peer that we feed, and the nodes below it: those that hold a complete copy, as last heard, with the
        last record each is known to have."""
        session, report = self._session, self._session.peer_report
        if session.status.get("upstream") == session.peer:
            return {}
        found = numbers(report.get("copies"))
        if session.was_complete:
            found[session.peer] = max(session.acked[0], int(report.get("seq") or 0))
        return found

    @property
    def names(self) -> dict[str, str]:
        """What the peer calls other nodes."""
        return texts(self._session.peer_report.get("names"))

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        why: FarstripeError | None = None
        try:
            while not self._stopping:
                self._round()
        except FarstripeError as exc:  # a disk that is full, or broken
            log.error("pair %s: the link thread ended: %s", self._around.name, exc)
            self._around.event("internal-error", {"message": f"the pair's thread ended: {exc.message}"})
            why = exc
        except Exception:  # outermost loop: a defect of ours; the process goes on for the other pairs
            log.exception("pair %s: the link thread failed", self._around.name)
            self._around.event("internal-error", {"message": "the pair's thread failed; see the replicator's log"})
        self._flow.end()
        self._drop_link(gently=True)
        self._around.claims.release(self)
        self._box.close(why)
        if not self._stopping:
            self._around.failed()

    def _round(self) -> None:
        now = time.monotonic()
        for item in self._box.take():
            self._take(item, now)
            self._fed = True
        more = self._move(now)
        now = time.monotonic()  # a sync may have taken its time; what came meanwhile was read first
        if self._fed:
            self._deadline, self._fed = self._next_tick(), False
        deadline = self._deadline
        if deadline is not None and (now >= deadline or self._ticks_early(deadline, now)):
            self._tick(now)
            deadline = self._deadline = self._next_tick()
        self._sleep(now, more, deadline)

    def _ticks_early(self, deadline: float, now: float) -> bool:
        """Whether what is due soon is done now that we are awake; and the end of a rest is told at once."""
        if self._flow.rests and not self._flow.quiet(now):
            return True
        return now >= deadline - QUIET_SLACK_S and self._flow.quiet(now)

    def _tick(self, now: float) -> None:
        """Tell the session the time, and whether another link beats for this one."""
        self._last_tick = now
        flow, pulse, instance = self._flow, self._around.pulse, self._peer_instance
        quiet = flow.quiet(now)
        self._session.beside = self._around.beside()
        rests = quiet and flow.flows and bool(instance) and pulse.rests(self, instance, self._stir)
        backed = self._session.backed
        self._feed(Tick(self._last_rx, quiet, rests, pulse.heard(instance) if instance else 0.0), now)
        flow.rest(self._session.rests)
        if backed and quiet and not self._session.backed:
            pulse.fails(self)

    def _stir(self) -> None:
        self._box.put(Stir())

    def _next_tick(self) -> float | None:
        """When the session wants a Tick; at most every MIN_TICK_S, also while what it waits for is late."""
        deadline = self._session.next_deadline()
        return None if deadline is None else max(deadline, self._last_tick + MIN_TICK_S)

    def _move(self, now: float) -> bool:
        """Read and write what the connection has and takes. Returns whether to come back without sleeping."""
        bundle, flow = self._bundle, self._flow
        if bundle is None:
            return False
        link = self._link
        try:
            bundle.flush()
            more = self._read(bundle, now)
            if self._bundle is bundle:
                self._share_policy(bundle)
                if flow.settings.connections > len(bundle.lanes):
                    self._keep_connections(bundle, now)
                if flow.work(now):
                    self._session.caught_up(now)
                    self._fed = True
            return more
        except Lost as exc:
            self._lost(link, str(exc), now)
        except ProtocolError as exc:
            self._breach(link, exc, now)
        except Stopped as exc:
            self._stopped(link, exc, now)
        return True

    def _read(self, bundle: Bundle, now: float) -> bool:
        """Take frames of all connections; returns whether more wait here."""
        flow = self._flow
        if flow.blocked:
            self._last_rx = now  # we are the ones who do not read; that is no silence of the peer's
        if flow.blocked or bundle.waiting:
            flow.unblock(bundle)
        more = False
        for lane in bundle.lanes:
            if lane.waiting is not None or (lane.number and not flow.flows):
                if lane.hung_up:
                    raise lane.lost(Lost("the peer closed the connection"))  # what it brought will be sent again
                continue
            if not lane.readable:
                continue
            try:
                lane.readable = self._read_lane(bundle, lane, now)
            except Lost as exc:
                raise lane.lost(exc) from exc
            if self._bundle is not bundle:
                return True
            more = more or lane.readable
        if bundle.waiting and not flow.blocked and flow.unblock(bundle):
            return True
        return more

    def _read_lane(self, bundle: Bundle, lane: Lane, now: float) -> bool:
        """Take frames of one connection; returns whether more wait there."""
        flow, conn, newest_ack = self._flow, lane.conn, None
        link = self._link
        before = conn.bytes_in
        more = True
        for _ in range(FRAMES_A_ROUND):
            found = conn.next_frame()
            if found is None:
                more = False
                break
            kind, flags, first_seq, body = found
            if kind == wire.CONTROL:
                self._last_rx = now
                flow.count_other(lane, body)
                if newest_ack is not None:
                    self._feed(Acked(link, *newest_ack), now)
                    newest_ack = None
                self._control(link, wire.parse_control(body), now)
                if self._bundle is not bundle:
                    return True
            else:
                newest_ack = flow.take_frame(lane, kind, flags, first_seq, body, now) or newest_ack
                if lane.waiting is not None:
                    more = False
                    break
            if not conn.unread():
                more = False
                break
        if conn.bytes_in != before:
            self._last_rx = now
        if newest_ack is not None:
            if not self._session.noted(link, newest_ack, now):
                self._feed(Acked(link, *newest_ack), now)
            if flow.waited_for:
                self._around.acked()
        return more and self._bundle is bundle

    def _control(self, link: int, frame: dict[str, Any], now: float) -> None:
        """Policy and transfer frames are between the shells; everything else is the session's."""
        kind = frame.get("t")
        if kind in ("ping", "pong"):
            self._flow.heard_of_tree(frame.get("tree_durable"))
            self._note_instance(frame.get("instance"), now)
        if kind == "transfer":
            self._take_transfer(frame)
        elif kind != "policy":
            self._feed(FrameIn(link, frame), now)
        elif self._flow.receiver is not None:
            policy = frame.get("policy")
            if not isinstance(policy, dict):
                raise ProtocolError("the peer sent a policy that is none")
            self._flow.receiver.durable_acks = policy.get("mode") == "sync" and policy.get("ack") == "durable"
            self._around.ask(AskTarget(0, "group.policy", policy))

    def _note_instance(self, instance: object, now: float) -> None:
        """The peer says which process is at the other end."""
        if isinstance(instance, str) and instance:
            self._peer_instance = instance
            self._around.pulse.beat(instance, now)

    def _take_transfer(self, frame: dict[str, Any]) -> None:
        """The peer, which ships, states how: go by it, and keep it for when the roles change."""
        if self._flow.receiver is None:
            return
        found = frame.get("settings")
        try:
            settings = from_map(found if isinstance(found, dict) else {})
        except BadInput as exc:
            raise ProtocolError(f"the peer sent transfer settings that are none: {exc.message}") from exc
        self._flow.tune(settings)
        if settings != self._around.transfer():
            self._around.persist(settings.to_map())

    def _state_transfer(self) -> None:
        """Tell the peer how we ship."""
        if self._bundle is not None and self._flow.shipper is not None:
            self._bundle.send(wire.control({"t": "transfer", "settings": self._flow.settings.to_map()}))

    def _keep_connections(self, bundle: Bundle, now: float) -> None:
        """The side that makes the connections adds those that are wanted beside the first."""
        if self._session.dials and self._flow.flows:
            missing = bundle.to_open(now, self._flow.settings.connections)
            if missing:
                self._around.open_more(bundle.name, missing)

    def _share_policy(self, bundle: Bundle) -> None:
        """Tell the peer how it is to acknowledge, and what holds when it becomes primary."""
        status = self._session.status
        if status is self._policy_looked_up or self._flow.shipper is None:
            return
        self._policy_looked_up = status
        policy = status.get("policy")
        if policy and policy != self._shared_policy:
            self._shared_policy = dict(policy)
            bundle.send(wire.control({"t": "policy", "policy": self._shared_policy}))

    def _sleep(self, now: float, more: bool, deadline: float | None) -> None:
        """Wait for the doorbell, the connection, the inbox or the next Tick, due at `deadline`."""
        bundle, flow = self._bundle, self._flow
        timeout_s = 0.0
        if not more:
            timeout_s = min(REST_SLEEP_S if flow.rests else MAX_SLEEP_S, flow.next_work(now))
            if deadline is not None and deadline - now < timeout_s:
                timeout_s = max(0.0, deadline - now)
            if bundle is not None and not flow.may_sleep(bundle, now):
                timeout_s = 0.0
        files = flow.files
        bell = files.own_bell if files is not None else None  # the target rings when it has records, and at its start
        for fd, what in self._watch(bundle, bell).poll(timeout_s * 1000 if timeout_s else 0):
            lane = bundle.lane(fd) if bundle is not None else None
            if lane is not None:
                lane.readable, lane.hung_up = True, bool(what & _ENDED)
            elif bell is not None and fd == bell.fileno():
                bell.clear()
            else:
                self._box.clear_wake()
        flow.awake()

    def _watch(self, bundle: Bundle | None, bell: Doorbell | None) -> select.poll:
        """Return a poll object for the inbox, the connections and the doorbell; the last one if nothing has changed."""
        events = bundle.wanted(self._flow.flows) if bundle is not None else ()
        wanted = (bundle, bell, events)
        if self._poller is None or wanted != self._watched:
            self._watched = wanted
            self._poller = select.poll()
            self._poller.register(self._box.fileno(), select.POLLIN)
            for fd, what in events:
                self._poller.register(fd, what)
            if bell is not None:
                self._poller.register(bell.fileno(), select.POLLIN)
        return self._poller

    # -- events ---------------------------------------------------------------------------------------------------

    def _take(self, item: Item, now: float) -> None:
        if isinstance(item, Incoming) and item.more:
            if self._bundle is None or not self._bundle.add(item.conn):
                item.conn.close(gently=False)
        elif isinstance(item, Incoming):
            if self._bundle is not None:
                self._lost(self._link, "the peer made a new connection", now)
            self._bundle = Bundle(item.conn, item.conn.bundle)
            self._link += 1
            self._last_rx = now
            self._feed(LinkUp(self._link), now)
        elif isinstance(item, Knock):
            self._session.hurry(now)
        elif isinstance(item, Retune):
            self._retune(now)
        elif isinstance(item, LookAgain):
            self._obey(self._session.look_again(now), now)
        elif isinstance(item, Stir):
            if self._bundle is not None:
                self._tick(now)
        elif isinstance(item, Evicted):
            if self._around.claims.holder is self and self._bundle is not None:
                self._lost(self._link, "another peer feeds this group now", now)
        elif isinstance(item, Query):
            item.future.set_result(self._facts(now))
        else:
            self._feed(item, now)

    def _retune(self, now: float) -> None:
        try:
            if self._flow.shipper is not None:
                self._flow.tune(self._around.transfer())
                self._state_transfer()
        except Lost as exc:
            self._lost(self._link, str(exc), now)

    def _facts(self, now: float) -> dict[str, Any]:
        facts = self._session.facts(now)
        bundle, flow = self._bundle, self._flow
        facts["bytes_in"], facts["bytes_out"] = (bundle.bytes_in, bundle.bytes_out) if bundle else (0, 0)
        facts["transfer"] = flow.facts()
        facts["records"] = flow.records
        facts |= flow.positions(now)
        facts["peer_pos"] = max(facts.get("peer_pos", 0), facts["told_seq"])
        return facts

    def _feed(self, event: Event, now: float) -> None:
        """Give the session an event and carry out what it wants."""
        self._fed = True
        try:
            effects = self._session.handle(event, now)
        except ProtocolError as exc:
            if isinstance(event, FrameIn):
                raise
            self._not_expected(event, exc)
            return
        self._obey(effects, now)

    def _obey(self, effects: list[Effect], now: float) -> None:
        for effect in effects:
            if not self._carry_out(effect, now) and isinstance(effect, ClaimJournal):
                break  # what follows rests on it
        if not self._flow.flows:
            self._around.pulse.leave(self)
        claims = self._around.claims
        if claims.holder is self and not self._session.claims:
            claims.release(self)

    def _not_expected(self, event: Event, exc: ProtocolError) -> None:
        if isinstance(event, Command):
            self._box.answer(Answer(event.id, error=to_map(Refused(exc.message))))
        elif isinstance(event, LinkUp):
            self._drop_link(gently=True)
        elif not isinstance(exc, NotExpected):
            log.warning("pair %s: %s", self._around.name, exc)
        else:
            log.info("pair %s: %s", self._around.name, exc)

    def _lost(self, link: int, reason: str, now: float) -> None:
        self._flow.end()
        self._drop_link(gently=False)
        self._feed(LinkDown(link, reason), now)

    def _breach(self, link: int, exc: ProtocolError, now: float) -> None:
        """The peer broke the protocol."""
        self._around.event("protocol-error", {"message": exc.message})
        self._lost(link, exc.message, now)

    def _stopped(self, link: int, stopped: Stopped, now: float) -> None:
        self._flow.end()
        self._feed(stopped.event(link), now)

    # -- effects --------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect, now: float) -> bool:
        """Do what the session wants; what fails here comes back to it as an event. Returns whether it was done."""
        link = self._link
        try:
            self._do(effect)
        except (Lost, ProtocolError) as exc:  # a frame too large to send ends the link as well
            self._box.put(LinkDown(link, str(exc)))
            self._flow.end()
            self._drop_link(gently=False)
        except Stopped as exc:
            self._flow.end()
            self._box.put(exc.event(link))
        else:
            return True
        return False

    def _do(self, effect: Effect) -> None:
        around, flow, bundle = self._around, self._flow, self._bundle
        if isinstance(effect, Send):
            if bundle is not None:
                bundle.send(wire.control(self._named(effect.frame)))
        elif isinstance(effect, AskTarget):
            if effect.op == "group.status" and effect.args.get("settle"):
                around.claims.look(self)  # what the answer says of the journal holds while nobody else appends to it
            around.ask(effect)
        elif isinstance(effect, ClaimJournal):
            if bundle is not None and not around.claims.take(self, self.evict):
                raise Lost("another peer fed this group meanwhile")
        elif isinstance(effect, Log):
            around.event(effect.name, effect.detail)
        elif isinstance(effect, StartShipping):
            if bundle is not None:
                self._shared_policy = self._policy_looked_up = None
                flow.ship(bundle, effect.from_seq, around.transfer(), effect.incarnation)
                self._state_transfer()
        elif isinstance(effect, StartReceiving):
            if bundle is not None:
                flow.receive(bundle, effect.expect_seq, effect.min_epoch)
        elif isinstance(effect, StopShipping | StopReceiving):
            flow.end()
        elif isinstance(effect, CloseLink):
            flow.end()
            self._drop_link(gently=True)
        elif isinstance(effect, Dial):
            around.dial()
        elif isinstance(effect, Persist):
            around.persist(effect.changes)
        else:
            self._box.answer(effect)

    def _named(self, frame: dict[str, Any]) -> dict[str, Any]:
        """A heartbeat says from which process it comes, and how long the journal has had no room here, in seconds."""
        if frame.get("t") != "ping":
            return frame
        return {**frame, "instance": self._around.pulse.instance, "full_s": int(self._flow.full_s(time.monotonic()))}

    def _drop_link(self, *, gently: bool) -> None:
        bundle, self._bundle = self._bundle, None
        self._peer_instance = ""
        self._flow.rest(False)
        self._around.pulse.leave(self)
        if bundle is not None:
            bundle.close(gently=gently)
