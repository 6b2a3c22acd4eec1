"""Records of a journal as a list: what was written when, in which order, without its bytes.

For people and tests. It reads headers one by one and changes nothing; records that are freed meanwhile are passed over.
"""

from __future__ import annotations

from typing import Any

from replicator.capture.engine import GroupEngine
from replicator.core.errors import IntegrityError
from replicator.core.records import FLAG_FUA, FLAG_NUMBERED, NUMBER_BYTES, BadRecord, Header, Kind, unpack_number
from replicator.journal.page import HEAD_OFF, HEAD_SEQ, TAIL_OFF, TAIL_SEQ

MOST = 10_000


def records_from(engine: GroupEngine, since: int, limit: int) -> dict[str, Any]:
    """Return {first, last, records}: what the journal holds, and up to `limit` records of seq > `since` in order.

    Each is {seq, epoch, time_ns, kind, volume (name, None for the group's own records), offset, length, fua, number (in
    its consistency set, None without one)}, in bytes.
    Raises IntegrityError when the journal is damaged on the way, OSError when it cannot be read.
    """
    u64, journal = engine.page.u64, engine.journal
    names = {int(volume["index"]): str(volume["name"]) for volume in engine.state.volumes}
    found: list[dict[str, Any]] = []
    off, seq = journal.tail()
    while off < u64[HEAD_OFF] and len(found) < min(limit, MOST):
        try:
            header: Header | None = journal.header_at(off)
        except BadRecord:
            header = None
        if u64[TAIL_OFF] > off:
            off, seq = journal.tail()  # freed, and perhaps overwritten, while we looked
            continue
        if header is None or header.seq != seq:
            raise IntegrityError(f"the journal is damaged at record {seq}", "resync the pair")
        if seq > since:
            number = None
            if header.flags & FLAG_NUMBERED:
                number, _ = unpack_number(journal.read(off + header.total_bytes - NUMBER_BYTES, NUMBER_BYTES))
                if u64[TAIL_OFF] > off:
                    off, seq = journal.tail()
                    continue
            found.append({**_told(header, names), "number": number})
        off, seq = off + header.total_bytes, seq + 1
    return {"first": u64[TAIL_SEQ], "last": u64[HEAD_SEQ], "records": found}


def _told(header: Header, names: dict[int, str]) -> dict[str, Any]:
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
    }
