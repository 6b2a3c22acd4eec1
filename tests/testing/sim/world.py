"""One run: two nodes, a wire, hosts that write, an operator, and a nemesis; first safety under faults, then liveness.

The seed draws the options (mode, policies, sizes, which faults occur at all and how often), then everything else.
After every event the oracles look. Then the faults stop, everything that was down is started, the operator clears
what only an operator can, and within LIVENESS_S the pair must be in sync and both images equal.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from replicator.capture import copier, service
from replicator.capture.engine import GroupEngine
from replicator.capture.state import OK, PRIMARY, SECONDARY, Policy
from replicator.core.events import Log
from replicator.core.transitions import State
from replicator.daemon.link import shipper
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ
from replicator.journal.ring import DATA_START
from tests.testing.sim import oracles
from tests.testing.sim.clock import Clock
from tests.testing.sim.nemesis import FAULT_KINDS, Nemesis
from tests.testing.sim.network import Network
from tests.testing.sim.node import Node, is_primary
from tests.testing.sim.target import Request
from tests.testing.sim.truth import Truth, Violation

GROUP = "cd" * 16
BLOCK = 65536
LIVENESS_S = 90.0


@dataclass
class Options:
    """How one run is set up; drawn from its seed."""

    mode: str = "async"
    ack: str = "receive"
    on_loss: str = "degrade"
    on_full: str = "bitmap"
    loss_timeout_s: float = 1.0
    full_timeout_s: float = 0.5
    blocks: tuple[int, ...] = (5, 3)
    journal_bytes: int = DATA_START + (1 << 20)
    write_gap_s: float = 0.02
    duration_s: float = 8.0
    fault_gap_s: float = 1.0
    faults: tuple[str, ...] = ()
    mid_write: float = 0.5
    replay: float = 0.0
    late: float = 0.0
    delay_s: float = 0.002
    rotate_blocks: int = 2
    first_writes: int = 6
    lazy: float = 1.0
    flushes: float = 0.1

    @classmethod
    def draw(cls, rng: random.Random) -> Options:
        """Draw a run's options: many faults are off in any one run, so that those which are on meet rare states."""
        return cls(
            mode=rng.choice(("async", "sync")),
            ack=rng.choice(("receive", "durable")),
            on_loss=rng.choice(("stall", "degrade")),
            on_full=rng.choice(("bitmap", "bitmap", "stall", "fail")),
            loss_timeout_s=rng.choice((0.3, 1.0, 6.0)),
            full_timeout_s=rng.choice((0.1, 0.5, 2.0)),
            blocks=rng.choice((tuple(rng.randint(2, 6) for _ in range(rng.randint(1, 3))), (24,))),
            write_gap_s=rng.choice((0.01, 0.03, 0.08)),
            duration_s=rng.choice((4.0, 8.0, 12.0)),
            fault_gap_s=rng.choice((0.4, 0.8, 2.0)),
            faults=tuple(kind for kind in FAULT_KINDS if rng.random() < 0.4),
            mid_write=rng.choice((0.0, 0.5, 0.9)),
            replay=rng.choice((0.0, 0.1)),
            late=rng.choice((0.0, 0.5)),
            delay_s=rng.choice((0.0005, 0.003, 0.03)),
            rotate_blocks=rng.choice((1, 3, 6)),
            first_writes=rng.choice((0, 6, 20)),
            lazy=rng.choice((1.0, 1.0, 8.0, 30.0)),
            flushes=rng.choice((0.1, 0.02, 0.0)),
        )


class SimTime:
    """Stands in for the time module inside GroupService."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._clock.now

    def sleep(self, seconds: float) -> None:
        """Nothing is ever in flight between two events, so nobody has to sleep."""
        raise Violation("the service slept: a change was still in flight")


@dataclass
class Report:
    """Outcome of a run."""

    seed: int
    options: Options
    trace_hash: str
    events: int
    writes: int
    takeovers: int
    labels: dict[str, int] = field(default_factory=dict)


class World:
    """A whole run."""

    def __init__(self, seed: int, options: Options | None = None, *, verbose: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        drawn = Options.draw(self.rng)
        self.options = options or drawn
        o = self.options
        self.clock = Clock(verbose=verbose)
        self.network = Network(self.clock, random.Random(self.rng.getrandbits(64)))
        self.network.delay_s, self.network.replay, self.network.late = o.delay_s, o.replay, o.late
        sizes = [n * BLOCK for n in o.blocks]
        self.truth = Truth(sizes)
        ids = ["aa" * 16, "bb" * 16]
        self.rng.shuffle(ids)
        self.a = Node(self, "a", ids[0], sizes, o.journal_bytes)
        self.b = Node(self, "b", ids[1], sizes, o.journal_bytes)
        self.host_rng = random.Random(self.rng.getrandbits(64))
        self.nemesis_rng = random.Random(self.rng.getrandbits(64))
        self.consents: set[str] = set()
        """Nodes that the operator named for discarding, until it happened."""
        self.calm = False
        self.writes = self.takeovers = 0
        self.labels: dict[str, int] = {}
        self._token = 0
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._power: dict[str, bool] = {"a": False, "b": False}
        self._before: dict[str, tuple[Any, ...]] = {}

    @property
    def nodes(self) -> tuple[Node, Node]:
        """Both."""
        return self.a, self.b

    def other(self, node: Node) -> Node:
        """The peer of a node."""
        return self.b if node is self.a else self.a

    # -- a run ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Run it all. Raises Violation."""
        kept = service.time, copier.ROTATE_MIN_BLOCKS, shipper.RUN_BYTES
        service.time = SimTime(self.clock)  # type: ignore[attr-defined,assignment]  # the module's name for time
        copier.ROTATE_MIN_BLOCKS = self.options.rotate_blocks
        shipper.RUN_BYTES = 24 << 10
        try:
            self.clock.note(f"seed {self.seed} {asdict(self.options)}")
            self._set_up()
            self.clock.after_event = self._look
            self.clock.after(0.0, self._host)
            Nemesis(self, self.nemesis_rng).begin()
            self.clock.run_until(self.options.duration_s)
            self._live()
        finally:
            service.time, copier.ROTATE_MIN_BLOCKS, shipper.RUN_BYTES = kept  # type: ignore[assignment]
        return Report(
            self.seed,
            self.options,
            self.clock.trace_hash(),
            self.clock.events,
            self.writes,
            self.takeovers,
            self.labels,
        )

    def _set_up(self) -> None:
        o = self.options
        policy = {
            "mode": o.mode, "ack": o.ack, "on_loss": o.on_loss, "on_full": o.on_full,
            "loss_timeout_s": o.loss_timeout_s, "full_timeout_s": o.full_timeout_s,
        }  # fmt: skip
        self.a.make(GROUP, PRIMARY, Policy(**policy))
        assert self.a.target is not None
        for _ in range(o.first_writes):
            self.a.target.submit(self._request())
        self.a.target.submit(Request("flush"))  # the truth begins with a stable image
        self.truth.genesis = [bytes(self.a.pool.raw(i)) for i in range(len(self.truth.sizes))]
        self.b.make(GROUP, SECONDARY, Policy(**policy))
        self.a.target.service.arm(self.b.node_id)
        self.b.target.service.arm(self.a.node_id, upstream=True)
        self.a.start_replicator(self.b, dials=True)
        self.b.start_replicator(self.a, dials=False)

    # -- hosts ----------------------------------------------------------------------------------------------------

    def _request(self) -> Request:
        rng = self.host_rng
        volume = rng.randrange(len(self.truth.sizes))
        sectors = self.truth.sizes[volume] // 512
        count = rng.choice((1, 2, 8, 16, 24))
        first = rng.randrange(sectors - count)
        if rng.random() < 0.3:
            first = first % 40  # a hot spot, overwritten often
        self._token += 1
        flushes = self.options.flushes
        kind = rng.choices(("write", "zero", "trim", "flush"), (80, 5, 5, 100 * flushes))[0]
        data = b"%15d|" % self._token * (count * 32) if kind == "write" else b""
        return Request(kind, volume, first * 512, count * 512, data, fua=rng.random() < flushes)

    def _host(self) -> None:
        gap = self.options.write_gap_s * (4 if self.calm else 1)
        self.clock.after(gap * self.host_rng.expovariate(1.0), self._host)
        primaries = [node for node in self.nodes if is_primary(node)]
        for node in primaries:
            target = node.target
            if target is None or len(target.queue) > 4 or len(target.waiting) > 16:
                continue
            if len(primaries) == 1 or self.host_rng.random() < 0.5:
                request = self._request()
                self.writes += 1
                node.run("target", lambda target=target, request=request: target.submit(request))

    def answered(self, node: Node, request: Request) -> None:
        """A host has its answer."""
        if request.outcome in ("ok", "ok-alone") and request.kind != "flush" and request.seq > 0:
            node.answered_alone.append((request.epoch, request.seq))

    # -- oracles --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at whatever changed since the last event."""
        changed = False
        for node in self.nodes:
            if node.target is None:
                self._seen.pop(node.name, None)
                continue
            page, state = node.target.engine.page, node.target.engine.state
            now = (
                page[HEAD_SEQ],
                page[APPLIED_SEQ],
                state.copy,
                state.role,
                state.mode,
                len(state.hist),
                tuple(state.bitmaps.values()),
            )
            if self._seen.get(node.name) != now:
                self._seen[node.name] = now
                changed = True
                oracles.check_prefix(node)
            oracles.check_honest(node)
        if changed:
            oracles.check_tracked(self.a, self.b)

    def power_lost(self, node: Node) -> None:
        """A node is about to lose power: promises that only its page cache kept are void."""
        self._power[node.name] = True

    def recovered(self, node: Node, engine: GroupEngine) -> None:
        """A target was started again."""
        power, self._power[node.name] = self._power[node.name], False
        oracles.check_recovered(node, engine, power=power)
        if power:
            hist = [(int(e), int(b)) for e, b in engine.state.hist]
            if engine.state.copy == OK:  # else it gave some up when it was attached, perhaps in its last moment
                oracles.check_durable_promises(node, hist, engine.pos)
            self.truth.promises = [
                p
                for p in self.truth.promises
                if (p.durable and engine.state.copy == OK)
                or p.holder != node.name
                or self.truth.holds(hist, engine.pos, p.epoch, p.seq)
            ]
        node.written_at = (engine.epoch, engine.pos) if engine.state.role == PRIMARY and engine.state.hist else None

    def attaching(self, node: Node, args: dict[str, Any]) -> None:
        """A target is about to become the target of a copy: what does it give up?"""
        hist = [(int(e), int(b)) for e, b in args["hist"]]
        allowed = node.node_id in self.consents
        oracles.check_consent(node, hist, args["p"], allowed)
        oracles.check_promises_kept(node, hist, args["p"], allowed)

    def called(self, node: Node, op: str, args: dict[str, Any], result: dict[str, Any]) -> None:
        """A target carried out a control operation."""
        if op == "group.promote":
            self.takeovers += 1
            node.flushed_at = node.written_at = None
            oracles.check_promises(node)
            if node.replicator is not None and node.replicator.session._takeover_id is None:
                oracles.check_handover(self.other(node), node)
        elif op == "group.attach":
            hist = [(int(e), int(b)) for e, b in args["hist"]]
            self.consents.discard(node.node_id)
            node.answered_alone.clear()
            # What the operator gave up is no promise any more.
            self.truth.promises = [
                p
                for p in self.truth.promises
                if p.holder != node.name or self.truth.holds(hist, args["p"], p.epoch, p.seq)
            ]
            node.flushed_at = node.written_at = None
            node.leftover, node._epochs = [], []
        elif op == "group.demote":
            node.flushed_at = node.written_at = None

    def logged(self, node: Node, log: Log) -> None:
        """A session logged something."""
        if log.name == "handshake":
            label = str(log.detail["label"])
            self.labels[label] = self.labels.get(label, 0) + 1

    # -- starting and commanding ----------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """Start what does not run of a node, once it is quite dead."""
        if node.armed:
            self.clock.after(0.5, self.start, node)
            return
        node.start_target()
        node.start_replicator(self.other(node), dials=node is self.a)

    def heal(self) -> None:
        """The network is as the options say."""
        self.network.down = False
        self.network.delay_s = self.options.delay_s

    def command(self, node: Node, op: str, **args: Any) -> None:
        """An operator's command on a node, if its processes run."""
        replicator = node.replicator
        if args.get("discard"):
            self.consents.add(args["discard"])
        if replicator is not None and node.target is not None:
            node.run("replicator", lambda: replicator.command(op, **args))

    # -- liveness -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """No more faults: everything must come together."""
        self.calm = True
        self.options = replace(self.options, lazy=1.0)
        self.clock.note("the faults stop")
        for node in self.nodes:
            if node.armed:
                node._disarm(node.armed)
            node.disk.heal("journal")
            if node.target is not None and node.target.engine.failed:
                node.die("power")
        self.heal()
        self.network.replay = 0.0
        self.network.break_all("the network is mended")
        deadline = self.clock.now + LIVENESS_S
        while self.clock.now < deadline:
            for node in self.nodes:
                self.start(node)
            self.clock.run_until(self.clock.now + 1.0)
            self._operator()
            if self._in_sync():
                return
        states = {n.name: self._describe(n) for n in self.nodes}
        raise Violation(f"liveness: not in sync {LIVENESS_S:g} s after the last fault: {states}")

    def _describe(self, node: Node) -> str:
        if node.target is None or node.replicator is None:
            return "down"
        engine, session = node.target.engine, node.replicator.session
        label = session.decision.label if session.decision else ""
        return (
            f"{engine.state.role} {engine.state.copy} {engine.state.mode} pos {engine.pos} "
            f"session {session.state.value} {label} ({session.link_reason}) failed={engine.failed!r}"
        )

    def _operator(self) -> None:
        """What a person does who reads `farstripe explain`."""
        sessions = [n.replicator.session for n in self.nodes if n.replicator is not None]
        if len(sessions) < 2:
            return
        for node, session in zip(self.nodes, sessions, strict=True):
            label = session.decision.label if session.decision and session.link else ""
            if session.state is State.STOPPED or (session.state is State.WAITING and label == "split-wanted"):
                self.command(node, "resync")
            elif session.state is State.REFUSED and session.decision is not None and node is self.a:
                self.command(node, "resync", discard=session.decision.follow)
            elif session.state is State.WAITING and label == "no-primary" and node is self._best():
                self.command(node, "takeover", force=True)

    def _best(self) -> Node:
        """The node a person would take over on: a consistent one, the one with the newer history."""

        def rank(node: Node) -> tuple[bool, Any, int]:
            assert node.target is not None
            engine = node.target.engine
            return engine.state.copy == OK, engine.epoch, engine.pos

        return max(self.nodes, key=rank)

    def _in_sync(self) -> bool:
        targets = [n.target for n in self.nodes]
        if any(t is None or t.engine.failed or t.engine.state.copy != OK for t in targets):
            return False
        if sum(is_primary(n) for n in self.nodes) != 1:
            return False
        primary, secondary = self.nodes if is_primary(self.a) else (self.b, self.a)
        assert primary.target is not None and secondary.target is not None
        if primary.replicator is None or secondary.replicator is None:
            return False
        engine = primary.target.engine
        wanted = (State.SYNC_SOURCE,) if engine.state.policy.mode == "sync" else (State.SOURCE, State.SYNC_SOURCE)
        if primary.replicator.session.state not in wanted or secondary.replicator.session.state is not State.TARGET:
            return False
        if engine.state.copying or engine.state.degraded or secondary.target.engine.page[APPLIED_SEQ] != engine.pos:
            return False
        if oracles.differing_blocks(primary, secondary):
            raise Violation("in sync, and the images differ")
        return True
