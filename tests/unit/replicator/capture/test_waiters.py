"""Every waiting write returns when its answer comes, none sleeps on, and giving up frees the place of the leader."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from replicator.capture import waiters
from replicator.capture.waiters import Waiters
from replicator.journal.page import TARGET_ASLEEP, Doorbell, Page
from tests.testing.pairharness import PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ


class Peer:
    """What the replicator does: stores an answer and rings when the target sleeps."""

    def __init__(self, directory: Path) -> None:
        self.page = Page.in_memory()
        self.bell = Doorbell(directory / "bell")
        self.waiters = Waiters(self.page, self.bell)

    def answer(self, seq: int, slot: int = PEER_RECEIVED_SEQ) -> None:
        self.page[slot] = seq
        if self.page[TARGET_ASLEEP]:
            self.bell.ring()


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def start(
    peer: Peer, seq: int, done: dict[int, bool], give_up: object = None, slot: int = PEER_RECEIVED_SEQ
) -> threading.Thread:
    asked = give_up if callable(give_up) else lambda: False
    thread = threading.Thread(target=lambda: done.__setitem__(seq, peer.waiters.wait(seq, slot, asked)), daemon=True)
    thread.start()
    return thread


def test_what_is_answered_already_does_not_wait(peer: Peer) -> None:
    peer.page[PEER_RECEIVED_SEQ] = 7
    assert peer.waiters.wait(7, PEER_RECEIVED_SEQ, lambda: False)


def test_many_waits_end_in_any_order_of_answers(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "LOOK_S", 5.0)  # so that only rings and hand-overs can end a wait
    monkeypatch.setattr(waiters, "ASK_S", 5.0)
    done: dict[int, bool] = {}
    threads = [start(peer, seq, done) for seq in range(1, 33)]
    for seq in (1, 2, 9, 10, 20, 31, 32):
        time.sleep(0.01)
        peer.answer(seq)
    for thread in threads:
        thread.join(2)
    assert done == dict.fromkeys(range(1, 33), True)
    assert not peer.waiters._led and not peer.waiters._waiting


def test_a_steady_stream_of_writes_is_answered_without_waiting_for_a_timeout(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "LOOK_S", 5.0)
    monkeypatch.setattr(waiters, "ASK_S", 5.0)
    lock, last, ended = threading.Lock(), [0], threading.Event()

    def host() -> None:
        for _ in range(200):
            with lock:
                last[0] += 1
                seq = last[0]
            assert peer.waiters.wait(seq, PEER_RECEIVED_SEQ, lambda: False)

    def replicator() -> None:
        while not ended.is_set():
            peer.answer(last[0])
            time.sleep(0.0002)

    hosts = [threading.Thread(target=host, daemon=True) for _ in range(8)]
    answering = threading.Thread(target=replicator, daemon=True)
    begin = time.monotonic()
    for thread in [*hosts, answering]:
        thread.start()
    for thread in hosts:
        thread.join(4)
    ended.set()
    answering.join()
    assert last[0] == 1600 and not any(thread.is_alive() for thread in hosts)
    assert time.monotonic() - begin < 4


def test_the_slots_are_waited_for_apart(peer: Peer) -> None:
    done: dict[int, bool] = {}
    durable = start(peer, 5, done, slot=PEER_DURABLE_SEQ)
    received = start(peer, 6, done)
    peer.answer(6)
    received.join(2)
    assert done == {6: True}
    peer.answer(5, PEER_DURABLE_SEQ)
    durable.join(2)
    assert done[5]


@pytest.mark.parametrize("who", [1, 2, 3])
def test_one_that_gives_up_leaves_the_others_waiting(peer: Peer, who: int) -> None:
    done: dict[int, bool] = {}
    gone = threading.Event()
    threads = []
    for seq in (1, 2, 3):
        threads.append(start(peer, seq, done, gone.is_set if seq == who else None))
        time.sleep(0.02)  # 1 leads
    gone.set()
    peer.waiters.wake_all()
    threads[who - 1].join(2)
    assert done == {who: False}
    peer.answer(3)
    for thread in threads:
        thread.join(2)
    assert {seq for seq, ok in done.items() if ok} == {1, 2, 3} - {who}


def test_an_error_raised_by_the_one_who_asks_frees_its_place(peer: Peer) -> None:
    def fails() -> bool:
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError):
        peer.waiters.wait(1, PEER_RECEIVED_SEQ, fails)
    done: dict[int, bool] = {}
    thread = start(peer, 2, done)
    time.sleep(0.02)
    peer.answer(2)
    thread.join(2)
    assert done == {2: True}


def test_who_is_made_leader_just_as_it_wakes_by_itself_is_not_answered(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overtaken(waiters._Waiter):
        """Is handed the lead between its two looks at itself."""

        __slots__ = ("looks",)

        def __getattribute__(self, name: str) -> object:
            found = object.__getattribute__(self, name)
            if name == "leads":
                self.looks = getattr(self, "looks", 0) + 1
                if self.looks == 2:
                    peer.waiters._hand_over()
            return found

    monkeypatch.setattr(waiters, "ASK_S", 0.01)
    monkeypatch.setattr(waiters, "_Waiter", Overtaken)
    peer.waiters._led = True  # by a write that is about to be answered
    asked: list[int] = []

    def give_up() -> bool:
        asked.append(1)
        return len(asked) > 5

    assert not peer.waiters.wait(7, PEER_RECEIVED_SEQ, give_up), "nobody has answered it"


def answered_at_once(peer: Peer, seq: int) -> None:
    """A lone write whose answer comes while it waits."""
    done: dict[int, bool] = {}
    thread = start(peer, seq, done)
    while not peer.waiters._led and thread.is_alive():
        pass
    peer.answer(seq)
    thread.join(2)
    assert done == {seq: True}


@pytest.fixture
def watched(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The writes that watched for their answer."""
    seqs: list[int] = []
    right = Waiters._watch

    def note(self: Waiters, seq: int, slot: int, until: float) -> None:
        seqs.append(seq)
        right(self, seq, slot, until)

    monkeypatch.setattr(waiters, "WATCH_S", 1.0)
    monkeypatch.setattr(Waiters, "_watch", note)
    monkeypatch.setattr(peer.waiters, "_may_watch", True)
    return seqs


def test_only_a_writer_that_was_alone_for_a_while_watches_for_its_answer(peer: Peer, watched: list[int]) -> None:
    for seq in range(1, waiters.LONE_WAITS + 3):
        answered_at_once(peer, seq)
    assert watched == [waiters.LONE_WAITS + 1, waiters.LONE_WAITS + 2]


def test_a_second_writer_ends_the_watching(peer: Peer, watched: list[int]) -> None:
    for seq in range(1, waiters.LONE_WAITS + 1):
        answered_at_once(peer, seq)
    done: dict[int, bool] = {}
    both = [start(peer, 100, done), start(peer, 101, done)]
    while len(peer.waiters._waiting) < 1:
        time.sleep(0.001)
    peer.answer(101)
    for thread in both:
        thread.join(2)
    assert done == {100: True, 101: True}
    answered_at_once(peer, 102)
    assert watched == [100]


def test_nobody_watches_when_answers_come_as_soon_to_one_who_sleeps(peer: Peer, watched: list[int]) -> None:
    peer.waiters._watching.now = False
    for seq in range(1, waiters.LONE_WAITS + 3):
        answered_at_once(peer, seq)
    assert watched == []
    assert peer.waiters._watching._count == 2  # but how long they took is noted


def test_other_threads_run_while_a_write_watches(peer: Peer, watched: list[int]) -> None:
    for seq in range(1, waiters.LONE_WAITS + 1):
        answered_at_once(peer, seq)
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)  # so that nobody gets the interpreter lock from one that does not give it up
    try:
        begin = time.monotonic()
        answered_at_once(peer, 100)
        assert time.monotonic() - begin < 0.5
    finally:
        sys.setswitchinterval(before)
    assert watched == [100]


def test_a_ring_ends_the_watch(peer: Peer, watched: list[int]) -> None:
    for seq in range(1, waiters.LONE_WAITS + 1):
        answered_at_once(peer, seq)
    gone = threading.Event()
    done: dict[int, bool] = {}
    begin = time.monotonic()
    thread = start(peer, 100, done, gone.is_set)
    while not watched and time.monotonic() < begin + 5:
        time.sleep(0.001)
    gone.set()
    peer.waiters.wake_all()
    thread.join(2)
    assert done == {100: False} and time.monotonic() - begin < 0.8


def test_nobody_watches_for_a_peer_that_is_far_away(
    peer: Peer, watched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "WATCH_S", 1e-9)
    for seq in range(1, waiters.LONE_WAITS + 3):
        answered_at_once(peer, seq)
    assert watched == []
