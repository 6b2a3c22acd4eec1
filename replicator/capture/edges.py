"""The edges of a group on one node: the peers it feeds, the one that feeds it, and how long the journal is kept for
each.

    primary      feeds the peer of every edge, from its own writes
    secondary    is fed by the upstream peer, and feeds the peers of its other edges out of its journal

The journal is kept for every peer that this node feeds until it holds the records durably. A peer that is away for too
long, or too slow, is dropped: its edge stays, the journal goes on without it, and it comes back by a copy. That it was
dropped is durable before the tail passes what it holds, and so is that its edge is degraded.

Functions that change something take the group lock themselves unless they say that the caller holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from replicator.capture.engine import GroupEngine
from replicator.capture.retention import freed_off
from replicator.capture.state import DIVERGED, JOURNAL, OK, PRIMARY, SECONDARY, Edge
from replicator.core.errors import BadInput, NotFound, Refused
from replicator.core.losspolicy import may_go_alone
from replicator.journal.page import (
    DROPS,
    EDGE_ASLEEP,
    EDGE_DURABLE_OFF,
    EDGE_LINK,
    EDGES,
    LINK_DOWN,
    TAIL_OFF,
    clear_edge,
    edge_slot,
)


def edge_of(engine: GroupEngine, peer: str) -> Edge:
    """The edge with node `peer`. Raises NotFound.

    A group of a version that knew one peer did not store who it was: the first that asks is that peer, durably.
    """
    state = engine.state
    found = state.edge_of(peer)
    if found is None and state.edge_of("") is not None:
        with engine.lock:
            unnamed = state.edge_of("")
            if unnamed is not None:
                upstream = peer if state.role == SECONDARY else ""
                engine.commit({unnamed.slot: {"peer": peer}}, upstream=upstream)
        found = state.edge_of(peer)
    if found is None:
        raise NotFound(f"group {state.name} has no pair with node {peer} here", "see 'farstripe status'")
    return found


def kept_from(engine: GroupEngine) -> int | None:
    """Journal offset up to which no peer wants it any more for which it is kept; None when there is no such peer."""
    return min((freed_off(engine, e) for e in engine.state.downstream if not e.dropped), default=None)


def holders(engine: GroupEngine) -> list[Edge]:
    """The edges that keep the tail of the journal where it is."""
    tail = engine.page.u64[TAIL_OFF]
    downstream = [e for e in engine.state.downstream if not e.dropped]
    return [e for e in downstream if freed_off(engine, e) <= tail]


def add(engine: GroupEngine, peer: str, mode: str, *, upstream: bool = False, dropped: bool = True) -> Edge:
    """Put a new edge into the state, which the caller saves. The caller holds the group lock.

    Raises BadInput for a mode nobody knows, Refused when the group has as many edges as it can have.
    """
    state = engine.state
    mode = check_mode(mode or state.policy.mode)
    if not peer:
        raise BadInput("the peer of a pair needs its node id")
    taken = {e.slot for e in state.edges}
    slot = next((k for k in range(EDGES) if k not in taken), None)
    if slot is None:
        raise Refused(
            f"group {state.name} has {EDGES} pairs, which is all it can have on one node",
            "delete one, or pair the new node with a secondary: it feeds others out of its own journal",
        )
    clear_edge(engine.page, slot)
    engine.page[edge_slot(slot, EDGE_ASLEEP)] = 0
    engine.page[edge_slot(slot, EDGE_LINK)] = LINK_DOWN
    engine.linked.discard(slot)
    edge = Edge(slot, peer, mode, dropped=dropped and not upstream)
    edge.unclean = state.unclean and not upstream
    state.edges.append(edge)
    if upstream:
        state.upstream = peer
    return edge


def check_mode(mode: str) -> str:
    """Return `mode`. Raises BadInput unless it is one."""
    if mode not in ("async", "sync"):
        raise BadInput(f"mode cannot be {mode!r}", "choose one of async, sync")
    return mode


def attach_peer(engine: GroupEngine, peer: str, mode: str, upstream: bool) -> None:
    """Add the edge with `peer` to a group that has pairs already, or is a secondary; `upstream`: the one that feeds it.

    Does nothing when there is one. Durable: the edge. The caller holds the group lock. Raises Refused, BadInput.
    """
    state = engine.state
    found = state.edge_of(peer)
    if upstream and state.role != SECONDARY:
        raise Refused(f"group {state.name} is primary here", "a primary is fed by nobody")
    if found is not None:
        if upstream and state.upstream != peer:
            engine.commit({found.slot: fed_by()}, upstream=peer)
        elif mode and mode != found.mode:
            engine.commit({found.slot: mode_change(found, check_mode(mode))})
        return
    if upstream:
        if state.upstream:
            raise Refused(f"group {state.name} follows node {state.upstream} already", "delete that pair first")
    elif state.role == SECONDARY and state.copy != OK:
        raise Refused(
            f"the copy of group {state.name} here is {state.copy}: nothing consistent can be copied from it",
            "create the pair when the copy is complete",
        )
    add(engine, peer, mode, upstream=upstream)
    engine.save()
    engine.refresh()


def remove(engine: GroupEngine, edge: Edge) -> None:
    """Take an edge out of the state; others stay. Durable: that it is gone. The caller holds the group lock."""
    state = engine.state
    rest = [e for e in state.edges if e is not edge]
    engine.set_edges(rest, upstream="" if edge.peer == state.upstream else state.upstream)
    edge.sync_on = False  # whoever waits for its peer looks here
    engine.linked.discard(edge.slot)
    engine.opened.notify_all()


def drop(engine: GroupEngine, edges: Iterable[Edge], *, stay_waited_for: bool = False) -> None:
    """Keep the journal no longer for the peers of `edges`. Durable on return; only then may the tail pass them.

    stay_waited_for: writes go on waiting for those without which nothing may exist (on_loss=stall), until a copy to
    them begins; else the caller has seen to it that there are none.
    """
    with engine.opened:
        dropped = [e for e in edges if e in engine.state.edges]
        on_loss = engine.state.policy.on_loss
        changes = {e.slot: e.without_peer() for e in dropped}
        for edge in dropped:
            if stay_waited_for and not may_go_alone(edge.sync_on, on_loss):
                changes[edge.slot] |= {"sync_on": True, "degraded": edge.degraded}
        engine.commit(changes)
        note_dropped(engine, dropped)
        engine.opened.notify_all()


def note_dropped(engine: GroupEngine, edges: Iterable[Edge]) -> None:
    """Tell the replicator that it cannot go on shipping over `edges`, also if the journal reaches back far enough
    still:
    the copy under way is void."""
    for edge in edges:
        engine.page[DROPS + edge.slot] += 1


def follow(engine: GroupEngine, peer: str) -> None:
    """Records of `peer` come in from now on: it feeds this node, whose image is a prefix of the peer's history.

    So a former primary that was parted from another history is whole again in this one. Durable. Raises Refused on a
    primary, NotFound.
    """
    edge = edge_of(engine, peer)
    with engine.lock:
        state = engine.state
        if state.role != SECONDARY:
            raise Refused(f"group {state.name} is primary here", "a primary is fed by nobody")
        whole = {"copy": OK} if state.copy == DIVERGED else {}
        if state.upstream != edge.peer or whole:
            engine.commit({edge.slot: fed_by()}, upstream=edge.peer, **whole)


def note_source(engine: GroupEngine, peer: str, seq: int) -> None:
    """Keep that `peer`, which feeds this node, has all records up to `seq` on stable storage.

    Should it lack some of them later, it did not lose them with its power. Does nothing when this node is not fed by
    it, or its own copy is not complete. Durable.
    """
    with engine.lock:
        state, told = engine.state, [peer, min(seq, engine.pos)]
        if state.role == SECONDARY and state.copy == OK and state.upstream == peer and state.source_durable != told:
            engine.commit(source_durable=told)


def fed_by() -> dict[str, Any]:
    """What an edge becomes when its peer feeds this node."""
    return {
        "copying": False, "copy_id": "", "sync_on": False, "degraded": False, "dropped": False, "unclean": False
    }  # fmt: skip


def set_link(engine: GroupEngine, edge: Edge, up: bool) -> None:
    """The replicator says whether records flow to the peer. One that was dropped keeps the journal again from its tail
    on; whether that is far enough, the replicator finds out."""
    with engine.lock:
        if not up:
            engine.linked.discard(edge.slot)
            return
        engine.linked.add(edge.slot)
        if edge.dropped and engine.state.mode == JOURNAL and edge.peer != engine.state.upstream:
            clear_off(engine, edge)
            engine.commit({edge.slot: {"dropped": False}})


def clear_off(engine: GroupEngine, edge: Edge) -> None:
    """Keep the whole journal for the peer until its replicator has found out where it stands."""
    engine.page[edge_slot(edge.slot, EDGE_DURABLE_OFF)] = 0


def set_sync(engine: GroupEngine, edge: Edge, on: bool) -> dict[str, Any]:
    """From now on each write waits for the peer (or no longer: then a synchronous edge is degraded).

    On a secondary the waiting is its replicator's: what it tells the node above. Durable: the switch.
    Returns {seq}: the position then.
    """
    with engine.lock:
        state = engine.state
        feeds = edge in state.downstream and not edge.dropped and state.mode == JOURNAL
        wanted = on and edge.mode == "sync" and feeds
        degraded = not wanted and (edge.degraded or (edge.sync_on and edge.mode == "sync"))
        if wanted and not edge.sync_on and state.role == PRIMARY:
            engine.unanswered.take_stock(engine, (*engine.waits, edge))
        if (edge.sync_on, edge.degraded) != (wanted, degraded):
            engine.commit({edge.slot: {"sync_on": wanted, "degraded": degraded}})
        return {"seq": engine.pos, "sync_on": edge.sync_on}


def degrade(engine: GroupEngine, edge: Edge) -> bool:
    """Go on without the peer of an edge; False when it was so already. Durable: that the edge is degraded, before any
    write is answered which its peer does not have."""
    with engine.lock:
        if not edge.sync_on:
            return False
        engine.commit({edge.slot: {"sync_on": False, "degraded": True}})
        return True


def mode_change(edge: Edge, mode: str) -> dict[str, Any]:
    """What a new mode makes of an edge."""
    stays = mode == "sync"
    return {"mode": mode, "sync_on": edge.sync_on and stays, "degraded": edge.degraded and stays}


def set_policy(engine: GroupEngine, changes: dict[str, Any], peer: str) -> dict[str, Any]:
    """Change the policy of the group; `mode` is that of the edge with `peer`, or of all edges and new ones when `peer`
    is "" or feeds this node. Returns the policy as that edge sees it. Durable: all of it.

    Raises BadInput, NotFound.
    """
    edge = edge_of(engine, peer) if peer else None
    with engine.lock:
        state = engine.state
        policy = state.policy.changed(changes)
        mode = changes.get("mode")
        whole = edge is None or edge.peer == state.upstream
        if mode is None:
            modes = {}
        elif edge is None:
            modes = {e.slot: mode_change(e, mode) for e in state.edges}
        else:
            modes = {edge.slot: mode_change(edge, mode)}
        if not whole:
            policy = policy.changed({"mode": state.policy.mode})
        engine.commit(modes, policy=policy)
        return state.policy_of(edge)
