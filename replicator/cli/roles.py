"""farstripe switchover and takeover: which side is primary."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import UNKNOWN, confirm, emit, force_option, json_option, yes_option
from replicator.cli.units import SecondsType, format_duration, format_size

GOES_ON = " It goes on: what it answers until it hears of the takeover is lost too."


@click.command()
@click.argument("group", shell_complete=names.pairs)
@click.argument("peer", required=False, shell_complete=names.peers)
@click.option("--deadline", "deadline_s", type=SecondsType(0.1, 3600), metavar="SECONDS",
              help="How long writers may be held; then everything stays as it was; 10 when left out.")  # fmt: skip
@json_option
@pass_node
def switchover(here: Node, group: str, peer: str | None, deadline_s: float | None, as_json: bool) -> None:
    """Exchange the roles of GROUP as planned: hold, drain, hand over. Nothing is lost.

    On the primary PEER becomes it, and may be left out while the group has one pair here. On a node that the primary
    feeds, that node does, and PEER is left out. The former primary's other copies stay with it, one step further down.

    Move the writers first (unmount, detach): a host that still writes to the old primary gets errors afterwards.
    """
    extra: dict[str, Any] = {"deadline_s": deadline_s} if deadline_s else {}
    if peer:
        extra["peer"] = peer
    done = here.replicator("switchover", group=group, wait_s=180, **extra)
    emit(
        as_json,
        done,
        f"{done.get('primary_name') or done.get('primary') or 'the peer'} is primary of group {group} now",
    )


@click.command()
@click.argument("group", shell_complete=names.pairs)
@click.option(
    "--plan", "plan_only", is_flag=True, help="Only say what a takeover would do now, and what would be lost."
)
@force_option(
    "Take over although the primary is alive, or from a copy that was given up. The message says what is lost."
)
@yes_option
@json_option
@pass_node
def takeover(here: Node, group: str, plan_only: bool, force: bool, yes: bool, as_json: bool) -> None:
    """Make this node primary of GROUP because the other side is gone.

    Says first what is lost, and what becomes of the group's other nodes. While the primary answers it is refused
    without --force; use switchover then. --yes answers the question and does not force anything.
    """
    plan = here.replicator("takeover.plan", group=group, force=force)
    if plan_only:
        emit(as_json, plan, _plan_text(plan))
        return
    if plan["allowed"]:
        beware = "" if plan["label"] == "clean" else f"Beware: {plan['message']}. "
        confirm(f"{beware}{lost_text(plan['lost'])} Take over group {group}?", yes, as_json)
    done = here.replicator("takeover", group=group, force=force, wait_s=180)
    lost = done.get("lost") or plan["lost"]
    emit(as_json, done, f"this node is primary of group {group} now. {lost_text(lost)}")


def _plan_text(plan: dict[str, Any]) -> str:
    if plan["allowed"]:
        others = "".join(f"\n  {one['peer']}: {one['means']}" for one in plan.get("others") or ())
        beware = "" if plan["label"] == "clean" else f"\nbeware: {plan['message']}"
        return f"takeover: possible ({plan['label']}). {lost_text(plan['lost'])}{others}{beware}"
    way_out = f"\nway out: {plan['way_out']}" if plan["way_out"] else ""
    return f"takeover: refused ({plan['label']}): {plan['message']}{way_out}"


def lost_text(lost: dict[str, Any]) -> str:
    """Say what a takeover loses, as a sentence."""
    if lost["certain"] and lost["records"] == 0:
        if lost.get("alive"):
            return f"The primary was asked just now and had nothing more.{GOES_ON}"
        return "Nothing is lost: the primary was asked just now and has nothing more."
    records = UNKNOWN if lost["records"] is None else str(lost["records"])
    size = f"{UNKNOWN} bytes" if lost["bytes"] is None else format_size(lost["bytes"])
    seconds = f"{UNKNOWN} seconds" if lost["seconds"] is None else format_duration(lost["seconds"])
    if lost["certain"]:
        return f"Lost: {records} writes, {size}, {seconds}.{GOES_ON if lost.get('alive') else ''}"
    return (
        f"Known to be missing here: {records} writes, {size}. Besides, what the primary wrote since the last contact "
        f"({seconds} ago) is lost, unless every write waited for this node."
    )
