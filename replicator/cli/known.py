"""Whether what is to be deleted or given up is there: found out before anybody is asked whether he means it.

The target looks again when it is told to act. Every function raises NotFound.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from replicator.cli.access import Node
from replicator.core.errors import NotFound


def volume(here: Node, *names: str) -> None:
    """Volumes, snapshots or clones."""
    there = {one["name"] for one in here.target("volume.list")}
    for name in names:
        _require(name, there, f"no volume {name!r} on this node", "farstripe volume list shows them")


def group(here: Node, name: str) -> None:
    """A consistency group, also one that could not be opened."""
    there = {one.get(key) for one in here.target("group.list") for key in ("name", "uuid")}
    _require(name, there, f"no group {name!r} on this node", "farstripe group list shows them")


def raid_group(here: Node, name: str) -> None:
    """A RAID group of the pool."""
    there = {one["name"] for one in here.target("pool.status")["groups"]}
    _require(name, there, f"there is no RAID group {name}", "farstripe pool status shows them")


def member(here: Node, path: str) -> None:
    """A member, one that is being filled, or a spare, by its path or uuid."""
    there = {one.get(key) for one in members(here.target("pool.status")) for key in ("path", "uuid")}
    _require(path, there, f"{path} is not a member of the pool", "farstripe pool status shows them")


def members(status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that the status of a pool names as a member, a member to be, or a spare."""
    for group in status.get("groups", ()):
        for one in group.get("members", ()):
            yield one
            if one.get("replacement"):
                yield one["replacement"]
    yield from status.get("spares", ())


def _require(name: str, there: Container[object], message: str, way_out: str) -> None:
    if name not in there:
        raise NotFound(message, way_out)
