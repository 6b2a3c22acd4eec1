"""Sizes and times as people write them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from replicator.core.errors import BadInput
from replicator.core.sizes import FACTORS, parse_size

MOST_BYTES = 1 << 60
"""No volume, journal or file is larger."""


if TYPE_CHECKING:  # a generic class only in new releases of click
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType


class SizeType(_IntType):
    """A size option: `least` to MOST_BYTES bytes and a multiple of `multiple_of`. Raises BadInput for anything else."""

    name = "size"

    def __init__(self, multiple_of: int = 1, least: int = 0) -> None:
        self.multiple_of = multiple_of
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = value if isinstance(value, int) else parse_size(value)
        except ValueError as exc:
            raise BadInput(str(exc)) from None
        if size % self.multiple_of:
            below = size - size % self.multiple_of
            raise BadInput(
                f"a size of {size} bytes is not a multiple of {self.multiple_of}",
                f"the nearest {f'are {below} and' if below else 'is'} {below + self.multiple_of}",
            )
        if size > MOST_BYTES:
            raise BadInput(f"a size of {size} bytes is above the most of {format_size(MOST_BYTES)}", "ask for less")
        if size < self.least:
            raise BadInput(
                f"a size of {size} bytes is below the least of {format_size(self.least)}", "ask for that much or more"
            )
        return size


class SecondsType(click.FloatRange):
    """A time in seconds, in a range as click.FloatRange has it, and a number: not "nan", not "inf"."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def format_size(size: int | None) -> str:
    """Return a size for people: exact where a unit divides it, else with one decimal."""
    if size is None:
        return "unknown"
    for unit in ("P", "T", "G", "M", "K"):
        factor = FACTORS[unit]
        if abs(size) >= factor:
            return f"{size // factor} {unit}iB" if size % factor == 0 else f"{size / factor:.1f} {unit}iB"
    return f"{size} B"


def format_duration(seconds: float | None) -> str:
    """Return a duration for people, in the two largest units that matter."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
