"""Changes of role and mode. Each is on stable storage before anything acts on it, and whole after a crash at any point.

    arm        untracked -> journal     a pair exists from now on
    disarm     any -> untracked         the pair is gone
    overflow   journal -> bitmap        the journal is full and the policy says to go on
    begin_copy source of a copy: fix the copy list and the position from which records follow
    attach     target of a copy: give up the old position, inconsistent until SYNCED
    promote    secondary -> primary     opens an epoch
    demote     primary -> secondary     host writes are refused from then on

Two locks are taken in one order: apply_lock, checkpoint_lock, then the group lock.
Source: seed 000 section 9.3 (ATTACH, LOSS of the top, RETURN), DESIGN 6, 7 and 11.
"""

from __future__ import annotations

from typing import Any

from replicator.capture.bitmaps import TODO
from replicator.capture.engine import SEQ_RESERVE, GroupEngine
from replicator.capture.follower import apply_all, checkpoint, settle
from replicator.capture.limits import cut, lift
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
)
from replicator.core.errors import BadInput, InternalError, Refused
from replicator.core.records import HEADER_BYTES
from replicator.journal.beacons import publish
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    ARRIVED_GEN,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    PEER_APPLIED_SEQ,
    PEER_DURABLE_OFF,
    PEER_DURABLE_SEQ,
    PEER_RECEIVED_SEQ,
)


def arm(engine: GroupEngine) -> dict[str, Any]:
    """Start journaling and tracking on a primary. Does nothing when it is on already.

    Durable: the mode, and the record of the first epoch: without it, power loss would make the copy a stranger.
    """
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != PRIMARY:
            raise Refused(f"group {state.name} is secondary here", "create the pair on the primary")
        if state.mode == UNTRACKED:
            engine.journal.reset(engine.pos, state.epoch_counter << 24)  # whatever it held is older than that
            engine.unjournaled += 1
            state.mode = JOURNAL
            state.bitmaps.clear()
            engine.bitmaps.open(engine.pos + 1)
            _forget_peer(engine)
            engine.open_epoch()
            _new_incarnation(engine)
        engine.refresh()
        result = {"epoch": engine.epoch, "pos": engine.pos}
    engine.sync_journal()
    return result


def disarm(engine: GroupEngine) -> None:
    """Forget the pair: this side keeps its contents and serves them read-write. Durable: the mode.

    Raises Refused when the copy here is not consistent.
    """
    if engine.state.role == SECONDARY:
        lift(engine)
        apply_all(engine)
    with engine.apply_lock, engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role == SECONDARY and state.copy != OK:
            raise Refused(
                f"the copy of group {state.name} is {state.copy}: its volumes are not consistent",
                "delete the group with its volumes, or finish the resync first",
            )
        engine.sync_pool()
        if engine.preimages is not None:
            engine.preimages.end()
        state.hist.clear()
        state.bitmaps.clear()
        engine.bitmaps.refresh()
        engine.commit(
            role=PRIMARY,
            mode=UNTRACKED,
            copy=OK,
            copying=False,
            copy_id="",
            sync_on=False,
            degraded=False,
            unclean=False,
            new_epoch_wanted=False,
        )
        engine.sync_pool()  # for a FUA write that still looked at the journal
        for m in engine.bitmaps.maps:
            m.clear_all(0xFF)
        engine.journal.reset(0, 0)
        _new_incarnation(engine)
        engine.refresh()
        engine.opened.notify_all()


def common_bitmap(engine: GroupEngine, c: int | None) -> dict[str, Any]:
    """Return the newest bitmap that reaches back to common position c: {"start", "volumes": {index: packed bits}}.

    Both are None when there is none (then every block may differ).
    """
    with engine.lock:
        bit = None if c is None else engine.bitmaps.newest_for(c)
        if bit is None:
            return {"start": None, "volumes": None}
        start = next(v for s, v in engine.state.bitmaps.items() if 1 << s == bit)
        return {"start": start, "volumes": {i: m.packed(bit) for i, m in enumerate(engine.bitmaps.maps)}}


def begin_copy(
    engine: GroupEngine, c: int | None, peer_bitmaps: dict[int, bytes] | None, copy_id: str
) -> dict[str, Any]:
    """Fix the copy list: the union of both sides' bitmaps that reach back to c, or every block.

    c: common position, None when there is none. peer_bitmaps: packed, by volume; None when the peer has none.
    Returns {p, epoch, hist, masks, full, todo_blocks}: records after seq p belong to the stream.
    Durable: the list, and that this group journals again.
    """
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != PRIMARY:
            raise Refused(f"group {state.name} is secondary here", "resync runs from the primary")
        own = None if c is None else engine.bitmaps.newest_for(c)
        full = own is None or peer_bitmaps is None
        if not full:
            _check_maps(engine, peer_bitmaps)
        if state.copy_id:
            engine.commit(copy_id="")  # the list of a former copy is given up before it is overwritten
        for index, m in enumerate(engine.bitmaps.maps):
            m.clear_all(TODO)
            if own is None or peer_bitmaps is None:
                m.set_all(TODO)
            else:
                m.copy_bits(own, TODO)
                m.merge_packed(TODO, peer_bitmaps[index])
        engine.bitmaps.sync()
        if state.mode != JOURNAL:
            engine.journal.reset(engine.pos, engine.epoch)
            engine.unjournaled += 1
        if not state.hist or state.new_epoch_wanted:
            engine.open_epoch()
        _forget_peer(engine)
        engine.page[PEER_DURABLE_OFF] = engine.page[HEAD_OFF]
        engine.commit(
            mode=JOURNAL,
            copying=True,
            copy_id=copy_id,
            unclean=False,
            sync_on=False,
            degraded=state.degraded or state.sync_on,
        )
        _new_incarnation(engine)
        engine.opened.notify_all()
        return {
            "p": engine.pos,
            "epoch": engine.epoch,
            "hist": [list(h) for h in state.hist],
            "masks": {} if full else {i: m.packed(TODO) for i, m in enumerate(engine.bitmaps.maps)},
            "full": full,
            "todo_blocks": engine.bitmaps.todo_blocks(),
        }


def attach(
    engine: GroupEngine,
    p: int,
    c: int | None,
    epoch: int,
    hist: list[list[int]],
    masks: dict[int, bytes],
    copy_id: str,
    full: bool,
) -> dict[str, Any]:
    """Become the target of a copy: what was received and not applied is dropped, the next record is p + 1.

    Durable on return: that this copy is inconsistent until SYNCED, the mask in every bitmap, the new position.
    """
    by_difference = not full and c is not None
    with engine.apply_lock:
        lift(engine)
        if by_difference and engine.state.role == SECONDARY and engine.state.copy != RESYNC:
            apply_all(engine)  # what c counts on must not be dropped with the journal
        return _attach(engine, p, c if by_difference else None, epoch, hist, masks, copy_id)


def _attach(
    engine: GroupEngine,
    p: int,
    c: int | None,
    epoch: int,
    hist: list[list[int]],
    masks: dict[int, bytes],
    copy_id: str,
) -> dict[str, Any]:
    """c: None for a copy of every block. The caller holds apply_lock."""
    with engine.checkpoint_lock, engine.lock:
        state = engine.state
        if state.role != SECONDARY:
            raise Refused(f"group {state.name} is primary here", "a primary is never copied to")
        if c is None:
            state.bitmaps.clear()
        else:
            _check_maps(engine, masks)
        if not state.bitmaps:
            engine.bitmaps.open(p + 1)
        engine.bitmaps.refresh()
        if c is not None:
            for index, m in enumerate(engine.bitmaps.maps):
                m.merge_packed(engine.bitmaps.live, masks[index])
        engine.sync_pool()  # nothing redoes what the journal holds once it has been emptied
        if engine.preimages is not None:
            engine.preimages.leave(engine.page[APPLIED_SEQ])
        state.copy = RESYNC
        state.floor = c or 0
        state.mode = JOURNAL
        state.copy_id = ""
        state.attaching = {"p": p, "epoch": epoch, "hist": [list(h) for h in hist], "copy_id": copy_id}
        engine.save()
        finish_attach(engine)
        return {"p": p}


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
    engine.note_epoch(step["epoch"])
    state.copy_id = step["copy_id"]
    state.copy_from_seq = step["p"]
    state.unclean = False
    state.attaching = None
    publish(engine.page.u64, ARRIVED_GEN, 0, 0)
    engine.save()
    _new_incarnation(engine)


def set_sync(engine: GroupEngine, on: bool) -> dict[str, Any]:
    """From now on each write waits for the peer (or no longer: then a synchronous group is degraded).

    Durable: the switch. Returns {seq}: the position then.
    """
    with engine.lock:
        state = engine.state
        wanted = on and state.policy.mode == "sync" and state.role == PRIMARY and state.mode == JOURNAL
        degraded = not wanted and (state.degraded or (state.sync_on and state.policy.mode == "sync"))
        if (state.sync_on, state.degraded) != (wanted, degraded):
            engine.commit(sync_on=wanted, degraded=degraded)
        return {"seq": engine.pos, "sync_on": state.sync_on}


def degrade(engine: GroupEngine) -> bool:
    """Go on without the peer; False when it was so already. Durable: that the group is degraded, before any write is
    answered unreplicated."""
    with engine.lock:
        if not engine.state.sync_on:
            return False
        engine.commit(sync_on=False, degraded=True)
        return True


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
        engine.commit(
            mode=BITMAP,
            copying=False,
            copy_id="",
            seq_limit=engine.pos + SEQ_RESERVE,
            sync_on=False,
            degraded=state.degraded or state.sync_on,
        )
        engine.journal.reset(engine.pos, engine.epoch)
        _new_incarnation(engine)
        return True


def promote(engine: GroupEngine, accept_diverged: bool = False, at_limit: bool = False) -> dict[str, Any]:
    """Make a secondary primary, after applying everything it has received. Returns {epoch, base}.

    at_limit: what a limit holds back is given up instead (limits.py).

    accept_diverged: also a former primary whose writes the group has given up; its image is whole, its history another.
    Raises Refused when the copy is not consistent. Durable on return: the role and the new epoch.
    """
    with engine.apply_lock:
        if engine.state.role == PRIMARY:
            return {"epoch": engine.epoch, "base": engine.state.hist[-1][1] if engine.state.hist else 0}
        if at_limit and engine.state.copy == OK:
            apply_all(engine)
            cut(engine)
        lift(engine)
        settle(engine)
        if not engine.journal.room_for(2 * HEADER_BYTES):
            checkpoint(engine)
        with engine.checkpoint_lock, engine.lock:
            state = engine.state
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
            engine.clock.extend()
            if engine.preimages is not None:
                engine.preimages.end()
            state.role, state.mode, state.copy = PRIMARY, JOURNAL, OK
            state.sync_on = state.copying = False
            state.copy_id = ""
            state.degraded = state.policy.mode == "sync"
            _forget_peer(engine)
            publish(engine.page.u64, ARRIVED_GEN, 0, 0)
            try:
                engine.open_epoch()
            finally:
                _new_incarnation(engine)
                engine.refresh()
            return {"epoch": engine.epoch, "base": base}


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
            if state.mode != JOURNAL:
                engine.journal.reset(engine.pos, engine.epoch)
            page[APPLIED_SEQ], page[APPLIED_OFF] = page[HEAD_SEQ], page[HEAD_OFF]
            engine.commit(
                role=SECONDARY,
                mode=JOURNAL,
                copy=DIVERGED if diverged else OK,
                floor=engine.pos,
                sync_on=False,
                degraded=False,
                copying=False,
                copy_id="",
            )
            _new_incarnation(engine)
        engine.parked_for = ""
        engine.refresh()
        engine.opened.notify_all()
        return {"seq": engine.pos, "epoch": engine.epoch}


def _check_maps(engine: GroupEngine, packed: dict[int, bytes] | None) -> None:
    """Raise BadInput unless there is a packed bitmap of the right size for every volume. Nothing is changed."""
    for index, m in enumerate(engine.bitmaps.maps):
        have = len((packed or {}).get(index, b""))
        if have != (m.blocks + 7) // 8:
            raise BadInput(
                f"the peer's bitmap of volume {index} has {have} bytes for {m.blocks} blocks",
                "compare the volumes' sizes",
            )


def _forget_peer(engine: GroupEngine) -> None:
    """Drop what a former peer position said; the replicator states it anew."""
    page = engine.page
    page[PEER_RECEIVED_SEQ] = page[PEER_DURABLE_SEQ] = page[PEER_APPLIED_SEQ] = page[PEER_DURABLE_OFF] = 0


def _new_incarnation(engine: GroupEngine) -> None:
    engine.page[INCARNATION] += 1
    if engine.page[DURABLE_SEQ] > engine.page[HEAD_SEQ]:
        raise InternalError("durable position beyond the head of the journal")
