"""What a pool tells about itself: plain data for status commands, sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any

from raidlib.allocator import Allocator
from raidlib.extending import growth_of
from raidlib.member import COUNTED, Member
from raidlib.membertimes import slow_members
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState, PoolState
from raidlib.volume import Volume


def pool_report(
    state: PoolState, groups: list[RaidGroup], allocators: dict[int, Allocator], volumes: Iterable[Volume]
) -> dict[str, Any]:
    """Return the pool's part of Pool.status(). Call under the ledger's lock."""
    return {
        "name": state.name,
        "uuid": state.uuid,
        "area_bytes": state.area_bytes,
        "generation": state.generation,
        "parity": groups[0].engine.name,
        "groups": [_group(group, allocators[group.index], state.area_bytes) for group in groups],
        "volumes": [_volume(volume, state) for volume in volumes],
    }


def _volume(volume: Volume, state: PoolState) -> dict[str, Any]:
    info = volume.info
    origin = state.volumes.get(info.origin)
    return {
        "name": volume.name,
        "uuid": volume.uuid,
        "size": volume.size,
        "group": volume.group.info.name,
        "thin": info.thin,
        "allocated": len(info.areas) * state.area_bytes,
        "kind": info.kind.value,
        "origin": None if origin is None else origin.name,
        "created": info.created,
    }


def _group(group: RaidGroup, allocator: Allocator, area_bytes: int) -> dict[str, Any]:
    info, growth = group.info, growth_of(group)
    return {
        "name": info.name,
        "uuid": info.uuid,
        "level": info.level,
        "chunk_bytes": info.chunk_bytes,
        "checksums": group.checksums,
        "unsettled_blocks": group.unsettled_blocks,
        "lost_blocks": group.lost_blocks,
        "state": "lost" if group.lost else "degraded" if group.degraded else "ok",
        "size": info.usable_areas * area_bytes,
        "free": allocator.free_areas * area_bytes,
        "areas": info.usable_areas,
        "free_areas": allocator.free_areas,
        "dirty_areas": len(info.dirty),
        "growable": growth.gained_areas * area_bytes if growth is not None else 0,
        "draining": info.draining,
        "missed_regions": len(info.missed),
        "marked_regions": len(group.intents.marked()),
        "region_bytes": info.region_areas * area_bytes,
        "members": [
            {
                "path": member.path,
                "uuid": member.info.uuid,
                "state": member.info.state.value,
                "reason": member.info.reason,
                **dict(zip(COUNTED, member.counts(), strict=True)),
                "since_open": {name: getattr(member, name) for name in COUNTED},
                "rebuilt": member.rebuilt_rows / (info.areas * group.geometry.rows_per_area)
                if member.info.state is MemberState.REBUILDING
                else None,
                "away": member.info.away is not None,
                "slowest_s": round(member.times.longest_s, 3),
                **times,
                "replacement": _replacement(group, member),
            }
            for member, times in zip(group.members, _times(group), strict=True)
        ],
    }


def _times(group: RaidGroup) -> list[dict[str, Any]]:
    """By member: how long its reads and writes take on average, and in words what of that is slow beside the others."""
    now = monotonic()
    found: list[dict[str, Any]] = [{"slow": ""} for _ in group.members]
    for kind in ("read", "write"):
        means = [getattr(member.times, f"{kind}s").value_s(now) for member in group.members]
        for one, mean_s, usual_s in zip(found, means, slow_members(means), strict=True):
            one[f"{kind}_s"] = None if mean_s is None else round(mean_s, 6)
            if usual_s is not None:
                what = f"its {kind}s take {mean_s * 1000:.1f} ms, those of the others {usual_s * 1000:.1f} ms"
                one["slow"] += ("; " if one["slow"] else "") + what
    return found


def _replacement(group: RaidGroup, member: Member) -> dict[str, Any] | None:
    """The member that is being filled to take this one's place."""
    info, twin = member.info.successor, member.twin
    if info is None or twin is None:
        return None
    done = twin.frontier - group.layout.data_offset
    return {
        "path": info.path,
        "uuid": info.uuid,
        "done": done / (group.info.areas * group.geometry.area_member_bytes),
        "copied_bytes": twin.copied_bytes,
    }
