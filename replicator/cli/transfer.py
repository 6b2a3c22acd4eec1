"""How a pair moves its records: the options of `pair create` and `pair set`, and what `pair show` says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.units import SizeType, format_size
from replicator.core.credits import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from replicator.core.errors import BadInput
from replicator.core.schedule import EXAMPLE, parse_rate, parse_schedule, rate_text
from replicator.core.transfer import AUTO, KEYS, MAX_COMPRESS, MAX_CONNECTIONS

if TYPE_CHECKING:  # a generic class only in new releases of click
    _IntType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    _IntType = _TextType = click.ParamType


class CompressType(_IntType):
    """A zstd level, or `auto`."""

    name = "level"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "auto":
            return AUTO
        if not value.isdecimal() or int(value) > MAX_COMPRESS:
            raise BadInput(f"{value!r} is no level of compression", f"give 0 (off) to {MAX_COMPRESS}, or auto")
        return int(value)


class RateType(_IntType):
    """Bytes a second, or `unlimited`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_rate(value)
        except ValueError as exc:
            raise BadInput(str(exc)) from None


class ScheduleType(_TextType):
    """A schedule, checked; `none` for the one without rules."""

    name = "schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = "" if str(value).strip().lower() == "none" else str(value).strip()
        parse_schedule(text)
        return text


_OPTIONS = (
    click.option("--connections", type=click.IntRange(1, MAX_CONNECTIONS), metavar="N",
                 help="TCP connections that carry the records side by side: more of a long or lossy line is used. "
                 "At first: 1."),
    click.option("--transfer", type=click.Choice(["push", "pull"]),
                 help="push: records are sent as fast as the line takes them. pull: as the receiver asks for them, "
                 "with at most --window under way. At first: push."),
    click.option("--window", type=SizeType(least=MIN_WINDOW_BYTES), metavar="SIZE",
                 help=f"What pull keeps under way, up to {format_size(MAX_WINDOW_BYTES)}. At first: 8M."),
    click.option("--compress", type=CompressType(), metavar="LEVEL",
                 help=f"zstd level for the wire, 1 (fast) to {MAX_COMPRESS}; auto: 1 where a sample shrinks; "
                 "0: off. At first: 0."),
    click.option("--limit", type=RateType(), metavar="RATE",
                 help="Send at most so many bytes of records a second, as 20M, or unlimited. In a synchronous pair "
                 "writes wait for it. At first: unlimited."),
    click.option("--schedule", type=ScheduleType(), metavar="RULES",
                 help=f"Other limits at other times, by this node's local time: \"{EXAMPLE}\". The first rule that "
                 "fits counts; where none fits, --limit. none: no schedule."),
)  # fmt: skip


def transfer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them by the names in KEYS, None where not given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return what the user set."""
    return {key: values[key] for key in KEYS if values.get(key) is not None}


def rows(found: dict[str, Any], feeds: bool) -> list[tuple[str, object]]:
    """The rows of `pair show`, from a pair's description. feeds: this node ships."""
    seen = found.get("transfer") or {}
    if not seen:
        return []
    mode = str(seen["transfer"])
    if mode == "pull":
        mode += f", window {format_size(seen['window'])}"
        mode += ", waiting for credit" if seen.get("starved") else ""
    if seen.get("held_bytes"):
        mode += f"; {format_size(seen['held_bytes'])} came before their turn"
    lines: list[tuple[str, object]] = [
        ("transfer", mode),
        ("connections", f"{seen.get('connections_open', 0)} of {seen['connections']}"),
    ]
    if feeds:
        trip = seen.get("round_trip_s")
        lines += [
            ("limit", _limit(seen)),
            ("compression", _compression(seen)),
            ("round trip", f"{trip * 1000:.1f} ms" if trip else None),
        ]
    return lines


def _limit(seen: dict[str, Any]) -> str:
    now, text = seen.get("rate"), rate_text(seen["limit"])
    if seen["schedule"]:
        text += f"; by schedule: {seen['schedule']}"
    return text if now is None else f"{text}; now {rate_text(now)}"


def _compression(seen: dict[str, Any]) -> str:
    level = {0: "off", AUTO: "auto"}.get(seen["compress"], f"zstd {seen['compress']}")
    if not seen.get("wire_bytes"):
        return level
    plain, wire = format_size(seen["plain_bytes"]), format_size(seen["wire_bytes"])
    gain = f"{plain} sent as {wire} ({seen['ratio']:.2f} : 1)"
    return f"{level}; {gain}" + (f" for {seen['cpu_s']:.1f} s of processor time" if seen["cpu_s"] else "")
