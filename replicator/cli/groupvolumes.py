"""farstripe group add-volume, remove-volume: which volumes a group has, while it is used."""

from __future__ import annotations

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, force_option, json_option


@click.command("add-volume")
@click.argument("group", shell_complete=names.groups)
@click.argument("volume", shell_complete=names.volumes)
@force_option("Also while a node of the group cannot be asked whether the volume's name is free there.")
@json_option
@pass_node
def add(here: Node, group: str, volume: str, force: bool, as_json: bool) -> None:
    """Put VOLUME into GROUP, on its primary, while the other volumes are used.

    Every copy makes the volume, thin and of the same size, when it comes to this place of the write order. So a volume
    that comes into a paired group has to be thin and never written to: make a new one, add it, then fill it. Nobody may
    have it open for writing.
    """
    status = here.target("group.status", group=group)
    if status.get("edges"):
        made = here.replicator("volumes.add", group=group, volume=volume, force=force, wait_s=300)
    else:
        made = here.target("group.add_volume", group=group, volume=volume, wait_s=300)
    emit(as_json, made, f"volume {volume} is in group {group}")


@click.command("remove-volume")
@click.argument("group", shell_complete=names.groups)
@click.argument("volume", shell_complete=names.volumes)
@json_option
@pass_node
def remove(here: Node, group: str, volume: str, as_json: bool) -> None:
    """Take VOLUME out of GROUP, on its primary, while the other volumes are used.

    The volume stays on every node, with what it held at this place of the write order, and is in no group. Nobody may
    have it open for writing here.
    """
    made = here.target("group.remove_volume", group=group, volume=volume, wait_s=300)
    emit(as_json, made, f"volume {volume} is in no group any more; it stays on every node")
