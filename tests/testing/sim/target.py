"""One life of a target process: the real engine and service, and host requests that wait as the policy says.

The service's threads are not started; their steps are events here, and its waiting loops (a write that finds no room, a
write that waits for its peer) are written out as states of a request, with the same decisions from losspolicy.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replicator.capture import copier, edges, follower, journalloss, retention, service, volumeset
from replicator.capture.cutter import publish_beacon
from replicator.capture.engine import GroupEngine
from replicator.capture.parking import NoRoom, Parked
from replicator.capture.rewind import rewind
from replicator.capture.state import JOURNAL, OK, PRIMARY, SECONDARY, Edge
from replicator.capture.volumeset import passes_over
from replicator.core.errors import FarstripeError, MediumError, Refused
from replicator.core.hello import NOT_YET
from replicator.core.losspolicy import Verdict, may_go_alone, on_full, on_unanswered
from replicator.core.records import unpack_header
from replicator.core.transitions import State
from replicator.journal import volumes
from replicator.journal.page import APPLIED_SEQ, EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ, HEAD_SEQ, TAIL_OFF, edge_slot
from replicator.journal.ring import DATA_START
from tests.testing.sim import oracles
from tests.testing.sim.truth import Image, Promise, change_of_record

if TYPE_CHECKING:
    from tests.testing.sim.node import Node

STEP_S = 0.01
KEEPER_S = 0.25
APPLY_BYTES = 48 << 10
COPY_BYTES = 128 << 10


class _Bell:
    """Nobody sleeps here."""

    def ring(self) -> None:
        """Nothing to do."""

    def wait(self, timeout_s: float) -> bool:
        """Never waits."""
        return False


@dataclass
class Request:
    """A host's request until it is answered. kind: write, zero, trim, flush, read."""

    kind: str
    volume: int = 0
    offset: int = 0
    length: int = 0
    data: bytes = b""
    fua: bool = False
    began: float = 0.0
    full_since: float | None = None
    seq: int = 0
    epoch: int = 0
    wants_durable: bool = False
    flushed: tuple[int, int] = (0, 0)
    edges: list[Edge] = field(default_factory=list)
    """Whose peers it waits for."""
    met: int = 0
    """Of a read: the newest write that it has seen."""
    outcome: str = ""  # "", "ok", "ok-alone", or an error's name


class Target:
    """A running target of a node."""

    def __init__(self, node: Node, engine: GroupEngine) -> None:
        self.node = node
        self.engine = engine
        self.clock = node.clock
        self.rng: random.Random = node.rng
        self.service = service.GroupService(engine, _Bell(), lambda _slot: _Bell(), self._event)  # type: ignore[arg-type]
        self.queue: list[Request] = []  # not admitted yet
        self.waiting: list[Request] = []  # admitted, waiting for the peer
        self.settled_upto = 0
        """A secondary's image is a prefix from here on: the position it had applied before its target died."""
        self._broken_since = self.clock.now
        self.replaced = False
        """The journal was, in this life."""
        self._idle_until = 0.0
        self._watch_journal()
        engine.unanswered.take_stock(engine, engine.waits)
        self._again(STEP_S, self._step)
        self._again(KEEPER_S, self._keep)

    def _event(self, name: str, **detail: Any) -> None:
        self.node.note(f"target {name} {detail}")
        if name == "received-again":
            self.node.world.gave_up_received(self.node)

    def _again(self, delay_s: float, action: Callable[[], None]) -> None:
        self.clock.after(delay_s * (0.6 + 0.8 * self.rng.random()), self._guarded, action)

    def _guarded(self, action: Callable[[], None]) -> None:
        if self.node.target is self:
            self.node.run("target", action)

    def _watch_journal(self) -> None:
        """Tell the truth of every record this primary adds, at the moment it is published."""
        append = self.engine.journal.append
        truth = self.node.truth

        def watched(header: bytes, payload: Any, seq: int, epoch: int) -> None:
            append(header, payload, seq, epoch)
            h = unpack_header(header)
            data = bytes(payload)[: h.data_len] if payload is not None and h.data_len else None
            self.node.epoch_begins(epoch, self.engine)
            self.node.host_writes.note(h)
            truth.add(h.epoch, h.seq, h.kind, change_of_record(h, data))

        self.engine.journal.append = watched  # type: ignore[method-assign]

    # -- the threads' steps ---------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Follower, copier and waiting requests."""
        engine, full = self.engine, self.service._full
        self._again(STEP_S, self._step)
        self.serve()
        if engine.failed:
            self._fail_all("failed")
            return
        if self.clock.now < self._idle_until:
            return
        self._idle_until = self.clock.now + STEP_S * (self.node.world.options.lazy - 1) * self.rng.random()
        try:
            if engine.state.role == SECONDARY:
                follower.apply_some(engine, self.rng.choice((1, APPLY_BYTES)))
                if full.is_waited_for():
                    full.relieve()
                else:
                    full.eased()
            elif engine.state.copying and copier.may_copy(engine):
                if copier.copy_some(engine, COPY_BYTES):
                    full.eased()
                elif self.service._journal_used() > service.COPY_FULL_FRACTION:
                    full.relieve()
        except (OSError, FarstripeError) as exc:
            self.node.note(f"step failed: {exc}")

    def _keep(self) -> None:
        """Keeper and maintenance."""
        engine, rng = self.engine, self.rng
        self._again(KEEPER_S, self._keep)
        svc = self.service
        if svc._hold_until and self.clock.now >= svc._hold_until:
            svc.release("its deadline passed")
        try:
            svc._damaged.look(self.clock.now)
        except (OSError, FarstripeError) as exc:
            self.node.note(f"keeper failed: {exc}")
        broken = engine.failed_by_journal and engine.state.role == SECONDARY and not svc._damaged.pending
        if not (broken or engine.state.journal_error):
            self._broken_since = self.clock.now
        if not engine.failed:
            publish_beacon(engine)
        waited = self.clock.now - self._broken_since > journalloss.STOPS_S or not journalloss.receives(engine)
        if engine.failed and not (broken and waited and rng.random() < 0.5):
            self._clear_intents()
            return
        try:
            engine.unanswered.purge(engine)
            if engine.failed:
                self._replace_journal()
            elif engine.journal_lost and engine.state.mode == JOURNAL:
                svc._full.go_over()
                self.node.listed_anew()
            elif engine.state.journal_error and waited and rng.random() < 0.2:
                self._replace_journal()
            if engine.unsettled and engine.state.role == PRIMARY and not engine.parked_for:
                volumeset.settle(engine)
            retention.note_marks(engine)
            if engine.state.mode == JOURNAL:
                for peer in svc._relay_watch.look(self.clock.now):
                    self.node.note(f"degraded towards {self.node.world.by_id[peer].name}")
                if svc._journal_used() > service.CHECKPOINT_FRACTION or rng.random() < 0.15:
                    svc.checkpoint()
                copier.rotate_bitmaps(engine)
            self._clear_intents()
        except (OSError, FarstripeError) as exc:
            self.node.note(f"keeper failed: {exc}")

    def _replace_journal(self) -> None:
        """The operator gives the group a new journal, once the disk is good again; the old file stays until then."""
        disk = self.node.disk
        if "journal.new" in disk.names():
            disk.remove("journal.new")
        disk.create("journal.new", self.node.journal_bytes)
        file: Any = disk.open("journal.new")
        engine, ring_bytes = self.engine, self.node.journal_bytes - DATA_START
        volumes.prepare(file, 0, engine.journal.super, ring_bytes)
        journalloss.replace_journal(engine, file, 0, ring_bytes)
        disk.remove("journal")
        disk.rename("journal.new", "journal")
        file.path = "journal"
        self.replaced = True
        self.node.world.gave_up_received(self.node)
        self.node.note("journal replaced")

    def _clear_intents(self) -> None:
        """The pool's maintenance, which knows the groups by this alone."""
        if self.rng.random() < 0.6:
            self.node.pool.clear_intents(self._sync_tracking)

    def _sync_tracking(self) -> set[str]:
        return set() if self.engine.sync_tracking() else {v["name"] for v in self.engine.state.volumes}

    def stand(self, seconds: float) -> None:
        """Apply and copy nothing for a while: somebody had it stand, or its disk is slow."""
        self._idle_until = max(self._idle_until, self.clock.now + seconds)

    # -- hosts ----------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A host sends a request."""
        request.began = self.clock.now
        self.queue.append(request)
        self.serve()

    def serve(self) -> None:
        """Admit and answer what can be."""
        for request in list(self.queue):
            self.queue.remove(request)
            if not self._admit(request):
                self.queue.insert(0, request)
                break
        for request in list(self.waiting):
            self._look(request)

    def _admit(self, request: Request) -> bool:
        """Try to carry out; False when it must be tried again."""
        engine = self.engine
        try:
            self._carry_out(request)
        except Parked:
            return False
        except NoRoom:
            try:
                return self._make_room(request)
            except (OSError, FarstripeError) as exc:
                self._answer(request, type(exc).__name__)
                return True
        except (OSError, FarstripeError) as exc:
            self._answer(request, type(exc).__name__)
            return True
        if request.seq > 0 and engine.waits:
            request.edges = list(engine.waits)
            self.waiting.append(request)
        else:
            self._answer(request, "ok-alone")
        return True

    def _carry_out(self, request: Request) -> None:
        engine = self.engine
        durable = request.fua or request.kind == "flush" or engine.state.policy.ack == "durable"
        request.wants_durable = durable
        if request.kind == "flush":
            position = (engine.epoch, engine.pos)
            request.seq = engine.flush()
            request.flushed = position
            self.node.flushed(*position)
        else:
            self.node.interrupted = request
            if request.kind == "write":
                request.seq = engine.write(request.volume, request.offset, request.data, request.fua)
            else:
                trim = request.kind == "trim"
                request.seq = engine.zero(request.volume, request.offset, request.length, True, request.fua, trim)
            self.node.interrupted = None
        request.epoch = engine.epoch
        if request.kind != "flush":
            self.node.wrote(request, engine)

    def _make_room(self, request: Request) -> bool:
        engine, u64 = self.engine, self.engine.page.u64
        before = u64[TAIL_OFF]
        self.service.checkpoint()
        if u64[TAIL_OFF] != before:
            return False
        if request.full_since is None:
            request.full_since = self.clock.now
        policy = engine.state.policy
        waited_s = self.clock.now - request.full_since
        verdicts = [
            (e, on_full(
                policy.on_full,
                e.slot in engine.linked,
                waited_s,
                policy.full_timeout_s,
                alone=may_go_alone(e.sync_on, policy.on_loss),
            ))
            for e in edges.holders(engine)
        ]  # fmt: skip
        if any(verdict is Verdict.FAIL for _, verdict in verdicts):
            self._answer(request, "JournalFull")
            return True
        given_up = [e for e, verdict in verdicts if verdict is Verdict.OVERFLOW]
        if given_up and any(not e.dropped and e not in given_up for e in engine.state.downstream):
            self.service._full._drop(given_up)
            self.service.checkpoint()
        elif given_up:
            self.service.overflow()
        return False

    def _look(self, request: Request) -> None:
        """Whether a request that waits for the peer can be answered; see PeerWaits.wait_for."""
        engine = self.engine
        if request.kind == "read":
            request.edges = list(engine.waits) or request.edges
        what = EDGE_DURABLE_SEQ if request.wants_durable else EDGE_RECEIVED_SEQ
        late = [e for e in request.edges if engine.page[edge_slot(e.slot, what)] < request.seq]
        if not late:
            self._replicated(request)
            return
        if not any(e.sync_on for e in late):
            self._ended_alone(request)
            return
        policy = engine.state.policy
        verdict = on_unanswered(policy.on_loss, self.clock.now - request.began, policy.loss_timeout_s)
        if verdict is Verdict.DEGRADE:
            for edge in late:
                edges.degrade(engine, edge)
            self.node.note(f"degraded at {request.seq}")
            self._ended_alone(request)
        elif verdict is Verdict.FAIL or engine.failed:
            self.waiting.remove(request)
            self._answer(request, "TimedOut")

    def _replicated(self, request: Request) -> None:
        self.waiting.remove(request)
        if request.kind == "read":
            self.answer_read(request)
            return
        epoch, seq = (request.epoch, request.seq) if request.kind != "flush" else request.flushed
        if seq:
            # Nothing is promised of an edge that the operator made asynchronous while the write waited.
            for edge in (e for e in request.edges if e.mode == "sync"):
                self.promise_met(edge, epoch, seq, request.wants_durable)
        self._answer(request, "ok")

    def answer_read(self, request: Request) -> None:
        """A host is told what is there."""
        oracles.check_read(self, request)
        self._answer(request, "ok")

    def promise_met(self, edge: Edge, epoch: int, seq: int, durable: bool) -> None:
        """A host is told that the peer of a synchronous edge has a write, or of one in a way that comes to the same."""
        holder = self.node.world.by_id[edge.peer]
        self._promise(holder, epoch, seq, durable, (frozenset((self.node.name, holder.name)),))

    def _promise(self, holder: Node, epoch: int, seq: int, durable: bool, via: tuple[frozenset[str], ...]) -> None:
        """A host is told that `holder` has a write, and so have the nodes below it that are in sync."""
        promises = self.node.truth.promises
        promises.append(Promise(holder.name, epoch, seq, durable, via))
        for down in in_sync_below(holder):
            oracles.check_holds(down, epoch, seq)
            assert holder.target is not None
            edge = holder.target.engine.state.edge_of(down.node_id)
            assert edge is not None
            stable = holder.target.engine.page[edge_slot(edge.slot, EDGE_DURABLE_SEQ)] >= seq
            self._promise(down, epoch, seq, durable and stable, (*via, frozenset((holder.name, down.name))))

    def _ended_alone(self, request: Request) -> None:
        self.waiting.remove(request)
        try:
            self.service.peers.check_still_primary(request.seq)
        except FarstripeError as exc:
            self._answer(request, type(exc).__name__)
            return
        if request.kind == "read":
            oracles.check_read(self, request)
        self._answer(request, "ok-alone")

    def _answer(self, request: Request, outcome: str) -> None:
        request.outcome = outcome
        state = self.engine.state
        if outcome == "ok-alone" and request.seq > 0 and state.role == PRIMARY:
            self.node.check_degraded_is_durable(request)
        if request.kind != "read" and outcome in ("ok", "ok-alone"):
            self.engine.unanswered.entries.pop(request.seq, None)
        self.node.note(f"{request.kind} {request.volume}:{request.offset}+{request.length} seq {request.seq} {outcome}")
        self.node.answered(request)

    def _fail_all(self, why: str) -> None:
        for request in [*self.queue, *self.waiting]:
            self._answer(request, why)
        self.queue.clear()
        self.waiting.clear()

    # -- control --------------------------------------------------------------------------------------------------

    def call(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """A control operation, as nbdplugin.ops_group routes it. Raises FarstripeError or OSError."""
        svc = self.service
        peer = str(args.get("peer", ""))
        args = {key: value for key, value in args.items() if key != "peer"}
        table: dict[str, Callable[[], Any]] = {
            "group.status": lambda: svc.status(bool(args.get("settle")), peer),
            "group.policy": lambda: svc.set_policy(args, peer),
            "group.pin_copy": lambda: svc.pin_copy(peer, args["c"], args["peer_bitmaps"], args["copy_id"]),
            "group.extend_copy": lambda: svc.extend_copy(args["copy_id"], args["masks"]),
            "group.copy_until": lambda: svc.copy_until(peer, args["copy_id"], args["seq"], args["epoch"]),
            "group.bitmap": lambda: svc.common_bitmap(args.get("c")),
            "group.begin_copy": lambda: svc.begin_copy(peer, args["c"], args["peer_bitmaps"], args["copy_id"]),
            "group.resume_copy": svc.resume_copy,
            "group.attach": lambda: svc.attach(peer, **args),
            "group.link": lambda: svc.set_link(peer, args["up"]),
            "group.sync_on": lambda: svc.set_sync(peer, args.get("on", True)),
            "group.journal_damaged": lambda: svc.journal_damaged(args["off"], args["seq"]),
            "group.follow": lambda: svc.follow(peer),
            "group.note_source": lambda: svc.note_source(peer, args["seq"]),
            "group.hold": lambda: svc.hold(args["deadline_s"]),
            "group.release": svc.release,
            "group.promote": lambda: self._promote(args),
            "group.demote": lambda: svc.demote(args.get("diverged", False), args.get("upto")),
        }
        if self.engine.failed and op not in ("group.status", "group.link"):
            raise MediumError(f"the group has failed: {self.engine.failed}")
        if op == "group.attach":
            self.node.world.attaching(self.node, args)
        result = table[op]()
        self.node.called(op, args, result if isinstance(result, dict) else {})
        return result if isinstance(result, dict) else {}

    def _promote(self, args: dict[str, Any]) -> dict[str, Any]:
        """`marker`: so many records before the last one lies the marker; its image is what the truth knows of it."""
        if args.get("marker") is not None:
            self._stand_at(int(args["marker"]))
        return self.service.promote(args.get("force", False))

    def _stand_at(self, back: int) -> None:
        """See nbdplugin.markerhost; the images are made up from the truth."""
        engine, node = self.engine, self.node
        with engine.apply_lock:
            if engine.state.rewind is None:
                follower.apply_through(engine)
            first = max(engine.state.hist[0][1] + 1, passes_over(engine.state)[1]) if engine.state.hist else NOT_YET
            seq = max(first, engine.pos - back)
            if engine.state.copy != OK or not self.prefix_now or seq > engine.pos:
                raise Refused("there is no image of the marker")
            hist, pos = node.hist(), engine.pos
            kept = [entry for entry in hist if entry[1] < seq]
            image = Image(node.truth)
            image.move(kept, seq)

            def restore() -> None:
                for volume, content in zip(engine.volumes, image.volumes, strict=True):
                    volume.pwrite(content, 0)
                engine.sync_pool()

            everything = {index: [(0, volume.size)] for index, volume in enumerate(engine.volumes)}
            rewind(engine, seq, kept[-1][0], everything, restore)
            node.world.went_back(node, hist, pos, seq)

    @property
    def prefix_now(self) -> bool:
        """Whether this secondary's image must be a prefix of its history now."""
        page = self.engine.page
        return bool(page[APPLIED_SEQ] >= min(self.settled_upto, page[HEAD_SEQ]))


def in_sync_below(node: Node) -> list[Node]:
    """The nodes that a running relay feeds, that are in sync, and whose connection both ends hold for good."""
    if node.target is None or node.replicator is None or node.target.engine.state.role != SECONDARY:
        return []
    found = []
    for edge in node.replicator.edges.values():
        state = node.target.engine.state.edge_of(edge.peer.node_id)
        process = edge.peer.replicator
        other = process.edges.get(node.name) if process is not None else None
        if state is None or not state.sync_on or edge.session.state is not State.SYNC_SOURCE or edge.conn is None:
            continue
        if other is not None and other.conn is edge.conn.peer and other.session.receives:
            found.append(edge.peer)
    return found
