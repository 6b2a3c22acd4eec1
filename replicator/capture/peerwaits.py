"""Waiting for the peers of synchronous edges: how long, and what happens when they do not answer.

How a thread sleeps and is woken is in waiters.py, what the policy says in replicator.core.losspolicy. Here is what
follows from it: that a group has degraded is on stable storage before anybody goes on because of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from replicator.capture import edges
from replicator.capture.engine import GroupEngine
from replicator.capture.hardship import NOTABLE_S, PEER, Hardship
from replicator.capture.state import PRIMARY, Edge
from replicator.capture.waiters import Waiters
from replicator.core.errors import MediumError, Refused
from replicator.core.losspolicy import Verdict, on_unanswered
from replicator.journal.page import EDGE_DURABLE_SEQ, EDGE_RECEIVED_SEQ, Doorbell, edge_slot


class PeerWaits:
    """Of one group. Thread-safe."""

    def __init__(
        self,
        engine: GroupEngine,
        bell: Doorbell,
        events: Callable[..., None],
        refuse_when_closing: Callable[[], None],
        hardship: Hardship,
    ) -> None:
        """bell: rung when a peer has answered. refuse_when_closing: raises when the target stops. hardship: is told of
        what waits for long, or fails."""
        self._engine = engine
        self._events = events
        self._refuse_when_closing = refuse_when_closing
        self._hardship = hardship
        self._waiters = Waiters(engine.page, bell)
        self.wake_all = self._waiters.wake_all
        """Makes everybody ask now whether he should give up."""

    def wait(self, seq: int, durable: bool) -> None:
        """Wait for the peer of every synchronous edge to hold `seq`, as long as the policy allows.

        Raises MediumError when the group stalls and had no answer in time, or has failed, or the target stops; Refused
        as check_still_primary. Durable on return, where a peer does not hold it: that its edge is degraded or gone.
        """
        began = time.monotonic()
        for edge in self._engine.waits:
            self.wait_for(edge, seq, durable, began)

    def wait_for(self, edge: Edge, seq: int, durable: bool, began: float) -> None:
        """`wait` for one of them. began: when the waiting did, time.monotonic()."""
        engine = self._engine

        def give_up() -> bool:
            if not edge.sync_on:
                return True
            self._refuse_when_closing()
            policy, now = engine.state.policy, time.monotonic()
            verdict = on_unanswered(policy.on_loss, now - began, policy.loss_timeout_s)
            if verdict is Verdict.WAIT and now - began >= NOTABLE_S / 2:
                self._hardship.waits(PEER, edge.peer, now)
            if verdict is Verdict.DEGRADE:
                if edges.degrade(engine, edge):
                    self._events(
                        "degraded", group=engine.state.name, seq=seq, waited_s=policy.loss_timeout_s, peer=edge.peer
                    )
                self.wake_all()
                return True
            if verdict is Verdict.FAIL or engine.failed:
                if not engine.failed:
                    self._hardship.fails(PEER, edge.peer, now)
                raise MediumError(
                    f"the peer of group {engine.state.name} has not answered for {policy.loss_timeout_s:g} s",
                    "restore the link, or choose on_loss=degrade to go on alone",
                )
            return False

        what = EDGE_DURABLE_SEQ if durable else EDGE_RECEIVED_SEQ
        if not self._waiters.wait(seq, edge_slot(edge.slot, what), give_up):
            self.check_still_primary(seq)

    def check_still_primary(self, seq: int) -> None:
        """A write whose waiting ended with the primary role is answered only if the handover included it."""
        state = self._engine.state
        if state.role != PRIMARY and state.copy != "ok":
            raise Refused(f"group {state.name} gave up the primary role before write {seq} was copied")
