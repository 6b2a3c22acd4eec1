"""The superblock of a journal's file: where the ring begins, and what it is made of.

Two slots of 4096 bytes at 0 and 4096 of every file (slot = generation mod 2), little-endian:

    offset  size  field
         0     4  magic        "FSRJ"
         4     2  version      1: one file that never was anything else; 2: what follows offset 84 counts
         6     2  file_index   place of this file in the journal; never given twice
         8     8  generation   rises by one with each write
        16    16  group        UUID
        32     8  capacity     bytes of the newest layout's ring
        40     8  tail_off     logical offset of the first record kept
        48     8  tail_seq     its seq (the next seq when the journal is empty)
        56     8  redo_off     logical offset of the first record that may not be in the pool
        64     8  redo_seq     its seq
        72     8  min_epoch    records of the chain have at least this epoch
        80     4  crc          CRC32C of bytes 0..79 and, in version 2, of the layouts
        84     2  length       version 2: bytes of the layouts, which begin at offset 96
        86     2  next_index   the index that the next file gets
        88     8  layout_gen   rises by one with each change of the layouts
        96     n  layouts      each: u64 start, u64 phase, u16 extents, then for each extent
                               u16 file index, u64 begin, u64 length (see layout.py)

Which superblock counts. All files get a new one when the layouts change, the *anchor* last: the lowest file of the
newest layout. Everything else (tail, redo point) is written to the anchor alone. So a superblock counts only in its own
anchor, and of those the one with the highest generation does. One that is newer and lies elsewhere is of a change that
was cut short: it never happened. A file that such a superblock needs as its anchor has to be there, to tell.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crc32c import crc32c

from replicator.core.errors import IntegrityError, Refused
from replicator.journal.files import RandomFile
from replicator.journal.layout import Extent, Layout, Layouts, anchor_of, files_of, single

SLOT_BYTES = 4096
DATA_START = 2 * SLOT_BYTES
"""Where a file's part of the ring begins."""
_HEAD = struct.Struct("<4sHHQ16sQQQQQQ")
_CRC = struct.Struct("<I")
_REST = struct.Struct("<HHQ")
_LAYOUT = struct.Struct("<QQH")
_EXTENT = struct.Struct("<HQQ")
_LAYOUTS_AT = 96
MAX_INDEX = 0xFFFF


class Super(NamedTuple):
    """The superblock's content; fields as in the table above. `layouts` None: version 1."""

    generation: int
    group: bytes
    capacity: int
    tail_off: int
    tail_seq: int
    redo_off: int
    redo_seq: int
    min_epoch: int
    layouts: Layouts | None = None
    next_index: int = 1
    layout_gen: int = 0

    def ring(self) -> Layouts:
        """The layouts of the ring."""
        return single(self.capacity) if self.layouts is None else self.layouts


def pack(sup: Super, file_index: int) -> bytes:
    """Return the bytes of `sup` for the slots of one file. Raises Refused when the layouts do not fit."""
    version = 1 if sup.layouts is None else 2
    head = _HEAD.pack(b"FSRJ", version, file_index, *sup[:8])
    if sup.layouts is None:
        return head + _CRC.pack(crc32c(head))
    body = b"".join(
        _LAYOUT.pack(start, phase, len(extents)) + b"".join(_EXTENT.pack(*extent) for extent in extents)
        for start, phase, extents in sup.layouts
    )
    if len(body) > SLOT_BYTES - _LAYOUTS_AT or sup.next_index > MAX_INDEX:
        raise Refused("the journal has been changed too often", "wait until files that were removed are released")
    rest = _REST.pack(len(body), sup.next_index, sup.layout_gen) + body
    return (head + _CRC.pack(crc32c(rest, crc32c(head))) + rest).ljust(SLOT_BYTES, b"\0")


def unpack(raw: bytes) -> tuple[int, Super] | None:
    """Return (file index, superblock) from the bytes of a slot, None when they are none."""
    if len(raw) < _HEAD.size + _CRC.size:
        return None
    magic, version, index, *fields = _HEAD.unpack_from(raw)
    if magic != b"FSRJ" or version not in (1, 2):
        return None
    crc, known = crc32c(raw[: _HEAD.size]), _CRC.unpack_from(raw, _HEAD.size)[0]
    if version == 1:
        return (index, Super(*fields)) if crc == known else None
    length, next_index, layout_gen = _REST.unpack_from(raw, _HEAD.size + _CRC.size)
    end = _LAYOUTS_AT + length
    if end > len(raw) or crc32c(raw[_HEAD.size + _CRC.size : end], crc) != known:
        return None
    kept = Super(*fields)
    return index, kept._replace(layouts=_layouts(raw, end), next_index=next_index, layout_gen=layout_gen)


def _layouts(raw: bytes, end: int) -> Layouts:
    at, found = _LAYOUTS_AT, []
    while at < end:
        start, phase, count = _LAYOUT.unpack_from(raw, at)
        at += _LAYOUT.size
        extents = tuple(Extent(*_EXTENT.unpack_from(raw, at + i * _EXTENT.size)) for i in range(count))
        at += count * _EXTENT.size
        found.append(Layout(start, phase, extents))
    return tuple(found)


def read_slots(file: RandomFile) -> list[tuple[int, Super]]:
    """Return the valid superblocks of one file, as (file index, superblock). Raises OSError."""
    found = (unpack(file.pread(SLOT_BYTES, slot * SLOT_BYTES)) for slot in (0, 1))
    return [one for one in found if one is not None]


def write_slot(file: RandomFile, sup: Super, file_index: int) -> None:
    """Durable: `sup` in one of the file's slots. Raises OSError."""
    file.pwrite_durable(pack(sup, file_index), (sup.generation % 2) * SLOT_BYTES)


def choose(seen: Mapping[int, Sequence[Super]]) -> Super:
    """Return the superblock that counts. seen: file index -> valid superblocks of that file.

    Raises IntegrityError when there is none, or a file is missing that it, or a newer one, needs.
    """
    count = [sup for index, sups in seen.items() for sup in sups if anchor_of(sup.ring()) == index]
    newest = max((sup for sups in seen.values() for sup in sups), key=lambda s: s.generation, default=None)
    if newest is None:
        raise IntegrityError(
            "no valid superblock in the journal", "a secondary: farstripe group journal replace; else see explain"
        )
    best = max(count, key=lambda s: s.generation, default=None)
    needed = {anchor_of(newest.ring())} if best is None else {anchor_of(newest.ring())} | files_of(best.ring())
    missing = sorted(needed - set(seen))
    if missing or best is None:
        names = ", ".join(str(index) for index in missing)
        raise IntegrityError(
            f"of the journal's files those with these numbers are missing or damaged: {names}",
            "bring them back, or replace the journal: farstripe group journal replace",
        )
    return best
