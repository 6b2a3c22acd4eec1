"""Stories of one pair: two sessions joined back to back, each with a scripted target."""

from __future__ import annotations

import random
from typing import Any

import pytest

from replicator.core import transitions
from replicator.core.epochs import make_epoch
from replicator.core.errors import ProtocolError
from replicator.core.events import (
    Acked,
    Answer,
    AskTarget,
    ClaimJournal,
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
from replicator.core.session import COMMANDS, DEAD_S, HANDSHAKE_S, NotExpected, Session
from replicator.core.session.base import QUIET_PING_S, REST_DEAD_S, REST_PING_S, tree_durable
from replicator.core.session.links import NOTE_SOURCE_S
from replicator.core.transitions import TRANSITIONS, Input, State

A, B = "aa" * 16, "bb" * 16
GROUP = "cd" * 16
E1A = make_epoch(1, 0xAAAAAA)


class FakeTarget:
    """Answers control ops from a status map that the story sets."""

    def __init__(self, tag: int, role: str, pos: int) -> None:
        self.tag = tag
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refuse: set[str] = set()
        self.status: dict[str, Any] = {
            "uuid": GROUP, "role": role, "state": "ok", "mode": "journal", "pos": pos, "durable": pos, "floor": pos,
            "hist": [[E1A, 0]], "journal": {"first_seq": 1, "head_seq": pos}, "bitmaps": {1: 0}, "copying": False,
            "volumes": [{"index": 0, "size": 65536}], "policy": {"mode": "async"}, "sync_on": False, "copy_id": "",
        }  # fmt: skip

    def call(self, op: str, args: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        self.asked.append((op, args))
        name = op.removeprefix("group.")
        if name in self.refuse:
            return {}, "told to refuse"
        return getattr(self, "_" + name)(**args), None

    def _status(self, settle: bool = False) -> dict[str, Any]:
        return {**self.status}

    def _follow(self) -> dict[str, Any]:
        return {}

    def _pin_copy(self, **args: Any) -> dict[str, Any]:
        return self._begin_copy(**args)

    def _copy_until(self, copy_id: str, seq: int, epoch: int) -> dict[str, Any]:
        return {"copying": True}

    def _link(self, up: bool) -> dict[str, Any]:
        return {}

    def _journal_damaged(self, off: int, seq: int) -> dict[str, Any]:
        return {"damaged": True}

    def _resume_copy(self) -> dict[str, Any]:
        return {}

    def _follow(self) -> dict[str, Any]:
        return {}

    def _note_source(self, seq: int) -> dict[str, Any]:
        return {}

    def _release(self) -> dict[str, Any]:
        return {}

    def _bitmap(self, c: int | None) -> dict[str, Any]:
        return {"start": None, "volumes": None} if c is None else {"start": 1, "volumes": {0: b"\x01"}}

    def _begin_copy(self, c: int | None, peer_bitmaps: Any, copy_id: str) -> dict[str, Any]:
        self.status.update(copying=True, copy_id=copy_id)
        full = peer_bitmaps is None
        masks = {} if full else {0: b"\x01"}
        return {
            "p": self.status["pos"], "epoch": E1A, "hist": self.status["hist"], "masks": masks, "full": full,
            "volumes": [{"index": 0, "name": "v", "size": 65536, "born": 0}],
        }  # fmt: skip

    def _attach(self, **args: Any) -> dict[str, Any]:
        self.status.update(state="resync", pos=args["p"], copy_id=args["copy_id"], floor=args["c"])
        return {"p": args["p"]}

    def _sync_on(self, on: bool) -> dict[str, Any]:
        self.status["sync_on"] = on
        return {"seq": self.status["pos"], "sync_on": on}

    def _hold(self, deadline_s: float) -> dict[str, Any]:
        return {"seq": self.status["pos"]}

    def _demote(self, diverged: bool, upto: int | None = None) -> dict[str, Any]:
        self.status.update(role="secondary", state="diverged" if diverged else "ok")
        return {"seq": self.status["pos"], "epoch": E1A}

    def _promote(self, force: bool) -> dict[str, Any]:
        epoch = make_epoch((self.status["hist"][-1][0] >> 24) + 1, self.tag)
        self.status["hist"] = [*self.status["hist"], [epoch, self.status["pos"]]]
        self.status["pos"] += 1
        self.status.update(role="primary", durable=self.status["pos"], floor=self.status["pos"])
        self.status["journal"] = {"first_seq": 1, "head_seq": self.status["pos"]}
        return {"epoch": epoch, "base": self.status["pos"] - 1}


class Side:
    """A session, its target, and what came out."""

    def __init__(self, name: str, node: str, peer: str, dials: bool, target: FakeTarget) -> None:
        self.session = Session(node, peer, dials=dials, rng=random.Random(node))
        self.name = name
        self.target = target
        self.effects: list[Effect] = []
        self.answers: list[Answer] = []
        self.persisted: dict[str, Any] = {}
        self.ships = self.receives = False


class Couple:
    """Two sides and a wire that delivers at once, in order."""

    def __init__(self, a: FakeTarget | None = None, b: FakeTarget | None = None) -> None:
        self.now = 100.0
        self.a = Side("a", A, B, True, a or FakeTarget(0xAAAAAA, "primary", 10))
        self.b = Side("b", B, A, False, b or FakeTarget(0xBBBBBB, "secondary", 8))
        self.link = 0
        self.swallows = False
        """The wire loses every frame."""
        self.queue: list[tuple[Side, Event]] = []

    def peer_of(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    def give(self, side: Side, event: Event) -> None:
        self.queue.append((side, event))
        while self.queue:
            who, what = self.queue.pop(0)
            for effect in who.session.handle(what, self.now):
                who.effects.append(effect)
                self.carry_out(who, effect)
            # What was begun and not ended is what the state says, after every single event.
            assert (who.ships, who.receives) == (who.session.ships, who.session.receives), (who.name, what)

    def carry_out(self, side: Side, effect: Effect) -> None:
        if isinstance(effect, StartShipping | StopShipping):
            side.ships = isinstance(effect, StartShipping)
        elif isinstance(effect, StartReceiving | StopReceiving):
            side.receives = isinstance(effect, StartReceiving)
        elif isinstance(effect, Dial):
            self.link += 1
            self.queue += [(side, LinkUp(self.link)), (self.peer_of(side), LinkUp(self.link))]
        elif isinstance(effect, Send):
            if not self.swallows:
                self.queue.append((self.peer_of(side), FrameIn(self.link, effect.frame)))
        elif isinstance(effect, CloseLink):
            self.queue.append((self.peer_of(side), LinkDown(self.link, "closed by the peer")))
        elif isinstance(effect, AskTarget):
            result, error = side.target.call(effect.op, effect.args)
            self.queue.append((side, Reply(effect.token, result, error)))
        elif isinstance(effect, Answer):
            side.answers.append(effect)
        elif isinstance(effect, Persist):
            side.persisted.update(effect.changes)

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass in small steps, both sides ticking as they ask to."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            for side in (self.a, self.b):
                due = side.session.next_deadline()
                if due is not None and due <= self.now:
                    self.give(side, Tick(last_rx=self.now))

    def connect(self) -> tuple[State, State]:
        self.give(self.a, Tick())
        return self.states()

    def states(self) -> tuple[State, State]:
        return self.a.session.state, self.b.session.state

    def cut(self) -> None:
        for side in (self.a, self.b):
            self.give(side, LinkDown(self.link, "cut"))


def logs(side: Side) -> list[str]:
    return [effect.name for effect in side.effects if isinstance(effect, Log)]


def test_a_pair_that_was_apart_resumes_exactly_after_what_the_follower_holds():
    couple = Couple()
    assert couple.connect() == (State.SOURCE, State.TARGET)
    assert StartShipping(9) in couple.a.effects
    assert StartReceiving(9, E1A) in couple.b.effects


def test_shipping_starts_only_after_both_verdicts():
    couple = Couple()
    couple.connect()
    kinds = [type(e) if not isinstance(e, Send) else e.frame["t"] for e in couple.a.effects]
    assert kinds.index("hello") < kinds.index("verdict") < kinds.index(StartShipping)


def test_verdicts_that_differ_are_a_protocol_error():
    couple = Couple()
    couple.connect()
    session = Session(A, B, dials=True, rng=random.Random(1))
    session.handle(Tick(), 0.0)
    ask = next(e for e in session.handle(LinkUp(1), 0.0) if isinstance(e, AskTarget))
    session.handle(Reply(ask.token, couple.a.target.status), 0.0)
    theirs = next(e.frame for e in couple.b.effects if isinstance(e, Send) and e.frame["t"] == "hello")
    session.handle(FrameIn(1, theirs), 0.0)
    with pytest.raises(ProtocolError, match="the peer decided"):
        session.handle(FrameIn(1, {"t": "verdict", "label": "full-fresh"}), 0.0)
    assert session.state is State.VERDICT


def lost_journal() -> FakeTarget:
    target = FakeTarget(0xAAAAAA, "primary", 10)
    target.status["journal"] = {"first_seq": 10, "head_seq": 10}
    return target


def test_a_copy_by_difference_asks_attaches_and_only_then_ships():
    couple = Couple(a=lost_journal())
    assert couple.connect() == (State.COPY_SOURCE, State.COPY_TARGET)
    assert [op for op, _ in couple.b.target.asked if op != "group.link"][:3] == [
        "group.status",
        "group.bitmap",
        "group.attach",
    ]
    begin = dict(couple.a.target.asked)["group.begin_copy"]
    assert (begin["c"], begin["peer_bitmaps"]) == (8, {0: b"\x01"})
    assert StartShipping(11) in couple.a.effects
    attached = next(i for i, e in enumerate(couple.b.effects) if isinstance(e, Send) and e.frame["t"] == "attached")
    assert any(isinstance(e, StartReceiving) for e in couple.b.effects[:attached])


def test_the_copy_is_complete_when_the_followers_target_says_so():
    couple = Couple(a=lost_journal())
    couple.connect()
    couple.tick(1.0)
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET)
    couple.b.target.status["state"] = "ok"
    couple.tick(1.0)
    assert couple.states() == (State.SOURCE, State.TARGET)


def test_a_copy_target_that_has_applied_everything_asks_at_once_whether_the_copy_is_complete():
    couple = Couple(a=lost_journal())
    couple.connect()
    couple.tick(1.0)
    couple.b.target.status["state"] = "ok"
    couple.give(couple.b, Tick(last_rx=couple.now))
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET), "it asks now and then only"
    couple.b.session.caught_up(couple.now)
    due = couple.b.session.next_deadline()
    assert due is not None and couple.now < due <= couple.now + 0.1, "soon, but not all the time"
    couple.now = due
    couple.give(couple.b, Tick(last_rx=couple.now))
    assert couple.states() == (State.SOURCE, State.TARGET)
    couple.b.session.caught_up(couple.now)  # a matter of copies only
    assert (couple.b.session.next_deadline() or 0) > couple.now


def test_a_cut_copy_goes_on_where_it_was():
    couple = Couple(a=lost_journal())
    couple.connect()
    couple.b.target.status["pos"] = 12
    couple.a.target.status.update(pos=14, journal={"first_seq": 10, "head_seq": 14})
    couple.cut()
    couple.tick(1.0)
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET)
    assert couple.a.effects.count(StartShipping(13)) == 1
    assert [op for op, _ in couple.a.target.asked].count("group.begin_copy") == 1


def test_a_synchronous_group_waits_for_its_peer_once_that_has_caught_up():
    couple = Couple()
    couple.a.target.status["policy"] = {"mode": "sync"}
    couple.connect()
    couple.tick(1.0)
    assert couple.states()[0] is State.SOURCE
    assert couple.a.target.status["sync_on"]
    couple.give(couple.a, Acked(couple.link, 10, 10, 10))
    assert couple.states()[0] is State.SYNC_SOURCE
    couple.a.target.status.update(sync_on=False, degraded=True)
    couple.tick(3.0)
    assert "out-of-sync" in logs(couple.a)


def test_an_ack_that_is_only_noted_does_what_the_event_does_and_any_other_is_left_to_it():
    for state in State:
        for sync_seq in (0, 10):
            for link in (6, 7):
                sessions = [Session(A, B, dials=True, rng=random.Random(1)) for _ in range(2)]
                for session in sessions:
                    session.state, session.link, session._sync_seq = state, 7, sync_seq
                noted, told = sessions
                if not noted.noted(link, (10, 9, 8), 5.0):
                    assert noted.acked == (0, 0, 0) and noted.last_contact == 0.0
                    continue
                assert link == 7 and not told.handle(Acked(link, 10, 9, 8), 5.0)
                assert told.state is noted.state is state
                assert told.acked == noted.acked == (10, 9, 8)
                assert told.last_contact == noted.last_contact == 5.0
                assert {**vars(told), "_rng": 0, "_backoff": 0} == {**vars(noted), "_rng": 0, "_backoff": 0}


def test_in_sync_an_ack_is_noted():
    session = Session(A, B, dials=True, rng=random.Random(1))
    session.state, session.link = State.SYNC_SOURCE, 7
    assert session.noted(7, (10, 9, 8), 5.0)


def test_split_stays_split_over_reconnects_until_a_resync():
    couple = Couple()
    couple.connect()
    couple.give(couple.b, Command(1, "split"))
    couple.tick(1.0)
    assert couple.states() == (State.WAITING, State.WAITING)
    assert couple.b.persisted == {"split": True}
    couple.give(couple.a, Command(2, "resync"))
    couple.tick(2.0)
    assert couple.b.persisted == {"split": False}
    assert couple.states() == (State.SOURCE, State.TARGET)


def test_switchover_drains_demotes_durably_and_only_then_hands_over():
    couple = Couple()
    couple.connect()
    couple.give(couple.a, Command(7, "switchover"))
    assert couple.states()[0] is State.DRAINING
    assert "group.demote" not in dict(couple.a.target.asked)
    couple.b.target.status.update(pos=10, durable=10)
    couple.give(couple.a, Acked(couple.link, 10, 9, 9))
    assert couple.states()[0] is State.DRAINING
    couple.give(couple.a, Acked(couple.link, 10, 10, 9))
    couple.tick(1.0)
    assert couple.b.target.status["role"] == "primary"
    assert couple.states() == (State.TARGET, State.SOURCE)
    assert [a.error for a in couple.a.answers] == [None]
    assert couple.a.persisted == {"handover": ""}


def test_a_second_switchover_is_told_of_the_first():
    couple = Couple()
    couple.connect()
    couple.give(couple.a, Command(7, "switchover"))
    couple.give(couple.a, Command(8, "switchover"))
    assert couple.states()[0] is State.DRAINING
    assert [a.id for a in couple.a.answers] == [8] and "exchanged already" in couple.a.answers[0].error["message"]


def test_a_switchover_cut_after_the_demotion_is_finished_by_the_handshake():
    couple = Couple()
    couple.connect()
    couple.give(couple.a, Command(7, "switchover"))
    couple.b.target.status.update(pos=10, durable=10)
    couple.give(couple.b, LinkDown(couple.link, "cut"))
    couple.link += 100  # frames of the old link do not arrive
    couple.give(couple.a, Acked(couple.a.session.link, 10, 10, 10))
    assert couple.a.target.status["role"] == couple.b.target.status["role"] == "secondary"
    couple.give(couple.a, LinkDown(couple.a.session.link, "cut"))
    couple.tick(2.0)
    assert couple.b.target.status["role"] == "primary"
    assert couple.states() == (State.TARGET, State.SOURCE)
    assert [a.error for a in couple.a.answers] == [None]


def test_a_switchover_that_does_not_drain_in_time_leaves_everything_as_it_was():
    couple = Couple()
    couple.connect()
    couple.give(couple.a, Command(7, "switchover", {"deadline_s": 2.0}))
    couple.tick(3.0)
    assert couple.states()[0] is State.SOURCE
    assert couple.a.answers[0].error["name"] == "TimedOut"
    assert ("group.release", {}) in couple.a.target.asked


def test_takeover_with_the_primary_alive_needs_force_and_says_so():
    couple = Couple()
    couple.connect()
    couple.give(couple.b, Command(3, "takeover", {"status": couple.b.target.status}))
    assert "alive" in couple.b.answers[0].error["message"]
    assert couple.states() == (State.SOURCE, State.TARGET)


def test_takeover_by_force_supersedes_the_primary_which_steps_down():
    couple = Couple()
    couple.connect()
    couple.give(couple.b, Command(3, "takeover", {"status": couple.b.target.status, "force": True}))
    couple.tick(2.0)
    assert couple.b.target.status["role"] == "primary"
    assert couple.a.target.status["role"] == "secondary"
    assert couple.a.target.status["state"] == "diverged"  # records 9 and 10 never reached b
    assert couple.states() == (State.REFUSED, State.REFUSED)
    couple.give(couple.a, Command(4, "resync", {"discard": A}))
    couple.tick(2.0)
    assert couple.states() == (State.COPY_TARGET, State.COPY_SOURCE)


def test_a_primary_without_a_journal_learns_that_it_was_replaced_and_nothing_else():
    couple = Couple()
    couple.connect()
    couple.a.target.status.update(mode="bitmap", journal={"first_seq": 1, "head_seq": 10, "error": "it is gone"})
    couple.cut()
    couple.tick(2.0)
    assert couple.states() == (State.DOWN, State.DOWN)
    assert couple.b.session.facts(0.0)["peer_role"] == "primary"
    assert not any(op == "group.link" and args["up"] for op, args in couple.a.target.asked[-5:])
    couple.give(couple.b, Command(3, "takeover", {"status": couple.b.target.status, "force": True}))
    couple.tick(4.0)
    assert couple.b.target.status["role"] == "primary"
    assert (couple.a.target.status["role"], couple.a.target.status["state"]) == ("secondary", "diverged")
    couple.tick(4.0)
    assert couple.states()[0] is State.DOWN, "a secondary without a journal has nothing to say"


def test_a_primary_without_a_journal_learns_of_it_also_from_a_copy_of_the_one_that_took_over():
    couple = Couple()
    couple.connect()
    couple.cut()
    a, b = couple.a.target.status, couple.b.target.status
    a.update(mode="bitmap", journal={"first_seq": 1, "head_seq": 10, "error": "it is gone"})
    b.update(hist=[*a["hist"], [a["hist"][-1][0] + (1 << 24), a["pos"]]], pos=a["pos"] + 1, upstream="c" * 32)
    couple.tick(2.0)
    assert a["role"] == "secondary", "it serves hosts though its time is over"


def test_takeover_of_an_inconsistent_copy_is_refused_even_by_force():
    couple = Couple()
    couple.b.target.status["state"] = "resync"
    couple.give(couple.b, Command(3, "takeover", {"status": couple.b.target.status, "force": True}))
    assert "inconsistent" in couple.b.answers[0].error["message"]


def test_a_silent_peer_is_given_up_and_called_again_with_back_off():
    couple = Couple()
    couple.connect()
    start = couple.now
    couple.now += DEAD_S
    couple.give(couple.a, Tick(last_rx=start))
    assert couple.a.session.state is State.DOWN
    assert StopShipping() in couple.a.effects
    assert couple.a.session.next_deadline() > couple.now


def pings(side: Side) -> list[dict[str, Any]]:
    return [effect.frame for effect in side.effects if isinstance(effect, Send) and effect.frame["t"] == "ping"]


def resting() -> Couple:
    """A running pair whose primary has left the heartbeat to another link, an hour ago."""
    couple = Couple()
    couple.connect()
    for _ in range(int(3600 / REST_PING_S)):
        couple.now += REST_PING_S
        couple.give(couple.a, Tick(couple.now, quiet=True, rests=True, pulse=couple.now))
        couple.give(couple.b, Tick(couple.now, quiet=True, rests=True, pulse=couple.now))
    assert couple.states() == (State.SOURCE, State.TARGET) and couple.a.session.rests
    couple.a.effects.clear()
    couple.b.effects.clear()
    return couple


def test_a_link_that_rests_beats_rarely_and_lives_by_the_heartbeat_of_another():
    couple = resting()
    heard = couple.now
    for _ in range(int(REST_PING_S) - 2):
        couple.now += 1
        couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=couple.now))
    assert couple.a.session.state is State.SOURCE and couple.a.session.rests
    assert pings(couple.a) == [] and couple.a.session.next_deadline() > couple.now


def test_a_link_that_rests_is_given_up_when_even_its_own_rare_heartbeats_fail():
    couple = resting()
    heard = couple.now
    couple.swallows = True
    while couple.now < heard + REST_DEAD_S - 1:
        couple.now += 1
        couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=couple.now))
        assert couple.a.session.state is State.SOURCE
    couple.now += 1
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=couple.now))
    assert couple.a.session.state is State.DOWN


def silent_for_a_while(couple: Couple) -> tuple[float, float]:
    """When the peer was last heard over this link, and over another one."""
    heard = couple.now
    couple.now += 10
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=couple.now))
    return heard, couple.now


def test_when_the_heartbeat_fails_a_link_that_rests_asks_by_itself_before_it_is_given_up():
    couple = resting()
    heard, pulse = silent_for_a_while(couple)
    couple.now += DEAD_S
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=pulse))
    assert not couple.a.session.rests and couple.a.session.state is State.SOURCE
    assert [frame["quiet"] for frame in pings(couple.a)] == [False]
    assert [e.frame["t"] for e in couple.b.effects if isinstance(e, Send)] == ["pong"], "the peer answers though quiet"


def test_a_link_that_rests_and_gets_no_answer_either_is_given_up_soon():
    couple = resting()
    couple.swallows = True
    heard, pulse = silent_for_a_while(couple)
    couple.now += DEAD_S
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=pulse))
    couple.now += DEAD_S - 0.1
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=pulse))
    assert couple.a.session.state is State.SOURCE
    couple.now += 0.1
    couple.give(couple.a, Tick(heard, quiet=True, rests=True, pulse=pulse))
    assert couple.a.session.state is State.DOWN


def test_what_happens_in_the_group_ends_the_rest_and_the_link_is_judged_by_itself_from_then_on():
    couple = resting()
    couple.swallows = True
    heard, _ = silent_for_a_while(couple)
    couple.give(couple.a, Tick(heard, quiet=False, rests=False, pulse=couple.now))
    assert couple.a.session.state is State.SOURCE, "the peer had no reason to speak here"
    assert [frame["quiet"] for frame in pings(couple.a)] == [False]
    couple.now += DEAD_S
    couple.give(couple.a, Tick(heard, quiet=False, rests=False, pulse=couple.now))
    assert couple.a.session.state is State.DOWN, "other links to the peer say nothing about this one"


def test_the_link_that_carries_our_heartbeat_need_not_be_the_one_that_carries_the_peers():
    couple = resting()
    heard = couple.now
    couple.give(couple.a, Tick(heard, quiet=True, rests=False, pulse=couple.now))
    couple.swallows = True
    for _ in range(20):
        couple.now += QUIET_PING_S
        couple.give(couple.a, Tick(heard, quiet=True, rests=False, pulse=couple.now))
    assert couple.a.session.state is State.SOURCE and not couple.a.session.rests
    assert len(pings(couple.a)) >= 20, "it beats for all of ours"


def test_a_link_over_which_the_peer_did_beat_is_given_up_without_asking():
    couple = resting()
    couple.swallows = True
    heard = couple.now
    couple.give(couple.a, Tick(heard, quiet=True, rests=False, pulse=heard))
    couple.now += DEAD_S
    couple.give(couple.a, Tick(heard, quiet=True, rests=False, pulse=heard))
    assert couple.a.session.state is State.DOWN


def test_a_handshake_that_stalls_is_given_up():
    session = Session(A, B, dials=True, rng=random.Random(1))
    session.handle(Tick(), 0.0)
    session.handle(LinkUp(1), 0.0)
    session.handle(Tick(last_rx=HANDSHAKE_S), HANDSHAKE_S)
    assert session.state is State.DOWN


def test_back_off_grows_with_jitter_and_is_bounded():
    session = Session(A, B, dials=True, rng=random.Random(5))
    now, waits = 0.0, []
    for _ in range(12):
        session.handle(Tick(), now)
        session.handle(LinkDown(0, "refused"), now)
        waits.append(session.next_deadline() - now)
        now = session.next_deadline()
    assert waits[0] <= 0.1 < waits[4] and max(waits) <= 10.0
    assert len(set(waits)) == len(waits)


def test_events_of_a_former_link_and_stale_replies_change_nothing():
    couple = Couple()
    couple.connect()
    session = couple.a.session
    for event in (
        FrameIn(couple.link - 1, {"t": "split"}), Acked(couple.link - 1, 99, 99, 99), LinkDown(couple.link - 1, "late"),
        Reply(12345, {"role": "secondary"}), DataStopped(couple.link + 1, "peer", "late"),
    ):  # fmt: skip
        assert session.handle(event, couple.now) == []
    assert session.state is State.SOURCE and session.acked == (0, 0, 0)


def test_an_input_the_table_does_not_know_raises_and_changes_nothing():
    couple = Couple()
    couple.connect()
    before = dict(vars(couple.a.session))
    for frame in ({"t": "attach"}, {"t": "handover"}, {"t": "nonsense"}, {}):
        with pytest.raises(ProtocolError):
            couple.a.session.handle(FrameIn(couple.link, frame), couple.now)
    assert vars(couple.a.session) == before


def test_a_journal_that_lost_its_records_is_answered_by_a_new_comparison():
    couple = Couple()
    couple.connect()
    couple.a.target.status["journal"] = {"first_seq": 10, "head_seq": 10}
    couple.give(couple.a, DataStopped(couple.link, "journal", "record 9 was dropped"))
    couple.tick(1.0)
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET)


def test_a_failed_journal_stops_the_pair_until_the_operator_acts():
    couple = Couple()
    couple.connect()
    couple.give(couple.b, DataStopped(couple.link, "medium", "fdatasync: EIO"))
    couple.tick(3.0)
    assert couple.b.session.state is State.STOPPED
    couple.give(couple.b, Command(1, "resync"))
    assert couple.b.session.state is State.DOWN


def test_our_target_is_told_of_a_record_that_cannot_be_shipped_and_the_pair_goes_on_by_what_it_does():
    couple = Couple()
    couple.connect()
    couple.a.target.status.update(mode="bitmap", journal={"first_seq": 10, "head_seq": 10})
    couple.give(couple.a, DataStopped(couple.link, "damaged", "the journal is damaged at record 9", 4160, 9))
    assert ("group.journal_damaged", {"off": 4160, "seq": 9}) in couple.a.target.asked
    couple.tick(1.0)
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET)


def test_a_target_that_refuses_is_tried_again_later():
    couple = Couple(a=lost_journal())
    couple.b.target.refuse = {"attach"}
    couple.connect()
    assert couple.b.session.state is State.DOWN
    couple.b.target.refuse = set()
    couple.tick(3.0)
    assert couple.states() == (State.COPY_SOURCE, State.COPY_TARGET)


def test_every_row_names_a_handler_and_every_state_can_be_reached():
    session = Session(A, B, dials=True, rng=random.Random(1))
    for (state, what), (name, to) in TRANSITIONS.items():
        assert callable(getattr(session, "_" + name)), (state, what)
        assert to
    reached = {State.DOWN} | {state for _, to in TRANSITIONS.values() for state in to}
    assert reached == set(State)


def test_every_state_takes_time_and_every_command():
    commands = [item for item in Input if item.name.startswith("CMD")]
    assert {item.value.removeprefix("command ") for item in commands} == COMMANDS
    for state in State:
        for what in (Input.TICK, *commands):
            assert (state, what) in TRANSITIONS, (state, what)


def test_not_expected_is_a_protocol_error_for_the_shell():
    assert issubclass(NotExpected, ProtocolError)
    assert transitions.S is State


# -- trees
# --------------------------------------------------------------------------------------------------------------

TOP = "ee" * 16


def relay(**status: Any) -> FakeTarget:
    """A complete secondary that TOP feeds."""
    target = FakeTarget(0xAAAAAA, "secondary", 10)
    target.status.update({"upstream": TOP, **status})
    return target


def fed(**status: Any) -> FakeTarget:
    target = FakeTarget(0xBBBBBB, "secondary", 8)
    target.status.update({"upstream": A, **status})
    return target


class Above:
    """What the nodes above a relay answer; mixed into its target, as the shell routes it."""

    def __init__(self, target: FakeTarget, seq: int) -> None:
        self.seq, right = seq, target.call

        def call(op: str, args: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
            if not op.startswith("pair."):
                return right(op, args)
            target.asked.append((op, args))
            return ({"seq": self.seq, "epoch": E1A}, None) if self.seq else ({}, "no node feeds this one")

        target.call = call  # type: ignore[method-assign]


def test_a_complete_secondary_feeds_the_one_below_it():
    couple = Couple(relay(), fed())
    assert couple.connect() == (State.SOURCE, State.TARGET)
    assert StartShipping(9) in couple.a.effects


def test_what_is_shipped_is_of_the_journal_that_was_spoken_of():
    """Another pair of a relay may have it follow another history before the peer has answered."""
    couple = Couple(relay(incarnation=7), fed())
    couple.connect()
    assert StartShipping(9, 7) in couple.a.effects
    target = relay(journal={"first_seq": 10, "head_seq": 10}, incarnation=7)
    Above(target, 17)
    target._begin_copy = lambda **args: {**FakeTarget._begin_copy(target, **args), "incarnation": 8}
    couple = Couple(target, fed())
    couple.connect()
    assert StartShipping(11, 8) in couple.a.effects


def test_records_are_taken_only_with_the_claim_on_the_journal():
    couple = Couple()
    couple.connect()
    kinds = [type(effect) for effect in couple.b.effects]
    assert kinds.index(ClaimJournal) < kinds.index(StartReceiving)


def test_who_feeds_a_node_is_stored_when_that_changes():
    couple = Couple(relay(), fed(upstream=""))
    couple.connect()
    assert ("group.follow", {}) in couple.b.target.asked
    couple = Couple(relay(), fed())
    couple.connect()
    assert "group.follow" not in [op for op, _ in couple.b.target.asked]


def test_a_copy_through_a_relay_is_pinned_there_extended_above_and_ends_after_the_primarys_position():
    target = relay(journal={"first_seq": 10, "head_seq": 10})
    Above(target, 17)
    couple = Couple(target, fed())
    assert couple.connect() == (State.COPY_SOURCE, State.COPY_TARGET)
    ops = [op for op, _ in target.asked if op not in ("group.status", "group.link")]
    assert ops[:3] == ["group.pin_copy", "pair.extend_copy", "group.copy_until"]
    asked = dict(target.asked)
    assert asked["pair.extend_copy"] == {"copy_id": asked["group.pin_copy"]["copy_id"], "masks": {0: b"\x01"}}
    assert asked["group.copy_until"]["seq"] == 17
    assert asked["group.copy_until"]["epoch"] == dict(couple.b.target.asked)["group.attach"]["synced_epoch"] == E1A
    assert dict(couple.b.target.asked)["group.attach"]["synced_after"] == 17
    assert dict(couple.b.target.asked)["group.attach"]["p"] == 10


def test_a_copy_whose_primary_cannot_be_asked_is_not_begun():
    target = relay(journal={"first_seq": 10, "head_seq": 10})
    Above(target, 0)
    couple = Couple(target, fed())
    couple.connect()
    assert couple.states() == (State.DOWN, State.DOWN)
    assert "group.attach" not in [op for op, _ in couple.b.target.asked]
    assert couple.b.target.status["state"] == "ok"


def test_a_pair_that_waits_for_its_source_looks_again_when_something_changed_there():
    couple = Couple(relay(state="resync"), fed())
    assert couple.connect() == (State.WAITING, State.WAITING)
    couple.a.target.status["state"] = "ok"
    for effect in couple.a.session.look_again(couple.now):
        couple.carry_out(couple.a, effect)
    couple.tick(2.0)
    assert couple.states() == (State.SOURCE, State.TARGET)


def test_a_relay_is_not_switched_over():
    couple = Couple(relay(), fed())
    couple.connect()
    couple.give(couple.a, Command(1, "switchover"))
    assert couple.states() == (State.SOURCE, State.TARGET)
    assert "is a secondary" in couple.a.answers[-1].error["message"]


def test_a_node_reports_what_all_below_it_hold():
    def edge(durable: int, **more: Any) -> dict[str, Any]:
        return {"peer": "cc" * 16, "upstream": False, "linked": True, "tree_durable": durable, **more}

    assert tree_durable({"durable": 9}) == 9
    assert tree_durable({"durable": 9, "applied": 4}) == 4, "it goes back to there should its journal be lost"
    assert tree_durable({"durable": 9, "edges": [edge(7), edge(8)]}) == 7
    assert tree_durable({"durable": 9, "edges": [edge(7, linked=False)]}) == 0
    assert tree_durable({"durable": 9, "edges": [edge(0, upstream=True), edge(12)]}) == 9


def test_a_peer_of_another_version_is_refused_and_said_so_also_once_it_hangs_up():
    couple = Couple()
    session = couple.a.session
    for event in (Tick(), LinkUp(1)):
        effects = session.handle(event, couple.now)
    ask = next(e for e in effects if isinstance(e, AskTarget))
    session.handle(Reply(ask.token, couple.a.target.status), couple.now)
    session.handle(FrameIn(1, {"t": "hello", "version": 1, "node": B, "group": GROUP}), couple.now)
    session.handle(FrameIn(1, {"t": "verdict", "label": "version", "lead": B}), couple.now)
    assert session.state is State.REFUSED
    session.handle(LinkDown(1, "closed by the peer"), couple.now)
    assert "the peer speaks version 1 of the protocol, this node version 2" in session.link_reason


def notes(side: Side) -> list[int]:
    return [args["seq"] for op, args in side.target.asked if op == "group.note_source"]


def test_a_copy_keeps_now_and_then_what_its_source_has_on_stable_storage():
    couple = Couple()
    couple.connect()
    couple.tick(3)
    assert notes(couple.b) == [10] and notes(couple.a) == []
    for durable in (11, 12, 13):
        couple.a.target.status.update(pos=13, durable=durable)
        couple.tick(4)
    assert notes(couple.b)[1:2] in ([12], [13]) and len(notes(couple.b)) == 2, "each time costs it a sync"
    couple.tick(NOTE_SOURCE_S)
    assert notes(couple.b)[-1] == 13
    couple.tick(3 * NOTE_SOURCE_S)
    assert len(notes(couple.b)) == 3, "nothing new is no news"
    couple.cut()
    couple.connect()
    couple.tick(3)
    assert notes(couple.b)[-1] == 13 and len(notes(couple.b)) == 4, "the target may have forgotten"


def test_a_peer_that_does_not_tell_what_it_has_on_stable_storage_is_understood():
    couple = Couple()
    couple.connect()
    couple.b.session.handle(FrameIn(couple.link, {"t": "ping", "state": "source", "seq": 10}), couple.now)
    assert notes(couple.b) == []


def test_a_link_that_becomes_quiet_tells_once_more_what_is_on_stable_storage():
    couple = Couple()
    couple.connect()
    couple.a.target.status.update(pos=30, durable=10)
    couple.tick(3)

    def quietly(seconds: float) -> None:
        end = couple.now + seconds
        while couple.now < end:
            couple.now += 0.25
            for side in (couple.a, couple.b):
                couple.give(side, Tick(last_rx=couple.now, quiet=True, pulse=couple.now))

    quietly(3)
    couple.a.target.status.update(durable=30)  # the checkpoint
    quietly(25)
    assert notes(couple.b)[-1] == 30
