"""farstripe set: groups whose copies are consistent with each other."""

from __future__ import annotations

import datetime
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option


@click.group("set")
def cutset() -> None:
    """Consistency sets: groups of one primary node whose copies together hold one instant.

    Each group keeps its own journal, link and pace; a copy is applied only as far as everything up to then has arrived
    in all groups of the set. A group whose link is down holds the others. Groups of several nodes: 'farstripe marker'.
    """


@cutset.command()
@click.argument("name")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...", shell_complete=names.groups)
@json_option
@pass_node
def create(here: Node, name: str, groups: tuple[str, ...], as_json: bool) -> None:
    """Make the set NAME of each GROUP that is named, all of them primary here."""
    made = here.replicator("set.create", name=name, groups=list(groups))
    emit(as_json, made, f"set {name} made of {', '.join(groups)}; the peers learn of it within seconds")


@cutset.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the sets: how they stand here, as of when they are consistent, and for which group the others wait."""
    found = here.replicator("set.list")
    rows = [
        (
            one["name"],
            ", ".join(str(group["name"] or "not here") for group in one["groups"]),
            one["standing"],
            _time(one["consistent_ns"]),
            one["held_by"] or "-",
            one["why"] or "-",
        )
        for one in found
    ]
    table(as_json, found, ("set", "groups", "standing", "consistent as of", "slowest", "remark"), rows, "no sets")


@cutset.command()
@click.argument("name")
@yes_option
@json_option
@pass_node
def delete(here: Node, name: str, yes: bool, as_json: bool) -> None:
    """Let the groups of the set NAME go their own way. Also the way to let the others go on without a slow one."""
    confirm(f"Delete set {name}? Its copies are no longer consistent with each other.", yes, as_json)
    here.replicator("set.delete", name=name)
    emit(as_json, {"name": name, "deleted": True}, f"set {name} deleted")


@cutset.command()
@click.argument("name")
@force_option("Also while a primary is alive.")
@click.option(
    "--keep", is_flag=True, help="Every group keeps all it has received, although that may be no common instant."
)
@click.option(
    "--give-up", is_flag=True, help="Take the common instant although answered writes of synchronous groups are lost."
)
@yes_option
@json_option
@pass_node
def takeover(here: Node, name: str, force: bool, keep: bool, give_up: bool, yes: bool, as_json: bool) -> None:
    """Make this node primary of every group of the set NAME at one instant: the latest that all of them reach.

    What single groups have received beyond it is given up. Where all groups are synchronous and stall when their peer
    is lost, they keep all: no write was answered that is not here, so that is one instant too. Else, if a synchronous
    group holds writes of the last moment beyond it, which hosts were told are stored, nothing is done until you say
    which of the two promises counts: --keep loses none of these writes, and the groups fit together unless one had
    degraded; --give-up keeps the instant and loses them.
    """
    confirm(f"Make this node primary of every group of set {name}?", yes, as_json)
    done = here.replicator("set.takeover", name=name, force=force, keep=keep, give_up=give_up, wait_s=300)
    when = "with all they have received" if done["kept"] else f"as of {_time(done['bound_ns'])}"
    emit(as_json, done, f"this node is primary of the groups of set {name} now, {when}")


def _time(time_ns: Any) -> str:
    if not time_ns:
        return "-"
    moment = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time_ns % 10**9 // 10**6:03} UTC"
