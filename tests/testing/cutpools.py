"""Snapshots for tests without a pool: what MarkerHost asks of PoolHost and Exports, over the images of Sides."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from raidlib.errors import AlreadyExists
from replicator.core.errors import NotFound
from tests.testing.pairharness import Side


class Died(BaseException):
    """The process ended here."""


class FakePools:
    """Snapshots survive everything, as a pool's do once they are taken. Those of one call come all or not at all."""

    def __init__(self) -> None:
        self.changing = threading.RLock()
        self.images: dict[str, bytes] = {}
        self.free_bytes = 1 << 30
        self.dies = ""
        """"before" or "after": the process ends so in the next call of snapshot()."""
        self._sides: dict[str, Side] = {}

    @contextlib.contextmanager
    def changing_soon(self, _timeout_s: float) -> Iterator[None]:
        """See PoolHost.changing_soon."""
        with self.changing:
            yield

    def serve(self, volume: str, side: Side) -> None:
        """`volume` is the first volume of `side`."""
        self._sides[volume] = side

    def space(self) -> tuple[int, int]:
        """See PoolHost.space."""
        return self.free_bytes, 1 << 31

    def snapshot(self, names: dict[str, str]) -> None:
        """See PoolHost.snapshot."""
        for name in names.values():
            if name in self.images:
                raise AlreadyExists(f"there is a snapshot {name} already")
        dies, self.dies = self.dies, ""
        if dies == "before":
            raise Died
        for volume, name in names.items():
            self.images[name] = self._sides[volume].image()[0]
        if dies:
            raise Died

    def require(self) -> FakePools:
        """See PoolHost.require."""
        return self

    def snapshot_diff(self, snapshot: str, volume: str) -> list[tuple[int, int]]:
        """See Pool.snapshot_diff."""
        return [(0, len(self.images[snapshot]))]

    def rollback(self, volume: str, snapshot: str) -> None:
        """See Pool.rollback."""
        self._sides[volume].engine.volumes[0].pwrite(self.images[snapshot], 0)

    def delete_volume(self, route: Any) -> None:
        """See PoolHost.delete_volume."""
        del self.images[route.name]


class FakeExports:
    """Every snapshot is served, and nobody uses it."""

    def __init__(self, pools: FakePools) -> None:
        self._pools = pools

    def routes(self) -> list[Any]:
        """See Exports.routes."""
        return [self.get(name) for name in self._pools.images]

    def get(self, name: str) -> Any:
        """See Exports.get."""
        if name not in self._pools.images:
            raise NotFound(f"no volume {name}")
        return SimpleNamespace(name=name, readers=0, writers=0)
