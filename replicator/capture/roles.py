"""Changes of role and mode. Each is on stable storage before anything acts on it, and whole after a crash at any point.

    arm        untracked -> journal     a pair exists from now on; further ones are added
    disarm     any -> untracked         the last pair is gone
    overflow   journal -> bitmap        the journal is full, nobody is left to keep it for, and the policy says to go on
    attach     target of a copy: give up the old position, inconsistent until SYNCED
    promote    secondary -> primary     opens an epoch
    demote     primary -> secondary     host writes are refused from then on

What concerns one peer only is in edges.py, the source's side of a copy in copies.py.

Two locks are taken in one order: apply_lock, checkpoint_lock, then the group lock.
Source: seed 000 section 9.3 (ATTACH, LOSS of the top, RETURN), DESIGN 6, 7 and 11.
"""

from __future__ import annotations

from typing import Any

from replicator.capture import edges, journalloss, volumeset
from replicator.capture.copies import check_maps
from replicator.capture.engine import GroupEngine
from replicator.capture.follower import apply_through, checkpoint, settle
from replicator.capture.limits import cut, lift
from replicator.capture.sequence import SEQ_RESERVE
from replicator.capture.state import (
    BITMAP,
    DIVERGED,
    FRESH,
    JOURNAL,
    OK,
    PRIMARY,
    RESYNC,
    SECONDARY,
    UNTRACKED,
    Edge,
)
from replicator.core.errors import BadInput, InternalError, Refused
from replicator.core.hello import rewound_from, to_lists
from replicator.core.records import HEADER_BYTES
from replicator.journal.beacons import look, publish
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    ARRIVED_GEN,
    BEACON_GEN,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    clear_edge,
)


def arm(engine: GroupEngine, peer: str, mode: str = "", upstream: bool = False) -> dict[str, Any]:
    """Add the edge with node `peer`; the first one of a primary starts journaling and tracking. Nothing happens when it
    is there already.

    mode: async | sync, "" for what the group's policy says. upstream: the peer feeds this secondary.
    Durable: the edge, the mode, and the record of the first epoch: without it, power loss would make the copy a
    stranger. Returns {epoch, pos, edge}. Raises Refused, BadInput.
    """
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role == PRIMARY and state.mode == UNTRACKED:
            journalloss.require_journal(engine)
            edges.check_mode(mode or state.policy.mode)
            engine.journal.reset(engine.pos, state.epoch_counter << 24)  # whatever it held is older than that
            engine.unjournaled += 1
            state.mode = JOURNAL
            state.bitmaps.clear()
            engine.bitmaps.open(engine.pos + 1)
            state.edges.clear()
            edges.add(engine, peer, mode, dropped=False)
            engine.open_epoch()
            _new_incarnation(engine)
        else:
            edges.attach_peer(engine, peer, mode, upstream)
        engine.refresh()
        added = state.edge_of(peer)
        result = {"epoch": engine.epoch, "pos": engine.pos, "edge": None if added is None else added.slot}
    engine.sync_journal()
    return result


def disarm(engine: GroupEngine, peer: str) -> None:
    """Forget the edge with node `peer`. With the last one this side keeps its contents and serves them read-write.

    Durable: all of that. Nothing happens when there is no such edge.
    Raises Refused for the edge that feeds a node with others below it, and when the copy here is not consistent; then
    the edge is forgotten all the same.
    """
    with engine.apply_lock:
        last = all(edge.peer in ("", peer) for edge in engine.state.edges)
        if last and engine.state.role == SECONDARY and engine.state.copy == OK:
            apply_through(engine)
        with engine.checkpoint_lock, engine.lock:
            state = engine.state
            edge = state.edge_of(peer) or state.edge_of("")
            if edge is None:
                return
            others = [e for e in state.edges if e is not edge]
            if others and peer == state.upstream:
                raise Refused(
                    f"group {state.name} feeds {len(others)} more here: without this pair they would get nothing",
                    "delete their pairs first, or make this node primary",
                )
            if others or (state.role == SECONDARY and state.copy != OK):
                edges.remove(engine, edge)
            if state.role == SECONDARY and state.copy != OK and not others:
                raise Refused(
                    f"the copy of group {state.name} is {state.copy}: its volumes are not consistent",
                    "delete the group with its volumes, or finish the resync first",
                )
            if not others:
                _untrack(engine, edge)


def _untrack(engine: GroupEngine, last: Edge) -> None:
    """Stop tracking: there is no pair any more. The caller holds all locks."""
    state = engine.state
    engine.sync_pool()
    if engine.preimages is not None:
        engine.preimages.end()
    state.hist.clear()
    state.rewound.clear()
    state.bitmaps.clear()
    engine.bitmaps.refresh()
    engine.set_edges(
        [],
        role=PRIMARY,
        mode=UNTRACKED,
        copy=OK,
        listed_at=[],
        upstream="",
        extended={},
        copy_id="",
        unclean=False,
        new_epoch_wanted=False,
    )
    last.sync_on = False
    engine.linked.clear()
    engine.sync_pool()  # for a FUA write that still looked at the journal
    for m in engine.bitmaps.maps:
        m.clear_all(0xFF)
    journalloss.empty_journal(engine, 0, 0)
    _new_incarnation(engine)
    engine.refresh()
    engine.opened.notify_all()


def attach(
    engine: GroupEngine,
    edge: Edge,
    p: int,
    c: int | None,
    epoch: int,
    hist: list[list[int]],
    masks: dict[int, bytes],
    copy_id: str,
    full: bool,
    synced_after: int | None = None,
    synced_epoch: int = 0,
    volumes: list[dict[str, Any]] | None = None,
    rewound: list[list[Any]] | None = None,
    last_write: int | None = None,
) -> dict[str, Any]:
    """Become the target of a copy from the peer of `edge`: what was received and not applied is dropped, the next
    record is p + 1.

    synced_after: only a SYNCED record later than this completes the copy; p when None. synced_epoch: and only one of
    this epoch; 0 when the peer is primary. volumes: the group's at p; what this node has not is made, what the group
    has no longer leaves it here. None: those that it has. rewound: what was given up in this history, see GroupState.
    last_write: no host write up to p has a higher seq than this; p when None. The copy brings them without their
    records.
    Durable on return: that this copy is inconsistent until SYNCED, the mask in every bitmap, the new position, and that
    the journal was given up for the peers that this node feeds.
    """
    if synced_after is not None and synced_after < p:
        raise BadInput(f"a copy that begins at {p} cannot end at {synced_after}")
    by_difference = not full and c is not None
    with engine.apply_lock:
        lift(engine)
        if by_difference and engine.state.role == SECONDARY and engine.state.copy != RESYNC:
            apply_through(engine)  # what c counts on must not be dropped with the journal
        step = {"p": p, "epoch": epoch, "hist": [list(h) for h in hist], "copy_id": copy_id}
        step["synced_after"] = p if synced_after is None else synced_after
        step["synced_epoch"] = synced_epoch
        try:
            step["rewound"] = to_lists(rewound_from(rewound or ()))
        except (TypeError, ValueError) as exc:
            raise BadInput(f"these are no lines that were given up: {exc}") from exc
        if engine.state.role != SECONDARY:
            raise Refused(f"group {engine.state.name} is primary here", "a primary is never copied to")
        prepared = None
        if volumes is not None and volumeset.offered(engine) != (listed := volumeset.check_offer(volumes)):
            prepared = volumeset.prepare(engine, listed)
        result = _attach(engine, edge, c if by_difference else None, masks, step, prepared)
        engine.last_host_seq = p if last_write is None else min(p, last_write)
        if prepared is not None:
            volumeset.settle(engine)
        return result


def _attach(
    engine: GroupEngine,
    edge: Edge,
    c: int | None,
    masks: dict[int, bytes],
    step: dict[str, Any],
    prepared: volumeset.Prepared | None,
) -> dict[str, Any]:
    """c: None for a copy of every block; step: see GroupState.attaching. The caller holds apply_lock."""
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != SECONDARY:
            raise Refused(f"group {state.name} is primary here", "a primary is never copied to")
        journalloss.require_journal(engine)
        listed: dict[str, Any] = {"listed_at": [step["epoch"], step["p"]]}
        if c is not None:
            check_maps(engine.bitmaps.present() if prepared is None else prepared.maps.items(), masks)
        if prepared is not None:
            engine.sync_pool()  # of volumes that leave, too
            if engine.preimages is not None:
                engine.preimages.end()  # what it keeps is of the volumes of before
            listed = volumeset.changes(engine, prepared, (step["epoch"], step["p"]))
            volumeset.install(engine, prepared)
        if c is None:
            state.bitmaps.clear()
        if not state.bitmaps:
            engine.bitmaps.open(step["p"] + 1)
        engine.bitmaps.refresh()
        if c is not None:
            for index, m in engine.bitmaps.present():
                m.merge_packed(engine.bitmaps.live, masks[index])
        engine.sync_pool()  # nothing redoes what the journal holds once it has been emptied
        if engine.preimages is not None:
            engine.preimages.leave(engine.page[APPLIED_SEQ])
        state.copy = RESYNC
        state.floor = c or 0
        state.mode = JOURNAL
        state.copy_id = ""
        state.attaching = step
        below = [e for e in state.edges if e is not edge]
        fed = {e.slot: e.without_peer() for e in below} | {edge.slot: edges.fed_by()}
        engine.commit(fed, upstream=edge.peer, rewind=None, torn_to=0, **listed)
        edges.note_dropped(engine, below)
        finish_attach(engine)
        return {"p": step["p"]}


def finish_attach(engine: GroupEngine) -> None:
    """Second step of an attach, also done at start-up when a crash came between. Durable: the new position."""
    state = engine.state
    if state.attaching is None:
        raise InternalError("no attach is under way")
    step = state.attaching
    if engine.preimages is not None:
        engine.preimages.attached(step["p"], step["epoch"])
    engine.journal.reset(step["p"], step["epoch"])
    state.hist = [list(h) for h in step["hist"]]
    state.rewound = [list(line) for line in step.get("rewound", ())]
    engine.note_epoch(step["epoch"])
    state.copy_id = step["copy_id"]
    state.copy_from_seq = step.get("synced_after", step["p"])  # a step of an older version has none
    state.copy_epoch = step.get("synced_epoch", 0)
    state.source_durable = []
    state.unclean = False
    state.attaching = None
    engine.applied_in_part, engine.damaged = 0, None
    publish(engine.page.u64, ARRIVED_GEN, 0, 0)
    publish(engine.page.u64, BEACON_GEN, 0, 0)  # what was told to others was of the history before
    engine.save()
    _new_incarnation(engine)


def park(engine: GroupEngine, why: str) -> set[int]:
    """Stop admitting host writes (`why`: "hold" or "full"); returns the changes still under way, to be waited for."""
    with engine.lock:
        if engine.parked_for != "hold":
            engine.parked_for = why
        engine.refresh()
        return engine.in_flight()


def unpark(engine: GroupEngine, why: str) -> None:
    """Admit host writes again if they were parked for `why`."""
    with engine.lock:
        if engine.parked_for == why:
            engine.parked_for = ""
        engine.refresh()
        engine.opened.notify_all()


def overflow(engine: GroupEngine) -> bool:
    """Give up the journal and count differences from now on. The caller has parked writers and drained them.

    Returns False, with nothing done, when one came in all the same: the journal is its redo log till it is in the pool.
    Durable on return: the pool up to here, and the mode; only then may the writers go on, and those be answered that
    wait for the peer.
    """
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != PRIMARY or state.mode != JOURNAL:
            return True
        if engine.in_flight():
            return False
        engine.sync_pool()
        listed: dict[str, Any] = {}
        if engine.list_in_doubt:
            listed = volumeset.restated(engine, engine.pos + 1)
            engine.page[HEAD_SEQ] += 1
        engine.commit(
            {e.slot: e.without_peer() for e in state.edges},
            mode=BITMAP,
            **listed,
            extended={},
            seq_limit=engine.pos + SEQ_RESERVE,
            journal_error=engine.journal_lost,
            sealed=False,
        )
        if listed:
            engine.list_in_doubt, engine.unsettled = 0, True
        journalloss.empty_journal(engine, engine.pos, engine.epoch)
        _new_incarnation(engine)
        return True


def promote(engine: GroupEngine, accept_diverged: bool = False, at_limit: bool = False) -> dict[str, Any]:
    """Make a secondary primary, after applying everything it has received. Returns {epoch, base}.

    at_limit: what the bound of its set holds back is given up instead (limits.py).

    accept_diverged: also a former primary whose writes the group has given up; its image is whole, its history another.
    Raises Refused when the copy is not consistent. Durable on return: the role and the new epoch.
    """
    with engine.apply_lock:
        if engine.state.role == PRIMARY:
            return {"epoch": engine.epoch, "base": engine.state.hist[-1][1] if engine.state.hist else 0}
        journalloss.require_journal(engine)
        if at_limit and engine.state.copy == OK:
            apply_through(engine, keep_bound=True)
            cut(engine)
        apply_through(engine)
        settle(engine)
        _clear_the_end(engine)
        if not engine.journal.room_for(2 * HEADER_BYTES):
            checkpoint(engine)
        with engine.checkpoint_lock, engine.lock:
            state = engine.state
            if engine.page[APPLIED_OFF] != engine.page[HEAD_OFF]:
                raise Refused(f"group {state.name} holds records that are not applied", "try again in a moment")
            if state.copy != OK and not (accept_diverged and state.copy == DIVERGED):
                why = {
                    FRESH: "its first copy was never completed",
                    RESYNC: "a resync is not complete, so its contents are a mixture of two instants",
                    DIVERGED: "it holds writes that the group has given up",
                }.get(state.copy, state.copy)
                raise Refused(
                    f"group {state.name} cannot become primary here: {why}",
                    "bring the primary back and let the resync finish, or restore from a backup",
                )
            base = engine.pos
            engine.applied_in_part = 0
            engine.clock.extend()
            if engine.preimages is not None:
                engine.preimages.end()
            state.role, state.mode, state.copy = PRIMARY, JOURNAL, OK
            for edge in state.edges:
                if edge.peer == state.upstream:
                    clear_edge(engine.page, edge.slot)
                edge.sync_on = edge.copying = False  # a copy under way had its blocks on the list of the former primary
                edge.copy_id = ""
                edge.degraded, edge.unclean = edge.mode == "sync", state.unclean
            state.upstream = state.copy_id = ""
            if engine.numbers is not None and engine.last_numbered is not None:
                engine.numbers.note(engine.last_numbered.number)
            engine.clock.note(look(engine.page.u64, ARRIVED_GEN).time_ns)  # also above what was received and given up
            publish(engine.page.u64, ARRIVED_GEN, 0, 0)
            publish(engine.page.u64, BEACON_GEN, 0, 0)
            try:
                engine.open_epoch()
            finally:
                _new_incarnation(engine)
                engine.refresh()
            return {"epoch": engine.epoch, "base": base}


def _clear_the_end(engine: GroupEngine) -> None:
    """Destroy what a killed replicator had written and not published: it may be on the disk, and the new epoch, whose
    record takes its place, not yet. Durable. Raises MediumError."""
    try:
        engine.journal.forget_beyond_head()
    except OSError as e:
        with engine.lock:
            raise engine.lose_journal(f"its journal cannot be written: {e}") from e
    engine.sync_journal()


def ensure_epoch_record(engine: GroupEngine) -> None:
    """See to it that the newest epoch has its record, when a crash may have come between its history entry and that."""
    state = engine.state
    if state.role == PRIMARY and state.mode == JOURNAL and state.hist and engine.pos == state.hist[-1][1]:
        engine.open_epoch()


def demote(engine: GroupEngine, diverged: bool = False, upto: int | None = None) -> dict[str, Any]:
    """Make a primary secondary. Writers are parked and drained by the caller; they are refused from here on.

    diverged: the new history lacks some of this side's writes, so its contents are no prefix of it.
    upto: last seq that the successor is known to hold; Refused when this side has gone beyond it.
    Durable on return: the role, and everything written before. Returns {seq, epoch}.
    """
    if engine.state.mode == JOURNAL:
        engine.sync_journal()
    with engine.apply_lock, engine.checkpoint_lock, engine.lock:
        state, page = engine.state, engine.page
        if state.role == PRIMARY:
            if upto is not None and engine.pos > upto:
                raise Refused(f"group {state.name} has gone on to {engine.pos} since {upto} was agreed on", "try again")
            engine.sync_pool()
            lost = state.mode != JOURNAL
            if lost:
                journalloss.empty_journal(engine, engine.pos, engine.epoch)
            page[APPLIED_SEQ], page[APPLIED_OFF] = page[HEAD_SEQ], page[HEAD_OFF]
            idle = {"sync_on": False, "degraded": False, "copying": False, "copy_id": "", "unclean": False}
            engine.commit(
                {e.slot: idle | {"dropped": e.dropped or lost} for e in state.edges},
                role=SECONDARY,
                mode=JOURNAL,
                copy=DIVERGED if diverged else OK,
                floor=engine.pos,
                upstream="",
                extended={},
                copy_id="",
            )
            _new_incarnation(engine)
        engine.parked_for = ""
        engine.refresh()
        engine.opened.notify_all()
        return {"seq": engine.pos, "epoch": engine.epoch}


def _new_incarnation(engine: GroupEngine) -> None:
    engine.page[INCARNATION] += 1
    if engine.page[DURABLE_SEQ] > engine.page[HEAD_SEQ]:
        raise InternalError("durable position beyond the head of the journal")
