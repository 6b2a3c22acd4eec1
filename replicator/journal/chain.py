"""The chain of records in a journal: walked from a known record to the first that is not right."""

from __future__ import annotations

from collections.abc import Callable

from replicator.core.records import HEADER_BYTES, MAX_PAYLOAD_BYTES, BadRecord, Kind, check_payload, unpack_header
from replicator.core.runs import parse_run

SCAN_BYTES = 4 << 20

Read = Callable[[int, int], bytes]
"""Returns so many bytes of the ring from a logical offset on; arguments are offset and length."""


def walk(read: Read, off: int, next_seq: int, epoch: int, limit: int) -> tuple[int, int, int]:
    """Walk valid records from `off`, which belongs to `next_seq`; returns (offset behind the last, its seq, its epoch).

    epoch: no record has an older one. limit: the chain does not go beyond this offset.
    """
    first, seq, want = off, next_seq - 1, SCAN_BYTES
    while off < limit:
        chunk = memoryview(read(off, min(want, limit - off)))
        try:
            run = parse_run(chunk, seq + 1, epoch)
        except BadRecord:
            run = None
        if run is None or run.begin != 0 or run.records == 0:
            if run is not None and run.begin == 0 and want < MAX_PAYLOAD_BYTES * 2 and want < limit - off:
                want *= 2
                continue
            return _walk_singly(read, off, seq, epoch, limit, first)
        off += run.end
        seq, epoch = run.last_seq, run.last_epoch
    return off, seq, epoch


def _walk_singly(read: Read, off: int, seq: int, epoch: int, limit: int, first: int) -> tuple[int, int, int]:
    """Walk record by record, to end exactly before the first bad one."""
    while limit - off >= HEADER_BYTES:
        try:
            header = unpack_header(read(off, HEADER_BYTES))
            if header.seq != seq + 1 or header.epoch < epoch or off + header.total_bytes > limit:
                break
            if header.epoch != epoch and header.kind != Kind.EPOCH and off != first:
                break
            check_payload(header, read(off + HEADER_BYTES, header.payload_len))
        except BadRecord:
            break
        off += header.total_bytes
        seq, epoch = header.seq, header.epoch
    return off, seq, epoch
