"""The person at a run's end: clears what waits for an operator, as `farstripe explain` says, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicator.capture.state import OK
from replicator.core.transitions import State
from tests.testing.sim.node import Node, is_primary
from tests.testing.sim.replicator import Edge

if TYPE_CHECKING:
    from tests.testing.sim.world import World


class Operator:
    """Acts once a second while faults are over and nodes are not in sync yet."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._acting = False
        """A takeover was asked for, and nothing seen of it yet."""

    def act(self) -> None:
        """What a person does who reads `farstripe explain` on every node."""
        if any(node.target is None or node.replicator is None for node in self._world.nodes):
            return
        primaries = self._world.primaries
        if not primaries and self._settled() and not self._acting:
            self._acting = True
            self._world.take_over(self._best(self._world.nodes), force=True)
            return
        self._acting = False
        chosen = self._best(primaries) if primaries else None
        edges = [e for n in self._world.nodes if n.replicator is not None for e in n.replicator.edges.values()]
        refused = [e for e in edges if e.session.state is State.REFUSED]
        beside = [e for e in refused if chosen in (self._top_of(e.node), self._top_of(e.peer))]
        for edge in edges:
            if not beside or edge in beside or edge not in refused:  # of three trees none joins another first
                self._clear(edge, chosen)

    def _clear(self, edge: Edge, chosen: Node | None) -> None:
        """Clear what waits for an operator on one edge, seen from one of its ends. chosen: the primary that stays."""
        session = edge.session
        decision = session.decision if session.link else None
        label = decision.label if decision else ""
        if session.state is State.STOPPED or (session.state is State.WAITING and label == "split-wanted"):
            self._world.command(edge, "resync")
        elif session.state is State.REFUSED and decision is not None and edge.node.name < edge.peer.name:
            lead, follow = self._world.by_id[decision.lead], self._world.by_id[decision.follow]
            loser = lead if self._top_of(follow) is chosen and self._top_of(lead) is not chosen else follow
            self._world.command(edge, "resync", discard=loser.node_id)

    def _top_of(self, node: Node) -> Node | None:
        """The primary that a node's records come from, None when nobody feeds it or the one above."""
        for _ in self._world.nodes:
            if is_primary(node):
                return node
            above = self._world.by_id.get(node.target.engine.state.upstream) if node.target is not None else None
            if above is None:
                return None
            node = above
        return None

    def _settled(self) -> bool:
        """Nobody is about to become primary."""
        states = [
            e.session.state for n in self._world.nodes if n.replicator is not None for e in n.replicator.edges.values()
        ]
        return not any(state in (State.PROMOTING, State.YIELDING, State.HANDED) for state in states)

    def _best(self, nodes: list[Node]) -> Node:
        """The node a person would choose as primary: a consistent one, the one with the newest history."""

        def rank(node: Node) -> tuple[bool, Any, int]:
            assert node.target is not None
            engine = node.target.engine
            return engine.state.copy == OK, engine.epoch, engine.pos

        return max(nodes, key=rank)
