"""farstripe volume: block devices in the pool."""

from __future__ import annotations

import click

from replicator.attach import spawn
from replicator.cli import known, names, snapshot, where
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SizeType, format_size

SIZE = SizeType(multiple_of=4096, least=4096)


@click.group()
def volume() -> None:
    """Block devices in the pool. NBD clients find a volume under its name as the export name."""


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="For example 10G; a multiple of 4096.")
@click.option("--raid-group", metavar="RAID_GROUP", help="Take space from this RAID group only.")
@click.option("--place", "places", multiple=True, metavar="START:LENGTH=RAID_GROUP",
              help="Take the space of this range from that RAID group; may be given several times.")  # fmt: skip
@click.option("--thick", is_flag=True, help="Take the space now instead of at the first write.")
@json_option
@pass_node
def create(
    here: Node, name: str, size: int, raid_group: str | None, places: tuple[str, ...], thick: bool, as_json: bool
) -> None:
    """Make the volume NAME.

    Space comes from the RAID group with most room, and from others when that is full, unless --raid-group or --place
    says where from.

    \b
      farstripe volume create db --size 100G --raid-group slow --place 0:10G=fast
    """
    asked = {"name": name, "size": size, "raid_group": raid_group, "thin": not thick}
    if places:
        asked["placement"] = [where.parse_place(word) for word in places]
    made = here.target("volume.create", **asked, wait_s=300)
    emit(as_json, made, f"volume {name} made, {format_size(size)}")


@volume.command("list")
@json_option
@pass_node
def list_(here: Node, as_json: bool) -> None:
    """List the volumes and snapshots, their groups, and how many NBD connections may write or only read."""
    found = here.target("volume.list")
    rows = [
        (
            one["name"],
            one.get("kind", "volume") + (f" of {one['origin']}" if one.get("origin") else ""),
            format_size(one["size"]),
            format_size(one["allocated"]) if one.get("allocated") is not None else None,
            one.get("raid_group") or "any",
            one.get("group") or "-",
            one.get("role") or "-",
            one.get("writers"),
            one.get("readers"),
        )
        for one in found
    ]
    columns = ("volume", "kind", "size", "allocated", "raid group", "group", "role", "writers", "readers")
    table(as_json, found, columns, rows, "no volumes; make one: farstripe volume create")


@volume.command()
@click.argument("name", shell_complete=names.volumes)
@yes_option
@json_option
@pass_node
def delete(here: Node, name: str, yes: bool, as_json: bool) -> None:
    """Delete the volume NAME and everything in it. Refused while a client has it open or a group holds it."""
    if not yes:
        known.volume(here, name)
    confirm(f"Delete volume {name} and everything in it?", yes, as_json)
    here.target("volume.delete", name=name, wait_s=300)
    emit(as_json, {"name": name, "deleted": True}, f"volume {name} deleted")


@volume.command()
@click.argument("name", shell_complete=names.volumes)
@click.option("--size", type=SIZE, required=True, help="The new size.")
@force_option("Allow a smaller size, which cuts off what lies beyond it.")
@yes_option
@json_option
@pass_node
def resize(here: Node, name: str, size: int, force: bool, yes: bool, as_json: bool) -> None:
    """Change the size of volume NAME. Growing is possible while it is in use, also in a group, on its primary: every
    copy does the same at the same place of the write order.

    Devices attached on this host see the new size at once; grow the filesystem afterwards (resize2fs, xfs_growfs).
    Other clients see it when they connect again.
    """
    if force and not yes:
        known.volume(here, name)
        confirm(f"Cut volume {name} to {format_size(size)} if it is larger?", yes, as_json)
    made = here.target("volume.resize", name=name, size=size, force=force, wait_s=300)
    devices = spawn.refresh(name, str(here.run))
    told = f"; {', '.join(devices)} follows" if devices else ""
    emit(as_json, {**made, "refreshed": devices}, f"volume {name} has {format_size(size)} now{told}")


for _command in (*snapshot.COMMANDS, *where.COMMANDS):
    volume.add_command(_command)
