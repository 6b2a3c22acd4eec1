"""Hosts that read on the primary, and what they may be told.

A read sees the pool at once; it is told when GroupService would tell it: the real Unanswered says what it waits for,
and waiting is that of a write (Target). What was really there to be seen is known apart from that: every host write
that entered the journal, with its range.

Oracle `reads` (oracles.check_read): whenever a read is answered and an edge is synchronous, the peer has said that it
holds the newest host write the read has met. So hosts know of nothing that the peer could lack, and each such write is
a promise from then on.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from replicator.capture.engine import GroupEngine
from replicator.capture.state import JOURNAL, PRIMARY, Edge
from replicator.core.records import Header, Kind
from replicator.journal.page import EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ, TAIL_SEQ, edge_slot
from tests.testing.sim.target import Request, Target

if TYPE_CHECKING:
    from tests.testing.sim.node import Node
    from tests.testing.sim.world import World

HOST_KINDS = (Kind.WRITE, Kind.ZERO, Kind.TRIM)
REMEMBERED = 400
WAITING = 24


class Written(NamedTuple):
    """A host write that has its record."""

    epoch: int
    seq: int
    volume: int
    offset: int
    end: int


class HostWrites:
    """Those of one node, whatever became of its processes, and what peers have ever said that they hold."""

    def __init__(self) -> None:
        self.last: list[Written] = []
        self._said: dict[tuple[str, int, int], int] = {}

    def heard(self, engine: GroupEngine) -> None:
        """Called after everything that happens: a peer may lose in a power cut what it had received."""
        for edge in engine.state.edges:
            for what in (EDGE_RECEIVED_SEQ, EDGE_DURABLE_SEQ):
                key, at = (edge.peer, engine.epoch, what), engine.page[edge_slot(edge.slot, what)]
                if at > self._said.get(key, 0):
                    self._said[key] = at

    def said(self, engine: GroupEngine, edge: Edge, *, durable: bool) -> int:
        """The highest position in this epoch that the peer has ever said that it holds.

        What has left the journal it has on stable storage.
        """
        self.heard(engine)
        what = EDGE_DURABLE_SEQ if durable else EDGE_RECEIVED_SEQ
        return max(self._said.get((edge.peer, engine.epoch, what), 0), engine.page[TAIL_SEQ] - 1)

    def note(self, h: Header) -> None:
        """A record enters the journal."""
        if h.kind in HOST_KINDS:
            self.last.append(Written(h.epoch, h.seq, h.volume, h.offset, h.offset + h.length))
            del self.last[:-REMEMBERED]

    def newest(self, engine: GroupEngine, volume: int, offset: int, length: int) -> int:
        """The seq of the newest one of the running epoch that a reader meets here; 0: none."""
        if engine.state.role != PRIMARY or engine.state.mode != JOURNAL:
            return 0
        met = [
            w.seq
            for w in self.last
            if w.volume == volume and w.offset < offset + length and offset < w.end and w.epoch == engine.epoch
        ]
        return max((seq for seq in met if seq <= engine.pos), default=0)  # the others were lost with power


class Readers:
    """The hosts of a world that read: often what was written last, by themselves or others."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.told = self.waited = 0

    def begin(self) -> None:
        """Begin, for the rest of the run."""
        self.world.clock.after(0.0, self._step)

    def _step(self) -> None:
        gap_s = self.world.options.write_gap_s * (4 if self.world.calm else 1)
        self.world.clock.after(gap_s * self.rng.expovariate(1.0), self._step)
        for node in self.world.primaries:
            target = node.target
            if target is not None and len(target.waiting) < WAITING and not target.engine.failed:
                node.run("target", lambda node=node, target=target: self._read(node, target))

    def _read(self, node: Node, target: Target) -> None:
        rng, engine = self.rng, target.engine
        recent = node.host_writes.last[-8:]
        sizes = {int(v["index"]): int(v["size"]) for v in engine.state.volumes}
        if recent and rng.random() < 0.8:
            volume, offset = (w := rng.choice(recent)).volume, w.offset
        else:
            volume, offset = rng.choice(sorted(sizes)), rng.randrange(0, 1 << 16, 512)
        length = min(rng.choice((512, 4096, 16384)), sizes.get(volume, 0) - offset)
        if length <= 0:
            return
        request = Request("read", volume, offset, length, began=self.world.clock.now, epoch=engine.epoch)
        request.met = node.host_writes.newest(engine, volume, offset, length)
        found = engine.unanswered.over(volume, offset, length)
        request.seq = max((seq for seq, _ in found), default=0)
        request.wants_durable = engine.state.policy.ack == "durable" or any(durable for _, durable in found)
        request.edges = list(engine.waits)
        self.told += 1
        if request.seq and request.edges:
            self.waited += 1
            target.waiting.append(request)
            target.serve()
        else:
            request.seq = 0
            target.answer_read(request)
