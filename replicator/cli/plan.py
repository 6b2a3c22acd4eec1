"""farstripe plan: what something would take, before it is needed. Changes nothing."""

from __future__ import annotations

import re
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import UNKNOWN, emit, json_option, table
from replicator.cli.units import SizeType, format_duration, format_size
from replicator.core.errors import BadInput
from replicator.core.journalplan import HEADROOM_PERCENT, need_bytes
from replicator.core.journalplan import plan as plan_nodes

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
MOST_OUTAGE_S = 31 * 86400


def parse_duration(text: str) -> float:
    """Return the seconds in `90s`, `15m`, `4h` or `2d`. Raises BadInput."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= MOST_OUTAGE_S:
        raise BadInput(f"{text!r} is no time to plan a journal for", "say 90s, 15m, 4h or 2d; 31d at most")
    return seconds


@click.group()
def plan() -> None:
    """Work out what something takes. Nothing is changed."""


@plan.command()
@click.argument("group", shell_complete=names.groups)
@click.option("--outage", required=True, metavar="TIME", help="How long a peer may be away: 90s, 15m, 4h, 2d.")
@click.option("--rate", type=SizeType(), help="What hosts write a second, instead of what was measured.")
@click.option("--headroom", type=click.IntRange(0, 400), default=int(HEADROOM_PERCENT), show_default=True,
              metavar="PERCENT", help="Room beyond what is needed.")  # fmt: skip
@json_option
@pass_node
def journal(here: Node, group: str, outage: str, rate: int | None, headroom: int, as_json: bool) -> None:
    """Say how large the journal of GROUP has to be so that a peer may be away that long without a resync.

    Counted is what hosts wrote in the busiest such time of the last week; every node of the group needs that much, for
    each can become the primary.
    """
    outage_s = parse_duration(outage)
    found = here.target("group.journal", group=group)
    need = need_bytes(found["history"], outage_s, rate, headroom)
    if need is None:
        raise BadInput(f"nothing is known yet of what group {group} writes", "say it with --rate, such as --rate 20M")
    rows = plan_nodes(need, {"this node": found["capacity"], "each peer": None}, group)
    document: dict[str, Any] = {
        "group": group, "outage_s": outage_s, "written": need.written, "need": need.with_headroom, "basis": need.basis,
        "rate": None if rate is None else rate, "headroom_percent": headroom, "nodes": rows,
    }  # fmt: skip
    if as_json:
        emit(True, document)
        return
    click.echo(
        f"{format_duration(outage_s)} without a peer take {format_size(need.written)} by {need.basis}; "
        f"with {headroom} % of headroom {format_size(need.with_headroom)}"
    )
    click.echo()
    shown = [
        (
            row["node"],
            UNKNOWN if row["have"] is None else format_size(row["have"]),
            format_size(row["need"]),
            row["command"] or "large enough",
        )
        for row in rows
    ]
    table(False, document, ("where", "has", "needs", "do there"), shown, "")
