"""Control operations on snapshots and clones: volume.snapshot, volume.clone, volume.rollback, volume.diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments
from nbdplugin.exports import refuse_if_grouped, refuse_if_inconsistent, refuse_if_writers
from replicator.core.errors import BadInput

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    pools, exports = target.pools, target.exports

    def check_consistent(names: list[str], done: str) -> None:
        for route in exports.routes():
            if route.name in names:
                refuse_if_inconsistent(route, done)

    def snapshot(args: dict[str, Any]) -> dict[str, Any]:
        volumes, names = arguments.names(args, "volumes"), arguments.names(args, "names")
        if len(volumes) != len(names):
            raise BadInput(f"{len(volumes)} volumes and {len(names)} names for snapshots", "give each its own name")
        checked = [arguments.name({"name": name}) for name in names]
        with pools.changing:
            check_consistent(volumes, "snapshotted")
            pools.snapshot(dict(zip(volumes, checked, strict=True)))
        return {"snapshots": [{"volume": v, "name": name} for v, name in zip(volumes, checked, strict=True)]}

    def clone(args: dict[str, Any]) -> dict[str, Any]:
        source, name = arguments.text(args, "source"), arguments.name(args)
        with pools.changing:
            check_consistent([source], "cloned")
            pools.clone(source, name)
        return {"source": source, "name": name, "size": exports.get(name).volume.size}

    def rollback(args: dict[str, Any]) -> dict[str, Any]:
        snapshot = arguments.text(args, "snapshot")
        with pools.changing:
            route = exports.get(arguments.text(args, "name"))
            refuse_if_grouped(route, "rolled back")
            refuse_if_writers(route, "rolled back")
            pools.rollback(route, snapshot)
            return {"name": route.name, "snapshot": snapshot, "size": route.volume.size}

    def diff(args: dict[str, Any]) -> dict[str, Any]:
        a, b = arguments.text(args, "a"), arguments.text(args, "b")
        ranges = pools.require().snapshot_diff(a, b)
        return {
            "a": a,
            "b": b,
            "bytes": sum(length for _, length in ranges),
            "ranges": [{"start": start, "length": length} for start, length in ranges],
        }

    return {
        "volume.snapshot": snapshot,
        "volume.clone": clone,
        "volume.rollback": rollback,
        "volume.diff": diff,
    }
