"""When the medium of a journal fails: what becomes of the group, and how it gets a new journal.

On a primary. An append or sync that failed is never tried again. Writers are parked, those under way drained, and the
pool is synced with all bits: then everything that was ever acknowledged or flushed lies in the pool, whatever the
journal lost. Only then the group goes over to counting differences, durably, and writers go on. When the pool cannot be
synced, or nothing may exist on this side alone, the group fails. Three things one may ask:

* A flush whose sync failed was not answered; it is repeated, and then rests on the pool. Flushes that were answered
  rested on syncs that succeeded, and the records they covered are in the pool before the mode changes.
* The replicator may have read records from the page cache that the disk lost, and the peer holds them. They are in the
  pool here too, and the sequence goes on behind them, so the peer is behind and nothing else. If power is lost before
  the mode has changed, they may be lost here: that is the loss of a tail like any other (epochs, HANDSHAKE.md).
* Killed before the mode has changed: the state says `sealed`, and recovery writes everything again (recovery.py).

On a secondary the group fails: nothing more is received, the pool keeps the prefix it has, and can be read.

`replace` gives the group a new journal, which mends nothing else: a group that failed because pool or state could not
be synced stays failed. A primary then resyncs by difference at the next contact. A secondary drops
what it had received and not applied; its position is what its pool holds, so the primary sends from there again, if its
journal still reaches back, else a resync by difference follows.
But the pool may hold a part of what is dropped: of a record that it refused half way, or of those that were being
applied when the target was killed. Only the journal could make those whole, and another primary may never send them. So
such a copy is inconsistent, durably before it has the new journal, until they have come again (`torn_to`) or it was
resynced by difference; the bits of those records are set.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from replicator.capture.state import JOURNAL, NEVER, OK, PRIMARY, RESYNC, SECONDARY, GroupState
from replicator.core.errors import Refused
from replicator.core.losspolicy import may_go_alone
from replicator.journal.beacons import publish
from replicator.journal.files import RandomFile
from replicator.journal.page import (
    APPLIED_SEQ,
    ARRIVED_GEN,
    DROPS,
    EDGE_DURABLE_OFF,
    EDGE_LINK,
    EPOCH,
    HEAD_OFF,
    INCARNATION,
    LINK_STREAMING,
    Page,
    clear_edge,
    edge_slot,
)

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine
    from replicator.capture.groupbase import GroupBase

STOPS_S = 1.0
"""A replicator stops receiving so long after the group has failed, at the latest."""


def may_go_over(engine: GroupBase) -> bool:
    """Say whether the group may count differences instead of journaling."""
    state = engine.state
    return (
        state.role == PRIMARY
        and state.mode == JOURNAL
        and not engine.recovering
        and may_go_alone(bool(engine.waits), state.policy.on_loss)
    )


def replace_journal(engine: GroupEngine, file: RandomFile, index: int, ring_bytes: int) -> int:
    """Give the group a new journal, `file` alone, which is prepared and has index `index`.

    Returns how many records were dropped that this side had received and not applied. Durable: the new journal, and
    that the group has it, and that its set is no cut any more if that rested on dropped records. Raises Refused when
    the old one is in use, or the group failed for something else.
    """
    if engine.failed and not engine.failed_by_journal:
        raise Refused(
            f"group {engine.state.name} has failed, not for its journal: {engine.failed}", "restart this node"
        )
    if engine.state.role == SECONDARY and receives(engine):
        if not (engine.failed or engine.state.journal_error):
            raise _in_use(engine)
        time.sleep(STOPS_S)  # a link that was killed says so for ever; one that lives has seen the new incarnation
    with engine.apply_lock:
        if engine.state.role == SECONDARY and engine.limit_time_ns and engine.pos > engine.page[APPLIED_SEQ]:
            engine.on_lift()
        return _replace(engine, file, index, ring_bytes)


def _replace(engine: GroupEngine, file: RandomFile, index: int, ring_bytes: int) -> int:
    with engine.checkpoint_lock, engine.opened:
        state, page = engine.state, engine.page
        if state.role == PRIMARY and state.mode == JOURNAL:
            raise _in_use(engine)
        pos = page[APPLIED_SEQ] if state.role == SECONDARY else engine.pos
        dropped = engine.pos - pos
        exact = of_one_epoch(state, page, pos)
        engine.sync_pool()
        if state.role == SECONDARY and engine.preimages is not None:
            engine.preimages.leave(pos)
        if state.role == SECONDARY:
            tear(engine, pos, pos, exact=exact)  # before the new journal, in which nothing says so any more
        engine.journal.renew(file, index, ring_bytes, pos, engine.epoch)
        engine.failed = engine.journal_lost = engine.apply_error = ""
        engine.wants_room, engine.damaged = False, None
        engine.failed_by_journal = engine.stopped = False
        engine.resized()
        if state.role == SECONDARY:
            publish(page.u64, ARRIVED_GEN, 0, 0)
            engine.waiting, engine.pending_epochs = None, []
            engine.last_host_seq = min(engine.last_host_seq, pos)
        kept = state.downstream if state.role == SECONDARY else []
        mended: dict[str, Any] = {}
        if state.role == SECONDARY and state.copy == RESYNC and 0 < state.torn_to <= pos:
            mended = {"copy": OK, "floor": pos, "torn_to": 0}
        # What a peer below holds of the lost records it need not get again: the new journal is kept for it from here.
        edges = {e.slot: e.without_peer() | {"dropped": e.dropped} for e in kept}
        engine.commit(edges, journal_error="", sealed=False, damaged=0, **mended)
        for edge in kept:
            clear_edge(page, edge.slot)
            page[edge_slot(edge.slot, EDGE_DURABLE_OFF)] = page[HEAD_OFF]
            page[DROPS + edge.slot] += 1
        page[INCARNATION] += 1
        engine.ring_replicators()
        engine.opened.notify_all()
        return dropped


def tear(engine: GroupEngine, applied: int, pos: int, *, exact: bool) -> None:
    """A copy that has applied records up to `applied` keeps those up to `pos`; where its pool may hold a part of later
    ones it is inconsistent until they have come again. Durable: that. The caller holds the group lock.

    exact: all that was received is of one epoch, and changes no volumes.
    """
    if engine.state.copy == OK and pos < engine.applied_in_part:
        torn_to = engine.applied_in_part if exact else 0
        engine.commit(copy=RESYNC, floor=applied, copy_id="", copy_from_seq=NEVER, torn_to=torn_to)


def of_one_epoch(state: GroupState, page: Page, applied: int) -> bool:
    """All that was received and not applied is of the epoch of what was applied, and changes no volumes."""
    listed = state.listed_at[1] if state.listed_at else 0
    return bool(state.hist) and page[EPOCH] == state.hist[-1][0] and listed <= applied and state.hist[-1][1] <= applied


def _in_use(engine: GroupEngine) -> Refused:
    why = f"the journal of group {engine.state.name} is in use"
    return Refused(why, "add the new file and remove the old one: farstripe group journal add")


def receives(engine: GroupEngine) -> bool:
    """Whether the replicator says that it receives."""
    state = engine.state
    fed = [e for e in state.edges if e.peer == state.upstream]
    return any(engine.page[edge_slot(e.slot, EDGE_LINK)] == LINK_STREAMING for e in fed)


def empty_journal(engine: GroupEngine, seq: int, epoch: int) -> None:
    """Start the journal over at position `seq`. A broken one is not written: nothing is in it that anybody needs.

    Durable: the empty journal, or by the state that it is broken.
    """
    if engine.state.journal_error:
        engine.journal.start_empty(seq, epoch)
    else:
        engine.journal.reset(seq, epoch)


def require_journal(engine: GroupEngine) -> None:
    """Raise Refused when the group has no journal that could take records."""
    if engine.state.journal_error:
        raise Refused(
            f"the journal of group {engine.state.name} is broken: {engine.state.journal_error}",
            "farstripe group journal replace gives it a new one",
        )
