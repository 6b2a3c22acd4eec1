"""Pool metadata on one member: two slots, each a checkpoint and the log that follows it.

A new checkpoint goes to the slot that does not hold this member's last good one, so there is always one to fall back
on. (Not to slot generation % 2: after a crash members may be at different generations, and the next one would
overwrite the only good slot of some.) A checkpoint counts when its CRCs hold. Records are
appended with plain writes: they survive the death of the process at once and a power cut after the next sync. Every
member carries the same metadata; which copy wins is decided in assemble.py.

Checkpoint, little-endian: magic "FSMETA\\0\\0", u32 version, u32 payload bytes, u64 generation, u32 payload CRC32C,
u32 CRC32C of the 28 bytes before; then the payload (state.py). Version 2 is one that is too long for its slot, on a
group that has grown: its payload begins with u64, the byte of the member where what does not fit in the slot goes on.
That part is durable first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c

from raidlib.blockfile import BlockFile
from raidlib.errors import IntegrityError, OutOfSpace
from raidlib.layout import PLACE_BYTES, Layout
from raidlib.state import PoolState, Record, unpack_log

MAGIC = b"FSMETA\0\0"
VERSION = 2
"""The newest this raidlib knows. What fits its slot is written as version 1."""
_HEADER = struct.Struct("<8sIIQII")
HEADER_BYTES = _HEADER.size
_PLACE = struct.Struct("<Q")
assert _PLACE.size == PLACE_BYTES


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
        self.layout = layout
        """Of the member; it grows with the group."""
        self._current = 0

    def write_checkpoint(self, generation: int, payload: bytes) -> None:
        """Raises OSError. Durable: the checkpoint, with an empty log."""
        other = 1 - self._current
        version, room = 1, self.layout.checkpoint_bytes - _HEADER.size
        if len(payload) > room:
            version, place = 2, self.layout.extensions[-1].overflow_offset(other)
            payload = _PLACE.pack(place) + payload
            self._file.pwrite_durable(payload[room:], place)
        head = encode_header(generation, payload, version)
        self._file.pwrite_durable(head + payload[:room], self._slot_offset(other))
        self._current = other

    def redirect(self, file: BlockFile) -> None:
        """Go on in another file that holds the same metadata."""
        self._file = file

    @property
    def log_offset(self) -> int:
        """Byte offset of the log that follows the last checkpoint written or read."""
        return self._slot_offset(self._current) + self.layout.checkpoint_bytes

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
        log = unpack_log(self._file.pread(self.layout.log_bytes, self.log_offset), generation)
        return Raw(generation, payload, tuple(log))

    def _slot_offset(self, slot: int) -> int:
        at = self.layout
        return at.slot_offset + slot * (at.checkpoint_bytes + at.log_bytes)

    def _read_checkpoint(self, offset: int) -> tuple[int, bytes] | None:
        head = self._file.pread(_HEADER.size, offset)
        magic, version, length, generation, payload_crc, crc = _HEADER.unpack(head)
        if magic != MAGIC or crc != crc32c(head[:-4]):
            return None
        if not 1 <= version <= VERSION:
            raise IntegrityError(
                f"{self._file.path}: metadata has version {version}, this raidlib knows {VERSION}",
                "use the farstripe that wrote it, or a newer one",
            )
        room = self.layout.checkpoint_bytes - _HEADER.size
        if version == 1 and length > room:
            return None
        payload = self._file.pread(min(length, room), offset + _HEADER.size)
        if version == 2:
            (place,) = _PLACE.unpack_from(payload)
            if place + length - room > self._file.size:
                return None  # torn
            payload += self._file.pread(length - room, place)
        if crc32c(payload) != payload_crc:
            return None
        return generation, payload if version == 1 else payload[_PLACE.size :]


def encode_header(generation: int, payload: bytes, version: int = 1) -> bytes:
    """Return the 32 bytes before a checkpoint's payload."""
    head = _HEADER.pack(MAGIC, version, len(payload), generation, crc32c(payload), 0)[:-4]
    return head + struct.pack("<I", crc32c(head))


def check_fits(payload: bytes, layout: Layout, reserve_bytes: int = 0) -> None:
    """Raise OutOfSpace when a checkpoint is too large for its room, less a reserve."""
    room = layout.checkpoint_room - _HEADER.size - reserve_bytes
    if len(payload) > room:
        raise OutOfSpace(
            f"pool metadata would take {len(payload)} bytes, the members have room for {room}",
            "delete volumes or snapshots, or make a pool of larger members",
        )
