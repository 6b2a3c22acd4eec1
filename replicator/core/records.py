"""Journal records: what they hold and their bytes.

A record's bytes in the journal are its bytes on the wire. Records are position-independent, so a run of them can be
shipped and appended without touching each one. All numbers are little-endian. Layout of the header (64 bytes):

    offset  size  field
         0     4  magic         0x31525346, the bytes "FSR1"
         4     1  kind          see Kind
         5     1  flags         see FLAG_*
         6     2  version       layout version: 1; 2 with FLAG_NUMBERED
         8     8  epoch         the history the record belongs to: counter << 24 | node tag (see epochs.py)
        16     8  seq           position in the group's write order; the first record of a group has seq 1
        24     8  write_time    when the write was accepted, nanoseconds since 1970, strictly rising in a group
        32     4  volume        index of the volume in its group; 0 for records that concern the whole group
        36     4  payload_len   bytes that follow the header; with FLAG_NUMBERED the last 12 are u64 number, u32 series
        40     8  offset        bytes from the start of the volume
        48     8  length        bytes of the volume the record covers (equals data_len for WRITE and COPY data)
        56     4  payload_crc   CRC32C of the payload, 0 when there is none
        60     4  header_crc    CRC32C of bytes 0..59

Invariant of a valid sequence: seq rises by exactly one, epoch never falls, write_time rises.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from crc32c import crc32c

MAGIC = 0x31525346
VERSION = 1
NUMBERED_VERSION = 2
HEADER = struct.Struct("<IBBHQQQIIQQII")
HEADER_BYTES = HEADER.size
_BODY = struct.Struct("<IBBHQQQIIQQI")
_CRC = struct.Struct("<I")
MAX_PAYLOAD_BYTES = 64 << 20

FLAG_FUA = 0x01
"""The host asked for this write to be durable: a synchronous peer makes it durable before it answers."""
FLAG_NO_PUNCH = 0x02
"""A ZERO that must stay allocated."""
FLAG_NUMBERED = 0x04
"""The record has a number in its consistency set: the payload ends with it (core/numbering.py)."""
_NUMBER = struct.Struct("<QI")
NUMBER_BYTES = _NUMBER.size


class Kind(enum.IntEnum):
    """What a record does when it is applied."""

    WRITE = 1  # host data
    ZERO = 2  # host write-zeroes; no payload
    TRIM = 3  # host discard: reads as zeroes afterwards, space may be freed; no payload
    COPY = 4  # data read under the range lock by initial copy or resync
    COPY_ZERO = 5  # a range found unallocated or zero by initial copy or resync; no payload
    EPOCH = 6  # a new history begins: its epoch is in the header, base = seq - 1
    BARRIER = 7  # host flush: a synchronous peer makes everything up to here durable before it answers
    BITMAP_OPEN = 8  # open a new history bitmap that starts at this seq
    BITMAP_CLEAR = 9  # drop history bitmaps older than `offset` (a start seq)
    SYNCED = 10  # resync is complete: once applied and durable the copy is consistent
    MARKER = 11  # names a consistent instant over groups; payload: msgpack {id, name}
    RESIZE = 12  # the volume has `length` bytes from here on
    VOLUME_ADD = 13  # the group has one more volume, which is empty: `volume`; payload: msgpack {name, size}
    VOLUME_REMOVE = 14  # `volume` is in the group no longer


DATA_KINDS = frozenset({Kind.WRITE, Kind.ZERO, Kind.TRIM, Kind.COPY, Kind.COPY_ZERO})
"""Kinds that change volume contents."""
LIST_KINDS = frozenset({Kind.RESIZE, Kind.VOLUME_ADD, Kind.VOLUME_REMOVE})
"""Kinds that change which volumes the group has, or their sizes."""


class BadRecord(Exception):
    """Bytes that are not a valid record: torn by a crash when found in a journal's tail, corrupt anywhere else."""


class Header(NamedTuple):
    """One decoded header. Units as in the table above."""

    kind: int
    flags: int
    epoch: int
    seq: int
    write_time: int
    volume: int
    payload_len: int
    offset: int
    length: int
    payload_crc: int

    @property
    def total_bytes(self) -> int:
        """Header and payload together."""
        return HEADER_BYTES + self.payload_len

    @property
    def data_len(self) -> int:
        """Bytes of the payload without the record's number."""
        return self.payload_len - NUMBER_BYTES if self.flags & FLAG_NUMBERED else self.payload_len


def pack_number(number: int, series: int) -> bytes:
    """Return the end of a numbered record's payload."""
    return _NUMBER.pack(number, series)


def unpack_number(end: bytes | memoryview) -> tuple[int, int]:
    """Return (number, series) of the last NUMBER_BYTES of a numbered record."""
    number, series = _NUMBER.unpack(end)
    return number, series


def version_of(flags: int) -> int:
    """The layout version of records with these flags."""
    return NUMBERED_VERSION if flags & FLAG_NUMBERED else VERSION


def pack_header(
    kind: int,
    flags: int,
    epoch: int,
    seq: int,
    write_time: int,
    volume: int,
    payload_len: int,
    offset: int,
    length: int,
    payload_crc: int,
) -> bytes:
    """Return the 64 header bytes, with their CRC. Hot path: no checks."""
    version = NUMBERED_VERSION if flags & FLAG_NUMBERED else VERSION
    body = _BODY.pack(
        MAGIC, kind, flags, version, epoch, seq, write_time, volume, payload_len, offset, length, payload_crc
    )
    return body + _CRC.pack(crc32c(body))


def unpack_header(buf: bytes | bytearray | memoryview, at: int = 0) -> Header:
    """Decode the header at byte `at` of `buf`.

    Raises BadRecord when fewer than 64 bytes are left, or magic, version, CRC or payload length are wrong.
    """
    if len(buf) - at < HEADER_BYTES:
        raise BadRecord("header cut short")
    (magic, kind, flags, version, epoch, seq, write_time, volume, payload_len, offset, length, payload_crc, crc) = (
        HEADER.unpack_from(buf, at)
    )
    if magic != MAGIC:
        raise BadRecord("bad magic")
    if crc != crc32c(memoryview(buf)[at : at + 60]):
        raise BadRecord("header CRC mismatch")
    if version != version_of(flags):
        raise BadRecord(f"record version {version}, this farstripe knows up to {NUMBERED_VERSION}")
    if payload_len > MAX_PAYLOAD_BYTES:
        raise BadRecord(f"payload of {payload_len} bytes exceeds {MAX_PAYLOAD_BYTES}")
    if version == NUMBERED_VERSION and payload_len < NUMBER_BYTES:
        raise BadRecord("a numbered record without its number")
    return Header(kind, flags, epoch, seq, write_time, volume, payload_len, offset, length, payload_crc)


def check_payload(header: Header, payload: bytes | memoryview) -> None:
    """Raise BadRecord unless `payload` has the length and CRC that `header` states."""
    if len(payload) != header.payload_len:
        raise BadRecord("payload cut short")
    if header.payload_len and crc32c(payload) != header.payload_crc:
        raise BadRecord("payload CRC mismatch")
