"""Control operations on the load of the pool: pool.stats, pool.stats_switch, pool.balance and its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments
from raidlib import balance
from replicator.core.errors import Refused

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from raidlib.loads import Loads
    from raidlib.stats import Rates
    from replicator.control import Handler

LEAST_AGE_S = 60.0
"""Nothing is moved on statistics younger than that, unless it is forced."""


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    pools, sampling = target.pools, target.sampling

    def loads(placed_too: bool = False) -> Loads:
        return pools.require().loads(sampling.rates(), pools.relocations.resting(), placed_too)

    def stats(args: dict[str, Any]) -> dict[str, Any]:
        top = arguments.integer(args, "top", 20, high=1 << 20)
        name = args.get("volume") and pools.require().volume(arguments.text(args, "volume")).name
        pool, found = pools.require(), loads()
        areas = [
            {
                "volume": area.volume,
                "area": area.index,
                "start": area.index * pool.area_bytes,
                "raid_group": area.group,
                "images": found.area_rates[area.order].images,
                **_rates(found.area_rates[area.order].rates),
            }
            for area in found.areas
            if area.order in found.area_rates and (not name or name in found.area_rates[area.order].images)
        ]
        groups = [
            {"name": group.name, "level": group.level, **_rates(found.group_rates[group.name])}
            for group in found.groups
        ]
        return {
            "on": sampling.on,
            "age_s": sampling.age_s(),
            "area_bytes": pool.area_bytes,
            "groups": groups,
            "areas": areas[:top],
            "more_areas": max(len(areas) - top, 0),
        }

    def switch(args: dict[str, Any]) -> dict[str, Any]:
        sampling.switch(arguments.flag(args, "on"))
        return {"on": sampling.on}

    def plan(args: dict[str, Any]) -> dict[str, Any]:
        apply, force = arguments.flag(args, "apply"), arguments.flag(args, "force")
        most = arguments.integer(args, "most", balance.MOST_MOVES, low=3, high=4096)
        pools.require()
        if not sampling.on:
            raise Refused("there are no statistics to balance by: they are off", "farstripe pool stats --on")
        if apply and not force and sampling.age_s() < LEAST_AGE_S:
            raise Refused(
                f"the statistics are {sampling.age_s():.0f} s old, which is too young to move anything by",
                f"wait until they are {LEAST_AGE_S:.0f} s old, or use --force",
            )
        found = loads(arguments.flag(args, "placed_too"))
        made = balance.plan(found.groups, found.areas, most)
        if apply:
            pools.relocations.add(made.moves)
            target.maintenance.move_soon()
        return {"applied": apply, "age_s": sampling.age_s(), **_plan(made)}

    def progress(args: dict[str, Any]) -> dict[str, Any]:
        return pools.relocations.report()

    def cancel(args: dict[str, Any]) -> dict[str, Any]:
        return {"cancelled": pools.relocations.cancel()}

    return {
        "pool.stats": stats,
        "pool.stats_switch": switch,
        "pool.balance": plan,
        "pool.balance_progress": progress,
        "pool.balance_cancel": cancel,
    }


def _rates(rates: Rates) -> dict[str, Any]:
    return {"requests": rates.requests, "bytes": rates.bytes, "utilisation": rates.utilisation}


def _plan(made: balance.Plan) -> dict[str, Any]:
    return {
        "moves": [
            {
                "volume": move.volume,
                "area": move.index,
                "from": move.source,
                "to": move.target,
                "utilisation": move.utilisation,
                "reason": move.reason,
            }
            for move in made.moves
        ],
        "skipped": [
            {"volume": area.volume, "area": area.index, "raid_group": area.group, "reason": why}
            for area, why in made.skipped
        ],
        "groups": [{"name": name, "before": before, "after": made.after[name]} for name, before in made.before.items()],
        "more": made.more,
    }
