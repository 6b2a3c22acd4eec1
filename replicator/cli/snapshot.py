"""farstripe volume snapshot, clone, rollback, diff: images that share areas with their origin."""

from __future__ import annotations

import click

from replicator.cli import known, names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, json_option, table, yes_option
from replicator.cli.units import format_size
from replicator.core.errors import BadInput


def parse_names(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return volumes and the names of their snapshots from words VOLUME=SNAPSHOT. Raises BadInput."""
    volumes: list[str] = []
    snapshots: list[str] = []
    for word in words:
        volume, equals, name = word.partition("=")
        if not (volume and equals and name):
            raise BadInput(f"{word!r} does not name a volume and its snapshot", "say VOLUME=SNAPSHOT: db=db-monday")
        volumes.append(volume)
        snapshots.append(name)
    return volumes, snapshots


@click.command()
@click.argument("pairs", nargs=-1, required=True, metavar="VOLUME=SNAPSHOT...")
@json_option
@pass_node
def snapshot(here: Node, pairs: tuple[str, ...], as_json: bool) -> None:
    """Take a SNAPSHOT of each VOLUME that is named, all at the same instant.

    A snapshot takes space only for what its volume overwrites from now on. It is served read-only under its own name
    and deleted like a volume.

    \b
      farstripe volume snapshot db=db-monday log=log-monday
    """
    volumes, snapshots = parse_names(pairs)
    taken = here.target("volume.snapshot", volumes=volumes, names=snapshots, wait_s=300)
    emit(as_json, taken, f"{len(snapshots)} snapshot{'s' * (len(snapshots) > 1)} taken: {', '.join(snapshots)}")


@click.command()
@click.argument("source", shell_complete=names.volumes)
@click.argument("name")
@json_option
@pass_node
def clone(here: Node, source: str, name: str, as_json: bool) -> None:
    """Make the volume NAME, which begins with what SOURCE (a snapshot or volume) holds and shares its space."""
    made = here.target("volume.clone", source=source, name=name, wait_s=300)
    emit(as_json, made, f"volume {name} made, a clone of {source}")


@click.command()
@click.argument("name", shell_complete=names.volumes)
@click.argument("snapshot_name", metavar="SNAPSHOT", shell_complete=names.volumes)
@yes_option
@json_option
@pass_node
def rollback(here: Node, name: str, snapshot_name: str, yes: bool, as_json: bool) -> None:
    """Take the volume NAME back to what SNAPSHOT holds. Everything written since then is lost.

    Refused while a client may write to the volume, and while it is in a group.
    """
    if not yes:
        known.volume(here, name, snapshot_name)
    confirm(f"Take volume {name} back to {snapshot_name} and lose what was written since?", yes, as_json)
    done = here.target("volume.rollback", name=name, snapshot=snapshot_name, wait_s=300)
    emit(as_json, done, f"volume {name} holds what {snapshot_name} holds")


@click.command()
@click.argument("a", shell_complete=names.volumes)
@click.argument("b", shell_complete=names.volumes)
@json_option
@pass_node
def diff(here: Node, a: str, b: str, as_json: bool) -> None:
    """List the ranges in which A and B may differ: two snapshots of a volume, or a snapshot and the volume.

    Ranges are whole areas of the pool; outside of them the two are the same, byte for byte.
    """
    found = here.target("volume.diff", a=a, b=b, wait_s=300)
    rows = [(one["start"], one["length"], format_size(one["length"])) for one in found["ranges"]]
    table(as_json, found, ("start", "bytes", "size"), rows, f"{a} and {b} are the same")


COMMANDS = (snapshot, clone, rollback, diff)
