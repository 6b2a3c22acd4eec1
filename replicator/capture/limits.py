"""How far a secondary may apply what it has received, and giving up what lies beyond for good.

    limit_time_ns   of a consistency set: records with a later write time wait (capture/sets.py raises it)
    limit_seq       of a suspension at a marker: records with a higher seq wait until it is lifted

Write times are unique on the primary's node and a group's bound is only raised once everything up to it has arrived, so
`<=` is right for both. Limits hold for a consistent copy that follows, and for one that is sent again what it lost with
its journal: its set must have been told, durably, that it is no cut now. A copy that is being made takes what comes.
A takeover at a limit drops what lies beyond it: the journal is cut there, durably, so no later start applies it.

What is held back is received all the same: it counts in everything that this node says of itself to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from replicator.capture.retention import Marks
from replicator.capture.state import OK, SECONDARY
from replicator.core.errors import IntegrityError
from replicator.core.records import DATA_KINDS, BadRecord, Header, Kind
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_OFF,
    DURABLE_SEQ,
    EDGE_APPLIED_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_RECEIVED_SEQ,
    EDGE_TREE_DURABLE,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    edge_slot,
)

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine


class Waiting(NamedTuple):
    """The first record that a limit holds back."""

    off: int
    seq: int
    time_ns: int


def limited(engine: GroupEngine) -> bool:
    """Whether records may be held back at all."""
    if engine.state.role != SECONDARY:
        return False
    return bool(engine.limit_seq or _bound(engine))


def _bound(engine: GroupEngine) -> int:
    """The set's limit where it holds, else 0."""
    follows = engine.state.copy == OK or engine.state.torn_to
    return engine.limit_time_ns if follows and not engine.applies_through else 0


def may_apply(engine: GroupEngine, seq: int, time_ns: int) -> bool:
    """Whether a record with this seq and write time may be applied now."""
    if engine.limit_seq and seq > engine.limit_seq:
        return False
    bound = _bound(engine)
    return not bound or time_ns <= bound


def still_waits(engine: GroupEngine, off: int) -> bool:
    """Whether the record at `off` is known to be held back; cheap, for a follower that is woken often."""
    found = engine.waiting
    return found is not None and found.off == off and not may_apply(engine, found.seq, found.time_ns)


def permitted(engine: GroupEngine, at: int, records: list[tuple[Header, int]]) -> list[tuple[Header, int]]:
    """Return those of `records` (from journal offset `at` on) that come before the first one that is held back."""
    off = at
    for number, (header, _) in enumerate(records):
        if not may_apply(engine, header.seq, header.write_time):
            engine.waiting = Waiting(off, header.seq, header.write_time)
            return records[:number]
        off += header.total_bytes
    engine.waiting = None
    return records


class Pending(NamedTuple):
    """What was received and not applied: its last seq (the applied one without any), last write time, new epochs, the
    seq of its last host write (0 without any)."""

    last_seq: int
    last_time_ns: int
    epochs: list[list[int]]
    host_seq: int


def pending(engine: GroupEngine) -> Pending:
    """Walk over the records between the applied position and the journal's end. Raises IntegrityError."""
    seq, time_ns, host_seq = engine.page[APPLIED_SEQ], 0, 0
    epochs = []
    for header in _held_back(engine):
        if header.kind == Kind.EPOCH:
            epochs.append([header.epoch, header.seq - 1])
        elif header.kind <= Kind.TRIM:
            host_seq = header.seq
        seq, time_ns = header.seq, header.write_time
    return Pending(seq, time_ns, epochs, host_seq)


def answered_beyond(engine: GroupEngine, bound_ns: int) -> int:
    """How many host writes this secondary of a synchronous pair holds that are later than `bound_ns`: their hosts may
    have been told that they are stored here. 0 where the pair is asynchronous. Raises IntegrityError."""
    state = engine.state
    if state.role != SECONDARY or state.policy_of(state.edge_of(state.upstream))["mode"] != "sync":
        return 0
    return sum(1 for header in _held_back(engine) if header.kind <= Kind.TRIM and header.write_time > bound_ns)


def mark_pending(engine: GroupEngine) -> None:
    """Mark the blocks of what was received and not applied in every live bitmap: before a copy all of it will be
    applied.

    The caller holds apply_lock and the group lock. Raises IntegrityError.
    """
    maps = engine.bitmaps.maps
    for header in _held_back(engine):
        if header.kind in DATA_KINDS and header.volume < len(maps):
            maps[header.volume].mark(engine.bitmaps.live, header.offset, header.length)


def _held_back(engine: GroupEngine) -> Iterator[Header]:
    u64 = engine.page.u64
    off, head = u64[APPLIED_OFF], u64[HEAD_OFF]
    while off < head:
        try:
            header = engine.journal.header_at(off)
        except BadRecord as exc:
            raise IntegrityError(f"journal of group {engine.state.name} is damaged at offset {off}: {exc}") from exc
        yield header
        off += header.total_bytes


def lift(engine: GroupEngine) -> None:
    """Let everything be applied. Durable first, by `on_lift`: that no limit holds the group any more."""
    if engine.limit_time_ns or engine.limit_seq:
        engine.on_lift()
    engine.limit_seq = engine.limit_time_ns = 0


def cut(engine: GroupEngine) -> int:
    """Give up what was received and is not applied. Returns how many records. The caller holds apply_lock.

    Durable: the journal ends at the applied position.
    """
    u64 = engine.page.u64
    with engine.checkpoint_lock, engine.lock:
        off, seq = u64[APPLIED_OFF], u64[APPLIED_SEQ]
        dropped = max(0, u64[HEAD_SEQ] - seq)
        if engine.preimages is not None:
            engine.preimages.leave(seq)
        if off != u64[HEAD_OFF]:
            with suppress(IntegrityError):  # what is given up may be damaged
                for epoch, _ in pending(engine).epochs:
                    engine.note_epoch(epoch)  # ours will be newer: what is left of theirs in the ring cannot follow it
            engine.state.source_durable = []  # it counts with what is given up
            engine.save()
            end_journal(engine, off, seq, engine.epoch)
            u64[INCARNATION] += 1
        else:
            u64[HEAD_SEQ] = seq
            engine.last_host_seq = min(engine.last_host_seq, seq)
            engine.waiting, engine.pending_epochs = None, []
        engine.applied_in_part = min(engine.applied_in_part, seq)  # a limit is never behind what was applied
    engine.sync_journal()
    return dropped


def end_journal(engine: GroupEngine, off: int, seq: int, epoch: int) -> None:
    """Let the journal of a copy end at `off`, behind record `seq` of `epoch`; other records will take that place.

    The caller holds all locks and sees to it that nobody appends. Durable: nothing until the journal is synced.
    """
    u64 = engine.page.u64
    _forget_of_peers(engine, seq, off)
    engine.journal.end_at(off, seq, epoch)
    if u64[DURABLE_OFF] > off:
        u64[DURABLE_SEQ], u64[DURABLE_OFF] = seq, off
    engine.last_host_seq = min(engine.last_host_seq, seq)
    engine.waiting = None
    engine.pending_epochs = []


def _forget_of_peers(engine: GroupEngine, seq: int, off: int) -> None:
    """Peers below may hold what is given up here. Other records will take its numbers, and its place in the journal."""
    u64 = engine.page.u64
    for edge in engine.state.edges:
        for what in (EDGE_RECEIVED_SEQ, EDGE_DURABLE_SEQ, EDGE_APPLIED_SEQ, EDGE_TREE_DURABLE):
            slot = edge_slot(edge.slot, what)
            u64[slot] = min(u64[slot], seq)
        slot = edge_slot(edge.slot, EDGE_DURABLE_OFF)
        u64[slot] = min(u64[slot], off)
    engine.marks = Marks()
