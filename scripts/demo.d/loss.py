"""The exact price of a takeover: what stands in the dead primary's journal that the survivor does not have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from replicator.core.records import HEADER_BYTES, Kind, unpack_header
from replicator.journal.files import PlainFile
from replicator.journal.page import EDGE_DURABLE_OFF, HEAD_OFF, SLOTS, TAIL_OFF, Page, edge_slot
from replicator.journal.ring import Journal

HOST_KINDS = {Kind.WRITE, Kind.ZERO, Kind.TRIM}


@dataclass(frozen=True)
class Loss:
    """Writes of hosts that were journaled on one node and never reached the other."""

    writes: int
    size: int
    """Bytes of the volumes these writes covered."""
    seconds: float
    """From the last record the survivor has to the last write of the dead primary."""
    reached_ns: int
    """Write time of the last record the survivor has: whatever was written before it is there."""


def measure(state: Path, run: Path, uuid: str, survivor_pos: int, survivor_time_ns: int) -> Loss:
    """Walk the journal of a node whose processes are dead, read-only.

    survivor_pos: seq of the last record the survivor holds; survivor_time_ns: write time of one of its last."""
    page = Page.in_memory()
    raw = (run / f"{uuid}.page").read_bytes()
    for slot in range(SLOTS):
        page[slot] = int.from_bytes(raw[8 * slot : 8 * slot + 8], "little")
    file = PlainFile(state / "groups" / uuid / "journal")
    try:
        journal = Journal.open(file, page)
        at = max(page[edge_slot(0, EDGE_DURABLE_OFF)], page[TAIL_OFF])
        writes, size, reached_ns, last_ns = 0, 0, survivor_time_ns, 0
        while at < page[HEAD_OFF]:
            header = unpack_header(journal.read(at, HEADER_BYTES))
            if header.seq <= survivor_pos:
                reached_ns = header.write_time
            elif header.kind in HOST_KINDS:
                writes, size, last_ns = writes + 1, size + header.length, header.write_time
            at += header.total_bytes
    finally:
        file.close()
    return Loss(writes, size, max(0, last_ns - reached_ns) / 1e9, reached_ns)
