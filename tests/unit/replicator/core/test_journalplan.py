"""How large a journal has to be: from the busiest time that was seen, or a rate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.journalplan import need_bytes, plan

MIB = 1 << 20


def hours(*totals: float, first: int = 100, peak: float = 0) -> list[dict[str, Any]]:
    """Hours seen whole, with so many bytes each; None leaves one out."""
    return [
        {"hour": first + n, "seconds": 3600, "bytes": total, "peak_minute": peak}
        for n, total in enumerate(totals)
        if total >= 0
    ]


def test_a_given_rate_counts_alone() -> None:
    need = need_bytes([], 4 * 3600, rate=20 * MIB)
    assert need is not None
    assert need.written == 4 * 3600 * 20 * MIB
    assert need.with_headroom == need.written * 5 // 4


def test_nothing_known_is_not_zero() -> None:
    assert need_bytes([], 3600) is None


def test_the_time_that_was_seen_is_never_said_to_be_nothing() -> None:
    short = need_bytes([{"hour": 1, "seconds": 90, "bytes": MIB, "peak_minute": MIB}], 60)
    whole = need_bytes(hours(MIB, MIB), 60)
    assert short is not None and short.basis.endswith("the 2 min seen")
    assert whole is not None and whole.basis.endswith("the 2.0 h seen")


def test_the_busiest_window_counts_and_not_the_mean() -> None:
    need = need_bytes(hours(1 * MIB, 50 * MIB, 60 * MIB, 1 * MIB), 2 * 3600, headroom_percent=0)
    assert need is not None and need.written == 110 * MIB


def test_an_outage_longer_than_the_history_is_filled_with_the_busiest_hour() -> None:
    need = need_bytes(hours(10 * MIB, 40 * MIB), 4 * 3600, headroom_percent=0)
    assert need is not None and need.written == (10 + 40 + 40 + 40) * MIB


def test_an_hour_that_was_not_seen_counts_as_the_busiest() -> None:
    need = need_bytes(hours(10 * MIB, -1, 10 * MIB), 3 * 3600, headroom_percent=0)
    assert need is not None and need.written == 30 * MIB


def test_a_short_outage_is_judged_by_the_busiest_minute_and_by_what_the_hour_had() -> None:
    burst = hours(60 * MIB, peak=30 * MIB)
    one = need_bytes(burst, 60, headroom_percent=0)
    ten = need_bytes(burst, 600, headroom_percent=0)
    assert one is not None and one.written == 30 * MIB
    assert ten is not None and ten.written == 60 * MIB


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=30), st.integers(60, 40 * 3600))
def test_no_window_of_the_history_has_more(totals: list[int], outage_s: int) -> None:
    need = need_bytes(hours(*totals), outage_s, headroom_percent=0)
    assert need is not None
    whole = outage_s // 3600
    for begin in range(len(totals) - whole + 1):
        assert need.written >= sum(totals[begin : begin + whole]) - 1


def test_longer_outages_never_need_less() -> None:
    seen = hours(*[n * MIB for n in (3, 9, 1, 20, 2)])
    needs = [need_bytes(seen, h * 3600) for h in range(1, 9)]
    assert [n.written for n in needs if n] == sorted(n.written for n in needs if n)


@pytest.mark.parametrize(
    ("have", "add"), [(2000 * MIB, 0), (1250 * MIB, 0), (1249 * MIB, 16 * MIB), (None, 1250 * MIB)]
)
def test_each_node_is_told_what_it_lacks(have: int | None, add: int) -> None:
    need = need_bytes([], 100, rate=10 * MIB)
    assert need is not None
    [row] = plan(need, {"alpha": have}, "shop")
    assert (row["add"], bool(row["command"])) == (add, bool(add))
