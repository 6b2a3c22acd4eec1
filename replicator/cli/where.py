"""farstripe volume map, extend, move and pool check: on which RAID groups areas lie, and whether the books balance."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import names, progress
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, json_option, table
from replicator.cli.units import SecondsType, SizeType, format_size
from replicator.core.errors import BadInput, IntegrityError
from replicator.core.sizes import parse_size

RANGE = SizeType()


def parse_place(word: str) -> dict[str, Any]:
    """Return the range that START:LENGTH=RAID_GROUP names. Raises BadInput."""
    bounds, _, raid_group = word.partition("=")
    start, _, length = bounds.partition(":")
    try:
        if raid_group:
            return {"start": parse_size(start), "length": parse_size(length), "raid_group": raid_group}
    except ValueError as exc:
        raise BadInput(f"{word!r}: {exc}", "say START:LENGTH=RAID_GROUP, as in: 0:10G=fast") from exc
    raise BadInput(f"{word!r} names no RAID group", "say START:LENGTH=RAID_GROUP, as in: 0:10G=fast")


@click.command("map")
@click.argument("name", shell_complete=names.volumes)
@json_option
@pass_node
def map_(here: Node, name: str, as_json: bool) -> None:
    """Show on which RAID groups the volume NAME lies, and what is being moved. What is not listed holds zeroes."""
    found = here.target("volume.map", name=name, wait_s=300)
    rows = [(one["start"], one["length"], format_size(one["length"]), one["group"]) for one in found["ranges"]]
    table(as_json, found, ("start", "bytes", "size", "raid group"), rows, f"{name} has taken no space yet")
    if not as_json:
        for move in found["moves"]:
            done, areas = move["areas"] - move["remaining"], move["areas"]
            click.echo(f"bytes {move['start']} to {move['end']} move to {move['group']}: {done} of {areas} areas")


@click.command()
@click.argument("name", shell_complete=names.volumes)
@click.argument("start", type=RANGE)
@click.argument("length", type=SizeType(4096, 4096))
@click.option("--raid-group", required=True, metavar="RAID_GROUP",
              help="Where the space of the new range comes from.")  # fmt: skip
@json_option
@pass_node
def extend(here: Node, name: str, start: int, length: int, raid_group: str, as_json: bool) -> None:
    """Grow the volume NAME by the range of LENGTH bytes from START, on a chosen RAID group.

    Space is mapped in whole areas. The answer says which range that is; the next one can begin at its end.
    """
    made = here.target("volume.extend", name=name, start=start, length=length, raid_group=raid_group, wait_s=300)
    first, end, size = made["mapped_start"], made["mapped_end"], format_size(made["size"])
    emit(as_json, made, f"volume {name} has {size} now; bytes {first} to {end} lie on {raid_group}")


@click.command()
@click.argument("name", shell_complete=names.volumes)
@click.option("--to", "raid_group", metavar="RAID_GROUP", help="The RAID group it moves to.")
@click.option("--start", type=RANGE, default=0, help="The first byte that moves; the start without it.")
@click.option("--length", type=SizeType(least=1), help="Bytes that move; up to the end without it.")
@click.option("--cancel", is_flag=True, help="End the moves of the volume; what has moved stays where it is.")
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait until it has moved, with a progress bar.")
@click.option("--timeout", "timeout_s", type=SecondsType(0), metavar="SECONDS",
              help="With --wait: give up waiting after this.")  # fmt: skip
@json_option
@pass_node
def move(
    here: Node,
    name: str,
    raid_group: str | None,
    start: int,
    length: int | None,
    cancel: bool,
    wait_for_it: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Move the volume NAME, or a range of it, to another RAID group while it is used.

    Snapshots and clones that share space with it move along. The move outlives restarts and crashes of the node.
    """
    if cancel:
        if raid_group:
            raise click.UsageError("--cancel and --to exclude each other")
        ended = here.target("volume.move_cancel", name=name)
        count = ended["cancelled"]
        emit(as_json, ended, f"the move of {name} is cancelled" if count else f"{name} does not move")
        return
    if not raid_group:
        raise click.UsageError("say where to: --to RAID_GROUP")
    asked: dict[str, Any] = {"name": name, "raid_group": raid_group, "start": start}
    if length is not None:
        asked["length"] = length
    begun = here.target("volume.move", **asked, wait_s=300)
    if wait_for_it:
        wait_for_move(here, name, timeout_s, show=not as_json)
    emit(as_json, begun, f"{name} {'has moved' if wait_for_it else 'moves'} to {raid_group}")


def wait_for_move(here: Node, name: str, timeout_s: float | None, show: bool) -> None:
    """Wait until no move of a volume is left. Raises TimedOut."""

    def look() -> progress.Look:
        status = here.target("pool.status")
        moves = [one for one in status["moves"] if one["volume"] == name]
        left = sum(one["remaining"] for one in moves) * status["area_bytes"]
        total = sum(one["areas"] for one in moves) * status["area_bytes"]
        return progress.Look(not moves, left, total)

    progress.wait(look, f"move of {name}", timeout_s, show)


@click.command()
@json_option
@pass_node
def check(here: Node, as_json: bool) -> None:
    """Count the pool's areas anew: none is lost, none is used twice, every reference is valid.

    Reads maps and metadata, not the data; the pool stays in use meanwhile.
    """
    found = here.target("pool.check", wait_s=600)
    if found["problems"]:
        raise IntegrityError(
            f"{len(found['problems'])} problems: " + "; ".join(found["problems"][:20]), "keep the members as they are"
        )
    rows = [
        (one["name"], one["areas"], one["used"], one["shared"], one["pending"], one["clean"], one["dirty"])
        for one in found["groups"]
    ]
    columns = ("raid group", "areas", "used", "shared", "pending", "free, clean", "free, dirty")
    table(as_json, found, columns, rows, "no RAID groups")
    if not as_json:
        click.echo(f"{found['images']} volumes and snapshots: every area is accounted for once")


COMMANDS = (map_, extend, move)
