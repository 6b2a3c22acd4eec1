"""Pool metadata on one member: two slots, each a checkpoint and the log that follows it.

A new checkpoint goes to the slot that does not hold this member's last good one, so there is always one to fall back
on. (Not to slot generation % 2: after a crash members may be at different generations, and the next one would
overwrite the only good slot of some.) A checkpoint counts when its CRCs hold. Records are
appended with plain writes: they survive the death of the process at once and a power cut after the next sync. Every
member carries the same metadata; which copy wins is decided in assemble.py.

Checkpoint, little-endian: magic "FSMETA\\0\\0", u32 version, u32 payload bytes, u64 generation, u32 payload CRC32C,
u32 CRC32C of the 28 bytes before; then the payload (state.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c

from raidlib.blockfile import BlockFile
from raidlib.errors import IntegrityError, OutOfSpace
from raidlib.state import PoolState, Record, unpack_log
from raidlib.superblock import Layout

MAGIC = b"FSMETA\0\0"
VERSION = 1
_HEADER = struct.Struct("<8sIIQII")
HEADER_BYTES = _HEADER.size


class Raw(NamedTuple):
    """What one member's metadata says, undecoded. Members that hold the same have equal ones."""

    generation: int
    payload: bytes
    log: tuple[Record, ...]

    def decode(self) -> Found:
        """Return the state. Raises IntegrityError."""
        state = PoolState.decode(self.payload, self.generation)
        for record in self.log:
            state.apply(record)
        return Found(state, len(self.log))


@dataclass
class Found:
    """What one member's metadata says: the state with its log applied, and how much log there was."""

    state: PoolState
    records: int

    @property
    def rank(self) -> tuple[int, int]:
        """Higher is newer."""
        return self.state.generation, self.records


class MetaStore:
    """Reads and writes the metadata slots of one member."""

    def __init__(self, file: BlockFile, layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._current = 0

    def write_checkpoint(self, generation: int, payload: bytes) -> None:
        """Raises OSError. Durable: the checkpoint, with an empty log."""
        other = 1 - self._current
        self._file.pwrite_durable(encode_header(generation, payload) + payload, self._slot_offset(other))
        self._current = other

    def redirect(self, file: BlockFile) -> None:
        """Go on in another file that holds the same metadata."""
        self._file = file

    @property
    def log_offset(self) -> int:
        """Byte offset of the log that follows the last checkpoint written or read."""
        return self._slot_offset(self._current) + self._layout.checkpoint_bytes

    def read(self) -> Found | None:
        """Return the newest valid state, or None when neither slot holds one. Raises OSError, IntegrityError."""
        raw = self.read_raw()
        return None if raw is None else raw.decode()

    def read_raw(self) -> Raw | None:
        """Return the newest valid metadata, or None when neither slot holds any. Raises OSError, IntegrityError."""
        best: tuple[int, bytes] | None = None
        for slot in (0, 1):
            checkpoint = self._read_checkpoint(self._slot_offset(slot))
            if checkpoint is not None and (best is None or checkpoint[0] > best[0]):
                best, self._current = checkpoint, slot
        if best is None:
            return None
        generation, payload = best
        log = unpack_log(self._file.pread(self._layout.log_bytes, self.log_offset), generation)
        return Raw(generation, payload, tuple(log))

    def _slot_offset(self, slot: int) -> int:
        at = self._layout
        return at.slot_offset + slot * (at.checkpoint_bytes + at.log_bytes)

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


def check_fits(payload: bytes, layout: Layout, reserve_bytes: int = 0) -> None:
    """Raise OutOfSpace when a checkpoint is too large for its slot, less a reserve."""
    room = layout.checkpoint_bytes - _HEADER.size - reserve_bytes
    if len(payload) > room:
        raise OutOfSpace(
            f"pool metadata would take {len(payload)} bytes, the members have room for {room}",
            "delete volumes or snapshots, or make a pool of larger members",
        )
