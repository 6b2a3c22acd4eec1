"""Answers to a client that has gone: one goes on, the rest stay behind until nbdkit knows."""

from __future__ import annotations

import threading
import time

from nbdplugin.departure import ERROR_SPACING_S, HOLD_BACK_S, Departure


def gone() -> bool:
    return True


def there() -> bool:
    return False


def times_of_answers(departure: Departure, how: str, workers: int) -> list[float]:
    """When each of several workers that become ready together may answer, in seconds, sorted."""
    start = threading.Barrier(workers + 1)
    done: list[float] = []

    def work() -> None:
        start.wait()
        getattr(departure, how)()
        done.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return sorted(at - began for at in done)


def test_late_answers_to_a_client_that_is_there_do_not_wait() -> None:
    assert times_of_answers(Departure(there), "before_late_answer", 16)[-1] < HOLD_BACK_S


def test_one_answer_goes_ahead_when_the_client_has_gone() -> None:
    first, second, *_ = times_of_answers(Departure(gone), "before_late_answer", 16)
    assert second - first > HOLD_BACK_S / 2


def test_errors_leave_one_by_one() -> None:
    times = times_of_answers(Departure(there), "before_error", 8)
    assert times[-1] >= 8 * ERROR_SPACING_S


def test_errors_to_a_client_that_has_gone_let_one_ahead() -> None:
    first, second, *rest = times_of_answers(Departure(gone), "before_error", 8)
    assert second - first > HOLD_BACK_S / 2
    assert rest[-1] < 8 * HOLD_BACK_S
