"""A small durable value in two slots of one file, for what changes often: no name changes, no space is needed.

The valid slot with the higher generation counts; a save goes to the other one. Slot, little-endian:

    offset  size  field
         0     4  magic        of the kind of file
         4     4  length       bytes of the body
         8     8  generation   slot = generation mod 2
        16     4  crc          CRC32C of bytes 0..15 and the body
        20     n  body         msgpack
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack
from crc32c import crc32c

from replicator.core.errors import BadInput, IntegrityError
from replicator.journal.files import RandomFile

_HEAD = struct.Struct("<4sIQ")
_CRC = struct.Struct("<I")
_BODY_AT = _HEAD.size + _CRC.size


class SlotFile:
    """One value in a file of 2 * `slot_bytes`. Not thread-safe: the caller orders the saves."""

    def __init__(self, file: RandomFile, magic: bytes, slot_bytes: int) -> None:
        """magic: 4 bytes. The file is read by `load`, which comes first."""
        self._file, self._magic, self._slot_bytes = file, magic, slot_bytes
        self._generation = 0
        self._failed = ""

    def load(self) -> Any:
        """Return the newest whole value, None when nothing was ever saved.

        Raises IntegrityError when the file holds something, but nothing whole.
        """
        best: tuple[int, bytes] | None = None
        blank = True
        for slot in (0, 1):
            raw = self._file.pread(self._slot_bytes, slot * self._slot_bytes)
            blank = blank and not any(raw)
            if len(raw) < _BODY_AT:
                continue
            magic, length, generation = _HEAD.unpack_from(raw)
            body = raw[_BODY_AT : _BODY_AT + length]
            if magic != self._magic or len(body) != length:
                continue
            if _CRC.unpack_from(raw, _HEAD.size)[0] != crc32c(body, crc32c(raw[: _HEAD.size])):
                continue
            if best is None or generation > best[0]:
                best = generation, body
        if best is not None:
            self._generation = best[0]
            return msgpack.unpackb(best[1], strict_map_key=False)
        if blank:
            return None
        raise IntegrityError(f"a file of kind {self._magic.decode()} holds no whole slot", "restore it from a backup")

    def save(self, value: Any) -> None:
        """Store `value`. Durable: all of it; after a crash before the return, the former value, whole.

        Raises OSError; then every later save does, since nobody knows what the medium holds.
        """
        if self._failed:
            raise OSError(self._failed)
        body = msgpack.packb(value)
        if len(body) > self._slot_bytes - _BODY_AT:
            raise BadInput(f"a value of {len(body)} bytes does not fit", f"{self._slot_bytes - _BODY_AT} is the most")
        generation = self._generation + 1
        head = _HEAD.pack(self._magic, len(body), generation)
        crc = _CRC.pack(crc32c(body, crc32c(head)))
        try:
            self._file.pwrite_durable(head + crc + body, (generation % 2) * self._slot_bytes)
        except OSError as exc:
            self._failed = f"an earlier write failed: {exc.strerror or exc}"
            raise
        self._generation = generation

    def close(self) -> None:
        """Release the file."""
        self._file.close()
