"""A slow reader and checker of pools, written from docs/FORMATS.md alone. Imports nothing of raidlib.

It knows superblocks, metadata slots, logs, the map of areas and the rotation of RAID 5 and 6, and computes parity one
byte after the other by the definition. What it says about a closed pool is a second opinion on all that raidlib writes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgpack

Image = bytes | bytearray


@dataclass
class Member:
    """One member's bytes and what its superblock says."""

    image: Image
    pool: str
    uuid: str
    intent_offset: int
    intent_bytes: int
    slot_offset: int
    checkpoint_bytes: int
    log_bytes: int
    data_offset: int


class NaivePool:
    """A pool as its members' bytes describe it. Raises AssertionError when they do not add up."""

    def __init__(self, images: list[Image]) -> None:
        self.members = {member.uuid: member for member in map(read_superblock, images)}
        assert len({member.pool for member in self.members.values()}) == 1, "members of several pools"
        states = [read_state(member) for member in self.members.values()]
        self.generation, _, self.state = max(states, key=lambda one: one[:2])
        self.area_bytes: int = self.state["area_bytes"]
        self.volumes: dict[str, dict[str, Any]] = {volume["name"]: volume for volume in self.state["volumes"]}

    def read(self, name: str) -> bytes:
        """The contents of a volume, from data chunks alone."""
        volume = self.volumes[name]
        content = bytearray(volume["size"])
        for index, (group, area) in volume["areas"].items():
            at = index * self.area_bytes
            part = b"".join(self._data(group, area))[: self.area_bytes]
            content[at : at + self.area_bytes] = part[: max(0, volume["size"] - at)]
        return bytes(content)

    def check(self) -> int:
        """Check every row of every area of groups that are whole; return how many rows had redundancy to check."""
        checked = 0
        owners: dict[tuple[int, int], tuple[int, int]] = {}
        for volume in self.volumes.values():
            for index, place in volume["areas"].items():
                owner = volume["family"] or -volume["id"], index
                assert owners.setdefault(place, owner) == owner, f"area {place} has two owners"
        for index, group in enumerate(self.state["groups"]):
            used = {area for its_group, area in owners if its_group == index}
            assert not used & set(group["dirty"]), f"an area of group {group['name']} is used and free"
            if any(state != "in_sync" for _, _, state, *_ in group["members"]):
                continue
            parts = {first + i for first, count, *_ in group.get("extensions", ()) for i in range(count)}
            assert not parts & (used | set(group["dirty"])), "an area that holds parts is used or free"
            self._check_marks(index)
            for area in set(range(group["areas"])) - parts:
                for row in self._rows(index, area):
                    if area not in used:
                        assert area in group["dirty"] or not any(map(any, row)), f"free area {area} is not blank"
                        continue
                    self._check_row(group, area, row)
                    checked += group["level"] != 0
        return checked

    def _check_marks(self, index: int) -> None:
        """Every sector of the intent map is there, on every member; in a clean pool no region is marked."""
        group = self.state["groups"][index]
        regions = -(-group["areas"] // group["region_areas"])
        sectors = -(-regions // 4064)
        for uuid, *_ in group["members"]:
            member = self.members[uuid]
            pieces = [(member.intent_offset, member.intent_bytes)]
            for first, _count, intent_bytes, *_ in group.get("extensions", ()):
                pieces.append((member.data_offset + first * self._rows_of(group) * group["chunk_bytes"], intent_bytes))
            places = [at + i for at, length in pieces for i in range(0, length, 512)]
            assert len(places) >= sectors, "the intent map is too short"
            for at in places[:sectors]:
                sector = bytes(member.image[at : at + 512])
                assert _u32(sector, 508) == crc32c(sector[:508]), "a sector of the intent map is damaged"
                assert not (self.state["clean"] and any(sector[:508])), "a clean pool has a mark"

    def _rows_of(self, group: dict[str, Any]) -> int:
        """Rows in an area."""
        n = len(group["members"])
        data_chunks = {0: n, 1: 1, 5: n - 1, 6: n - 2, 10: n // 2}[group["level"]]
        return -(-self.area_bytes // (data_chunks * group["chunk_bytes"]))

    def _check_row(self, group: dict[str, Any], area: int, row: list[bytes]) -> None:
        level = group["level"]
        if level == 1:
            assert len(set(row)) == 1, f"area {area}: mirrors differ"
        if level == 10:
            for first in range(0, len(row), 2):
                assert row[first] == row[first + 1], f"area {area}: mirrors differ"
        if level == 5:
            *data, p = row
            assert p == bytes(xor(column) for column in zip(*data, strict=True)), f"area {area}: P is wrong"
        if level == 6:
            *data, p, q = row
            assert p == bytes(xor(column) for column in zip(*data, strict=True)), f"area {area}: P is wrong"
            assert q == bytes(weighted(column) for column in zip(*data, strict=True)), f"area {area}: Q is wrong"

    def _data(self, group: int, area: int) -> list[bytes]:
        info = self.state["groups"][group]
        level, n = info["level"], len(info["members"])
        chunks: list[bytes] = []
        for row in self._rows(group, area):
            if level == 1:
                chunks.append(row[0])
            elif level == 10:
                chunks += row[::2]
            else:
                chunks += row[: n - {0: 0, 5: 1, 6: 2}[level]]
        return chunks

    def _rows(self, group: int, area: int) -> list[list[bytes]]:
        """The rows of an area: for levels 0, 1 and 10 by member, for 5 and 6 data columns, then P, then Q."""
        info = self.state["groups"][group]
        level, chunk, n = info["level"], info["chunk_bytes"], len(info["members"])
        rows = self._rows_of(info)
        found = []
        for r in range(area * rows, (area + 1) * rows):
            by_member = []
            for uuid, *_ in info["members"]:
                member = self.members[uuid]
                at = member.data_offset + r * chunk
                by_member.append(bytes(member.image[at : at + chunk]))
            p = n - 1 - r % n
            if level == 5:
                found.append([by_member[(p + 1 + c) % n] for c in range(n - 1)] + [by_member[p]])
            elif level == 6:
                q = (p + 1) % n
                found.append([by_member[(p + 2 + c) % n] for c in range(n - 2)] + [by_member[p], by_member[q]])
            else:
                found.append(by_member)
        return found


def xor(column: tuple[int, ...]) -> int:
    """P of one byte of each data chunk."""
    result = 0
    for value in column:
        result ^= value
    return result


def weighted(column: tuple[int, ...]) -> int:
    """Q: the sum of 2^c times d_c in GF(2^8) with polynomial 0x11d."""
    result = 0
    for c, value in enumerate(column):
        for _ in range(c):
            value = value << 1
            if value & 0x100:
                value ^= 0x11D
        result ^= value
    return result


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_superblock(image: Image) -> Member:
    """Either copy will do."""
    for at in (0, 4096):
        block = bytes(image[at : at + 4096])
        if block[:8] == b"FSTRIPE\0" and _u32(block, 12) == crc32c(block[:12] + bytes(4) + block[16:]):
            assert _u32(block, 8) == 1, "version"
            assert _u64(block, 48) <= len(image), "the member has shrunk"
            return Member(
                image,
                block[16:32].hex(),
                block[32:48].hex(),
                _u64(block, 56),
                _u64(block, 64),
                _u64(block, 72),
                _u64(block, 80),
                _u64(block, 88),
                _u64(block, 112),
            )
    raise AssertionError("no superblock")


def read_state(member: Member) -> tuple[int, int, dict[str, Any]]:
    """(generation, records of its log, state) of a member."""
    best: tuple[int, int, dict[str, Any]] | None = None
    for slot in (0, 1):
        at = member.slot_offset + slot * (member.checkpoint_bytes + member.log_bytes)
        head = bytes(member.image[at : at + 32])
        length, generation = _u32(head, 12), _u64(head, 16)
        room = member.checkpoint_bytes - 32
        payload = bytes(member.image[at + 32 : at + 32 + min(length, room)])
        if _u32(head, 8) == 2:
            place = _u64(payload, 0)
            payload += bytes(member.image[place : place + length - room])
        if head[:8] != b"FSMETA\0\0" or _u32(head, 28) != crc32c(head[:28]) or _u32(head, 24) != crc32c(payload):
            continue
        payload = payload[8:] if _u32(head, 8) == 2 else payload
        if best is None or generation > best[0]:
            state = msgpack.unpackb(payload)
            for group in state["groups"]:
                group["dirty"] = set(run_list(group["dirty"]))
            assert state["version"] == 2 + any("extensions" in group for group in state["groups"]), "version"
            resolve_maps(state["volumes"])
            log = bytes(member.image[at + member.checkpoint_bytes : at + member.checkpoint_bytes + member.log_bytes])
            best = generation, apply_log(state, log, generation), state
    assert best is not None, "no metadata"
    return best


def apply_log(state: dict[str, Any], log: bytes, generation: int) -> int:
    """Apply the records that follow a checkpoint; return how many there are."""
    count = 0
    for at in range(0, len(log) - 31, 32):
        record = log[at : at + 32]
        kind, group, volume_id, place, area = record[4], record[5], *struct.unpack_from("<III", record, 20)
        if _u64(record, 8) != generation or _u32(record, 16) != count or _u32(record, 0) != crc32c(record[4:]):
            break
        volumes = {volume["id"]: volume for volume in state["volumes"]}
        if kind == 2:
            volumes[volume_id]["areas"][place] = group, area
            state["groups"][group]["dirty"].discard(area)
        elif kind in (3, 16):
            del volumes[volume_id]["areas"][place]
        if kind in (3, 17):
            state["groups"][group]["dirty"].add(area)
        count += 1
    return count


def run_list(packed: bytes) -> dict[int, int]:
    """Key -> value, key + 1 -> value + 1, and so on, for each run."""
    found = {}
    for at in range(0, len(packed), 12):
        key, value, count = struct.unpack_from("<III", packed, at)
        for i in range(count):
            found[key + i] = value + i
    return found


def resolve_maps(volumes: list[dict[str, Any]]) -> None:
    """Turn every place list into logical area -> (group, area), bases first."""
    waiting = list(volumes)
    done: dict[int, dict[int, tuple[int, int]]] = {0: {}}
    while waiting:
        ready = [volume for volume in waiting if volume["base"] in done]
        assert ready, "bases of images form a cycle"
        for volume in ready:
            areas: dict[int, tuple[int, int]] = dict(done[volume["base"]])
            packed = volume["areas"]
            for at in range(0, len(packed), 16):
                first, count, group, area = struct.unpack_from("<IIII", packed, at)
                for i in range(count):
                    if group == 0xFFFFFFFF:
                        areas.pop(first + i, None)
                    else:
                        areas[first + i] = group, area + i
            volume["areas"] = done[volume["id"]] = areas
            waiting.remove(volume)


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _u64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])
