"""Initial copy and resync: blocks of the copy list, read under the range lock and appended as COPY records.

A copy has its place in the sequence like any write, so it can never overwrite newer data anywhere. A block leaves the
list only after its record is in the journal, from where it reaches the peer by the same exact resume as every record.
When the list is empty a SYNCED record follows: whoever has applied it durably holds a consistent image.

The list itself survives the process (mapped file) but may lose or keep any change at power loss, and then the records
it relied on may be gone too. Then the source forgets the copy's id and the handshake starts the resync over.
"""

from __future__ import annotations

from replicator.capture.bitmaps import BLOCK_BYTES
from replicator.capture.engine import GroupEngine
from replicator.capture.parking import NoRoom
from replicator.capture.state import JOURNAL, PRIMARY
from replicator.core.records import Kind
from replicator.journal.page import (
    DURABLE_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_TREE_DURABLE,
    HEAD_OFF,
    TAIL_OFF,
    edge_slot,
)

COPY_BLOCKS = 16  # 1 MiB a data record, less where the journal is small
ZERO_BLOCKS = 1024  # 64 MiB a record for ranges that were never written
PACE_FRACTION = 0.5
_ZEROES = bytes(COPY_BLOCKS * BLOCK_BYTES)
ROTATE_MIN_BLOCKS = 64  # a history bitmap with fewer marks is not worth a successor


def may_copy(engine: GroupEngine) -> bool:
    """Say whether the copier has work and the journal room for it."""
    state, u64 = engine.state, engine.page.u64
    if not state.copying or state.role != PRIMARY or state.mode != JOURNAL or engine.failed or engine.parked_for:
        return False
    return u64[HEAD_OFF] - _wanted_from(engine) < engine.journal.capacity * PACE_FRACTION


def _wanted_from(engine: GroupEngine) -> int:
    """Journal offset from which a peer that is there wants records. One that is away does not slow a copy to another:
    for it the journal fills up, as it does by what hosts write."""
    u64 = engine.page.u64
    linked = [e for e in engine.state.edges if e.slot in engine.linked and not e.dropped]
    offs = [u64[edge_slot(e.slot, EDGE_DURABLE_OFF)] for e in linked]
    return max(u64[TAIL_OFF], min(offs, default=0))


def copy_some(engine: GroupEngine, limit_bytes: int = 8 << 20) -> int:
    """Append copies of the next blocks; returns the bytes of volume they cover, 0 when done or paused.

    After the last block it appends SYNCED and opens a new history bitmap. Raises MediumError or OSError when the pool
    cannot be read: the copy stays incomplete and its list whole.
    """
    done = 0
    piece = BLOCK_BYTES * max(1, min(COPY_BLOCKS, engine.journal.capacity // (16 * BLOCK_BYTES)))
    buf = bytearray(piece)
    while done < limit_bytes and may_copy(engine):
        run = engine.bitmaps.next_todo(ZERO_BLOCKS)
        if run is None:
            _finish(engine)
            break
        copied = _copy_run(engine, *run, buf)
        if not copied:
            break
        done += copied
    return done


def _copy_run(engine: GroupEngine, volume: int, first: int, count: int, buf: bytearray) -> int:
    """Copy the first piece of a run of blocks, at most what `buf` holds unless it was never written.

    Returns the bytes covered, 0 when the journal has no room.
    """
    vol = engine.volumes[volume]
    piece = len(buf)
    offset = first * BLOCK_BYTES
    end = min(vol.size, (first + count) * BLOCK_BYTES)
    near = min(end, offset + piece)
    if not _leading_hole(vol.extents(offset, near - offset)):
        end = near  # hosts wait for no more than what is copied now
    with engine.span(volume, offset, end - offset):
        hole = _leading_hole(vol.extents(offset, end - offset))
        if hole == end - offset or hole >= piece:
            length = hole if hole == end - offset else hole // BLOCK_BYTES * BLOCK_BYTES
            return length if engine.append_copy(volume, offset, length, None) else 0
        length = min(end - offset, piece)
        data = memoryview(buf)[:length]
        vol.pread_once(data, offset)
        zero = _ZEROES.startswith(data)  # memcmp: data that is no zeroes shows it in its first bytes
        return length if engine.append_copy(volume, offset, length, None if zero else data) else 0


def _leading_hole(extents: object) -> int:
    """Bytes at the start of the range that were never written."""
    hole = 0
    for length, allocated in extents:  # type: ignore[attr-defined]  # any sequence of pairs
        if allocated:
            break
        hole += length
    return hole


def _finish(engine: GroupEngine) -> None:
    """Say in the sequence that the copy is complete, once no block is left."""
    with engine.lock:
        state = engine.state
        if not state.copying or state.role != PRIMARY or state.mode != JOURNAL or engine.bitmaps.todo_blocks():
            return
        if engine.parked_for:
            return  # a hold has promised a position
        try:
            synced_seq = engine.append_control(Kind.SYNCED)
        except NoRoom:
            return
        ended = {"copying": False, "synced_seq": synced_seq}
        engine.commit({e.slot: ended for e in state.edges if e.copying}, extended={}, synced_seq=synced_seq)


def rotate_bitmaps(engine: GroupEngine) -> None:
    """Open a new history bitmap in the sequence when the newest is well filled; drop the old ones once both sides can.

    Rule of the drop (J2): every site holds the new bitmap durably and has applied it, and no copy is incomplete
    anywhere. Nodes below a peer drop theirs when the record comes to them.
    """
    state = engine.state
    starts = list(state.bitmaps.values())
    if len(starts) == 1 and not _well_filled(engine, starts[0]):
        return  # counted without the lock: writers need not wait for a heuristic
    with engine.lock:
        if state.role != PRIMARY or state.mode != JOURNAL or engine.failed or state.copying or not state.bitmaps:
            return
        if engine.parked_for:
            return  # a hold has promised a position
        newest = max(state.bitmaps.values())
        try:
            if len(state.bitmaps) > 1:
                _drop_old(engine, newest)
            elif starts == [newest]:
                seq = engine.append_control(Kind.BITMAP_OPEN)
                engine.bitmaps.open(seq)
                engine.save()
        except NoRoom:
            return


def _drop_old(engine: GroupEngine, newest: int) -> None:
    u64, state = engine.page.u64, engine.state
    wanted = max(newest, state.synced_seq)
    for edge in state.edges:
        if edge.dropped or edge.slot not in engine.linked or u64[edge_slot(edge.slot, EDGE_TREE_DURABLE)] < wanted:
            return
    if u64[DURABLE_SEQ] >= newest:
        engine.append_control(Kind.BITMAP_CLEAR, offset=newest)
        engine.bitmaps.drop_older(newest)
        engine.save()


def _well_filled(engine: GroupEngine, start: int) -> bool:
    """A bitmap is due for a successor when it marks more than 1/64 of the group and ROTATE_MIN_BLOCKS."""
    slot = next((s for s, v in engine.state.bitmaps.items() if v == start), None)
    if slot is None:
        return False
    dirty = sum(m.count(1 << slot) for m in engine.bitmaps.maps)
    return dirty > max(ROTATE_MIN_BLOCKS, sum(m.blocks for m in engine.bitmaps.maps) // 64)
