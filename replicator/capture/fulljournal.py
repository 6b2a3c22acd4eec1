"""A journal that is full, or whose medium has failed: who waits, who is dropped, and when order is given up.

The policy decides (replicator.core.losspolicy); what is durable is done in edges.py and roles.py, with writers parked
where the mode changes. Hosts come here by GroupService when a write finds no room, the follower of a relay and the
copier when the node above, or a copy, waits for room.

    a checkpoint frees space              nothing else is done
    a peer holds the tail, linked         writers wait for it, for full_timeout_s at most
    it is away, or was too slow           its edge is dropped, if a peer is left to journal for
      where the policy gives nobody up    writers fail, whoever else is connected
    no peer is left                       differences are counted from then on (overflow)
    the medium has failed                 the same (go_over)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replicator.capture import edges, roles
from replicator.capture.engine import GroupEngine
from replicator.capture.hardship import ROOM, Hardship
from replicator.capture.state import JOURNAL, SECONDARY, Edge
from replicator.core.errors import MediumError
from replicator.core.losspolicy import Verdict, may_go_alone, on_full
from replicator.journal.page import APPLIED_OFF, EDGE_WANTS, HEAD_OFF, TAIL_OFF, edge_slot

WAIT_S = 0.05


class FullJournal:
    """What one group does when its journal has no room. Methods may be called from any thread."""

    def __init__(
        self,
        engine: GroupEngine,
        events: Callable[..., None],
        checkpoint: Callable[[int], object],
        drain: Callable[[set[int]], None],
        wake_writers: Callable[[], None],
        ring_edges: Callable[[], None],
        hardship: Hardship,
    ) -> None:
        """checkpoint(tail_off): as GroupService.checkpoint. drain(pending): returns when these changes are in the pool.
        wake_writers: those that wait for peers ask anew whether to go on. ring_edges: the replicator has work.
        hardship: is told of writes that wait or fail."""
        self._engine = engine
        self._u64 = engine.page.u64
        self._events = events
        self._checkpoint = checkpoint
        self._drain = drain
        self._wake_writers, self._ring_edges = wake_writers, ring_edges
        self._hardship = hardship
        self.changing = threading.Lock()
        """Held while writers are parked to change the mode, or to replace the journal."""
        self._full_since: float | None = None

    def make_room(self, began: float) -> None:
        """Do what lets a write that found no room at `began` (monotonic) be tried again; waits for a moment at most.

        Raises MediumError when the policy says that it fails, Parked when the journal failed meanwhile.
        """
        engine = self._engine
        before = self._u64[TAIL_OFF]
        if self._checkpoint_frees(before):
            return
        verdicts = [(e, self._verdict(e, began)) for e in edges.holders(engine)]
        engine.full_for = {e.slot: before for e, verdict in verdicts if verdict is not Verdict.OVERFLOW}
        now = time.monotonic()
        if failing := next((e for e, verdict in verdicts if verdict is Verdict.FAIL), None):
            self._hardship.fails(ROOM, failing.peer, now)
            raise self._no_room(failing)
        give_up = [e for e, verdict in verdicts if verdict is Verdict.OVERFLOW]
        if not give_up:
            if verdicts:
                self._hardship.waits(ROOM, verdicts[0][0].peer, now)
            self._ring_edges()
            with engine.opened:
                engine.opened.wait(WAIT_S)
        elif any(not e.dropped and e not in give_up for e in engine.state.downstream):
            self._drop(give_up)
            self._checkpoint(before)
        else:
            self.overflow()

    def _checkpoint_frees(self, tail_off: int) -> bool:
        """Try to move the tail by a checkpoint. Returns whether it has left `tail_off`."""
        kept = edges.kept_from(self._engine)
        if kept is None or min(self._u64[HEAD_OFF], kept) > tail_off:
            self._checkpoint(tail_off)
        return self._u64[TAIL_OFF] != tail_off

    def _verdict(self, edge: Edge, began: float, on_full_policy: str = "") -> Verdict:
        """What the policy says of an edge that keeps the journal full since `began`."""
        policy = self._engine.state.policy
        alone = may_go_alone(edge.sync_on, policy.on_loss)
        linked = edge.slot in self._engine.linked
        waited = time.monotonic() - began
        return on_full(on_full_policy or policy.on_full, linked, waited, policy.full_timeout_s, alone=alone)

    def _no_room(self, edge: Edge) -> MediumError:
        state = self._engine.state
        if not may_go_alone(edge.sync_on, state.policy.on_loss):
            return MediumError(
                f"the journal of group {state.name} is full with what node {edge.peer} lacks, and on_loss=stall lets "
                "nothing exist here only",
                "reconnect that peer, or choose on_loss=degrade to go on alone",
            )
        return MediumError(
            f"the journal of group {state.name} is full with what node {edge.peer} lacks, and its policy is "
            f"on_full={state.policy.on_full}",
            "reconnect that peer, or choose on_full=bitmap",
        )

    def _drop(self, given_up: list[Edge]) -> None:
        """Keep the journal no longer for some peers, while others stay."""
        edges.drop(self._engine, given_up)
        for edge in given_up:
            self._events("edge-dropped", group=self._engine.state.name, peer=edge.peer, pos=self._engine.pos)
        self._wake_writers()
        self._ring_edges()

    def relieve(self) -> None:
        """The journal is full for somebody else than hosts: the copier, or the node that feeds this one. Peers that are
        away, and those that were too slow for too long, are dropped if others are left to go on for."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        before = self._u64[TAIL_OFF]
        if self._checkpoint_frees(before):
            self._full_since = None
            return
        state = self._engine.state
        policy = "bitmap" if state.role == SECONDARY else ""  # hosts here are those of the node above
        given_up = [
            e for e in edges.holders(self._engine) if self._verdict(e, self._full_since, policy) is Verdict.OVERFLOW
        ]
        rest = state.role == SECONDARY or any(not e.dropped and e not in given_up for e in state.downstream)
        if given_up and rest:
            self._drop(given_up)
            self._checkpoint(before)

    def overflow(self) -> None:
        """Give up the journal, with writers parked meanwhile. Durable before any writer goes on."""
        with self.changing:
            engine = self._engine
            if engine.state.mode != JOURNAL or engine.journal.room_for(engine.journal.capacity // 2):
                return
            try:
                done = False
                while not done:
                    self._drain(roles.park(engine, "full"))
                    done = roles.overflow(engine)
                self._events("journal-overflow", group=engine.state.name, pos=engine.pos)
            finally:
                roles.unpark(engine, "full")
            self._wake_writers()
            self._ring_edges()

    def go_over(self) -> None:
        """The journal's medium has failed: count differences from now on. Durable before any writer goes on."""
        with self.changing:
            engine = self._engine
            reason = engine.journal_lost
            if not reason or engine.failed or engine.state.mode != JOURNAL:
                return
            self._count_differences()
            self._events("journal-lost", group=engine.state.name, pos=engine.pos, reason=reason)

    def _count_differences(self) -> None:
        """Park writers and give up the journal, for its medium. Durable before any writer goes on."""
        engine = self._engine
        try:
            done = False
            while not done:
                self._drain(roles.park(engine, "journal"))
                done = roles.overflow(engine)
        finally:
            roles.unpark(engine, "journal")
        self._wake_writers()

    def eased(self) -> None:
        """There was room again for the copier, or for the node above."""
        self._full_since = None

    def is_waited_for(self) -> bool:
        """Whether a run waits for room in the journal of this secondary, though all before it is applied."""
        u64 = self._u64
        wanted = max((u64[edge_slot(e.slot, EDGE_WANTS)] for e in self._engine.state.edges), default=0)
        return wanted > 0 and u64[APPLIED_OFF] == u64[HEAD_OFF]
