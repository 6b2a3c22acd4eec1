"""One life of a replicator process: for each edge a real session and a real flow, joined as replicator.daemon.link.loop
does. The edges of a process share the claim on the journal.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

from replicator.core import rpo
from replicator.core.errors import FarstripeError, ProtocolError
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
from replicator.core.session import Session
from replicator.core.transfer import Transfer, from_map
from replicator.daemon import pairs
from replicator.daemon.link import wire
from replicator.daemon.link.bundle import Bundle, Lane
from replicator.daemon.link.claims import Claims
from replicator.daemon.link.connection import Lost
from replicator.daemon.link.flow import Flow
from replicator.daemon.link.shipper import Stopped
from tests.testing.sim.network import SimConnection
from tests.testing.sim.storage import SimGroupFiles

if TYPE_CHECKING:
    from tests.testing.sim.node import Node

WORK_S = 0.01
ASK_S = 0.003
PART_TAKEN, PART_LEFT = pairs.PART_TAKEN, pairs.PART_LEFT


class Replicator:
    """A running replicator of a node, with the edges the node has."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.claims = Claims()
        self.edges: dict[str, Edge] = {}
        for name in node.pairs:
            self.add(name)

    def add(self, name: str) -> None:
        """Start the edge with the node of this name."""
        if name not in self.edges:
            self.edges[name] = Edge(self, self.node.world.node(name))

    @property
    def feeding(self) -> Edge | None:
        """The edge over which records come in, or would: the one that claims the journal, else the upstream one."""
        target = self.node.target
        upstream = target.engine.state.upstream if target is not None else ""
        holder = self.claims.holder
        edges = self.edges.values()
        claiming = next((e for e in edges if e is holder), None)
        return claiming or next((e for e in edges if e.peer.node_id == upstream), None)


class Edge:
    """The session of a running replicator with one peer."""

    def __init__(self, process: Replicator, peer: Node) -> None:
        node = process.node
        self.process = process
        self.node, self.peer = node, peer
        self.place = f"{node.name}<{peer.name}"
        dials = node.name < peer.name
        pair = node.pairs[peer.name]
        self.rng: random.Random = node.rng
        self.clock = node.clock
        self.session = Session(
            node.node_id,
            peer.node_id,
            dials=dials,
            rng=random.Random(node.rng.getrandbits(64)),
            split=bool(pair.get("split")),
            handover=str(pair.get("handover") or ""),
        )
        self.flow = Flow(self._open_files)  # type: ignore[arg-type]  # files by shape
        self.conn: SimConnection | None = None
        self.bundle: Bundle | None = None
        self.link = 0
        self.links: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self._last_rx = 0.0
        self._asks: deque[AskTarget] = deque()
        self._held: dict[SimConnection, deque[bytes]] = {}
        self._command = 0
        self._shared_policy: dict[str, Any] | None = None
        self.settings: Transfer = node.world.transfer
        self.clock.after(WORK_S, self._work)

    @property
    def alive(self) -> bool:
        """Whether this process still runs."""
        return self.node.replicator is self.process

    def _open_files(self) -> SimGroupFiles:
        slot = self.session.status["edge"]
        return SimGroupFiles(self.node.disk, self.node.page, self.node.boot, slot)

    def claim(self) -> dict[str, Any]:
        """What status says would be lost with the primary, as core.rpo gives it, from this edge."""
        now, target = self.clock.now, self.node.target
        assert target is not None
        facts = {**self.session.facts(now), **self.flow.positions(now)}
        missing, state = facts["missing"] or {}, target.engine.state
        pair = {"facts": facts, "lag": missing.get("writes"), "lag_bytes": missing.get("bytes"), "lag_s": None}
        return rpo.rpo({"role": state.role, "state": state.copy, "copying": False}, pair)

    # -- rounds ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self.alive:
            return
        self.clock.after(WORK_S * (0.6 + 0.8 * self.rng.random()), self._work)
        self.node.run("replicator", self._round)

    def _round(self) -> None:
        now = self.clock.now
        deadline = self.session.next_deadline()
        if deadline is not None and now >= deadline:
            self.feed(Tick(self._last_rx, self.flow.quiet(now)))
        link = self.link
        try:
            if self.conn is not None:
                self._drain_held()
            if self.conn is not None:
                self._share_policy(self.conn)
                self.flow.work(now)
        except Lost as exc:
            self._lost(link, str(exc))
        except ProtocolError as exc:
            self._breach(link, exc)
        except Stopped as exc:
            self._stopped(link, exc)

    # -- the wire -------------------------------------------------------------------------------------------------

    def linked(self, conn: SimConnection) -> None:
        """A connection stands; it replaces the one before."""
        if self.alive:
            self.node.run("replicator", lambda: self._linked(conn))
        else:
            conn.close()

    def _linked(self, conn: SimConnection) -> None:
        if self.conn is not None:
            self._lost(self.link, "the peer made a new connection")
        self.conn = conn
        self.bundle = Bundle(conn, conn.bundle)  # type: ignore[arg-type]  # connections by shape
        for more in conn.more:
            self.bundle.add(more)  # type: ignore[arg-type]
        self._held = {one: deque() for one in (conn, *conn.more)}
        self.link += 1
        self.links[conn.number] = self.link
        self._last_rx = self.clock.now
        self.feed(LinkUp(self.link))

    def unlinked(self, conn: SimConnection, reason: str) -> None:
        """The connection broke."""
        if self.alive and conn in self._held:
            self.node.run("replicator", lambda: self._lost(self.link, reason))

    def frame(self, conn: SimConnection, data: bytes) -> None:
        """A whole frame arrived, perhaps of an old connection."""
        if self.alive:
            self.node.run("replicator", lambda: self._frame(conn, data))

    def _frame(self, conn: SimConnection, data: bytes) -> None:
        if conn not in self._held:
            if data[4] == wire.CONTROL and conn.number in self.links:
                self._late(FrameIn(self.links[conn.number], wire.parse_control(memoryview(data)[wire.HEAD_BYTES :])))
            return
        self._last_rx = self.clock.now
        self._held[conn].append(data)
        link = self.link
        try:
            self._drain_held()
            if self.conn is not None:
                self.flow.work(self.clock.now)
        except Lost as exc:
            self._lost(link, str(exc))
        except ProtocolError as exc:
            self._breach(link, exc)
        except Stopped as exc:
            self._stopped(link, exc)

    def _late(self, event: FrameIn) -> None:
        """A frame of a former link: the session must not heed it."""
        try:
            self.feed(event)
        except ProtocolError as exc:
            self.node.note(f"late frame refused: {exc.message}")

    def _drain_held(self) -> None:
        """Take frames, in order on each connection; what waits for room, or for what comes before it, is left there."""
        bundle = self.bundle
        assert bundle is not None
        moved = True
        while moved and self.bundle is bundle:
            moved = (bundle.waiting or self.flow.blocked) and self.flow.unblock(bundle)
            for lane in bundle.lanes:
                held = self._held.get(lane.conn, ())  # type: ignore[call-overload]  # a connection by shape
                while held and lane.waiting is None and (not lane.number or self.flow.flows):
                    moved = True
                    self._take(lane, held.popleft())

    def _take(self, lane: Lane, data: bytes) -> None:
        _, kind, flags, _, first_seq = wire.HEAD.unpack_from(data)
        body = memoryview(data)[wire.HEAD_BYTES :]
        if kind == wire.CONTROL:
            self._control(wire.parse_control(body))
            return
        acked = self.flow.take_frame(lane, kind, flags, first_seq, body, self.clock.now)
        if acked and not self.session.noted(self.link, acked, self.clock.now):
            self.feed(Acked(self.link, *acked))

    def _control(self, frame: dict[str, Any]) -> None:
        """Policy and transfer frames are between the shells; everything else is the session's."""
        if frame.get("t") in ("ping", "pong"):
            self.flow.heard_of_tree(frame.get("tree_durable"))
        if frame.get("t") == "transfer":
            if self.flow.receiver is not None:
                self.flow.tune(from_map(frame["settings"]))
        elif frame.get("t") != "policy":
            self.feed(FrameIn(self.link, frame))
        elif self.flow.receiver is not None:
            policy = frame["policy"]
            self.flow.receiver.durable_acks = policy.get("mode") == "sync" and policy.get("ack") == "durable"
            self._do(AskTarget(0, "group.policy", policy))

    def _share_policy(self, conn: SimConnection) -> None:
        """Tell the peer how it is to acknowledge, and what holds when it becomes primary."""
        policy = self.session.status.get("policy")
        if self.flow.shipper is not None and policy and policy != self._shared_policy:
            self._shared_policy = dict(policy)
            conn.send(wire.control({"t": "policy", "policy": self._shared_policy}))

    def _lost(self, link: int, reason: str) -> None:
        self.flow.end()
        self._drop()
        self.feed(LinkDown(link, reason))

    def _breach(self, link: int, exc: ProtocolError) -> None:
        self.node.note(f"protocol error: {exc.message}")
        self._lost(link, exc.message)

    def _stopped(self, link: int, stopped: Stopped) -> None:
        self.flow.end()
        self.feed(stopped.event(link))

    def _drop(self) -> None:
        conn, self.conn, self.bundle = self.conn, None, None
        self._held = {}
        if conn is not None:
            conn.close()
            for more in conn.more:
                more.drop()

    # -- the session ------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Give the session an event and carry out what it wants."""
        try:
            effects = self.session.handle(event, self.clock.now)
        except ProtocolError as exc:
            if isinstance(event, FrameIn):
                raise
            self.node.note(f"not expected: {exc.message}")
            if isinstance(event, LinkUp):
                self._drop()
            return
        self._obey(effects)
        for effect in effects:
            if (
                isinstance(effect, Log)
                and effect.name == "pair-state"
                and (effect.detail["is"] in PART_TAKEN or effect.detail["was"] in PART_LEFT)
            ):
                self._tell_siblings()

    def _tell_siblings(self) -> None:
        """This node's part in the tree has changed; see replicator.daemon.pairs."""
        for sibling in self.process.edges.values():
            if sibling is not self:
                self.clock.after(0.001, sibling.look_again)

    def look_again(self) -> None:
        """Another edge of this node found something new."""
        if self.alive:
            self.node.run("replicator", lambda: self._obey(self.session.look_again(self.clock.now)))

    def _obey(self, effects: list[Effect]) -> None:
        for effect in effects:
            if not self._carry_out(effect) and isinstance(effect, ClaimJournal):
                break
        claims = self.process.claims
        if claims.holder is self and not self.session.claims:
            claims.release(self)

    def evict(self) -> None:
        """Another edge of this node claims the journal."""
        self.clock.after(0.0, self._evicted)

    def _evicted(self) -> None:
        if self.alive and self.process.claims.holder is self and self.conn is not None:
            self.node.run("replicator", lambda: self._lost(self.link, "another peer feeds this group now"))

    def _carry_out(self, effect: Effect) -> bool:
        link = self.link
        try:
            self._do(effect)
        except Lost as exc:
            self.flow.end()
            self._drop()
            self.clock.after(0.0, self._later, LinkDown(link, str(exc)))
        except Stopped as exc:
            self.flow.end()
            self.clock.after(0.0, self._later, exc.event(link))
        else:
            return True
        return False

    def _later(self, event: Event) -> None:
        if self.alive:
            self.node.run("replicator", lambda: self.feed(event))

    def _do(self, effect: Effect) -> None:
        flow, conn, bundle = self.flow, self.conn, self.bundle
        if isinstance(effect, Send):
            if conn is not None:
                conn.send(wire.control(effect.frame))
        elif isinstance(effect, ClaimJournal):
            if conn is not None and not self.process.claims.take(self, self.evict):
                raise Lost("another peer fed this group meanwhile")
        elif isinstance(effect, AskTarget):
            if effect.op == "group.status" and effect.args.get("settle"):
                self.process.claims.look(self)
            self._asks.append(effect)
            if len(self._asks) == 1:
                self._ask_next()
        elif isinstance(effect, Log):
            self.node.note(f"{effect.name} {effect.detail}")
            self.node.logged(effect)
        elif isinstance(effect, StartShipping):
            if bundle is not None:
                self._shared_policy = None
                flow.ship(bundle, effect.from_seq, self.settings, effect.incarnation)
                bundle.send(wire.control({"t": "transfer", "settings": self.settings.to_map()}))
        elif isinstance(effect, StartReceiving):
            if bundle is not None:
                flow.receive(bundle, effect.expect_seq, effect.min_epoch)
        elif isinstance(effect, StopShipping | StopReceiving):
            flow.end()
        elif isinstance(effect, CloseLink):
            flow.end()
            self._drop()
        elif isinstance(effect, Dial):
            self.node.network.dial(self, self._other_end, self._not_connected)
        elif isinstance(effect, Persist):
            self.node.pairs[self.peer.name].update(effect.changes)
        elif isinstance(effect, Answer):
            self.answers[effect.id] = effect
            self.node.note(f"answer {effect.id} {effect.error and effect.error['message']}")

    def _other_end(self) -> Edge | None:
        process = self.peer.replicator
        return None if process is None else process.edges.get(self.node.name)

    def _not_connected(self, reason: str) -> None:
        self._later(LinkDown(0, reason))

    # -- questions to the target --------------------------------------------------------------------------------------

    def _ask_next(self) -> None:
        self.clock.after(ASK_S * (0.3 + self.rng.random()), self._ask_now)

    def _ask_now(self) -> None:
        """One question at a time. A question that was on its way when this process died may still be carried out."""
        if not self._asks or (not self.alive and self.rng.random() < 0.5):
            return
        question = self._asks[0]
        reply = self._asked(question)
        self.clock.after(ASK_S * self.rng.random(), self._answered, question, reply)

    def _asked(self, question: AskTarget) -> Reply:
        target = self.node.target
        if target is None:
            return Reply(question.token, error="the target does not answer")
        if question.op == "pair.extend_copy":
            return self._ask_above(question)
        if question.op == "group.promote" and not self.process.claims.take_alone(self, self.evict, 0.0):
            return Reply(question.token, error="another peer still feeds this group")
        return self._call(self.node, question.op, question)

    def _ask_above(self, question: AskTarget) -> Reply:
        """Up the tree, as replicator.daemon.tree does; every node and line on the way has to be there."""
        below, here = self.peer, self.node
        for _ in range(len(here.world.nodes)):
            target = here.target
            if target is None or here.replicator is None:
                return Reply(question.token, error=f"{here.name} does not answer")
            state = target.engine.state
            if state.role == "primary":
                return self._call(here, "group.extend_copy", question)
            above = here.world.by_id.get(state.upstream)
            if above is None or above is below or self.node.network.cut_off(here.name, above.name):
                return Reply(question.token, error="no node feeds this one")
            below, here = here, above
        return Reply(question.token, error="the question goes round in a circle")

    def _call(self, node: Node, op: str, question: AskTarget) -> Reply:
        target = node.target
        assert target is not None
        box: dict[str, Any] = {}

        def call() -> None:
            try:
                box["result"] = target.call(op, {**question.args, "peer": self.peer.node_id})
            except (FarstripeError, OSError) as exc:
                box["error"] = str(exc) or type(exc).__name__
                node.note(f"{op} refused: {box['error']}")

        node.run("target", call)
        if "result" in box:
            return Reply(question.token, box["result"])
        return Reply(question.token, error=box.get("error", "the target died"))

    def _answered(self, question: AskTarget, reply: Reply) -> None:
        if not self.alive:
            return
        self._asks.popleft()
        if self._asks:
            self._ask_next()
        if question.token:
            self.node.run("replicator", lambda: self.feed(reply))

    def command(self, op: str, **args: Any) -> int:
        """An operator's command; the answer comes later."""
        self._command += 1
        if op == "takeover":
            target = self.node.target
            args["status"] = dict(target.call("group.status", {"peer": self.peer.node_id})) if target else None
        self.feed(Command(self._command, op, args))
        return self._command
