"""Redo: applying the journal to the pool, in order. A secondary does it all the time, any node after a crash.

A record is applied only when it is on stable storage in the journal, so that after power loss the pool never holds
what the journal has lost: the image of a secondary is always a prefix of the sequence. Redo is idempotent: applying a
stretch again from any earlier point gives the same image, bitmaps and history.

Bits are set before data is changed (J1), in the bitmaps that had begun by then. Records that change the group's state
(epochs, bitmaps, SYNCED, the list of volumes) save it before the next record is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from replicator.capture import volumeset
from replicator.capture.damage import find
from replicator.capture.edges import kept_from
from replicator.capture.engine import GroupEngine
from replicator.capture.limits import lift, limited, pending, permitted, still_waits
from replicator.capture.sequence import HIST_ENTRIES
from replicator.capture.state import JOURNAL, NEVER, OK, RESYNC, SECONDARY, GroupState
from replicator.core.epochs import counter_of, tag_of
from replicator.core.errors import IntegrityError
from replicator.core.numbering import Arrival
from replicator.core.records import (
    DATA_KINDS,
    FLAG_NO_PUNCH,
    FLAG_NUMBERED,
    LIST_KINDS,
    NUMBER_BYTES,
    BadRecord,
    Header,
    Kind,
    unpack_number,
)
from replicator.core.runs import iter_run
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_OFF,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
)

BATCH_BYTES = (1 << 20) + 64
RECORDED_BATCH_BYTES = 4 * BATCH_BYTES
"""Of a group that retains what it overwrites: each batch costs a sync of the ring."""
_WRITE, _TRIM = int(Kind.WRITE), int(Kind.TRIM)  # WRITE, ZERO and TRIM are what hosts do, and come first
_MARKER = int(Kind.MARKER)


def apply_some(engine: GroupEngine, limit_bytes: int = 0) -> int:
    """Apply the next records, at most about `limit_bytes` of them but at least one. Returns the bytes applied.

    limit_bytes: 0 for what is best.

    On a primary it does nothing, except at start-up: there hosts change the pool, and redo would undo their writes.
    Raises MediumError or OSError when the pool cannot take them (nothing after the failed record is applied), and
    IntegrityError when the journal's bytes have rotted; those before that are applied.
    """
    with engine.apply_lock:
        if engine.state.role != SECONDARY and not engine.recovering:
            return 0
        if engine.unsettled:
            volumeset.settle(engine)
        u64 = engine.page.u64
        at, head = u64[APPLIED_OFF], u64[HEAD_OFF]
        if at >= head:
            engine.apply_buffer = bytearray()
            return 0
        if still_waits(engine, at):
            return 0
        if u64[DURABLE_OFF] > at:
            head = min(head, u64[DURABLE_OFF])  # one sync covers many batches
        else:
            engine.sync_journal()
        best = BATCH_BYTES if engine.preimages is None else RECORDED_BATCH_BYTES
        want = min(limit_bytes or best, head - at)
        view = _buffer(engine, want)
        try:
            engine.journal.read_into(view, at)
            records = iter_run(view)
            if not records:
                want = engine.journal.header_at(at).total_bytes
                if at + want > head:
                    raise BadRecord("a record reaches beyond the end of the journal")
                view = _buffer(engine, want)
                engine.journal.read_into(view, at)
                records = iter_run(view)
        except (BadRecord, OSError) as e:
            engine.damaged = find(engine, at, u64[APPLIED_SEQ] + 1)
            raise IntegrityError(
                f"record {u64[APPLIED_SEQ] + 1} in the journal of group {engine.state.name} is damaged: {e}",
                f"farstripe explain {engine.state.name} says what is done about it",
            ) from e
        if limited(engine):
            records = permitted(engine, at, records)
        if records and engine.preimages is not None and not engine.recovering:
            records = engine.preimages.before(engine, records, view)
        done = _apply_records(engine, at, records, view)
        if engine.state.torn_to:
            _mend(engine)
        return done


def _mend(engine: GroupEngine) -> None:
    """All records that the pool may have held in part were applied again: it is a prefix of the history. Durable."""
    with engine.lock:
        state, applied = engine.state, engine.page[APPLIED_SEQ]
        if state.copy == RESYNC and applied >= state.torn_to:
            engine.sync_pool()
            engine.commit(copy=OK, floor=applied, torn_to=0)


def _apply_records(engine: GroupEngine, at: int, records: list[tuple[Header, int]], view: memoryview) -> int:
    """Apply records that begin at journal offset `at`, their bytes in `view`; returns their bytes. Hot path.

    The position is stored at the end, and before a record that may look at it: a process that is killed in between has
    an earlier one, and applies some records again.
    """
    u64, volumes, maps, bitmaps = engine.page.u64, engine.volumes, engine.bitmaps.maps, engine.bitmaps
    seq, time_ns, host_seq = u64[APPLIED_SEQ], engine.applied_time_ns, engine.last_host_seq
    off, numbered_to, numbered_ns, numbered_epoch = at, 0, 0, 0
    plain_kind = -1 if engine.recovering else _WRITE
    apply = _apply_again if engine.recovering else _apply
    done_epoch, done_seq = volumeset.passes_over(engine.state)
    try:
        for header, body in records:
            kind, flags, epoch, its_seq, write_time_ns, volume, payload_len, offset, length, _ = header
            if its_seq != seq + 1:
                engine.damaged = find(engine, off, seq + 1)
                raise IntegrityError(f"journal holds record {its_seq} where {seq + 1} belongs", "resync the pair")
            end = body_end = body + payload_len
            if flags & FLAG_NUMBERED:
                body_end = end - NUMBER_BYTES
            if its_seq <= done_seq and epoch <= done_epoch:
                pass  # in the pool, durably, for volumes that may have left since
            elif kind == plain_kind and length == body_end - body:
                _check_range(engine, header)
                maps[volume].mark(bitmaps.live_at(its_seq), offset, length)
                volumes[volume].pwrite(view[body:body_end], offset)
            else:
                u64[APPLIED_SEQ], u64[APPLIED_OFF], engine.applied_time_ns = seq, off, time_ns
                apply(engine, header, view[body:body_end])
            seq, off, time_ns = its_seq, at + end, write_time_ns
            if flags & FLAG_NUMBERED:
                numbered_to, numbered_ns, numbered_epoch = end, time_ns, epoch
            if kind <= _TRIM:
                host_seq = seq
            elif kind == _MARKER and engine.limit_seq == seq:
                break  # suspended here
    except BaseException:
        engine.applied_in_part = max(engine.applied_in_part, seq + 1)
        raise
    finally:
        u64[APPLIED_SEQ], u64[APPLIED_OFF] = seq, off
        engine.applied_time_ns, engine.last_host_seq = time_ns, host_seq
        engine.clock.note(time_ns)
        if numbered_to:
            number, series = unpack_number(view[numbered_to - NUMBER_BYTES : numbered_to])
            engine.last_numbered = Arrival(numbered_ns, number, tag_of(numbered_epoch) << 32 | series)
    return off - at


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
    """Apply what may be applied, while nothing is being received, and make the journal's end agree.

    A replicator that died between the stores that publish a run leaves HEAD_SEQ ahead of HEAD_OFF; the offset counts.
    """
    with engine.apply_lock:
        apply_all(engine)
        u64 = engine.page.u64
        if engine.state.role == SECONDARY and u64[APPLIED_OFF] == u64[HEAD_OFF]:
            u64[HEAD_SEQ] = u64[APPLIED_SEQ]
            u64[DURABLE_SEQ] = min(u64[DURABLE_SEQ], u64[HEAD_SEQ])
            engine.pending_epochs = []
        elif limited(engine):
            held = pending(engine)
            u64[HEAD_SEQ], engine.pending_epochs = held.last_seq, held.epochs
            engine.last_host_seq = max(engine.last_host_seq, held.host_seq)


def apply_all(engine: GroupEngine) -> None:
    """Apply everything that has been received and no limit holds back. Raises as apply_some does."""
    while apply_some(engine):
        pass


def apply_through(engine: GroupEngine, *, keep_bound: bool = False) -> None:
    """Apply everything that has been received, also beyond markers at which copies are to stand.

    keep_bound: but nothing beyond the bound of the group's set. Otherwise the set is no cut any more, durably, first.
    """
    with engine.apply_lock:
        if not keep_bound:
            lift(engine)
        engine.applies_through = not keep_bound
        try:
            while True:
                if engine.limit_seq:
                    engine.on_lift()
                    engine.limit_seq = 0
                if not apply_some(engine):
                    return
        finally:
            engine.applies_through = False


def _apply(engine: GroupEngine, header: Header, payload: memoryview) -> None:
    kind = header.kind
    if kind in (Kind.WRITE, Kind.COPY):
        if header.length != header.data_len:
            raise IntegrityError(f"record {header.seq} of {engine.state.name} states two lengths", "resync the pair")
        _check_range(engine, header)
        engine.bitmaps.maps[header.volume].mark(engine.bitmaps.live_at(header.seq), header.offset, header.length)
        engine.volumes[header.volume].pwrite(payload, header.offset)
    elif kind in (Kind.ZERO, Kind.TRIM, Kind.COPY_ZERO):
        _check_range(engine, header)
        engine.bitmaps.maps[header.volume].mark(engine.bitmaps.live_at(header.seq), header.offset, header.length)
        engine.volumes[header.volume].zero(header.offset, header.length, not header.flags & FLAG_NO_PUNCH)
    elif kind == Kind.MARKER:
        if not engine.recovering:
            engine.on_marker(header, payload)
    elif kind in LIST_KINDS:
        volumeset.apply(engine, header, payload)
    else:
        _apply_control(engine, header)


def in_range(engine: GroupEngine, header: Header) -> bool:
    """Say whether a record that changes data lies in a volume of the group."""
    volumes = engine.volumes
    return header.volume < len(volumes) and header.offset + header.length <= volumes[header.volume].size


def completes_copy(state: GroupState, synced: Header) -> bool:
    """Say whether a SYNCED record completes the copy under way to this node."""
    return state.copy == RESYNC and synced.seq > state.copy_from_seq and state.copy_epoch in (0, synced.epoch)


def goes_beyond(epoch: int, listed: int) -> bool:
    """Say whether `epoch` is no part of the history in which the blocks of a copy were listed in epoch `listed` (0: not
    known), or a later one of it. Epochs of that history from before are older."""
    return bool(listed) and epoch != listed and counter_of(epoch) >= counter_of(listed)


def _check_range(engine: GroupEngine, header: Header) -> None:
    if not in_range(engine, header):
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
                _void_copies(engine, header)
    elif header.kind == Kind.BITMAP_OPEN:
        with engine.lock:
            engine.bitmaps.open(header.seq)
            engine.save()
    elif header.kind == Kind.BITMAP_CLEAR:
        with engine.lock:
            engine.bitmaps.drop_older(header.offset)
            engine.save()
    elif header.kind == Kind.SYNCED:
        if state.role == SECONDARY:
            with engine.lock:
                _end_copies(engine, header)
    elif header.kind != Kind.BARRIER:
        raise IntegrityError(
            f"record {header.seq} of group {state.name} has kind {header.kind}, which is not known here",
            "upgrade this node to the primary's version",
        )


def _end_copies(engine: GroupEngine, synced: Header) -> None:
    """A SYNCED record ends the copy to this node, and those it lets through, that were registered before it."""
    state, seq = engine.state, synced.seq
    ended = [e for e in state.edges if e.copying and seq > e.synced_after and e.synced_epoch in (0, synced.epoch)]
    changes = {e.slot: {"copying": False, "synced_seq": seq} for e in ended}
    if completes_copy(state, synced):
        engine.sync_pool()
        engine.commit(changes, copy=OK, floor=seq, copy_id="", synced_seq=seq)
    else:
        engine.commit(changes, synced_seq=seq)


def _void_copies(engine: GroupEngine, begun: Header) -> None:
    """With an EPOCH record the primary's copy list is gone: a copy that needs it is begun anew by the handshake."""
    state = engine.state

    def is_later(seq: int, epoch: int) -> bool:
        return begun.seq > seq or goes_beyond(begun.epoch, epoch)

    fed = state.role == SECONDARY
    void = [e for e in state.edges if fed and e.copying and is_later(e.synced_after, e.synced_epoch)]
    changes = {e.slot: {"copying": False, "copy_id": ""} for e in void}
    own = fed and state.copy == RESYNC and state.copy_id != "" and is_later(state.copy_from_seq, state.copy_epoch)
    if own:
        engine.commit(changes, copy_id="", copy_from_seq=NEVER)
    else:
        engine.commit(changes)
    if own or void:
        engine.page[INCARNATION] += 1  # the links are made anew, and compare


def checkpoint(engine: GroupEngine) -> bool:
    """Sync pool and bitmaps, then move redo point and tail of the journal up. Returns False when there was no gain.

    The tail stays behind what a peer does not hold durably that this node feeds. For callers that know that no host
    write is under way; others use `begin_checkpoint`, wait, and `finish_checkpoint`.
    """
    begun = begin_checkpoint(engine, whole=True)
    return begun is not None and finish_checkpoint(engine, begun)


class Begun(NamedTuple):
    """A checkpoint that waits for changes in flight."""

    redo_off: int
    redo_seq: int
    pending: set[int]
    unjournaled: int


def begin_checkpoint(engine: GroupEngine, *, whole: bool = False) -> Begun | None:
    """Note how far the pool will be synced and which changes to wait for; None when nothing is journaled.

    whole: to the journal's end, even where less would free as much of it.
    """
    state, u64 = engine.state, engine.page.u64
    with engine.apply_lock, engine.lock:
        if engine.failed:
            return None
        if state.role == SECONDARY:
            return Begun(u64[APPLIED_OFF], u64[APPLIED_SEQ], set(), engine.unjournaled)
        if state.mode != JOURNAL:
            return None
        off, seq = (None if whole else _peers_hold(engine)) or (u64[HEAD_OFF], u64[HEAD_SEQ])
        return Begun(off, seq, engine.in_flight(), engine.unjournaled)


def _peers_hold(engine: GroupEngine) -> tuple[int, int] | None:
    """How far the peers of a primary hold the journal durably, as (offset, seq); None when that frees nothing.

    A checkpoint there leaves no record behind that anybody needs, so none of them has to reach our disk for it: a copy
    of the whole volume would otherwise be written to it once more.
    """
    u64 = engine.page.u64
    off = kept_from(engine)
    if off is None:
        return u64[HEAD_OFF], u64[HEAD_SEQ]
    if not engine.journal.super.redo_off < off <= u64[HEAD_OFF]:
        return None
    if off == u64[HEAD_OFF]:
        return off, u64[HEAD_SEQ]
    try:
        return off, engine.journal.header_at(off).seq - 1
    except BadRecord:
        return None  # it is of another journal


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
        kept = kept_from(engine)
        tail_off = redo_off if kept is None else min(redo_off, max(kept, sup.tail_off))
        if tail_off < redo_off:
            engine.sync_journal()  # the chain that is kept must reach the redo point
        engine.sync_pool()
        engine.unjournaled_synced = max(engine.unjournaled_synced, begun.unjournaled)
        if (tail_off, redo_off) == (sup.tail_off, sup.redo_off):
            return False
        if tail_off == redo_off:
            tail_seq = redo_seq + 1
        elif tail_off == sup.tail_off:
            tail_seq = sup.tail_seq
        else:
            try:
                tail_seq = engine.journal.header_at(tail_off).seq
            except (BadRecord, OSError):
                engine.suspect = tail_off  # see damage.py; the tail stays where it is until then
                tail_off, tail_seq = sup.tail_off, sup.tail_seq
        try:
            engine.journal.set_tail(tail_off, tail_seq, redo_off, redo_seq + 1)
        except OSError as e:
            with engine.lock:
                raise engine.lose_journal(f"its journal's superblock cannot be written: {e}") from e
        with engine.opened:
            if u64[DURABLE_OFF] < tail_off:  # what is not kept lies in the synced pool
                u64[DURABLE_SEQ], u64[DURABLE_OFF] = tail_seq - 1, tail_off
            engine.opened.notify_all()
        return True
