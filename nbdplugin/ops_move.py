"""Control operations on where areas lie: volume.map, .extend, .move, .move_cancel; pool.add_group, .grow,
.remove_group, .keep_group, .check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments
from nbdplugin.exports import refuse_if_grouped
from nbdplugin.poolhost import group_specs
from replicator.core.errors import BadInput

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    pools, exports = target.pools, target.exports

    def where(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.text(args, "name")
        pool = pools.require()
        moves = [move for move in pool.moves() if move["volume"] == name]
        return {"name": name, "ranges": pool.volume_map(name), "moves": moves}

    def extend(args: dict[str, Any]) -> dict[str, Any]:
        start, length = arguments.integer(args, "start"), arguments.size(args, "length")
        raid_group = arguments.text(args, "raid_group")
        with pools.changing:
            route = exports.get(arguments.text(args, "name"))
            refuse_if_grouped(route, "extended")
            first, end = pools.extend_volume(route, start, length, raid_group)
            return {"name": route.name, "size": route.volume.size, "mapped_start": first, "mapped_end": end}

    def move(args: dict[str, Any]) -> dict[str, Any]:
        name, raid_group = arguments.text(args, "name"), arguments.text(args, "raid_group")
        size = pools.require().volume(name).size
        start = arguments.integer(args, "start", 0)
        length = arguments.integer(args, "length", max(size - start, 1), low=1)
        first, end = pools.move(name, start, length, raid_group)
        target.maintenance.move_soon()
        return {"name": name, "raid_group": raid_group, "start": first, "end": end}

    def cancel(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.text(args, "name")
        return {"name": name, "cancelled": pools.cancel_move(name)}

    def add_group(args: dict[str, Any]) -> dict[str, Any]:
        group = args.get("group")
        if isinstance(group, dict) and group.get("checksums") is None:
            # What moves to it, or comes to lie on it because the others are full, is to be as safe as where it was.
            group = group | {"checksums": all(one["checksums"] for one in pools.status()["groups"])}
        [spec] = group_specs([group])
        pools.add_group(spec, arguments.flag(args, "force"))
        return pools.status()

    def grow(args: dict[str, Any]) -> dict[str, Any]:
        raid_group = args.get("name") and arguments.text(args, "name")
        return pools.grow(raid_group, arguments.flag(args, "dry_run"))

    def remove_group(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.text(args, "name")
        areas = pools.remove_group(name)
        target.maintenance.move_soon()
        return {"name": name, "areas": areas}

    def keep_group(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.text(args, "name")
        pools.keep_group(name)
        return {"name": name}

    def check(args: dict[str, Any]) -> dict[str, Any]:
        return pools.check()

    return {
        "volume.map": where,
        "volume.extend": extend,
        "volume.move": move,
        "volume.move_cancel": cancel,
        "pool.add_group": add_group,
        "pool.grow": grow,
        "pool.remove_group": remove_group,
        "pool.keep_group": keep_group,
        "pool.check": check,
    }


def placement(args: dict[str, Any]) -> list[tuple[int, int, str]]:
    """The optional argument `placement` of volume.create: a list of {start, length, raid_group}. Raises BadInput."""
    value = args.get("placement") or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadInput("the argument 'placement' must be a list of {start, length, raid_group}")
    return [
        (
            arguments.integer(one, "start"),
            arguments.integer(one, "length", low=1),
            arguments.text(one, "raid_group"),
        )
        for one in value
    ]
