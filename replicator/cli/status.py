"""farstripe status: every group and pair of this node on one screen."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import asof, names, policy, view
from replicator.cli.access import Node, pass_node
from replicator.cli.output import UNKNOWN, emit, json_option, table
from replicator.cli.units import format_duration, format_size

COLUMNS = ("group", "role", "state", "mode", "peer", "would be lost", "journal", "remark")


@click.command()
@click.argument("group", required=False, shell_complete=names.groups)
@json_option
@pass_node
def status(here: Node, group: str | None, as_json: bool) -> None:
    """Show GROUP, or all groups and pairs: role, state, how far behind, journal use.

    "would be lost" is what this node knows that the peer does not have (RPO), in writes, bytes and seconds: with a link
    as of now, without one as of the last contact. What cannot be known is unknown. A group with several pairs has a
    line for each, and it is said what the loss of each node would mean and what then still protects. `farstripe explain
    GROUP` says why a state is what it is, and what to do.
    """
    found: dict[str, Any] = {"groups": [view.one_group(here, group)]} if group else view.collect(here)
    if as_json:
        emit(True, found)
        return
    none = "no groups; make one: farstripe group create"
    if node := found.get("node"):
        away = [
            f"{name} (it runs, but was silent for {view.PATIENCE_S:g} s)" if name in node["hangs"] else name
            for name in ("target", "replicator")
            if not node[name]
        ]
        remark = f"; does not answer: {', '.join(away)}" if away else ""
        click.echo(f"node {node['name']}{remark}")
        if not node["target"]:
            none = "its groups are unknown while the target does not answer: farstripe node status"
    groups = found["groups"]
    pairs = [edge for one in groups for edge in one["edges"] or [one]]
    table(False, None, COLUMNS, [_row(one) for one in pairs], none)
    for one in pairs:
        peer = f" ({one['peer']['name']})" if one["peer"] else ""
        if one["commands"] and one["level"] in ("bad", "warn"):
            click.echo(f"\n{one['name']}{peer}: {one['why']}; {one['means']}.\n  What to do: {one['then']}.")
            click.echo("".join(f"    {command}\n" for command in one["commands"]), nl=False)
        for told in one["conditions"]:
            click.echo(f"\n{one['name']}{peer}: {told['text']}.\n  What to do: {told['then']}.")
            click.echo("".join(f"    {command}\n" for command in told["commands"]), nl=False)
    for one in groups:
        for line in asof.retained_lines(one):
            click.echo(f"{one['name']}: {line}")
        if one["losses"] and (group or len(one["edges"]) > 1):
            click.echo("\n" + "\n".join([f"{one['name']}:", *loss_lines(one["losses"])]))


def loss_lines(losses: list[dict[str, Any]]) -> list[str]:
    """Say for each node what its loss would mean."""
    return [f"  if {loss['node']} is lost: {loss['means']}" for loss in losses]


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    peer = one["peer"]
    return (
        one["name"],
        one["role"],
        one["word"],
        policy.text(one["policy"]) if one["policy"] else None,
        _peer(peer) if peer else "-" if one["paired"] is False else None,
        "-" if one["paired"] is False else lost_text(one["rpo"]),
        _journal(one["journal"]),
        _remark(one),
    )


def _peer(peer: dict[str, Any]) -> str:
    name = str(peer["name"] or peer["node_id"])
    if peer["connected"]:
        return name
    heard = peer["heard_s_ago"]
    return f"{name} (not heard)" if heard is None else f"{name} (not heard for {format_duration(heard)})"


def lost_text(rpo: dict[str, Any] | None) -> str:
    """Return an RPO in words."""
    if rpo is None or rpo["bound"] == "unknown":
        return UNKNOWN
    if rpo["bound"] == "no copy":
        kept = f", and keeps an image after record {rpo['kept']}" if rpo.get("kept") else ""
        return f"everything: the copy is not complete{kept}"
    if rpo["bound"] in ("exact", "at most") and rpo["writes"] == 0:
        return "nothing"
    prefix = "" if rpo["bound"] == "exact" else f"{rpo['bound']} "
    seconds = f"{format_duration(rpo['seconds'])}" if rpo["seconds"] is not None else f"{UNKNOWN} seconds"
    size = format_size(rpo["bytes"]) if rpo["bytes"] is not None else f"{UNKNOWN} bytes"
    return f"{prefix}{rpo['writes']} writes, {size}, {seconds}"


def _journal(journal: dict[str, Any]) -> str | None:
    if journal["ratio"] is None:
        return None
    return f"{100 * journal['ratio']:.0f} % of {format_size(journal['capacity'])}"


def _remark(one: dict[str, Any]) -> str:
    remarks = []
    if one["degraded"]:
        remarks.append("DEGRADED")
    if (one["budget"] or {}).get("exceeded"):
        remarks.append("BEYOND ITS BUDGET: " + "; ".join(one["budget"]["reasons"]))
    if one["held"]:
        remarks.append("writes held")
    remarks += [label.replace("-", " ") for label in (told["label"] for told in one["conditions"])]
    if one["copy_left_bytes"]:
        remarks.append(f"{format_size(one['copy_left_bytes'])} left to copy")
    if one["failed"]:
        remarks.append(str(one["failed"]))
    return ", ".join(remarks) or "-"
