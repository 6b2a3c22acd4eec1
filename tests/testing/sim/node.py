"""One node: what survives its processes, how they start, and how they die.

Two deaths: a process is killed (the page cache, the shared page and mapped files stay as they are), or the node loses
power (every unsynced byte is kept, lost or torn, the shared page is gone, a new boot begins). Either may strike
between two events, or in the middle of one, just before some write to the disk.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replicator.capture import recovery
from replicator.capture.clock import WriteClock
from replicator.capture.engine import GroupEngine
from replicator.capture.state import (
    BITMAP,
    FRESH,
    OK,
    PRIMARY,
    SECONDARY,
    STATE_FILE_BYTES,
    GroupState,
    Policy,
    StateFile,
)
from replicator.core.epochs import node_tag
from replicator.core.errors import FarstripeError, IntegrityError, MediumError
from replicator.core.events import Log
from replicator.journal.page import APPLIED_SEQ, EDGE_RECEIVED_SEQ, SLOTS, Page, edge_slot
from replicator.journal.volumes import JournalFiles, newest_generation
from tests.testing.fakedisk import FakeDisk, PowerCut
from tests.testing.sim.clock import Clock
from tests.testing.sim.lists import ListHost, NamedPool, listed, map_blocks
from tests.testing.sim.network import Network
from tests.testing.sim.reads import HostWrites
from tests.testing.sim.replicator import Replicator
from tests.testing.sim.storage import SimMap
from tests.testing.sim.target import Request, Target
from tests.testing.sim.truth import Change, Hist, Image, Truth, Violation

if TYPE_CHECKING:
    from tests.testing.sim.world import World

WALL_START_NS = 1_700_000_000_000_000_000


class Node:
    """One node of a world."""

    def __init__(self, world: World, name: str, node_id: str, sizes: list[int], journal_bytes: int) -> None:
        self.world = world
        self.name, self.node_id = name, node_id
        self.clock: Clock = world.clock
        self.rng = random.Random(world.rng.getrandbits(64))
        self.network: Network = world.network
        self.truth: Truth = world.truth
        self.disk = FakeDisk(random.Random(world.rng.getrandbits(64)))
        self.disk.create("state", STATE_FILE_BYTES)
        self.disk.create("journal", journal_bytes)
        self.journal_bytes = journal_bytes
        self.fixed = not world.options.lists
        """The list of volumes never changes."""
        self._sizes = {f"v{i}": size for i, size in enumerate(sizes)}
        self.pool = NamedPool(self.disk, self._sizes, fixed=self.fixed)
        self.maps: dict[int, SimMap] = {}
        """By index of the volume."""
        self.page = bytearray(SLOTS * 8)
        self.boot = 1
        self.pairs: dict[str, dict[str, Any]] = {}
        """What is stored of each edge, by the name of the peer."""
        self.target: Target | None = None
        self.replicator: Replicator | None = None
        self.image = Image(self.truth)
        self.flushed_at: tuple[int, int] | None = None
        self.written_at: tuple[int, int] | None = None
        self.host_writes = HostWrites()
        self.at_risk: list[Change] = []
        """In bitmap mode: what no pool sync covers yet."""
        self._risk_syncs = 0
        self.leftover: list[Change] = []
        """What a power loss left in the image beyond the recovered position, until an epoch begins with it."""
        self.in_vain: tuple[int, int] | None = None
        """Where in the sequence a change of the list was said that did not come about."""
        self.answered_alone: list[tuple[int, int]] = []
        """Host writes this node answered as primary, (epoch, seq), as far as it still holds them."""
        self._epochs: list[int] = []
        self.interrupted: Request | None = None
        """The change under way when the target died."""
        self.applied_high = 0
        self.armed = ""
        self.broken = False
        self._heads: list[tuple[float, int, int]] = []
        self.lost_some_s = -math.inf
        """When it last lost records that others know it had."""
        """When it was primary at which position: (time, epoch, seq)."""

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.clock.note(f"{self.name} {text}")

    # -- making and starting --------------------------------------------------------------------------------------

    def map_of(self, index: int) -> SimMap:
        """The mapped file of a volume, made when it is missing."""
        if index not in self.maps:
            size = self._sizes.get(f"v{index}", 0)
            self.maps[index] = SimMap(self.disk, f"bitmap{index}", map_blocks(size, fixed=self.fixed))
        return self.maps[index]

    def raw(self, index: int) -> bytearray:
        """The bytes of a volume of the running group as any reader would see them; none when there is no such one."""
        assert self.target is not None
        for v in self.target.engine.state.volumes:
            if v["index"] == index:
                raw = self.pool.raw(v["name"])
                return raw if len(raw) == v["size"] else raw[: v["size"]]
        return bytearray()

    def _parts(self, volumes: list[dict[str, Any]]) -> recovery.Parts:
        for v in volumes:
            if self.pool.sizes[v["name"]] != v["size"]:
                self.pool.resize(v["name"], v["size"])
        return recovery.Parts(
            state=self.disk.open("state"),  # type: ignore[arg-type]  # a RandomFile by shape
            journal=self.disk.open("journal"),  # type: ignore[arg-type]
            page=Page(self.page),
            maps=[self.map_of(v["index"]) for v in volumes],
            volumes=[self.pool.open(v["name"]) for v in volumes],
            pool_sync=self.pool.sync,
            clock=WriteClock(lambda: WALL_START_NS + int(self.clock.now * 1e9)),
            boot=self.boot,
            volume_host=ListHost(self),
        )

    def make(self, uuid: str, role: str, policy: Policy) -> None:
        """Create the group in empty files and start the target."""
        sizes = enumerate(self._sizes.values())
        volumes = [{"index": i, "name": f"v{i}", "uuid": f"{i:032x}", "size": s} for i, s in sizes]
        parts = self._parts(volumes)
        state = GroupState(uuid=uuid, name="g", node_tag=node_tag(self.node_id), volumes=volumes, policy=policy)
        if role == SECONDARY:
            state.role, state.copy = SECONDARY, FRESH
        self.target = Target(self, recovery.create_engine(parts, state, self.journal_bytes))

    def start_target(self) -> None:
        """Start the target process after whatever stopped it."""
        if self.target is not None:
            return
        self._settle_journal()
        was_applied = self.applied_high
        box: list[GroupEngine] = []

        def start() -> None:
            volumes = listed(self)
            box.append(recovery.open_engine(self._parts(volumes), self.pool.unclean(volumes)))
            ListHost(self).settled(box[0].state.volumes)

        try:
            self.run("start", start)
        except (IntegrityError, MediumError) as exc:
            self.note(
                f"target cannot start: {exc}"
            )  # its journal lost what it had taken; after a reboot it counts as lost
            self.die("power")
        except OSError as exc:  # the group is broken in this life; somebody restarts the target
            self.note(f"target cannot start: {exc}")
            self.die("target")
            self.clock.after(0.3, self.world.start, self)
        if not box:
            return
        engine = box[0]
        self.target = Target(self, engine)
        if engine.state.role == SECONDARY and engine.state.copy == OK:
            self.target.settled_upto = min(was_applied + 1, engine.pos)  # it may have died inside the next record
        self.note(f"target started: {engine.state.role} {engine.state.copy} {engine.state.mode} pos {engine.pos}")
        self._check_recovered(engine)
        state = engine.state
        if state.role == PRIMARY and state.hist and engine.pos > state.hist[-1][1]:
            self.epoch_begins(state.hist[-1][0], engine)  # recovery may have added the epoch's record
            self.image = Image(self.truth)

    def _settle_journal(self) -> None:
        """The target died while it got a new journal: which of the files counts, their superblocks say."""
        if "journal.new" not in self.disk.names():
            return
        old, new = (newest_generation(JournalFiles(self.disk.open(n))) for n in ("journal", "journal.new"))  # type: ignore[arg-type]
        if new <= old:
            self.disk.remove("journal.new")
            return
        self.disk.remove("journal")
        self.disk.rename("journal.new", "journal")

    def start_replicator(self) -> None:
        """Start the replicator process."""
        if self.replicator is None:
            self.replicator = Replicator(self)
            self.note("replicator started")

    def pair_with(self, peer: Node) -> None:
        """Store an edge, and start it if the replicator runs."""
        self.pairs.setdefault(peer.name, {})
        if self.replicator is not None:
            self.replicator.add(peer.name)

    # -- dying ----------------------------------------------------------------------------------------------------

    def arm(self, kind: str) -> None:
        """Die in the middle of something, soon: kind is target, node or power."""
        self.armed = kind
        self.disk.cut_at(self.disk.operations + self.rng.randint(0, 6))
        self.clock.after(0.4, self._disarm, kind)

    def _disarm(self, kind: str) -> None:
        if self.armed == kind:
            self.disk.cut_at(None)
            self.armed = ""
            self.die(kind)

    def run(self, process: str, action: Callable[[], Any]) -> None:
        """Run a step of a process; it may die in it. Errors of a dying process do not count."""
        life = self.disk._life
        self.world.ran.add(self)
        try:
            action()
        except BaseException as exc:
            if self.disk._life == life:
                raise
            if not isinstance(exc, PowerCut | OSError | FarstripeError):
                raise
            kind, self.armed = self.armed or "node", ""
            self.note(f"cut while the {process} wrote")
            self.die(
                "power" if kind == "power" else "target" if process != "replicator" and kind == "target" else "node"
            )
            return
        if self.disk._life != life and self.armed:
            kind, self.armed = self.armed, ""
            self.die("power" if kind == "power" else "node")

    def die(self, kind: str) -> None:
        """kind: target, replicator, node (both processes) or power."""
        self.note(f"dies: {kind}")
        self.world.ran.add(self)
        if kind != "target" and self.replicator is not None:
            for edge in self.replicator.edges.values():
                self.network.drop_owner(edge)
            self.replicator = None
        if kind == "replicator":
            return
        if self.target is not None:
            page = Page(self.page)
            self.applied_high = max(page[APPLIED_SEQ], self.target.settled_upto)
            for request in [*self.target.queue, *self.target.waiting]:
                request.outcome = "died"
            self.target = None
        if kind == "power":
            self._heads.clear()  # some of it may be gone
            self.world.power_lost(self)
            self.disk.crash()
            for _, m in sorted(self.maps.items()):
                m.crash(self.rng)
            self.page[:] = bytes(len(self.page))
            self.boot += 1
        else:
            self.disk.kill()

    # -- what the oracles are told ----------------------------------------------------------------------------------

    def flushed(self, epoch: int, seq: int) -> None:
        """A flush was answered: the records up to here survive anything."""
        self.flushed_at = (epoch, seq)

    def answered(self, request: Request) -> None:
        """A host has its answer."""
        self.world.answered(self, request)

    def wrote(self, request: Request, engine: GroupEngine) -> None:
        """A write or zero was carried out."""
        data = request.data if request.kind == "write" else None
        change = Change(request.volume, request.offset, request.length, data)
        if engine.state.mode == BITMAP:
            self.epoch_begins(engine.epoch, engine)
            self.truth.add(engine.epoch, request.seq, 1, change)
            if self._risk_syncs != self.pool.syncs:
                self._risk_syncs = self.pool.syncs
                self.at_risk.clear()
            if not request.fua:
                self.at_risk.append(change)
        if request.fua:
            self.flushed(engine.epoch, request.seq)
        self.written_at = (engine.epoch, request.seq)

    def listed_anew(self) -> None:
        """The list may have changed: tell the truth of it where no record does."""
        assert self.target is not None
        self._learn_list(self.target.engine)

    def _learn_list(self, engine: GroupEngine) -> None:
        state = engine.state
        if state.mode != BITMAP or not state.listed_at or tuple(state.listed_at) in self.truth.records:
            return
        epoch, seq = (int(n) for n in state.listed_at)
        before, hist = Image(self.truth), [(int(e), int(b)) for e, b in state.hist]
        if self.in_vain == (epoch, seq - 1) and (said := self.truth.records.get(self.in_vain)) is not None:
            before.move(hist, seq - 2)
            was = bytes(before.volumes[said.volume]) if said.volume < len(before.volumes) else b""
            self.epoch_begins(epoch, engine)
            self.truth.add(epoch, seq, 0, Change(said.volume, 0, len(was), was, "RESTORED"))
            return
        before.move(hist, seq - 1)
        sizes = {v["index"]: v["size"] for v in state.volumes}
        known = {index: len(volume) for index, volume in enumerate(before.volumes) if volume}
        [index] = [i for i in sizes.keys() | known.keys() if sizes.get(i) != known.get(i)]
        what = "VOLUME_ADD" if index not in known else "RESIZE" if index in sizes else "VOLUME_REMOVE"
        self.epoch_begins(epoch, engine)
        self.truth.add(epoch, seq, 0, Change(index, 0, sizes.get(index, 0), None, what))

    def epoch_begins(self, epoch: int, engine: GroupEngine) -> None:
        """Called with every record: the first of an epoch takes over what power losses left in the image.

        An epoch whose records were all lost is dropped from the history; what it began with is still there.
        """
        hist = [int(e) for e, _ in engine.state.hist]
        if epoch not in self.truth.power_left:
            dropped = [e for e in self._epochs if e not in hist]
            left = [change for e in dropped for change in self.truth.power_left.get(e, [])]
            self.truth.power_left[epoch] = left + self.leftover
            self.leftover = []
        self._epochs = hist

    def note_head(self) -> None:
        """The running target is primary, and may be further than it was."""
        assert self.target is not None
        engine = self.target.engine
        if not self._heads or self._heads[-1][1:] != (engine.epoch, engine.pos):
            self._heads.append((self.clock.now, engine.epoch, engine.pos))

    def head_at(self, time_s: float) -> tuple[int, int]:
        """(epoch, seq) at which it was primary then, (0, 0) when it was not."""
        at = bisect_right(self._heads, (time_s, 1 << 64, 0))
        return self._heads[at - 1][1:] if at else (0, 0)

    def hist(self) -> Hist:
        """The history of the running target."""
        assert self.target is not None
        return [(int(e), int(b)) for e, b in self.target.engine.state.hist]

    def check_degraded_is_durable(self, request: Request) -> None:
        """A synchronous primary answers a write alone: the state on disk must say so before."""
        state = StateFile(self.disk.open("state")).load()  # type: ignore[arg-type]
        asked = {edge.slot for edge in request.edges} or {edge.slot for edge in state.edges}
        page = Page(self.page)
        for edge in state.edges:
            if edge.sync_on and edge.slot in asked and page[edge_slot(edge.slot, EDGE_RECEIVED_SEQ)] < request.seq:
                raise Violation(
                    f"honest: write {request.seq} answered without a peer while the durable state says synchronous"
                )

    def called(self, op: str, args: dict[str, Any], result: dict[str, Any]) -> None:
        """The target carried out a control operation."""
        if op not in ("group.status", "group.link"):
            self.note(f"{op} {_brief(args)} -> {_brief(result)}")
        self.world.called(self, op, args, result)

    def logged(self, log: Log) -> None:
        """The session logged something."""
        self.world.logged(self, log)

    def _check_recovered(self, engine: GroupEngine) -> None:
        """Local durability: after any stop of a primary, what was promised is there and nothing else has moved."""
        self._learn_list(engine)
        self.world.recovered(self, engine)


def _brief(values: dict[str, Any]) -> str:
    """A map without its bulk, for the trace."""
    keep = {k: v for k, v in values.items() if not isinstance(v, bytes | dict | list)}
    return str(dict(sorted(keep.items())))


def is_primary(node: Node) -> bool:
    """Whether the node's target runs as primary."""
    return node.target is not None and node.target.engine.state.role == PRIMARY
