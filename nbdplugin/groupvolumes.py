"""What the list of a group's volumes needs of pool, files and exports; the order of steps is in capture/volumeset.py.

group.json lists at least the volumes that the group has: it is written before a volume joins and after one has left, so
that whoever cannot read the group's state keeps its hands off all of them. What the state says counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbdplugin.exports import Exports
from nbdplugin.poolhost import PoolHost
from replicator.capture.bitmaps import MapFile, blocks_of
from replicator.capture.service import GroupService
from replicator.core.errors import NotFound, Refused
from replicator.journal.files import MappedFile, sync_directory

LOCK_S = 5.0
Listed = Sequence[Mapping[str, Any]]


class GroupVolumes:
    """The VolumeHost of one group."""

    def __init__(self, directory: Path, pools: PoolHost, exports: Exports) -> None:
        self._directory = directory
        self._pools = pools
        self._exports = exports
        self.service: GroupService | None = None
        """None while the group is being opened."""
        self._served: list[Any] = []

    def provide(self, volume: Mapping[str, Any]) -> tuple[Any, str]:
        """See VolumeHost. One that is there is taken if it has this size, is nobody's, and was never written to."""
        name, size = str(volume["name"]), int(volume["size"])
        with self._pools.changing_soon(LOCK_S):
            try:
                route = self._exports.get(name)
            except NotFound:
                self._pools.create_volume(name, size)
                route = self._exports.get(name)
            ours = route.group is not None and route.group is self.service  # on its way into the group
            if not ours and (why := in_the_way(route, size, allocated(self._pools, name))):
                raise Refused(f"volume {name} of the group cannot be made here: {why}", "rename it or delete it here")
            return self._pools.require().volume(name), route.volume.uuid

    def serve(self, volumes: Sequence[Any]) -> None:
        """These are the group's volumes, in the pool."""
        self._served = list(volumes)

    def sync(self) -> None:
        """Make volumes durable in one round. Raises MediumError when a RAID group that one of them lies on is lost."""
        self._pools.require().sync(self._served[0])
        for volume in self._served[1:]:
            volume.raise_if_lost()

    def map_file(self, index: int, size: int) -> MapFile:
        """See VolumeHost."""
        return MappedFile(self._directory / f"bitmap.{index}", blocks_of(size))

    def resize(self, name: str, size: int) -> None:
        """See VolumeHost."""
        with self._pools.changing_soon(LOCK_S):
            self._pools.resize_volume(self._exports.get(name), size, True)

    def intend(self, volumes: Listed) -> None:
        """See VolumeHost."""
        write_list(self._directory, volumes)

    def settled(self, volumes: Listed) -> None:
        """See VolumeHost."""
        pool = self._pools.require()
        self.serve([pool.volume(v["name"]) for v in volumes])
        if self.service is not None:
            self._route(volumes, self.service)
        write_list(self._directory, volumes)
        kept = {f"bitmap.{v['index']}" for v in volumes}
        for path in self._directory.glob("bitmap.*"):
            if path.name not in kept:
                path.unlink()

    def _route(self, volumes: Listed, service: GroupService) -> None:
        wanted = {v["name"]: v["index"] for v in volumes}
        left = [r.name for r in self._exports.routes() if r.group is service and wanted.get(r.name) != r.index]
        self._exports.leave_group(left, self._pools.require().sync)
        here = {r.name for r in self._exports.routes() if r.group is service}
        self._exports.join_group({name: index for name, index in wanted.items() if name not in here}, service)


def allocated(pools: PoolHost, name: str) -> int:
    """Bytes that a volume has taken from the pool."""
    return next(int(v["allocated"]) for v in pools.status()["volumes"] if v["name"] == name)


def in_the_way(route: Any, size: int, taken: int) -> str:
    """Why a volume that has a name wanted for the group cannot be taken; "" when it can. taken: bytes it occupies."""
    if route.frozen:
        return f"a snapshot is called {route.name}"
    if route.blocked or route.group is not None:
        return f"volume {route.name} is in another group"
    if route.volume.size != size:
        return f"volume {route.name} exists with {route.volume.size} bytes instead of {size}"
    if taken:
        return f"volume {route.name} exists and may hold data"
    return f"volume {route.name} is open for writing" if route.writers else ""


def write_list(directory: Path, volumes: Listed) -> None:
    """Write the list into group.json. Durable."""
    path = directory / "group.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    listed = [dict(v) for v in volumes]
    if kept["volumes"] == listed:
        return
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as f:
        json.dump({**kept, "volumes": listed}, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    fresh.replace(path)
    sync_directory(directory)
