"""Control operations on scrubs: pool.scrub.*. What they mean and make durable, raidlib.scrubs.Scrubs says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbdplugin import arguments
from replicator.core.errors import BadInput

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from raidlib.pool import Pool
    from replicator.control import Handler

MODES = ("check", "repair")


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name. All take an optional `group`, the RAID group's name, and return every group's scrub."""
    pools = target.pools

    def start(args: dict[str, Any]) -> dict[str, Any]:
        mode = arguments.text(args, "mode", "check")
        if mode not in MODES:
            raise BadInput(f"the argument 'mode' must be check or repair, not {mode!r}")
        limit = arguments.integer(args, "limit_bytes_s", 0, high=1 << 50)
        pools.require().scrub_start(_group(args), repair=mode == "repair", limit_bytes_s=limit)
        target.scrubber.soon()
        return pools.require().scrub_status()

    def on(turn: Callable[[Pool, str | None], None]) -> Handler:
        def handler(args: dict[str, Any]) -> dict[str, Any]:
            turn(pools.require(), _group(args))
            target.scrubber.soon()
            return pools.require().scrub_status()

        return handler

    return {
        "pool.scrub.start": start,
        "pool.scrub.pause": on(lambda pool, group: pool.scrub_pause(group)),
        "pool.scrub.resume": on(lambda pool, group: pool.scrub_resume(group)),
        "pool.scrub.stop": on(lambda pool, group: pool.scrub_stop(group)),
        "pool.scrub.status": lambda args: pools.require().scrub_status(),
    }


def _group(args: dict[str, Any]) -> str | None:
    return arguments.text(args, "group") if args.get("group") is not None else None
