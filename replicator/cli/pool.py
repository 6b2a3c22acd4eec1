"""farstripe pool: the RAID-striped pool of this node."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click

from replicator.cli import balance, groups, known, names, progress, where
from replicator.cli.access import Node, pass_node
from replicator.cli.output import UNKNOWN, confirm, emit, force_option, json_option, table, yes_option
from replicator.cli.pool_members import COMMANDS, is_uri, member_path, show_work
from replicator.cli.poolscrub import scrub, show_health
from replicator.cli.units import SecondsType, SizeType, format_size
from replicator.control import someone_listens
from replicator.core.errors import (
    AlreadyExists,
    BadInput,
    DaemonNotRunning,
    FarstripeError,
    InternalError,
    MediumError,
    ProtocolError,
    TimedOut,
)
from replicator.core.sizes import parse_size

_GROUP = re.compile(r"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)=)?raid(?P<level>0|1|5|6|10)(?:@(?P<chunk>\w+))?")
GOOD, BAD = "in_sync", "failed"
OVERWRITE = "Take disks or files that hold a file system, a partition table or the like, and overwrite what they hold."
LEAST_MEMBERS = {0: 1, 1: 2, 5: 3, 6: 4, 10: 4}


@click.group()
def pool() -> None:
    """The RAID-striped pool that this node's volumes lie on.

    A node has one pool; a pool has one or more RAID groups; a group has members, which are files, disks or NBD exports.
    """


for _command in COMMANDS:
    pool.add_command(_command)


def parse_layout(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the RAID groups that the words describe, members as absolute paths. Raises BadInput.

    A word like `raid6`, `data=raid6` or `data=raid6@128K` begins a group; the words after it are its members.
    """
    groups: list[dict[str, Any]] = []
    for word in words:
        match = _GROUP.fullmatch(word)
        if match and not os.path.exists(word):
            groups.append(_new_group(match, groups))
        elif not groups:
            raise BadInput(f"{word!r} comes before any RAID level", "begin with raid0, raid1, raid5, raid6 or raid10")
        else:
            groups[-1]["members"].append(member_path(word))
    if not groups:
        raise BadInput("a pool needs at least one RAID group", "say for example: raid6 /disks/{0..5}")
    seen: dict[str, str] = {}
    for group in groups:
        least = LEAST_MEMBERS[group["level"]]
        if len(group["members"]) < least:
            raise BadInput(
                f"RAID group {group['name']} has {len(group['members'])} members; RAID-{group['level']} needs {least}",
                "name more files or disks after the level, or take a lower level",
            )
        for member in group["members"]:
            real = member if is_uri(member) else os.path.realpath(member)
            if real in seen:
                raise BadInput(
                    f"{member} is named twice (RAID groups {seen[real]} and {group['name']})", "name every member once"
                )
            seen[real] = group["name"]
    return groups


def _new_group(match: re.Match[str], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    level = int(match["level"])
    names = [group["name"] for group in groups]
    name = match["name"] or f"raid{level}"
    number = 2
    while not match["name"] and name in names:
        name = f"raid{level}-{number}"
        number += 1
    if name in names:
        raise BadInput(f"two RAID groups are named {name!r}", "take another name, as in: data2=raid6 /disks/{0..5}")
    group: dict[str, Any] = {"name": name, "level": level, "members": []}
    if match["chunk"]:
        try:
            group["chunk"] = parse_size(match["chunk"])
        except ValueError as exc:
            raise BadInput(f"the chunk of RAID group {name}: {exc}") from exc
    return group


@pool.command()
@click.argument("name")
@click.argument("layout", nargs=-1, required=True, metavar="LEVEL MEMBER... [LEVEL MEMBER...]...")
@click.option("--make-files", type=SizeType(4096, 1 << 20), metavar="SIZE",
              help="Make every member first, as a sparse file of this size.")  # fmt: skip
@click.option("--area", "area_bytes", type=SizeType(4096), default="4M", show_default=True,
              help="Unit in which volumes take space.")  # fmt: skip
@click.option("--checksums", is_flag=True,
              help="Keep a CRC32C of every block: silent corruption is found at every read.")  # fmt: skip
@force_option(OVERWRITE)
@json_option
@pass_node
def create(
    here: Node,
    name: str,
    layout: tuple[str, ...],
    make_files: int | None,
    area_bytes: int,
    checksums: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make the pool NAME.

    LEVEL is raid0, raid1, raid5, raid6 or raid10, optionally with a name for the RAID group and a chunk size;
    MEMBER is a file, a disk or an NBD URI.

    \b
      farstripe pool create main raid6 /disks/{0..5} raid0 /scratch/{0..1}
      farstripe pool create main safe=raid6@128K /dev/sd{b..g}
      farstripe pool create lab raid6 /tmp/lab/{0..5} --make-files 1G
      farstripe pool create sure raid6 /dev/sd{b..g} --checksums

    Disks and files that hold something (a file system, a partition table, encrypted data, swap) are refused without
    --force; members of a pool are refused always. Members are opened by the target and by nobody else.
    """
    groups = parse_layout(layout)
    if checksums:
        groups = [group | {"checksums": True} for group in groups]
    members = [member for group in groups for member in group["members"]]
    with _made_files(here, members, make_files):
        status = here.target("pool.create", name=name, groups=groups, area_bytes=area_bytes, force=force, wait_s=300)
    emit(as_json, status, f"pool {name} made: {len(groups)} RAID group(s), {len(members)} members")


@contextlib.contextmanager
def _made_files(here: Node, paths: Sequence[str], size: int | None) -> Iterator[None]:
    """Make member files of `size` bytes for what is asked of the target inside; nothing without a size.

    They go again when the target says no, and only then: after Ctrl-C, a timeout or a lost connection it may be using
    them.
    """
    made = _make_files(paths, size) if size and someone_listens(here.socket("target")) else []
    try:
        yield
    except FarstripeError as exc:
        if not isinstance(exc, (DaemonNotRunning, TimedOut, ProtocolError, InternalError)):
            for path in made:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        raise


def _make_files(paths: Sequence[str], size: int) -> list[str]:
    made: list[str] = []
    try:
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            made.append(path)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)
    except OSError as exc:
        for done in made:
            os.unlink(done)
        if isinstance(exc, FileExistsError):
            raise AlreadyExists(f"{exc.filename} exists already", "leave --make-files out to use it as it is") from None
        raise MediumError(f"cannot make {exc.filename or 'a member file'}: {exc.strerror}") from exc
    return made


@pool.command()
@json_option
@pass_node
def status(here: Node, as_json: bool) -> None:
    """Show RAID groups, members, space, and rebuilds and moves that are under way."""
    found = here.target("pool.status")
    groups = found.get("groups", [])
    if as_json:
        emit(True, found)
        return
    click.echo(f"pool {found.get('name', UNKNOWN)}, parity by {found.get('parity', UNKNOWN)}")
    rows = [
        (
            group["name"],
            f"RAID-{group['level']}" + (", checksums" if group.get("checksums") else ""),
            group["state"] + (", being removed" if group.get("draining") else ""),
            f"{sum(member['state'] == GOOD for member in group['members'])}/{len(group['members'])} in sync",
            format_size(group["chunk_bytes"]),
            format_size(group["size"]),
            format_size(group["free"]),
        )
        for group in groups
    ]
    table(False, None, ("raid group", "level", "state", "members", "chunk", "size", "free"), rows, "no RAID groups")
    for group in groups:
        if group.get("growable"):
            name, more = group["name"], format_size(group["growable"])
            click.echo(f"the members of {name} have room to grow by {more}: farstripe pool grow {name}")
    ill = [
        (m["path"], g["name"], _member_state(m), m.get("reason") or "-")
        for g in groups
        for m in g["members"]
        if m["state"] != GOOD
    ]
    if ill:
        click.echo()
        table(False, None, ("member", "raid group", "state", "reason"), ill, "")
    show_health(found)
    for move in found.get("moves", ()):
        done, areas = move["areas"] - move["remaining"], move["areas"]
        click.echo(f"{move['volume']} moves to {move['group']}: {done} of {areas} areas")
    show_work(found)
    for remark in found.get("remarks", ()):
        click.echo(f"remark: {remark}")


def _member_state(member: dict[str, Any]) -> str:
    share = member.get("rebuilt")
    return f"{member['state']}, {100 * share:.0f} % done" if share is not None else str(member["state"])


@pool.command()
@click.argument("old", shell_complete=names.members)
@click.argument("new")
@click.option("--make-file", type=SizeType(4096, 1 << 20), metavar="SIZE", help="Make NEW first, as a sparse file.")
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait for the rebuild, with a progress bar.")
@click.option("--timeout", "timeout_s", type=SecondsType(0), metavar="SECONDS",
              help="With --wait: give up waiting after this.")  # fmt: skip
@force_option(OVERWRITE)
@json_option
@pass_node
def replace(
    here: Node,
    old: str,
    new: str,
    make_file: int | None,
    wait_for_it: bool,
    timeout_s: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Put the member NEW in the place of OLD, which may be lost or still there.

    I/O goes on meanwhile. An OLD that works stays a full member until NEW is complete, also on RAID 0; a lost one is
    rebuilt with the redundancy that is left. NEW may be an NBD URI. What holds something already is refused without
    --force.
    """
    old, new = member_path(old), member_path(new)
    with _made_files(here, [new], make_file):
        status = here.target("pool.replace", old=old, new=new, force=force, wait_s=300)
    if wait_for_it:
        status = wait_for_rebuild(here, new, timeout_s, show=not as_json)
    emit(as_json, status, f"{new} {'is complete' if wait_for_it else 'is being filled'} in the place of {old}")


def wait_for_rebuild(here: Node, member: str, timeout_s: float | None, show: bool) -> dict[str, Any]:
    """Wait until `member` is whole; returns the pool's status. Raises MediumError when it fails meanwhile."""
    latest: dict[str, Any] = {}

    def look() -> progress.Look:
        nonlocal latest
        latest = here.target("pool.status")
        work = {one["member"]: one for one in latest.get("rebuilds", ())}
        if member in work:
            return progress.Look(False, work[member]["remaining_bytes"], work[member]["total_bytes"])
        for group in latest["groups"]:
            for one in group["members"]:
                if one["path"] != member:
                    continue
                if one["state"] == BAD:
                    raise MediumError(
                        f"{member} failed: {one.get('reason') or 'no reason known'}", "see farstripe events"
                    )
                return progress.Look(one["state"] == GOOD)
        raise MediumError(f"{member} is not a member any more", "farstripe events tells why")

    progress.wait(look, f"rebuild of {member}", timeout_s, show)
    return latest


@pool.command()
@click.argument("member", shell_complete=names.members)
@yes_option
@json_option
@pass_node
def fail(here: Node, member: str, yes: bool, as_json: bool) -> None:
    """Declare MEMBER lost: it is not read or written any more, also after a restart.

    Refused when the RAID group has no redundancy left to do without it.
    """
    member = member_path(member)
    if not yes:
        known.member(here, member)
    confirm(f"Declare {member} lost? Its RAID group loses redundancy until it is replaced.", yes, as_json)
    emit(
        as_json, here.target("pool.fail", member=member), f"{member} counts as lost; replace it: farstripe pool replace"
    )


@pool.command("add-group")
@click.argument("layout", nargs=-1, required=True, metavar="LEVEL MEMBER...")
@click.option("--make-files", type=SizeType(4096, 1 << 20), metavar="SIZE",
              help="Make every member first, as a sparse file of this size.")  # fmt: skip
@click.option("--checksums/--no-checksums", default=None,
              help="Keep a CRC32C of every block; without either: if all groups so far do.")  # fmt: skip
@force_option(OVERWRITE)
@json_option
@pass_node
def add_group(
    here: Node, layout: tuple[str, ...], make_files: int | None, checksums: bool | None, force: bool, as_json: bool
) -> None:
    """Let the pool grow by a RAID group, while it is used. LEVEL MEMBER... as in pool create.

    \b
      farstripe pool add-group fast=raid10 /dev/nvme{0..3}n1
    """
    found = parse_layout(layout)
    if len(found) != 1:
        raise BadInput(f"{len(found)} RAID groups are named", "add them one by one")
    if checksums is not None:
        found[0]["checksums"] = checksums
    with _made_files(here, found[0]["members"], make_files):
        status = here.target("pool.add_group", group=found[0], force=force, wait_s=300)
    emit(as_json, status, f"RAID group {found[0]['name']} is part of the pool")


for _command in (where.check, scrub, *groups.COMMANDS, *balance.COMMANDS):
    pool.add_command(_command)
