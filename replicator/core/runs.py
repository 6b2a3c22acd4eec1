"""Runs: many records back to back, as they stand in the journal and travel on the wire.

Hot path of the receiver, so it is one flat loop over struct.unpack_from. Pure: it judges bytes, it moves none.
"""

from __future__ import annotations

from typing import NamedTuple

from crc32c import crc32c

from replicator.core.records import (
    FLAG_FUA,
    FLAG_NUMBERED,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    NUMBER_BYTES,
    NUMBERED_VERSION,
    VERSION,
    BadRecord,
    Header,
    Kind,
    unpack_header,
)

_BARRIER = int(Kind.BARRIER)
_EPOCH = int(Kind.EPOCH)


class Run(NamedTuple):
    """What a stretch of bytes holds.

    begin, end: byte range of the new, whole, valid records in the buffer (duplicates before, a cut record after)
    last_seq, last_epoch: of the last record in it; equal to what was expected minus one when the range is empty
    records: how many
    wants_durable: a barrier or FUA write is among them, so a synchronous receiver syncs before it answers
    last_time_ns: write time of the last record, 0 without one
    """

    begin: int
    end: int
    last_seq: int
    last_epoch: int
    records: int
    wants_durable: bool
    last_time_ns: int


def parse_run(buf: bytes | bytearray | memoryview, expect_seq: int, min_epoch: int, *, prove: bool = True) -> Run:
    """Find the records in `buf` that come next after those already held.

    expect_seq: the seq that is wanted next; records below it are duplicates, which have no newer epoch, and skipped
    min_epoch: epoch of the last record held; a record of an older epoch at or above expect_seq is refused
    prove: check CRCs; only who passes the bytes on to somebody that does may leave that out

    A record cut short at the end of `buf` is left out, not an error. Raises BadRecord when a CRC, the magic or the
    version is wrong, a seq is missing, or the epoch falls or rises without its record: then nothing of `buf` may be
    used.
    """
    view = memoryview(buf)
    total = len(view)
    unpack = HEADER.unpack_from
    at = begin = 0
    count = last_time = 0
    wants_durable = False
    last_seq = expect_seq - 1
    last_epoch = min_epoch
    while total - at >= HEADER_BYTES:
        magic, kind, flags, version, epoch, seq, time, _vol, payload_len, _off, _len, payload_crc, crc = unpack(
            view, at
        )
        if magic != MAGIC or (prove and crc != crc32c(view[at : at + 60])):
            raise BadRecord("bad magic" if magic != MAGIC else "header CRC mismatch")
        known = NUMBERED_VERSION if flags & FLAG_NUMBERED and payload_len >= NUMBER_BYTES else VERSION
        if version != known or payload_len > MAX_PAYLOAD_BYTES:
            raise BadRecord(f"record version {version} or payload of {payload_len} bytes is not known here")
        body = at + HEADER_BYTES
        end = body + payload_len
        if end > total:
            break
        if prove and payload_len and crc32c(view[body:end]) != payload_crc:
            raise BadRecord("payload CRC mismatch")
        if seq <= last_seq and count == 0:
            if epoch > last_epoch:
                raise BadRecord(f"record {seq} is of epoch {epoch:#x}, newer than {last_epoch:#x} that is held")
            at = begin = end
            continue
        if seq != last_seq + 1:
            raise BadRecord(f"record {seq} follows {last_seq}")
        if epoch != last_epoch and (epoch < last_epoch or (count and kind != _EPOCH)):
            how = "older than" if epoch < last_epoch else "not announced after"
            raise BadRecord(f"record {seq} is of epoch {epoch:#x}, {how} {last_epoch:#x}")
        if kind == _BARRIER or flags & FLAG_FUA:
            wants_durable = True
        last_seq, last_epoch, last_time = seq, epoch, time
        count += 1
        at = end
    return Run(begin, at, last_seq, last_epoch, count, wants_durable, last_time)


def iter_run(view: memoryview) -> list[tuple[Header, int]]:
    """Decode every whole record in `view`; returns (header, offset of its payload in `view`) in order.

    For bytes that came from our own journal: header and payload CRC are checked again, so that rot between receipt and
    apply is found. Ends before the first bad record; raises BadRecord when there is none before it.
    """
    out: list[tuple[Header, int]] = []
    try:
        _decode(view, out)
    except BadRecord:
        if not out:
            raise
    return out


def _decode(view: memoryview, out: list[tuple[Header, int]]) -> None:
    unpack = HEADER.unpack_from
    at = 0
    total = len(view)
    while total - at >= HEADER_BYTES:
        magic, kind, flags, version, epoch, seq, time, volume, size, offset, length, payload_crc, crc = unpack(view, at)
        body = at + HEADER_BYTES
        plain = version == VERSION and not flags & FLAG_NUMBERED
        if magic != MAGIC or not plain or crc != crc32c(view[at : body - 4]) or size > MAX_PAYLOAD_BYTES:
            unpack_header(view, at)  # says what is wrong, if it is not that the record is numbered
        end = body + size
        if end > total:
            break
        if size and crc32c(view[body:end]) != payload_crc:
            raise BadRecord(f"payload CRC mismatch in record {seq}")
        out.append((Header(kind, flags, epoch, seq, time, volume, size, offset, length, payload_crc), body))
        at = end
