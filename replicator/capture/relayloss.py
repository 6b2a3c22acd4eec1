"""A secondary that feeds others, and a peer of a synchronous edge below it that does not answer.

What such a peer lacks, this node does not call received either (replicator.daemon.link.receiver), so writes on the
primary wait for the whole way. When it stays silent and the policy says to degrade, its edge is degraded here, a little
sooner than the primary would degrade its own edge with this node: the rest of the way then stays synchronous.
"""

from __future__ import annotations

from replicator.capture import edges
from replicator.capture.engine import GroupEngine
from replicator.capture.state import SECONDARY
from replicator.core.losspolicy import Verdict, on_unanswered
from replicator.journal.page import EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ, HEAD_SEQ, edge_slot

SOONER = 0.7
"""Fraction of the policy's time after which a relay gives up: its primary waits no longer than the whole."""


class RelayWatch:
    """Since when the peers of a relay owe an answer. `look` is called a few times a second, by one thread."""

    def __init__(self, engine: GroupEngine) -> None:
        self._engine = engine
        self._owed: dict[int, tuple[int, float]] = {}
        """By slot: the seq a peer owed when it was first noticed, and when that was."""

    def look(self, now: float) -> list[str]:
        """Degrade the edges whose peers have been silent for too long; returns these peers. now: monotonic seconds.

        Durable: that they are degraded; only then is more called received than they have.
        """
        engine = self._engine
        state, u64 = engine.state, engine.page.u64
        waits = [e for e in state.edges if e.sync_on] if state.role == SECONDARY else []
        self._owed = {slot: owed for slot, owed in self._owed.items() if any(e.slot == slot for e in waits)}
        given_up = []
        policy = state.policy
        what = EDGE_DURABLE_SEQ if policy.ack == "durable" else EDGE_RECEIVED_SEQ
        for edge in waits:
            owed = self._owed.get(edge.slot)
            if owed is None or u64[edge_slot(edge.slot, what)] >= owed[0]:
                owed = self._owed[edge.slot] = (u64[HEAD_SEQ], now)
            silent_s = now - owed[1] if u64[edge_slot(edge.slot, what)] < owed[0] else 0.0
            if on_unanswered(policy.on_loss, silent_s, policy.loss_timeout_s * SOONER) is Verdict.DEGRADE:
                edges.degrade(engine, edge)
                given_up.append(edge.peer)
        return given_up
