"""Making a group's engine, and bringing it up again after any kind of stop.

    how it stopped          journal's head             what else
    in order                page, or from the tail     nothing
    killed, same boot       from the page              redo; every published record is whole, so nothing is lost
    set back                walked from the tail       as after power loss, or an orderly stop: whatever its state says
    power lost              walked from the tail       redo; regions the intent log marks are set in every bitmap; a
                                                       primary opens a new epoch before its next record and is unclean
                                                       until the peer has been copied to

After redo the pool of a primary equals the fold of its journal, except for what power loss left behind.

A group that had failed on a sync writes journal and bitmaps again before it relies on them: the kernel takes pages for
clean whose write-back failed, so a later sync would succeed without having written them.

Of a journal that can be read, and in which records are damaged, those before the redo point are passed over. Those
behind it a primary does without after a kill: the pool holds all that was answered, so differences are counted until
the peers were copied to, and the journal is used again; but not where nothing may exist without a peer in sync: then it
is a journal that cannot be read. After a power loss the chain ends at damage as at any torn record.

A primary whose journal cannot be read is not opened: it may be a disk that is not mounted, and what was flushed before
a power loss may be in the journal alone. Whoever opens it with `give_up_journal` says that the journal is gone for
good. Then differences are counted, durably, before anything else happens (_open_without_journal).
What the pool holds is

    all that was answered   if it was killed in this boot, or stopped in order: every answered write had reached the
                            pool. The bitmaps know all of it, so peers follow by difference
    not known               else. The bitmaps are void and every block is copied to every peer; it is unclean, and the
                            peers' histories end before the place from which this one goes on: nobody may stream to it

Set back: what is opened is an older state of the group than one that has run, out of a backup. In the same boot the
page tells. In another one nothing here does, so every start in a new boot is taken for one with another past: its next
epoch gets a number that goes by the time of day, which no other past has used, and a primary opens it before its next
record. So no seq is given to two writes in one epoch, and a peer finds out where the histories part (handshake.py).

A page of this boot counts also after an orderly stop, and on a secondary its head is left alone: the replicator may be
alive, and appending, while the target is not.
Source: seed 000 section 9.3, CRASH.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from replicator.capture import volumeset
from replicator.capture.bitmaps import Bitmaps, BlockMap, MapFile, NoMap
from replicator.capture.clock import WriteClock
from replicator.capture.engine import GroupEngine
from replicator.capture.follower import apply_all, checkpoint, redo_all
from replicator.capture.groupbase import Volume
from replicator.capture.journalloss import of_one_epoch
from replicator.capture.parking import NoRoom
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.ringchange import drop_orphans
from replicator.capture.roles import ensure_epoch_record, finish_attach
from replicator.capture.sequence import SEQ_RESERVE
from replicator.capture.state import (
    BITMAP,
    DIVERGED,
    JOURNAL,
    NEVER,
    OK,
    PRIMARY,
    RESYNC,
    SECONDARY,
    UNTRACKED,
    GroupState,
    StateFile,
)
from replicator.core.errors import IntegrityError
from replicator.core.losspolicy import may_go_alone
from replicator.journal.files import RandomFile
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    EDGE_ASLEEP,
    EPOCH,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    STATE_GEN,
    TARGET_ASLEEP,
    Page,
    edge_slot,
)
from replicator.journal.ring import Journal, Torn
from replicator.journal.superblock import DATA_START
from replicator.journal.volumes import JournalFiles

LEAP = 1 << 44
"""Where the position is lost, the sequence goes on so far behind the last one that the state knows of: further than any
that was given out since. At a million records a second that is half a year; the state is saved every few minutes."""


class JournalUnreadable(IntegrityError):
    """The group's journal cannot be read, and the group not be opened without giving it up.

    intact: the volumes hold every write that was answered all the same. role: of the group here.
    """

    def __init__(self, why: str, role: str, *, intact: bool) -> None:
        super().__init__(why, "make it readable and restart the node, or: farstripe group journal replace")
        self.role, self.intact = role, intact


@dataclass
class Parts:
    """The files of one group, opened by the caller, and what surrounds it. `maps` and `volumes` are in the order of the
    state's list, and no volume is larger than it says there."""

    state: RandomFile
    journal: RandomFile | JournalFiles
    page: Page
    maps: Sequence[MapFile]
    volumes: Sequence[Volume]
    pool_sync: Callable[[], None]
    clock: WriteClock
    boot: int
    preimages: PreImages | None = None
    volume_host: volumeset.VolumeHost | None = None


def create_engine(parts: Parts, state: GroupState, journal_bytes: int) -> GroupEngine:
    """Make a new group in empty files; `journal_bytes` is the size of the journal's file.

    Durable: the group, on return; the caller makes the files' names durable.
    """
    parts.page.clear(parts.boot)
    journal = Journal.create(parts.journal, parts.page, bytes.fromhex(state.uuid), journal_bytes - DATA_START)
    if state.role == SECONDARY:
        state.mode = JOURNAL
    state.clean, state.boot = False, parts.boot
    state_file = StateFile(parts.state)
    engine = _assemble(parts, state, state_file, journal)
    engine.save()
    return engine


def open_engine(parts: Parts, unclean: Iterable[tuple[int, int, int]], *, give_up_journal: bool = False) -> GroupEngine:
    """Open a group after whatever stopped it, redo its journal, and be ready to serve.

    unclean: (volume index, offset, length) ranges that the pool's intent log found marked. give_up_journal: open it
    also when its journal cannot be read.
    Raises JournalUnreadable, IntegrityError or MediumError when the group cannot be served as it is.
    """
    state_file = StateFile(parts.state)
    state = state_file.load()
    state_file.keep()
    page = parts.page
    trusted = page.valid(parts.boot) and state.boot == parts.boot and page[STATE_GEN] <= state_file.generation
    power_lost = not state.clean and not trusted
    marked = list(unclean)
    if power_lost:
        _keep_marks(parts, state, marked)
    trusted_head = (page[HEAD_OFF], page[EPOCH], page[HEAD_SEQ])
    if not trusted:
        page.clear(parts.boot)
        state.epoch_counter = max(state.epoch_counter, parts.clock.wall_ns() // 10**9)
        state.new_epoch_wanted = state.new_epoch_wanted or (state.role == PRIMARY and state.mode != UNTRACKED)
    try:
        journal = _open_journal(parts, state)
        kept = trusted and state.role == SECONDARY and state.attaching is None and not state.journal_error
        if kept:
            journal.recover(trusted_head[:2], keep_head=True)
            if state.sealed:
                journal.rewrite()
        elif state.mode == JOURNAL and not state.journal_error and state.attaching is None:
            before = max((epoch for epoch, base in state.hist if base + 1 < journal.super.redo_seq), default=0)
            journal.recover(trusted_head[:2] if trusted else None, redo_epoch=before)
            if state.role == PRIMARY and state.sealed and not power_lost:
                journal.rewrite()
    except (IntegrityError, OSError) as exc:
        why = exc.message if isinstance(exc, IntegrityError) else str(exc)
        if state.role == SECONDARY:
            if state.attaching is not None and not give_up_journal:
                raise _unreadable(parts, state, why, trusted=trusted) from exc
            return _open_damaged(parts, state, state_file, why, trusted=trusted)
        alone = may_go_alone(state.sync_on, state.policy.on_loss)
        if state.mode == JOURNAL and isinstance(exc, Torn) and trusted and not state.sealed and alone:
            state.damaged += 1
            engine = _open_without_journal(parts, state, state_file, "", trusted_head[2], marked)
            engine.damaged_at_start = f"{why}; the volumes hold them, the peers follow by difference"
            return engine
        if state.mode == JOURNAL:
            if not give_up_journal:
                raise _unreadable(parts, state, why, trusted=trusted) from exc
            return _open_without_journal(parts, state, state_file, why, trusted_head[2] if trusted else None, marked)
        state.journal_error, kept = why, False  # nothing that anybody needs is in it
        journal = _open_journal(parts, state)
    engine = _assemble(parts, state, state_file, journal)
    if not state.journal_error:
        drop_orphans(engine)
    if journal.passed_over is not None:
        state.damaged += 1
        first, end = journal.passed_over
        engine.damaged_at_start = f"records {first} to {end - 1} of its journal are damaged, which only peers may need"
    if state.attaching is not None:
        journal.reset(state.attaching["p"], state.attaching["epoch"])
        finish_attach(engine)
    elif kept:
        pass  # it has been looked through
    elif state.mode == JOURNAL and not state.journal_error:
        pass  # its head has been found
    else:
        journal.start_empty(_position(state, trusted_head[2] if trusted else None), engine.epoch)
    if power_lost:
        _drop_lost_epochs(engine)
    if state.sealed and not power_lost:
        written = kept or state.journal_error or (state.role == PRIMARY and state.mode == JOURNAL)
        _write_again(engine, journal=not written)
    state.sealed = False
    engine.last_host_seq = page[APPLIED_SEQ]
    engine.applied_in_part = page[HEAD_SEQ]
    if engine.preimages is not None:
        engine.preimages.settle(engine)
    if state.role == PRIMARY:
        _recover_primary(engine, power_lost)
        if power_lost:
            engine.bitmaps.mark_unclean(marked)  # those that redo has opened
            engine.bitmaps.sync()
    page[INCARNATION] += 1
    _all_asleep(engine)
    state.clean, state.boot = False, parts.boot
    engine.save()
    engine.refresh()
    return engine


def _keep_marks(parts: Parts, state: GroupState, marked: list[tuple[int, int, int]]) -> None:
    """Durable: the bits of what the pool's intent log says that power loss may have changed, whatever comes of this
    start. A bitmap that is opened later in it has to be told again."""
    maps = {v["index"]: BlockMap(f, v["size"]) for f, v in zip(parts.maps, state.volumes, strict=True)}
    bitmaps = Bitmaps(volumeset.by_index(maps, volumeset.next_index(state), NoMap()), state.bitmaps)
    bitmaps.mark_unclean(marked)
    bitmaps.sync()


def _open_journal(parts: Parts, state: GroupState) -> Journal:
    """Open the journal, unless its medium failed in a former life: what it says then is nothing to go by."""
    if state.journal_error:
        source = parts.journal if isinstance(parts.journal, JournalFiles) else JournalFiles(parts.journal)
        return Journal.absent(source, parts.page, bytes.fromhex(state.uuid))
    journal = Journal.open(parts.journal, parts.page)
    journal.keep_super()
    return journal


def _unreadable(parts: Parts, state: GroupState, why: str, *, trusted: bool) -> JournalUnreadable:
    if not trusted:
        parts.page.clear(0)  # what it says is of no life of the group: the next start must not take it for that
    intact = state.role == PRIMARY and (trusted or state.clean) and not state.sealed
    return JournalUnreadable(why, state.role, intact=intact)


def _open_without_journal(
    parts: Parts,
    state: GroupState,
    state_file: StateFile,
    why: str,
    pos: int | None,
    marked: list[tuple[int, int, int]],
) -> GroupEngine:
    """Open a primary that gives up its journal: it counts differences, and every peer has to be copied to.

    why: the journal is broken; "" when only some of its records are: then it is used again, emptied.
    pos: the last seq given out, None when that is lost. Durable: the pool as it is, and all of that.
    """
    intact = (pos is not None or state.clean) and not state.sealed
    known = pos is not None
    pos = _last_known(state) + LEAP if pos is None else pos
    engine = _assemble(parts, state, state_file, _open_journal(parts, replace(state, journal_error=why)))
    engine.journal.start_empty(pos, engine.epoch)
    if not intact:
        state.bitmaps.clear()
        engine.bitmaps.open(pos + 1)
        engine.bitmaps.refresh()
    engine.bitmaps.mark_unclean(marked)
    engine.sync_pool()
    for edge in state.edges:
        for name, value in edge.without_peer().items():
            setattr(edge, name, value)
        edge.unclean = edge.unclean or not intact
    state.mode, state.seq_limit, state.extended = BITMAP, pos + SEQ_RESERVE, {}
    state.journal_error, state.sealed = why, False
    state.new_epoch_wanted = state.new_epoch_wanted or not known or not intact
    state.unclean = state.unclean or not intact
    state.clean, state.boot = False, parts.boot
    engine.last_host_seq = pos
    parts.page[INCARNATION] += 1
    _all_asleep(engine)
    engine.save()
    engine.refresh()
    return engine


def _last_known(state: GroupState) -> int:
    """The highest seq that the state speaks of."""
    edges = [seq for edge in state.edges for seq in (edge.synced_after, edge.synced_seq) if seq < NEVER]
    listed = state.listed_at[1:] if state.listed_at else []
    bases = [base for _, base in state.hist]
    return max(0, state.seq_limit, state.synced_seq, *bases, *state.bitmaps.values(), *edges, *listed)


def _open_damaged(parts: Parts, state: GroupState, state_file: StateFile, why: str, *, trusted: bool) -> GroupEngine:
    """Open a secondary whose journal is lost or damaged: it can be read, and takes nothing until it has a new journal.

    After a kill it is known what its pool holds: every record up to the applied one, and of those that it had received
    some in part. When these have been applied again it is consistent (`torn_to`); a record that is applied twice does
    no harm. Else it is inconsistent until what changed has been copied. Durable: that, and after a kill the pool, which
    no journal can make good any more.
    """
    page = parts.page
    applied, head = (page[APPLIED_SEQ], page[HEAD_SEQ]) if trusted else (0, 0)
    exact = trusted and not state.sealed and state.attaching is None and of_one_epoch(state, page, applied)
    if state.copy == OK:
        state.copy, state.floor, state.torn_to = RESYNC, applied, head if exact else 0
    elif not exact:
        state.torn_to = 0
    if state.copy == DIVERGED:
        applied = max(applied, state.floor)  # all of it is in the pool, and only an operator gives it up
    state.copy_id, state.copy_from_seq, state.attaching = "", NEVER, None
    state.journal_error, state.sealed = why, False
    state.clean, state.boot = False, parts.boot
    engine = _assemble(parts, state, state_file, _open_journal(parts, state))
    pos = max([applied, *(base for _, base in state.hist)])  # a position is behind the beginning of its epoch
    engine.journal.start_empty(pos, engine.epoch)
    engine.last_host_seq = pos
    if exact:
        engine.sync_pool()
    page[INCARNATION] += 1
    _all_asleep(engine)
    engine.save()
    engine.refresh()
    return engine


def _all_asleep(engine: GroupEngine) -> None:
    """Have everybody rung at first: who is awake takes it back."""
    engine.page[TARGET_ASLEEP] = 1
    for edge in engine.state.edges:
        engine.page[edge_slot(edge.slot, EDGE_ASLEEP)] = 1


def _recover_primary(engine: GroupEngine, power_lost: bool) -> None:
    state, page = engine.state, engine.page
    if state.mode == UNTRACKED:
        return
    if state.mode == JOURNAL:
        engine.journal.forget_beyond_head()
        redo_all(engine)
        checkpoint(engine)
    if power_lost:
        state.new_epoch_wanted = state.unclean = True
        state.extended = {}
        for edge in state.edges:
            edge.copying, edge.copy_id, edge.unclean = False, "", True
        if state.mode == BITMAP:
            state.seq_limit = engine.pos + SEQ_RESERVE
    else:
        try:
            ensure_epoch_record(engine)
        except NoRoom:
            state.new_epoch_wanted = True
    page[APPLIED_SEQ], page[APPLIED_OFF] = page[HEAD_SEQ], page[HEAD_OFF]


def _write_again(engine: GroupEngine, *, journal: bool) -> None:
    """After a failed sync: make everything dirty again that only the page cache may hold; `journal`: the journal, too.

    Durable: all of it.
    """
    if journal:
        engine.journal.rewrite()
    for m in engine.bitmaps.maps:
        m.clear_all(0)  # stores every byte as it is
    engine.bitmaps.sync()


def _drop_lost_epochs(engine: GroupEngine) -> None:
    """Forget epochs that began after the position power loss left us with: their records are gone, also here.

    The peer may know them; the next epoch's counter is higher than theirs all the same (`epoch_counter`).
    """
    hist = engine.state.hist
    while hist and hist[-1][1] > engine.pos:
        hist.pop()


def _position(state: GroupState, trusted_pos: int | None) -> int:
    """The last seq given out while nothing was journaled."""
    if trusted_pos is not None:
        return trusted_pos
    if state.mode == BITMAP:
        return state.seq_limit
    if state.copy == DIVERGED:
        return state.floor
    return state.hist[-1][1] if state.hist else 0


def _assemble(parts: Parts, state: GroupState, state_file: StateFile, journal: Journal) -> GroupEngine:
    count = volumeset.next_index(state)
    maps = {v["index"]: BlockMap(f, v["size"]) for f, v in zip(parts.maps, state.volumes, strict=True)}
    volumes = {v["index"]: served for served, v in zip(parts.volumes, state.volumes, strict=True)}
    bitmaps = Bitmaps(volumeset.by_index(maps, count, NoMap()), state.bitmaps)
    engine = GroupEngine(
        state,
        state_file,
        journal,
        parts.page,
        bitmaps,
        volumeset.by_index(volumes, count, volumeset.NoVolume()),
        parts.pool_sync,
        parts.clock,
        parts.boot,
    )
    engine.preimages = parts.preimages
    engine.volume_host = parts.volume_host
    return engine


def close_engine(engine: GroupEngine) -> None:
    """Stop in order; the caller has seen to it that no host write comes any more.

    Durable: everything, and that nothing needs to be redone.
    """
    if engine.failed:
        return
    if not engine.apply_error:
        apply_all(engine)
    checkpoint(engine)
    engine.sync_pool()
    with engine.lock:
        state: Any = engine.state
        state.clean = True
        if state.mode == BITMAP:
            state.seq_limit = engine.pos
        engine.save()
        engine.parked_for = "hold"
        engine.refresh()
