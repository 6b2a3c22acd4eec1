"""The handshake decision: from two HELLOs, what this pair does now.

The idea: derive a few facts from both HELLOs, look them up in one labelled table, and let both sides do it. The facts
are symmetric (they name a *lead* and a *follow* side by role and history, never "me" and "you"), so both sides find
the same row, and they compare their verdicts before anything is done.

Invariants: every combination of facts matches exactly one row (tests walk all of them). No row makes a node overwrite
writes it acknowledged to hosts unless the tail is empty or the operator named that node. No row lets two primaries go
on as a pair. A side that must give up the primary role does that first and durably, then the handshake runs again
with the facts that hold afterwards.

lead and follow: with one primary, lead is the primary. With two, lead is the one the operator did not name for
discarding, else the one with the newer history. With none, lead is the relay where there is one: a secondary that is
fed by a third node, and follow is fed by lead or by nobody; where both are fed by third nodes, the one with the newer
history, or the one that the operator did not name. Without a relay the table does not use them.

Sources: seed 000 sections 8 and 9 (H0-06, H0-13, H0-20, H0-21, H0-29), DRBD's sync rules, TigerBeetle's recovery table.
The table itself is in decisions.py; docs/HANDSHAKE.md is generated from it.
"""

from __future__ import annotations

from typing import NamedTuple

from replicator.core.decisions import Action, Facts, look_up
from replicator.core.epochs import Comparison, Relation, common_position, compare, epochs_of_tail, gave_up, tag_of
from replicator.core.hello import Hello

__all__ = ["Action", "Decision", "Facts", "decide"]


class Decision(NamedTuple):
    """The verdict both sides must reach."""

    label: str
    action: Action
    lead: str  # node id; the copy or shipping source where there is one
    follow: str  # node id
    acts: str  # node id the action names (STEP_DOWN, PROMOTE: who; COPY, STREAM, RESUME: who receives), "" for none
    c: int  # common position
    from_seq: int  # first seq to ship for STREAM and RESUME, else 0
    full: bool  # COPY without usable bitmaps: every block
    lost_records: int  # records of `follow` (or of who steps down) that the action gives up or would give up
    facts: Facts
    cause: str

    def verdict(self) -> dict[str, object]:
        """The part both sides compare."""
        return {
            "label": self.label,
            "lead": self.lead,
            "acts": self.acts,
            "c": self.c,
            "from_seq": self.from_seq,
            "full": self.full,
        }


def decide(one: Hello, other: Hello) -> Decision:
    """Return the decision for two HELLOs. The order of the arguments does not matter."""
    first, second = sorted((one, other), key=lambda hello: hello.node)
    relay = _relay(first, second) if one.version == other.version else None
    lead, follow = relay or (_order(first, second) if one.version == other.version else (first, second))
    comparison = compare(lead.hist, lead.pos, follow.hist, follow.pos)
    facts = _facts(lead, follow, comparison, relay is not None)
    row = look_up(facts)
    c = common_position(lead.hist, lead.floor, follow.hist, follow.floor)
    acts = {"lead": lead.node, "follow": follow.node, "": ""}[row.acts]
    if row.action is Action.PROMOTE:
        acts = follow.handover or lead.handover
    ships = row.action in (Action.STREAM, Action.RESUME)
    lost = comparison.x_tail if row.acts == "lead" else comparison.y_tail
    return Decision(
        label=row.label,
        action=row.action,
        lead=lead.node,
        follow=follow.node,
        acts=acts,
        c=c,
        from_seq=follow.pos + 1 if ships else 0,
        full=row.action is Action.COPY and not _bitmaps_cover(lead, follow, c),
        lost_records=lost,
        facts=facts,
        cause=row.cause,
    )


def _relay(a: Hello, b: Hello) -> tuple[Hello, Hello] | None:
    """Return (lead, follow) of two secondaries of which one is a source for the other, None when neither is."""
    if "primary" in (a.role, b.role):
        return None
    fed = [x.upstream not in ("", y.node) for x, y in ((a, b), (b, a))]
    if fed == [True, True]:
        for lead, follow in ((a, b), (b, a)):
            if a.hist != b.hist and compare(lead.hist, lead.pos, follow.hist, follow.pos).relation in _NEWER:
                return lead, follow
            if _rivals(a, b) and _named(a, b) == {follow.node}:
                return lead, follow
        return None
    return (a, b) if fed[0] else (b, a) if fed[1] else None


def _rivals(a: Hello, b: Hello) -> bool:
    """Two secondaries in trees of their own, whose histories parted."""
    fed = a.upstream not in ("", b.node) and b.upstream not in ("", a.node) and "primary" not in (a.role, b.role)
    return fed and compare(a.hist, a.pos, b.hist, b.pos).relation in (Relation.FORKED, Relation.UNRELATED)


def _given_up(lead: Hello, follow: Hello, comparison: Comparison) -> bool:
    """The operator named a primary that meets a node of another tree."""
    apart = comparison.relation in (Relation.PARTED, Relation.FORKED) and follow.state == "ok"
    return apart and follow.upstream not in ("", lead.node) and _named(lead, follow) == {lead.node}


_NEWER = (Relation.BEHIND, Relation.PARTED)
"""Relations of a follow side to a lead that has opened epochs which follow lacks, and not the other way round."""


def _order(a: Hello, b: Hello) -> tuple[Hello, Hello]:
    """Return (lead, follow) of two HELLOs sorted by node id."""
    if (a.role == "primary") != (b.role == "primary"):
        return (a, b) if a.role == "primary" else (b, a)
    discard = _named(a, b)
    if len(discard) == 1:
        return (b, a) if a.node in discard else (a, b)
    relation = compare(a.hist, a.pos, b.hist, b.pos).relation
    if relation is Relation.OUTDATED or (relation is Relation.PARTED and a.hist == b.hist):
        return b, a
    if relation in (Relation.FORKED, Relation.UNRELATED):
        return (b, a) if _weight(b) > _weight(a) else (a, b)
    return a, b


def _named(a: Hello, b: Hello) -> set[str]:
    """The nodes whose own writes the operator has given up. A node that has followed another history since then holds
    writes of somebody else, and the leave does not cover those."""
    newest = {side.node: side.hist[-1][0] if side.hist else 0 for side in (a, b)}
    return {
        side.discard for side in (a, b) if side.discard in newest and side.discard_epoch in (0, newest[side.discard])
    }


def _weight(hello: Hello) -> tuple[bool, int]:
    """Which of two forked histories leads: one that hosts wrote to, then the newer one."""
    return (hello.last_write > hello.hist[-1][1], hello.hist[-1][0]) if hello.hist else (False, 0)


def _facts(lead: Hello, follow: Hello, comparison: Comparison, relay: bool) -> Facts:
    primaries = {2: "both", 1: "one", 0: "none"}[(lead.role == "primary") + (follow.role == "primary")]
    if relay:
        behind = lead.hist == follow.hist and follow.pos > lead.pos
        primaries = "relay-busy" if lead.state != "ok" else "relay-behind" if behind else "relay"
    elif primaries == "none" and _rivals(lead, follow):
        primaries = "rivals"
    elif primaries == "one" and _given_up(lead, follow, comparison):
        primaries = "given-up"
    named = _named(lead, follow)
    resumable = bool(follow.copy_id) and follow.copy_id == lead.copy_id and lead.state != "resync"
    torn = "torn" if _torn(lead, follow) else "resync"
    whole = "stands" if follow.stands and lead.stands is not None else "ok"  # else lead knows nothing of this
    copy = whole if follow.state != "resync" else "resumable" if resumable else torn
    return Facts(
        compat=_compat(lead, follow, comparison),
        split="yes" if lead.split or follow.split else "no",
        primaries=primaries,
        handover="yes" if primaries == "none" and _handover_complete(lead, follow) else "no",
        relation=comparison.relation.value,
        tail=_tail(lead, follow, comparison),
        consent="yes" if named == {follow.node} else "no",
        follow=copy,
        journal="covers" if _journal_covers(lead, follow) else "lost",
        image="unclean" if lead.unclean or follow.unclean or _copy_not_adopted(lead, follow) else "exact",
        sync="yes" if lead.sync or follow.sync else "no",
        own="yes" if lead.last_write > comparison.shared_upto else "no",
    )


def _torn(lead: Hello, follow: Hello) -> bool:
    """Follow lacks nothing but records it once held, and they are the ones that lead has."""
    if lead.torn is None or not follow.torn or lead.state == "resync":
        return False
    return compare(lead.hist, lead.pos, follow.hist, follow.torn).relation in (Relation.SAME, Relation.BEHIND)


def _copy_not_adopted(lead: Hello, follow: Hello) -> bool:
    """Lead began a copy, and the link broke before follow knew: lead's list still holds what follow needs."""
    return bool(lead.copy_id) and follow.copy_id != lead.copy_id and follow.pos < lead.synced


def _compat(lead: Hello, follow: Hello, comparison: Comparison) -> str:
    if lead.version != follow.version:
        return "version"
    if lead.group != follow.group or lead.node == follow.node:
        return "group"
    return "volumes" if lead.volumes != follow.volumes and _same_list(lead, follow, comparison) else "ok"


def _same_list(lead: Hello, follow: Hello, comparison: Comparison) -> bool:
    """Both sides have to have the same volumes: follow's history is a part of lead's, and no change of the volumes lies
    between the positions that the lists are of.

    Elsewhere follow gets the changes that it lacks as records, or lead's list with a copy.
    """
    prefix = comparison.relation in (Relation.SAME, Relation.BEHIND)
    earlier, later = sorted((lead, follow), key=lambda side: side.listed)
    return prefix and lead.state == follow.state == "ok" and earlier.listed >= later.changed


def _handover_complete(a: Hello, b: Hello) -> bool:
    """One side names the other as its successor, and the successor holds all that hosts wrote to it."""
    for old, new in ((a, b), (b, a)):
        if old.handover == new.node and not new.handover and new.state == "ok":
            found = compare(new.hist, new.pos, old.hist, old.pos)
            if found.relation in (Relation.UNRELATED, Relation.FRESH):
                return False
            return old.last_write <= found.shared_upto and new.durable >= min(old.pos, found.shared_upto)
    return False


def _tail(lead: Hello, follow: Hello, comparison: Comparison) -> str:
    """What kind of records follow holds beyond the common point; see DOMAIN."""
    if comparison.relation in (Relation.FRESH, Relation.SAME, Relation.BEHIND):
        return "empty"
    if not comparison.y_tail or follow.last_write <= comparison.shared_upto:
        return "empty"
    tags = {tag_of(epoch) for epoch in epochs_of_tail(follow.hist, follow.pos, comparison.shared_upto)}
    if _rewound(lead, follow) and follow.tag not in tags:
        return "rewound"
    source = lead.tag if lead.role == "primary" or not lead.hist else tag_of(lead.hist[-1][0])
    if tags != {source}:
        return "acknowledged"
    return "set-back" if lead.role == "primary" and not _lost_power(lead, follow, comparison) else "received"


def _lost_power(lead: Hello, follow: Hello, comparison: Comparison) -> bool:
    """What lead lacks of what it had sent it can have lost with its power: it was not on stable storage there.

    That it lost power is forgotten once it has begun the copy that follow then needs, also if follow has yet to take
    that up.
    """
    told = follow.source_durable if lead.source_durable is not None else None
    return (lead.unclean or _copy_not_adopted(lead, follow)) and (told or 0) <= comparison.shared_upto


def _rewound(lead: Hello, follow: Hello) -> bool:
    """All that follow holds beyond lead's line was given up when the operator took that line back to a marker."""
    if lead.rewound is None or follow.rewound is None:
        return False
    return gave_up(lead.hist, lead.rewound, follow.hist, follow.pos)


def _journal_covers(lead: Hello, follow: Hello) -> bool:
    """Lead can stream every record after follow's position."""
    if lead.journal is None:
        return False
    first, last = lead.journal
    return first <= follow.pos + 1 and follow.pos <= last


def _bitmaps_cover(lead: Hello, follow: Hello, c: int) -> bool:
    """Both sides know which blocks they touched after c: a copy by difference is possible."""
    return bool(follow.hist) and all(min(side.starts, default=c + 2) <= c + 1 for side in (lead, follow))
