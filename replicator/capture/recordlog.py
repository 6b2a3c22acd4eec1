"""Records of a journal as a list: what was written when, in which order, without its bytes.

For people and tests. It reads headers one by one, changes nothing and holds nothing up: keeping the journal for a
reader could stop the hosts. So records may be freed while they are listed, and what is missing for that is said.
"""

from __future__ import annotations

from typing import Any

from replicator.capture.engine import GroupEngine
from replicator.core.errors import IntegrityError
from replicator.core.markers import host_time_of
from replicator.core.records import (
    FLAG_FUA,
    FLAG_NUMBERED,
    HEADER_BYTES,
    NUMBER_BYTES,
    BadRecord,
    Header,
    Kind,
    unpack_number,
)
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, TAIL_OFF, TAIL_SEQ
from replicator.journal.ring import Journal

MOST = 10_000


class DamagedRecord(IntegrityError):
    """What lies at offset `off` of a journal is not record `seq`, which belongs there."""

    def __init__(self, group: str, off: int, seq: int) -> None:
        super().__init__(f"the journal is damaged at record {seq}", f"farstripe explain {group} says what that means")
        self.off, self.seq = off, seq


def records_from(engine: GroupEngine, since: int, limit: int) -> dict[str, Any]:
    """Return {first, last, records, freed}: what the journal holds, and up to `limit` records of seq > `since`.

    first: the seq of the oldest record when the listing began. freed: [[first, last], ...] of seq that were in the
    journal then and went before they could be listed; no other is missing. The records, in order, each {seq, epoch,
    time_ns, kind, volume (name, None for the group's own records), offset, length, fua, number (in its consistency set,
    None without one), host_time_ns (what a host has stated, else None)}, in bytes.
    Raises DamagedRecord when the journal is damaged on the way, OSError when it cannot be read.
    """
    u64, journal = engine.page.u64, engine.journal
    names = {int(volume["index"]): str(volume["name"]) for volume in engine.state.volumes}
    found: list[dict[str, Any]] = []
    freed: list[list[int]] = []
    try:
        off, seq = journal.tail()
    except IntegrityError as exc:
        raise DamagedRecord(engine.state.name, u64[TAIL_OFF], u64[TAIL_SEQ]) from exc
    first = seq
    while off < u64[HEAD_OFF] and len(found) < min(limit, MOST):
        try:
            header: Header | None = journal.header_at(off)
            rest = b"" if header is None or header.seq != seq or seq <= since else _rest(journal, off, header)
        except BadRecord:
            header = None
        if u64[TAIL_OFF] > off:  # freed, and perhaps overwritten, while we looked
            missed = max(seq, since + 1)
            off, seq = journal.tail()
            if missed < seq:
                freed.append([missed, seq - 1])
            continue
        if header is None or header.seq != seq:
            raise DamagedRecord(engine.state.name, off, seq)
        if seq > since:
            found.append(_told(header, rest, names))
        off, seq = off + header.total_bytes, seq + 1
    return {"first": first, "last": u64[HEAD_SEQ], "records": found, "freed": freed}


def _rest(journal: Journal, off: int, header: Header) -> bytes:
    """What a list tells of a record beside its header: a marker's payload, and the number at the end."""
    if header.kind == Kind.MARKER:
        return journal.read(off + HEADER_BYTES, header.payload_len)
    if header.flags & FLAG_NUMBERED:
        return journal.read(off + header.total_bytes - NUMBER_BYTES, NUMBER_BYTES)
    return b""


def _told(header: Header, rest: bytes, names: dict[int, str]) -> dict[str, Any]:
    try:
        kind = Kind(header.kind).name.lower()
    except ValueError:
        kind = str(header.kind)
    concerns_all = not header.length
    return {
        "seq": header.seq,
        "epoch": header.epoch,
        "time_ns": header.write_time,
        "kind": kind,
        "volume": None if concerns_all else names.get(header.volume, str(header.volume)),
        "offset": header.offset,
        "length": header.length,
        "fua": bool(header.flags & FLAG_FUA),
        "number": unpack_number(rest[-NUMBER_BYTES:])[0] if header.flags & FLAG_NUMBERED else None,
        "host_time_ns": host_time_of(rest[: header.data_len]) if header.kind == Kind.MARKER else None,
    }
