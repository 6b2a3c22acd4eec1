"""Bugs put into reassembly, credits, limits, schedules and the link that carries them: the tests of each find them.

Each bug is one wrong line; with it one of the tests named must fail, without it they pass (they do in the suite).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from replicator.core import credits, ratelimit, reassembly, schedule
from replicator.daemon.link import receiver
from tests.fuzz import test_receiver as fuzz_receiver
from tests.unit.replicator.core import test_credits, test_ratelimit, test_reassembly, test_schedule


@dataclass(frozen=True)
class Bug:
    """One wrong line, and the tests that are to find it."""

    name: str
    owner: Any
    attribute: str
    wrong: Any
    found_by: tuple[Callable[[], None], ...]


def _held_is_forgotten(self: reassembly.Reassembly[Any], first_seq: int, size: int, run: Any) -> None:
    if all(first_seq != held[0] for held in self._heap):  # "the same run again": but it may be longer
        heapq.heappush(self._heap, (first_seq, self._arrivals, size, run))
        self._arrivals += 1
        self.held_bytes += size + reassembly.OVERHEAD_BYTES
        self.most_bytes = max(self.most_bytes, self.held_bytes)
    else:
        self.held_bytes += size + reassembly.OVERHEAD_BYTES


def _lifo_ready(self: reassembly.Reassembly[Any], expect_seq: int) -> Any:
    return self._heap[0][3] if self._heap else None  # whatever is held, as if nothing were missing


def _next_is_held_too(self: receiver.Receiver, flags: int, first_seq: int, body: memoryview) -> int | None:
    """H1-13: the run that comes next needs room in the window like any other."""
    if not self._early.fits(len(body)):
        return None
    self._early.hold(first_seq, len(body), (flags, bytes(body)))
    return self.settle()


def _unproved(buf: Any, expect: int, min_epoch: int) -> Any:
    return receiver_parse(buf, expect, min_epoch, prove=False)


receiver_parse = receiver.parse_run


def _grant_what_came(self: credits.Grants, now: float, lag_bytes: int) -> int | None:
    total = self._came + self.window_bytes  # what is read, not what is finished with
    if total <= self.granted:
        return None
    self.granted = total
    return total


def _need_at_once(self: credits.Grants, now: float, lag_bytes: int) -> int | None:
    total = max(self._done + self.window_bytes, self._needed[1])  # though other frames are held
    if total <= self.granted:
        return None
    self.granted = total
    return total


def _never_asks(self: credits.Credit, size: int) -> bool:
    return False


def _forgiving(self: ratelimit.TokenBucket, size: int) -> None:
    if self.rate:
        self._balance = max(0.0, self._balance - size)


def _saves_up(self: ratelimit.TokenBucket, now: float) -> None:
    self._balance += max(0.0, now - self._at) * self.rate
    self._at = max(self._at, now)


def _ends_inclusive(self: schedule.Rule, weekday: int, minute: int) -> bool:
    return weekday in self.days and self.begin <= minute <= self.end


def _forgets_midnight(self: schedule.Rule, weekday: int, minute: int) -> bool:
    return weekday in self.days and self.begin <= minute < self.end


_ORDERS = (
    test_reassembly.test_every_order_of_six_runs_ends_in_the_same_sequence,
    test_reassembly.test_what_follows_a_lost_run_is_never_given_out,
    test_reassembly.test_arbitrary_overlapping_runs_give_a_gapless_sequence,
    test_reassembly.test_of_two_runs_that_begin_alike_the_longer_one_counts,
)
_CREDITS = (
    test_credits.test_a_frame_larger_than_the_window_is_granted_alone,
    test_credits.test_what_waits_here_is_not_granted_again,
    test_credits.test_no_sequence_of_frames_exceeds_the_credit_or_stops,
)
_RATES = (
    test_ratelimit.test_a_debt_is_waited_for,
    test_ratelimit.test_over_any_time_the_rate_is_kept_but_for_a_burst_and_a_frame,
)
_HOURS = (test_schedule.test_office_hours, test_schedule.test_a_span_over_midnight_belongs_to_the_day_it_begins_on)


def _receiver_fuzz() -> None:
    fuzz_receiver.test_the_journal_of_a_receiver_is_a_right_chain_whatever_comes()


def _small_window() -> None:
    """Three runs, the last two first, through a window that holds just these."""
    files = fuzz_receiver.Files()
    sink = receiver.Receiver(files, 1, 0)  # type: ignore[arg-type]  # files by shape
    frames = [(0, seq, fuzz_receiver.record(seq, bytes(100))) for seq in (3, 2, 1)]
    sink._early = reassembly.Reassembly(2 * (164 + reassembly.OVERHEAD_BYTES))
    fuzz_receiver.deliver(sink, frames)
    assert sink.expect == 4, "the window is full and the run that comes next is refused"


BUGS = (
    Bug("a-second-run-of-the-same-seq-is-dropped", reassembly.Reassembly, "hold", _held_is_forgotten, _ORDERS),
    Bug("held-runs-do-not-wait-for-the-gap", reassembly.Reassembly, "ready", _lifo_ready, _ORDERS),
    Bug("the-next-run-needs-room-in-the-window", receiver.Receiver, "offer", _next_is_held_too, (_small_window,)),
    Bug("crcs-are-not-checked", receiver, "parse_run", _unproved, (_receiver_fuzz,)),
    Bug("credit-for-what-is-still-held", credits.Grants, "due", _grant_what_came, _CREDITS),
    Bug("a-large-frame-is-granted-beside-others", credits.Grants, "due", _need_at_once, _CREDITS),
    Bug("a-large-frame-is-never-asked-for", credits.Credit, "need", _never_asks, _CREDITS),
    Bug("a-debt-is-forgiven", ratelimit.TokenBucket, "spend", _forgiving, _RATES),
    Bug("idle-time-is-saved-up", ratelimit.TokenBucket, "_fill", _saves_up, _RATES),
    Bug("the-last-minute-counts-too", schedule.Rule, "fits", _ends_inclusive, _HOURS),
    Bug("after-midnight-is-another-day", schedule.Rule, "fits", _forgets_midnight, _HOURS),
)


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_the_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz_receiver.EXECUTIONS, "receiver", 2000)
    for test in (_small_window, _receiver_fuzz):
        if test in bug.found_by:
            test()  # these two are no tests of the suite, so that they pass without the bug is shown here
    monkeypatch.setattr(bug.owner, bug.attribute, bug.wrong)
    for test in bug.found_by:
        try:
            test()
        except BaseException:  # whatever way a test has to fail
            return
    pytest.fail(f"{bug.name} is not found")
