"""farstripe pool readd, remove, spare, rebuild-limit, destroy: what is done with the members of a pool."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import click

from replicator.cli import known, names
from replicator.cli.access import Node, pass_node
from replicator.cli.output import confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.units import SecondsType, SizeType, format_duration, format_size
from replicator.core.errors import Refused

_URI = re.compile(r"nbds?(\+unix)?://")
_UUID = re.compile(r"[0-9a-f]{32}")


def member_path(word: str) -> str:
    """A member as the target knows it: NBD URIs and UUIDs as they are, paths made absolute."""
    return word if _URI.match(word) or _UUID.fullmatch(word) else os.path.abspath(word)


def is_uri(word: str) -> bool:
    """Whether a member is an NBD export."""
    return bool(_URI.match(word))


def work_rows(status: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """A row for each rebuild and replacement under way."""
    for one in status.get("rebuilds", ()):
        what = (
            f"replaces {one['replaces']}" if one["replaces"] else "by difference" if one["by_difference"] else "rebuild"
        )
        speed = f"{format_size(one['bytes_s'])}/s" if one.get("bytes_s") else "-"
        left = format_duration(one["left_s"]) if one.get("left_s") is not None else "-"
        yield one["member"], one["group"], what, format_size(one["remaining_bytes"]), speed, left


def show_work(status: dict[str, Any]) -> None:
    """Print work under way and spares, when there are any."""
    if rows := list(work_rows(status)):
        click.echo()
        table(False, None, ("member", "raid group", "work", "to do", "speed", "time left"), rows, "")
    if status.get("spares"):
        click.echo()
        _show_spares(status["spares"])


def _show_spares(spares: list[dict[str, Any]]) -> None:
    rows = [
        (s["path"], s["group"] or "all", format_size(s["size"]), "ready" if s["there"] else "missing") for s in spares
    ]
    table(False, None, ("spare", "raid group", "size", "state"), rows, "no spares")


@click.command()
@click.argument("member", shell_complete=names.members)
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait until it is complete, with a progress bar.")
@click.option("--timeout", "timeout_s", type=SecondsType(0), metavar="SECONDS",
              help="With --wait: give up waiting after this.")  # fmt: skip
@json_option
@pass_node
def readd(here: Node, member: str, wait_for_it: bool, timeout_s: float | None, as_json: bool) -> None:
    """Take MEMBER back, which was away: only what was written meanwhile is copied.

    MEMBER is where it is now: a file, a disk or an NBD URI; its superblock says which member it is. One that failed
    for errors of its own, an older copy, or one that was replaced is refused with the reason.
    """
    from replicator.cli.pool import wait_for_rebuild

    member = member_path(member)
    status = here.target("pool.readd", member=member, wait_s=300)
    copied = status["to_copy_bytes"]
    if wait_for_it:
        status = {**wait_for_rebuild(here, member, timeout_s, show=not as_json), "to_copy_bytes": copied}
    how = "was brought up by" if wait_for_it else "is brought up by"
    emit(as_json, status, f"{member} {how} copying {format_size(copied)}")


@click.command()
@click.argument("member", shell_complete=names.members)
@yes_option
@json_option
@pass_node
def remove(here: Node, member: str, yes: bool, as_json: bool) -> None:
    """Let go of MEMBER: a spare, a new member that is being filled, or one that failed.

    A failed one keeps its place until it is replaced, but cannot be taken back by difference any more.
    """
    member = member_path(member)
    if not yes:
        known.member(here, member)
    confirm(f"Let go of {member}?", yes, as_json)
    emit(as_json, here.target("pool.remove", member=member), f"the pool has let go of {member}")


@click.command("clear-errors")
@click.argument("member", required=False, shell_complete=names.members)
@json_option
@pass_node
def clear_errors(here: Node, member: str | None, as_json: bool) -> None:
    """Set the counts of errors of MEMBER, or of all members, to 0: what was wrong has been seen to.

    They are kept as long as a member is one, over restarts.
    """
    member = member_path(member) if member else ""
    found = here.target("pool.clear_errors", member=member)
    emit(as_json, found, f"the counts of {found['members']} member(s) are 0 again")


@click.group()
def spare() -> None:
    """Hot spares: they take the place of a member that is lost, by themselves."""


@spare.command("add")
@click.argument("member")
@click.option("--group", "raid_group", metavar="GROUP", help="Only for this RAID group; else for all.")
@force_option("Take it although it holds something, and overwrite that.")
@json_option
@pass_node
def spare_add(here: Node, member: str, raid_group: str | None, force: bool, as_json: bool) -> None:
    """Make MEMBER (a file, a disk or an NBD URI) a spare. Of several that fit, the smallest is taken first."""
    member = member_path(member)
    more = {"raid_group": raid_group} if raid_group else {}
    status = here.target("pool.spare_add", member=member, force=force, wait_s=60, **more)
    emit(as_json, status, f"{member} is a spare of {raid_group or 'all RAID groups'}")


@spare.command("remove")
@click.argument("member")
@json_option
@pass_node
def spare_remove(here: Node, member: str, as_json: bool) -> None:
    """Free the spare MEMBER."""
    member = member_path(member)
    if not any(member in (one["path"], one["uuid"]) for one in here.target("pool.spare_list")):
        raise Refused(f"{member} is not a spare", "farstripe pool spare list shows them")
    emit(as_json, here.target("pool.remove", member=member), f"{member} is no spare any more")


@spare.command("list")
@json_option
@pass_node
def spare_list(here: Node, as_json: bool) -> None:
    """List the spares."""
    spares = here.target("pool.spare_list")
    if as_json:
        emit(True, spares)
    else:
        _show_spares(spares)


@click.command("rebuild-limit")
@click.argument("speed", type=SizeType(1), metavar="BYTES_PER_SECOND")
@json_option
@pass_node
def rebuild_limit(here: Node, speed: int, as_json: bool) -> None:
    """Let rebuilds and replacements write at most BYTES_PER_SECOND, as in 50M; 0 lifts the limit.

    While hosts are at work a rebuild takes half of the time at most, with or without a limit.
    """
    status = here.target("pool.rebuild_limit", bytes_s=speed)
    emit(as_json, status, f"rebuilds write at most {format_size(speed)}/s" if speed else "rebuilds have no limit")


@click.command()
@force_option("Destroy the volumes that are left with it.")
@yes_option
@json_option
@pass_node
def destroy(here: Node, force: bool, yes: bool, as_json: bool) -> None:
    """Destroy this node's pool: its members are free for other uses, what it held is gone.

    Refused while there are volumes, unless forced; and always while one is in a group or open.
    """
    found = here.target("pool.status")
    lost = f" and its {len(found['volumes'])} volumes" if found["volumes"] else ""
    confirm(f"Destroy pool {found['name']}{lost}? Nothing brings it back.", yes, as_json)
    done = here.target("pool.destroy", force=force, wait_s=300)
    left = "".join(f"; not erased: {line}" for line in done["not_erased"])
    emit(as_json, done, f"pool {found['name']} is destroyed{left}")


COMMANDS: tuple[click.Command, ...] = (readd, remove, clear_errors, spare, rebuild_limit, destroy)
