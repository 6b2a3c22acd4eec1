"""Handlers of the handshake: HELLO, verdict, and the beginning of what the verdict says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.core import handshake, hello
from replicator.core.errors import ProtocolError, Refused, to_map
from replicator.core.events import (
    Answer,
    ClaimJournal,
    CloseLink,
    Effect,
    FrameIn,
    Log,
    Persist,
    Reply,
    Send,
    StartReceiving,
    StartShipping,
)
from replicator.core.handshake import Action, Decision
from replicator.core.session.base import SessionBase, Step
from replicator.core.transitions import State


class Greeting(SessionBase):
    """From "link up" to records flowing, a copy being planned, or nothing."""

    @property
    def _no_journal(self) -> str:
        """Why nothing can flow over this link, whatever the handshake says; "" when it can."""
        why = (self.status.get("journal") or {}).get("error")
        return f"this node's group has no journal: {why}" if why else ""

    def _keep_hello(self, event: FrameIn, now: float) -> Step:
        self._take_hello(event)
        return self.state, []

    def _say_hello(self, event: Reply, now: float) -> Step:
        self.status = event.result
        if event.result.get("failed"):
            return self._go_down(now, f"this node's group has failed: {event.result['failed']}", close=True, soon=False)
        if self._no_journal and event.result.get("role") != "primary":
            return self._go_down(now, self._no_journal, close=True, soon=False)
        self._pinned_in = int(event.result.get("incarnation", 0))
        if now >= self._discard_until:
            self.discard = ""
        successor = self.handover if event.result.get("role") != "primary" else ""
        self.mine = hello.from_status(
            self.node,
            event.result,
            split=self.split_wanted,
            discard=self.discard,
            discard_epoch=self.discard_epoch,
            handover=successor,
        )
        effects: list[Effect] = [Send(hello.to_frame(self.mine))]
        if self.theirs is None:
            return State.HELLO, effects
        return self._decide(effects, now)

    def _judge(self, event: FrameIn, now: float) -> Step:
        self._take_hello(event)
        return self._decide([], now)

    def _decide(self, effects: list[Effect], now: float) -> Step:
        """Judge both HELLOs. A primary without a journal goes on only to learn that another one has taken its place."""
        assert self.mine is not None and self.theirs is not None
        decision = handshake.decide(self.mine, self.theirs)
        newer = self.theirs.role == "primary" or decision.label == "outdated-primary"
        replaced = newer and decision.action is Action.STEP_DOWN
        if self._no_journal and not replaced:
            state, more = self._go_down(now, self._no_journal, close=True, soon=False)
            return state, effects + more
        self.decision = decision
        effects.append(Send({"t": "verdict", **self.decision.verdict()}))
        return State.VERDICT, effects

    def _take_hello(self, event: FrameIn) -> None:
        theirs = hello.from_frame(event.frame)
        if theirs.node != self.peer:
            raise ProtocolError(f"the peer calls itself node {theirs.node}, expected {self.peer}")
        self.theirs = theirs
        self.peer_report = {**self.peer_report, "role": theirs.role}  # what it was over the link before is over

    def _act(self, event: FrameIn, now: float) -> Step:
        """Both sides have spoken: begin what the verdict says."""
        decision = self.decision
        assert decision is not None and self.mine is not None and self.theirs is not None
        theirs = {key: value for key, value in event.frame.items() if key != "t"}
        if theirs != decision.verdict() and decision.label != "version":
            raise ProtocolError(
                f"the peer decided {theirs}, this node {decision.verdict()}", "run the same version on both"
            )
        self._backoff.reset()
        effects: list[Effect] = [Log("handshake", {"label": decision.label, **decision.facts._asdict()})]
        effects += self._settle_handover(decision)
        state, more = _ACT[decision.action](self, decision, now)
        return state, effects + more

    def _settle_handover(self, decision: Decision) -> list[Effect]:
        """A switchover is over as soon as anybody is primary; its command is answered by who that is."""
        primaries = decision.facts.primaries
        if primaries == "none":
            return []
        effects: list[Effect] = []
        if self.handover:
            self.handover = ""
            effects.append(Persist({"handover": ""}))
        if self._command is not None and primaries not in ("both", "rivals", "given-up"):
            if decision.lead == self.peer and primaries == "one":
                effects.append(Answer(self._command[0], {"primary": self.peer}))
                self._command = None
            else:
                effects += self._fail_command(Refused("the switchover was not carried out", "try again"))
        return effects

    def _act_refuse(self, decision: Decision, now: float) -> Step:
        return State.REFUSED, [self._tell("group.link", up=False), Log("refused", {"label": decision.label})]

    def _act_wait(self, decision: Decision, now: float) -> Step:
        effects: list[Effect] = [self._tell("group.link", up=False)]
        if decision.label == "split-wanted" and self.status.get("sync_on"):
            effects.append(self._tell("group.sync_on", on=False))
        if self._ask_peer_resync and not self.split_wanted and decision.label == "split-wanted":
            effects.append(Send({"t": "resync", "discard": self.discard, "epoch": self.discard_epoch}))
        self._ask_peer_resync = False
        return State.WAITING, effects

    def _act_step_down(self, decision: Decision, now: float) -> Step:
        if decision.acts != self.node:
            return State.WAITING, []
        assert self.mine is not None
        effects: list[Effect] = []
        if decision.label == "primary-lost-tail":
            self.handover = self.peer
            effects.append(Persist({"handover": self.peer}))
        diverged = decision.lost_records > 0
        # What hosts wrote since our HELLO is not in the verdict: then the target refuses, and we compare again.
        upto = None if diverged else self.mine.pos
        effects.append(self._ask("group.demote", diverged=diverged, upto=upto))
        return State.STEPPING_DOWN, effects

    def _act_promote(self, decision: Decision, now: float) -> Step:
        if decision.acts != self.node:
            return State.WAITING, []
        return State.PROMOTING, [CloseLink("becoming primary"), self._unlink(), self._ask("group.promote", force=False)]

    def _unlink(self) -> Log:
        self.link = 0
        return Log("link-down", {"reason": "becoming primary"})

    def _act_stream(self, decision: Decision, now: float) -> Step:
        self.discard, self._ask_peer_resync = "", False
        resuming = decision.action is Action.RESUME
        self._next_poll = now
        effects: list[Effect]
        if decision.lead == self.node:
            effects = [self._tell("group.link", up=True), StartShipping(decision.from_seq, self._pinned_in)]
            if resuming:
                effects.insert(1, self._tell("group.resume_copy"))
            return State.COPY_SOURCE if resuming else State.SOURCE, effects
        assert self.mine is not None
        effects = [ClaimJournal()]
        if self.mine.upstream != self.peer or self.mine.state == "diverged":
            effects.append(self._tell("group.follow"))
        effects.append(self._receive(decision.from_seq, self.mine.hist))
        return State.COPY_TARGET if resuming else State.TARGET, effects

    def _receive(self, expect_seq: int, hist: Any) -> StartReceiving:
        return StartReceiving(expect_seq, int(hist[-1][0]) if hist else 0)

    def _act_copy(self, decision: Decision, now: float) -> Step:
        self._bitmaps = {}
        if decision.lead == self.node:
            return State.COLLECTING, [Log("copy-planned", {"label": decision.label, "full": decision.full})]
        return State.MAPPING, [ClaimJournal(), self._ask("group.bitmap", c=None if decision.full else decision.c)]

    def _stepped_down(self, event: Reply, now: float) -> Step:
        label = self.decision.label if self.decision else ""
        state, effects = self._go_down(now, "gave up the primary role", close=True, soon=True)
        return state, [Log("stepped-down", {"label": label}), *effects]

    def _busy_failed(self, event: Reply, now: float) -> Step:
        effects: list[Effect] = []
        if self._takeover_id is not None:
            error = Refused(f"the target refused: {event.error}", "see 'farstripe explain'")
            effects.append(Answer(self._takeover_id, error=to_map(error)))
            self._takeover_id = None
        state, more = self._go_down(now, f"the target refused: {event.error}", close=True, soon=False)
        return state, effects + more

    def _target_failed(self, event: Reply, now: float) -> Step:
        return self._go_down(now, f"our target refused: {event.error}", close=True, soon=False)


_ACT: dict[Action, Callable[[Greeting, Decision, float], Step]] = {
    Action.REFUSE: Greeting._act_refuse,
    Action.WAIT: Greeting._act_wait,
    Action.STEP_DOWN: Greeting._act_step_down,
    Action.PROMOTE: Greeting._act_promote,
    Action.STREAM: Greeting._act_stream,
    Action.RESUME: Greeting._act_stream,
    Action.COPY: Greeting._act_copy,
}
