"""Two engines in one process, and a function that does what the replicators do: the small sister of tests.testing.sim.

No threads, no network, no virtual time: a test says what happens when. Each Side keeps all of its storage on one
FakeDisk, so kill() and power_cut() hit everything at once, and save() gives a state that can be brought to life on
another Side, as often as a test likes. `Pair.meet` shakes hands with the real decision table and does what it says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replicator.capture import copier, copies, edges, follower, recovery, roles
from replicator.capture.bitmaps import blocks_of
from replicator.capture.clock import WriteClock
from replicator.capture.engine import GroupEngine
from replicator.capture.state import (
    FRESH,
    OK,
    PRIMARY,
    SECONDARY,
    STATE_FILE_BYTES,
    Edge,
    GroupState,
    Policy,
)
from replicator.core import handshake, hello
from replicator.core.epochs import node_tag
from replicator.core.handshake import Action, Decision
from replicator.core.records import unpack_header
from replicator.core.runs import parse_run
from replicator.journal.page import (
    DURABLE_SEQ,
    EDGE_APPLIED_SEQ,
    EDGE_ASLEEP,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    EDGE_TREE_DURABLE,
    EPOCH,
    HEAD_SEQ,
    SLOTS,
    Page,
    edge_slot,
)
from tests.testing.fakedisk import FakeDisk, Fate, Unsynced
from tests.testing.sim.storage import SimMap, SimPool
from tests.testing.sim.truth import Change, Image, Truth

GROUP = "5e" * 16
SIZES = (256 << 10, 192 << 10)
JOURNAL_BYTES = (1 << 20) + 8192

PEER_RECEIVED_SEQ = edge_slot(0, EDGE_RECEIVED_SEQ)
"""Counters of a group's first edge, which is all a pair has."""
PEER_DURABLE_SEQ = edge_slot(0, EDGE_DURABLE_SEQ)
PEER_APPLIED_SEQ = edge_slot(0, EDGE_APPLIED_SEQ)
PEER_DURABLE_OFF = edge_slot(0, EDGE_DURABLE_OFF)
PEER_TREE_DURABLE = edge_slot(0, EDGE_TREE_DURABLE)
REPLICATOR_ASLEEP = edge_slot(0, EDGE_ASLEEP)


@dataclass
class Saved:
    """Everything of a Side that outlives its process."""

    files: dict[str, tuple[bytes, list[Unsynced]]]
    maps: list[tuple[bytes, bytes]]
    page: bytes
    marks: set[tuple[int, int]]
    boot: int


class Side:
    """One node: its storage, and its engine while the process lives."""

    def __init__(
        self, name: str, *, sizes: tuple[int, ...] = SIZES, journal_bytes: int = JOURNAL_BYTES, seed: int = 0
    ) -> None:
        self.name = name
        self.node_id = (name * 32)[:32]
        self.sizes = sizes
        self.journal_bytes = journal_bytes
        self.disk = FakeDisk(random.Random(seed))
        self.disk.create("state", STATE_FILE_BYTES)
        self.disk.create("journal", journal_bytes)
        self.pool = SimPool(self.disk, sizes)
        self.maps = [SimMap(self.disk, f"bitmap{i}", blocks_of(size)) for i, size in enumerate(sizes)]
        self.page_bytes = bytearray(SLOTS * 8)
        self.boot = 1
        self.now_ns = 1_700_000_000 * 10**9
        self.uuid, self.group_name, self.volume_prefix = GROUP, "g", "v"
        self.make_clock: Callable[[], WriteClock] = lambda: WriteClock(self._clock)
        self._engine: GroupEngine | None = None
        self.on_record: Callable[[Any, bytes | None], None] | None = None
        """Called with (header, payload) of each record this side adds, once it is published."""

    @property
    def engine(self) -> GroupEngine:
        """The living engine."""
        assert self._engine is not None, f"{self.name} is down"
        return self._engine

    @property
    def page(self) -> Page:
        """The shared page."""
        return self.engine.page

    def edge(self, peer: Side) -> Edge:
        """The edge with another side."""
        return edges.edge_of(self.engine, peer.node_id)

    def parts(self) -> recovery.Parts:
        """Open the files for a new process."""
        volumes = self.pool.open()
        files = [v.file for v in volumes]
        return recovery.Parts(
            state=self.disk.open("state"),  # type: ignore[arg-type]  # a RandomFile by shape
            journal=self.disk.open("journal"),  # type: ignore[arg-type]
            page=Page(self.page_bytes),
            maps=self.maps,
            volumes=volumes,
            pool_sync=lambda: self.pool.sync_with(files),
            clock=self.make_clock(),
            boot=self.boot,
        )

    def _clock(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def create(self, role: str, policy: Policy | None = None) -> GroupEngine:
        """Make the group in empty files."""
        volumes = [
            {"index": i, "name": f"{self.volume_prefix}{i}", "uuid": f"{i:032x}", "size": s}
            for i, s in enumerate(self.sizes)
        ]
        state = GroupState(self.uuid, self.group_name, node_tag(self.node_id), volumes, role, policy=policy or Policy())
        state.copy = OK if role == PRIMARY else FRESH
        return self._live(recovery.create_engine(self.parts(), state, self.journal_bytes))

    def start(self) -> GroupEngine:
        """Start the process after whatever stopped it."""
        return self._live(recovery.open_engine(self.parts(), self.pool.unclean()))

    def _live(self, engine: GroupEngine) -> GroupEngine:
        self._engine = engine
        append = engine.journal.append

        def watched(header: bytes, payload: Any, seq: int, epoch: int) -> None:
            append(header, payload, seq, epoch)
            if self.on_record is not None:
                self.on_record(unpack_header(header), None if payload is None else bytes(payload))

        engine.journal.append = watched  # type: ignore[method-assign]
        return engine

    def kill(self) -> None:
        """SIGKILL: the page cache, the page and mapped files stay."""
        self.disk.kill()
        self._engine = None

    def power_cut(self, fate: Fate | None = None) -> None:
        """Every unsynced write is kept, lost or torn (by chance, or all as `fate` says); a new boot begins."""
        self.disk.crash(None if fate is None else lambda _index, _write: fate)
        for m in self.maps:
            m.crash(self.disk.rng)
        self.page_bytes = bytearray(SLOTS * 8)
        self.boot += 1
        self._engine = None

    def stop(self) -> None:
        """An orderly stop."""
        recovery.close_engine(self.engine)
        self.kill()

    def image(self) -> list[bytes]:
        """What the volumes hold."""
        return [bytes(self.pool.raw(i)) for i in range(len(self.sizes))]

    def save(self) -> Saved:
        """Copy what outlives the process, at this instant."""
        maps = [(bytes(m.buf), m._stable) for m in self.maps]
        return Saved(self.disk.snapshot(), maps, bytes(self.page_bytes), set(self.pool.marks), self.boot)

    def restore(self, saved: Saved) -> None:
        """Become what was saved, with no process running."""
        self.disk.restore(saved.files)
        for m, (buf, stable) in zip(self.maps, saved.maps, strict=True):
            m.buf[:], m._stable = buf, stable
        self.page_bytes = bytearray(saved.page)
        self.pool.marks, self.boot = set(saved.marks), saved.boot
        self._engine = None

    def write(self, offset: int, fill: int, *, length: int = 4096, volume: int = 0, fua: bool = False) -> int:
        """A host write of `length` bytes of value `fill`."""
        return self.engine.write(volume, offset, bytes([fill]) * length, fua)


@dataclass
class Pair:
    """Two sides and the line between them."""

    a: Side
    b: Side
    truth: Truth = field(default_factory=lambda: Truth([]))
    copies: int = 0

    def __post_init__(self) -> None:
        self.truth.sizes = list(self.a.sizes)
        self.truth.genesis = [bytes(size) for size in self.a.sizes]
        for side in (self.a, self.b):
            side.on_record = self._recorded

    def _recorded(self, header: Any, payload: bytes | None) -> None:
        data = payload[: header.data_len] if payload is not None and header.data_len else None
        self.truth.add(header.epoch, header.seq, header.kind, Change(header.volume, header.offset, header.length, data))

    def image_at(self, hist: list[list[int]], pos: int) -> list[bytes]:
        """What the volumes hold after the first `pos` records of a history."""
        image = Image(self.truth)
        image.move([(e, b) for e, b in hist], pos)
        return [bytes(v) for v in image.volumes]

    # -- the line -------------------------------------------------------------------------------------------------

    def ship(self, source: Side, sink: Side, records: int | None = None) -> int:
        """Ship what the sink lacks, at most `records` records. Returns how many were new."""
        journal, page = source.engine.journal, source.page
        begin = journal.find(sink.page[HEAD_SEQ] + 1)
        last = page[HEAD_SEQ] if records is None else min(page[HEAD_SEQ], sink.page[HEAD_SEQ] + records)
        data = journal.read(begin, journal.find(last + 1) - begin)
        run = parse_run(data, sink.page[HEAD_SEQ] + 1, sink.page[EPOCH])
        assert run.end == len(data)
        if not run.records:
            return 0
        if not sink.engine.journal.room_for(run.end - run.begin):
            follower.apply_all(sink.engine)
            follower.checkpoint(sink.engine)
        sink.engine.journal.append_run(memoryview(data)[run.begin : run.end], run.last_seq, run.last_epoch)
        return run.records

    def acknowledge(self, source: Side, sink: Side) -> None:
        """Tell the source what the sink holds."""
        page, journal, slot = source.page, source.engine.journal, source.edge(sink).slot
        page[edge_slot(slot, EDGE_RECEIVED_SEQ)] = sink.page[HEAD_SEQ]
        durable = min(sink.page[DURABLE_SEQ], sink.page[HEAD_SEQ])
        if durable >= page[edge_slot(slot, EDGE_DURABLE_SEQ)] and source.engine.state.mode == "journal":
            off = edge_slot(slot, EDGE_DURABLE_OFF)
            page[off] = max(page[off], journal.find(durable + 1))
            page[edge_slot(slot, EDGE_DURABLE_SEQ)] = page[edge_slot(slot, EDGE_TREE_DURABLE)] = durable

    def flow(self, source: Side, sink: Side) -> None:
        """Ship, apply and acknowledge until the sink has everything, a copy under way included."""
        while source.engine.state.copying or sink.page[HEAD_SEQ] < source.page[HEAD_SEQ]:
            self.ship(source, sink)
            follower.apply_all(sink.engine)
            self.acknowledge(source, sink)
            if source.engine.state.copying:
                follower.checkpoint(sink.engine)
                follower.checkpoint(source.engine)
                copier.copy_some(source.engine, 128 << 10)
        follower.apply_all(sink.engine)
        self.acknowledge(source, sink)

    # -- handshakes -----------------------------------------------------------------------------------------------

    def hello(self, side: Side, discard: str = "") -> hello.Hello:
        """The side's HELLO, as its replicator would state it."""
        if side.engine.state.role == SECONDARY:
            follower.settle(side.engine)
        peer = self.b if side is self.a else self.a
        return hello.from_status(
            side.node_id, side.engine.status(side.engine.state.edge_of(peer.node_id)), split=False, discard=discard
        )

    def meet(self, discard: str = "") -> Decision:
        """Shake hands and do what the table says, until records flow or the pair waits. Returns the last decision."""
        for _ in range(6):
            decision = handshake.decide(self.hello(self.a, discard), self.hello(self.b, discard))
            acts = {self.a.node_id: self.a, self.b.node_id: self.b}.get(decision.acts)
            if decision.action is Action.STEP_DOWN:
                assert acts is not None
                roles.demote(acts.engine, decision.lost_records > 0)
            elif decision.action is Action.PROMOTE:
                assert acts is not None
                roles.promote(acts.engine)
            else:
                if decision.action is Action.COPY:
                    self._copy(decision)
                elif decision.action in (Action.STREAM, Action.RESUME):
                    lead, follow = (self.a, self.b) if decision.lead == self.a.node_id else (self.b, self.a)
                    edges.follow(follow.engine, lead.node_id)
                return decision
        raise AssertionError("the handshake does not end")

    def _copy(self, decision: Decision) -> None:
        lead, follow = (self.a, self.b) if decision.lead == self.a.node_id else (self.b, self.a)
        c = None if decision.full else decision.c
        bitmaps = copies.common_bitmap(follow.engine, c)["volumes"]
        if bitmaps is not None:
            bitmaps = hello.of_shared(self.hello(lead), self.hello(follow), bitmaps)
        self.copies += 1
        offer = copies.begin_copy(lead.engine, lead.edge(follow), c, bitmaps, f"copy{self.copies}")
        roles.attach(
            follow.engine, follow.edge(lead), offer["p"], decision.c, offer["epoch"], offer["hist"], offer["masks"],
            f"copy{self.copies}", offer["full"], volumes=offer["volumes"], rewound=offer["rewound"],
        )  # fmt: skip

    def sync_up(self, discard: str = "") -> Decision:
        """Meet and let everything flow; afterwards both images are equal. Returns the decision."""
        decision = self.meet(discard)
        assert decision.action in (Action.STREAM, Action.RESUME, Action.COPY), decision
        lead, follow = (self.a, self.b) if decision.lead == self.a.node_id else (self.b, self.a)
        edges.set_link(lead.engine, lead.edge(follow), True)
        self.flow(lead, follow)
        assert follow.engine.state.copy == OK, follow.engine.status()
        assert lead.image() == follow.image(), f"images differ after {decision.label}"
        return decision


def running_pair(**shape: Any) -> Pair:
    """A pair whose first copy is complete: `a` primary, `b` secondary."""
    pair = Pair(Side("a", **shape), Side("b", **shape))
    pair.a.create(PRIMARY)
    pair.b.create(SECONDARY)
    roles.arm(pair.a.engine, pair.b.node_id)
    roles.arm(pair.b.engine, pair.a.node_id, upstream=True)
    decision = pair.sync_up()
    assert decision.label == "full-fresh"
    return pair
