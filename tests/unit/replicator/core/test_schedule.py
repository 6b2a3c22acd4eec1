"""Schedules of limits: what is written is what holds, minute by minute; what is wrong is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.errors import BadInput
from replicator.core.schedule import DAY_MINUTES, DAYS, parse_rate, parse_schedule, rate_at, rate_text

M = 1 << 20


def at(text: str, moment: str, otherwise: int = 0) -> int:
    day, _, clock = moment.partition(" ")
    hour, minute = map(int, clock.split(":"))
    return rate_at(parse_schedule(text), DAYS.index(day), hour * 60 + minute, otherwise)


def test_office_hours() -> None:
    text = "mon-fri 08:00-18:00 20M; sat,sun 50M; else unlimited"
    assert at(text, "mon 08:00") == at(text, "fri 17:59") == 20 * M
    assert at(text, "mon 07:59") == at(text, "fri 18:00") == 0
    assert at(text, "sat 03:00") == at(text, "sun 23:59") == 50 * M


def test_the_first_rule_that_fits_counts() -> None:
    text = "wed 1M; mon-fri 2M; daily 3M"
    assert [at(text, f"{day} 12:00") // M for day in DAYS] == [2, 2, 1, 2, 2, 3, 3]


def test_where_no_rule_fits_the_limit_of_the_pair_holds() -> None:
    assert at("mon 1M", "tue 12:00", otherwise=7 * M) == 7 * M
    assert at("mon 1M; else unlimited", "tue 12:00", otherwise=7 * M) == 0
    assert at("", "tue 12:00", otherwise=7 * M) == 7 * M


def test_a_span_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    text = "fri 22:00-06:00 5M; else 1M"
    assert at(text, "fri 21:59") == M and at(text, "fri 22:00") == 5 * M
    assert at(text, "sat 05:59") == 5 * M and at(text, "sat 06:00") == M
    assert at(text, "fri 05:00") == M
    assert at("sun 23:00-01:00 2M", "mon 00:30") == 2 * M


def test_days_may_run_over_the_end_of_the_week_and_hours_to_its_end() -> None:
    assert [at("sat-mon 3M", f"{day} 00:00", 1) > 1 for day in DAYS] == [True, False, False, False, False, True, True]
    assert at("18:00-24:00 2M", "tue 23:59") == 2 * M
    assert at("18:00-00:00 2M", "tue 23:59") == 2 * M and at("18:00-00:00 2M", "wed 00:00", 9) == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mon-fri 08:00-18:00", "18:00' is not a size"),
        ("mun 5M", "'mun' is no day"),
        ("mon-fri 8-18 5M", "'8-18' is no span of hours"),
        ("mon 08:00-25:00 5M", "not within 00:00 and 24:00"),
        ("mon 08:60-09:00 5M", "not within 00:00 and 24:00"),
        ("mon 08:00-08:00 5M", "is empty"),
        ("mon 08:00-09:00 5M 6M", "one word too many"),
        ("else 5M; mon 6M", "rule 1"),
        ("mon 1M; ; tue 2M", "rule 2 of the schedule, '': it is empty"),
        ("else mon 5M", "'else' stands alone"),
        ("mon 12", "not within 4K and"),
        ("mon 0", "unlimited"),
        ("mon -5M", "not a size"),
        ("mon 5M; " * 65, "too long"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(BadInput) as told:
        parse_schedule(text)
    assert says in str(told.value)


@given(st.text(max_size=60) | st.from_regex(r"([a-z,-]{0,8} )?([0-9:-]{0,12} )?[0-9MKu]{0,4}(;.*)?", fullmatch=True))
def test_any_text_is_read_or_refused_and_a_rate_holds_at_any_minute(text: str) -> None:
    try:
        rules = parse_schedule(text)
    except BadInput:
        return
    for minute in (0, 1, 719, DAY_MINUTES - 1):
        assert all(rate_at(rules, day, minute, 5) >= 0 for day in range(7))


@given(st.integers(4096, 1 << 50) | st.just(0))
def test_rates_are_written_as_they_are_read(rate: int) -> None:
    assert parse_rate(rate_text(rate)) == rate
