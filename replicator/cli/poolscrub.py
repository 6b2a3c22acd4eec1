"""farstripe pool scrub: reading everything and comparing it; and what status says of scrubs and corruption."""

from __future__ import annotations

from typing import Any

import click

from replicator.cli import names, progress
from replicator.cli.access import Node, pass_node
from replicator.cli.output import emit, json_option, table
from replicator.cli.units import SecondsType, SizeType, format_duration, format_size
from replicator.core.errors import BadInput, MediumError

WHAT_IT_MEANS = {
    "unreadable": "the disk gave an error; what could be had from the other members was written anew",
    "checksum_errors": "the disk gave other bytes than were written, and no error; watch or replace it",
    "mismatches": "members disagree, and nothing says who is right",
    "located": "members disagreed, and the arithmetic of RAID-6 named the one that is wrong",
    "repaired": "was written anew",
    "unrepairable": "lost on this node: restore the ranges from a replica or a backup",
}
DISAGREE = (
    "members disagree although all can be read: pool scrub --repair makes parity fit the data and copies equal to the "
    "first member; it cannot tell which was right (RAID-6 can, when one member is wrong; checksums can, unless data "
    "and checksum are old together)"
)
ORDERS = ("start", "pause", "resume", "stop")


@click.command()
@click.argument("group", required=False, shell_complete=names.raid_groups)
@click.option(
    "--check", "mode", flag_value="check", default="check", help="Report what members disagree about (the default)."
)
@click.option("--repair", "mode", flag_value="repair", help="Also bring members that disagree into agreement.")
@click.option(
    "--start", "order", flag_value="start", default="start", help="Begin, or go on with one that runs (the default)."
)
@click.option("--pause", "order", flag_value="pause", help="Halt where it is.")
@click.option("--resume", "order", flag_value="resume", help="Go on with a paused one.")
@click.option("--stop", "order", flag_value="stop", help="End it.")
@click.option("--limit", type=SizeType(least=1 << 16), metavar="BYTES/S", help="Read at most so much a second.")
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait for the end, with a progress bar.")
@click.option("--timeout", "timeout_s", type=SecondsType(0), metavar="SECONDS",
              help="With --wait: give up waiting after this.")  # fmt: skip
@json_option
@pass_node
def scrub(
    here: Node,
    group: str | None,
    mode: str,
    order: str,
    limit: int | None,
    wait_for_it: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Read everything in RAID group GROUP (all groups without it) and compare its members.

    A block that cannot be read, or does not fit its checksum, is written anew from the others in either mode. Without
    checksums a disagreement says only that somebody is wrong; RAID-6 can name the member. It gives way to hosts, goes
    on after a restart, and shows in pool status. With --wait the exit code is 9 when something could not be repaired.
    """
    if order != "start" and (mode != "check" or limit is not None or wait_for_it):
        raise BadInput("--repair, --limit and --wait go with --start", "start a scrub, or leave them out")
    args: dict[str, Any] = {"group": group}
    if order == "start":
        args.update(mode=mode, limit_bytes_s=limit or 0)
    found = here.target(f"pool.scrub.{order}", **args)
    those = [group] if group else list(found)
    if wait_for_it:
        found = _wait(here, those, timeout_s, show=not as_json)
        worst = [name for name in those if found[name].get("unrepairable")]
        emit(as_json, found)
        if not as_json:
            for name in those:
                click.echo(f"{name}: {_found(found[name]) or 'nothing is wrong'}")
        if worst:
            raise MediumError(f"RAID group {', '.join(worst)}: blocks are lost", "farstripe pool status names them")
        return
    words = {"start": "runs", "pause": "is paused", "resume": "goes on", "stop": "is ended"}
    emit(as_json, found, f"scrub of {', '.join(those)} {words[order]}; farstripe pool status shows it")


def _wait(here: Node, those: list[str], timeout_s: float | None, show: bool) -> dict[str, Any]:
    latest: dict[str, Any] = {}

    def look() -> progress.Look:
        nonlocal latest
        latest = here.target("pool.scrub.status")
        mine = [latest[name] for name in those]
        if paused := [name for name in those if latest[name]["state"] == "paused"]:
            raise MediumError(f"the scrub of {', '.join(paused)} was paused", "farstripe pool scrub --resume")
        left = sum(one.get("left_bytes", 0) for one in mine)
        total = sum(one.get("total_bytes", 0) for one in mine)
        return progress.Look(all(one["state"] != "running" for one in mine), left, total)

    progress.wait(look, f"scrub of {', '.join(those)}", timeout_s, show)
    return latest


def show_health(status: dict[str, Any]) -> None:
    """Print scrubs, members that gave wrong bytes, and what to make of it."""
    scrubs = {name: one for name, one in status.get("scrubs", {}).items() if one.get("state")}
    if scrubs:
        click.echo()
        rows = [(name, _progress(one), one["mode"], _found(one) or "nothing wrong") for name, one in scrubs.items()]
        table(False, None, ("scrub of", "state", "mode", "found"), rows, "")
    corrupt = [
        (m["path"], g["name"], m.get("checksum_errors", 0), m.get("read_errors", 0), m.get("repaired", 0))
        for g in status.get("groups", ())
        for m in g["members"]
        if m.get("checksum_errors") or m.get("read_errors") or m.get("repaired")
    ]
    if corrupt:
        click.echo()
        table(False, None, ("member", "raid group", "checksum errors", "read errors", "repaired"), corrupt, "")
    for key in ("checksum_errors", "unrepairable"):
        if any(one.get(key) for one in scrubs.values()):
            click.echo(f"{key.replace('_', ' ')}: {WHAT_IT_MEANS[key]}")
    if any(one["mismatches"] > one["located"] for one in scrubs.values()):
        click.echo(f"mismatches: {DISAGREE}")
    for name, one in scrubs.items():
        for place in one.get("ranges", ()):
            for where in place["volumes"]:
                click.echo(
                    f"{place['kind']} in {name}: volume {where['volume']}, {where['length']} bytes at {where['offset']}"
                )


def _progress(one: dict[str, Any]) -> str:
    if one["state"] not in ("running", "paused"):
        return str(one["state"])
    share = 100 * (1 - one["left_bytes"] / max(1, one["total_bytes"]))
    left = f", {format_duration(one['left_s'])} left" if one.get("left_s") is not None else ""
    speed = f", {format_size(one['bytes_s'])}/s" if one.get("bytes_s") else ""
    return f"{one['state']}, {share:.0f} % done{speed}{left}"


def _found(one: dict[str, Any]) -> str:
    return ", ".join(f"{one[key]} {key.replace('_', ' ')}" for key in WHAT_IT_MEANS if one.get(key))
