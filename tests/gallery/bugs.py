"""The gallery. Each bug is one wrong decision put into the running code; `focus` narrows the faults so that it shows
soon.

A bug says what is wrong, as a reviewer would have to see it. The test beside this file shows that a run with the bug
breaks a promise and that the same run without it does not: so it is the oracle that bites, not the fault that hurts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from replicator.capture import copier, copies, damage, edges, engine, follower, recovery, roles, volumeset
from replicator.capture.bitmaps import TODO, Bitmaps, BlockMap
from replicator.capture.state import RESYNC, SECONDARY, Edge
from replicator.capture.unanswered import Unanswered
from replicator.core import events, handshake, lastword, records, session
from replicator.core.epochs import Comparison, Relation
from replicator.core.session import base
from replicator.core.transitions import State
from replicator.daemon.link import receiver, shipper
from replicator.daemon.link.claims import Claims
from replicator.journal import chain, ring
from replicator.journal.page import APPLIED_OFF, APPLIED_SEQ, HEAD_OFF, HEAD_SEQ
from tests.testing.sim.target import Target

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Bug:
    """One seeded bug."""

    name: str
    wrong: str
    patches: Callable[[], list[Patch]]
    focus: dict[str, Any] = field(default_factory=dict)
    seeds: int = 60
    """It must be found within so many seeds."""
    kind: str = "pair"
    """Of the world in which it shows: "pair" or "tree"."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is in the code inside this context."""
        started = []
        try:
            for owner, name, wrong in self.patches():
                one = patch.object(owner, name, wrong)
                one.start()
                started.append(one)
            yield
        finally:
            for one in reversed(started):
                one.stop()


BUGS: list[Bug] = []


def bug(
    name: str, wrong: str, seeds: int = 60, kind: str = "pair", **focus: Any
) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """Add a bug to the gallery."""

    def add(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        BUGS.append(Bug(name, wrong, patches, focus, seeds, kind))
        return patches

    return add


POWER = ("power", "force-takeover")
KILLS = ("kill-target", "kill-node", "cut")


@bug(
    "ack-before-durable",
    "the receiver calls records durable without syncing its journal",
    mode="sync",
    ack="durable",
    faults=POWER,
    lazy=30.0,
    flushes=0.0,
)
def _() -> list[Patch]:
    def claim(self: receiver.Receiver, received: int) -> None:
        self._synced, self._must_sync = received, False

    return [(receiver.Receiver, "_sync", claim)]


@bug(
    "todo-cleared-before-journal",
    "a block leaves the copy list before its COPY record is in the journal",
    faults=KILLS,
    mid_write=0.9,
    lazy=8.0,
    blocks=(24,),
    fault_gap_s=0.2,
    seeds=120,
)
def _() -> list[Patch]:
    right = engine.GroupEngine.append_copy

    def early(self: engine.GroupEngine, volume: int, offset: int, length: int, data: Any) -> bool:
        first = offset >> 16
        self._maps[volume].clear_blocks(TODO, first, ((offset + length - 1) >> 16) - first + 1)
        return right(self, volume, offset, length, data)

    return [(engine.GroupEngine, "append_copy", early)]


@bug("resync-overwrites-newer", "a block is read, then other writes pass, then the old data is appended as a copy")
def _() -> list[Patch]:
    right = engine.GroupEngine.append_copy
    held: dict[int, tuple[Any, ...]] = {}

    def late(self: engine.GroupEngine, volume: int, offset: int, length: int, data: Any) -> bool:
        key = (volume, offset, length)
        kept = held.pop(id(self), None)
        if kept is not None and kept[0] == key:
            return right(self, volume, offset, length, kept[1])
        held[id(self)] = (key, None if data is None else bytes(data))
        return False

    return [(engine.GroupEngine, "append_copy", late)]


@bug(
    "numbers-without-epochs",
    "positions are compared by number alone, whatever history they belong to",
    faults=("force-takeover", "kill-node", "down"),
)
def _() -> list[Patch]:
    def by_number(x_hist: Any, x_pos: int, y_hist: Any, y_pos: int) -> Comparison:
        if not y_hist:
            return Comparison(Relation.FRESH, 0, 0, x_pos)
        return Comparison(Relation.SAME if y_pos <= x_pos else Relation.BEHIND, min(x_pos, y_pos), 0, 0)

    return [(handshake, "compare", by_number)]


@bug(
    "newest-bitmap-whatever-it-covers",
    "a resync takes the newest bitmap, even one that starts after the common position",
    faults=("power", "kill-node", "force-takeover"),
    rotate_blocks=1,
)
def _() -> list[Patch]:
    def newest(self: Bitmaps, common: int) -> int | None:
        return 1 << max(self.starts, key=lambda slot: self.starts[slot]) if self.starts else None

    return [(Bitmaps, "newest_for", newest)]


@bug(
    "own-bitmap-only",
    "the source copies what it changed itself and forgets what the target changed",
    faults=("force-takeover", "down"),
    blocks=(24,),
    write_gap_s=0.08,
    first_writes=0,
)
def _() -> list[Patch]:
    right = copies.begin_copy

    def own(e: engine.GroupEngine, edge: Edge, c: int | None, peer_bitmaps: Any, copy_id: str) -> Any:
        nothing = None if peer_bitmaps is None else {i: bytes(len(b)) for i, b in peer_bitmaps.items()}
        return right(e, edge, c, nothing, copy_id)

    return [(copies, "begin_copy", own)]


@bug(
    "epoch-not-opened-on-takeover",
    "a takeover goes on in the old epoch",
    faults=("force-takeover", "kill-node", "down"),
)
def _() -> list[Patch]:
    right = engine.GroupEngine.new_history_entry

    def same(self: engine.GroupEngine) -> None:
        if not self.state.hist or self.state.new_epoch_wanted:
            right(self)
        else:
            self.save()

    return [(engine.GroupEngine, "new_history_entry", same)]


@bug(
    "seq-reused-after-power-loss",
    "a primary goes on in the same epoch after it lost records in a power cut",
    faults=("power",),
)
def _() -> list[Patch]:
    right = recovery._recover_primary

    def forget(e: engine.GroupEngine, power_lost: bool) -> None:
        right(e, power_lost)
        e.state.new_epoch_wanted = False

    return [(recovery, "_recover_primary", forget)]


@bug(
    "power-loss-forgotten",
    "after a power cut the primary does not say that its blocks may differ from its journal",
    faults=("power", "cut"),
)
def _() -> list[Patch]:
    right = recovery._recover_primary

    def forget(e: engine.GroupEngine, power_lost: bool) -> None:
        right(e, power_lost)
        e.state.unclean = False
        for edge in e.state.edges:
            edge.unclean = False

    return [(recovery, "_recover_primary", forget)]


@bug(
    "synced-before-last-copy",
    "SYNCED is written while blocks are still on the copy list",
    faults=("power", "cut", "kill-node"),
)
def _() -> list[Patch]:
    return [(Bitmaps, "todo_blocks", lambda self: 0), (copier, "_copy_run", _one_run_then_done(copier._copy_run))]


def _one_run_then_done(right: Any) -> Any:
    def one(e: engine.GroupEngine, volume: int, first: int, count: int) -> int:
        done = right(e, volume, first, 1)
        copier._finish(e)
        return int(done)

    return one


@bug(
    "degraded-not-durable",
    "a write is answered without the peer before the state on disk says so",
    mode="sync",
    on_loss="degrade",
    loss_timeout_s=0.3,
    faults=("down", "kill-node"),
)
def _() -> list[Patch]:
    def in_memory(e: engine.GroupEngine, edge: Edge) -> None:
        edge.sync_on, edge.degraded = False, True
        e.refresh()

    return [(edges, "degrade", in_memory)]


@bug(
    "torn-tail-accepted",
    "after a power cut a record with a wrong payload checksum at the journal's end is taken for whole",
    faults=("power",),
    mid_write=0.0,
)
def _() -> list[Patch]:
    def no_runs(*args: Any) -> Any:
        raise chain.BadRecord("walk singly")

    return [
        (chain, "parse_run", no_runs),
        (chain, "check_payload", lambda header, payload: None),
        (follower, "iter_run", _iter_without_payload_crc),
    ]


def _iter_without_payload_crc(view: memoryview) -> list[Any]:
    out, at = [], 0
    while len(view) - at >= ring.HEADER_BYTES:
        header = ring.unpack_header(view, at)
        if at + header.total_bytes > len(view):
            break
        out.append((header, at + ring.HEADER_BYTES))
        at += header.total_bytes
    return out


@bug("copy-said-complete-early", "the target of a copy says COPIED before SYNCED was applied")
def _() -> list[Patch]:
    def early(self: session.Session, event: Any, now: float) -> Any:
        return State.TARGET, [events.Send({"t": "copied", "seq": 0})]

    return [(session.Session, "_copy_progress", early)]


@bug(
    "promote-without-applying",
    "a takeover starts before what was received is applied",
    faults=("force-takeover",),
    write_gap_s=0.01,
    lazy=30.0,
)
def _() -> list[Patch]:
    right = roles.promote

    def at_once(e: engine.GroupEngine, **how: bool) -> Any:
        if e.state.role == SECONDARY:
            e.page[APPLIED_SEQ], e.page[APPLIED_OFF] = e.page[HEAD_SEQ], e.page[HEAD_OFF]
        return right(e, **how)

    return [(roles, "promote", at_once)]


@bug(
    "floor-not-kept",
    "the target of a copy calls everything certain up to where the copy began",
    faults=("power",),
    lazy=30.0,
    fault_gap_s=0.4,
    blocks=(24,),
    duration_s=12.0,
    flushes=0.1,
    first_writes=20,
    write_gap_s=0.08,
)
def _() -> list[Patch]:
    right = roles.attach

    def forget(e: engine.GroupEngine, edge: Edge, **step: Any) -> Any:
        result = right(e, edge, **step)
        e.state.floor = step["p"]
        e.save()
        return result

    return [(roles, "attach", forget)]


@bug(
    "bits-never-durable", "checkpoints do not sync the bitmaps", faults=("power", "down"), flushes=0.1, fault_gap_s=0.8
)
def _() -> list[Patch]:
    return [(BlockMap, "sync", lambda self: None)]


@bug(
    "intents-cleared-too-early",
    "write-intent marks go while records and bits are still only in the page cache",
    faults=("power", "down", "silence"),
    write_gap_s=0.08,
    flushes=0.0,
    fault_gap_s=0.8,
    blocks=(24,),
    duration_s=12.0,
)
def _() -> list[Patch]:
    return [(Target, "_sync_tracking", lambda self: set())]


@bug(
    "failed-group-lets-marks-go",
    "write-intent marks go for a group that has failed, and could make neither records nor bits durable",
    mode="sync",
    on_loss="stall",
    faults=("power", "eio"),
    write_gap_s=0.05,
    flushes=0.1,
    fault_gap_s=0.5,
    duration_s=12.0,
)
def _() -> list[Patch]:
    def let_go(self: Target) -> set[str]:
        self.engine.sync_tracking()
        return set()  # the bug

    return [(Target, "_sync_tracking", let_go)]


@bug(
    "failed-sync-swallowed",
    "a journal sync that failed counts as done",
    mode="sync",
    ack="durable",
    faults=("eio", "force-takeover"),
)
def _() -> list[Patch]:
    right = ring.Journal.sync

    def swallow(self: ring.Journal) -> None:
        try:
            right(self)
        except OSError:
            pass  # the bug

    return [(ring.Journal, "sync", swallow)]


@bug(
    "journal-lost-goes-on-journaling",
    "a journal whose sync has failed is synced again, and that counts",
    mode="async",
    faults=("eio",),
    flushes=0.4,
)
def _() -> list[Patch]:
    right = engine.GroupEngine.lose_journal

    def forgiving(self: engine.GroupEngine, reason: str) -> Exception:
        self.journal._broken = None  # the bug
        return right(self, reason) if self.state.role != "primary" else engine.Parked()

    return [(engine.GroupEngine, "lose_journal", forgiving)]


@bug(
    "discard-without-consent",
    "a former primary's acknowledged writes are overwritten unasked",
    faults=("force-takeover", "kill-node"),
)
def _() -> list[Patch]:
    return [(handshake, "_tail", lambda lead, follow, comparison: "empty")]


@bug(
    "duplicates-applied",
    "records that come again after a reconnect are written again",
    replay=0.5,
    faults=("cut",),
    write_gap_s=0.01,
)
def _() -> list[Patch]:
    right = receiver.Receiver.take

    def again(self: receiver.Receiver, body: memoryview, flags: int) -> int:
        run = receiver.parse_run(body, self.expect, 0)
        if run.begin:
            disk = self._files.journal._file._disk
            for header, at in follower.iter_run(memoryview(body)[: run.begin]):
                if header.payload_len:
                    disk.open(f"volume{header.volume}").pwrite(body[at : at + header.payload_len], header.offset)
        return right(self, body, flags)

    return [(receiver.Receiver, "take", again)]


@bug(
    "sent-counts-as-received",
    "the sender takes what it sent for received",
    mode="sync",
    faults=("cut", "force-takeover", "down"),
)
def _() -> list[Patch]:
    right = shipper.Shipper.pump

    def trusting(self: shipper.Shipper, now: float) -> int:
        sent = right(self, now)
        if sent:
            self._u64[self._received] = self.seq - 1
        return sent

    return [(shipper.Shipper, "pump", trusting)]


@bug(
    "handover-before-drained",
    "the old primary hands over before the peer has everything",
    faults=("switchover",),
    delay_s=0.03,
    write_gap_s=0.01,
)
def _() -> list[Patch]:
    right = session.Session._yield_if_drained

    def at_once(self: session.Session) -> Any:
        self.acked = (self.acked[0], self._hold_seq, self.acked[2])
        return right(self)

    return [(session.Session, "_yield_if_drained", at_once)]


@bug(
    "stale-epoch-accepted",
    "a receiver takes records of an epoch that is over",
    seeds=100,
    faults=("power",),
    replay=1.0,
    fault_gap_s=1.0,
    duration_s=6.0,
    flushes=0.0,
    blocks=(3,),
    write_gap_s=0.01,
    delay_s=0.003,
)
def _() -> list[Patch]:
    right = receiver.parse_run
    return [(receiver, "parse_run", lambda buf, expect, min_epoch: right(buf, expect, 0))]


@bug(
    "promised-tail-rolled-back",
    "a synchronous primary that lost records in a power cut makes the copy forget them too",
    mode="sync",
    faults=("power",),
)
def _() -> list[Patch]:
    right = handshake._facts
    return [(handshake, "_facts", lambda *sides: right(*sides)._replace(sync="no"))]


@bug(
    "redo-of-volumes-that-left",
    "after a crash records from before a change of the volumes are applied again, to the volumes of after it",
    faults=("kill-target", "power"),
    lists=True,
)
def _() -> list[Patch]:
    return [(volumeset, "passes_over", lambda state: (0, 0))]


@bug(
    "change-of-volumes-said-in-vain",
    "a change of the volumes that the journal refused is forgotten, though the copy may have made it",
    faults=("eio",),
    lists=True,
    mode="async",
    fault_gap_s=0.2,
    delay_s=0.0005,
)
def _() -> list[Patch]:
    return [(volumeset, "restated", lambda e, at: {})]


# -- trees
# --------------------------------------------------------------------------------------------------------------

CHAIN = {"kind": "tree", "parents": (0, 1), "edge_modes": ("sync", "sync")}
"""A node in the middle, and every write waits for both ends below."""


@bug(
    "relay-acknowledges-for-itself",
    "a node in the middle calls received what the synchronous peer below it does not have",
    **CHAIN,
    faults=("kill-replicator", "slow"),
    on_loss="stall",
    loss_timeout_s=6.0,
    write_gap_s=0.01,
)
def _() -> list[Patch]:
    return [(receiver, "held_below", lambda u64, received, durable: (received, durable))]


@bug(
    "fed-by-two",
    "a session takes records without having claimed the journal",
    kind="tree",
    parents=(0, 1, 2),
    edge_modes=("async", "async", "async"),
    faults=("force-takeover", "down", "cut"),
    fault_gap_s=0.3,
    seeds=100,
)
def _() -> list[Patch]:
    return [(Claims, "take", lambda self, who, evict: True)]


@bug(
    "incomplete-relay-feeds",
    "a node that is being copied to lets the node below have the rest of that copy, without what went by before",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=("power", "down", "force-takeover"),
    fault_gap_s=0.3,
    blocks=(24,),
)
def _() -> list[Patch]:
    facts_of, pin = handshake._facts, copies.pin_copy

    def careless(lead: Any, follow: Any, comparison: Any, relay: bool) -> Any:
        facts = facts_of(lead, follow, comparison, relay)
        return facts._replace(primaries="relay") if facts.primaries == "relay-busy" else facts

    def pin_anyway(e: engine.GroupEngine, edge: Edge, c: int | None, theirs: Any, copy_id: str) -> Any:
        if e.state.copy != RESYNC:
            return pin(e, edge, c, theirs, copy_id)
        masks = copies._blocks(e, c, theirs)
        copies._pin(e, edge, e.page[APPLIED_OFF])
        e.commit({edge.slot: copies._begun(edge, copy_id, e.state.copy_from_seq)})
        return copies._offer(e, e.page[APPLIED_SEQ], masks)

    return [
        (handshake, "_facts", careless),
        (copies, "pin_copy", pin_anyway),
        (session.Session, "_planned", _asks_nobody_above(lambda mine: bool(mine.state == RESYNC))),
    ]


def _asks_nobody_above(when: Callable[[Any], bool]) -> Any:
    """A relay whose HELLO is so offers a copy as if it were primary: its own target has the list, and that will do."""
    right = session.Session._planned

    def planned(self: session.Session, event: Any, now: float) -> Any:
        if self.mine is None or not when(self.mine):
            return right(self, event, now)
        with patch.object(session.Session, "_relays", False):
            return right(self, event, now)

    return planned


@bug(
    "copy-below-without-the-primary",
    "a node in the middle lets a peer be copied to, and nobody asks the primary for the blocks",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=(),
    blocks=(24,),
)
def _() -> list[Patch]:
    return [(session.Session, "_planned", _asks_nobody_above(lambda mine: True))]


@bug(
    "forgets-who-feeds-it",
    "a node that follows another one now does not store that",
    kind="tree",
    parents=(0, 0),
    edge_modes=("async", "async"),
    faults=("switchover",),
)
def _() -> list[Patch]:
    return [(edges, "follow", lambda e, peer: None)]


@bug(
    "claim-never-let-go",
    "a session keeps the claim on the journal when it does not receive any more",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=("force-takeover",),
    fault_gap_s=0.4,
)
def _() -> list[Patch]:
    return [(Claims, "release", lambda self, who: None)]


MARKERS = ("marker-takeover", "power", "kill-node")


@bug(
    "rewound-whatever-it-holds",
    "a takeover at a marker counts as leave to discard also what the node that took over never had",
    kind="tree",
    parents=(0, 1),
    edge_modes=("sync", "sync"),
    faults=MARKERS,
    lazy=8.0,
)
def _() -> list[Patch]:
    return [(handshake, "_rewound", lambda lead, follow: bool(lead.rewound) and follow.rewound is not None)]


@bug(
    "rewound-own-writes",
    "a former primary gives up what it answered hosts, because the node that took over at a marker gave it up",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=("marker-takeover",),
)
def _() -> list[Patch]:
    right = handshake._tail

    def careless(lead: Any, follow: Any, comparison: Comparison) -> str:
        tail = right(lead, follow, comparison)
        return "rewound" if tail == "acknowledged" and handshake._rewound(lead, follow) else tail

    return [(handshake, "_tail", careless)]


@bug(
    "copy-below-outlives-its-list",
    "a copy through a relay goes on when an EPOCH record shows that the primary lost the list of its blocks",
    kind="tree",
    parents=(0, 1, 2),
    edge_modes=("async", "async", "async"),
    faults=("switchover",),
    fault_gap_s=0.2,
    blocks=(24,),
    duration_s=3.0,
    write_gap_s=0.08,
)
def _() -> list[Patch]:
    return [(follower, "_void_copies", lambda e, begun: None)]


@bug(
    "bitmap-dropped-before-the-tree-has-the-next",
    "a relay says of the whole tree below it what it holds itself, so a bitmap goes that a node below still needs",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=("kill-node", "cut", "down", "force-takeover", "split", "resync"),
    rotate_blocks=1,
    write_gap_s=0.03,
    fault_gap_s=0.3,
    duration_s=3.0,
    thrifty=True,
    blocks=(3,),
)
def _() -> list[Patch]:
    return [(base, "tree_durable", lambda status: int(status.get("durable", 0)))]


@bug(
    "silence-taken-for-nothing",
    "a copy that hears nothing over a link that stands, as when its journal is full, counts what it heard last as the "
    "present",
    mode="async",
    faults=(),
    stands=True,
    write_gap_s=0.01,
    on_full="stall",
)
def _() -> list[Patch]:
    right = lastword.LastWord.facts

    def fresh(self: lastword.LastWord, held_seq: int, held_off: int, arrived: tuple[int, int], now: float) -> Any:
        return right(self, held_seq, held_off, (0, 0), now) | {"age_s": 0.0, "newer": True}

    return [(lastword.LastWord, "facts", fresh)]


@bug(
    "word-as-old-as-its-arrival",
    "a word that a relay passes on, without hearing the primary any more, counts from when it was read",
    kind="tree",
    parents=(0, 1),
    edge_modes=("async", "async"),
    faults=("silence",),
    on_full="stall",
    write_gap_s=0.03,
    fault_gap_s=0.8,
    duration_s=12.0,
)
def _() -> list[Patch]:
    right = lastword.LastWord.heard

    def heard(self: Any, beat: Any, held_seq: int, held_off: int, now: float) -> None:
        self._apart_s = None
        right(self, beat, held_seq, held_off, now)

    return [(lastword.LastWord, "heard", heard)]


ANSWERED_ALONE = ("cut", "down", "silence", "slow", "resync")


@bug(
    "reads-do-not-wait",
    "a host is told what it reads of a write which waits for its peer",
    mode="sync",
    reads=True,
    faults=("slow", "cut"),
)
def _() -> list[Patch]:
    return [(Unanswered, "over", lambda self, volume, offset, length: [])]


@bug(
    "reads-of-failed-writes-do-not-wait",
    "a write that a stalling group could not get across is in the pool, and nobody minds who reads it",
    mode="sync",
    on_loss="stall",
    loss_timeout_s=0.3,
    reads=True,
    faults=ANSWERED_ALONE,
)
def _() -> list[Patch]:
    right = Target._answer

    def forgetful(self: Target, request: Any, outcome: str) -> None:
        if request.kind != "read":
            self.engine.unanswered.entries.pop(request.seq, None)
        right(self, request, outcome)

    return [(Target, "_answer", forgetful)]


@bug(
    "reads-wait-for-nothing-from-before",
    "what a peer may still lack after a restart, or when it becomes synchronous, is not waited for",
    mode="sync",
    reads=True,
    faults=("kill-target", "cut", "slow"),
)
def _() -> list[Patch]:
    return [(Unanswered, "take_stock", lambda self, engine, waits: None)]


ROT = ("rot", "rot", "cut", "kill-replicator")


@bug(
    "rot-is-applied",
    "what has rotted in a copy's journal is applied as it is",
    faults=ROT,
    fault_gap_s=0.2,
    lazy=30.0,
    late=0.0,
)
def _() -> list[Patch]:
    def trusting(view: memoryview) -> list[tuple[records.Header, int]]:
        found, at = [], 0
        while len(view) - at >= records.HEADER_BYTES:
            header = records.unpack_header(view, at)
            if at + header.total_bytes > len(view):
                break
            found.append((header, at + records.HEADER_BYTES))
            at += header.total_bytes
        return found

    return [(follower, "iter_run", trusting)]


@bug(
    "damage-is-skipped",
    "a copy that cannot apply a damaged record goes on with the next one",
    faults=ROT,
    fault_gap_s=0.2,
    lazy=30.0,
    late=0.0,
)
def _() -> list[Patch]:
    def skip(self: Any, found: Any) -> int:
        engine = self._engine
        header = engine.journal.header_at(found.off)
        engine.page[APPLIED_SEQ], engine.page[APPLIED_OFF] = found.seq, found.off + header.total_bytes
        return 1

    return [(damage.DamagedJournal, "_end_at", skip)]


@bug(
    "damage-keeps-its-peers",
    "a peer that lacks a damaged record of the primary is not given up, and asks for it again and again",
    faults=("rot", "rot", "rot", "silence"),
    fault_gap_s=0.2,
    write_gap_s=0.01,
    delay_s=0.03,
    late=0.0,
)
def _() -> list[Patch]:
    return [(damage.DamagedJournal, "_lacking", lambda self, found: [])]
