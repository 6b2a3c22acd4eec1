"""Frames between two link threads. All numbers are little-endian.

    offset  size  field
         0     4  length      bytes of the body, which follows this header
         4     1  type        1 DATA, 2 ACK, 3 CONTROL, 4 BEAT, 5 GRANT, 6 NEED
         5     1  flags       bit 0: the body is one zstd frame (DATA only)
         6     2  zero
         8     8  first_seq   DATA: seq of the first record, else 0

    DATA     journal records back to back, whole ones, in order; the body's bytes are the journal's
    ACK      u64 received, u64 durable, u64 applied: seqs
    CONTROL  one msgpack map, see replicator.core.events
    BEAT     u64 head seq, u64 bytes in the journal behind what was sent: what a secondary can say about its lag once
             the primary is silent; u64 seq, u64 time (ns) of a beacon, 0 for none: every record with a write time up to
             that time has a seq up to that seq; u64 seq of the last record sent: who lacks it and hears nothing more
             has lost one of the link's connections
    GRANT    u64 total: pulled transfers (core/credits.py): DATA frames may go on up to so many bytes, headers included,
             counted over all connections since the records began to flow
    NEED     u64 sent, u64 total: the sender has sent so many bytes, and its next frame ends there

A link has one connection or several. All but DATA go over the first; DATA frames over any of them, with rising
first_seq on each. A record is at most 64 MiB, so a DATA body is at most that and its header.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from replicator.core.errors import ProtocolError
from replicator.core.records import HEADER_BYTES, MAX_PAYLOAD_BYTES

HEAD = struct.Struct("<IBBHQ")
HEAD_BYTES = HEAD.size
DATA: Final = 1
ACK: Final = 2
CONTROL: Final = 3
BEAT: Final = 4
GRANT: Final = 5
NEED: Final = 6
FLAG_ZSTD: Final = 1

TRIPLE = struct.Struct("<QQQ")
TOTAL = struct.Struct("<Q")
DOUBLE = struct.Struct("<QQ")
BEAT_BODY = struct.Struct("<QQQQQ")
MAX_DATA_BYTES = MAX_PAYLOAD_BYTES + HEADER_BYTES
MAX_CONTROL_BYTES = 16 << 20
_LIMITS = {
    DATA: MAX_DATA_BYTES,
    ACK: TRIPLE.size,
    CONTROL: MAX_CONTROL_BYTES,
    BEAT: BEAT_BODY.size,
    GRANT: TOTAL.size,
    NEED: DOUBLE.size,
}
_EXACT = frozenset((ACK, BEAT, GRANT, NEED))


def check_head(length: int, kind: int, flags: int, zero: int) -> None:
    """Raise ProtocolError unless the frame header can be right."""
    limit = _LIMITS.get(kind)
    if limit is None or zero or flags & ~FLAG_ZSTD or (flags and kind != DATA):
        raise ProtocolError(f"the peer sent a frame of type {kind} with flags {flags:#x}")
    if length > limit or (length != limit and kind in _EXACT):
        raise ProtocolError(f"the peer sent a frame of type {kind} with {length} bytes")


def control(frame: dict[str, Any]) -> bytes:
    """Return the bytes of a CONTROL frame. Raises ProtocolError when it is too large to send."""
    body = msgpack.packb(frame)
    if len(body) > MAX_CONTROL_BYTES:
        raise ProtocolError(f"a {frame.get('t')} frame of {len(body)} bytes exceeds {MAX_CONTROL_BYTES}")
    return b"".join((HEAD.pack(len(body), CONTROL, 0, 0, 0), body))


def ack(received: int, durable: int, applied: int) -> bytes:
    """Return the bytes of an ACK frame."""
    return HEAD.pack(TRIPLE.size, ACK, 0, 0, 0) + TRIPLE.pack(received, durable, applied)


def beat(head_seq: int, unsent_bytes: int, beacon_seq: int, beacon_time_ns: int, sent_seq: int) -> bytes:
    """Return the bytes of a BEAT frame."""
    return HEAD.pack(BEAT_BODY.size, BEAT, 0, 0, 0) + BEAT_BODY.pack(
        head_seq, unsent_bytes, beacon_seq, beacon_time_ns, sent_seq
    )


def grant(total: int) -> bytes:
    """Return the bytes of a GRANT frame."""
    return HEAD.pack(TOTAL.size, GRANT, 0, 0, 0) + TOTAL.pack(total)


def need(sent: int, total: int) -> bytes:
    """Return the bytes of a NEED frame."""
    return HEAD.pack(DOUBLE.size, NEED, 0, 0, 0) + DOUBLE.pack(sent, total)


def parse_control(body: memoryview) -> dict[str, Any]:
    """Decode the body of a CONTROL frame. Raises ProtocolError."""
    try:
        frame = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise ProtocolError("the peer sent a control frame that is not msgpack") from exc
    if not isinstance(frame, dict):
        raise ProtocolError("the peer sent a control frame that is not a map")
    return frame
