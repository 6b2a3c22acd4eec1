"""Handlers of the operator's other commands: split, resync, takeover."""

from __future__ import annotations

from typing import Any

from replicator.core.errors import Refused, to_map
from replicator.core.events import Answer, Command, Effect, FrameIn, Log, Persist, Send
from replicator.core.session.base import CONSENT_S, SessionBase, Step
from replicator.core.takeover import plan_takeover
from replicator.core.transitions import State


class Operating(SessionBase):
    """What a person asks for, here or on the peer."""

    def _split(self, event: Command, now: float) -> Step:
        self.split_wanted = True
        self._ask_peer_resync = False
        effects: list[Effect] = [Persist({"split": True})]
        if self.status.get("role") == "primary" or self.status.get("upstream") not in (None, "", self.peer):
            effects.append(self._tell("group.sync_on", on=False))
        if self.link:
            effects.append(Send({"t": "split", "reason": "operator"}))
        state, more = self._go_down(now, "split by the operator", close=True, soon=True)
        return state, [*effects, *more, Log("split", {}), Answer(event.id)]

    def _split_stopped(self, event: Command, now: float) -> Step:
        self.split_wanted = True
        return self.state, [Persist({"split": True}), Log("split", {}), Answer(event.id)]

    def _resync(self, event: Command, now: float) -> Step:
        discard = str(event.args.get("discard") or "")
        if discard and discard not in (self.node, self.peer):
            error = Refused(f"node {discard} is not part of this pair", f"name {self.node} or {self.peer}")
            return State.DOWN, [
                *self._go_down(now, "resync", close=True, soon=True)[1],
                Answer(event.id, error=to_map(error)),
            ]
        self.split_wanted = False
        self._ask_peer_resync = True
        self.discard, self._discard_until = discard, now + CONSENT_S
        self.discard_epoch = self._newest_epoch(discard)
        self._backoff.reset()
        effects: list[Effect] = [Persist({"split": False})]
        if self.link:
            effects.append(
                Send({"t": "resync", "discard": discard, "epoch": self.discard_epoch})
            )  # this wish replaces an older one on the other side
        _, more = self._go_down(now, "resync asked by the operator", close=True, soon=True)
        return State.DOWN, [*effects, *more, Log("resync", {"discard": discard}), Answer(event.id)]

    def _newest_epoch(self, node: str) -> int:
        """The newest epoch of one of the two nodes as far as this session knows, 0 when it does not."""
        if node == self.node:
            hist = self.status.get("hist") or ()
        else:
            hist = self.theirs.hist if self.theirs is not None and node else ()
        return int(hist[-1][0]) if hist else 0

    def _takeover(self, event: Command, now: float) -> Step:
        """`args`: force (bool), status (this node's group.status, asked by the shell just now), and where to begin as
        primary: marker (a number), cycle (a map), at_limit (bool); see group.promote."""
        status = event.args.get("status") or self.status
        facts = self.facts(now) | {"goes_back": bool(event.args.get("marker") or event.args.get("cycle"))}
        plan = plan_takeover(status, facts, force=bool(event.args.get("force")))
        if not plan.allowed:
            return self.state, [Answer(event.id, error=to_map(Refused(plan.message, plan.way_out)))]
        self._takeover_id = event.id
        _, effects = self._go_down(now, "takeover", close=True, soon=True)
        where = {key: event.args[key] for key in ("marker", "cycle", "at_limit") if event.args.get(key)}
        ask = self._ask("group.promote", force=bool(event.args.get("force")), **where)
        return State.PROMOTING, [*effects, Log("takeover", {"label": plan.label, "lost": plan.message}), ask]

    def _busy_refused(self, event: Command, now: float) -> Step:
        error = Refused("roles are being exchanged just now", "try again in a moment")
        return self.state, [Answer(event.id, error=to_map(error))]

    def _peer_split(self, event: FrameIn, now: float) -> Step:
        return self._go_down(now, "split by the peer's operator", close=True, soon=True)

    def _peer_resync(self, event: FrameIn, now: float) -> Step:
        self.split_wanted = False
        discard = event.frame.get("discard")
        self.discard = discard if discard in (self.node, self.peer) else ""
        epoch = event.frame.get("epoch")
        self.discard_epoch = epoch if isinstance(epoch, int) and 0 <= epoch < 1 << 64 else 0
        self._discard_until = now + CONSENT_S
        _, more = self._go_down(now, "resync asked by the peer's operator", close=True, soon=True)
        return State.DOWN, [Persist({"split": False}), *more]

    def facts(self, now: float) -> dict[str, Any]:
        """What status.describe and plan_takeover need to know of this session. Plain values, safe to send as JSON."""
        return {
            "session": self.state.value,
            "node": self.node,
            "peer": self.peer,
            "linked": bool(self.link),
            "rests": self._rests,
            "backed": self._backed,
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
            "peer_upstream": self.theirs.upstream if self.theirs else "",
            "peer_state": self.peer_report.get("state", ""),
            "peer_feeds": list(self.peer_report.get("feeds") or ()),
            "peer_stands": int(self.peer_report.get("stands") or 0) if self.link else 0,
            "peer_full_s": int(self.peer_report.get("full_s") or 0) if self.link else 0,
            "peer_refused": texts(self.peer_report.get("refused")) if self.link else {},
            "peer_names": texts(self.peer_report.get("names")),
            "was_complete": self.was_complete,
            "peer_copy": self.theirs.state if self.theirs else "",
            "peer_kept": int(self.peer_report.get("kept") or 0),
            "peer_copies": numbers(self.peer_report.get("copies")),
            "peer_pos": max(int(self.peer_report.get("seq") or 0), self.theirs.pos if self.theirs else 0),
            "acked": {"received": self.acked[0], "durable": self.acked[1], "applied": self.acked[2]},
            "discard": self.discard,
        }  # fmt: skip


def texts(told: Any) -> dict[str, str]:
    """A map of texts that a peer told, or did not."""
    return {str(key)[:64]: str(value)[:512] for key, value in (told or {}).items()}


MOST_TOLD = 64


def numbers(told: Any) -> dict[str, int]:
    """A map of numbers from 0 up that a peer told, or did not; what is no such number is left out, and so is what is
    beyond MOST_TOLD."""
    pairs = list((told or {}).items())[:MOST_TOLD]
    return {str(key)[:64]: n for key, n in pairs if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63}
