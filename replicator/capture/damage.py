"""Whether records that a peer lacks can still be read from the journal.

The replicator reads them without a lock, from a file of its own, so what it found is looked at here once more before
anything is given up for it (FullJournal.damaged says what).
"""

from __future__ import annotations

from replicator.capture.engine import GroupEngine
from replicator.capture.state import Edge
from replicator.core.records import BadRecord
from replicator.core.runs import iter_run
from replicator.journal.page import EDGE_DURABLE_OFF, HEAD_OFF, TAIL_OFF, edge_slot

CHUNK_BYTES = 1 << 20


def first_damage(engine: GroupEngine, edge: Edge) -> tuple[int, str] | None:
    """Return where the first bad record lies of those that the edge's peer does not hold durably, and what is wrong
    with it; None when all are good.

    The offset is in the journal's order, at or before the record. Reads them all in the worst case. Raises OSError when
    the medium cannot be read.
    """
    u64, journal = engine.page.u64, engine.journal
    head = u64[HEAD_OFF]
    off = max(u64[TAIL_OFF], u64[edge_slot(edge.slot, EDGE_DURABLE_OFF)])
    while off < head:
        try:
            view = memoryview(bytearray(min(CHUNK_BYTES, head - off)))
            journal.read_into(view, off)
            records = iter_run(view)
            if not records:
                total = journal.header_at(off).total_bytes
                if off + total > head:
                    raise BadRecord("a record reaches beyond the end of the journal")
                view = memoryview(bytearray(total))
                journal.read_into(view, off)
                records = iter_run(view)
        except BadRecord as exc:
            if u64[TAIL_OFF] > off:
                off = u64[TAIL_OFF]  # freed, and perhaps overwritten, while we looked
                continue
            return off, str(exc)
        header, body = records[-1]
        off += body + header.payload_len
    return None
