"""farstripe group: volumes that share one write order."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import asof, groupvolumes, journal, known, names, policy
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SizeType, format_size


@click.group()
def group() -> None:
    """Consistency groups: volumes that share one journal and one write order, paired as one.

    What the applications see on the other side after a takeover is a moment that has been, across all volumes of the
    group. Put volumes that belong together (a database and its log) into one group.
    """


@group.command()
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...", shell_complete=names.volumes)
@click.option("--journal", "journal_bytes", type=SizeType(4096), default="256M", show_default=True,
              help="Room for writes on their way to the peer; 16M or more.")  # fmt: skip
@click.option(
    "--journal-path", type=click.Path(), help="File or device for the journal, instead of one in the state directory."
)
@json_option
@pass_node
def create(
    here: Node, name: str, volumes: tuple[str, ...], journal_bytes: int, journal_path: str | None, as_json: bool
) -> None:
    """Make the group NAME of each VOLUME that is named.

    The journal bounds how long a peer may be away, or how far behind, before order is given up for a bitmap of
    differences: its size divided by the write rate. Before a pair exists the group costs nothing.
    """
    args = {"journal_path": str(click.format_filename(journal_path))} if journal_path else {}
    made = here.target(
        "group.create", name=name, volumes=list(volumes), journal_bytes=journal_bytes, wait_s=300, **args
    )
    emit(as_json, made, f"group {name} made of {', '.join(volumes)}; pair it: farstripe pair create {name} --peer PEER")


@group.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the groups. `farstripe status` tells more."""
    found = here.target("group.list")
    rows = [
        (
            one["name"],
            ", ".join(v["name"] if isinstance(v, dict) else str(v) for v in one.get("volumes", ())),
            one.get("role"),
            one.get("state"),
            format_size((one.get("journal") or {}).get("capacity")),
        )
        for one in found
    ]
    table(
        as_json,
        found,
        ("group", "volumes", "role", "state", "journal"),
        rows,
        "no groups; make one: farstripe group create",
    )


@group.command("policy")
@click.argument("name", shell_complete=names.groups)
@click.argument("peer", required=False, shell_complete=names.peers)
@policy.policy_options
@json_option
@pass_node
def policy_(here: Node, name: str, peer: str | None, as_json: bool, **options: Any) -> None:
    """Show how the group NAME treats its peers, or change what is given.

    With PEER, --mode is that of the pair with it; without, of all pairs. Everything else is the group's and is set on
    the primary, which tells the others.
    """
    changes = policy.given(options)
    which = {"peer": here.replicator("pair.show", group=name, peer=peer)["peer"]} if peer else {}
    if changes:
        policy.check_settable(here.target("group.status", group=name, **which), changes, which.get("peer", ""))
        here.target("group.policy", group=name, **which, **changes)
    found = here.target("group.status", group=name, **which).get("policy") or {}
    rows = [(key, found.get(key)) for key in policy.KEYS]
    table(as_json, found, ("policy", "value"), rows, "")


@group.command()
@click.argument("name", shell_complete=names.groups)
@force_option("Also a group that is paired, could not be opened, or whose copy here is not consistent.")
@yes_option
@json_option
@pass_node
def delete(here: Node, name: str, force: bool, yes: bool, as_json: bool) -> None:
    """Delete the group NAME, its journal and history; its volumes stay. Refused while it is paired."""
    if not yes:
        known.group(here, name)
    confirm(f"Delete group {name} with its journal and history? Its volumes stay.", yes, as_json)
    here.target("group.delete", group=name, force=force, wait_s=300)
    emit(as_json, {"name": name, "deleted": True}, f"group {name} deleted")


group.add_command(groupvolumes.add)
group.add_command(groupvolumes.remove)
group.add_command(asof.retention)
group.add_command(journal.journal)
