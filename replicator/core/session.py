"""The session of one pair on one node: from "no link" to "in sync", and through split, resync, switchover and takeover.

The idea: one state, one literal table (transitions.py), one handler a row. A handler returns effects (events.py) and the next
state; it does no I/O. The same object runs under the replicator's link thread and under the simulator.

Invariants:
  * An input that the table does not know in this state raises NotExpected and changes nothing.
  * Events of a former link, and replies to questions no longer open, are dropped before they reach the table.
  * Nothing is shipped or received before both sides computed the same verdict from the same two HELLOs.
  * A copy target states its bitmaps only after it is durably a secondary, and takes records only after the ATTACH is
    durable; it says COPIED only after its target reported the copy complete (SYNCED applied and durable).
  * HANDOVER is sent only after the old primary is durably a secondary and the peer holds everything durably.

The data path (runs, acks, journal) and the loss policy of waiting writers are not here: the shell moves runs, the target's
engine decides about writers and is only told when the link begins and ends to carry records.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from replicator.core import handshake, hello
from replicator.core.backoff import Backoff
from replicator.core.errors import ProtocolError, Refused, TimedOut, to_map
from replicator.core.events import (
    Acked,
    Answer,
    AskTarget,
    CloseLink,
    Command,
    DataStopped,
    Dial,
    Effect,
    Event,
    FrameIn,
    LinkDown,
    LinkUp,
    Log,
    Persist,
    Reply,
    Send,
    StartReceiving,
    StartShipping,
    StopReceiving,
    StopShipping,
    Tick,
)
from replicator.core.handshake import Action, Decision
from replicator.core.hello import Hello
from replicator.core.takeover import plan_takeover
from replicator.core.transitions import RECEIVING, SHIPPING, TRANSITIONS, Input, State

PING_S = 1.0
"""A PING goes out this often. The peer answers, so a silent link is known within DEAD_S on both sides."""
DEAD_S = 5.0
"""A link on which nothing came for so long is closed. Shorter than the engine's default loss time plus its deadline."""
HANDSHAKE_S = 15.0
"""A handshake step that takes longer is given up; generous, because a target may be replaying its journal."""
POLL_S = 0.25
"""How often the target is asked how a copy or the catching-up goes."""
IDLE_POLL_S = 2.0
"""The same once nothing is expected to change soon."""
RETRY_REFUSED_S = 20.0
"""A refused or waiting pair compares its facts again this often: the way out may have been taken on the other side."""
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


class NotExpected(ProtocolError):
    """An input that the table does not allow in this state. Nothing was changed. For a frame: close the link."""


class Session:
    """One pair, one node. `handle` is the only way in; `next_deadline` says when it wants a Tick."""

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
        self.last_contact = 0.0
        self.link_reason = "not connected yet"
        self.acked: tuple[int, int, int] = (0, 0, 0)
        self.discard = ""
        self._discard_until = 0.0
        self._ask_peer_resync = False
        self._rng = rng
        self._backoff = Backoff(rng)
        self._token = 0
        self._awaited = 0
        self._since = 0.0
        self._since_link = 0.0
        self._next_ping = 0.0
        self._next_poll = 0.0
        self._retry_at: float | None = 0.0
        self._their_verdict: dict[str, Any] | None = None
        self._bitmaps: dict[int, bytes | None] = {}
        self._copy: dict[str, Any] = {}
        self._hold_seq = 0
        self._sync_seq = 0
        self._command: tuple[int, float] | None = None
        self._takeover_id: int | None = None

    # -- the way in -------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do, in order.

        Raises NotExpected when the table has no row, ProtocolError when a frame's content is wrong; both change nothing.
        """
        if self._is_stale(event):
            return []
        what = _input_of(event)
        row = TRANSITIONS.get((self.state, what))
        if row is None:
            raise NotExpected(f"{what.value} in state {self.state.value}")
        if isinstance(event, FrameIn | Acked):
            self.last_contact = now
        if isinstance(event, Reply):
            self._awaited = 0
        name, allowed = row
        handler: Callable[[Any, float], tuple[State, list[Effect]]] = getattr(self, "_" + name)
        before = self.state
        after, effects = handler(event, now)
        assert after in allowed, f"{name} led from {before} to {after}"
        if after is not before:
            self.state = after
            self._since = now
            effects.append(Log("pair-state", {"was": before.value, "is": after.value, "by": what.value}))
        return effects

    def hurry(self, now: float) -> None:
        """The peer is there and waits to be called: try at once instead of after the back-off. No effect elsewhere."""
        if self.state is State.DOWN and self._retry_at is not None:
            self._backoff.reset()
            self._retry_at = now

    def next_deadline(self) -> float | None:
        """When the next Tick is wanted, None for never. Monotonic seconds."""
        state = self.state
        if state is State.DOWN:
            return self._retry_at if self.dials else None
        if state in (State.DIALLING, State.STOPPED):
            return None
        times = [self._next_ping]
        if state in SHIPPING or state in RECEIVING:
            times.append(self._next_poll)
        return min(times)

    @property
    def ships(self) -> bool:
        """StartShipping is in force."""
        return self.state in SHIPPING

    @property
    def receives(self) -> bool:
        """StartReceiving is in force."""
        return self.state in RECEIVING

    def _is_stale(self, event: Event) -> bool:
        """Events of another link and replies nobody waits for."""
        if isinstance(event, Reply):
            return event.token == 0 or event.token != self._awaited
        if isinstance(event, FrameIn | Acked | DataStopped):
            return self.link == 0 or event.link != self.link
        if isinstance(event, LinkDown):
            return event.link != self.link
        return False

    # -- small tools ------------------------------------------------------------------------------------------------

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

    def _go_down(self, now: float, reason: str, *, close: bool, soon: bool) -> tuple[State, list[Effect]]:
        """Leave the link. `soon`: connect again at once, else after the back-off."""
        effects = self._stop_flow()
        if close and self.link:
            effects.append(CloseLink(reason))
        self.link = 0
        self.link_reason = reason
        self._awaited = 0
        self.mine = self._their_verdict = None
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

    def _linked_chores(self, event: Tick, now: float) -> tuple[State, list[Effect]] | None:
        """Dead-peer check; None while the link lives. Otherwise the transition that gives it up."""
        heard = max(event.last_rx, self.last_contact, self._since_link)
        if now - heard >= DEAD_S:
            return self._go_down(now, f"nothing heard from the peer for {DEAD_S:g} s", close=True, soon=False)
        return None

    def _ping_if_due(self, now: float) -> list[Effect]:
        if now < self._next_ping or not self.link:
            return []
        self._next_ping = now + PING_S
        return [Send({"t": "ping", **self._report()})]

    def _report(self) -> dict[str, Any]:
        """What the peer shows about us."""
        return {"state": self.state.value, "seq": int(self.status.get("pos", 0)), "role": self.status.get("role", "")}

    def _poll_if_due(self, now: float, pace_s: float) -> list[Effect]:
        if self._awaited or now < self._next_poll:
            return []
        self._next_poll = now + pace_s
        return [self._ask("group.status")]

    # -- links ------------------------------------------------------------------------------------------------------

    def _dial(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if not self.dials or self._retry_at is None or now < self._retry_at:
            return State.DOWN, []
        self._retry_at = None
        return State.DIALLING, [Dial()]

    def _link_up(self, event: LinkUp, now: float) -> tuple[State, list[Effect]]:
        self.link = event.link
        self.last_contact = self._since_link = now
        self._next_ping = now + PING_S
        self.mine = self.theirs = None
        self._their_verdict = None
        self.acked = (0, 0, 0)
        return State.ASKING, [Log("link-up", {"link": event.link}), self._ask("group.status", settle=True)]

    def _turn_away(self, event: LinkUp, now: float) -> tuple[State, list[Effect]]:
        """The peer may call again when we know our role."""
        self.link = event.link
        effects: list[Effect] = [CloseLink("busy")]
        self.link = 0
        return self.state, effects

    def _link_failed(self, event: LinkDown, now: float) -> tuple[State, list[Effect]]:
        state, effects = self._go_down(now, event.reason, close=False, soon=False)
        return state, [self._tell("group.link", up=False), *effects]

    def _link_lost(self, event: LinkDown, now: float) -> tuple[State, list[Effect]]:
        return self._go_down(now, event.reason, close=False, soon=False)

    def _link_lost_while_busy(self, event: LinkDown, now: float) -> tuple[State, list[Effect]]:
        self.link = 0
        return self.state, [Log("link-down", {"reason": event.reason})]

    # -- time -------------------------------------------------------------------------------------------------------

    def _nothing(self, event: Event, now: float) -> tuple[State, list[Effect]]:
        return self.state, []

    def _watch_handshake(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if now - self._since >= HANDSHAKE_S:
            return self._go_down(now, f"the handshake made no progress in {HANDSHAKE_S:g} s", close=True, soon=False)
        return self._watch_link_only(event, now)

    def _watch_link_only(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if not self.link:
            self._next_ping = now + PING_S
            return self.state, []
        return self._linked_chores(event, now) or (self.state, self._ping_if_due(now))

    def _watch_idle(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if now - self._since >= RETRY_REFUSED_S:
            return self._go_down(now, "comparing again", close=True, soon=True)
        return self._watch_link_only(event, now)

    def _watch_flow(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        given_up = self._linked_chores(event, now)
        if given_up:
            return given_up
        pace = IDLE_POLL_S if self.state in (State.SYNC_SOURCE, State.TARGET) else POLL_S
        return self.state, [*self._ping_if_due(now), *self._poll_if_due(now, pace)]

    def _watch_switchover(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if self._command is not None and now >= self._command[1]:
            self._awaited = 0
            error = TimedOut("the peer did not catch up in time", "check the lag with 'farstripe status' and try again")
            return State.SOURCE, [self._tell("group.release"), *self._fail_command(error)]
        given_up = self._linked_chores(event, now)
        if given_up:
            return self._abandon_switchover(given_up)
        return self.state, self._ping_if_due(now)

    def _watch_handed(self, event: Tick, now: float) -> tuple[State, list[Effect]]:
        if now - self._since >= HANDED_S:
            return self._go_down(now, "the new primary did not answer; the handshake will finish it", close=True, soon=True)
        return self._watch_link_only(event, now)

    # -- the handshake ------------------------------------------------------------------------------------------------

    def _keep_hello(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self.theirs = self._checked_hello(event)
        return self.state, []

    def _say_hello(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        self.status = event.result
        if event.result.get("failed"):
            return self._go_down(now, f"this node's group has failed: {event.result['failed']}", close=True, soon=False)
        if now >= self._discard_until:
            self.discard = ""
        successor = self.handover if event.result.get("role") != "primary" else ""
        self.mine = hello.from_status(
            self.node, event.result, split=self.split_wanted, discard=self.discard, handover=successor
        )
        effects: list[Effect] = [Send(hello.to_frame(self.mine))]
        if self.theirs is None:
            return State.HELLO, effects
        return self._decide(effects)

    def _judge(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self.theirs = self._checked_hello(event)
        return self._decide([])

    def _decide(self, effects: list[Effect]) -> tuple[State, list[Effect]]:
        assert self.mine is not None and self.theirs is not None
        self.decision = handshake.decide(self.mine, self.theirs)
        effects.append(Send({"t": "verdict", **self.decision.verdict()}))
        return State.VERDICT, effects

    def _checked_hello(self, event: FrameIn) -> Hello:
        theirs = hello.from_frame(event.frame)
        if theirs.node != self.peer:
            raise ProtocolError(f"the peer calls itself node {theirs.node}, expected {self.peer}")
        return theirs

    def _keep_verdict(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        raise NotExpected("a verdict before the hello it was computed from")

    def _act(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        """Both sides have spoken: begin what the verdict says."""
        decision = self.decision
        assert decision is not None and self.mine is not None and self.theirs is not None
        theirs = {key: value for key, value in event.frame.items() if key != "t"}
        if theirs != decision.verdict():
            raise ProtocolError(f"the peer decided {theirs}, this node {decision.verdict()}", "run the same version on both")
        self._backoff.reset()
        effects: list[Effect] = [Log("handshake", {"label": decision.label, **decision.facts._asdict()})]
        effects += self._settle_handover(decision)
        state, more = _ACT[decision.action](self, decision, now)
        return state, effects + more

    def _settle_handover(self, decision: Decision) -> list[Effect]:
        """A switchover is over as soon as anybody is primary; its command is answered by who that is."""
        if decision.facts.primaries == "none":
            return []
        effects: list[Effect] = []
        if self.handover:
            self.handover = ""
            effects.append(Persist({"handover": ""}))
        if self._command is not None and decision.facts.primaries == "one":
            if decision.lead == self.peer:
                effects.append(Answer(self._command[0], {"primary": self.peer}))
                self._command = None
            else:
                effects += self._fail_command(Refused("the switchover was not carried out", "try again"))
        return effects

    def _act_refuse(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        return State.REFUSED, [self._tell("group.link", up=False), Log("refused", {"label": decision.label})]

    def _act_wait(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        effects: list[Effect] = [self._tell("group.link", up=False)]
        if decision.label == "split-wanted" and self.status.get("sync_on"):
            effects.append(self._tell("group.sync_on", on=False))
        if self._ask_peer_resync and not self.split_wanted and decision.label == "split-wanted":
            effects.append(Send({"t": "resync", "discard": self.discard}))
        self._ask_peer_resync = False
        return State.WAITING, effects

    def _act_step_down(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        if decision.acts != self.node:
            return State.WAITING, []
        return State.STEPPING_DOWN, [self._ask("group.demote", diverged=decision.lost_records > 0)]

    def _act_promote(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        if decision.acts != self.node:
            return State.WAITING, []
        return State.PROMOTING, [CloseLink("becoming primary"), self._unlink(), self._ask("group.promote", force=False)]

    def _unlink(self) -> Log:
        self.link = 0
        return Log("link-down", {"reason": "becoming primary"})

    def _act_stream(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        self.discard, self._ask_peer_resync = "", False
        resuming = decision.action is Action.RESUME
        self._next_poll = now
        if decision.lead == self.node:
            effects: list[Effect] = [self._tell("group.link", up=True), StartShipping(decision.from_seq)]
            if resuming:
                effects.insert(1, self._tell("group.resume_copy"))
            return State.COPY_SOURCE if resuming else State.SOURCE, effects
        assert self.mine is not None
        return State.COPY_TARGET if resuming else State.TARGET, [self._receive(decision.from_seq, self.mine.hist)]

    def _receive(self, expect_seq: int, hist: Any) -> StartReceiving:
        return StartReceiving(expect_seq, int(hist[-1][0]) if hist else 0)

    def _act_copy(self, decision: Decision, now: float) -> tuple[State, list[Effect]]:
        self._bitmaps = {}
        if decision.lead == self.node:
            return State.COLLECTING, [Log("copy-planned", {"label": decision.label, "full": decision.full})]
        return State.MAPPING, [self._ask("group.bitmap", c=None if decision.full else decision.c)]

    def _stepped_down(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        label = self.decision.label if self.decision else ""
        state, effects = self._go_down(now, "gave up the primary role", close=True, soon=True)
        return state, [Log("stepped-down", {"label": label}), *effects]

    def _busy_failed(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        effects: list[Effect] = []
        if self._takeover_id is not None:
            error = Refused(f"the target refused: {event.error}", "see 'farstripe explain'")
            effects.append(Answer(self._takeover_id, error=to_map(error)))
            self._takeover_id = None
        state, more = self._go_down(now, f"the target refused: {event.error}", close=True, soon=False)
        return state, effects + more

    def _target_failed(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        return self._go_down(now, f"our target refused: {event.error}", close=True, soon=False)

    # -- a copy by difference -------------------------------------------------------------------------------------------

    def _send_bitmaps(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        """One frame a volume, so that no frame grows with the number of volumes."""
        bitmaps = event.result.get("volumes") or {}
        assert self.mine is not None
        frames: list[Effect] = []
        for index, _size in self.mine.volumes:
            bits = bitmaps.get(index, bitmaps.get(str(index)))
            frames.append(Send({"t": "bitmap", "volume": index, "bits": bits, "last": False}))
        frames[-1].frame["last"] = True  # type: ignore[union-attr]  # it is a Send
        return State.AWAITING, frames

    def _collect_bitmap(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        assert self.mine is not None and self.decision is not None
        index, bits = event.frame.get("volume"), event.frame.get("bits")
        sizes = dict(self.mine.volumes)
        if index not in sizes or not (bits is None or isinstance(bits, bytes)):
            raise ProtocolError(f"a bitmap of volume {index!r} that the group does not have")
        bitmaps = {**self._bitmaps, index: bits}
        if not event.frame.get("last"):
            self._bitmaps = bitmaps
            return State.COLLECTING, []
        if set(bitmaps) != set(sizes):
            raise ProtocolError("the peer sent bitmaps of some volumes only")
        self._bitmaps = bitmaps
        unknown = self.decision.full or any(b is None for b in bitmaps.values())
        copy_id = f"{self._rng.getrandbits(64):016x}"
        ask = self._ask(
            "group.begin_copy",
            c=None if self.decision.full else self.decision.c,
            peer_bitmaps=None if unknown else bitmaps,
            copy_id=copy_id,
        )
        self._copy = {"copy_id": copy_id}
        return State.PLANNING, [ask]

    def _offer(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        assert self.decision is not None
        result = event.result
        self._copy = {
            "t": "attach",
            "copy_id": self._copy["copy_id"],
            "p": int(result["p"]),
            "c": self.decision.c,
            "epoch": int(result["epoch"]),
            "hist": [list(entry) for entry in result["hist"]],
            "masks": result["masks"],
            "full": bool(result["full"]),
        }
        return State.OFFERED, [Send(self._copy)]

    def _adopt(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        assert self.decision is not None
        try:
            copy = {
                "p": int(event.frame["p"]),
                "c": self.decision.c,
                "epoch": int(event.frame["epoch"]),
                "hist": [[int(e), int(b)] for e, b in event.frame["hist"]],
                "masks": {int(volume): bytes(bits) for volume, bits in event.frame["masks"].items()},
                "copy_id": str(event.frame["copy_id"]),
                "full": bool(event.frame["full"]),
            }
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(f"the peer's attach is malformed: {exc}") from exc
        self._copy = copy
        return State.ADOPTING, [self._ask("group.attach", **copy)]

    def _adopted(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        offer = self._copy
        self.discard, self._ask_peer_resync = "", False
        self._next_poll = now + POLL_S
        return State.COPY_TARGET, [
            self._receive(offer["p"] + 1, offer["hist"]),
            Send({"t": "attached", "copy_id": offer["copy_id"]}),
            Log("copy-begun", {"from": self.peer, "p": offer["p"]}),
        ]

    def _start_copy(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        if event.frame.get("copy_id") != self._copy["copy_id"]:
            raise ProtocolError("the peer attached to another copy")
        self.discard, self._ask_peer_resync = "", False
        self._next_poll = now + POLL_S
        return State.COPY_SOURCE, [
            self._tell("group.link", up=True),
            StartShipping(self._copy["p"] + 1),
            self._tell("group.resume_copy"),
            Log("copy-begun", {"to": self.peer, "p": self._copy["p"]}),
        ]

    def _copy_progress(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        self.status = event.result
        if event.result.get("state") != "ok":
            return State.COPY_TARGET, []
        seq = int(event.result.get("durable", 0))
        return State.TARGET, [Send({"t": "copied", "seq": seq}), Log("copy-complete", {"seq": seq})]

    def _copy_complete(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self._next_poll = now
        return State.SOURCE, [Log("copy-complete", {"seq": event.frame.get("seq")})]

    # -- records flow -----------------------------------------------------------------------------------------------------

    def _acked(self, event: Acked, now: float) -> tuple[State, list[Effect]]:
        self.acked = (event.received, event.durable, event.applied)
        if self.state is State.DRAINING:
            return self._yield_if_drained()
        if self.state is State.SOURCE and self._sync_seq and event.received >= self._sync_seq:
            self._sync_seq = 0
            return State.SYNC_SOURCE, [Log("in-sync", {"seq": event.received})]
        return self.state, []

    def _source_progress(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        """Our target's status, or its answer to sync_on."""
        if "seq" in event.result and "role" not in event.result:
            self._sync_seq = max(1, int(event.result["seq"]))
            if self.acked[0] >= self._sync_seq:
                self._sync_seq = 0
                return State.SYNC_SOURCE, [Log("in-sync", {"seq": self.acked[0]})]
            return self.state, []
        self.status = event.result
        wants_sync = event.result.get("policy", {}).get("mode") == "sync"
        if self.state is State.SYNC_SOURCE:
            if wants_sync and event.result.get("sync_on"):
                return self.state, []
            return State.SOURCE, [Log("out-of-sync", {"degraded": bool(event.result.get("degraded"))})]
        if self.state is State.SOURCE and wants_sync and not self._sync_seq:
            lag = int(event.result.get("pos", 0)) - self.acked[0]
            if lag <= SYNC_LAG_RECORDS:
                return self.state, [self._ask("group.sync_on", on=True)]
        return self.state, []

    def _target_progress(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        self.status = event.result
        return self.state, []

    def _poll_failed(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        """The target may be restarting; the journal carries the flow meanwhile."""
        return self.state, []

    def _data_stopped(self, event: DataStopped, now: float) -> tuple[State, list[Effect]]:
        state, effects = self._go_down(now, event.message, close=True, soon=event.cause == "journal")
        if event.cause == "medium":
            return State.STOPPED, [*effects, Log("stopped", {"reason": event.message})]
        return state, effects

    # -- switchover -------------------------------------------------------------------------------------------------------

    def _switchover(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        deadline_s = float(event.args.get("deadline_s", SWITCHOVER_S))
        self._command = (event.id, now + deadline_s)
        return State.HOLDING, [
            Log("switchover", {"to": self.peer}),
            self._ask("group.hold", deadline_s=deadline_s + HANDED_S),
        ]

    def _switchover_refused(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        if self.state in (State.TARGET, State.COPY_TARGET):
            error = Refused("this node is the secondary", "run the switchover on the primary node")
        elif self.state is State.COPY_SOURCE:
            error = Refused("the copy on the peer is not complete", "wait for it with 'farstripe pair wait'")
        else:
            error = Refused(
                f"no running pair to switch over (session {self.state.value}: {self.link_reason})",
                "see 'farstripe explain'; a takeover on the peer is the way when this side is lost",
            )
        return self.state, [Answer(event.id, error=to_map(error))]

    def _drain(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        self._hold_seq = int(event.result["seq"])
        return self._yield_if_drained()

    def _yield_if_drained(self) -> tuple[State, list[Effect]]:
        if self.acked[1] < self._hold_seq:
            return State.DRAINING, []
        self.handover = self.peer
        return State.YIELDING, [
            StopShipping(),
            Persist({"handover": self.peer}),
            self._ask("group.demote", diverged=False),
        ]

    def _hold_failed(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        error = Refused(f"the target could not hold its writers: {event.error}", "try again")
        return State.SOURCE, self._fail_command(error)

    def _yielded(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        if not self.link:
            return self._go_down(now, self.link_reason, close=False, soon=True)
        if self._command is not None:
            self._command = (self._command[0], now + COMMAND_S)
        frame = {"t": "handover", "seq": self._hold_seq, "epoch": int(event.result.get("epoch", 0))}
        return State.HANDED, [Log("stepped-down", {"label": "switchover"}), Send(frame)]

    def _yield_failed(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
        error = Refused(f"the target would not become secondary: {event.error}", "see 'farstripe explain'")
        effects = [self._tell("group.release"), *self._fail_command(error)]
        state, more = self._go_down(now, "the switchover failed", close=True, soon=True)
        return state, [*effects, *more]

    def _switchover_link_lost(self, event: LinkDown | DataStopped, now: float) -> tuple[State, list[Effect]]:
        reason = event.reason if isinstance(event, LinkDown) else event.message
        return self._abandon_switchover(
            self._go_down(now, reason, close=isinstance(event, DataStopped), soon=False)
        )

    def _abandon_switchover(self, given_up: tuple[State, list[Effect]]) -> tuple[State, list[Effect]]:
        error = Refused("the link was lost before the peer had everything; this node stays primary", "try again later")
        state, effects = given_up
        return state, [self._tell("group.release"), *self._fail_command(error), *effects]

    def _take(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        return State.PROMOTING, [StopReceiving(), Log("handover", {}), self._ask("group.promote", force=False)]

    def _taken(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        return self._go_down(now, "roles were exchanged", close=True, soon=True)

    def _promoted(self, event: Reply, now: float) -> tuple[State, list[Effect]]:
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

    # -- the operator -----------------------------------------------------------------------------------------------------

    def _split(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        self.split_wanted = True
        self._ask_peer_resync = False
        effects: list[Effect] = [Persist({"split": True})]
        if self.status.get("role") == "primary":
            effects.append(self._tell("group.sync_on", on=False))
        if self.link:
            effects.append(Send({"t": "split", "reason": "operator"}))
        state, more = self._go_down(now, "split by the operator", close=True, soon=True)
        return state, [*effects, *more, Log("split", {}), Answer(event.id)]

    def _split_stopped(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        self.split_wanted = True
        return self.state, [Persist({"split": True}), Log("split", {}), Answer(event.id)]

    def _resync(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        discard = str(event.args.get("discard") or "")
        if discard and discard not in (self.node, self.peer):
            error = Refused(f"node {discard} is not part of this pair", f"name {self.node} or {self.peer}")
            return State.DOWN, [*self._go_down(now, "resync", close=True, soon=True)[1], Answer(event.id, error=to_map(error))]
        self.split_wanted = False
        self._ask_peer_resync = True
        self.discard, self._discard_until = discard, now + CONSENT_S
        self._backoff.reset()
        effects: list[Effect] = [Persist({"split": False})]
        if self.link:
            effects.append(Send({"t": "resync", "discard": discard}))  # this wish replaces an older one on the other side
        _, more = self._go_down(now, "resync asked by the operator", close=True, soon=True)
        return State.DOWN, [*effects, *more, Log("resync", {"discard": discard}), Answer(event.id)]

    def _takeover(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        """`args`: force (bool), status (this node's group.status, asked by the shell just now)."""
        status = event.args.get("status") or self.status
        plan = plan_takeover(status, self.facts(now), force=bool(event.args.get("force")))
        if not plan.allowed:
            return self.state, [Answer(event.id, error=to_map(Refused(plan.message, plan.way_out)))]
        self._takeover_id = event.id
        _, effects = self._go_down(now, "takeover", close=True, soon=True)
        ask = self._ask("group.promote", force=bool(event.args.get("force")))
        return State.PROMOTING, [*effects, Log("takeover", {"label": plan.label, "lost": plan.message}), ask]

    def _busy_refused(self, event: Command, now: float) -> tuple[State, list[Effect]]:
        error = Refused("roles are being exchanged just now", "try again in a moment")
        return self.state, [Answer(event.id, error=to_map(error))]

    def _peer_split(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        return self._go_down(now, "split by the peer's operator", close=True, soon=True)

    def _peer_resync(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self.split_wanted = False
        discard = event.frame.get("discard")
        self.discard = discard if discard in (self.node, self.peer) else ""
        self._discard_until = now + CONSENT_S
        _, more = self._go_down(now, "resync asked by the peer's operator", close=True, soon=True)
        return State.DOWN, [Persist({"split": False}), *more]

    # -- heartbeats and reports ---------------------------------------------------------------------------------------------

    def _ping(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self.peer_report = {key: value for key, value in event.frame.items() if key != "t"}
        return self.state, [Send({"t": "pong", **self._report()})]

    def _pong(self, event: FrameIn, now: float) -> tuple[State, list[Effect]]:
        self.peer_report = {key: value for key, value in event.frame.items() if key != "t"}
        return self.state, []

    def facts(self, now: float) -> dict[str, Any]:
        """What status.describe and plan_takeover need to know of this session. Plain values, safe to send as JSON."""
        return {
            "session": self.state.value,
            "node": self.node,
            "peer": self.peer,
            "linked": bool(self.link),
            "link_reason": self.link_reason,
            "contact_age_s": round(now - self.last_contact, 3) if self.last_contact else None,
            "split_wanted": self.split_wanted,
            "decision": None if self.decision is None else self.decision.verdict() | {
                "action": self.decision.action.value,
                "follow": self.decision.follow,
                "cause": self.decision.cause,
                "lost_records": self.decision.lost_records,
            },
            "peer_role": self.peer_report.get("role") or (self.theirs.role if self.theirs else ""),
            "peer_state": self.peer_report.get("state", ""),
            "peer_pos": max(int(self.peer_report.get("seq") or 0), self.theirs.pos if self.theirs else 0),
            "acked": {"received": self.acked[0], "durable": self.acked[1], "applied": self.acked[2]},
            "discard": self.discard,
        }  # fmt: skip


_ACT: dict[Action, Callable[[Session, Decision, float], tuple[State, list[Effect]]]] = {
    Action.REFUSE: Session._act_refuse,
    Action.WAIT: Session._act_wait,
    Action.STEP_DOWN: Session._act_step_down,
    Action.PROMOTE: Session._act_promote,
    Action.STREAM: Session._act_stream,
    Action.RESUME: Session._act_stream,
    Action.COPY: Session._act_copy,
}

_FRAMES = {item.value.removeprefix("frame "): item for item in Input if item.value.startswith("frame ")}
_COMMANDS = {item.value.removeprefix("command "): item for item in Input if item.value.startswith("command ")}
COMMANDS = frozenset(_COMMANDS)
"""Ops of events.Command."""


def _input_of(event: Event) -> Input:
    """Name an event the way the table does. Raises ProtocolError for a frame or command nobody knows."""
    if isinstance(event, FrameIn):
        found = _FRAMES.get(str(event.frame.get("t")))
        if found is None:
            raise ProtocolError(f"unknown frame {event.frame.get('t')!r}", "run the same version on both nodes")
        return found
    if isinstance(event, Command):
        command = _COMMANDS.get(event.op)
        if command is None:
            raise ProtocolError(f"unknown command {event.op!r}")
        return command
    if isinstance(event, Reply):
        return Input.REPLY if event.error is None else Input.FAILED
    return _PLAIN[type(event)]


_PLAIN: dict[type, Input] = {
    LinkUp: Input.LINK_UP,
    LinkDown: Input.LINK_DOWN,
    Tick: Input.TICK,
    Acked: Input.ACKED,
    DataStopped: Input.DATA_STOPPED,
}
