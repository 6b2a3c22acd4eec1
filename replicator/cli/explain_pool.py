"""Why the pool is not as it should be, and what to do: one entry for each RAID group and member that is not well.

named() tells of one of them by name, also when it is well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from replicator.cli import known
from replicator.cli.units import format_duration, format_size


def troubles(status: dict[str, Any]) -> list[dict[str, Any]]:
    """{name, state, why, means, then, commands} for everything in the pool's status that needs words."""
    found: list[dict[str, Any]] = []
    for group in status["groups"]:
        found += _group(group, status)
    for move in status.get("moves", ()):
        found.append(
            _entry(
                f"volume {move['volume']}", f"moving to RAID group {move['group']}", "it was asked for",
                f"{move['remaining']} of {move['areas']} areas are still elsewhere; reads and writes go on, and a crash"
                " does not begin it anew",
                "wait; when it does not get on, farstripe events says what the target lacks; or end it where it is",
                "farstripe events", f"farstripe volume move {move['volume']} --cancel",
            )
        )  # fmt: skip
    for spare in status.get("spares", ()):
        if not spare["there"]:
            path = spare["path"]
            found.append(_entry(path, "spare missing", "it was not found when the pool was opened",
                                "it cannot take a lost member's place", "attach it and restart the node, or give it up",
                                f"farstripe pool spare remove {path}"))  # fmt: skip
    return found


def named(status: dict[str, Any], name: str) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(kind, what it is, entries) of every RAID group, member and spare of that name.

    A member is meant by its path, its uuid, or the last part of its path.
    """
    found = [
        ("raid-group", f"RAID group {name}", [*_group(group, status)] or [_well(group)])
        for group in status["groups"]
        if group["name"] == name
    ]
    paths = {one["path"] for one in known.members(status) if name in (one["path"], one.get("uuid"))}
    paths = paths or {one["path"] for one in known.members(status) if os.path.abspath(name) == one["path"]}
    paths = paths or {one["path"] for one in known.members(status) if os.path.basename(one["path"]) == name}
    return found + [("member", f"member {path}", _of_member(status, path)) for path in sorted(paths)]


def text(entry: dict[str, Any]) -> str:
    """The entry in lines."""
    lines = [f"{entry['name']}: {entry['state']}"]
    lines += [f"  why:      {entry['why']}", f"  means:    {entry['means']}", f"  do next:  {entry['then']}"]
    return "\n".join([*lines, *(f"            {command}" for command in entry["commands"])])


def _group(group: dict[str, Any], status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    away = [m for m in group["members"] if m["state"] != "in_sync"]
    if group["state"] == "lost":
        yield _entry(
            f"RAID group {group['name']}", "lost", f"{', '.join(m['path'] for m in away)} failed: more than"
            f" RAID-{group['level']} bears", "its volumes give errors, and no wrong bytes",
            "take over on the peer; or attach the members again and restart; what they hold may be old",
            "farstripe takeover GROUP", "farstripe node start --force",
        )  # fmt: skip
    elif away:
        yield _entry(
            f"RAID group {group['name']}", "degraded",
            f"{len(away)} of {len(group['members'])} members are not in sync",
            "everything is there and can be written; redundancy is less than the level gives, and reads are slower",
            "see to the members named below", "farstripe pool status",
        )  # fmt: skip
    if group.get("draining"):
        used = format_size(group["size"] - group["free"])
        yield _entry(
            f"RAID group {group['name']}", "being removed", "the operator asked for it",
            f"{used} of it move to the other groups; when the last has moved, its members are free",
            "wait; it gets no further when the others are full: add a group, trim or delete volumes; or keep it",
            "farstripe pool status", f"farstripe pool keep-group {group['name']}",
        )  # fmt: skip
    if group.get("lost_blocks") or group.get("unsettled_blocks"):
        lost, torn = group.get("lost_blocks", 0), group.get("unsettled_blocks", 0)
        yield _entry(
            f"RAID group {group['name']}", "has damaged blocks",
            f"{lost} blocks of 4096 bytes could not be restored; {torn} were being written at an unclean stop",
            "reads of a lost block give an error; one that was being written holds what it held, as a disk would",
            "find out whose they are; write lost ones anew from a backup, or take over on the replica",
            f"farstripe pool scrub {group['name']} --check", "farstripe pool status --json",
        )  # fmt: skip
    if group.get("areas") and group["free_areas"] * 20 < group["areas"]:
        yield _entry(
            f"RAID group {group['name']}", "nearly full",
            f"{format_size(group['free'])} of {format_size(group['size'])} are free",
            "writes to new places, and the first write to a place that a snapshot shares, fail when nothing is left",
            "delete snapshots or volumes, trim filesystems (fstrim), move volumes, enlarge all members, or add a group",
            "farstripe volume list", f"farstripe pool grow {group['name']}",
            "farstripe pool add-group LEVEL MEMBER...",
        )  # fmt: skip
    for member in group["members"]:
        yield from _member(member, status)


def _well(group: dict[str, Any]) -> dict[str, Any]:
    return _entry(
        f"RAID group {group['name']}", group["state"], f"all of its {len(group['members'])} members are in sync",
        f"RAID-{group['level']}, {format_size(group['free'])} of {format_size(group['size'])} are free",
        "nothing", "farstripe pool status",
    )  # fmt: skip


def _of_member(status: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Entries of one member, member to be, or spare."""
    for group in status["groups"]:
        for one in group["members"]:
            new = (one.get("replacement") or {}).get("path")
            if path in (one["path"], new):
                well = _entry(
                    f"member {path}", one["state"].replace("_", " "), "nothing is wrong with it",
                    f"it belongs to RAID group {group['name']}", "nothing", "farstripe pool status",
                )  # fmt: skip
                return [*_member(one, status)] or [well]
    [spare] = [one for one in status["spares"] if one["path"] == path]
    missing = [entry for entry in troubles(status) if entry["name"] == path]
    serves = f"RAID group {spare['group']}" if spare.get("group") else "every RAID group"
    well = _entry(
        f"spare {path}", "ready", "nothing is wrong with it",
        f"it takes the place of a member of {serves} that is lost, by itself", "nothing", "farstripe pool spare list",
    )  # fmt: skip
    return missing or [well]


def _member(member: dict[str, Any], status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    path, name = member["path"], f"member {member['path']}"
    work = next((w for w in status.get("rebuilds", ()) if path in (w["member"], w["replaces"])), None)
    if member["state"] == "failed" and member.get("away"):
        yield _entry(
            name, "away", member["reason"] or "it vanished, or was stopped in order",
            "what it held is right but for what was written since; that is remembered",
            "attach it again and take it back, which copies only the difference; or put another one in its place",
            f"farstripe pool readd {path}", f"farstripe pool replace {path} NEW",
        )  # fmt: skip
    elif member["state"] == "failed":
        yield _entry(
            name, "failed", member["reason"] or "no reason is known",
            "it is neither read nor written; what it holds is not trusted any more",
            "put another one in its place", f"farstripe pool replace {path} NEW", "farstripe pool spare add NEW",
        )  # fmt: skip
    elif member["state"] == "rebuilding":
        how = (
            "it was away: what it missed is copied" if work and work["by_difference"] else "it took a lost one's place"
        )
        yield _entry(name, "rebuilding", member["reason"] or how,
                     "what is done of it is read and written already; a crash does not begin it anew",
                     f"wait{_left(work)}", "farstripe pool status")  # fmt: skip
    if new := member.get("replacement"):
        yield _entry(
            name, f"being replaced by {new['path']}", "the operator asked for it",
            "it stays a full member until the new one is complete; nothing is lost if either fails",
            f"wait{_left(work)}; or give it up", f"farstripe pool remove {new['path']}",
        )  # fmt: skip
    if member["state"] != "failed" and (wrong := member.get("checksum_errors", 0) + member.get("read_errors", 0)):
        yield _entry(
            name, "gives errors", f"{wrong} reads failed or did not fit their checksum since it is a member",
            f"{member.get('repaired', 0)} places were written anew from redundancy; more may come",
            "look at the disk; see by a scrub what else is wrong; replace it, which keeps redundancy meanwhile; or"
            " clear the counts, when what was wrong has been seen to",
            "farstripe pool scrub --check", f"farstripe pool replace {path} NEW", f"farstripe pool clear-errors {path}",
        )  # fmt: skip
    long = member.get("slow_requests", 0)
    if long or member.get("slow"):
        recent = f", the longest since the start {member['slowest_s']} s" if member["slowest_s"] > 2 else ""
        counted = [f"{long} requests took more than 2 s{recent}"] if long else []
        yield _entry(
            name, "slow", "; ".join([*counted, member.get("slow", "")]).removesuffix("; "),
            "requests of all volumes of its group wait for it; whether to go on with it is your choice",
            "look at the disk; or replace it, which keeps redundancy meanwhile", f"farstripe pool replace {path} NEW",
        )  # fmt: skip


def _left(work: dict[str, Any] | None) -> str:
    if work is None:
        return ""
    time_left = f", about {format_duration(work['left_s'])}" if work.get("left_s") is not None else ""
    return f": {format_size(work['remaining_bytes'])} to do{time_left}"


def _entry(name: str, state: str, why: str, means: str, then: str, *commands: str) -> dict[str, Any]:
    return {"name": name, "state": state, "why": why, "means": means, "then": then, "commands": list(commands)}
