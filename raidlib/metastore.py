"""Pool metadata on one member: two slots, each a checkpoint and the log that follows it.

Generation g lives in slot g % 2, so writing g + 1 never touches g. A checkpoint counts when its CRCs hold. Records are
appended with plain writes: they survive the death of the process at once and a power cut after the next sync. Every
member carries the same metadata; which copy wins is decided in assemble.py.

Checkpoint, little-endian: magic "FSMETA\\0\\0", u32 version, u32 payload bytes, u64 generation, u32 payload CRC32C,
u32 CRC32C of the 28 bytes before; then the payload (state.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from raidlib.blockfile import BlockFile
from raidlib.errors import IntegrityError, OutOfSpace
from raidlib.state import Kind, PoolState, unpack_log
from raidlib.superblock import Layout

MAGIC = b"FSMETA\0\0"
VERSION = 1
_HEADER = struct.Struct("<8sIIQII")


@dataclass
class Found:
    """What one member's metadata says: the state with its log applied, and how much log there was."""

    state: PoolState
    records: int
    committed: bool

    @property
    def rank(self) -> tuple[int, int]:
        """Higher is newer."""
        return self.state.generation, self.records


class MetaStore:
    """Reads and writes the metadata slots of one member."""

    def __init__(self, file: BlockFile, layout: Layout) -> None:
        self._file = file
        self._layout = layout

    def slot_of(self, generation: int) -> int:
        """Byte offset of the slot of a generation."""
        at = self._layout
        return at.slot_offset + (generation & 1) * (at.checkpoint_bytes + at.log_bytes)

    def write_checkpoint(self, generation: int, payload: bytes) -> None:
        """Raises OSError. Durable: the checkpoint, with an empty log."""
        header = encode_header(generation, payload)
        self._file.pwrite_durable(header + payload, self.slot_of(generation))

    def log_offset(self, generation: int) -> int:
        """Byte offset of the log of a generation."""
        return self.slot_of(generation) + self._layout.checkpoint_bytes

    def read(self) -> Found | None:
        """Return the newest valid state, or None when neither slot holds one. Raises OSError, IntegrityError."""
        best: tuple[int, bytes] | None = None
        for slot in (0, 1):
            checkpoint = self._read_checkpoint(self.slot_of(slot))
            if checkpoint is not None and checkpoint[0] & 1 == slot and (best is None or checkpoint[0] > best[0]):
                best = checkpoint
        if best is None:
            return None
        generation, payload = best
        state = PoolState.decode(payload, generation)
        records = unpack_log(self._file.pread(self._layout.log_bytes, self.log_offset(generation)), generation)
        for record in records:
            state.apply(record)
        return Found(state, len(records), any(record.kind == Kind.COMMIT for record in records))

    def _read_checkpoint(self, offset: int) -> tuple[int, bytes] | None:
        head = self._file.pread(_HEADER.size, offset)
        magic, version, length, generation, payload_crc, crc = _HEADER.unpack(head)
        if magic != MAGIC or crc != crc32c(head[:-4]):
            return None
        if version != VERSION:
            raise IntegrityError(
                f"{self._file.path}: metadata has version {version}, this raidlib knows {VERSION}",
                "use the farstripe that wrote it, or a newer one",
            )
        if length > self._layout.checkpoint_bytes - _HEADER.size:
            return None
        payload = self._file.pread(length, offset + _HEADER.size)
        return (generation, payload) if crc32c(payload) == payload_crc else None


def encode_header(generation: int, payload: bytes) -> bytes:
    """Return the 32 bytes before a checkpoint's payload."""
    head = _HEADER.pack(MAGIC, VERSION, len(payload), generation, crc32c(payload), 0)[:-4]
    return head + struct.pack("<I", crc32c(head))


def check_fits(payload: bytes, layout: Layout) -> None:
    """Raise OutOfSpace when a checkpoint is too large for its slot."""
    room = layout.checkpoint_bytes - _HEADER.size
    if len(payload) > room:
        raise OutOfSpace(
            f"pool metadata would take {len(payload)} bytes, the members have room for {room}",
            "delete volumes, or make a pool of larger members",
        )
