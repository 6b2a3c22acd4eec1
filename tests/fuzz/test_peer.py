"""What a peer with a valid certificate may say to the session: refused with ProtocolError, or understood for good."""

from __future__ import annotations

import pickle
from typing import Any, ClassVar

import msgpack
import pytest

from replicator.core import hello
from replicator.core.errors import ProtocolError
from replicator.core.events import Acked, Command, Event, FrameIn, Tick
from replicator.core.session import Session
from tests.fuzz.mutate import EXECUTIONS, FACTOR, executions, mutate_value, only
from tests.unit.replicator.core.test_hello import NODE, status
from tests.unit.replicator.core.test_session import Couple, lost_journal


def test_a_hello_is_understood_whole_or_refused() -> None:
    right = hello.to_frame(hello.from_status(NODE, status(), split=True, discard=NODE, handover="ef" * 16))
    done = understood = 0
    for _number, rng in executions("hello"):
        frame = mutate_value(right, rng)
        if rng.getrandbits(2) == 0:
            frame = mutate_value(frame, rng)
        done += 1
        if not isinstance(frame, dict):
            continue
        found = only((ProtocolError,), lambda frame=frame: hello.from_frame(frame), lambda frame=frame: frame)
        if isinstance(found, hello.Hello) and found.version == hello.VERSION:
            again = hello.from_frame(msgpack.unpackb(msgpack.packb(hello.to_frame(found))))
            assert again == found, frame
            understood += 1
    assert done == EXECUTIONS["hello"] * FACTOR and understood > done // 50


class Recorded(Session):
    """Keeps itself as it was before each frame, and the frame."""

    samples: ClassVar[list[tuple[bytes, FrameIn, float]]] = []

    def handle(self, event: Event, now: float) -> list[Any]:
        if isinstance(event, FrameIn):
            self.__class__ = Session  # type: ignore[assignment]
            Recorded.samples.append((pickle.dumps(self), event, now))
            self.__class__ = Recorded  # type: ignore[assignment]
        return super().handle(event, now)


def stories() -> list[tuple[bytes, FrameIn, float]]:
    """Sessions in every state in which frames come, with the frame that came: streaming, copy, switchover, split."""
    Recorded.samples.clear()
    for couple in (Couple(), Couple(a=lost_journal()), Couple()):
        for side in (couple.a, couple.b):
            side.session.__class__ = Recorded  # type: ignore[assignment]
        couple.connect()
        couple.tick(3.0)
        couple.b.target.status.update(state="ok", pos=10, durable=10)
        couple.tick(1.0)
        couple.give(couple.a, Command(7, "switchover"))
        couple.give(couple.a, Acked(couple.link, 10, 10, 10))
        couple.tick(2.0)
        couple.give(couple.b, Command(8, "split"))
        couple.tick(1.0)
        couple.give(couple.a, Command(9, "resync"))
        couple.tick(2.0)
    return list(Recorded.samples)


def test_no_frame_makes_a_session_fail_later() -> None:
    samples = stories()
    kinds = {sample[1].frame["t"] for sample in samples}
    assert kinds >= {"hello", "verdict", "bitmap", "attach", "attached", "copied", "handover", "taken", "ping", "pong"}
    done = refused = 0
    live: dict[int, Session] = {}
    for _number, rng in executions("session frame"):
        at = rng.randrange(len(samples))
        stored, event, now = samples[at]
        session = live.pop(at, None) or pickle.loads(stored)
        frame = mutate_value(event.frame if rng.getrandbits(3) else samples[rng.randrange(len(samples))][1].frame, rng)
        done += 1
        if not isinstance(frame, dict):
            continue
        sent = FrameIn(event.link, frame)
        result = only(
            (ProtocolError,), lambda s=session, e=sent, n=now: s.handle(e, n), lambda e=event, f=frame: (e.frame, f)
        )
        if isinstance(result, ProtocolError):  # nothing was changed, so it serves again
            refused += 1
            live[at] = session
            continue

        def look(session: Session = session, now: float = now) -> None:
            session.facts(now)
            session.next_deadline()
            session.handle(Tick(now), now + 1.0)
            session.facts(now + 1.0)

        only((ProtocolError,), look, lambda e=event, f=frame: (e.frame, f))
    assert done == EXECUTIONS["session frame"] * FACTOR and refused > done // 5


def test_a_refused_frame_changes_nothing() -> None:
    samples = stories()
    for stored, event, now in samples:
        for wrong in ({"t": event.frame["t"]}, {**event.frame, "t": "nonsense"}, {}):
            session: Session = pickle.loads(stored)
            before = {key: value for key, value in vars(session).items() if key != "_rng"}
            try:
                session.handle(FrameIn(event.link, wrong), now)
            except ProtocolError:
                after = {key: value for key, value in vars(session).items() if key not in ("_rng", "last_contact")}
                assert after == {key: value for key, value in before.items() if key != "last_contact"}, wrong


def test_a_mask_that_is_a_number_is_refused_and_takes_no_memory() -> None:
    stored, event, now = next(sample for sample in stories() if sample[1].frame["t"] == "attach")
    session: Session = pickle.loads(stored)
    with pytest.raises(ProtocolError, match="malformed"):
        session.handle(FrameIn(event.link, {**event.frame, "masks": {0: 1 << 40}}), now)
