"""Three and more engines in one process: a tree of pairs, for tests of edges. See pairharness.

A Line joins a node with one below it. Its upper end may be the primary or a secondary that passes on what it gets; then
a copy is planned as the replicators do it: pinned there, its blocks put on the primary's list, and the lower end told
which SYNCED record completes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.capture import copier, copies, edges, follower, roles
from replicator.capture.state import OK, PRIMARY, SECONDARY
from replicator.core.errors import IntegrityError, Refused
from replicator.core.handshake import Action, Decision
from replicator.journal.page import DROPS, HEAD_SEQ, INCARNATION
from tests.testing.pairharness import Pair, Side
from tests.testing.sim.truth import Truth

FLOWS = (Action.STREAM, Action.RESUME, Action.COPY)


class Line(Pair):
    """A pair in a tree: `a` is the upper end, `b` the lower one."""

    def __init__(self, tree: Tree, upper: Side, lower: Side) -> None:
        super().__init__(upper, lower, tree.truth)
        self.tree = tree
        self._marks: Any = None

    def _now(self) -> Any:
        upper, lower = self.a, self.b
        edge = upper.edge(lower)
        drops = upper.page[DROPS + edge.slot]
        return upper.engine, lower.engine, upper.page[INCARNATION], lower.page[INCARNATION], drops

    @property
    def up(self) -> bool:
        """Whether records may flow: nothing was restarted, started over or dropped since the ends met."""
        return self._marks is not None and self._marks == self._now()

    def cut(self) -> None:
        """The link goes down."""
        self._marks = None
        edges.set_link(self.a.engine, self.a.edge(self.b), False)

    def connect(self) -> bool:
        """Meet, unless the upper end has nothing consistent to offer or lags behind the lower one."""
        upper, lower = self.a.engine, self.b.engine
        self.cut()
        if upper.state.role == SECONDARY:
            follower.settle(upper)
            lags = lower.pos > upper.pos and lower.state.hist == upper.state.hist
            if upper.state.copy != OK or not upper.state.hist or lags:
                return False
        if lower.state.role == PRIMARY:
            return False
        decision = self.meet()
        if decision.action not in FLOWS:
            return False
        edges.set_link(upper, self.a.edge(self.b), True)
        self._marks = self._now()
        return True

    def _copy(self, decision: Decision) -> None:
        if self.a.engine.state.role == PRIMARY:
            super()._copy(decision)
            return
        c = None if decision.full else decision.c
        edge = self.a.edge(self.b)
        self.copies += 1
        copy_id = f"relayed{self.copies}"
        bitmaps = copies.common_bitmap(self.b.engine, c)["volumes"]
        offer = copies.pin_copy(self.a.engine, edge, c, bitmaps, copy_id)
        found = copies.extend_copy(self.tree.top.engine, copy_id, None if offer["full"] else offer["masks"])
        until = found["seq"], found["epoch"]
        copies.copy_until(self.a.engine, edge, copy_id, *until)
        roles.attach(
            self.b.engine, self.b.edge(self.a), offer["p"], decision.c, offer["epoch"], offer["hist"], offer["masks"],
            copy_id, offer["full"], *until, offer["volumes"], offer["rewound"],
        )  # fmt: skip

    def step(self, records: int | None = None) -> bool:
        """Ship, apply and acknowledge what there is. Returns whether anything moved."""
        if not self.up:
            return False
        upper, lower = self.a, self.b
        before = (lower.page[HEAD_SEQ], upper.page[HEAD_SEQ])
        try:
            self.ship(upper, lower, records)
        except IntegrityError:  # it is not in the journal any more
            self.cut()
            return True
        follower.apply_all(lower.engine)
        if self.up:  # a copy that is void has the ends meet again
            self.acknowledge(upper, lower)
        return (lower.page[HEAD_SEQ], upper.page[HEAD_SEQ]) != before


class Tree:
    """Nodes, and the lines between them from the top down."""

    def __init__(self, names: str, shape: dict[str, str], make: Callable[[str], Side] = Side) -> None:
        """shape: lower end -> upper end; the first of `names` is the top."""
        self.sides = {name: make(name) for name in names}
        self.truth = Truth([])
        self.lines = {lower: Line(self, self.sides[upper], self.sides[lower]) for lower, upper in shape.items()}
        self.top = self.sides[names[0]]

    def create(self) -> None:
        """Make the group everywhere; no copy is complete yet, so nodes below a secondary are not paired."""
        for side in self.sides.values():
            side.create(PRIMARY if side is self.top else SECONDARY)

    def pair(self, lower: str, mode: str = "") -> None:
        """Create the pair of a node with the one above it, which must have a complete copy."""
        line = self.lines[lower]
        roles.arm(line.b.engine, line.a.node_id, upstream=True)
        roles.arm(line.a.engine, line.b.node_id, mode)

    def paired(self) -> list[Line]:
        """The lines whose pair exists at both ends."""
        return [
            line
            for line in self.lines.values()
            if line.a.engine.state.edge_of(line.b.node_id) and line.b.engine.state.edge_of(line.a.node_id)
        ]

    def round(self, records: int | None = None) -> bool:
        """One step of everything: links, copier, checkpoints. Returns whether anything moved."""
        moved = False
        for line in self.paired():
            if not line.up:
                try:
                    moved |= line.connect()
                except Refused:
                    continue
            moved |= line.step(records)
        for side in self.sides.values():
            follower.checkpoint(side.engine)
        return bool(copier.copy_some(self.top.engine, 128 << 10)) or moved

    def settle(self, rounds: int = 60) -> None:
        """Let everything flow until all nodes hold the same. Raises AssertionError when they do not get there."""
        for _ in range(rounds):
            if not self.round() and self.equal():
                return
        raise AssertionError(f"no end: {[s.engine.status() for s in self.sides.values()]}")

    def equal(self) -> bool:
        """Whether all paired nodes are consistent, hold the same, and nothing is under way."""
        lines = self.paired()
        return all(
            line.b.engine.state.copy == OK
            and line.b.image() == line.a.image()
            and not line.a.engine.state.copying
            and not line.a.edge(line.b).dropped
            for line in lines
        )


def running_tree(names: str, shape: dict[str, str], make: Callable[[str], Side] = Side) -> Tree:
    """A tree whose first copies are complete. shape: lower end -> upper end, from the top down."""
    tree = Tree(names, shape, make)
    tree.create()
    for lower in shape:
        tree.pair(lower)
        tree.settle()
    return tree


CHAIN = ("abc", {"b": "a", "c": "b"})
FAN = ("abc", {"b": "a", "c": "a"})
BRANCH = ("abcd", {"b": "a", "c": "b", "d": "a"})
