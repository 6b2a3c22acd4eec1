from __future__ import annotations

import threading
import time

from raidlib.gate import Gate


def test_wait_returns_at_once_when_nobody_is_inside() -> None:
    gate = Gate()
    for _ in range(5):
        gate.wait()


def test_wait_returns_only_when_the_call_in_flight_has_left() -> None:
    gate = Gate()
    enter, leave = gate.pair
    enter()
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (gate.wait(), done.set()))
    waiter.start()
    assert not done.wait(0.05)
    leave()
    assert done.wait(5)
    waiter.join()


def test_wait_is_not_held_up_by_calls_that_began_after_it() -> None:
    gate = Gate()
    enter, leave = gate.pair
    enter()
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (gate.wait(), done.set()))
    waiter.start()
    while gate.pair[0] is enter:
        time.sleep(0.001)
    late_enter, late_leave = gate.pair
    late_enter()
    leave()
    assert done.wait(5)
    late_leave()
    waiter.join()


def test_a_straggler_on_the_old_counters_is_waited_for_by_the_next_wait() -> None:
    gate = Gate()
    enter, leave = gate.pair
    gate.wait()
    enter()  # took the pair before the flip, entered after it
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (gate.wait(), done.set()))
    waiter.start()
    assert not done.wait(0.05)
    leave()
    assert done.wait(5)
    waiter.join()
