"""The source's side of a copy: what is copied, and the position from which the records follow.

    begin_copy    the primary copies to a peer of its own
    pin_copy      a secondary lets a peer of its own be copied to: the blocks come from the primary, in the sequence
    extend_copy   the primary takes the blocks of such a copy onto its list

There is one copy list (the TODO bit) for all copies: a COPY record goes to every node below, and to apply one that was
not needed changes nothing. When the list is empty one SYNCED record follows, and it ends every copy whose blocks were
on the list before. So a copy may begin while another is under way: its blocks join the list, and nobody else notices.

A copy is void when the primary loses its list: it begins a new epoch then, or another node does, and an EPOCH record
tells everybody on the way (follower.py). That record may come before the place where the blocks were listed: who takes
over need not have got so far. So of a copy through a secondary the epoch in which they were listed is known too.

Source: seed 000 section 9.3 (ATTACH), 001 section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from replicator.capture import journalloss, volumeset
from replicator.capture.bitmaps import TODO, BlockMap, union_packed
from replicator.capture.engine import GroupEngine
from replicator.capture.follower import apply_all, goes_beyond
from replicator.capture.limits import mark_pending
from replicator.capture.state import JOURNAL, OK, PRIMARY, SECONDARY, Edge
from replicator.core.errors import BadInput, Refused
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    EDGE_DURABLE_OFF,
    HEAD_OFF,
    INCARNATION,
    clear_edge,
    edge_slot,
)

Packed = dict[int, bytes]
Theirs = dict[int, bytes | None]
NOT_YET = (1 << 63) - 1
"""No record has such a seq: nothing ends the copy until the primary has answered."""
MAX_EXTENDED = 32
"""So many copies below other nodes are remembered by name. One SYNCED ends them all, so any one of them keeps the
list."""
MAX_ID_BYTES = 64


def common_bitmap(engine: GroupEngine, c: int | None) -> dict[str, Any]:
    """Return the newest bitmap that reaches back to common position c: {"start", "volumes": {index: packed bits}}.

    Both are None when there is none (then every block may differ). What a limit holds back here counts as applied: it
    is before the copy begins.
    """
    with engine.apply_lock, engine.lock:
        bit = None if c is None else engine.bitmaps.newest_for(c)
        if engine.state.role == SECONDARY:
            mark_pending(engine)
        if bit is None:
            return {"start": None, "volumes": None}
        start = next(v for s, v in engine.state.bitmaps.items() if 1 << s == bit)
        return {"start": start, "volumes": {i: m.packed(bit) for i, m in engine.bitmaps.present()}}


def begin_copy(
    engine: GroupEngine, edge: Edge, c: int | None, peer_bitmaps: Theirs | None, copy_id: str
) -> dict[str, Any]:
    """Put on the copy list the union of both sides' bitmaps that reach back to c, or every block.

    c: common position, None when there is none. peer_bitmaps: packed, by volume, None for a volume that the peer has
    not, or with another size; None when it has no bitmaps at all.
    Returns {p, epoch, hist, masks, full, volumes, todo_blocks}: records after seq p belong to the stream; volumes: the
    group's at p.
    Durable: the list, and that this group journals again.
    """
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != PRIMARY:
            raise Refused(f"group {state.name} is secondary here", "resync runs from the primary")
        journalloss.require_journal(engine)
        masks = _blocks(engine, c, peer_bitmaps)
        if edge.copy_id:
            engine.commit({edge.slot: {"copying": False, "copy_id": ""}})  # its former list is given up
        _join_list(engine, masks)
        fresh = state.mode != JOURNAL
        if fresh:
            engine.journal.reset(engine.pos, engine.epoch)
            engine.unjournaled += 1
        if not state.hist or state.new_epoch_wanted:
            engine.open_epoch()
        p = engine.pos
        _pin(engine, edge, engine.page[HEAD_OFF])
        engine.commit({edge.slot: _begun(edge, copy_id, p)}, mode=JOURNAL, unclean=_unclean_for_others(engine, edge))
        if fresh:
            engine.page[INCARNATION] += 1
        engine.opened.notify_all()
        return {**_offer(engine, p, masks), "todo_blocks": engine.bitmaps.todo_blocks()}


def pin_copy(
    engine: GroupEngine, edge: Edge, c: int | None, peer_bitmaps: Theirs | None, copy_id: str
) -> dict[str, Any]:
    """Let a peer of this secondary be copied to: keep the journal for it from here on, and say which blocks it lacks.

    Arguments and result as for `begin_copy`, without todo_blocks. The caller has the primary copy these blocks
    (`extend_copy`) before the peer is attached, and tells `copy_until` what the primary answered.
    Durable: the place in the journal from which it is kept, and the records before it.
    """
    with engine.apply_lock:
        if engine.state.role == SECONDARY:
            apply_all(engine)
        with engine.checkpoint_lock, engine.lock:
            state = engine.state
            if state.role != SECONDARY or state.copy != OK:
                raise Refused(
                    f"group {state.name} is {state.role} here and its copy {state.copy}",
                    "a copy runs from the primary, or through a secondary whose own copy is complete",
                )
            masks = _blocks(engine, c, peer_bitmaps)
            p = engine.page[APPLIED_SEQ]
            _pin(engine, edge, engine.page[APPLIED_OFF])
            engine.commit({edge.slot: _begun(edge, copy_id, NOT_YET)})
            return _offer(engine, p, masks)


def copy_until(engine: GroupEngine, edge: Edge, copy_id: str, seq: int, epoch: int) -> dict[str, Any]:
    """A SYNCED record after `seq`, and in `epoch`, ends the pinned copy `copy_id`; one may have been applied by now.

    Returns {copying}. Raises Refused when the copy is void by now, or another than the one that was pinned last.
    Durable.
    """
    with engine.lock:
        state = engine.state
        if not copy_id or edge.copy_id != copy_id:
            raise Refused(f"the copy {copy_id} of group {state.name} is not under way", "begin it anew")
        if state.hist and (state.hist[-1][1] >= seq or goes_beyond(state.hist[-1][0], epoch)):
            engine.commit({edge.slot: {"copying": False, "copy_id": ""}})
            raise Refused(f"the primary of group {state.name} lost the list of copy {copy_id}", "begin it anew")
        done = state.synced_seq > seq and engine.epoch == epoch
        changes = {"synced_after": seq, "synced_epoch": epoch, "copying": not done}
        engine.commit({edge.slot: changes | ({"synced_seq": state.synced_seq} if done else {})})
        return {"copying": edge.copying}


def extend_copy(engine: GroupEngine, copy_id: str, masks: Packed | None) -> dict[str, Any]:
    """Take the blocks of a copy that runs below another node onto this primary's list; masks: None for every block.

    Returns {seq, epoch}: the SYNCED record that ends that copy comes later than this, in this epoch. Durable: the
    blocks, and that they count.
    Raises Refused on a secondary, or while nothing is journaled, BadInput for masks or an id that cannot be.
    """
    if not 0 < len(copy_id.encode()) <= MAX_ID_BYTES:
        raise BadInput(f"{copy_id[:80]!r} cannot name a copy")
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != PRIMARY:
            raise Refused(f"group {state.name} is secondary here", "ask the node that feeds it")
        if state.mode != JOURNAL:
            raise Refused(f"group {state.name} does not journal now", "the pair with this node is resynced first")
        if masks is not None:
            masks = _as_listed(engine, masks)
            check_maps(engine.bitmaps.present(), masks)
        _join_list(engine, masks)
        if state.new_epoch_wanted:
            engine.open_epoch()
        seq = engine.pos
        extended = {**state.extended, copy_id: seq}
        engine.commit(extended=dict(list(extended.items())[-MAX_EXTENDED:]))
        return {"seq": seq, "epoch": engine.epoch}


def _blocks(engine: GroupEngine, c: int | None, peer_bitmaps: Theirs | None) -> Packed | None:
    """The blocks in which two sides may differ, None for all of them."""
    own = None if c is None else engine.bitmaps.newest_for(c)
    if own is None or peer_bitmaps is None:
        return None
    masks = {}
    for index, m in engine.bitmaps.present():
        theirs = peer_bitmaps.get(index, b"")
        if theirs is None:
            masks[index] = m.packed_all()
        else:
            _check_map(index, m, theirs)
            masks[index] = union_packed(m.packed(own), theirs)
    return masks


def _join_list(engine: GroupEngine, masks: Packed | None) -> None:
    """Put blocks on the copy list, in place of what a copy that was given up left there. Durable: the list."""
    for index, m in engine.bitmaps.present():
        if not engine.state.copying:
            m.clear_all(TODO)
        if masks is None:
            m.set_all(TODO)
        elif index in masks:
            m.merge_packed(TODO, masks[index])
    engine.bitmaps.sync()


def _pin(engine: GroupEngine, edge: Edge, off: int) -> None:
    """Keep the journal for the peer from offset `off` on; what was said of it is forgotten."""
    clear_edge(engine.page, edge.slot)
    engine.page[edge_slot(edge.slot, EDGE_DURABLE_OFF)] = off


def _begun(edge: Edge, copy_id: str, synced_after: int) -> dict[str, Any]:
    """What the beginning of a copy makes of an edge."""
    return {
        "copying": True,
        "copy_id": copy_id,
        "synced_after": synced_after,
        "synced_epoch": 0,
        "dropped": False,
        "unclean": False,
        "sync_on": False,
        "degraded": edge.degraded or edge.sync_on,
    }


def _unclean_for_others(engine: GroupEngine, edge: Edge) -> bool:
    return any(e.unclean for e in engine.state.edges if e is not edge)


def _offer(engine: GroupEngine, p: int, masks: Packed | None) -> dict[str, Any]:
    return {
        "p": p,
        "epoch": engine.epoch,
        "hist": [list(h) for h in engine.state.hist],
        "rewound": [list(line) for line in engine.state.rewound if line[0]],
        "masks": masks or {},
        "full": masks is None,
        "volumes": volumeset.offered(engine),
        "incarnation": engine.page[INCARNATION],
    }


def check_maps(maps: Iterable[tuple[int, BlockMap]], packed: Packed | None) -> None:
    """Raise BadInput unless there is a packed bitmap of the right size for every one of `maps`. Nothing is changed."""
    for index, m in maps:
        _check_map(index, m, (packed or {}).get(index, b""))


def _check_map(index: int, m: BlockMap, packed: bytes) -> None:
    if len(packed) != (m.blocks + 7) // 8:
        raise BadInput(
            f"the peer's bitmap of volume {index} has {len(packed)} bytes for {m.blocks} blocks",
            "compare the volumes' sizes",
        )


def _as_listed(engine: GroupEngine, masks: Packed) -> Packed:
    """Masks that a node below made for the volumes it had at an earlier position, for those that the group has now.

    Whatever a volume got since then, when it was added or grew, the node learns by the records in between.
    """
    if not engine.state.listed_at:
        return masks
    fitted = {}
    for index, m in engine.bitmaps.present():
        size = (m.blocks + 7) // 8
        fitted[index] = masks.get(index, b"")[:size].ljust(size, b"\0")
    return fitted
