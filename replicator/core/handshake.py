"""The handshake decision: from two HELLOs, what this pair does now.

The idea: derive a few facts from both HELLOs, look them up in one labelled table, and let both sides do it. The facts are
symmetric (they name a *lead* and a *follow* side by role and history, never "me" and "you"), so both sides find the same
row, and they compare their verdicts before anything is done.

Invariants: every combination of facts matches exactly one row (tests walk all of them). No row makes a node overwrite
writes it acknowledged to hosts unless the tail is empty or the operator named that node. No row lets two primaries go on as
a pair. A side that must give up the primary role does that first and durably, then the handshake runs again with the facts
that hold afterwards.

lead and follow: with one primary, lead is the primary. With two, lead is the one the operator did not name for discarding,
else the one with the newer history. With none, the table does not use them.

Sources: seed 000 sections 8 and 9 (H0-06, H0-13, H0-20, H0-21, H0-29), DRBD's sync rules, TigerBeetle's recovery table.
docs/HANDSHAKE.md is generated from this file.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import NamedTuple

from replicator.core.epochs import Comparison, Relation, common_position, compare, epochs_of_tail, tag_of
from replicator.core.hello import Hello


class Action(enum.Enum):
    """What the pair does after the verdicts agree."""

    REFUSE = "refuse"  # nothing is shipped; both sides stay as they are until the operator acts
    WAIT = "wait"  # stay connected, ship nothing
    STEP_DOWN = "step-down"  # `target` gives up the primary role durably, then a new handshake
    PROMOTE = "promote"  # `target` completes a switchover the other side has begun
    STREAM = "stream"  # ship records after the follow side's position
    RESUME = "resume"  # go on with the copy that was under way, records after the follow side's position
    COPY = "copy"  # exchange bitmaps and copy the union of what either side touched since c


class Facts(NamedTuple):
    """What the decision depends on. Values are listed in DOMAIN."""

    compat: str
    split: str
    primaries: str
    handover: str
    relation: str
    tail: str
    consent: str
    follow: str
    journal: str
    image: str


DOMAIN: dict[str, tuple[str, ...]] = {
    "compat": ("ok", "version", "group", "volumes"),  # what does not fit, the first of these
    "split": ("no", "yes"),  # either side's operator wants the pair split
    "primaries": ("one", "both", "none"),
    "handover": ("no", "yes"),  # no primary, and one side has durably handed the role to the other, which lacks nothing
    "relation": tuple(r.value for r in Relation),  # of follow's history to lead's
    # records of follow that lead's history lacks: none that hosts wrote; received from lead, which lost them itself;
    # or written by hosts on follow (or on a third node) and acknowledged
    "tail": ("empty", "received", "acknowledged"),
    "consent": ("no", "yes"),  # the operator named the follow side for discarding
    "follow": ("ok", "resumable", "resync"),  # copy complete; copy under way and still known to lead; under way, unknown
    "journal": ("covers", "lost"),  # lead's journal holds every record after follow's position
    # unclean: blocks differ that no record after follow's position tells of (power loss left newer ones on a disk, or lead
    # began a copy that follow never adopted)
    "image": ("exact", "unclean"),
}


class Row(NamedTuple):
    """One row of the table: a label, the values it matches ("*" for any, "a|b" for either), what to do and why."""

    label: str
    when: Facts
    action: Action
    acts: str  # the side the action names as target: "lead", "follow" or ""
    cause: str


def _row(label: str, action: Action, acts: str, cause: str, **when: str) -> Row:
    return Row(label, Facts(**{name: when.get(name, "*") for name in Facts._fields}), action, acts, cause)


_GO = {"compat": "ok", "split": "no"}
_ONE = {**_GO, "primaries": "one"}
_BOTH = {**_GO, "primaries": "both"}
_NONE = {**_GO, "primaries": "none"}

TABLE: tuple[Row, ...] = (
    # What cannot be a pair at all.
    _row("version", Action.REFUSE, "", "the nodes run versions of farstripe that do not speak the same protocol", compat="version"),
    _row("wrong-group", Action.REFUSE, "", "the nodes were joined over different groups", compat="group"),
    _row("size-mismatch", Action.REFUSE, "", "the volumes of the two sides differ in number or size", compat="volumes"),
    _row("split-wanted", Action.WAIT, "", "an operator split the pair and has not asked for a resync", compat="ok", split="yes"),
    # No primary.
    _row("finish-handover", Action.PROMOTE, "follow", "the link or a process failed in a switchover after the old primary had stepped down", **_NONE, handover="yes"),
    _row("no-primary", Action.WAIT, "", "neither side is primary: both restarted as secondaries, or a switchover was left half way", **_NONE, handover="no"),
    # Two primaries.
    _row("dual-primary", Action.REFUSE, "", "both sides are primary and neither took over from the other: a group was made primary twice", **_BOTH, relation="same|fresh"),
    _row("stale-primary", Action.STEP_DOWN, "follow", "follow was replaced by a takeover and holds nothing its successor lacks", **_BOTH, relation="behind"),
    _row("superseded", Action.STEP_DOWN, "follow", "follow was replaced by a takeover and holds records its successor never received", **_BOTH, relation="parted"),
    _row("split-brain", Action.REFUSE, "", "both sides opened a history of their own after they lost each other, and hosts wrote to both", **_BOTH, relation="forked", tail="acknowledged", consent="no"),
    _row("split-brain-resolved", Action.STEP_DOWN, "follow", "two histories, and the operator named the one to give up", **_BOTH, relation="forked", tail="acknowledged", consent="yes"),
    _row("split-brain-empty", Action.STEP_DOWN, "follow", "two histories, but no host wrote to the one that gives way", **_BOTH, relation="forked", tail="empty|received"),
    _row("unrelated", Action.REFUSE, "", "both sides hold data and no common history: one was made anew, or belongs to another pair", **_GO, primaries="one|both", relation="unrelated", consent="no"),
    _row("unrelated-step-down", Action.STEP_DOWN, "follow", "no common history, and the operator named the side to give up", **_BOTH, relation="unrelated", consent="yes"),
    _row("outdated-both", Action.STEP_DOWN, "lead", "the operator named the side with the newer history, yet it alone continues the other's", **_BOTH, relation="outdated", consent="no"),
    _row("superseded-chosen", Action.STEP_DOWN, "follow", "the operator prefers the former primary: the side that took over gives way", **_BOTH, relation="outdated", consent="yes"),
    # One primary: nothing of follow stands against it.
    _row("full-fresh", Action.COPY, "follow", "follow is new and holds nothing", **_ONE, relation="fresh"),
    _row("stream", Action.STREAM, "follow", "the link was away, and the journal kept what was written meanwhile", **_ONE, relation="same|behind", follow="ok", journal="covers", image="exact"),
    _row("diff-journal-lost", Action.COPY, "follow", "follow was away longer than the journal reaches back; bitmaps know the blocks", **_ONE, relation="same|behind", follow="ok", journal="lost", image="exact"),
    _row("diff-unclean", Action.COPY, "follow", "a power loss left blocks on disk whose records are gone, or a copy was begun that follow never took up", **_ONE, relation="same|behind", follow="ok", image="unclean"),
    _row("resume-resync", Action.RESUME, "follow", "the link was cut during a copy; the source still knows what is left to copy", **_ONE, relation="same|behind", follow="resumable", journal="covers", image="exact"),
    _row("redo-resync-journal-lost", Action.COPY, "follow", "a copy was under way and the journal no longer reaches back to where it stopped", **_ONE, relation="same|behind", follow="resumable", journal="lost", image="exact"),
    _row("redo-resync-unclean", Action.COPY, "follow", "a copy was under way when a side lost power", **_ONE, relation="same|behind", follow="resumable", image="unclean"),
    _row("redo-resync", Action.COPY, "follow", "a copy was under way and its source was restarted or is another node now", **_ONE, relation="same|behind", follow="resync"),
    # One primary, and follow holds what the primary's history lacks.
    _row("diff-source-lost-power", Action.COPY, "follow", "the primary lost records it had sent but not yet made durable when its power failed; follow has them and gives them up", **_ONE, relation="parted|forked", tail="received"),
    _row("diff-diverged-tail", Action.COPY, "follow", "follow parted from the primary's history without any host write in its tail", **_ONE, relation="parted|forked", tail="empty"),
    _row("diff-discard", Action.COPY, "follow", "a former primary holds acknowledged writes its successor never got, and the operator gave them up", **_ONE, relation="parted|forked", tail="acknowledged", consent="yes"),
    _row("former-primary", Action.REFUSE, "", "a former primary holds acknowledged writes its successor never got; nobody has said they may go", **_ONE, relation="parted|forked", tail="acknowledged", consent="no"),
    _row("outdated-primary", Action.STEP_DOWN, "lead", "the secondary carries a newer history: it took over once, so the primary's time is over", **_ONE, relation="outdated", consent="no"),
    _row("outdated-discard", Action.COPY, "follow", "the secondary carries a newer history and the operator gave it up", **_ONE, relation="outdated", consent="yes"),
    _row("unrelated-discard", Action.COPY, "follow", "no common history, and the operator named the side to overwrite", **_ONE, relation="unrelated", consent="yes"),
)  # fmt: skip


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


def matches(row: Row, facts: Facts) -> bool:
    """True when every fact has a value the row allows."""
    return all(want == "*" or have in want.split("|") for want, have in zip(row.when, facts, strict=True))


def all_facts() -> list[Facts]:
    """Every combination of facts, possible in practice or not."""
    return [Facts(*values) for values in product(*DOMAIN.values())]


def look_up(facts: Facts) -> Row:
    """Return the row for `facts`. The table is total, so there always is one."""
    for row in TABLE:
        if matches(row, facts):
            return row
    raise AssertionError(f"handshake table has a hole at {facts}")


def decide(one: Hello, other: Hello) -> Decision:
    """Return the decision for two HELLOs. The order of the arguments does not matter."""
    lead, follow = _order(*sorted((one, other), key=lambda hello: hello.node))
    comparison = compare(lead.hist, lead.pos, follow.hist, follow.pos)
    facts = _facts(lead, follow, comparison)
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


def _order(a: Hello, b: Hello) -> tuple[Hello, Hello]:
    """Return (lead, follow) of two HELLOs sorted by node id."""
    if (a.role == "primary") != (b.role == "primary"):
        return (a, b) if a.role == "primary" else (b, a)
    discard = {a.discard, b.discard} & {a.node, b.node}
    if len(discard) == 1:
        return (b, a) if a.node in discard else (a, b)
    relation = compare(a.hist, a.pos, b.hist, b.pos).relation
    if relation is Relation.OUTDATED or (relation is Relation.PARTED and a.hist == b.hist):
        return b, a
    if relation in (Relation.FORKED, Relation.UNRELATED):
        return (b, a) if _weight(b) > _weight(a) else (a, b)
    return a, b


def _weight(hello: Hello) -> tuple[bool, int]:
    """Which of two forked histories leads: one that hosts wrote to, then the newer one."""
    return (hello.last_write > hello.hist[-1][1], hello.hist[-1][0]) if hello.hist else (False, 0)


def _facts(lead: Hello, follow: Hello, comparison: Comparison) -> Facts:
    primaries = {2: "both", 1: "one", 0: "none"}[(lead.role == "primary") + (follow.role == "primary")]
    named = {lead.discard, follow.discard} & {lead.node, follow.node}
    resumable = bool(follow.copy_id) and follow.copy_id == lead.copy_id and lead.state != "resync"
    copy = "ok" if follow.state != "resync" else "resumable" if resumable else "resync"
    return Facts(
        compat=_compat(lead, follow),
        split="yes" if lead.split or follow.split else "no",
        primaries=primaries,
        handover="yes" if primaries == "none" and _handover_complete(lead, follow) else "no",
        relation=comparison.relation.value,
        tail=_tail(lead, follow, comparison),
        consent="yes" if named == {follow.node} else "no",
        follow=copy,
        journal="covers" if _journal_covers(lead, follow) else "lost",
        image="unclean" if lead.unclean or follow.unclean or _copy_not_adopted(lead, follow) else "exact",
    )


def _copy_not_adopted(lead: Hello, follow: Hello) -> bool:
    """Lead began a copy, and the link broke before follow knew: lead's list still holds what follow needs."""
    return bool(lead.copy_id) and follow.copy_id != lead.copy_id and follow.pos < lead.synced


def _compat(a: Hello, b: Hello) -> str:
    if a.version != b.version:
        return "version"
    if a.group != b.group or a.node == b.node:
        return "group"
    return "ok" if a.volumes == b.volumes else "volumes"


def _handover_complete(a: Hello, b: Hello) -> bool:
    """One side names the other as its successor, and the successor holds all of it."""
    for old, new in ((a, b), (b, a)):
        if old.handover == new.node and not new.handover and new.state == "ok":
            relation = compare(new.hist, new.pos, old.hist, old.pos).relation
            return relation is Relation.SAME and new.durable >= old.pos
    return False


def _tail(lead: Hello, follow: Hello, comparison: Comparison) -> str:
    """What kind of records follow holds beyond the common point; see DOMAIN."""
    if comparison.relation in (Relation.FRESH, Relation.SAME, Relation.BEHIND):
        return "empty"
    if not comparison.y_tail or follow.last_write <= comparison.shared_upto:
        return "empty"
    tags = {tag_of(epoch) for epoch in epochs_of_tail(follow.hist, follow.pos, comparison.shared_upto)}
    return "received" if tags == {lead.tag} else "acknowledged"


def _journal_covers(lead: Hello, follow: Hello) -> bool:
    """Lead can stream every record after follow's position."""
    if lead.journal is None:
        return False
    first, last = lead.journal
    return first <= follow.pos + 1 and follow.pos <= last


def _bitmaps_cover(lead: Hello, follow: Hello, c: int) -> bool:
    """Both sides know which blocks they touched after c: a copy by difference is possible."""
    return bool(follow.hist) and all(min(side.starts, default=c + 2) <= c + 1 for side in (lead, follow))
