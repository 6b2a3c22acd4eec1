"""One run: a tree of nodes (most often two), wires, hosts that write, an operator, and a nemesis; first safety under
faults, then liveness.

The seed draws the options (mode, policies, sizes, which faults occur at all and how often), then everything else.
After every event the oracles look. Then the faults stop, everything that was down is started, the operator clears
what only an operator can, and within LIVENESS_S every edge must be in sync and all images equal.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from replicator.capture import copier, fulljournal, journalloss, service, volumeset
from replicator.capture.engine import GroupEngine
from replicator.capture.state import OK, PRIMARY, SECONDARY, Policy
from replicator.core.credits import MIN_WINDOW_BYTES
from replicator.core.errors import MediumError
from replicator.core.events import Log
from replicator.core.transfer import PULL, Transfer
from replicator.core.transitions import State
from replicator.daemon.link import shipper
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ
from replicator.journal.ring import DATA_START
from tests.testing.sim import oracles
from tests.testing.sim.clock import Clock
from tests.testing.sim.lists import ListNemesis
from tests.testing.sim.nemesis import FAULT_KINDS, Nemesis
from tests.testing.sim.network import Network
from tests.testing.sim.node import Node, is_primary
from tests.testing.sim.operator import Operator
from tests.testing.sim.reads import Readers
from tests.testing.sim.replicator import Edge
from tests.testing.sim.target import Request, Target
from tests.testing.sim.truth import Hist, Truth, Violation

GROUP = "cd" * 16
BLOCK = 65536
LIVENESS_S = 90.0
CLAIMS_S = 0.1
"""What nodes say of each other is looked at this often."""
STAND_S = 3.0


_WAYS = (
    Transfer(),
    Transfer(connections=3),
    Transfer(transfer=PULL, window=MIN_WINDOW_BYTES),
    Transfer(connections=2, transfer=PULL, window=MIN_WINDOW_BYTES),
)


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
    parents: tuple[int, ...] = (0,)
    """Of each node after the first: which one feeds it at first."""
    edge_modes: tuple[str, ...] = ()
    """Of each of these edges; `mode` where there is none."""
    retain: str = "durable"
    thrifty: bool = False
    """No node leaves the tree for long: a former primary that is given up is copied to by difference, too."""
    lists: bool = False
    """Volumes join, leave and change their sizes."""
    stands: bool = False
    """Copies stand still for seconds, with journals that get full, and nothing is taken in."""
    reads: bool = False
    """Hosts read, too."""

    @classmethod
    def draw_tree(cls, rng: random.Random) -> Options:
        """Draw the options of a run with three to five nodes: small, so that many can be run."""
        count = rng.choice((3, 3, 3, 4, 5))
        shape = rng.choice(("fan", "chain", "mixed"))
        parents = tuple(0 if shape == "fan" else n if shape == "chain" else rng.randint(0, n) for n in range(count - 1))
        return replace(
            cls.draw(rng),
            parents=parents,
            edge_modes=tuple(rng.choice(("async", "sync")) for _ in parents),
            blocks=tuple(rng.randint(2, 4) for _ in range(rng.randint(1, 2))),
            duration_s=rng.choice((3.0, 5.0)),
            fault_gap_s=rng.choice((0.3, 0.8)),
            write_gap_s=rng.choice((0.03, 0.08)),
            delay_s=rng.choice((0.0005, 0.003)),
            lazy=rng.choice((1.0, 1.0, 8.0)),
            on_full=rng.choice(("bitmap", "bitmap", "fail")),
        )

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
    """Stands in for the time module inside GroupService and FullJournal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._clock.now

    def sleep(self, seconds: float) -> None:
        """Nothing is ever in flight between two events, so nobody has to sleep."""
        raise Violation("the service slept: a change was still in flight")


class Patient:
    """Stands in for the time module inside journalloss: whoever calls it has waited already (Target._keep)."""

    def sleep(self, seconds: float) -> None:
        """Nothing."""


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

    def __init__(self, seed: int, options: Options | None = None, *, kind: str = "pair", verbose: bool = False) -> None:
        """kind: "pair" (two nodes) or "tree" (three to five); says how options are drawn that are not given."""
        self.seed = seed
        self.transfer = _WAYS[seed % len(_WAYS)]
        """How records are moved in this world; by the seed, so that it changes nothing else that is drawn."""
        self.rng = random.Random(seed)
        drawn = Options.draw_tree(self.rng) if kind == "tree" else Options.draw(self.rng)
        # By the seed, as `transfer` is.
        self.options = options or replace(drawn, lists=seed % 3 == 0, reads=seed % 5 < 2, stands=seed % 5 == 0)
        o = self.options
        self.clock = Clock(verbose=verbose)
        self.readers = Readers(self, random.Random(f"reads {seed}"))
        self.network = Network(self.clock, random.Random(self.rng.getrandbits(64)))
        self.network.delay_s, self.network.replay, self.network.late = o.delay_s, o.replay, o.late
        self.network.connections = self.transfer.connections
        if self.transfer.transfer == PULL:
            self.network.replay = 0.0  # a frame that nobody asked for ends a pulled link, every time
        sizes = [n * BLOCK for n in o.blocks]
        self.truth = Truth(sizes)
        names = "abcdef"[: 1 + len(o.parents)]
        ids = [name * 32 for name in names]
        self.rng.shuffle(ids)
        self.nodes = [Node(self, name, i, sizes, o.journal_bytes) for name, i in zip(names, ids, strict=True)]
        self.by_id = {node.node_id: node for node in self.nodes}
        modes = o.edge_modes or (o.mode,) * len(o.parents)
        self.wanted = [(self.nodes[up], self.nodes[n + 1], modes[n]) for n, up in enumerate(o.parents)]
        """Edges that are not made yet: a copy is made of a complete image only."""
        self.edges: list[tuple[Node, Node]] = []
        self.host_rng = random.Random(self.rng.getrandbits(64))
        self.nemesis_rng = random.Random(self.rng.getrandbits(64))
        self.consents: set[str] = set()
        """Nodes that the operator named for discarding, until it happened."""
        self.calm = False
        self.writes = self.takeovers = 0
        self.labels: dict[str, int] = {}
        self._token = 0
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._power: dict[str, bool] = {node.name: False for node in self.nodes}
        self.ran: set[Node] = set()
        """Nodes of which a process did something since the oracles looked."""
        self._before: dict[str, tuple[Any, ...]] = {}
        self.complete: set[str] = set()
        """Names of the nodes that have held a whole image."""
        self.spoiled = False
        """Power was lost, or a disk failed: then a history or a bitmap may be lost, too."""

    def node(self, name: str) -> Node:
        """The node of this name."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def primaries(self) -> list[Node]:
        """The nodes whose targets run as primary."""
        return [node for node in self.nodes if is_primary(node)]

    # -- a run ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Run it all. Raises Violation."""
        kept = service.time, copier.ROTATE_MIN_BLOCKS, shipper.RUN_BYTES
        service.time = fulljournal.time = SimTime(self.clock)  # type: ignore[attr-defined,assignment]  # their name
        journalloss.time = Patient()  # type: ignore[attr-defined,assignment]
        copier.ROTATE_MIN_BLOCKS = self.options.rotate_blocks
        shipper.RUN_BYTES = 24 << 10
        try:
            self.clock.note(f"seed {self.seed} {asdict(self.options)}")
            self._set_up()
            self.clock.after_event = self._look
            self.clock.after(0.0, self._host)
            self.clock.after(CLAIMS_S, self._ask_all)
            if self.options.stands:
                self.clock.after(STAND_S, self._stand, random.Random(f"stands {self.seed}"))
            Nemesis(self, self.nemesis_rng).begin()
            if self.options.lists:
                ListNemesis(self, random.Random(f"lists {self.seed}")).begin()
            if self.options.reads:
                self.readers.begin()
            self.clock.run_until(self.options.duration_s)
            self._live()
        finally:
            service.time, copier.ROTATE_MIN_BLOCKS, shipper.RUN_BYTES = kept  # type: ignore[assignment]
            fulljournal.time = journalloss.time = service.time
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
            "loss_timeout_s": o.loss_timeout_s, "full_timeout_s": o.full_timeout_s, "retain": o.retain,
        }  # fmt: skip
        top = self.nodes[0]
        top.make(GROUP, PRIMARY, Policy(**policy))
        assert top.target is not None
        for _ in range(o.first_writes):
            top.target.submit(self._request(top.target))
        top.target.submit(Request("flush"))  # the truth begins with a stable image
        self.truth.genesis = [bytes(top.raw(i)) for i in range(len(self.truth.sizes))]
        for node in self.nodes[1:]:
            node.make(GROUP, SECONDARY, Policy(**policy))
        for node in self.nodes:
            node.start_replicator()
        self._grow()

    # -- hosts ----------------------------------------------------------------------------------------------------

    def _request(self, target: Target) -> Request:
        rng, volumes = self.host_rng, target.engine.state.volumes
        one = volumes[rng.randrange(len(volumes))]
        volume, sectors = int(one["index"]), int(one["size"]) // 512
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
        primaries = self.primaries
        for node in primaries:
            target = node.target
            if target is None or len(target.queue) > 4 or len(target.waiting) > 16:
                continue
            if len(primaries) == 1 or self.host_rng.random() < 0.5:
                request = self._request(target)
                self.writes += 1
                node.run("target", lambda target=target, request=request: target.submit(request))

    def answered(self, node: Node, request: Request) -> None:
        """A host has its answer."""
        if request.outcome in ("ok", "ok-alone") and request.kind not in ("flush", "read") and request.seq > 0:
            node.answered_alone.append((request.epoch, request.seq))

    def _stand(self, rng: random.Random) -> None:
        """A copy stands still for a while."""
        node = rng.choice(self.nodes)
        if self.calm:
            return
        if node.target is not None and node.target.engine.state.role == SECONDARY:
            node.note("stands")
            node.target.stand(STAND_S)
        self.clock.after(STAND_S * rng.random(), self._stand, rng)

    # -- oracles --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at whatever changed since the last event."""
        changed: set[str] = set()
        ran, self.ran = self.ran, set()
        for node in self.nodes if len(ran) > 1 else ran:
            if node.target is None:
                self._seen.pop(node.name, None)
                continue
            if self.options.reads:
                node.host_writes.heard(node.target.engine)
            page, state = node.target.engine.page, node.target.engine.state
            now = (
                page[HEAD_SEQ],
                page[APPLIED_SEQ],
                state.copy,
                state.role,
                state.mode,
                len(state.hist),
                tuple(state.bitmaps.values()),
                tuple(state.listed_at),
            )
            if self._seen.get(node.name) != now:
                self._seen[node.name] = now
                changed.add(node.name)
                if state.copy == OK and state.hist:
                    self.complete.add(node.name)
                oracles.check_prefix(node)
            oracles.check_honest(node)
            if state.role == PRIMARY:
                node.note_head()
        if changed:
            oracles.check_one_primary(self.nodes)
        for one, other in self.edges:
            if changed & {one.name, other.name}:
                oracles.check_tracked(one, other)

    def _ask_all(self) -> None:
        self.clock.after(CLAIMS_S, self._ask_all)
        for node in self.nodes:
            oracles.check_claims(node)

    def power_lost(self, node: Node) -> None:
        """A node is about to lose power: promises that only its page cache kept are void."""
        self.spoiled = True
        self._power[node.name] = True
        node.lost_some_s = node.clock.now

    def gave_up_received(self, node: Node) -> None:
        """A copy got a new journal: what it had received and not applied it has promised in vain (SAFETY.md)."""
        assert node.target is not None
        node.lost_some_s = node.clock.now
        hist, pos = node.hist(), node.target.engine.pos
        promises = self.truth.promises
        self.truth.promises = [
            p for p in promises if p.holder != node.name or self.truth.holds(hist, pos, p.epoch, p.seq)
        ]

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
        # A former primary that is given up may have left the tree long ago: bitmaps are kept for those that are in it.
        judged = not allowed or self.options.thrifty
        if args["full"] and node.name in self.complete and not self.spoiled and judged:
            raise Violation(f"thrifty: {node.name} is copied to as a whole, and no disk has lost anything")

    def called(self, node: Node, op: str, args: dict[str, Any], result: dict[str, Any]) -> None:
        """A target carried out a control operation."""
        if op == "group.promote":
            self.takeovers += 1
            node.flushed_at = node.written_at = None
            oracles.check_promises(node)
            edges = node.replicator.edges.values() if node.replicator is not None else ()
            for edge in edges:
                if edge.session.state is State.PROMOTING and edge.session._takeover_id is None:
                    oracles.check_handover(edge.peer, node)
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

    def went_back(self, node: Node, hist: Hist, pos: int, seq: int) -> None:
        """The operator had a node go back from `pos` of a history to `seq`: what he gave up is no promise any more,
        whoever holds it. What the node never had he has not given up."""

        def given_up(epoch: int, at: int) -> bool:
            return at > seq and self.truth.holds(hist, pos, epoch, at)

        self.truth.promises = [p for p in self.truth.promises if not given_up(p.epoch, p.seq)]
        node.answered_alone = [one for one in node.answered_alone if not given_up(*one)]
        node.leftover = []

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
        node.start_replicator()

    def _grow(self) -> None:
        """Make the edges whose upper end is complete, as `pair create` does."""
        for edge in list(self.wanted):
            up, down, mode = edge
            if up.target is None or down.target is None or up.armed or down.armed or down.target.engine.failed:
                continue
            state = up.target.engine.state
            if up.target.engine.failed or state.copy != OK or (state.role == SECONDARY and not state.upstream):
                continue
            if state.journal_error or down.target.engine.state.journal_error:
                continue  # it gets a new journal first
            try:
                up.target.service.arm(down.node_id, mode)
                down.target.service.arm(up.node_id, mode, upstream=True)
            except MediumError as exc:
                self.clock.note(f"edge {up.name} {down.name} not made: {exc.message}")
                continue
            self.wanted.remove(edge)
            self.edges.append((up, down))
            self.clock.note(f"edge {up.name} {down.name} {mode}")
            up.pair_with(down)
            down.pair_with(up)
        if self.wanted:
            self.clock.after(0.1, self._grow)

    def heal(self) -> None:
        """The network is as the options say."""
        self.network.down = False
        self.network.cut.clear()
        self.network.delay_s = self.options.delay_s

    def command(self, edge: Edge, op: str, **args: Any) -> None:
        """An operator's command on an edge of a node, if its processes run."""
        if args.get("discard"):
            self.consents.add(args["discard"])
        if edge.alive and edge.node.target is not None:
            edge.node.run("replicator", lambda: edge.command(op, **args))

    def take_over(self, node: Node, *, force: bool, marker: int | None = None) -> None:
        """An operator's takeover on a node: the edge over which it is fed has to let go. marker: so many records
        back."""
        if node.replicator is None:
            return
        edge = node.replicator.feeding or next(iter(node.replicator.edges.values()), None)
        if edge is not None:
            self.command(edge, "takeover", force=force, **({} if marker is None else {"marker": marker}))

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
        operator = Operator(self)
        deadline = self.clock.now + LIVENESS_S
        while self.clock.now < deadline:
            for node in self.nodes:
                if node.target is not None and "the file is broken" in node.target.engine.failed:
                    node.die("power")  # it failed without a journal: it is restarted, as `explain` says, and gets one
                self.start(node)
            self.clock.run_until(self.clock.now + 1.0)
            operator.act()
            if self._in_sync():
                return
        states = {n.name: self._describe(n) for n in self.nodes}
        raise Violation(f"liveness: not in sync {LIVENESS_S:g} s after the last fault: {states}")

    def _describe(self, node: Node) -> str:
        if node.target is None or node.replicator is None:
            return "down"
        engine = node.target.engine
        sessions = [(edge.peer.name, edge.session) for edge in node.replicator.edges.values()]
        told = ", ".join(
            f"{name}: {s.state.value} {s.decision.label if s.decision else ''} ({s.link_reason})"
            for name, s in sessions
        )
        return (
            f"{engine.state.role} {engine.state.copy} {engine.state.mode} pos {engine.pos} failed={engine.failed!r} "
            f"upstream {engine.state.upstream[:2]} {told}"
        )

    def _in_sync(self) -> bool:
        if self.wanted or any(n.replicator is None or n.target is None for n in self.nodes):
            return False
        engines = [n.target.engine for n in self.nodes if n.target is not None]
        if any(engine.failed or engine.state.copy != OK or engine.state.copying for engine in engines):
            return False
        if len(self.primaries) != 1:
            return False
        top = self.primaries[0]
        assert top.target is not None
        if top.target.engine.unanswered.entries and not top.target.waiting:
            return False  # else one that stays is a failure, too: reads would look there for ever
        pos = top.target.engine.pos
        if any(n is not top and engine.page[APPLIED_SEQ] != pos for n, engine in zip(self.nodes, engines, strict=True)):
            return False
        if not all(self._flows(one, other) for one, other in self.edges):
            return False
        for node in self.nodes:
            if node is not top and _list_of(node) != _list_of(top):
                raise Violation(f"in sync, and {top.name} and {node.name} have other volumes")
            if node is not top and oracles.differing_blocks(top, node):
                raise Violation(f"in sync, and the images of {top.name} and {node.name} differ")
        return True

    def _flows(self, one: Node, other: Node) -> bool:
        """Records flow over the edge, one way or the other, as its mode wants it."""
        for up, down in ((one, other), (other, one)):
            assert up.target is not None and up.replicator is not None and down.replicator is not None
            source, sink = up.replicator.edges[down.name], down.replicator.edges[up.name]
            edge = up.target.engine.state.edge_of(down.node_id)
            sync = edge is not None and edge.mode == "sync"
            wanted = (State.SYNC_SOURCE,) if sync else (State.SOURCE, State.SYNC_SOURCE)
            if source.session.state in wanted and sink.session.state is State.TARGET:
                return edge is not None and not edge.degraded
        return False


def _list_of(node: Node) -> list[tuple[Any, ...]]:
    """The volumes of a running node: what names them, what they are called, and their sizes."""
    assert node.target is not None
    return [(*volumeset.identity(v), v["name"], v["size"]) for v in node.target.engine.state.volumes]
