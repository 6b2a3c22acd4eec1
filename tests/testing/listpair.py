"""A pair of engines whose group's list of volumes changes: tests.testing.pairharness with a pool of named volumes.

The pool is atomic and durable in itself, as raidlib is; each of its changes is a place where a process can be cut.
`ListPair.images` holds what the group is after every record ever made: {name: bytes} by (epoch, seq).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from replicator.capture import recovery, roles, volumeset
from replicator.capture.bitmaps import blocks_of
from replicator.capture.engine import GroupEngine
from replicator.capture.state import FRESH, OK, PRIMARY, SECONDARY, GroupState, StateFile
from replicator.core.epochs import node_tag
from replicator.core.errors import Refused
from replicator.core.records import Kind
from replicator.journal.page import Page
from tests.testing.fakedisk import FakeDisk, FakeFile
from tests.testing.pairharness import Pair, Saved, Side
from tests.testing.sim.storage import REGION_BYTES, SimMap

CAPACITY = 512 << 10
FIRST = {"v0": 128 << 10, "v1": 128 << 10}
Image = dict[str, bytes]


class ListPool:
    """Volumes by name, and the intent log over them."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk
        self.sizes: dict[str, int] = {}
        self.marks: set[tuple[str, int]] = set()

    def step(self, what: str) -> None:
        """The next change of the pool; the process may end here."""
        if self.disk._change("pool", what, 0, 0):
            raise self.disk._cut(f"pool {what}", None)

    def create(self, name: str, size: int) -> None:
        """Make a volume of zeroes. Durable."""
        self.step(f"create {name}")
        if name not in self.sizes and f"pool-{name}" not in self.disk.snapshot():
            self.disk.create(f"pool-{name}", CAPACITY)
        self._zero(name, 0)
        self.sizes[name] = size

    def resize(self, name: str, size: int) -> None:
        """Change a size; what was cut reads as zeroes should it come back. Durable."""
        self.step(f"resize {name}")
        if size < self.sizes[name]:
            self._zero(name, size)
        self.sizes[name] = size

    def delete(self, name: str) -> None:
        """Delete a volume. Durable."""
        del self.sizes[name]

    def _zero(self, name: str, start: int) -> None:
        store = self.disk._find(f"pool-{name}")
        store.data[start:] = bytes(CAPACITY - start)
        store.unsynced[:] = [w for w in store.unsynced if w.off < start]

    def raw(self, name: str) -> bytes:
        """What any reader would see."""
        return bytes(self.disk._find(f"pool-{name}").data[: self.sizes[name]])


class ListVolume:
    """A volume as the engine sees it."""

    def __init__(self, pool: ListPool, name: str) -> None:
        self.name, self._pool = name, pool
        self.file: FakeFile = pool.disk.open(f"pool-{name}")

    @property
    def size(self) -> int:
        """Bytes, as the pool has it now."""
        return self._pool.sizes[self.name]

    def _touch(self, offset: int, length: int) -> None:
        assert offset + length <= self.size, f"{self.name}: access beyond the end"
        for region in range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1):
            self._pool.marks.add((self.name, region))

    def pread_into(self, buf: memoryview, offset: int) -> None:
        """See engine.Volume."""
        self.file.preadinto(buf, offset)

    pread_once = pread_into

    def pwrite(self, buf: Any, offset: int) -> None:
        """See engine.Volume."""
        self._touch(offset, len(buf))
        self.file.pwrite(buf, offset)

    def zero(self, offset: int, length: int, punch: bool) -> None:
        """See engine.Volume."""
        self._touch(offset, length)
        self.file.punch(offset, length)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """See engine.Volume."""
        return [(length, True)]


class ListHost:
    """The VolumeHost of a side."""

    def __init__(self, side: ListSide) -> None:
        self._side = side

    def provide(self, volume: Mapping[str, Any]) -> tuple[Any, str]:
        """See VolumeHost."""
        name, size, pool = volume["name"], volume["size"], self._side.pool
        if name not in pool.sizes:
            pool.create(name, size)
        elif pool.sizes[name] != size or any(pool.raw(name)):
            raise Refused(f"volume {name} cannot be made here: there is one with data")
        return ListVolume(pool, name), f"{name:>032}"

    def map_file(self, index: int, size: int) -> SimMap:
        """See VolumeHost."""
        return self._side.map_of(index)

    def resize(self, name: str, size: int) -> None:
        """See VolumeHost."""
        self._side.pool.resize(name, size)

    def intend(self, volumes: Sequence[Mapping[str, Any]]) -> None:
        """See VolumeHost."""
        self._side.protected = {v["name"] for v in volumes}

    def settled(self, volumes: Sequence[Mapping[str, Any]]) -> None:
        """See VolumeHost."""
        self._side.protected = {v["name"] for v in volumes}
        kept = {v["index"] for v in volumes}
        for index in set(self._side.by_index) - kept:
            del self._side.by_index[index]


@dataclass
class ListSaved:
    """Everything of a ListSide that outlives its process."""

    base: Saved
    sizes: dict[str, int]
    maps: dict[int, tuple[bytes, bytes]]


class ListSide(Side):
    """One node with named volumes."""

    pool: ListPool  # type: ignore[assignment]

    def __init__(self, name: str, *, seed: int = 0) -> None:
        super().__init__(name, sizes=(), seed=seed)
        self.pool = ListPool(self.disk)
        self.by_index: dict[int, SimMap] = {}
        self.protected: set[str] = set()

    def map_of(self, index: int) -> SimMap:
        """The mapped file of a volume, made when it is missing."""
        if index not in self.by_index:
            self.by_index[index] = SimMap(self.disk, f"bitmap{index}", blocks_of(CAPACITY))
        return self.by_index[index]

    def parts(self) -> recovery.Parts:
        """As GroupHost opens a group: by the list in the state, with volumes of the sizes it says."""
        listed = self.listed
        for v in listed:
            if self.pool.sizes[v["name"]] != v["size"]:
                self.pool.resize(v["name"], v["size"])
        return recovery.Parts(
            state=self.disk.open("state"),  # type: ignore[arg-type]
            journal=self.disk.open("journal"),  # type: ignore[arg-type]
            page=Page(self.page_bytes),
            maps=[self.map_of(v["index"]) for v in listed],
            volumes=[ListVolume(self.pool, v["name"]) for v in listed],
            pool_sync=self._sync,
            clock=self.make_clock(),
            boot=self.boot,
            volume_host=ListHost(self),
        )

    def _sync(self) -> None:
        for name in list(self.pool.sizes):
            self.disk.open(f"pool-{name}").fdatasync()

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The list that the state on disk holds."""
        if self._new is not None:
            return self._new
        return StateFile(self.disk.open("state")).load().volumes  # type: ignore[arg-type]

    _new: list[dict[str, Any]] | None = None

    def create(self, role: str, policy: Any = None) -> GroupEngine:
        """Make the group in empty files."""
        volumes = []
        for index, (name, size) in enumerate(FIRST.items()):
            self.pool.create(name, size)
            volumes.append({"index": index, "name": name, "uuid": f"{index:032x}", "size": size})
        state = GroupState(self.uuid, self.group_name, node_tag(self.node_id), volumes, role)
        state.copy = OK if role == PRIMARY else FRESH
        self._new = volumes
        try:
            return self._live(recovery.create_engine(self.parts(), state, self.journal_bytes))
        finally:
            self._new = None

    def start(self) -> GroupEngine:
        """Start the process after whatever stopped it."""
        index = {v["name"]: v["index"] for v in self.listed}
        marks = [(index[n], r * REGION_BYTES, REGION_BYTES) for n, r in sorted(self.pool.marks) if n in index]
        engine = self._live(recovery.open_engine(self.parts(), marks))
        ListHost(self).settled(engine.state.volumes)
        return engine

    def power_cut(self, fate: Any = None) -> None:
        """As Side.power_cut."""
        super().power_cut(fate)
        for m in self.by_index.values():
            m.crash(self.disk.rng)

    def image(self) -> Any:
        """What the group's volumes hold, by name."""
        return {v["name"]: self.pool.raw(v["name"]) for v in self.engine.state.volumes}

    def save_all(self) -> ListSaved:
        """Copy what outlives the process."""
        maps = {i: (bytes(m.buf), m._stable) for i, m in self.by_index.items()}
        return ListSaved(self.save(), dict(self.pool.sizes), maps)

    def restore_all(self, saved: ListSaved) -> None:
        """Become what was saved."""
        self.restore(saved.base)
        self.pool.sizes = dict(saved.sizes)
        self.by_index = {}
        for index, (buf, stable) in saved.maps.items():
            self.map_of(index).buf[:] = buf
            self.by_index[index]._stable = stable

    def change(self, kind: Kind, name: str, size: int = 0) -> None:
        """What GroupService.change_volumes does on a primary, without threads; an added volume is made first."""
        if kind == Kind.VOLUME_ADD and name not in self.pool.sizes:
            self.pool.create(name, size)
        roles.park(self.engine, "volumes")
        try:
            volumeset.change(self.engine, kind, name, size)
        finally:
            roles.unpark(self.engine, "volumes")
        volumeset.settle(self.engine)

    def put(self, name: str, offset: int, fill: int, length: int = 4096) -> None:
        """A host write to the volume of this name."""
        index = next(v["index"] for v in self.engine.state.volumes if v["name"] == name)
        self.write(offset, fill, length=length, volume=index)


class ListPair(Pair):
    """Two ListSides."""

    def __post_init__(self) -> None:
        self.images: dict[tuple[int, int], Image] = {}
        self._names: dict[tuple[int, int], dict[int, str]] = {}
        self._start: Image = {name: bytes(size) for name, size in FIRST.items()}
        self.a.on_record = lambda header, payload: self._made(self.a, header, payload)
        self.b.on_record = lambda header, payload: self._made(self.b, header, payload)

    def _made(self, side: Side, header: Any, payload: bytes | None) -> None:
        hist = side.engine.state.hist
        before = self.image_of(hist, header.seq - 1)
        names = dict(self._names.get(_place(hist, header.seq - 1), dict(enumerate(FIRST))))
        image, kind, name = dict(before), header.kind, names.get(header.volume, "")
        if kind == Kind.VOLUME_ADD:
            added = msgpack.unpackb(payload or b"")
            names[header.volume] = added["name"]
            image[added["name"]] = bytes(added["size"])
        elif kind == Kind.VOLUME_REMOVE:
            del image[name], names[header.volume]
        elif kind == Kind.RESIZE:
            image[name] = image[name][: header.length].ljust(header.length, b"\0")
        elif name not in image:
            return  # it came while nothing was recorded; what the group was then nobody asks
        elif kind in (Kind.WRITE, Kind.COPY, Kind.ZERO, Kind.TRIM, Kind.COPY_ZERO):
            data = bytearray(image[name])
            data[header.offset : header.offset + header.length] = payload or bytes(header.length)
            image[name] = bytes(data)
        self.images[header.epoch, header.seq] = image
        self._names[header.epoch, header.seq] = names

    def image_of(self, hist: list[list[int]], pos: int) -> Image:
        """What the group was at a position of a history."""
        return self.images.get(_place(hist, pos), self._start)

    def forget_nothing_of(self, other: ListPair) -> None:
        """Take over what another pair knows of all records."""
        self.images, self._names = copy.copy(other.images), copy.copy(other._names)
        self._start = other._start


def _place(hist: list[list[int]], pos: int) -> tuple[int, int]:
    return next((epoch for epoch, base in reversed(hist) if base < pos), 0), pos


def running_list_pair() -> ListPair:
    """A pair whose first copy is complete: `a` primary, `b` secondary."""
    pair = ListPair(ListSide("a"), ListSide("b"))
    pair.a.create(PRIMARY)
    pair.b.create(SECONDARY)
    roles.arm(pair.a.engine, pair.b.node_id)
    roles.arm(pair.b.engine, pair.a.node_id, upstream=True)
    pair.sync_up()
    return pair
