"""What must hold. Each check raises Violation with what is wrong; all are called after every event.

prefix     every consistent secondary is its history folded up to what it applied, all volumes at one cut;
           every primary is its history folded up to its position
tracked    blocks that differ between the nodes are in the bitmaps' union, or in records received and not applied
durable    after any stop a primary has every flushed write, and after a kill every write it took
promises   what a host was told is on both sides is there when the other side takes over
reads      what a read tells a host, every synchronous peer has; see reads.py
one        no two primaries write one history, and no node is fed by two
honest     nobody claims more than is true: a session that says its copy is complete has one, a primary answers alone
           only when the state on disk says so; and what a node says that another lacks, as of some moment, exactly, is
           never less than it lacked then
thrifty    what was copied once is copied by difference, until power or a disk was lost; but not a former primary that
           the operator gives up, which may have left the tree long before (see Options.thrifty)
consent    a node gives up records it answered hosts for only when the operator named it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from replicator.capture.bitmaps import BLOCK_BYTES, TODO
from replicator.capture.engine import GroupEngine
from replicator.capture.state import BITMAP, FRESH, JOURNAL, OK, PRIMARY, RESYNC, SECONDARY, UNTRACKED
from replicator.capture.volumeset import identity
from replicator.core.epochs import common_position
from replicator.core.records import HEADER_BYTES, Kind
from replicator.core.transitions import State
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ, TAIL_SEQ, Page
from tests.testing.sim.truth import Change, Hist, Truth, Violation, apply, change_of_record

if TYPE_CHECKING:
    from tests.testing.sim.node import Node
    from tests.testing.sim.target import Request, Target


def check_prefix(node: Node) -> None:
    """The image of a running node against the truth."""
    target = node.target
    if target is None or target.engine.failed or not node.truth.genesis:
        return
    state, page = target.engine.state, target.engine.page
    if state.mode == UNTRACKED or target.engine.list_in_doubt:
        return
    if state.role == SECONDARY and (state.copy != OK or not target.prefix_now):
        return
    pos = page[HEAD_SEQ] if state.role == PRIMARY else page[APPLIED_SEQ]
    hist = node.hist()
    node.image.move(hist, pos)
    for index, expected in enumerate(node.image.volumes):
        raw = node.raw(index)
        if len(raw) != len(expected):
            raise Violation(f"prefix: volume {index} of {node.name} has {len(raw)} bytes, not {len(expected)}")
        if raw != expected:
            if node.leftover and (state.role == PRIMARY or state.unclean):
                patched = [bytearray(v) for v in node.image.volumes]
                for change in node.leftover:
                    apply(patched, change)
                if raw == patched[index]:
                    continue
            at = first_difference(raw, expected)
            raise Violation(
                f"prefix: volume {index} of {node.name} ({state.role}, {state.copy}) differs at byte {at} (block "
                f"{at // BLOCK_BYTES}) from its history at {pos}"
            )


def first_difference(a: bytearray, b: bytearray) -> int:
    """Index of the first byte that differs."""
    x, y = np.frombuffer(a, dtype=np.uint8), np.frombuffer(b, dtype=np.uint8)
    return int(np.flatnonzero(x != y)[0])


def differing_blocks(one: Node, other: Node) -> set[tuple[int, int]]:
    """(volume, block) where the two nodes' volumes differ; volumes that they do not share are not looked at."""
    found: set[tuple[int, int]] = set()
    for index in shared_volumes(one, other):
        a, b = one.raw(index), other.raw(index)
        if a == b:
            continue
        for block in range(-(-len(a) // BLOCK_BYTES)):
            part = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
            if a[part] != b[part]:
                found.add((index, block))
    return found


def shared_volumes(one: Node, other: Node) -> list[int]:
    """Indexes of the volumes that both running nodes have, with one size: what is not so is copied as a whole."""
    assert one.target is not None and other.target is not None
    both = [{(*identity(v), v["size"]) for v in n.target.engine.state.volumes} for n in (one, other) if n.target]
    return sorted(index for index, _, _ in both[0] & both[1])


def check_tracked(one: Node, other: Node) -> None:
    """Every difference between two running nodes is known to the bitmaps that a resync would use."""
    if one.target is None or other.target is None or one.target.engine.failed or other.target.engine.failed:
        return
    engines = (one.target.engine, other.target.engine)
    if any(e.state.mode == UNTRACKED or e.state.copy == "fresh" or not e.state.hist for e in engines):
        return
    differing = differing_blocks(one, other)
    if not differing:
        return
    hists, floors = (one.hist(), other.hist()), [_floor(e) for e in engines]
    c = common_position(hists[0], floors[0], hists[1], floors[1])
    allowed: set[tuple[int, int]] = set()
    for node, engine in zip((one, other), engines, strict=True):
        bit = engine.bitmaps.newest_for(c)
        if bit is None:
            return  # a full copy would follow
        for index, m in engine.bitmaps.present():
            allowed |= {
                (index, int(b))
                for b in np.flatnonzero(
                    m.array & (bit | (TODO if engine.state.copying and engine.state.copy_id else 0))
                )
            }
        allowed |= _received_not_applied(node.truth, engine)
    missing = differing - allowed
    if missing:
        raise Violation(f"tracked: blocks {sorted(missing)} differ, no bitmap from {c + 1} on marks them")


def _floor(engine: GroupEngine) -> int:
    return engine.page[HEAD_SEQ] if engine.state.copy == OK else engine.state.floor


def _received_not_applied(truth: Truth, engine: GroupEngine) -> set[tuple[int, int]]:
    page = engine.page
    if engine.state.role == PRIMARY:
        return set()
    found: set[tuple[int, int]] = set()
    for seq in range(page[APPLIED_SEQ] + 1, page[HEAD_SEQ] + 1):
        for change in truth.at(seq):  # of whatever epoch: the history entry comes only with the epoch's record
            found |= blocks_of_change(change)
    return found


def blocks_of_change(change: Change) -> set[tuple[int, int]]:
    """(volume, block) that a change touches."""
    if change.listing:
        return set()
    last = (change.offset + change.length - 1) // BLOCK_BYTES
    return {(change.volume, block) for block in range(change.offset // BLOCK_BYTES, last + 1)}


def check_honest(node: Node) -> None:
    """What the session says against what the target has."""
    if node.target is None or node.replicator is None or node.target.engine.failed:
        return
    if node.target.engine.state.journal_error:
        return  # found at its start; a replicator that outlived the target before is about to notice
    fed = [edge for edge in node.replicator.edges.values() if edge.flow.receiver is not None]
    if len(fed) > 1:
        raise Violation(f"one: {node.name} receives from {', '.join(edge.peer.name for edge in fed)} at once")
    if fed and fed[0].session.state is State.TARGET and node.target.engine.state.copy in (RESYNC, FRESH):
        raise Violation(
            f"honest: the session of {node.name} calls its copy complete, the target {node.target.engine.state.copy}"
        )


def check_claims(node: Node) -> None:
    """What status would say of each edge of a node, against the positions there were."""
    if node.target is None or node.replicator is None or node.target.engine.failed:
        return
    for edge in node.replicator.edges.values():
        if edge.session.state not in (State.TARGET, State.SOURCE, State.SYNC_SOURCE):
            continue
        claim = edge.claim()
        if claim["bound"] != "exact":
            continue
        fed, (top, hops) = (edge.peer, (node, 0)) if edge.flow.shipper is not None else (node, _primary_above(node))
        if fed.target is None or top is None:
            continue
        if fed is not node and node.clock.now - fed.lost_some_s < TRAVEL_S:
            continue  # what it lost nobody else has heard of
        unseen_s = TRAVEL_S + WAITS_S * max(0, hops - 1)
        epoch, head = top.head_at(node.clock.now - claim["as_of_s"] - unseen_s)
        held = Page(fed.page)[HEAD_SEQ]
        if epoch == fed.target.engine.epoch and head - held > claim["writes"]:
            raise Violation(
                f"honest: {node.name} says that {fed.name} lacks exactly {claim['writes']} records as of "
                f"{claim['as_of_s']:.2f} s ago, and it is at {held}, {top.name} was at {head} then"
            )


TRAVEL_S = 0.7
"""The longest "shortest time" that a beacon takes from its time on to the reader: a word may seem so much younger."""
WAITS_S = 2.3
"""The same for each node in the middle, where it waits for the next BEAT besides."""


def _primary_above(node: Node) -> tuple[Node | None, int]:
    """The running primary that a node follows, None when there is none, and how many links away it is."""
    for hops in range(len(node.world.nodes)):
        if node.target is None or node.target.engine.state.role == PRIMARY:
            return (node if node.target is not None else None), hops
        above = node.world.by_id.get(node.target.engine.state.upstream)
        if above is None:
            return None, 0
        node = above
    return None, 0


def check_one_primary(nodes: Sequence[Node]) -> None:
    """No two primaries write one history."""
    states = [n.target.engine.state for n in nodes if n.target is not None]
    epochs = [state.hist[-1][0] for state in states if state.role == PRIMARY and state.hist]
    if len(set(epochs)) < len(epochs):
        raise Violation(f"one: two primaries in one epoch: {[hex(epoch) for epoch in epochs]}")


def check_holds(node: Node, epoch: int, seq: int) -> None:
    """Called when a host is told that a relay has a write: what is in sync below the relay has it too."""
    pos = Page(node.page)[HEAD_SEQ]
    if pos < seq:
        raise Violation(f"promises: record {seq} of epoch {epoch:#x} was answered, {node.name} is in sync and at {pos}")


def check_consent(node: Node, hist: Hist, pos: int, allowed: bool) -> None:
    """Called when `node` attaches to a source with this history: it gives up nothing it had answered hosts for."""
    if allowed:
        return
    for epoch, seq in node.answered_alone:
        if not node.truth.holds(hist, pos, epoch, seq):
            raise Violation(
                f"consent: {node.name} gives up record {seq} of epoch {epoch:#x}, which it had answered, unasked"
            )


def check_promises_kept(node: Node, hist: Hist, pos: int, allowed: bool) -> None:
    """Called when `node` attaches to a source with this history: no promised write goes unless the operator said so."""
    if allowed or node.target is None or node.target.engine.state.copy != OK:
        return
    for promise in node.truth.promises:
        if promise.holder == node.name and not node.truth.holds(hist, pos, promise.epoch, promise.seq):
            raise Violation(
                f"promises: {node.name} gives up the promised record {promise.seq} of epoch {promise.epoch:#x}"
            )


def check_durable_promises(node: Node, hist: Hist, pos: int) -> None:
    """Called when a node comes back from a power loss: what was promised to be on its stable storage is."""
    for promise in node.truth.promises:
        if (
            promise.durable
            and promise.holder == node.name
            and not node.truth.holds(hist, pos, promise.epoch, promise.seq)
        ):
            raise Violation(
                f"promises: {node.name} is at {pos} after a power loss, without the durable record {promise.seq}"
            )


def check_handover(old: Node, new: Node) -> None:
    """Called when a switchover made `new` primary: it has everything the old primary answered."""
    assert new.target is not None
    hist, pos = new.hist(), new.target.engine.pos
    for epoch, seq in old.answered_alone:
        if not new.truth.holds(hist, pos, epoch, seq):
            raise Violation(f"handover: {new.name} became primary at {pos} without record {seq} of epoch {epoch:#x}")


def check_recovered(node: Node, engine: GroupEngine, *, power: bool) -> None:
    """Local durability of a primary that was started again; notes what a power loss left behind."""
    state = engine.state
    hist = [(int(e), int(b)) for e, b in state.hist]
    truth = node.truth
    promised = node.flushed_at if power else node.written_at
    if promised is not None and state.role == PRIMARY and state.mode in (JOURNAL, BITMAP):
        epoch, seq = promised
        known = any(e == epoch for e, _ in hist)
        if known and not truth.holds(hist, engine.pos, epoch, seq):
            what = "flushed" if power else "taken"
            raise Violation(
                f"durable: {node.name} has {what} record {seq} of epoch {epoch:#x} no more, it is at {engine.pos}"
            )
    interrupted, node.interrupted = node.interrupted, None
    if state.role != PRIMARY or state.mode == UNTRACKED:
        return
    if interrupted is not None and state.mode == BITMAP:
        # Its number may be given out, and any part of it be on disk; no host was answered.
        raw = bytes(node.raw(interrupted.volume)[interrupted.offset : interrupted.offset + interrupted.length])
        change = Change(interrupted.volume, interrupted.offset, interrupted.length, raw)
        if power:
            node.at_risk.append(change)
        elif (engine.epoch, engine.pos) not in truth.records:
            truth.add(engine.epoch, engine.pos, Kind.WRITE, change)
            node.at_risk.append(change)
    if not power:
        return
    node.answered_alone = [a for a in node.answered_alone if truth.holds(hist, engine.pos, *a)]
    if state.mode == JOURNAL:
        _learn_last_record(truth, engine)
    node.image.move(hist, engine.pos)
    epochs = {e for e, _ in hist} | set(node._epochs)  # those of which every record was lost are in the history no more
    lost = [c for (e, s), c in truth.records.items() if c is not None and s > engine.pos and e in epochs]
    left = [c for e in epochs for c in truth.power_left.get(e, [])]
    risk = [*lost, *left, *node.leftover, *node.at_risk]
    node.leftover = []
    for index, expected in enumerate(node.image.volumes):
        raw = node.raw(index)
        if raw == expected:
            continue
        if len(raw) != len(expected):
            raise Violation(f"durable: volume {index} of {node.name} has {len(raw)} bytes, not {len(expected)}")
        touched = np.zeros(len(expected), dtype=bool)
        for change in risk:
            if change.volume == index and not change.listing:
                touched[change.offset : change.offset + change.length] = True
        differs = np.frombuffer(raw, dtype=np.uint8) != np.frombuffer(expected, dtype=np.uint8)
        if (differs & ~touched).any():
            at = int(np.flatnonzero(differs & ~touched)[0])
            raise Violation(
                f"durable: volume {index} of {node.name} changed at {at} in a power loss, no lost write explains it"
            )
        for sector in sorted({int(b) // 512 for b in np.flatnonzero(differs)}):
            data = bytes(raw[sector * 512 : sector * 512 + 512])
            node.leftover.append(Change(index, sector * 512, 512, data))
    node.at_risk.clear()


def _learn_last_record(truth: Truth, engine: GroupEngine) -> None:
    """A record whose write was cut off by the power loss may be whole on disk: then it counts, though not published."""
    pos = engine.pos
    if pos < engine.page[TAIL_SEQ]:
        return
    off = engine.journal.find(pos)
    h = engine.journal.header_at(off)
    if (h.epoch, pos) not in truth.records:
        payload = engine.journal.read(off + HEADER_BYTES, h.payload_len) if h.payload_len else None
        truth.add(h.epoch, pos, h.kind, change_of_record(h, payload))


def check_promises(node: Node) -> None:
    """Called when `node` became primary by takeover: every promised write is in its history."""
    assert node.target is not None
    hist, pos = node.hist(), node.target.engine.pos
    for promise in node.truth.promises:
        if promise.holder == node.name and not node.truth.holds(hist, pos, promise.epoch, promise.seq):
            raise Violation(
                f"promises: {node.name} took over at {pos} without record {promise.seq} of epoch {promise.epoch:#x}"
            )


def check_read(target: Target, request: Request) -> None:
    """Called when a read is answered."""
    engine = target.engine
    if engine.state.role != PRIMARY or request.epoch != engine.epoch or not request.met:
        return
    durable = engine.state.policy.ack == "durable"
    for edge in (e for e in engine.state.edges if e.sync_on):
        at = target.node.host_writes.said(engine, edge, durable=durable)
        if at < request.met:
            raise Violation(
                f"reads: a host of {target.node.name} was told of write {request.met}, the synchronous peer of edge "
                f"{edge.slot} was never known to be beyond {at}"
            )
        target.promise_met(edge, request.epoch, request.met, durable)
