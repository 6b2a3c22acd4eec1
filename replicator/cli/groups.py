"""farstripe pool grow, remove-group, keep-group: a RAID group that takes more room, or leaves, while it is used."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import known, names, progress
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, json_option, yes_option
from replicator.cli.units import SecondsType, format_size


@click.command("remove-group")
@click.argument("name", metavar="RAID_GROUP", shell_complete=names.raid_groups)
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait until it is gone, with a progress bar.")
@click.option("--timeout", "timeout_s", type=SecondsType(0), metavar="SECONDS",
              help="With --wait: give up waiting after this.")  # fmt: skip
@yes_option
@json_option
@pass_node
def remove_group(here: Node, name: str, wait_for_it: bool, timeout_s: float | None, yes: bool, as_json: bool) -> None:
    """Move everything on RAID_GROUP to the others, while it is used, and take it out of the pool.

    Nothing new is put on it from now on. Its members are free once it is gone. Goes on after restarts and crashes;
    pool keep-group gives it up.
    """
    if not yes:
        known.raid_group(here, name)
    confirm(f"Empty RAID group {name} and take it out of the pool?", yes, as_json)
    begun = here.target("pool.remove_group", name=name, wait_s=300)
    if wait_for_it:
        wait_until_gone(here, name, timeout_s, show=not as_json)
    emit(as_json, begun, f"RAID group {name} {'is gone' if wait_for_it else 'is being emptied'}")


def wait_until_gone(here: Node, name: str, timeout_s: float | None, show: bool) -> None:
    """Wait until a RAID group has left the pool. Raises TimedOut."""

    def look() -> progress.Look:
        groups = [group for group in here.target("pool.status")["groups"] if group["name"] == name]
        left = sum(group["size"] - group["free"] for group in groups)
        return progress.Look(not groups, left)

    progress.wait(look, f"removal of RAID group {name}", timeout_s, show)


@click.command("keep-group")
@click.argument("name", metavar="RAID_GROUP", shell_complete=names.raid_groups)
@json_option
@pass_node
def keep_group(here: Node, name: str, as_json: bool) -> None:
    """Give up the removal of RAID_GROUP. What has moved stays where it is."""
    emit(as_json, here.target("pool.keep_group", name=name), f"RAID group {name} stays in the pool")


@click.command()
@click.argument("name", required=False, metavar="[RAID_GROUP]", shell_complete=names.raid_groups)
@click.option("--dry-run", is_flag=True, help="Measure the members, and only show what would become of it.")
@json_option
@pass_node
def grow(here: Node, name: str | None, dry_run: bool, as_json: bool) -> None:
    """Let RAID_GROUP, or every group that can, take the room that its members got, while it is used.

    \b
      truncate -s 2T /disks/{0..5}     # or lvextend, or a larger export
      farstripe pool grow --dry-run
      farstripe pool grow

    The smallest member decides. All members of the group must be in sync, and none be under replacement. There is no
    way back to smaller members.
    """
    found = here.target("pool.grow", name=name, dry_run=dry_run, wait_s=300)
    emit(as_json, found, "\n".join(_growth(found, "would grow" if dry_run else "grew")))


def _growth(found: dict[str, Any], word: str) -> list[str]:
    lines = []
    for group in found["groups"]:
        sizes = format_size(group["old_size"]), format_size(group["size"])
        lines.append(f"RAID group {group['name']} {word} from {sizes[0]} to {sizes[1]}")
        lines += [f"spare {path} is too small for it then" for path in group["unfit_spares"]]
    return lines + [f"RAID group {one['name']} stays as it is: {one['reason']}" for one in found["refused"]]


COMMANDS = (grow, remove_group, keep_group)
