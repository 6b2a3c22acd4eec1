"""What a group says about itself: the facts behind status, HELLO and explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicator.capture.state import JOURNAL, PRIMARY, RESYNC, SECONDARY, Edge
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_SEQ,
    EDGE_APPLIED_SEQ,
    EDGE_DURABLE_OFF,
    EDGE_DURABLE_SEQ,
    EDGE_LINK,
    EDGE_RECEIVED_SEQ,
    EDGE_TREE_DURABLE,
    EDGE_WANTS,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    TAIL_OFF,
    TAIL_SEQ,
    edge_slot,
)
from replicator.journal.relayout import files_facts

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine


def facts_of(engine: GroupEngine, edge: Edge | None = None) -> dict[str, Any]:
    """Return all facts about a group; positions are seqs, sizes bytes. Read without stopping anything.

    edge: what concerns one peer is said of this edge; None: of the only one, or of all together.
    """
    state, u64 = engine.state, engine.page.u64
    if edge is None and len(state.edges) == 1:
        edge = state.edges[0]
    todo = engine.bitmaps.todo_blocks() if state.copying and state.role == PRIMARY else 0
    capacity = engine.journal.capacity
    return {
        "uuid": state.uuid,
        "name": state.name,
        "role": state.role,
        "state": state.copy,
        "rewinding": state.rewind is not None,
        "mode": state.mode,
        "pos": u64[HEAD_SEQ],
        "durable": u64[DURABLE_SEQ],
        "applied": u64[APPLIED_SEQ] if state.role != PRIMARY else u64[HEAD_SEQ],
        "floor": state.floor if state.copy not in ("ok",) else u64[HEAD_SEQ],
        "epoch": engine.epoch,
        "hist": [list(h) for h in state.hist] + [e for e in engine.pending_epochs if e[0] > engine.epoch],
        "rewound": [list(line) for line in state.rewound if line[0]],
        "torn": state.torn_to if state.copy == RESYNC else 0,
        "link_gen": state.link_gen,
        "journal": {
            "capacity": capacity,
            "used": u64[HEAD_OFF] - u64[TAIL_OFF],
            "first_seq": u64[TAIL_SEQ] if _streams(engine, edge) else u64[HEAD_SEQ] + 1,
            "head_seq": u64[HEAD_SEQ],
            "head_off": u64[HEAD_OFF],
            "tail_off": u64[TAIL_OFF],
            "applied_off": u64[APPLIED_OFF],
            "error": state.journal_error or engine.journal_lost or _lost_here(engine),
            "damaged": state.damaged,
            "peer_durable_off": _peer(engine, edge, EDGE_DURABLE_OFF),
            "files": files_facts(engine.journal, broken=bool(state.journal_error or engine.journal_lost)),
        },
        "bitmaps": {
            start: sum(m.count(1 << slot) for m in engine.bitmaps.maps) for slot, start in sorted(state.bitmaps.items())
        },
        **_of_edge(engine, edge),
        "todo_blocks": todo,
        "todo_bytes": todo << 16,
        "upstream": state.upstream,
        "source_durable": _source_durable(engine, edge),
        "edges": [_edge(engine, e) for e in state.edges],
        "last_write": min(engine.last_host_seq, u64[HEAD_SEQ]),
        "last_write_time_ns": engine._last_time,
        "applied_time_ns": engine.applied_time_ns,
        "peer": {
            "received": _peer(engine, edge, EDGE_RECEIVED_SEQ),
            "durable": _peer(engine, edge, EDGE_DURABLE_SEQ),
            "applied": _peer(engine, edge, EDGE_APPLIED_SEQ),
        },
        "policy": state.policy_of(edge),
        "held": engine.parked_for == "hold",
        "parked": engine.parked_for,
        "journal_full": engine.parked_for == "full",
        "limit_seq": engine.limit_seq,
        "limit_time_ns": engine.limit_time_ns,
        "waits_at": None if engine.waiting is None else engine.waiting.seq,
        "host_time_ns": engine.clock.host_ns,
        "failed": engine.failed,
        "apply_error": engine.apply_error,
        "damaged_at": 0 if engine.damaged is None else engine.damaged.seq,
        "link_up": bool(engine.linked) if edge is None else edge.slot in engine.linked,
        "incarnation": u64[INCARNATION],
        "volumes": [dict(v) for v in state.volumes],
        "listed_seq": state.listed_at[1] if state.listed_at else 0,
        "size": sum(v["size"] for v in state.volumes),
    }


def _lost_here(engine: GroupEngine) -> str:
    """Why a copy failed that has lost nothing but its journal."""
    return engine.failed if engine.failed_by_journal and engine.state.role == SECONDARY else ""


def _streams(engine: GroupEngine, edge: Edge | None) -> bool:
    """Whether the journal is kept for the peer."""
    return engine.state.mode == JOURNAL and not (edge is not None and edge.dropped)


def _source_durable(engine: GroupEngine, edge: Edge | None) -> int:
    """Up to which seq the peer is known to have had the records on stable storage, 0 when nothing is known."""
    told = engine.state.source_durable
    return int(told[1]) if told and edge is not None and edge.peer == told[0] else 0


def _peer(engine: GroupEngine, edge: Edge | None, what: int) -> int:
    """What a peer has said of itself; without an edge the least that any peer has which this node feeds."""
    u64 = engine.page.u64
    edges = engine.state.downstream if edge is None else [edge]
    return min((u64[edge_slot(e.slot, what)] for e in edges), default=0)


def _of_edge(engine: GroupEngine, edge: Edge | None) -> dict[str, Any]:
    """What concerns one peer; for several the worst of each."""
    state = engine.state
    found = {
        "edge": None,
        "sync_on": state.sync_on,
        "degraded": state.degraded,
        "copying": state.copying,
        "copy_id": state.copy_id,
        "synced_seq": state.synced_seq,
        "unclean": state.unclean,
        "blocks_writers": any(_blocks_writers(engine, e) for e in state.edges),
    }
    if edge is None:
        return found
    found["edge"] = edge.slot
    found["blocks_writers"] = _blocks_writers(engine, edge)
    found["sync_on"], found["degraded"] = edge.sync_on, edge.degraded
    if state.role == SECONDARY and edge.peer == state.upstream:
        return found | {"copying": False}
    copy = {"copying": edge.copying, "copy_id": edge.copy_id, "synced_seq": edge.synced_seq}
    return found | copy | ({"unclean": edge.unclean} if state.role == PRIMARY else {})


def _blocks_writers(engine: GroupEngine, edge: Edge) -> bool:
    """Whether host writes wait or fail because the journal is full with what this edge's peer lacks."""
    state = engine.state
    full = state.role == PRIMARY and state.mode == JOURNAL and not edge.dropped
    return full and engine.full_for.get(edge.slot) == engine.page[TAIL_OFF]


def _edge(engine: GroupEngine, edge: Edge) -> dict[str, Any]:
    """One edge, for status."""
    state, u64 = engine.state, engine.page.u64
    counters = {
        "received": EDGE_RECEIVED_SEQ,
        "durable": EDGE_DURABLE_SEQ,
        "applied": EDGE_APPLIED_SEQ,
        "durable_off": EDGE_DURABLE_OFF,
        "tree_durable": EDGE_TREE_DURABLE,
        "link": EDGE_LINK,
        "wants": EDGE_WANTS,
    }
    return {
        **vars(edge),
        "upstream": bool(edge.peer) and edge.peer == state.upstream,
        "linked": edge.slot in engine.linked,
        "blocks_writers": _blocks_writers(engine, edge),
        **{name: u64[edge_slot(edge.slot, what)] for name, what in counters.items()},
    }
