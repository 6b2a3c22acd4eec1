"""farstripe group journal: the files and devices that a group's journal is made of."""

from __future__ import annotations

import datetime
import os
from typing import Any

import click

from replicator.cli import names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import UNKNOWN, confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SizeType, format_duration, format_size


@click.group()
def journal() -> None:
    """The journal of a group on this node: files and devices, added and removed while it is used.

    Each node has its own; their sizes and make-up may differ.
    """


@journal.command()
@click.argument("group", shell_complete=names.groups)
@json_option
@pass_node
def show(here: Node, group: str, as_json: bool) -> None:
    """Show what the journal of GROUP is made of, how full it is, and when it will be.

    A file whose medium has failed is named; the journal as a whole is out of use then, and `replace` gives another. A
    record that was found damaged is counted: the group goes on without it. Put the journal on another medium then, by
    `add` and `remove`; the third damaged record has a primary give the journal up.
    """
    found = here.target("group.journal", group=group)
    if as_json:
        emit(True, found)
        return
    rows = [(one["index"], one["path"], format_size(one["size"]), one["state"]) for one in found["files"]]
    table(False, found, ("file", "path", "size", "state"), rows, "no files")
    click.echo()
    table(False, found, ("journal", "value"), facts(found), "")


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a journal, for people."""
    rates = [found["write_rate"], found["growth_rate"]]
    written, growth = (UNKNOWN if rate is None else f"{format_size(rate)}/s" for rate in rates)
    full = found["full_in_s"]
    rows = [
        ("size", format_size(found["capacity"])),
        ("used", f"{format_size(found['used'])} ({found['used_percent']:.0f} %)"),
        ("oldest record", "none" if found["oldest_age_s"] is None else f"{format_duration(found['oldest_age_s'])} old"),
        ("written", written),
        ("growing by", growth),
        ("full", "not at this rate" if full is None else f"in {format_duration(full)} at this rate"),
        ("records are kept", f"until every peer has them {found['retain']}"),
        ("warning", f"at {found['warn_percent']:g} %" if found["warn_percent"] else "none"),
    ]
    for name, (first, then) in found["when_full"].items():
        rows.append((f"when full, peer {name}", first if first == then else f"{first}, after the timeout {then}"))
    if found["damaged"]:
        rows.append(("damaged records", f"{found['damaged']} were found; its medium is not to be trusted"))
    if found["error"]:
        rows.append(("broken", found["error"]))
    return rows


@journal.command()
@click.argument("group", shell_complete=names.groups)
@click.argument("path", type=click.Path())
@click.option("--size", type=SizeType(4096), default="256M", show_default=True,
              help="Of a new file; a device is used as a whole.")  # fmt: skip
@json_option
@pass_node
def add(here: Node, group: str, path: str, size: int, as_json: bool) -> None:
    """Add PATH, a new file or a device that nobody uses, to the journal of GROUP. Its room counts at once.

    Name a device by a path that stays, as those below /dev/disk/by-id do. What it holds is overwritten.
    """
    added = here.target("group.add_journal", group=group, path=os.path.abspath(path), size=size, wait_s=600)
    emit(as_json, added, f"{added['path']} is part of the journal of group {group} ({format_size(added['size'])})")


@journal.command()
@click.argument("group", shell_complete=names.groups)
@click.argument("path")
@json_option
@pass_node
def remove(here: Node, group: str, path: str, as_json: bool) -> None:
    """Take the file or device PATH out of the journal of GROUP; its number will do too.

    Nothing new is put there: on a primary from now on, on a secondary once the journal has gone round. It is free when
    nothing in it is needed any more, which `show` and `farstripe events` tell; a file is deleted then, a device left.
    """
    which = path if path.isdecimal() else os.path.abspath(path)
    removed = here.target("group.remove_journal", group=group, path=which, wait_s=60)
    said = "{} is leaving the journal of group {}"
    if removed["state"] == "released":
        said = "{} is no part of the journal of group {} any more"
    emit(as_json, removed, said.format(removed["path"], group))


@journal.command()
@click.argument("group", shell_complete=names.groups)
@click.argument("path", type=click.Path(), required=False)
@click.option("--size", type=SizeType(4096), default="256M", show_default=True,
              help="Of a new file; a device is used as a whole.")  # fmt: skip
@force_option("Also where answered writes may be in the journal alone and are then lost.")
@yes_option
@json_option
@pass_node
def replace(here: Node, group: str, path: str | None, size: int, force: bool, yes: bool, as_json: bool) -> None:
    """Give GROUP a new journal, in the place of a broken one: at PATH, or in the state directory.

    On a primary that counts differences since its journal broke, the next contact resyncs by difference. A secondary
    gives up what it had received and not applied, and is sent that again.

    A primary whose journal could not be read when its node started is opened by this. If it was killed or stopped in
    order, its volumes hold all that was answered, and copies follow by difference. After a power loss nobody knows:
    that wants --force, and everything is copied. `farstripe explain GROUP` says which it is. Where the journal may yet
    become readable, for a disk that is not mounted, mount it and restart the node instead.
    """
    confirm(f"Give group {group} a new journal and forget the old one?", yes, as_json)
    place = {"path": os.path.abspath(path)} if path else {}
    made = here.target("group.replace_journal", group=group, size=size, force=force, wait_s=600, **place)
    emit(as_json, made, f"group {group} has a new journal ({format_size(made['capacity'])})")


@journal.command()
@click.argument("group", shell_complete=names.groups)
@click.option("--since", type=click.IntRange(0), default=0, show_default=True, metavar="SEQ",
              help="Only records after this one.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N",
              help="So many at most, the oldest first.")  # fmt: skip
@json_option
@pass_node
def log(here: Node, group: str, since: int, limit: int, as_json: bool) -> None:
    """List the records that the journal of GROUP holds on this node: order, write time, place; not their bytes.

    A journal keeps what a peer, or this node's pool, still needs, so on an idle pair it is short. Every node of a group
    has the same record under a seq, with the time of the first site. The number is that in its consistency set, if the
    set orders by counter; the host time is what a host has stated, which later records get at least. Records that were
    freed while they were listed are named.
    """
    found = here.target("group.log", group=group, since=since, limit=limit)
    if as_json:
        emit(True, found)
        return
    rows = [
        (
            one["seq"],
            _time(one["time_ns"]),
            one["number"] or "-",
            _time(one["host_time_ns"]) if one.get("host_time_ns") else "-",
            one["kind"],
            one["volume"] or "-",
            one["offset"],
            one["length"],
        )
        for one in found["records"]
    ]
    table(False, found, ("seq", "written", "number", "host time", "kind", "volume", "offset", "bytes"), rows,
          f"no records after {since}; the newest is {found['last']}")  # fmt: skip
    for begin, end in found.get("freed", ()):
        click.echo(f"records {begin} to {end} were freed while they were listed", err=True)


def _time(time_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ns // 10**9).strftime("%Y-%m-%d %H:%M:%S")
    return f"{moment}.{time_ns % 10**9:09d}"
