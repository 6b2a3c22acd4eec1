"""The session itself: the way in, and the names of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.core.errors import ProtocolError
from replicator.core.events import (
    Acked,
    Command,
    DataStopped,
    Effect,
    Event,
    FrameIn,
    LinkDown,
    LinkUp,
    Log,
    Reply,
    Tick,
)
from replicator.core.session.base import HURRIED_POLL_S, NotExpected, Step
from replicator.core.session.flowing import Flowing
from replicator.core.session.operating import Operating
from replicator.core.session.switching import Switching
from replicator.core.transitions import COMPLETE, RECEIVING, SHIPPING, TRANSITIONS, Input, State


class Session(Switching, Flowing, Operating):
    """One pair, one node. `handle` is the only way in; `next_deadline` says when it wants a Tick."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what to do, in order.

        Raises NotExpected when the table has no row, ProtocolError when a frame's content is wrong; both change
        nothing.
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
        handler: Callable[[Any, float], Step] = getattr(self, "_" + name)
        before = self.state
        after, effects = handler(event, now)
        assert after in allowed, f"{name} led from {before} to {after}"
        if after is not before:
            self.state = after
            if after in COMPLETE or after is State.COPY_SOURCE:
                self.was_complete = after in COMPLETE
            self._since = now
            effects.append(Log("pair-state", {"was": before.value, "is": after.value, "by": what.value}))
        return effects

    def noted(self, link: int, positions: tuple[int, int, int], now: float) -> bool:
        """Take in an acknowledgement, as Acked has it, that does nothing but move the positions: that is each one of a
        pair in sync. False, with nothing done, when `handle` is to have it."""
        state = self.state
        if link != self.link or not (state is State.SYNC_SOURCE or (state is State.SOURCE and not self._sync_seq)):
            return False
        self.acked, self.last_contact = positions, now
        return True

    def hurry(self, now: float) -> None:
        """The peer is there and waits to be called: try at once instead of after the back-off. No effect elsewhere."""
        if self.state is State.DOWN and self._retry_at is not None:
            self._backoff.reset()
            self._retry_at = now

    def look_again(self, now: float) -> list[Effect]:
        """Something about this node changed that a waiting pair may have waited for: compare again. Else no effect."""
        if self.state is not State.WAITING:
            return []
        self.state, effects = self._go_down(now, "comparing again", close=True, soon=True)
        return effects

    def caught_up(self, now: float) -> None:
        """Everything received is applied: a copy may be complete, so its target is asked now. No effect elsewhere."""
        if self.state is State.COPY_TARGET:
            self._next_poll = min(self._next_poll, max(now, self._last_poll + HURRIED_POLL_S))

    def next_deadline(self) -> float | None:
        """When the next Tick is wanted, None for never. Monotonic seconds."""
        state = self.state
        if state is State.DOWN:
            return self._retry_at if self.dials else None
        if state in (State.DIALLING, State.STOPPED):
            return None
        if state in SHIPPING or state in RECEIVING:
            return min(self._next_ping, self._next_poll)
        return self._next_ping

    def _is_stale(self, event: Event) -> bool:
        """Events of another link and replies nobody waits for."""
        if isinstance(event, Reply):
            return event.token == 0 or event.token != self._awaited
        if isinstance(event, FrameIn | Acked | DataStopped):
            return self.link == 0 or event.link != self.link
        if isinstance(event, LinkDown):
            return event.link != self.link
        return False


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
