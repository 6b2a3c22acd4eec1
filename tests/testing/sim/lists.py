"""The volumes of a simulated node by name, for groups whose list of volumes changes while everything else goes wrong.

NamedPool is atomic and durable in itself where it makes and resizes volumes, as raidlib is; each such step is a place
where the process can die. Contents obey the rules of storage.MarkedPool. ListHost is the VolumeHost of the engine,
ListNemesis the operator who adds, removes and resizes volumes of whoever is primary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from replicator.capture import volumeset
from replicator.capture.bitmaps import blocks_of
from replicator.capture.state import UNTRACKED, StateFile
from replicator.core.errors import FarstripeError, Refused
from replicator.core.records import Kind
from tests.testing.fakedisk import FakeDisk
from tests.testing.sim.storage import REGION_BYTES, MarkedPool, SimMap, SimVolume
from tests.testing.sim.target import Target
from tests.testing.sim.truth import Change

if TYPE_CHECKING:
    from tests.testing.sim.node import Node
    from tests.testing.sim.world import World

CAPACITY = 384 << 10
"""Room of a volume that may be resized."""
MOST_VOLUMES = 4
GAP_S = 0.7


class NamedPool(MarkedPool[str]):
    """The volumes of a node by name."""

    def __init__(self, disk: FakeDisk, sizes: Mapping[str, int], *, fixed: bool) -> None:
        """fixed: no volume is ever resized."""
        super().__init__(disk)
        for name, size in sizes.items():
            self.disk.create(self.file_of(name), size if fixed else max(size, CAPACITY))
            self.sizes[name] = size

    @staticmethod
    def file_of(key: str) -> str:
        """See MarkedPool."""
        return f"volume{key[1:]}"

    def step(self, what: str) -> None:
        """The next change of the pool's shape; the process may end here."""
        if self.disk._change("pool", what, 0, 0):
            raise self.disk._cut(f"pool {what}", None)

    def create(self, name: str, size: int) -> None:
        """Make a volume of zeroes. Durable."""
        self.step(f"create {name}")
        if name not in self.sizes and self.file_of(name) not in self.disk.names():
            self.disk.create(self.file_of(name), CAPACITY)
        self._cut(name, 0)
        self.sizes[name] = size

    def resize(self, name: str, size: int) -> None:
        """Change a size; what was cut reads as zeroes should it come back. Durable."""
        self.step(f"resize {name} {size}")
        if size < self.sizes[name]:
            self._cut(name, size)
        self.sizes[name] = size

    def _cut(self, name: str, size: int) -> None:
        store = self.disk._find(self.file_of(name))
        store.data[size:] = bytes(len(store.data) - size)
        for write in store.unsynced:
            kept = max(0, size - write.off)
            write.new = write.new[:kept].ljust(len(write.new), b"\0")
            write.old = write.old[:kept].ljust(len(write.old), b"\0")

    def open(self, name: str) -> SimVolume[str]:
        """Open a volume for a new target process."""
        return self.handle(name)

    def sync(self) -> None:
        """Durable: every write before the call."""
        self.sync_with(self.disk.open(self.file_of(name)) for name in self.sizes)

    def clear_intents(self, sync_groups: Callable[[], Collection[str]]) -> None:
        """See clear_idle."""
        self.clear_idle((self.disk.open(self.file_of(name)) for name in self.sizes), sync_groups)

    def unclean(self, listed: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
        """The marked ranges of a group's volumes, as recovery.open_engine takes them."""
        found = []
        for v in listed:
            for name, region in self.marks:
                if name == v["name"] and region * REGION_BYTES < v["size"]:
                    length = min(REGION_BYTES, v["size"] - region * REGION_BYTES)
                    found.append((v["index"], region * REGION_BYTES, length))
        return sorted(found)


class ListHost:
    """The VolumeHost of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._refused: set[str] = set()

    def provide(self, volume: Mapping[str, Any]) -> tuple[Any, str]:
        """See VolumeHost. What is in the way is refused once; then the operator has deleted it."""
        name, size, pool = str(volume["name"]), int(volume["size"]), self._node.pool
        if name not in pool.sizes:
            pool.create(name, size)
        elif pool.sizes[name] != size or any(pool.raw(name)):
            if name not in self._refused:
                self._refused.add(name)
                raise Refused(f"volume {name} cannot be made here: there is one with data")
            pool.create(name, size)
        return pool.open(name), f"{name:>032}"

    def map_file(self, index: int, size: int) -> SimMap:
        """See VolumeHost."""
        return self._node.map_of(index)

    def resize(self, name: str, size: int) -> None:
        """See VolumeHost."""
        self._node.pool.resize(name, size)

    def intend(self, volumes: Sequence[Mapping[str, Any]]) -> None:
        """Nobody deletes volumes here."""

    def settled(self, volumes: Sequence[Mapping[str, Any]]) -> None:
        """See VolumeHost."""
        kept = {v["index"] for v in volumes}
        for index in set(self._node.maps) - kept:
            del self._node.maps[index]


def listed(node: Node) -> list[dict[str, Any]]:
    """The list of volumes that a node's state on disk holds."""
    return StateFile(node.disk.open("state")).load().volumes  # type: ignore[arg-type]


def map_blocks(size: int, *, fixed: bool) -> int:
    """How many bytes the map of a volume has."""
    return max(1, blocks_of(size if fixed else max(size, CAPACITY)))


def change_of(kind: Kind, entry: Mapping[str, Any]) -> Change:
    """What a change of the list does to the volumes."""
    size = 0 if kind == Kind.VOLUME_REMOVE else int(entry["size"])
    return Change(int(entry["index"]), 0, size, None, kind.name)


class ListNemesis:
    """Changes the list of whoever is primary, again and again, until the world is calm."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        self._made = 0

    def begin(self) -> None:
        """The first change comes after the usual gap."""
        self._world.clock.after(GAP_S, self._next)

    def _next(self) -> None:
        w, rng = self._world, self._rng
        if w.calm:
            return
        w.clock.after(GAP_S * (0.3 + 1.4 * rng.random()), self._next)
        for node in w.primaries:
            target = node.target
            if target is not None and not target.engine.failed and target.engine.state.mode != UNTRACKED:
                node.run("target", lambda target=target: self._change(target))

    def _change(self, target: Target) -> None:
        """As nbdplugin.listchange does: nobody has a volume open that leaves or becomes smaller."""
        engine, rng = target.engine, self._rng
        volumes = engine.state.volumes
        kind = rng.choice((Kind.VOLUME_ADD, Kind.VOLUME_REMOVE, Kind.RESIZE, Kind.RESIZE))
        if kind == Kind.VOLUME_ADD and len(volumes) >= MOST_VOLUMES:
            kind = Kind.RESIZE
        size = 4096 * rng.randint(16, CAPACITY // 4096)
        if kind == Kind.VOLUME_ADD:
            self._made += 1
            name = f"vx{self._made}"
            target.node.pool.create(name, size)
            volumeset.reserve(engine)
        else:
            one = rng.choice(volumes)
            name, index = one["name"], one["index"]
            if kind == Kind.RESIZE and one["size"] == size:
                return
            if any(request.volume == index for request in (*target.queue, *target.waiting)):
                return
        try:
            entry = target.service.change_volumes(kind, name, size)
        except (OSError, FarstripeError) as exc:
            if engine.list_in_doubt:
                target.node.in_vain = engine.epoch, engine.pos
            target.node.note(f"{kind.name} {name} refused: {exc}")
            return
        target.node.listed_anew()
        target.node.note(f"{kind.name} {name} {entry['size']}")
