"""What a pool is: groups, members, volumes, the map of areas. Pure data, its encoding, the records that change it.

The whole state is one checkpoint (msgpack) plus the records that followed it. A generation names a checkpoint; records
belong to exactly one generation, so a log left from an older one is never taken for a newer one's.

A volume's map goes from logical area to place (areamap.py), so its areas may lie on several groups. Volumes, snapshots
and clones are all images; an image that shares most of its map with another, its base, is stored as difference to it.
How many maps refer to an area is counted at open and never stored.

Log record, 32 bytes, little-endian:

    offset  size  field
         0     4  crc          CRC32C of bytes 4..31
         4     1  kind         see Kind
         5     1  group        index of the RAID group
         6     2  version      1 (of the record)
         8     8  generation   the checkpoint it follows
        16     4  number       position in the log, from 0
        20     4  volume       volume id; member index for REBUILT and COPIED
        24     4  place        logical area of the volume; block of 64 of them for TOUCH and UNTOUCH; region for MISSED
        28     4  area         area of the group; areas done for REBUILT and COPIED
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
import numpy as np
from crc32c import crc32c

from raidlib.areamap import AreaMap, place_of
from raidlib.errors import IntegrityError

STATE_VERSION = 3
"""Version 1 knew volumes on one group each, no images, no successors, no members that are away, and no spares; it is
read, and written as 2. Version 3 is that of a pool with a group that has grown."""
OLDEST_VERSION = 1
RECORD_VERSION = 1
RECORD = struct.Struct("<IBBHQIIII")
RECORD_BYTES = RECORD.size
_BODY = struct.Struct("<BBHQIIII")
_CRC = struct.Struct("<I")
_RUN = np.dtype([("key", "<u4"), ("value", "<u4"), ("count", "<u4")])
TOUCH_AREAS = 64
"""Logical areas that one TOUCH record covers."""


class Kind(enum.IntEnum):
    """What a log record says."""

    COMMIT = 1  # the generation is on every member: a member that lacks it is stale
    ALLOC = 2  # volume's logical area `index` is now `area`, whatever it was before
    FREE = 3  # and now it is not; the area may hold old data
    TOUCH = 4  # areas come or go in this block of the volume; durable before the first
    UNTOUCH = 5  # all of those changes are durable
    REBUILT = 6  # a rebuilding member is right up to this area
    UNMAP = 16  # volume's logical area `index` is no longer mapped; other images still have the area
    DIRTY = 17  # no image has the area any more; it may hold old data
    COPIED = 20  # the successor of a member is right up to this area
    MISSED = 21  # this region may have been written while a member was away


class Record(NamedTuple):
    """One decoded log record."""

    kind: int
    group: int = 0
    volume: int = 0
    place: int = 0
    """Logical area, or block of them."""
    area: int = 0


class MemberState(enum.StrEnum):
    """What a member's data is worth."""

    IN_SYNC = "in_sync"  # complete
    REBUILDING = "rebuilding"  # right below its rebuilt area, written to like the others there
    FAILED = "failed"  # not used; only replaced, or re-added when it was merely away


@dataclass
class MemberInfo:
    """One member as the pool knows it. `path` is a hint: the superblock's uuid decides."""

    uuid: str
    path: str
    state: MemberState = MemberState.IN_SYNC
    rebuilt_areas: int = 0
    reason: str = ""
    away: tuple[int, int] | None = None
    """Failed only because it vanished or was stopped in order: its data is right but for the group's missed and marked
    regions, if its metadata is of a generation from the first to the second number. None: its data is worth nothing."""
    partial: bool = False
    """Rebuilding after it was away: only missed and marked regions need work."""
    successor: MemberInfo | None = None
    """The member that is being filled to take this one's place. Its state is REBUILDING."""


@dataclass
class SpareInfo:
    """A spare: formatted, owned by the pool, in no group yet. `group`: the only one it serves; empty for any."""

    uuid: str
    path: str
    size: int
    group: str = ""


class ExtensionInfo(NamedTuple):
    """What a growth added to a group: areas from `first` on, of which the first ones hold parts (layout.py)."""

    first: int
    areas: int
    """Areas that hold parts."""
    intent_bytes: int
    overflow_bytes: int
    table_bytes: int


@dataclass
class GroupInfo:
    """One RAID group. `dirty` are free areas that may hold old data and must be zeroed before use."""

    name: str
    uuid: str
    level: int
    chunk_bytes: int
    areas: int
    region_areas: int
    members: list[MemberInfo]
    dirty: set[int] = field(default_factory=set)
    journaled: int = 0
    """Not 0: degraded, and every write since went through the stripe journal that began at this generation, so that a
    crash leaves no write hole."""
    scrub: dict[str, Any] = field(default_factory=dict)
    """How far the last scrub came and what it found (scrub.py); empty when there was none."""
    draining: bool = False
    """It is being removed: its areas move to other groups, and none of it is given out."""
    removed: bool = False
    """It is no more; its index stays taken until the next group gets it. It has no members and no areas."""
    missed: set[int] = field(default_factory=set)
    """Regions that may have been written since the first of the members that are away left. Complete only together
    with the regions marked in the intent map."""
    extensions: list[ExtensionInfo] = field(default_factory=list)
    """How it grew, in order; `areas` counts all there are now."""
    errors: dict[str, list[int]] = field(default_factory=dict)
    """What was counted of members as of the last commit (member.COUNTED), by uuid; those without are left out."""

    @property
    def reserved(self) -> frozenset[int]:
        """Areas that hold parts of the members, and are given to nobody."""
        return frozenset(
            area for extension in self.extensions for area in range(extension.first, extension.first + extension.areas)
        )

    @property
    def usable_areas(self) -> int:
        """Areas that images can have."""
        return self.areas - sum(extension.areas for extension in self.extensions)

    @property
    def notes_missed(self) -> bool:
        """Whether a region whose mark is cleared must be noted in `missed` first."""
        return any(member.away is not None or member.partial for member in self.members)


class ImageKind(enum.StrEnum):
    """What an image is."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"  # never changes; a map of its own that shares areas
    CLONE = "clone"  # a volume that began with the map of another image


@dataclass
class VolumeInfo:
    """One image. `areas` maps logical area to place; `attributes` is for features to come."""

    id: int
    name: str
    uuid: str
    size: int
    group: int
    """Home: where new areas come from when nothing else is said, and where requests are fastest."""
    thin: bool
    areas: AreaMap = field(default_factory=AreaMap)
    attributes: dict[str, Any] = field(default_factory=dict)
    kind: ImageKind = ImageKind.VOLUME
    origin: int = 0
    """Id of the image it was taken from, 0 for none or one that is deleted."""
    base: int = 0
    """Id of the image that its map is stored as difference to, 0 for none. Never a cycle."""
    family: int = 0
    """Equal for images that may share areas: the id of the first of them. An area has one logical place in a family."""
    pinned: bool = False
    """New areas come from the home group alone, because somebody chose it."""
    placement: list[tuple[int, int, int]] = field(default_factory=list)
    """Ranges (first logical area, end, group) whose new areas come from that group alone; rising, not overlapping."""
    created: int = 0
    """When, in seconds since 1970; 0 when not known."""

    def __post_init__(self) -> None:
        self.family = self.family or self.id

    @property
    def writable(self) -> bool:
        """Whether its data may change."""
        return self.kind is not ImageKind.SNAPSHOT


@dataclass
class MoveInfo:
    """An intention that outlives a crash: these logical areas of a volume go to that group."""

    volume: int
    first: int
    end: int
    group: int


@dataclass
class PoolState:
    """Everything durable about a pool but its data."""

    uuid: str
    name: str
    area_bytes: int
    generation: int = 0
    committed: int = 0
    """The newest generation known to have reached every member; whoever is behind it is stale."""
    clean: bool = True
    boot_id: str = ""
    next_volume_id: int = 1
    groups: list[GroupInfo] = field(default_factory=list)
    volumes: dict[int, VolumeInfo] = field(default_factory=dict)
    touched: set[tuple[int, int]] = field(default_factory=set)
    moves: list[MoveInfo] = field(default_factory=list)
    spares: list[SpareInfo] = field(default_factory=list)
    _packed: dict[int, tuple[AreaMap, int, AreaMap | None, int, bytes]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Maps as last encoded, with what they were made from."""

    def apply(self, record: Record) -> None:
        """Change the state as the record says. Raises IntegrityError when it does not fit."""
        kind, group, volume, index, area = record
        try:
            if kind == Kind.COMMIT:
                self.committed = self.generation
            elif kind == Kind.ALLOC:
                self.volumes[volume].areas[index] = place_of(group, area)
                info = self.groups[group]
                info.dirty.discard(area)
                if info.notes_missed:
                    # A member that is away missed the punch that made the area clean, whoever writes to it or not.
                    info.missed.add(area // info.region_areas)
            elif kind == Kind.FREE:
                del self.volumes[volume].areas[index]
                self.groups[group].dirty.add(area)
            elif kind == Kind.UNMAP:
                del self.volumes[volume].areas[index]
            elif kind == Kind.DIRTY:
                self.groups[group].dirty.add(area)
            elif kind == Kind.TOUCH:
                self.touched.add((volume, index))
            elif kind == Kind.UNTOUCH:
                self.touched.discard((volume, index))
            elif kind == Kind.REBUILT:
                self.groups[group].members[volume].rebuilt_areas = area
            elif kind == Kind.COPIED:
                successor = self.groups[group].members[volume].successor
                if successor is not None:
                    successor.rebuilt_areas = area
            elif kind == Kind.MISSED:
                self.groups[group].missed.add(index)
        except (KeyError, IndexError):
            raise IntegrityError(f"pool {self.name}: log record {record} does not fit the checkpoint") from None

    def shorten(self) -> None:
        """Leave out of the checkpoint what is not needed, for a state that must be written and does not fit.

        More counts as missed than was; of a scrub's findings only the numbers stay; members' errors are forgotten.
        """
        for group in self.groups:
            group.errors = {}
            if group.missed:
                group.missed.update(range(min(group.missed), max(group.missed)))
            if group.scrub.get("ranges"):
                group.scrub["ranges"] = []

    def encode(self) -> bytes:
        """Return the checkpoint's payload."""
        packed: bytes = msgpack.packb(
            {
                "version": STATE_VERSION if any(g.extensions for g in self.groups) else 2,
                "uuid": self.uuid,
                "name": self.name,
                "area_bytes": self.area_bytes,
                "committed": self.committed,
                "clean": self.clean,
                "boot_id": self.boot_id,
                "next_volume_id": self.next_volume_id,
                "groups": [
                    {
                        "name": g.name,
                        "uuid": g.uuid,
                        "level": g.level,
                        "chunk_bytes": g.chunk_bytes,
                        "areas": g.areas,
                        "region_areas": g.region_areas,
                        "journaled": g.journaled,
                        "scrub": g.scrub,
                        "draining": g.draining,
                        "removed": g.removed,
                        "dirty": _pack_set(g.dirty),
                        "missed": _pack_set(g.missed),
                        "members": [_pack_member(m) for m in g.members],
                        **({"extensions": g.extensions} if g.extensions else {}),
                        **({"errors": g.errors} if g.errors else {}),
                    }
                    for g in self.groups
                ],
                "volumes": [
                    {
                        "id": v.id,
                        "name": v.name,
                        "uuid": v.uuid,
                        "size": v.size,
                        "group": v.group,
                        "thin": v.thin,
                        "kind": v.kind.value,
                        "origin": v.origin,
                        "base": v.base,
                        "family": v.family,
                        "pinned": v.pinned,
                        "placement": v.placement,
                        "created": v.created,
                        "areas": self._pack_areas(v),
                        "attributes": v.attributes,
                    }
                    for v in self.volumes.values()
                ],
                "touched": sorted(self.touched),
                "moves": [[m.volume, m.first, m.end, m.group] for m in self.moves],
                "spares": [[s.uuid, s.path, s.size, s.group] for s in self.spares],
            }
        )
        return packed

    def _pack_areas(self, info: VolumeInfo) -> bytes:
        """The map of an image, encoded again only when it or its base changed."""
        base = self.volumes[info.base].areas if info.base else None
        version = base.version if base is not None else 0
        known = self._packed.get(info.id)
        if (
            known is not None
            and known[0] is info.areas
            and known[1] == info.areas.version
            and known[2] is base
            and known[3] == version
        ):
            return known[4]
        packed = info.areas.encode(base)
        self._packed[info.id] = (info.areas, info.areas.version, base, version, packed)
        return packed

    @classmethod
    def decode(cls, payload: bytes, generation: int) -> PoolState:
        """Return the state of a checkpoint. Raises IntegrityError for a version this raidlib does not know."""
        try:
            raw = msgpack.unpackb(payload)
            if not OLDEST_VERSION <= raw["version"] <= STATE_VERSION:
                raise IntegrityError(
                    f"pool metadata has version {raw['version']}, this raidlib knows {STATE_VERSION} and older ones",
                    "use the farstripe that wrote it, or a newer one",
                )
            groups = [
                GroupInfo(
                    g["name"],
                    g["uuid"],
                    g["level"],
                    g["chunk_bytes"],
                    g["areas"],
                    g["region_areas"],
                    [_unpack_member(m) for m in g["members"]],
                    _unpack_set(g["dirty"]),
                    g["journaled"],
                    dict(g.get("scrub", {})),
                    g.get("draining", False),
                    g.get("removed", False),
                    _unpack_set(g.get("missed", b"")),
                    [ExtensionInfo(*extension) for extension in g.get("extensions", ())],
                    dict(g.get("errors", {})),
                )
                for g in raw["groups"]
            ]
            volumes = _unpack_volumes(raw["volumes"], raw["version"])
            touched = {(int(v), int(b)) for v, b in raw["touched"]}
            return cls(
                raw["uuid"],
                raw["name"],
                raw["area_bytes"],
                generation,
                raw["committed"],
                raw["clean"],
                raw["boot_id"],
                raw["next_volume_id"],
                groups,
                volumes,
                touched,
                [MoveInfo(*move) for move in raw.get("moves", ())],
                [SpareInfo(*spare) for spare in raw.get("spares", ())],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"pool metadata of generation {generation} cannot be read: {exc!r}") from exc


def pack_record(record: Record, generation: int, number: int) -> bytes:
    """Return the 32 bytes of a log record."""
    body = _BODY.pack(
        record.kind, record.group, RECORD_VERSION, generation, number, record.volume, record.place, record.area
    )
    return _CRC.pack(crc32c(body)) + body


def unpack_log(buf: bytes, generation: int) -> list[Record]:
    """Return the records of a generation at the start of `buf`; the first that is not right ends the log."""
    records: list[Record] = []
    view = memoryview(buf)
    for at in range(0, len(buf) - RECORD_BYTES + 1, RECORD_BYTES):
        crc, kind, group, version, its_generation, number, volume, index, area = RECORD.unpack_from(buf, at)
        if its_generation != generation or number != len(records) or version != RECORD_VERSION:
            break
        if crc != crc32c(view[at + 4 : at + RECORD_BYTES]):
            break
        records.append(Record(kind, group, volume, index, area))
    return records


def _unpack_volumes(raw: list[dict[str, Any]], version: int) -> dict[int, VolumeInfo]:
    """Return the images of a checkpoint; bases are decoded before what is stored as difference to them."""
    packed = {v["id"]: v for v in raw}
    maps: dict[int, AreaMap] = {}
    for start in packed:
        chain = [start]
        while chain[-1] not in maps and (base := packed[chain[-1]].get("base", 0)):
            if base in chain:
                raise ValueError(f"image {base} is its own base")
            chain.append(base)
        for one in reversed(chain):
            if one not in maps:
                base = packed[one].get("base", 0)
                if version == 1:
                    maps[one] = _unpack_first_map(packed[one]["areas"], packed[one]["group"])
                else:
                    maps[one] = AreaMap.decode(packed[one]["areas"], maps[base] if base else None)
    return {
        v["id"]: VolumeInfo(
            v["id"],
            v["name"],
            v["uuid"],
            v["size"],
            v["group"],
            v["thin"],
            maps[v["id"]],
            v["attributes"],
            ImageKind(v.get("kind", ImageKind.VOLUME)),
            v.get("origin", 0),
            v.get("base", 0),
            v.get("family", 0),
            v.get("pinned", version == 1),
            [(first, end, group) for first, end, group in v.get("placement", ())],
            v.get("created", 0),
        )
        for v in raw
    }


def _pack_member(member: MemberInfo) -> list[Any]:
    """Five fields as in version 1; then what a member in order does not have."""
    packed: list[Any] = [member.uuid, member.path, member.state.value, member.rebuilt_areas, member.reason]
    if member.away is not None or member.partial or member.successor is not None:
        successor = member.successor and _pack_member(member.successor)
        packed += [member.away and list(member.away), member.partial, successor]
    return packed


def _unpack_member(packed: list[Any]) -> MemberInfo:
    its_uuid, path, state, rebuilt, reason, *more = packed
    away, partial, successor = more or (None, False, None)
    return MemberInfo(
        its_uuid,
        path,
        MemberState(state),
        rebuilt,
        reason,
        (away[0], away[1]) if away else None,
        partial,
        _unpack_member(successor) if successor else None,
    )


def _unpack_first_map(packed: bytes, group: int) -> AreaMap:
    """The map of a version 1 volume: runs (logical area, area, count), all on the volume's group."""
    keys, values = _spread(packed)
    places = values.astype(np.uint64) + np.uint64(place_of(group, 0))
    result = AreaMap()
    result.put(keys, places)
    return result


def _pack_set(areas: set[int]) -> bytes:
    """Encode a set as runs (first, first, count) of u32."""
    if not areas:
        return b""
    values = np.fromiter(areas, np.int64, len(areas))
    values.sort()
    starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(np.diff(values) != 1) + 1))
    runs = np.empty(len(starts), _RUN)
    runs["key"] = runs["value"] = values[starts]
    runs["count"] = np.diff(np.append(starts, len(values)))
    return runs.tobytes()


def _unpack_set(packed: bytes) -> set[int]:
    return set(_spread(packed)[0].tolist())


def _spread(packed: bytes) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Keys and values of runs in which both rise by one together."""
    if not packed:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    runs = np.frombuffer(packed, _RUN)
    counts = runs["count"].astype(np.int64)
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(runs["key"].astype(np.int64), counts) + steps, np.repeat(
        runs["value"].astype(np.int64), counts
    ) + steps
