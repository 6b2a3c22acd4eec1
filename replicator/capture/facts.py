"""What a group says about itself: the facts behind status, HELLO and explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicator.capture.state import JOURNAL, PRIMARY
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    PEER_APPLIED_SEQ,
    PEER_DURABLE_OFF,
    PEER_DURABLE_SEQ,
    PEER_RECEIVED_SEQ,
    TAIL_OFF,
    TAIL_SEQ,
)
from replicator.journal.relayout import files_facts

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine


def facts_of(engine: GroupEngine) -> dict[str, Any]:
    """Return all facts about a group; positions are seqs, sizes bytes. Read without stopping anything."""
    state, u64 = engine.state, engine.page.u64
    todo = engine.bitmaps.todo_blocks() if state.copying else 0
    capacity = engine.journal.capacity
    return {
        "uuid": state.uuid,
        "name": state.name,
        "role": state.role,
        "state": state.copy,
        "mode": state.mode,
        "pos": u64[HEAD_SEQ],
        "durable": u64[DURABLE_SEQ],
        "applied": u64[APPLIED_SEQ] if state.role != PRIMARY else u64[HEAD_SEQ],
        "floor": state.floor if state.copy not in ("ok",) else u64[HEAD_SEQ],
        "epoch": engine.epoch,
        "hist": [list(h) for h in state.hist] + [e for e in engine.pending_epochs if e[0] > engine.epoch],
        "link_gen": state.link_gen,
        "journal": {
            "capacity": capacity,
            "used": u64[HEAD_OFF] - u64[TAIL_OFF],
            "first_seq": u64[TAIL_SEQ] if state.mode == JOURNAL else u64[HEAD_SEQ] + 1,
            "head_seq": u64[HEAD_SEQ],
            "head_off": u64[HEAD_OFF],
            "tail_off": u64[TAIL_OFF],
            "applied_off": u64[APPLIED_OFF],
            "peer_durable_off": u64[PEER_DURABLE_OFF],
            "files": files_facts(engine.journal),
        },
        "bitmaps": {
            start: sum(m.count(1 << slot) for m in engine.bitmaps.maps) for slot, start in sorted(state.bitmaps.items())
        },
        "copying": state.copying,
        "synced_seq": state.synced_seq,
        "todo_blocks": todo,
        "todo_bytes": todo << 16,
        "copy_id": state.copy_id,
        "unclean": state.unclean,
        "last_write": min(engine.last_host_seq, u64[HEAD_SEQ]),
        "last_write_time_ns": engine._last_time,
        "applied_time_ns": engine.applied_time_ns,
        "peer": {
            "received": u64[PEER_RECEIVED_SEQ],
            "durable": u64[PEER_DURABLE_SEQ],
            "applied": u64[PEER_APPLIED_SEQ],
        },
        "degraded": state.degraded,
        "sync_on": state.sync_on,
        "policy": dict(vars(state.policy)),
        "held": engine.parked_for == "hold",
        "journal_full": engine.parked_for == "full",
        "limit_seq": engine.limit_seq,
        "limit_time_ns": engine.limit_time_ns,
        "waits_at": None if engine.waiting is None else engine.waiting.seq,
        "host_time_ns": engine.clock.host_ns,
        "failed": engine.failed,
        "apply_error": engine.apply_error,
        "link_up": engine.link_up,
        "incarnation": u64[INCARNATION],
        "volumes": [dict(v) for v in state.volumes],
        "size": sum(v["size"] for v in state.volumes),
    }
