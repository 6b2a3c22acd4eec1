"""A pulled transfer: the sender stays within its credit, the receiver within its window, and nothing stops."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.credits import PAUSE_BUSY_S, PAUSE_IDLE_S, Credit, Grants, pause_s
from replicator.core.errors import ProtocolError

WINDOW = 100_000
MOST = 10 * WINDOW


def test_the_first_grant_is_the_window() -> None:
    grants = Grants(WINDOW, MOST)
    assert grants.due(0.0, 0) == WINDOW
    assert grants.due(0.0, 0) is None and not grants.pending


def test_a_frame_without_credit_is_a_breach() -> None:
    grants = Grants(WINDOW, MOST)
    grants.due(0.0, 0)
    grants.came(WINDOW)
    with pytest.raises(ProtocolError, match="granted"):
        grants.came(1)


def test_credit_is_given_back_at_once_when_half_is_used() -> None:
    grants = Grants(WINDOW, MOST)
    grants.due(0.0, 0)
    grants.came(WINDOW // 2)
    grants.done(WINDOW // 2)
    assert grants.due(0.0, 0) == WINDOW + WINDOW // 2


def test_little_used_credit_is_given_back_after_a_pause_that_the_lag_shortens() -> None:
    for lag, pause in ((0, PAUSE_IDLE_S), (WINDOW // 2, pause_s(WINDOW // 2, WINDOW)), (9 * WINDOW, PAUSE_BUSY_S)):
        grants = Grants(WINDOW, MOST)
        grants.due(0.0, lag)
        grants.came(10)
        grants.done(10)
        assert grants.pending and grants.next_due == pytest.approx(pause)
        assert grants.due(pause * 0.9, lag) is None
        assert grants.due(pause * 1.01, lag) == WINDOW + 10


@given(lag=st.integers(0, 1 << 40), more=st.integers(0, 1 << 40))
def test_the_pause_never_grows_with_the_lag(lag: int, more: int) -> None:
    assert PAUSE_BUSY_S <= pause_s(lag + more, WINDOW) <= pause_s(lag, WINDOW) <= PAUSE_IDLE_S


def test_what_waits_here_is_not_granted_again() -> None:
    grants = Grants(WINDOW, MOST)
    grants.due(0.0, 0)
    grants.came(WINDOW)
    assert grants.due(100.0, 1 << 30) is None and grants.outstanding == WINDOW
    grants.done(1000)
    assert grants.due(101.0, 1 << 30) == WINDOW + 1000


def test_a_frame_larger_than_the_window_is_granted_alone() -> None:
    credit, grants = Credit(WINDOW), Grants(WINDOW, MOST)
    credit.grant(grants.due(0.0, 0) or 0)
    credit.spend(50)
    grants.came(50)
    assert credit.need(5 * WINDOW) and not credit.need(5 * WINDOW)
    grants.need(50, 50 + 5 * WINDOW)
    assert grants.due(0.5, 0) is None  # something is held yet
    grants.done(50)
    assert grants.due(0.5, 0) == 50 + 5 * WINDOW


def test_an_impossible_wish_and_credit_taken_back_are_breaches() -> None:
    grants = Grants(WINDOW, MOST)
    grants.due(0.0, 0)
    for sent, total in ((0, MOST + 1), (5, 5), (5, 4), (WINDOW + 1, WINDOW + 2)):
        with pytest.raises(ProtocolError):
            grants.need(sent, total)
    credit = Credit(WINDOW)
    credit.grant(10)
    with pytest.raises(ProtocolError):
        credit.grant(9)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_no_sequence_of_frames_exceeds_the_credit_or_stops(data: st.DataObject) -> None:
    window = data.draw(st.integers(64, 2000))
    frames = deque(data.draw(st.lists(st.integers(17, 5000), min_size=1, max_size=40)))
    credit, grants = Credit(window), Grants(window, 5000)
    under_way: deque[int] = deque()
    held: deque[int] = deque()
    now, idle = 0.0, 0
    while frames or under_way or held:
        now += 0.3
        idle += 1
        assert idle < 30, f"stopped with {frames}, {credit.room} bytes of credit"
        act = data.draw(st.sampled_from(["send", "arrive", "append"]))
        for step in ("send", "arrive", "append") if idle > 10 else (act,):
            if step == "send" and frames:
                if credit.room >= frames[0]:
                    credit.spend(frames[0])
                    under_way.append(frames.popleft())
                    idle = 0
                elif credit.need(frames[0]):
                    grants.need(credit.sent, credit.sent + frames[0])
            if step == "arrive" and under_way:
                grants.came(under_way[0])
                held.append(under_way.popleft())
                idle = 0
            if step == "append" and held:
                grants.done(held.popleft())
                idle = 0
        assert grants.outstanding <= max(window, 5000)
        assert grants.outstanding <= window or len(held) == 1, "more than a window was held beside a large frame"
        assert credit.sent <= credit.granted
        if (total := grants.due(now, sum(frames))) is not None:
            credit.grant(total)
