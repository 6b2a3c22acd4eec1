"""Handlers of a switchover, on both sides."""

from __future__ import annotations

from replicator.core.errors import Refused, TimedOut, to_map
from replicator.core.events import (
    Acked,
    Answer,
    Command,
    DataStopped,
    Effect,
    FrameIn,
    LinkDown,
    Log,
    Persist,
    Reply,
    Send,
    StopReceiving,
    StopShipping,
    Tick,
)
from replicator.core.session.base import COMMAND_S, HANDED_S, SWITCHOVER_S, Step
from replicator.core.session.links import Links
from replicator.core.transitions import SWITCHING, State


class Switching(Links):
    """Hold, drain, demote durably, hand over; or leave everything as it was."""

    def _switchover(self, event: Command, now: float) -> Step:
        if self.status.get("role") == "secondary":
            return self._switchover_refused(event, now)
        deadline_s = float(event.args.get("deadline_s", SWITCHOVER_S))
        self._command = (event.id, now + deadline_s)
        return State.HOLDING, [
            Log("switchover", {"to": self.peer}),
            self._ask("group.hold", deadline_s=deadline_s + HANDED_S),
        ]

    def _switchover_refused(self, event: Command, now: float) -> Step:
        if self.state in SWITCHING:
            error = Refused("roles are being exchanged already, by another command", "see 'farstripe status'")
        elif self.state in (State.TARGET, State.COPY_TARGET) or self.status.get("role") == "secondary":
            error = Refused("this node is a secondary", "run the switchover on the primary node")
        elif self.state is State.COPY_SOURCE:
            error = Refused("the copy on the peer is not complete", "wait for it with 'farstripe pair wait'")
        else:
            why = f"session {self.state.value}" + ("" if self.link else f": {self.link_reason}")
            error = Refused(
                f"no running pair to switch over ({why})",
                "see 'farstripe explain'; a takeover on the peer is the way when this side is lost",
            )
        return self.state, [Answer(event.id, error=to_map(error))]

    def _watch_switchover(self, event: Tick, now: float) -> Step:
        if self._command is not None and now >= self._command[1]:
            self._awaited = 0
            error = TimedOut("the peer did not catch up in time", "check the lag with 'farstripe status' and try again")
            return State.SOURCE, [self._tell("group.release"), *self._fail_command(error)]
        given_up = self._linked_chores(event, now)
        if given_up:
            return self._abandon_switchover(given_up)
        return self.state, self._ping_if_due(now)

    def _watch_handed(self, event: Tick, now: float) -> Step:
        if now - self._since >= HANDED_S:
            return self._go_down(
                now, "the new primary did not answer; the handshake will finish it", close=True, soon=True
            )
        return self._watch_link_only(event, now)

    def _drain(self, event: Reply, now: float) -> Step:
        self._hold_seq = int(event.result["seq"])
        return self._yield_if_drained()

    def _drained(self, event: Acked, now: float) -> Step:
        self.acked = (event.received, event.durable, event.applied)
        return self._yield_if_drained()

    def _yield_if_drained(self) -> Step:
        if self.acked[1] < self._hold_seq:
            return State.DRAINING, []
        self.handover = self.peer
        return State.YIELDING, [
            StopShipping(),
            Persist({"handover": self.peer}),
            self._ask("group.demote", diverged=False, upto=self._hold_seq),
        ]

    def _hold_failed(self, event: Reply, now: float) -> Step:
        error = Refused(f"the target could not hold its writers: {event.error}", "try again")
        return State.SOURCE, self._fail_command(error)

    def _yielded(self, event: Reply, now: float) -> Step:
        if not self.link:
            return self._go_down(now, self.link_reason, close=False, soon=True)
        if self._command is not None:
            self._command = (self._command[0], now + COMMAND_S)
        frame = {"t": "handover", "seq": self._hold_seq, "epoch": int(event.result.get("epoch", 0))}
        return State.HANDED, [Log("stepped-down", {"label": "switchover"}), Send(frame)]

    def _yield_failed(self, event: Reply, now: float) -> Step:
        error = Refused(f"the target would not become secondary: {event.error}", "see 'farstripe explain'")
        effects = [self._tell("group.release"), *self._fail_command(error)]
        state, more = self._go_down(now, "the switchover failed", close=True, soon=True)
        return state, [*effects, *more]

    def _switchover_link_lost(self, event: LinkDown | DataStopped, now: float) -> Step:
        reason = event.reason if isinstance(event, LinkDown) else event.message
        return self._abandon_switchover(self._go_down(now, reason, close=isinstance(event, DataStopped), soon=False))

    def _abandon_switchover(self, given_up: Step) -> tuple[State, list[Effect]]:
        error = Refused("the link was lost before the peer had everything; this node stays primary", "try again later")
        state, effects = given_up
        return state, [self._tell("group.release"), *self._fail_command(error), *effects]

    def _take(self, event: FrameIn, now: float) -> Step:
        return State.PROMOTING, [StopReceiving(), Log("handover", {}), self._ask("group.promote", force=False)]

    def _taken(self, event: FrameIn, now: float) -> Step:
        return self._go_down(now, "roles were exchanged", close=True, soon=True)

    def _promoted(self, event: Reply, now: float) -> Step:
        effects: list[Effect] = [Log("promoted", {"epoch": event.result.get("epoch")})]
        if self.handover:
            self.handover = ""
            effects.append(Persist({"handover": ""}))
        if self._takeover_id is not None:
            effects.append(Answer(self._takeover_id, dict(event.result)))
            self._takeover_id = None
        if self.link:
            base = {"epoch": event.result.get("epoch"), "base": event.result.get("base")}
            effects.append(Send({"t": "taken", **base}))
        state, more = self._go_down(now, "roles were exchanged", close=True, soon=True)
        return state, effects + more
