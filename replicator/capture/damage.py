"""Records of a journal that its medium does not give back as they were written: what they cost, and who goes on.

Every reader checks CRCs, so damage is found by whoever comes there: the replicator that ships (it reports), the
follower of a copy, a checkpoint. The medium still takes what is written; so the journal stays, and only what lies at
the damaged place is done without.

    where the volumes hold it     a primary, or a copy that has applied it. It is wanted for redo, until the pool is
                                  synced, and by peers. So: the pool is synced, with all bits, and the redo point is
                                  durably behind the damage; then peers that lack the record are dropped, durably,
                                  and come back by difference; then the tail passes it. Hosts notice nothing
    where nobody has applied it   a copy that cannot go on. What was received from there on is of no use without it.
                                  When a node is there that may send it again, its journal ends before the damage,
                                  durably, and the handshake says what is wanted: it comes again, or a copy by
                                  difference does. That is when a link is made, before the handshake; where records
                                  come in, the group stops for a moment first, so that nobody appends

A peer in sync that must have everything (on_loss=stall) is waited for all the same until the copy to it begins. A
journal that cannot be read, or in which record after record is found damaged, is no place for what hosts flush: a
primary gives it up, as after an error of its medium (journalloss.py). How many there were is durable, and in what
status says.

What it cannot do: tell damage at the end of the chain from the end itself after a power loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from replicator.capture import edges, limits
from replicator.capture.journalloss import STOPS_S, may_go_over, of_one_epoch, receives, tear
from replicator.capture.state import JOURNAL, SECONDARY, Edge
from replicator.core.errors import IntegrityError
from replicator.core.records import HEADER_BYTES, BadRecord, Kind, check_payload
from replicator.journal.beacons import publish
from replicator.journal.chain import walk
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    ARRIVED_GEN,
    EDGE_DURABLE_OFF,
    EDGE_RECEIVED_SEQ,
    HEAD_OFF,
    INCARNATION,
    TAIL_OFF,
    edge_slot,
)

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine

MOST = 3
"""A primary gives up a journal in which so many records were found damaged."""
CONFIRM_S = 1.0
"""A copy reads a damaged record again after this before it does without it."""
LOOK_BYTES = 128 << 20
"""Whoever reports damage has read less than this from the place it names."""


class Damage(NamedTuple):
    """The first damaged record from some place on. off, seq: of it; epoch: of the record before, 0 when that was not
    looked at; why: for people; unreadable: the medium said so itself."""

    off: int
    seq: int
    epoch: int
    why: str
    unreadable: bool


def find(engine: GroupEngine, off: int, seq: int, look_bytes: int | None = None) -> Damage | None:
    """Read from `off`, where record `seq` lies, to the journal's end, or `look_bytes` far; None when all is well."""
    journal, u64 = engine.journal, engine.page.u64
    head = u64[HEAD_OFF]
    limit = head if look_bytes is None else min(head, off + look_bytes)
    at, last, epoch, why, unreadable = off, seq - 1, 0, "", False
    with suppress(OSError):
        at, last, epoch = walk(journal.read, off, seq, 0, limit)
    while at < limit and not why:
        try:
            header = journal.header_at(at)
            if header.seq != last + 1 or header.epoch < epoch or at + header.total_bytes > head:
                raise BadRecord(f"record {header.seq} is where {last + 1} belongs")
            if header.epoch != epoch and at != off and header.kind != Kind.EPOCH:
                raise BadRecord(f"record {header.seq} is of an epoch that was not announced")
            check_payload(header, journal.read(at + HEADER_BYTES, header.payload_len))
            at, last, epoch = at + header.total_bytes, header.seq, header.epoch
        except BadRecord as exc:
            why = str(exc)
        except OSError as exc:
            why, unreadable = f"it cannot be read: {exc.strerror or exc}", True
    if not why or u64[TAIL_OFF] > at:
        return None  # nothing, or it was freed and overwritten while we looked
    why = f"record {last + 1} in its journal is damaged: {why}"
    return Damage(at, last + 1, epoch if last >= seq else 0, why, unreadable)


class DamagedJournal:
    """What one group does about damage in its journal. Methods may be called from any thread; `look` from one."""

    def __init__(
        self,
        engine: GroupEngine,
        events: Callable[..., None],
        checkpoint: Callable[[], object],
        wake: Callable[[], None],
    ) -> None:
        """checkpoint: syncs the pool, and moves the redo point to the end of what it holds, the tail to what is wanted.
        wake: writers and the follower look anew."""
        self._engine = engine
        self._events = events
        self._checkpoint = checkpoint
        self._wake = wake
        self._counted = self._looked_at = -1
        self._since: float | None = None
        self._stopped_at: float | None = None

    @property
    def pending(self) -> bool:
        """Whether `look` has something to do, or to wait for."""
        return self._engine.damaged is not None or self._engine.suspect is not None

    def reported(self, off: int, seq: int, look_bytes: int = LOOK_BYTES) -> bool:
        """Somebody could not use what lies at `off`, where record `seq` begins, or some way behind.

        Returns whether there is damage. Durable: that peers which cannot get the record have to be copied to."""
        engine, u64 = self._engine, self._engine.page.u64
        if not u64[TAIL_OFF] <= off < u64[HEAD_OFF] or engine.failed or engine.state.mode != JOURNAL:
            return False
        found = find(engine, off, seq, look_bytes)
        if found is None:
            return False
        if engine.state.role == SECONDARY and found.off >= u64[APPLIED_OFF]:
            engine.damaged = found
        else:
            self._do_without(found)
        return True

    def look(self, now: float) -> None:
        """Go on with what is pending. now: monotonic seconds. Raises MediumError."""
        engine = self._engine
        suspect, engine.suspect = engine.suspect, None
        if suspect is not None and suspect != self._looked_at:
            sup = engine.journal.super  # what its peers say of the place are two words that need not be of one record
            if self.reported(sup.tail_off, sup.tail_seq, suspect - sup.tail_off + LOOK_BYTES):
                self._looked_at = suspect  # a peer that holds the record may keep the tail there for long
        if engine.damaged is None or engine.state.role != SECONDARY:
            self._go_on()
            engine.damaged = self._since = None
        elif self._stopped_at is not None:
            if not engine.stopped:
                self._since = self._stopped_at = None  # it has failed for good meanwhile
            elif now - self._stopped_at >= STOPS_S or not receives(engine):
                self._since = None
                self._end_before()
                self._go_on()
                engine.sync_journal()
                self._wake()
        elif engine.failed or not receives(engine):
            self._since = None  # nothing is given up while there is nobody to send it again
        elif self._since is None:
            self._since = now
        elif now - self._since >= CONFIRM_S:
            engine.damaged = find(engine, *_unapplied(engine))
            if engine.damaged is not None:
                self._stopped_at = now
                engine.stop_receiving(engine.damaged.why)

    def _go_on(self) -> None:
        if self._stopped_at is not None:
            self._stopped_at = None
            with self._engine.opened:
                self._engine.go_on()

    def _do_without(self, found: Damage) -> None:
        """The volumes hold the record: nobody needs it here, and peers that lack it are copied to."""
        engine = self._engine
        lacking = self._lacking(found)
        with engine.opened:
            if engine.failed or engine.journal_lost:
                return
            self._count(found, [edge.peer for edge in lacking])
            if (found.unreadable or engine.state.damaged >= MOST) and may_go_over(engine):
                engine.lose_journal(f"{found.why} ({engine.state.damaged} damaged records were found in it)")
                engine.opened.notify_all()
                return
        self._checkpoint()
        if lacking:
            edges.drop(engine, lacking, stay_waited_for=True)
            self._checkpoint()
            self._wake()

    def _lacking(self, found: Damage) -> list[Edge]:
        u64 = self._engine.page.u64

        def has_it(edge: Edge) -> bool:
            slot = edge.slot
            if u64[edge_slot(slot, EDGE_DURABLE_OFF)] > found.off:
                return True
            return slot in self._engine.linked and u64[edge_slot(slot, EDGE_RECEIVED_SEQ)] >= found.seq

        return [e for e in self._engine.state.downstream if not e.dropped and not has_it(e)]

    def _count(self, found: Damage, peers: list[str]) -> None:
        """Durable: that one more record was found damaged. The caller holds the group lock."""
        if found.off == self._counted:
            return
        self._counted = found.off
        state = self._engine.state
        self._engine.commit(damaged=state.damaged + 1)
        self._events("journal-damaged", group=state.name, seq=found.seq, reason=found.why, peers=peers)

    def end_before(self) -> bool:
        """Give up what a copy cannot apply, if nothing is being received now. Durable on return: that it has. Returns
        whether the follower can go on."""
        engine = self._engine
        if engine.damaged is None or engine.failed or receives(engine):
            return False
        self._end_before()
        engine.sync_journal()
        return True

    def _end_before(self) -> None:
        """Let the journal of a copy end before the damaged record. Durable when the journal has been synced: that."""
        engine = self._engine
        with engine.apply_lock:
            found = find(engine, *_unapplied(engine))
            dropped = 0
            if found is not None:
                if engine.limit_time_ns:
                    engine.on_lift()  # a set's bound may rest on what is given up
                dropped = self._end_at(found)
            engine.damaged = None
        engine.ring_replicators()
        if found is not None:
            self._events("received-again", group=engine.state.name, seq=found.seq, reason=found.why, dropped=dropped)

    def _end_at(self, found: Damage) -> int:
        engine, page = self._engine, self._engine.page
        pos = found.seq - 1
        with engine.checkpoint_lock, engine.lock:
            if engine.failed and not engine.stopped:
                raise engine._refusal()
            applied, dropped = page[APPLIED_SEQ], engine.pos - pos
            exact = of_one_epoch(engine.state, page, applied)
            engine.sync_pool()
            if engine.preimages is not None:
                engine.preimages.leave(applied)
            with suppress(IntegrityError, OSError):
                for epoch, _ in limits.pending(engine).epochs:
                    engine.note_epoch(epoch)
            tear(engine, applied, pos, exact=exact)
            self._counted = found.off
            engine.commit(damaged=engine.state.damaged + 1, source_durable=[])  # it counts with what is given up
            limits.end_journal(engine, found.off, pos, found.epoch or engine.epoch)
            publish(page.u64, ARRIVED_GEN, 0, 0)
            page[INCARNATION] += 1
        return dropped


def _unapplied(engine: GroupEngine) -> tuple[int, int]:
    """Where the first record lies that is not applied, and its seq."""
    return engine.page[APPLIED_OFF], engine.page[APPLIED_SEQ] + 1
