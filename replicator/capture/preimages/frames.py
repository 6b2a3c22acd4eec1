"""Frames: what the ring of pre-images is made of. Pure: bytes in, bytes out.

A frame holds what some records in a row overwrote. Frames lie back to back in the ring, which wraps. Little-endian:

    offset  size  field
         0     4  magic       "FSRU"
         4     2  version     1
         6     2  flags       1 PARTIAL: the frame's one record goes on in the next frame
                              2 ATTACH: no record; positions go on behind last_seq, in another sequence; its one
                                entry is empty
                              4 CONSISTENT: after each record of the frame the group is a consistent image
                              8 MARKER: the frame holds a MARKER record
         8     8  life        of the ring when it was written
        16     8  off         logical offset of the frame: bytes since the ring was made
        24     8  length      bytes of the whole frame
        32     4  entries     in the table
        36     4  zero
        40     8  first_seq   of the first record
        48     8  last_seq    of the last record
        56     8  epoch       of all of them
        64     8  first_time  write time of the first record, nanoseconds since 1970
        72     8  last_time   of the last
        80     4  crc         CRC32C of bytes 0..79 and of the table
        84   48n  table       an entry for each piece of a record, in order
                  data        of the entries, back to back

    entry   size  field
         0     8  seq
         8     8  write_time
        16     8  offset      bytes from the start of the volume
        24     8  length      bytes of the volume that the piece covers
        32     4  volume      index in the group
        36     1  kind        of the record, as in records.Kind
        37     3  zero
        40     4  data_len    length, or 0: the range read as zeroes; MARKER: bytes of its payload
        44     4  data_crc    CRC32C of the data

A record has one piece or more; one that changes nothing (kind EPOCH, say) has a piece of length 0. So every record of
the window is there, with its time. Frames of an earlier lap have another `off`, those of an earlier life another
`life`: neither can be taken for the next frame of the chain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from crc32c import crc32c

from replicator.journal.files import Buffer

MAGIC = b"FSRU"
VERSION = 1
PARTIAL = 1
ATTACH = 2
CONSISTENT = 4
MARKER = 8
_HEAD = struct.Struct("<4sHHQQQIIQQQQQ")
_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<QQQQIB3xII")
HEAD_BYTES = _HEAD.size + _CRC.size
ENTRY_BYTES = _ENTRY.size


class BadFrame(Exception):
    """Bytes that are no frame of this place: torn by a crash at the end of the chain, rotten anywhere else."""


class Instant(NamedTuple):
    """The state of a group after a record. `time_ns`: its write time, 0 when it is not known."""

    seq: int
    epoch: int
    time_ns: int


class Entry(NamedTuple):
    """One piece of what a record overwrote; fields as in the table above."""

    seq: int
    write_time: int
    offset: int
    length: int
    volume: int
    kind: int
    data_len: int
    data_crc: int


class Head(NamedTuple):
    """The head of a frame; fields as in the table above."""

    flags: int
    life: int
    off: int
    length: int
    entries: int
    first_seq: int
    last_seq: int
    epoch: int
    first_time: int
    last_time: int
    crc: int

    @property
    def end(self) -> int:
        """Logical offset behind the frame."""
        return self.off + self.length

    @property
    def partial(self) -> bool:
        """Whether its record goes on in the next frame."""
        return bool(self.flags & PARTIAL)

    @property
    def consistent(self) -> bool:
        """Whether each instant of the frame is a consistent image."""
        return bool(self.flags & CONSISTENT)

    @property
    def first(self) -> Instant:
        """The instant after the frame's first record."""
        return Instant(self.first_seq, self.epoch, self.first_time)

    @property
    def last(self) -> Instant:
        """The instant after the frame's last record."""
        return Instant(self.last_seq, self.epoch, self.last_time)


def pack(life: int, off: int, flags: int, epoch: int, entries: Sequence[Entry], data: Sequence[Buffer]) -> bytes:
    """Return the frame that belongs at `off`, with at least one entry."""
    table = b"".join([_ENTRY.pack(*entry) for entry in entries])
    length = HEAD_BYTES + len(table) + sum(map(len, data))
    first, last = entries[0], entries[-1]
    head = _HEAD.pack(
        MAGIC, VERSION, flags, life, off, length, len(entries), 0,
        first.seq, last.seq, epoch, first.write_time, last.write_time,
    )  # fmt: skip
    return b"".join([head, _CRC.pack(crc32c(table, crc32c(head))), table, *data])


def unpack_head(raw: bytes | memoryview, lives: tuple[int, int], off: int) -> Head:
    """Decode the head of the frame that belongs at `off`; its CRC is proved by `unpack_table`.

    lives: least and highest life it may have. Raises BadFrame.
    """
    if len(raw) < HEAD_BYTES:
        raise BadFrame("cut short")
    magic, version, flags, life, its_off, length, entries, _, first, last, epoch, first_time, last_time = (
        _HEAD.unpack_from(raw)
    )
    if magic != MAGIC or version != VERSION or not lives[0] <= life <= lives[1] or its_off != off:
        raise BadFrame("no frame of this place")
    if length < HEAD_BYTES + entries * ENTRY_BYTES or not entries:
        raise BadFrame("lengths disagree")
    crc = _CRC.unpack_from(raw, _HEAD.size)[0]
    return Head(flags, life, its_off, length, entries, first, last, epoch, first_time, last_time, crc)


def unpack_table(raw: bytes | memoryview, head: Head) -> list[Entry]:
    """Decode the entries of a frame whose head and table `raw` begins with. Raises BadFrame."""
    end = HEAD_BYTES + head.entries * ENTRY_BYTES
    view = memoryview(raw)
    if len(view) < end or crc32c(view[HEAD_BYTES:end], crc32c(view[: _HEAD.size])) != head.crc:
        raise BadFrame("CRC mismatch")
    return [Entry(*fields) for fields in _ENTRY.iter_unpack(view[HEAD_BYTES:end])]


def check_data(raw: memoryview, entries: Sequence[Entry]) -> None:
    """Raise BadFrame unless `raw`, what follows the table, fits the entries' CRCs."""
    at = 0
    for entry in entries:
        if at + entry.data_len > len(raw) or crc32c(raw[at : at + entry.data_len]) != entry.data_crc:
            raise BadFrame(f"data of record {entry.seq} does not fit its CRC")
        at += entry.data_len
