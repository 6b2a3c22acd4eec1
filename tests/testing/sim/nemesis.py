"""What goes wrong in a run, and when: kills, power cuts, network faults, a failing medium, and operators."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from replicator.capture.state import SECONDARY
from replicator.journal.page import HEAD_OFF, TAIL_OFF
from replicator.journal.superblock import DATA_START
from tests.testing.sim.node import Node, is_primary
from tests.testing.sim.replicator import Edge

if TYPE_CHECKING:
    from tests.testing.sim.world import World

FAULT_KINDS = (
    "kill-target", "kill-replicator", "kill-node", "power", "power-both", "cut", "silence", "down", "slow", "eio",
    "takeover", "force-takeover", "switchover", "split", "resync", "policy",
)  # fmt: skip


class Nemesis:
    """Strikes again and again with the faults that the options allow, until the world is calm."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng

    def begin(self) -> None:
        """The first strike comes after the usual gap."""
        self._world.clock.after(self._world.options.fault_gap_s, self._next)

    def _next(self) -> None:
        w, rng = self._world, self._rng
        if w.calm:
            return
        w.clock.after(w.options.fault_gap_s * (0.3 + 1.4 * rng.random()), self._next)
        if not w.options.faults:
            return
        kind = rng.choice(w.options.faults)
        node = rng.choice(w.nodes)
        w.clock.note(f"nemesis {kind} {node.name}")
        getattr(self, "_do_" + kind.replace("-", "_"))(node, rng)

    def _strike(self, node: Node, kind: str, rng: random.Random) -> None:
        w = self._world
        if node.target is not None and not node.armed and rng.random() < w.options.mid_write:
            node.arm(kind)
        else:
            node.die(kind)
        w.clock.after(0.5 + rng.expovariate(0.7), w.start, node)

    def _do_kill_target(self, node: Node, rng: random.Random) -> None:
        self._strike(node, "target", rng)

    def _do_kill_replicator(self, node: Node, rng: random.Random) -> None:
        w = self._world
        node.die("replicator")
        w.clock.after(0.05 + rng.expovariate(1.0), w.start, node)

    def _do_kill_node(self, node: Node, rng: random.Random) -> None:
        self._strike(node, "node", rng)

    def _do_power(self, node: Node, rng: random.Random) -> None:
        self._strike(node, "power", rng)

    def _do_power_both(self, node: Node, rng: random.Random) -> None:
        for one in self._world.nodes:
            self._strike(one, "power", rng)

    def _wire(self, rng: random.Random) -> frozenset[str] | None:
        """One wire of several, None for all."""
        edges = self._world.edges
        if len(edges) < 2 or rng.random() < 0.2:
            return None
        return frozenset(node.name for node in rng.choice(edges))

    def _do_cut(self, node: Node, rng: random.Random) -> None:
        self._world.network.break_all("reset by the network", self._wire(rng))

    def _do_silence(self, node: Node, rng: random.Random) -> None:
        self._world.network.silence_all(self._wire(rng))

    def _do_down(self, node: Node, rng: random.Random) -> None:
        w, wire = self._world, self._wire(rng)
        if wire is None:
            w.network.down = True
        else:
            w.network.cut.add(wire)
        if rng.random() < 0.5:
            w.network.break_all("no route", wire)
        w.clock.after(rng.expovariate(0.5), w.heal)

    def _do_slow(self, node: Node, rng: random.Random) -> None:
        w = self._world
        w.network.delay_s = 0.2
        w.clock.after(rng.expovariate(0.5), w.heal)

    def _do_eio(self, node: Node, rng: random.Random) -> None:
        """The journal cannot be synced once. Its node reboots, unless a copy has got a new journal by then."""
        w = self._world
        if node.target is not None:
            w.spoiled, node.target.replaced = True, False
            node.disk.fail_next_sync("journal")
            w.clock.after(1.0, self._after_eio, node)

    def _after_eio(self, node: Node) -> None:
        w = self._world
        node.disk.heal("journal")
        target = node.target
        if target is not None and target.replaced and not (target.engine.failed or target.engine.journal_lost):
            return
        node.die("power")
        w.clock.after(0.5, w.start, node)

    def _do_takeover(self, node: Node, rng: random.Random) -> None:
        self._world.take_over(node, force=False)

    def _do_force_takeover(self, node: Node, rng: random.Random) -> None:
        w = self._world
        if rng.random() < 0.5:
            others = [one for one in w.nodes if one is not node]
            victim = next((one for one in others if is_primary(one)), others[0])
            victim.die("node")
            w.clock.after(1.0 + rng.expovariate(0.5), w.start, victim)
        w.take_over(node, force=True)

    def _do_marker_takeover(self, node: Node, rng: random.Random) -> None:
        """Asked for by name only: a takeover some records back, of a node that is fed, mostly one that feeds others."""
        w = self._world
        relays = [up for up, _ in w.edges if up.target is not None and up.target.engine.state.role == SECONDARY]
        if relays and rng.random() < 0.7:
            node = rng.choice(relays)
        if rng.random() < 0.7:
            for victim in w.primaries:
                victim.die("node")
                w.clock.after(1.0 + rng.expovariate(0.5), w.start, victim)
        w.take_over(node, force=True, marker=rng.choice((1, 3, 10, 40)))

    def _do_lose_journal(self, node: Node, rng: random.Random) -> None:
        """Asked for by name only: a copy dies, and its journal cannot be read when it starts. What it had promised by
        it is void until it has been sent that again."""
        w = self._world
        copies = [one for one in w.nodes if one.target is not None and one.target.engine.state.role == SECONDARY]
        if not copies:
            return
        node = rng.choice(copies)
        node.die("node")
        file = node.disk.open("journal")
        file.pwrite(bytes(DATA_START), 0)
        file.fdatasync()
        w.truth.promises = [p for p in w.truth.promises if p.holder != node.name]
        w.clock.after(0.1 + rng.expovariate(2.0), w.start, node)

    def _do_rot(self, node: Node, rng: random.Random) -> None:
        """Asked for by name only, without power loss, and without deaths in the middle of a write, which redo would
        complete: a bit flips in the journal's file, within a record that is kept. What a copy had promised by its
        journal may be void."""
        journal = "journal"
        if node.target is None or node.target.engine.state.journal_error or journal not in node.disk.names():
            return
        page = node.target.engine.page
        tail, head = page[TAIL_OFF], page[HEAD_OFF]
        if tail < head:
            at = rng.randrange(max(tail, head - 40_000) if rng.random() < 0.7 else tail, head)
            capacity = node.target.engine.journal.capacity
            node.disk.corrupt(journal, DATA_START + at % capacity)
            self._world.clock.note(f"rot at {at} of {tail} to {head} of {node.name}")

    def _do_switchover(self, node: Node, rng: random.Random) -> None:
        w = self._world
        for one in w.primaries:
            if edge := self._edge(one, rng):
                w.command(edge, "switchover", deadline_s=3.0)

    def _edge(self, node: Node, rng: random.Random) -> Edge | None:
        """An edge of a node whose replicator runs."""
        edges = list(node.replicator.edges.values()) if node.replicator is not None else []
        return rng.choice(edges) if edges else None

    def _do_split(self, node: Node, rng: random.Random) -> None:
        if edge := self._edge(node, rng):
            self._world.command(edge, "split")

    def _do_resync(self, node: Node, rng: random.Random) -> None:
        if edge := self._edge(node, rng):
            self._world.command(edge, "resync", discard=rng.choice(("", "", node.node_id, edge.peer.node_id)))

    def _do_policy(self, node: Node, rng: random.Random) -> None:
        w = self._world
        changes = rng.choice(({"mode": "sync"}, {"mode": "async"}, {"on_loss": "stall"}, {"on_loss": "degrade"}))
        target = node.target
        if target is not None and not target.engine.failed:
            peers = [edge.peer for edge in target.engine.state.edges if edge.peer]
            peer = rng.choice(["", *peers]) if len(peers) > 1 else ""
            node.run("target", lambda: target.service.set_policy(changes, peer))
            if changes.get("mode") == "async":
                met = [w.by_id[p].name for p in ([peer] if peer else peers)]
                given_up = {frozenset((node.name, name)) for name in met}
                w.truth.promises = [p for p in w.truth.promises if not given_up & set(p.via)]
