"""Where nbdkit's workers run: together while requests are small, away from a crowded processor."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nbdplugin.together import Sample, Together, decide, take_sample

START = Sample({0: 100.0, 1: 100.0, 2: 100.0}, 10.0, 1000, 1 << 30)


def after(busy: dict[int, float], ours: float = 0.9, calls: int = 100_000, mean_bytes: int = 4096) -> Sample:
    """What a second later the counters show."""
    return Sample({c: 100.0 + busy[c] for c in busy}, 10.0 + ours, 1000 + calls, (1 << 30) + calls * mean_bytes)


QUIET = {0: 0.0, 1: 0.9, 2: 0.1}


def test_small_requests_stay_where_they_are() -> None:
    assert decide(START, after(QUIET), 1.0, 1, True) == (1, True)


def test_large_requests_run_anywhere_until_they_are_small_again() -> None:
    assert decide(START, after(QUIET, calls=5000, mean_bytes=64 << 10), 1.0, 1, True) == (1, False)
    assert decide(START, after(QUIET, calls=5000, mean_bytes=16 << 10), 1.0, 1, False) == (1, False)
    assert decide(START, after(QUIET, calls=5000, mean_bytes=16 << 10), 1.0, 1, True) == (1, True)
    assert decide(START, after(QUIET), 1.0, 1, False) == (1, True)


def test_a_processor_that_others_keep_busy_is_left_for_the_quietest() -> None:
    assert decide(START, after({0: 0.5, 1: 1.0, 2: 0.1}, ours=0.4), 1.0, 1, True) == (2, True)


def test_a_little_company_is_no_reason_to_move() -> None:
    assert decide(START, after({0: 0.6, 1: 1.0, 2: 0.5}, ours=0.3), 1.0, 1, True) == (1, True)


@pytest.mark.parametrize("together", [True, False])
def test_an_idle_target_changes_nothing(together: bool) -> None:
    now = after({0: 0.0, 1: 1.0, 2: 0.0}, ours=0.01, calls=10, mean_bytes=1 << 20)
    assert decide(START, now, 1.0, 1, together) == (1, together)


def test_counters_are_read_for_the_processors_we_may_use(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 100 5000 50 0 0 0 0 0\ncpu1 200 10 0 7000 0 20 30 40 0 0\nintr 12\n"
    )
    (tmp_path / "self" / "io").write_text("rchar: 1000\nwchar: 500\nsyscr: 7\nsyscw: 3\nread_bytes: 0\n")
    tick = os.sysconf("SC_CLK_TCK")
    sample = take_sample({1}, tmp_path)
    assert sample.busy == {1: 300 / tick}
    assert (sample.calls, sample.bytes) == (10, 1500)


def test_this_system_tells() -> None:
    cpus = os.sched_getaffinity(0)
    assert take_sample(cpus).busy.keys() == cpus


def test_a_worker_is_kept_on_one_processor_and_others_are_not() -> None:
    together, cpus = Together(), os.sched_getaffinity(0)
    found: list[set[int]] = []

    def work() -> None:
        together.join()
        found.append(os.sched_getaffinity(0))

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(set(map(frozenset, found))) == 1
    assert len(found[0]) == 1 and found[0] <= cpus
    assert os.sched_getaffinity(0) == cpus


def test_workers_are_let_go_when_requests_are_large() -> None:
    together, cpus = Together(), os.sched_getaffinity(0)
    joined, ended = threading.Event(), threading.Event()
    found: list[set[int]] = []

    def work() -> None:
        together.join()
        joined.set()
        ended.wait(5)
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    joined.wait(5)
    before = take_sample(cpus)
    large = before._replace(ours=before.ours + 1, calls=before.calls + 10, bytes=before.bytes + (10 << 20))
    together._look(before, large)
    ended.set()
    thread.join()
    assert found == [cpus]
    deadline = time.monotonic() + 5
    while together._workers and time.monotonic() < deadline:  # the kernel takes a moment longer than join() to end it
        together._look(before, before)
    assert not together._workers


def test_a_system_that_stops_telling_lets_the_workers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    together, cpus = Together(), os.sched_getaffinity(0)
    joined, ended = threading.Event(), threading.Event()
    found: list[set[int]] = []

    def work() -> None:
        together.join()
        found.append(os.sched_getaffinity(0))
        joined.set()
        ended.wait(10)
        found.append(os.sched_getaffinity(0))

    def no_sample(cpus: object) -> None:
        raise PermissionError("not for you")

    monkeypatch.setattr("nbdplugin.together.take_sample", no_sample)
    together.start()
    thread = threading.Thread(target=work)
    thread.start()
    assert joined.wait(5)
    deadline = time.monotonic() + 5
    while together._together and len(cpus) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    ended.set()
    thread.join()
    together.stop()
    assert found[1] == cpus
