"""A second reader of the journal, written from FORMATS.md alone: slow, plain, and shared with no code of the product.

It takes the bytes of every file by index and returns the records that the chain holds.
"""

from __future__ import annotations

import struct
from typing import Any

from crc32c import crc32c

FIELDS = [
    "magic", "version", "file_index", "generation", "group", "capacity", "tail_off", "tail_seq", "redo_off", "redo_seq",
    "min_epoch", "crc",
]  # fmt: skip


def superblock(raw: bytes) -> dict[str, Any] | None:
    """One slot of 4096 bytes as a map, None when it is not valid."""
    sup: dict[str, Any] = dict(zip(FIELDS, struct.unpack_from("<4sHHQ16sQQQQQQI", raw), strict=True))
    if sup["magic"] != b"FSRJ" or sup["version"] not in (1, 2):
        return None
    covered = raw[:80]
    if sup["version"] == 1:
        sup["layouts"] = [(0, 0, [(0, 0, sup["capacity"])])]
    else:
        length = struct.unpack_from("<H", raw, 84)[0]
        if 96 + length > 4096:
            return None
        covered += raw[84 : 96 + length]
        sup["layouts"] = []
        at = 96
        while at < 96 + length:
            start, phase, count = struct.unpack_from("<QQH", raw, at)
            at += 18
            extents = [struct.unpack_from("<HQQ", raw, at + 18 * i) for i in range(count)]
            at += 18 * count
            sup["layouts"].append((start, phase, extents))
    return sup if crc32c(covered) == sup["crc"] else None


def chosen(files: dict[int, bytes]) -> dict[str, Any]:
    """The superblock that counts: the newest of those that lie in their own anchor."""
    best: dict[str, Any] | None = None
    for index, data in files.items():
        for slot in (0, 4096):
            sup = superblock(data[slot : slot + 4096].ljust(4096, b"\0"))
            if sup is None or sup["file_index"] != index:
                continue
            anchor = min(extent[0] for extent in sup["layouts"][-1][2])
            if anchor == index and (best is None or sup["generation"] > best["generation"]):
                best = sup
    assert best is not None, "no superblock counts"
    return best


def byte_at(files: dict[int, bytes], layouts: list[Any], off: int) -> int:
    """The byte at a logical offset."""
    start, phase, extents = [one for one in layouts if one[0] <= off][-1] if off >= layouts[0][0] else layouts[0]
    place = (off - start + phase) % sum(e[2] for e in extents)
    for file, begin, length in extents:
        if place < length:
            return files[file][8192 + begin + place]
        place -= length
    raise AssertionError("outside the ring")


def records(files: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """(seq, payload) of every record of the chain, from the tail on."""
    sup = chosen(files)
    layouts, off = sup["layouts"], sup["tail_off"]
    seq, epoch = sup["tail_seq"], sup["min_epoch"]
    end = max(off + sum(e[2] for e in layouts[-1][2]), layouts[-1][0])
    found: list[tuple[int, bytes]] = []
    while off + 64 <= end:
        header = bytes(byte_at(files, layouts, off + i) for i in range(64))
        magic, kind = struct.unpack_from("<4sB", header)
        its_epoch, its_seq = struct.unpack_from("<QQ", header, 8)
        payload_len = struct.unpack_from("<I", header, 36)[0]
        payload_crc, header_crc = struct.unpack_from("<II", header, 56)
        if magic != b"FSR1" or crc32c(header[:60]) != header_crc or its_seq != seq or its_epoch < epoch:
            break
        if its_epoch > epoch and kind != 6 and off != sup["tail_off"]:
            break
        if off + 64 + payload_len > end:
            break
        payload = bytes(byte_at(files, layouts, off + 64 + i) for i in range(payload_len))
        if payload_len and crc32c(payload) != payload_crc:
            break
        found.append((seq, payload))
        off, seq, epoch = off + 64 + payload_len, seq + 1, its_epoch
    return found
