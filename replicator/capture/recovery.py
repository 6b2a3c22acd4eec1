"""Making a group's engine, and bringing it up again after any kind of stop.

    how it stopped          journal's head             what else
    in order                page, or from the tail     nothing
    killed, same boot       from the page              redo; every published record is whole, so nothing is lost
    power lost              walked from the tail       redo; regions the intent log marks are set in every bitmap; a
                                                       primary opens a new epoch before its next record and is unclean
                                                       until the peer has been copied to

After redo the pool of a primary equals the fold of its journal, except for what power loss left behind.

A group that had failed on a sync writes journal and bitmaps again before it relies on them: the kernel takes pages for
clean whose write-back failed, so a later sync would succeed without having written them.

A page of this boot counts also after an orderly stop, and on a secondary its head is left alone: the replicator may be
alive, and appending, while the target is not.
Source: seed 000 section 9.3, CRASH.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.capture import volumeset
from replicator.capture.bitmaps import Bitmaps, BlockMap, MapFile, NoMap
from replicator.capture.clock import WriteClock
from replicator.capture.engine import SEQ_RESERVE, GroupEngine, NoRoom, Volume
from replicator.capture.follower import apply_all, checkpoint, redo_all
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.ringchange import drop_orphans
from replicator.capture.roles import ensure_epoch_record, finish_attach
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
from replicator.journal.files import RandomFile
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    EDGE_ASLEEP,
    EPOCH,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    TARGET_ASLEEP,
    Page,
    edge_slot,
)
from replicator.journal.ring import Journal
from replicator.journal.superblock import DATA_START
from replicator.journal.volumes import JournalFiles


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


def open_engine(parts: Parts, unclean: Iterable[tuple[int, int, int]]) -> GroupEngine:
    """Open a group after whatever stopped it, redo its journal, and be ready to serve.

    unclean: (volume index, offset, length) ranges that the pool's intent log found marked.
    Raises IntegrityError or MediumError when the group cannot be served as it is.
    """
    state_file = StateFile(parts.state)
    state = state_file.load()
    state_file.keep()
    page = parts.page
    trusted = page.valid(parts.boot) and state.boot == parts.boot
    power_lost = not state.clean and not trusted
    marked = list(unclean)
    trusted_head = (page[HEAD_OFF], page[EPOCH], page[HEAD_SEQ])
    if not trusted:
        page.clear(parts.boot)
    try:
        journal = _open_journal(parts, state)
        kept = trusted and state.role == SECONDARY and state.attaching is None and not state.journal_error
        if kept:
            journal.recover(trusted_head[:2], keep_head=True)
            if state.sealed:
                journal.rewrite()
    except (IntegrityError, OSError) as exc:
        if state.role != SECONDARY or state.attaching is not None:
            raise
        return _open_damaged(parts, state, state_file, str(exc), page[APPLIED_SEQ] if trusted else 0)
    engine = _assemble(parts, state, state_file, journal)
    if not state.journal_error:
        drop_orphans(engine)
    if power_lost:
        engine.bitmaps.mark_unclean(marked)
    if state.attaching is not None:
        journal.reset(state.attaching["p"], state.attaching["epoch"])
        finish_attach(engine)
    elif kept:
        pass  # it has been looked through
    elif state.mode == JOURNAL and not state.journal_error:
        journal.recover(trusted_head[:2] if trusted else None)
    else:
        journal.start_empty(_position(state, trusted_head[2] if trusted else None), engine.epoch)
    if power_lost:
        _drop_lost_epochs(engine)
    if state.sealed and not power_lost:
        _write_again(engine, journal=not (kept or state.journal_error))
    state.sealed = False
    engine.last_host_seq = page[APPLIED_SEQ]
    engine.applied_in_part = page[HEAD_SEQ]
    if engine.preimages is not None:
        engine.preimages.settle(engine)
    if state.role == PRIMARY:
        _recover_primary(engine, power_lost)
        if power_lost:
            engine.bitmaps.mark_unclean(marked)  # again: redo may have opened bitmaps
            engine.bitmaps.sync()
    page[INCARNATION] += 1
    _all_asleep(engine)
    state.clean, state.boot = False, parts.boot
    engine.save()
    engine.refresh()
    return engine


def _open_journal(parts: Parts, state: GroupState) -> Journal:
    """Open the journal, unless its medium failed in a former life: what it says then is nothing to go by."""
    if state.journal_error:
        source = parts.journal if isinstance(parts.journal, JournalFiles) else JournalFiles(parts.journal)
        return Journal.absent(source, parts.page, bytes.fromhex(state.uuid))
    journal = Journal.open(parts.journal, parts.page)
    journal.keep_super()
    return journal


def _open_damaged(parts: Parts, state: GroupState, state_file: StateFile, why: str, applied: int) -> GroupEngine:
    """Open a secondary whose journal is lost or damaged: it can be read, and takes nothing until it has a new journal.

    applied: the last record its pool holds, 0 when that is not known. Some that follow may be there in part, so it
    counts as inconsistent until what changed since then has been copied. Durable: that.
    """
    if state.copy == OK:
        state.copy, state.floor = RESYNC, applied
    elif state.copy == DIVERGED:
        applied = state.floor  # all of it is in the pool, and only an operator gives it up
    state.copy_id, state.copy_from_seq = "", NEVER
    state.journal_error, state.sealed = why, False
    state.clean, state.boot = False, parts.boot
    engine = _assemble(parts, state, state_file, _open_journal(parts, state))
    engine.journal.start_empty(applied, engine.epoch)
    engine.last_host_seq = applied
    parts.page[INCARNATION] += 1
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
