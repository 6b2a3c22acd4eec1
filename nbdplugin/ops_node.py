"""Control operations on the node itself: node.info, node.stop, events.list."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nbdplugin import arguments

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""

    def info(args: dict[str, Any]) -> dict[str, Any]:
        pool = target.pools.pool
        return {
            "node_id": target.config.node_id,
            "name": target.config.name,
            "pid": os.getpid(),
            "started": target.started_at,
            "nbd": {
                "socket": str(target.run_dir / "nbd.sock"),
                "address": target.config.nbd_address,
                "port": target.config.nbd_port,
            },
            "threads": target.config.threads,
            "pool": pool.name if pool is not None else None,
            "volumes": len(target.exports.routes()),
            "groups": target.groups.names(),
        }

    def stop(args: dict[str, Any]) -> dict[str, Any]:
        target.request_stop("asked for by node.stop")
        return {"pid": os.getpid()}

    def events_list(args: dict[str, Any]) -> list[dict[str, Any]]:
        return target.events.since(arguments.integer(args, "since", 0), arguments.integer(args, "limit", 2000, low=1))

    return {"node.info": info, "node.stop": stop, "events.list": events_list}
