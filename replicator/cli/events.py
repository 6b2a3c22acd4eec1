"""farstripe events: what happened on this node, as target and replicator wrote it down."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from replicator.cli.access import Node, pass_node
from replicator.cli.output import json_option, table
from replicator.core.errors import DaemonNotRunning, FarstripeError, NotFound

FOLLOW_S = 0.5


@click.command()
@click.option("--last", type=click.IntRange(1), default=30, show_default=True, metavar="N",
              help="How many of the newest to show.")  # fmt: skip
@click.option("--kind", multiple=True, metavar="PREFIX", help="Only kinds that begin so, for example member or pair.")
@click.option("--follow", "-f", is_flag=True, help="Go on and show events as they come; with --json one a line.")
@json_option
@pass_node
def events(here: Node, last: int, kind: tuple[str, ...], follow: bool, as_json: bool) -> None:
    """Show what happened on this node, oldest first.

    Events inform people; nothing is decided from them. The node keeps a few thousand.
    """
    known = collect(here, {})
    shown = [one for one in known if _wanted(one, kind)][-last:]
    if not follow:
        rows = [(one.get("time", ""), one.get("process"), one.get("kind"), one.get("text")) for one in shown]
        table(as_json, shown, ("time", "process", "kind", "what"), rows, "no events")
        return
    newest = _newest(known, {})
    while True:
        for one in shown:
            if as_json:
                click.echo(json.dumps(one, sort_keys=True, default=str))
            else:
                click.echo(f"{one.get('time', '')} {one.get('kind')}: {one.get('text')}")
        time.sleep(FOLLOW_S)
        try:
            fresh = collect(here, newest)
        except DaemonNotRunning:
            shown = []
            continue
        newest = _newest(fresh, newest)
        shown = [one for one in fresh if _wanted(one, kind)]


def collect(here: Node, since: dict[str, int]) -> list[dict[str, Any]]:
    """Return the events of both processes, by time, each with its `process`. Raises when neither answers."""
    found: list[dict[str, Any]] = []
    failures: list[FarstripeError] = []
    for process, ask in (("target", here.target), ("replicator", here.replicator)):
        try:
            answer = ask("events.list", since=since.get(process, 0))
        except (DaemonNotRunning, NotFound) as exc:
            failures.append(exc)
            continue
        found += [{**one, "process": process} for one in answer]
    if len(failures) == 2:
        raise failures[0]
    return sorted(found, key=lambda one: str(one.get("time", "")))


def _newest(found: list[dict[str, Any]], before: dict[str, int]) -> dict[str, int]:
    newest = dict(before)
    for one in found:
        newest[one["process"]] = max(newest.get(one["process"], 0), int(one.get("n", 0)))
    return newest


def _wanted(event: dict[str, Any], kinds: tuple[str, ...]) -> bool:
    return not kinds or str(event.get("kind", "")).startswith(kinds)
