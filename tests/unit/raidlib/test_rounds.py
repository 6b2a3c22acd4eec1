from __future__ import annotations

import threading
import time

import pytest

from raidlib.rounds import Rounds


def test_calls_that_come_together_share_a_round() -> None:
    rounds: list[int] = []
    first, go = threading.Event(), threading.Event()

    def slow() -> None:
        rounds.append(1)
        first.set()
        go.wait(5)

    shared = Rounds(slow)
    threads = [threading.Thread(target=shared.join) for _ in range(10)]
    threads[0].start()
    first.wait(5)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join(5)
    assert len(rounds) == 2


def test_a_call_is_served_by_a_round_that_began_after_it() -> None:
    written, covered = [0], [0]

    def work() -> None:
        seen = written[0]
        time.sleep(0.001)
        covered[0] = seen

    shared = Rounds(work)
    lock = threading.Lock()
    errors: list[int] = []

    def caller() -> None:
        for _ in range(20):
            with lock:
                written[0] += 1
                mine = written[0]
            shared.join()
            if covered[0] < mine:
                errors.append(mine)

    threads = [threading.Thread(target=caller) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors


def test_a_round_that_fails_serves_nobody_but_its_caller_and_the_next_one_runs() -> None:
    outcomes: list[object] = [OSError(5, "no"), None]
    rounds: list[int] = []

    def work() -> None:
        rounds.append(1)
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome

    shared = Rounds(work)
    with pytest.raises(OSError, match="no"):
        shared.join()
    shared.join()
    assert len(rounds) == 2


def test_who_waits_for_a_round_that_fails_runs_another() -> None:
    begun, go = threading.Event(), threading.Event()
    rounds: list[int] = []

    def work() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            begun.set()
            go.wait(5)
            raise OSError(5, "no")

    shared = Rounds(work)
    errors: list[OSError] = []

    def caller() -> None:
        try:
            shared.join()
        except OSError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=caller) for _ in range(3)]
    threads[0].start()
    begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join(5)
    assert len(errors) == 1 and len(rounds) >= 2
