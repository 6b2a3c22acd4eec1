"""Taking a group of this node back to snapshots of its volumes, so that it becomes primary as it was then."""

from __future__ import annotations

from collections.abc import Mapping

from nbdplugin.poolhost import PoolHost
from replicator.capture.engine import GroupEngine
from replicator.capture.rewind import rewind
from replicator.core.errors import Refused

LOCK_S = 1.0
"""How long whoever changes the pool's shape is waited for, before it is tried again."""


def check_volumes(engine: GroupEngine, snapshots: Mapping[str, str], what: str) -> None:
    """Raise Refused unless the group has the volumes of an image: `snapshots`, volume -> snapshot."""
    if {str(volume["name"]) for volume in engine.state.volumes} != set(snapshots):
        raise Refused(f"group {engine.state.name} had other volumes at {what}")


def stand_at(
    pools: PoolHost, engine: GroupEngine, seq: int, epoch: int, snapshots: Mapping[str, str], what: str
) -> None:
    """Make a secondary hold what an image holds, which was taken after record `seq` of `epoch`, and nothing after it.

    The caller holds apply_lock, and nothing is being received. May be repeated. Durable on return. Raises as rewind().
    """
    check_volumes(engine, snapshots, what)
    changed: dict[int, list[tuple[int, int]]] = {}
    pool = pools.require()
    for volume in engine.state.volumes:
        changed[volume["index"]] = pool.snapshot_diff(snapshots[volume["name"]], volume["name"])

    def restore() -> None:
        with pools.changing_soon(LOCK_S):
            for name, snapshot in snapshots.items():
                pool.rollback(name, snapshot)

    rewind(engine, seq, epoch, changed, restore)
