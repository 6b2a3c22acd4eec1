"""What a pool is: groups, members, volumes, the map of areas. Pure data, its encoding, the records that change it.

The whole state is one checkpoint (msgpack) plus the records that followed it. A generation names a checkpoint; records
belong to exactly one generation, so a log left from an older one is never taken for a newer one's.

Log record, 32 bytes, little-endian:

    offset  size  field
         0     4  crc          CRC32C of bytes 4..31
         4     1  kind         see Kind
         5     1  group        index of the RAID group
         6     2  version      1
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
from crc32c import crc32c

from raidlib.errors import IntegrityError

STATE_VERSION = 2
"""Version 1 knew no successors, no members that are away, and no spares; it is read, and written as 2."""
READABLE_VERSIONS = (1, 2)
LOG_VERSION = 1
RECORD = struct.Struct("<IBBHQIIII")
RECORD_BYTES = RECORD.size
_BODY = struct.Struct("<BBHQIIII")
_CRC = struct.Struct("<I")
_RUN = struct.Struct("<III")
TOUCH_AREAS = 64
"""Logical areas that one TOUCH record covers."""


class Kind(enum.IntEnum):
    """What a log record says."""

    COMMIT = 1  # the generation is on every member: a member that lacks it is stale
    ALLOC = 2  # volume's logical area `index` is now `area`
    FREE = 3  # and now it is not; the area may hold old data
    TOUCH = 4  # areas come or go in this block of the volume; durable before the first
    UNTOUCH = 5  # all of those changes are durable
    REBUILT = 6  # a rebuilding member is right up to this area
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
    missed: set[int] = field(default_factory=set)
    """Regions that may have been written since the first of the members that are away left. Complete only together
    with the regions marked in the intent map."""

    @property
    def notes_missed(self) -> bool:
        """Whether a region whose mark is cleared must be noted in `missed` first."""
        return any(member.away is not None or member.partial for member in self.members)


@dataclass
class VolumeInfo:
    """One volume. `areas` maps logical area to area of its group. `attributes` is for features to come."""

    id: int
    name: str
    uuid: str
    size: int
    group: int
    thin: bool
    areas: dict[int, int] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


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
    spares: list[SpareInfo] = field(default_factory=list)

    def apply(self, record: Record) -> None:
        """Change the state as the record says. Raises IntegrityError when it does not fit."""
        kind, group, volume, index, area = record
        try:
            if kind == Kind.COMMIT:
                self.committed = self.generation
            elif kind == Kind.ALLOC:
                self.volumes[volume].areas[index] = area
                self.groups[group].dirty.discard(area)
            elif kind == Kind.FREE:
                del self.volumes[volume].areas[index]
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

    def encode(self) -> bytes:
        """Return the checkpoint's payload."""
        packed: bytes = msgpack.packb(
            {
                "version": STATE_VERSION,
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
                        "dirty": _pack_map({a: a for a in g.dirty}),
                        "missed": _pack_map({r: r for r in g.missed}),
                        "members": [_pack_member(m) for m in g.members],
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
                        "areas": _pack_map(v.areas),
                        "attributes": v.attributes,
                    }
                    for v in self.volumes.values()
                ],
                "touched": sorted(self.touched),
                "spares": [[s.uuid, s.path, s.size, s.group] for s in self.spares],
            }
        )
        return packed

    @classmethod
    def decode(cls, payload: bytes, generation: int) -> PoolState:
        """Return the state of a checkpoint. Raises IntegrityError for a version this raidlib does not know."""
        try:
            raw = msgpack.unpackb(payload)
            if raw["version"] not in READABLE_VERSIONS:
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
                    set(_unpack_map(g["dirty"])),
                    g["journaled"],
                    set(_unpack_map(g.get("missed", b""))),
                )
                for g in raw["groups"]
            ]
            volumes = {
                v["id"]: VolumeInfo(
                    v["id"],
                    v["name"],
                    v["uuid"],
                    v["size"],
                    v["group"],
                    v["thin"],
                    _unpack_map(v["areas"]),
                    v["attributes"],
                )
                for v in raw["volumes"]
            }
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
                [SpareInfo(*spare) for spare in raw.get("spares", ())],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise IntegrityError(f"pool metadata of generation {generation} cannot be read: {exc!r}") from exc


def pack_record(record: Record, generation: int, number: int) -> bytes:
    """Return the 32 bytes of a log record."""
    body = _BODY.pack(
        record.kind, record.group, LOG_VERSION, generation, number, record.volume, record.place, record.area
    )
    return _CRC.pack(crc32c(body)) + body


def unpack_log(buf: bytes, generation: int) -> list[Record]:
    """Return the records of a generation at the start of `buf`; the first that is not right ends the log."""
    records: list[Record] = []
    view = memoryview(buf)
    for at in range(0, len(buf) - RECORD_BYTES + 1, RECORD_BYTES):
        crc, kind, group, version, its_generation, number, volume, index, area = RECORD.unpack_from(buf, at)
        if its_generation != generation or number != len(records) or version != LOG_VERSION:
            break
        if crc != crc32c(view[at + 4 : at + RECORD_BYTES]):
            break
        records.append(Record(kind, group, volume, index, area))
    return records


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


def _pack_map(areas: dict[int, int]) -> bytes:
    """Encode a map as runs (key, value, count) of u32 in which keys and values rise by one together."""
    runs: list[list[int]] = []
    for key, value in sorted(areas.items()):
        if runs and key == runs[-1][0] + runs[-1][2] and value == runs[-1][1] + runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([key, value, 1])
    return b"".join(_RUN.pack(*run) for run in runs)


def _unpack_map(packed: bytes) -> dict[int, int]:
    return {key + i: value + i for key, value, count in _RUN.iter_unpack(packed) for i in range(count)}
