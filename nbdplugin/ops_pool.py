"""Control operations on the pool and its volumes: pool.* and volume.*."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments, listchange
from nbdplugin.exports import refuse_if_grouped, refuse_if_open, writable
from nbdplugin.ops_move import placement

if TYPE_CHECKING:
    from nbdplugin.routes import VolumeRoute
    from nbdplugin.target import Target
    from replicator.control import Handler


def pool_handlers(target: Target) -> dict[str, Handler]:
    """The pool.* operations, by name."""
    pools = target.pools

    def create(args: dict[str, Any]) -> dict[str, Any]:
        pools.create(
            arguments.name(args),
            args.get("groups"),
            arguments.integer(args, "area_bytes", 4 << 20, low=64 << 10, high=1 << 30),
            arguments.flag(args, "force"),
        )
        return pools.status()

    def status(args: dict[str, Any]) -> dict[str, Any]:
        return pools.status()

    def replace(args: dict[str, Any]) -> dict[str, Any]:
        old, new = arguments.text(args, "old"), arguments.member(args, "new")
        pools.replace(old, new, arguments.flag(args, "force"))
        target.maintenance.rebuild_soon()
        return pools.status()

    def fail(args: dict[str, Any]) -> dict[str, Any]:
        pools.fail(arguments.text(args, "member"))
        return pools.status()

    return {"pool.create": create, "pool.status": status, "pool.replace": replace, "pool.fail": fail}


def volume_handlers(target: Target) -> dict[str, Handler]:
    """The volume.* operations, by name."""
    pools, exports = target.pools, target.exports

    def create(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.name(args)
        raid_group = args.get("raid_group") and arguments.text(args, "raid_group")
        thin = arguments.flag(args, "thin", True)
        pools.create_volume(name, arguments.size(args), raid_group, thin, placement(args))
        return facts(exports.get(name))

    def facts(route: VolumeRoute) -> dict[str, Any]:
        return next(v for v in listing({}) if v["name"] == route.name)

    def listing(args: dict[str, Any]) -> list[dict[str, Any]]:
        if pools.pool is None:
            return []
        in_pool = {v["name"]: v for v in pools.status()["volumes"]}
        return [_facts(route, in_pool[route.name]) for route in exports.routes() if route.name in in_pool]

    def delete(args: dict[str, Any]) -> None:
        with pools.changing:
            route = exports.get(arguments.text(args, "name"))
            refuse_if_grouped(route, "deleted")
            pools.delete_volume(route)

    def resize(args: dict[str, Any]) -> dict[str, Any]:
        size, force = arguments.size(args), arguments.flag(args, "force")
        with pools.changing:
            route = exports.get(arguments.text(args, "name"))
            if route.group is not None and not route.blocked:
                listchange.resize(target.groups, pools, route, size, force)
                return facts(route)
            refuse_if_grouped(route, "resized")
            if size < route.volume.size:
                refuse_if_open(route, "resize")
            pools.resize_volume(route, size, force)
            return facts(route)

    return {
        "volume.create": create,
        "volume.list": listing,
        "volume.delete": delete,
        "volume.resize": resize,
    }


def _facts(route: VolumeRoute, in_pool: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": route.name,
        "uuid": in_pool["uuid"],
        "size": in_pool["size"],
        "allocated": in_pool["allocated"],
        "thin": in_pool["thin"],
        "raid_group": in_pool["group"],
        "kind": in_pool["kind"],
        "origin": in_pool["origin"],
        "created": in_pool["created"],
        "group": None,
        "role": None,
        "writable": writable(route),
        "writers": route.writers,
        "readers": route.readers,
    }
    if route.group is not None:
        state = route.group.engine.state
        facts.update(group=state.name, role=state.role, index=route.index)
    return facts
