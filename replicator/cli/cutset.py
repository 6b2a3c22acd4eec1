"""farstripe set: groups whose copies are consistent with each other."""

from __future__ import annotations

import datetime
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SecondsType, format_duration
from replicator.core.cycles import MAX_EVERY_S, MAX_KEEP, MIN_EVERY_S


@click.group("set")
def cutset() -> None:
    """Consistency sets: groups of one primary node whose copies together hold one instant.

    Each group keeps its own journal, link and pace; a copy is applied only as far as everything up to then has arrived
    in all groups of the set. A group whose link is down holds the others. Groups of several nodes: 'farstripe marker'.
    """


@cutset.command()
@click.argument("name")
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...", shell_complete=names.groups)
@click.option(
    "--order",
    type=click.Choice(["time", "counter"]),
    default="time",
    show_default=True,
    help="What copies go by: write times, which idle groups report; or a number in every record of all groups.",
)
@json_option
@pass_node
def create(here: Node, name: str, groups: tuple[str, ...], order: str, as_json: bool) -> None:
    """Make the set NAME of each GROUP that is named, all of them primary here.

    By time, a copy waits until it knows of every group up to when nothing is missing; idle groups say so five times a
    second. By counter, the records of all groups have numbers 1, 2, 3, …, and a copy waits for nothing but the next
    number. Both give the same instants. Refused by counter when a node with a copy runs a farstripe that is too old for
    that.
    """
    made = here.replicator("set.create", name=name, groups=list(groups), order=order)
    told = f"set {name} made of {', '.join(groups)}; the peers learn of it within seconds"
    if away := made.get("not_asked"):
        told += (
            f"\n{', '.join(away)} could not be asked: if the farstripe there is too old to read records that have"
            " numbers, the copy there stands still until it is brought up to date"
        )
    emit(as_json, made, told)


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
            one["order"],
            one["standing"],
            _time(one["consistent_ns"]),
            one["held_by"] or "-",
            _images(one),
            one["why"] or one.get("trouble") or "-",
        )
        for one in found
    ]
    table(
        as_json,
        found,
        ("set", "groups", "order", "standing", "consistent as of", "slowest", "images", "remark"),
        rows,
        "no sets",
    )


@cutset.command()
@click.argument("name")
@click.option(
    "--every",
    "every_s",
    type=SecondsType(MIN_EVERY_S, MAX_EVERY_S),
    metavar="SECONDS",
    help="The time from one image to the next.",
)
@click.option("--keep", type=click.IntRange(1, MAX_KEEP), default=3, show_default=True, help="Images to keep.")
@click.option("--off", is_flag=True, help="Take none any more, and delete those there are, on every node.")
@json_option
@pass_node
def cycle(here: Node, name: str, every_s: float | None, keep: int, off: bool, as_json: bool) -> None:
    """Let the copies of the set NAME take an image of all its volumes again and again, each at one instant.

    Every copy stands still at the instant until its image exists, which takes a moment, and records are received
    meanwhile. Images are snapshots, VOLUME.NAME-NUMBER: they can be read and cloned, and 'set takeover --cycle' goes
    back to one. While little room is left in a pool none is taken there, and only the newest is kept; when a copy
    stands still because the pool is full, that one is given up too.
    """
    if bool(every_s) == off:
        raise click.UsageError("give --every SECONDS, or --off")
    made = here.replicator("set.cycle", name=name, every_s=0 if off else every_s, keep=keep)
    told = "takes no images any more" if off else f"takes an image every {every_s:g} s and keeps {keep}"
    emit(as_json, made, f"set {name} {told}; the peers learn of it within seconds")


@cutset.command()
@click.argument("name")
@json_option
@pass_node
def images(here: Node, name: str, as_json: bool) -> None:
    """List the images of the set NAME on this node: their numbers, as of when they are, and their snapshots."""
    found = here.replicator("set.images", name=name)["here"]
    rows = [
        (one["n"], _time(one["bound_ns"]), ", ".join(s for group in one["groups"] for s in group["snapshots"].values()))
        for one in found
    ]
    table(as_json, found, ("image", "as of", "snapshots"), rows, f"this node has no images of set {name}")


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
@click.option("--cycle", "newest", is_flag=True, help="Go back to the newest image of the set's cycles on this node.")
@click.option("--image", type=click.IntRange(1), metavar="NUMBER", help="Go back to this image.")
@yes_option
@json_option
@pass_node
def takeover(
    here: Node,
    name: str,
    force: bool,
    keep: bool,
    give_up: bool,
    newest: bool,
    image: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make this node primary of every group of the set NAME at one instant: the latest that all of them reach.

    What single groups have received beyond it is given up. Where all groups are synchronous and stall when their peer
    is lost, they keep all: no write was answered that is not here, so that is one instant too. Else, if a synchronous
    group holds writes of the last moment beyond it, which hosts were told are stored, nothing is done until you say
    which of the two promises counts: --keep loses none of these writes, and the groups fit together unless one had
    degraded; --give-up keeps the instant and loses them.

    With --cycle or --image everything after the image is given up. That is for when the copies cannot go on to a common
    instant, because one of them can apply nothing more, or when what came after the image is not wanted.
    """
    if keep + give_up + newest + (image is not None) > 1:
        raise click.UsageError("--keep, --give-up, --cycle and --image exclude each other")
    where: dict[str, Any] = {"cycle": image or 0} if newest or image is not None else {}
    back = f" as it was in image {image}" if image else " as it was in its newest image" if newest else ""
    confirm(f"Make this node primary of every group of set {name}{back}?", yes, as_json)
    done = here.replicator("set.takeover", name=name, force=force, keep=keep, give_up=give_up, wait_s=300, **where)
    when = "with all they have received" if done["kept"] else f"as of {_time(done['bound_ns'])}"
    if done["cycle"]:
        when += f", from image {done['cycle']}"
    emit(as_json, done, f"this node is primary of the groups of set {name} now, {when}")


def _images(one: dict[str, Any]) -> str:
    """How many images there are, and how often one is taken."""
    if not one.get("every_ms"):
        return "-"
    every = f"every {format_duration(one['every_ms'] / 1000)}, keeps {one['keep']}"
    return f"{every}; here {one['images']}, the newest as of {_time(one['newest_ns'])}" if one["images"] else every


def _time(time_ns: Any) -> str:
    if not time_ns:
        return "-"
    moment = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time_ns % 10**9 // 10**6:03} UTC"
