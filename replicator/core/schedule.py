"""A schedule of transfer limits: which rate holds at which time of the week.

    mon-fri 08:00-18:00 20M; sat,sun 50M; else unlimited

Rules are parted by semicolons. Each is days, hours and a rate; days or hours may be left out and then mean all. The
first rule that fits a moment counts; `else` is the last rule. Where none fits, what the caller says holds.
A span over midnight (22:00-06:00) belongs to the day it begins on. Rates are bytes a second, written as sizes
(units are powers of 1024), or `unlimited`.

Pure: whoever asks says which weekday and minute it is, by the local time of his node.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from replicator.core.errors import BadInput
from replicator.core.sizes import parse_size, size_text

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
UNLIMITED = 0
MIN_RATE_BYTES_S = 4096
MAX_RATE_BYTES_S = 1 << 50
MAX_RULES = 64
MAX_TEXT = 4096
EXAMPLE = "mon-fri 08:00-18:00 20M; else unlimited"
_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)


class Rule(NamedTuple):
    """On `days` (0 is Monday), minutes [begin, end) of the day, `rate` bytes a second (UNLIMITED: no limit).

    end is greater than DAY_MINUTES where the span goes on into the next day.
    """

    days: frozenset[int]
    begin: int
    end: int
    rate: int

    def fits(self, weekday: int, minute: int) -> bool:
        """Whether the rule speaks of this minute of this day."""
        if weekday in self.days and self.begin <= minute < self.end:
            return True
        return (weekday - 1) % 7 in self.days and minute + DAY_MINUTES < self.end


def parse_schedule(text: str) -> tuple[Rule, ...]:
    """Read a schedule; the empty text is the one without rules. Raises BadInput, which names the rule and the fault."""
    if len(text) > MAX_TEXT:
        raise BadInput(f"a schedule of {len(text)} characters is too long", f"at most {MAX_TEXT}")
    parts = [part.strip() for part in text.split(";")]
    while parts and not parts[-1]:
        parts.pop()
    if len(parts) > MAX_RULES:
        raise BadInput(f"a schedule of {len(parts)} rules is too long", f"at most {MAX_RULES}")
    rules: list[Rule] = []
    for number, part in enumerate(parts, 1):
        try:
            rules.append(_rule(part, last=number == len(parts)))
        except ValueError as exc:
            raise BadInput(f"rule {number} of the schedule, {part!r}: {exc}", f"an example: {EXAMPLE}") from None
    return tuple(rules)


def rate_at(rules: tuple[Rule, ...], weekday: int, minute: int, otherwise: int) -> int:
    """Return the rate that holds at a minute (0..1439) of a weekday (0 is Monday); `otherwise` where no rule fits."""
    for rule in rules:
        if rule.fits(weekday, minute):
            return rule.rate
    return otherwise


def parse_rate(text: str) -> int:
    """Return the bytes a second in `20M` or `unlimited`. Raises ValueError."""
    if text.strip().lower() == "unlimited":
        return UNLIMITED
    rate = parse_size(text.strip().removesuffix("/s"))
    if not MIN_RATE_BYTES_S <= rate <= MAX_RATE_BYTES_S:
        least, most = size_text(MIN_RATE_BYTES_S), size_text(MAX_RATE_BYTES_S)
        raise ValueError(f"a rate of {text.strip()} is not within {least} and {most} a second; or say unlimited")
    return rate


def rate_text(rate: int) -> str:
    """Return a rate as parse_rate reads it."""
    return size_text(rate) if rate else "unlimited"


def _rule(part: str, *, last: bool) -> Rule:
    words = part.split()
    if not words:
        raise ValueError("it is empty")
    *when, rate_word = words
    rate = parse_rate(rate_word)
    everyday = frozenset(range(7))
    if when and when[0].lower() == "else":
        if len(when) > 1 or not last:
            raise ValueError("'else' stands alone, in the last rule")
        return Rule(everyday, 0, DAY_MINUTES, rate)
    days = everyday
    if when and not when[0][0].isdigit():
        days = _days(when.pop(0))
    begin, end = _hours(when.pop(0)) if when else (0, DAY_MINUTES)
    if when:
        raise ValueError(f"{when[0]!r} is one word too many: write days, hours, rate")
    return Rule(days, begin, end, rate)


def _days(word: str) -> frozenset[int]:
    """`mon`, `mon-fri`, `sat,sun`, `fri-mon` (over the end of the week), `daily`."""
    if word.lower() == "daily":
        return frozenset(range(7))
    found: set[int] = set()
    for piece in word.lower().split(","):
        first, dash, last = piece.partition("-")
        begin, end = _day(first), _day(last) if dash else _day(first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def _day(name: str) -> int:
    if name not in DAYS:
        raise ValueError(f"{name!r} is no day; days are {', '.join(DAYS)}")
    return DAYS.index(name)


def _hours(word: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(word)
    if match is None:
        raise ValueError(f"{word!r} is no span of hours; write it like 08:00-18:00")
    hour, minute, to_hour, to_minute = map(int, match.groups())
    begin, end = hour * 60 + minute, to_hour * 60 + to_minute
    if minute > 59 or to_minute > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise ValueError(f"{word!r} is not within 00:00 and 24:00")
    if begin == end:
        raise ValueError(f"{word!r} is empty; leave the hours out for the whole day")
    return begin, end if end > begin else end + DAY_MINUTES
