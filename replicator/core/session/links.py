"""Handlers of links that come and go, of time, and of heartbeats."""

from __future__ import annotations

from typing import Any

from replicator.core.errors import ProtocolError
from replicator.core.events import CloseLink, Dial, Effect, FrameIn, LinkDown, LinkUp, Log, Send, Tick
from replicator.core.hello import VERSION
from replicator.core.session.base import (
    HANDSHAKE_S,
    IDLE_POLL_S,
    PING_S,
    POLL_S,
    RETRY_REFUSED_S,
    RETRY_SOON_S,
    SessionBase,
    Step,
)
from replicator.core.transitions import State

NOTE_SOURCE_S = 10.0
"""What the source has on stable storage is kept this often: each time costs a sync of the group's state."""
SOON = ("source-", "stands-")
"""How labels begin whose cause ends without a word between the two nodes."""


class Links(SessionBase):
    """Connecting, watching, giving up."""

    def _dial(self, event: Tick, now: float) -> Step:
        if not self.dials or self._retry_at is None or now < self._retry_at:
            return State.DOWN, []
        self._retry_at = None
        return State.DIALLING, [Dial()]

    def _link_up(self, event: LinkUp, now: float) -> Step:
        self.link = event.link
        self.last_contact = self._since_link = now
        self._next_ping = now + PING_S
        self._source_noted, self._note_source_at = 0, now
        self._quiet = self._rests = self._backed = self._asks = False
        self.mine = self.theirs = None
        self.acked = (0, 0, 0)
        return State.ASKING, [Log("link-up", {"link": event.link}), self._ask("group.status", settle=True)]

    def _turn_away(self, event: LinkUp, now: float) -> Step:
        """The peer may call again when we know our role."""
        self.link = event.link
        effects: list[Effect] = [CloseLink("busy")]
        self.link = 0
        return self.state, effects

    def _link_failed(self, event: LinkDown, now: float) -> Step:
        state, effects = self._go_down(now, event.reason, close=False, soon=False)
        return state, [self._tell("group.link", up=False), *effects]

    def _link_lost(self, event: LinkDown, now: float) -> Step:
        reason = event.reason
        if self.theirs is not None and self.theirs.version != VERSION:
            reason = (
                f"the peer speaks version {self.theirs.version} of the protocol, this node version {VERSION}: run the "
                "same version of farstripe on both"
            )
        return self._go_down(now, reason, close=False, soon=False)

    def _link_lost_while_busy(self, event: LinkDown, now: float) -> Step:
        self.link = 0
        return self.state, [Log("link-down", {"reason": event.reason})]

    def _watch_handshake(self, event: Tick, now: float) -> Step:
        if now - self._since >= HANDSHAKE_S:
            return self._go_down(now, f"the handshake made no progress in {HANDSHAKE_S:g} s", close=True, soon=False)
        return self._watch_link_only(event, now)

    def _watch_link_only(self, event: Tick, now: float) -> Step:
        if not self.link:
            self._next_ping = now + PING_S
            return self.state, []
        return self._linked_chores(event, now) or (self.state, self._ping_if_due(now))

    def _watch_idle(self, event: Tick, now: float) -> Step:
        label = self.decision.label if self.decision else ""
        if now - self._since >= (RETRY_SOON_S if label.startswith(SOON) else RETRY_REFUSED_S):
            return self._go_down(now, "comparing again", close=True, soon=True)
        return self._watch_link_only(event, now)

    def _watch_flow(self, event: Tick, now: float) -> Step:
        given_up = self._linked_chores(event, now)
        if given_up:
            return given_up
        catches_up = self.state is State.SOURCE and (self.status.get("policy") or {}).get("mode") == "sync"
        pace = POLL_S if catches_up or self.state in (State.COPY_SOURCE, State.COPY_TARGET) else IDLE_POLL_S
        return self.state, [*self._ping_if_due(now), *self._poll_if_due(now, pace)]

    def _ping(self, event: FrameIn, now: float) -> Step:
        self.peer_report = _report_in(event.frame)
        answer: list[Effect] = [] if event.frame.get("quiet") else [Send({"t": "pong", **self._report()})]
        return self.state, answer + self._note_source(now)

    def _pong(self, event: FrameIn, now: float) -> Step:
        self.peer_report = _report_in(event.frame)
        return self.state, self._note_source(now)

    def _note_source(self, now: float) -> list[Effect]:
        """Now and then let the target keep up to where its source has the records on stable storage."""
        durable = int(self.peer_report.get("durable", 0))
        if self.state is not State.TARGET or durable == self._source_noted or now < self._note_source_at:
            return []
        self._source_noted, self._note_source_at = durable, now + NOTE_SOURCE_S
        return [self._tell("group.note_source", seq=durable)]


_REPORTED = {
    "seq": int, "durable": int, "tree_durable": int, "role": str, "state": str, "feeds": list, "stands": int,
    "full_s": int, "kept": int, "copies": dict,
    "names": dict, "refused": dict,
}  # fmt: skip
_OF_THE_LINK = ("t", "quiet", "instance")


def _report_in(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what a PING or PONG reports. Raises ProtocolError for what would be no number, text or list later."""
    report = {key: value for key, value in frame.items() if key not in _OF_THE_LINK}
    for key, kind in _REPORTED.items():
        if key in report and (not isinstance(report[key], kind) or isinstance(report[key], bool)):
            raise ProtocolError(f"the peer reports {report[key]!r} as its {key}")
    return report
