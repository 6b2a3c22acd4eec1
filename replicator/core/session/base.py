"""What all of a session's handlers share: its variables, its constants, and the small tools."""

from __future__ import annotations

import random
from typing import Any

from replicator.core.backoff import Backoff
from replicator.core.errors import ProtocolError, to_map
from replicator.core.events import (
    Answer,
    AskTarget,
    CloseLink,
    Effect,
    Event,
    Log,
    Send,
    StopReceiving,
    StopShipping,
    Tick,
)
from replicator.core.handshake import Decision
from replicator.core.hello import Hello
from replicator.core.transitions import CLAIMING, RECEIVING, SHIPPING, State

PING_S = 1.0
"""A PING goes out this often. The peer answers, so a silent link is known within DEAD_S on both sides."""
DEAD_S = 5.0
"""A link on which nothing came for so long is closed. Shorter than the engine's default loss time plus its deadline."""
HANDSHAKE_S = 15.0
"""A handshake step that takes longer is given up; generous, because a target may be replaying its journal."""
POLL_S = 0.25
"""How often the target is asked how a copy or the catching-up goes."""
HURRIED_POLL_S = 0.05
"""The same while the follower keeps up, so that the end of a copy is noticed soon."""
IDLE_POLL_S = 2.0
"""The same once nothing is expected to change soon."""
SETTLED_S = 8.0
"""So long after a link has become quiet all that was written is on stable storage: the keeper's checkpoint is made."""
QUIET_POLL_S = 120.0
"""The same while nothing has changed for some seconds: what changes ends the quiet."""
QUIET_PING_S = 2.0
"""Heartbeats then; each side sends its own, and they are not answered. A hundred idle groups must cost next to
nothing."""
REST_PING_S = 30.0
"""The same on a link that rests: another one to the same process carries the heartbeat."""
REST_DEAD_S = 75.0
"""A quiet link is closed when nothing came over it for so long, though the peer's process is heard over another one.
When it is not heard there any more, the link asks by itself, and is closed DEAD_S later."""
QUIET_SLACK_S = 1.0
"""Whoever is awake in the quiet does at once what is due within this time, so that both sides wake together."""
RETRY_REFUSED_S = 20.0
"""A refused or waiting pair compares its facts again this often: the way out may have been taken on the other side."""
RETRY_SOON_S = 5.0
"""The same for one that waits for what another node has to do first, if nothing tells that it was done."""
SWITCHOVER_S = 10.0
"""Default deadline for draining in a switchover; writers are parked for no longer."""
HANDED_S = 5.0
"""How long the old primary waits for TAKEN before it connects again and lets the handshake finish the switchover."""
COMMAND_S = 60.0
"""A switchover whose outcome is not known after this is answered with TimedOut; it may still be completed."""
CONSENT_S = 600.0
"""The operator's leave to discard a node's writes lapses after this, so that it cannot meet writes made much later."""
SYNC_LAG_RECORDS = 256
"""Synchronous waiting is switched on when the peer is at most this far behind: the first writers wait for so much."""

Step = tuple[State, list[Effect]]
"""What a handler returns: the next state, and the effects in order."""


class NotExpected(ProtocolError):
    """An input that the table does not allow in this state. Nothing was changed. For a frame: close the link."""


class SessionBase:
    """Variables and tools of a session; the handlers are in the classes derived from it."""

    def __init__(
        self,
        node: str,
        peer: str,
        *,
        dials: bool,
        rng: random.Random,
        split: bool = False,
        handover: str = "",
    ) -> None:
        """Start in DOWN.

        node, peer: node ids, 32 hex digits
        dials: this side makes the connections (exactly one side of a pair does)
        rng: source of jitter and copy numbers
        split, handover: as last made durable by Persist
        """
        self.node, self.peer = node, peer
        self.dials = dials
        self.split_wanted = split
        self.handover = handover
        self.state = State.DOWN
        self.link = 0
        self.decision: Decision | None = None
        self.mine: Hello | None = None
        self.theirs: Hello | None = None
        self.status: dict[str, Any] = {}
        self.peer_report: dict[str, Any] = {}
        self.beside: dict[str, Any] = {}
        """What the shell knows besides, for the peer to show: `names` of nodes {id: name}; `refused` {peer, label,
        cause}, when another pair of the group is refused."""
        self.last_contact = 0.0
        self.link_reason = "not connected yet"
        self.acked: tuple[int, int, int] = (0, 0, 0)
        self.was_complete = False
        """When last heard of, the peer had a complete copy of what this node feeds it."""
        self.discard = ""
        self.discard_epoch = 0
        """That node's newest epoch when the operator named it, 0 when it was not known."""
        self._discard_until = 0.0
        self._ask_peer_resync = False
        self._rng = rng
        self._backoff = Backoff(rng)
        self._token = 0
        self._awaited = 0
        self._since = 0.0
        self._since_link = 0.0
        self._next_ping = 0.0
        self._quiet = self._rests = self._asks = False
        self._backed = False
        """The link is quiet, and the peer's process is heard, over whatever link."""
        self._stirred = 0.0
        """When that ended: the silence of this link counts from then."""
        self._next_poll = self._last_poll = 0.0
        self._retry_at: float | None = 0.0
        self._bitmaps: dict[int, bytes | None] = {}
        self._copy: dict[str, Any] = {}
        self._pinned_in = 0
        """Incarnation of the journal that our HELLO, or the copy we offer, speaks of: another pair may have it started
        over."""
        self._source_noted = 0
        self._note_source_at = 0.0
        self._hold_seq = 0
        self._sync_seq = 0
        self._command: tuple[int, float] | None = None
        self._takeover_id: int | None = None

    @property
    def rests(self) -> bool:
        """Nothing happens here, and another link carries the heartbeat."""
        return self._rests

    @property
    def backed(self) -> bool:
        """Nothing happens here, and the peer's process is heard over some link."""
        return self._backed

    @property
    def claims(self) -> bool:
        """No other session of this node may append to the group's journal now."""
        return self.state in CLAIMING

    @property
    def ships(self) -> bool:
        """StartShipping is in force."""
        return self.state in SHIPPING

    @property
    def receives(self) -> bool:
        """StartReceiving is in force."""
        return self.state in RECEIVING

    def _ask(self, op: str, **args: Any) -> AskTarget:
        self._token += 1
        self._awaited = self._token
        return AskTarget(self._token, op, args)

    def _tell(self, op: str, **args: Any) -> AskTarget:
        """Ask without caring for the reply."""
        return AskTarget(0, op, args)

    def _stop_flow(self) -> list[Effect]:
        """Effects that end whatever records flow; the primary's engine learns that its peer is gone."""
        if self.ships:
            return [StopShipping(), self._tell("group.link", up=False)]
        if self.receives:
            return [StopReceiving()]
        return []

    def _go_down(self, now: float, reason: str, *, close: bool, soon: bool) -> Step:
        """Leave the link. `soon`: connect again at once, else after the back-off."""
        effects = self._stop_flow()
        if close and self.link:
            effects.append(CloseLink(reason))
        self.link = 0
        self._rests = self._backed = False
        self.link_reason = reason
        self._awaited = 0
        self.mine = None
        self._bitmaps, self._copy = {}, {}
        self._sync_seq = 0
        self._retry_at = now + (0.0 if soon else self._backoff.next_s())
        effects.append(Log("link-down", {"reason": reason}))
        return State.DOWN, effects

    def _fail_command(self, error: Exception) -> list[Effect]:
        if self._command is None:
            return []
        command, self._command = self._command[0], None
        return [Answer(command, error=to_map(error))]

    def _linked_chores(self, event: Tick, now: float) -> Step | None:
        """Dead-peer check; None while the link lives. Otherwise the transition that gives it up."""
        self._settle_down(event, now)
        heard = max(event.last_rx, self.last_contact, self._since_link, self._stirred)
        patience_s = REST_DEAD_S if self._backed else DEAD_S
        if now - heard >= patience_s:
            return self._go_down(now, f"nothing heard from the peer for {patience_s:g} s", close=True, soon=False)
        return None

    def _settle_down(self, event: Tick, now: float) -> None:
        """Note whether the link is quiet, and whether it rests."""
        was_quiet = self._quiet
        self._quiet = event.quiet and self.state in (State.SOURCE, State.SYNC_SOURCE, State.TARGET)
        if self._quiet and not was_quiet:
            self._next_poll = now + SETTLED_S  # once more, for what the peer is told of the end
        backed, self._backed = self._backed, self._quiet and now - event.pulse < DEAD_S
        rested, self._rests = self._rests, self._backed and event.rests
        if rested and not self._rests:
            self._next_ping = now
        if backed and not self._backed and event.pulse > max(event.last_rx, self.last_contact) + QUIET_SLACK_S:
            self._next_ping = self._stirred = now  # the peer had no reason to speak here: it is asked
            self._asks = True

    def _ping_if_due(self, now: float) -> list[Effect]:
        if now < self._next_ping - (QUIET_SLACK_S if self._quiet else 0.0) or not self.link:
            return []
        self._next_ping = now + (REST_PING_S if self._rests else QUIET_PING_S if self._quiet else PING_S)
        wants_no_answer, self._asks = self._quiet and not self._asks, False
        return [Send({"t": "ping", **self._report(), "quiet": wants_no_answer})]

    def _report(self) -> dict[str, Any]:
        """What the peer shows about us."""
        return {
            "state": self.state.value,
            "seq": int(self.status.get("pos", 0)),
            "role": self.status.get("role", ""),
            "durable": int(self.status.get("durable", 0)),
            "tree_durable": tree_durable(self.status),
            "feeds": [edge["peer"] for edge in _below(self.status) if edge["peer"] != self.peer],
            "stands": int(self.status.get("limit_seq") or 0) if self.status.get("role") == "secondary" else 0,
            "kept": int((self.status.get("kept_image") or {}).get("seq") or 0),
            **self.beside,
        }

    def _poll_if_due(self, now: float, pace_s: float) -> list[Effect]:
        if not self._quiet:
            self._next_poll = min(self._next_poll, self._last_poll + pace_s)
        if self._awaited or now < self._next_poll:
            return []
        self._last_poll, self._next_poll = now, now + (QUIET_POLL_S if self._quiet else pace_s)
        return [self._ask("group.status")]

    def _nothing(self, event: Event, now: float) -> Step:
        return self.state, []


def tree_durable(status: dict[str, Any]) -> int:
    """Return the seq up to which this node and all below it hold the journal durably and have applied it.

    status: this node's group.status.

    The primary drops a history bitmap only when the whole tree holds its successor, and stands behind its beginning: a
    copy that loses its journal goes back to what it has applied. 0 while an edge is not linked.
    """
    linked = [int(edge["tree_durable"]) if edge["linked"] else 0 for edge in _below(status)]
    durable = int(status.get("durable", 0))
    return min([durable, int(status.get("applied", durable)), *linked])


def _below(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The edges over which this node feeds others."""
    return [edge for edge in status.get("edges") or () if not edge["upstream"]]
