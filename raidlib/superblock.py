"""The superblock of a member: who it is and where its parts lie.

It says which pool and which member this is; it does not change while the member lives, so it cannot be torn. It stands
twice, in the first two 4 KiB blocks, and either copy will do. What does change (the generation, which members are
good, the volumes, how far a group has grown) is in the metadata slots (metastore.py). On a spare all places of parts
are 0: it has none.

Superblock, 4096 bytes, little-endian, zero-filled:

    offset  size  field
         0     8  magic            "FSTRIPE\\0"
         8     4  version          1; 2 with a checksum table
        12     4  crc              CRC32C of the 4096 bytes with this field zero
        16    16  pool uuid
        32    16  member uuid
        48     8  size             bytes of the member that the pool uses
        56     8  intent offset
        64     8  intent bytes     intent map of the member's group (intents.py)
        72     8  slot offset      two metadata slots, one after the other
        80     8  checkpoint bytes room for a checkpoint at the start of each slot
        88     8  log bytes        room for log records after it
        96     8  journal offset
       104     8  journal bytes    stripe journal (stripejournal.py), 0 when the level needs none
       112     8  data offset      row 0
       120     8  table offset     version 2: checksum table (checksums.py)
       128     8  table bytes      version 2
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from crc32c import crc32c

from raidlib.blockfile import BlockFile
from raidlib.errors import IntegrityError
from raidlib.layout import NOWHERE, Layout

SUPERBLOCK_BYTES = 4096
COPIES = 2
MAGIC = b"FSTRIPE\0"
VERSION = 2
"""The newest this raidlib knows. A member without checksums is written as version 1, which any raidlib knows."""
_LAYOUT = struct.Struct("<8sII16s16sQQQQQQQQQ")
_TABLE = struct.Struct("<QQ")
_CRC_AT = 12


@dataclass(frozen=True)
class Superblock:
    """One member's identity."""

    pool_uuid: str
    member_uuid: str
    size: int
    layout: Layout

    @property
    def is_spare(self) -> bool:
        """Whether it belongs to the pool without being a member of a group: it has no parts yet."""
        return self.layout == NOWHERE

    def encode(self) -> bytes:
        """Return the 4096 bytes."""
        at = self.layout
        body = bytearray(SUPERBLOCK_BYTES)
        _LAYOUT.pack_into(
            body,
            0,
            MAGIC,
            VERSION if at.table_bytes else 1,
            0,
            uuid.UUID(self.pool_uuid).bytes,
            uuid.UUID(self.member_uuid).bytes,
            self.size,
            at.intent_offset,
            at.intent_bytes,
            at.slot_offset,
            at.checkpoint_bytes,
            at.log_bytes,
            at.journal_offset,
            at.journal_bytes,
            at.data_offset,
        )
        if at.table_bytes:
            _TABLE.pack_into(body, _LAYOUT.size, at.table_offset, at.table_bytes)
        struct.pack_into("<I", body, _CRC_AT, crc32c(bytes(body)))
        return bytes(body)


def write_superblock(file: BlockFile, superblock: Superblock) -> None:
    """Write both copies. Raises OSError. Durable: both, the first before the second is begun."""
    block = superblock.encode()
    for copy in range(COPIES):
        file.pwrite_durable(block, copy * SUPERBLOCK_BYTES)


def erase_superblock(file: BlockFile) -> None:
    """Make the member nobody's. Raises OSError. Durable: it."""
    for copy in range(COPIES):
        file.pwrite_durable(bytes(SUPERBLOCK_BYTES), copy * SUPERBLOCK_BYTES)


def read_superblock(file: BlockFile) -> Superblock | None:
    """Return the superblock, or None when the file has none (neither copy has the magic).

    Raises IntegrityError when there is one that cannot be used: both copies damaged, or a newer version.
    """
    if file.size < COPIES * SUPERBLOCK_BYTES:
        return None
    trouble: IntegrityError | None = None
    for copy in range(COPIES):
        try:
            block = file.pread(SUPERBLOCK_BYTES, copy * SUPERBLOCK_BYTES)
        except OSError as exc:
            trouble = IntegrityError(f"{file.path}: superblock cannot be read: {exc.strerror}")
            continue
        if block[:8] != MAGIC:
            continue
        (_, version, crc, pool, member, size, *places) = _LAYOUT.unpack_from(block)
        if crc != crc32c(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4 :]):
            trouble = IntegrityError(f"{file.path}: superblock is damaged", "replace the member")
        elif not 1 <= version <= VERSION:
            trouble = IntegrityError(
                f"{file.path}: superblock has version {version}, this raidlib knows {VERSION}",
                "use the farstripe that wrote it, or a newer one",
            )
        else:
            if version >= 2:
                places += _TABLE.unpack_from(block, _LAYOUT.size)
            return Superblock(uuid.UUID(bytes=pool).hex, uuid.UUID(bytes=member).hex, size, Layout(*places))
    if trouble is not None:
        raise trouble
    return None
