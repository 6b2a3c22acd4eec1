"""Redo: applying the journal to the pool, in order. A secondary does it all the time, any node after a crash.

A record is applied only when it is on stable storage in the journal, so that after power loss the pool never holds
what the journal has lost: the image of a secondary is always a prefix of the sequence. Redo is idempotent: applying a
stretch again from any earlier point gives the same image, bitmaps and history.

Bits are set before data is changed (J1), in the bitmaps that had begun by then. Records that change the group's state
(epochs, bitmaps, SYNCED) save it before the next record is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from replicator.capture.engine import HIST_ENTRIES, GroupEngine
from replicator.capture.state import JOURNAL, OK, RESYNC, SECONDARY
from replicator.core.errors import IntegrityError
from replicator.core.records import DATA_KINDS, FLAG_NO_PUNCH, HEADER_BYTES, BadRecord, Header, Kind
from replicator.core.runs import iter_run
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_OFF,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    PEER_DURABLE_OFF,
)

BATCH_BYTES = 4 << 20
_HOST_KINDS = (Kind.WRITE, Kind.ZERO, Kind.TRIM)


def apply_some(engine: GroupEngine, limit_bytes: int = BATCH_BYTES) -> int:
    """Apply the next records, at most about `limit_bytes` of them but at least one. Returns the bytes applied.

    On a primary it does nothing, except at start-up: there hosts change the pool, and redo would undo their writes.
    Raises MediumError or OSError when the pool cannot take them (nothing after the failed record is applied), and
    IntegrityError when the journal's bytes have rotted.
    """
    with engine.apply_lock:
        if engine.state.role != SECONDARY and not engine.recovering:
            return 0
        u64 = engine.page.u64
        at, head = u64[APPLIED_OFF], u64[HEAD_OFF]
        if at >= head:
            engine.apply_buffer = bytearray()
            return 0
        if u64[DURABLE_OFF] > at:
            head = min(head, u64[DURABLE_OFF])  # one sync covers many batches
        else:
            engine.sync_journal()
        want = min(limit_bytes, head - at)
        view = _buffer(engine, want)
        engine.journal.read_into(view, at)
        try:
            records = iter_run(view)
            if not records:
                want = engine.journal.header_at(at).total_bytes
                if at + want > head:
                    raise BadRecord("a record reaches beyond the end of the journal")
                view = _buffer(engine, want)
                engine.journal.read_into(view, at)
                records = iter_run(view)
        except BadRecord as e:
            raise IntegrityError(
                f"journal of group {engine.state.name} is damaged at offset {at}: {e}",
                "split the pair and resync it; the pool still holds the last consistent image",
            ) from e
        expect = u64[APPLIED_SEQ] + 1
        for header, body in records:
            if header.seq != expect:
                raise IntegrityError(f"journal holds record {header.seq} where {expect} belongs", "resync the pair")
            if engine.recovering:
                _apply_again(engine, header, view[body : body + header.payload_len])
            else:
                _apply(engine, header, view[body : body + header.payload_len])
            expect += 1
            at = at + HEADER_BYTES + header.payload_len
            u64[APPLIED_SEQ] = header.seq
            u64[APPLIED_OFF] = at
            engine.applied_time_ns = header.write_time
            if header.kind in _HOST_KINDS:
                engine.last_host_seq = header.seq
        return len(view)


def _buffer(engine: GroupEngine, length: int) -> memoryview:
    """Return `length` bytes of scratch space, the same again while there is work: fresh memory is slow."""
    if len(engine.apply_buffer) < length:
        engine.apply_buffer = bytearray(length)
    return memoryview(engine.apply_buffer)[:length]


def redo_all(engine: GroupEngine) -> None:
    """Apply a primary's journal at start-up, before hosts come.

    A write that the pool refused when it came (and refuses again: no space) has been followed by COPY records of what
    its range holds, and is passed over. Raises what the pool raised for any other.
    """
    engine.recovering = True
    try:
        apply_all(engine)
    finally:
        engine.recovering = False
    for error in engine.refused.values():
        raise error


def _apply_again(engine: GroupEngine, header: Header, payload: memoryview) -> None:
    try:
        _apply(engine, header, payload)
    except IntegrityError:
        raise
    except Exception as e:
        if header.kind not in DATA_KINDS:
            raise
        engine.refused[header.volume, header.offset, header.length] = e
    else:
        if engine.refused and header.kind in (Kind.COPY, Kind.COPY_ZERO):
            _forgive(engine, header)


def _forgive(engine: GroupEngine, copy: Header) -> None:
    """Take the range of a copy out of what was refused."""
    begin, end = copy.offset, copy.offset + copy.length
    for (volume, offset, length), error in list(engine.refused.items()):
        if volume != copy.volume or begin >= offset + length or end <= offset:
            continue
        del engine.refused[volume, offset, length]
        if offset < begin:
            engine.refused[volume, offset, begin - offset] = error
        if end < offset + length:
            engine.refused[volume, end, offset + length - end] = error


def settle(engine: GroupEngine) -> None:
    """Apply everything that has been received, while nothing is being received, and make the journal's end agree.

    A replicator that died between the stores that publish a run leaves HEAD_SEQ ahead of HEAD_OFF; the offset counts.
    """
    with engine.apply_lock:
        apply_all(engine)
        u64 = engine.page.u64
        if engine.state.role == SECONDARY and u64[APPLIED_OFF] == u64[HEAD_OFF]:
            u64[HEAD_SEQ] = u64[APPLIED_SEQ]
            u64[DURABLE_SEQ] = min(u64[DURABLE_SEQ], u64[HEAD_SEQ])


def apply_all(engine: GroupEngine) -> None:
    """Apply everything that has been received. Raises as apply_some does."""
    while apply_some(engine):
        pass


def _apply(engine: GroupEngine, header: Header, payload: memoryview) -> None:
    kind = header.kind
    if kind in (Kind.WRITE, Kind.COPY):
        if header.length != header.payload_len:
            raise IntegrityError(f"record {header.seq} of {engine.state.name} states two lengths", "resync the pair")
        _check_range(engine, header)
        engine.bitmaps.maps[header.volume].mark(engine.bitmaps.live_at(header.seq), header.offset, header.length)
        engine.volumes[header.volume].pwrite(payload, header.offset)
    elif kind in (Kind.ZERO, Kind.TRIM, Kind.COPY_ZERO):
        _check_range(engine, header)
        engine.bitmaps.maps[header.volume].mark(engine.bitmaps.live_at(header.seq), header.offset, header.length)
        engine.volumes[header.volume].zero(header.offset, header.length, not header.flags & FLAG_NO_PUNCH)
    else:
        _apply_control(engine, header)


def _check_range(engine: GroupEngine, header: Header) -> None:
    if header.volume >= len(engine.volumes) or header.offset + header.length > engine.volumes[header.volume].size:
        raise IntegrityError(
            f"record {header.seq} writes outside volume {header.volume} of group {engine.state.name}",
            "the two sides disagree about sizes: resync the pair",
        )


def _apply_control(engine: GroupEngine, header: Header) -> None:
    state = engine.state
    if header.kind == Kind.EPOCH:
        with engine.lock:
            if not state.hist or state.hist[-1][0] < header.epoch:
                state.hist.append([header.epoch, header.seq - 1])
                del state.hist[:-HIST_ENTRIES]
                engine.note_epoch(header.epoch)
                engine.save()
    elif header.kind == Kind.BITMAP_OPEN:
        with engine.lock:
            engine.bitmaps.open(header.seq)
            engine.save()
    elif header.kind == Kind.BITMAP_CLEAR:
        with engine.lock:
            engine.bitmaps.drop_older(header.offset)
            engine.save()
    elif header.kind == Kind.SYNCED:
        if state.role == SECONDARY and state.copy == RESYNC and header.seq > state.copy_from_seq:
            with engine.lock:
                engine.sync_pool()
                engine.commit(copy=OK, floor=header.seq, copy_id="")
    elif header.kind not in (Kind.BARRIER, Kind.MARKER):
        raise IntegrityError(
            f"record {header.seq} of group {state.name} has kind {header.kind}, which is not known here",
            "upgrade this node to the primary's version",
        )


def checkpoint(engine: GroupEngine) -> bool:
    """Sync pool and bitmaps, then move redo point and tail of the journal up. Returns False when there was no gain.

    On a primary the tail stays behind what the peer does not hold durably yet. For callers that know that no host write
    is under way; others use `begin_checkpoint`, wait, and `finish_checkpoint`.
    """
    begun = begin_checkpoint(engine)
    return begun is not None and finish_checkpoint(engine, begun)


class Begun(NamedTuple):
    """A checkpoint that waits for changes in flight."""

    redo_off: int
    redo_seq: int
    pending: set[int]
    unjournaled: int


def begin_checkpoint(engine: GroupEngine) -> Begun | None:
    """Note how far the pool will be synced and which changes to wait for; None when nothing is journaled."""
    state, u64 = engine.state, engine.page.u64
    with engine.apply_lock, engine.lock:
        if engine.failed:
            return None
        if state.role == SECONDARY:
            return Begun(u64[APPLIED_OFF], u64[APPLIED_SEQ], set(), engine.unjournaled)
        if state.mode != JOURNAL:
            return None
        return Begun(u64[HEAD_OFF], u64[HEAD_SEQ], engine.in_flight(), engine.unjournaled)


def finish_checkpoint(engine: GroupEngine, begun: Begun) -> bool:
    """Make the checkpoint of `begin_checkpoint` durable; its changes in flight have returned.

    Durable: redo point and tail. Raises MediumError when pool, bitmaps or journal cannot be synced (the group fails).
    """
    redo_off, redo_seq = begun.redo_off, begun.redo_seq
    u64 = engine.page.u64
    with engine.checkpoint_lock:
        sup = engine.journal.super
        if redo_off < sup.redo_off:
            return False  # the journal was emptied meanwhile: these offsets belong to the past
        if redo_off == sup.redo_off:
            redo_seq = sup.redo_seq - 1
        engine.sync_journal()
        engine.sync_pool()
        engine.unjournaled_synced = max(engine.unjournaled_synced, begun.unjournaled)
        if engine.state.role == SECONDARY:
            tail_off = redo_off
        else:
            tail_off = min(redo_off, max(u64[PEER_DURABLE_OFF], sup.tail_off))
        if (tail_off, redo_off) == (sup.tail_off, sup.redo_off):
            return False
        if tail_off == redo_off:
            tail_seq = redo_seq + 1
        elif tail_off == sup.tail_off:
            tail_seq = sup.tail_seq
        else:
            try:
                tail_seq = engine.journal.header_at(tail_off).seq
            except BadRecord as e:
                raise IntegrityError(
                    f"the journal of group {engine.state.name} has no record at {tail_off}: {e}", "resync the pair"
                ) from e
        try:
            engine.journal.set_tail(tail_off, tail_seq, redo_off, redo_seq + 1)
        except OSError as e:
            engine.fail(f"its journal cannot be written: {e}")
            raise
        with engine.opened:
            engine.opened.notify_all()
        return True
