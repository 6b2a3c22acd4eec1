"""The decision table of the handshake: facts, actions, and one labelled row for each physical cause.

Every combination of facts matches exactly one row. How the facts are derived from two HELLOs says handshake.py.
docs/HANDSHAKE.md is generated from this file.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import NamedTuple

from replicator.core.epochs import Relation


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
    sync: str
    own: str


DOMAIN: dict[str, tuple[str, ...]] = {
    "compat": ("ok", "version", "group", "volumes"),  # what does not fit, the first of these
    "split": ("no", "yes"),  # either side's operator wants the pair split
    # relay: neither, but lead is fed by a third node, and follow by lead or nobody, or lead knows a newer history;
    # relay-busy: such a lead, whose own copy is not complete; relay-behind: such a lead, and follow is ahead of it in
    # the same history; rivals: neither, and both are fed by third nodes whose histories parted; given-up: lead is
    # primary, follow is fed by a third node of another history, and the operator named lead for discarding
    "primaries": ("one", "both", "none", "relay", "relay-busy", "relay-behind", "rivals", "given-up"),
    "handover": ("no", "yes"),  # no primary, and one side has durably handed the role to the other, which lacks nothing
    "relation": tuple(r.value for r in Relation),  # of follow's history to lead's
    # records of follow that lead's history lacks: none that hosts wrote; received from lead (through a relay: from the
    # primary above it), which lost them itself with its power; set-back: received from lead, which is primary and did
    # not: it lost no power, or had told follow that it has them on stable storage; given up with the line they are of,
    # which the operator took back to a marker, and not written on follow; or written by hosts on follow or elsewhere,
    # and acknowledged
    "tail": ("empty", "received", "set-back", "rewound", "acknowledged"),
    "consent": ("no", "yes"),  # the operator named the follow side for discarding
    # copy complete; complete, and stands at a marker until it is resumed; copy under way and still known to lead;
    # complete but for records it held and lost with its journal, some of which may be in its volumes in part, and which
    # lead has; under way, unknown
    "follow": ("ok", "stands", "resumable", "torn", "resync"),
    "journal": ("covers", "lost"),  # lead's journal holds every record after follow's position
    # unclean: blocks differ that no record after follow's position tells of (power loss left newer ones on a disk, or
    # lead began a copy that follow never adopted)
    "image": ("exact", "unclean"),
    "sync": ("no", "yes"),  # synchronous on either side: hosts were told that their writes are on both
    "own": ("no", "yes"),  # hosts wrote to lead after the histories parted
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
_RELAY = {**_GO, "primaries": "relay"}
_SOURCE = {**_GO, "primaries": "one|relay"}
"""There is a source: the primary, or a secondary that is fed by another node and complete."""

TABLE: tuple[Row, ...] = (
    # What cannot be a pair at all.
    _row(
        "version",
        Action.REFUSE,
        "",
        "the nodes run versions of farstripe that do not speak the same protocol",
        compat="version",
    ),
    _row("wrong-group", Action.REFUSE, "", "the nodes were joined over different groups", compat="group"),
    _row(
        "size-mismatch",
        Action.REFUSE,
        "",
        "the volumes of the two sides differ in number or size, and no change of them explains it",
        compat="volumes",
    ),
    _row(
        "split-wanted",
        Action.WAIT,
        "",
        "an operator split the pair and has not asked for a resync",
        compat="ok",
        split="yes",
    ),
    # No primary.
    _row(
        "finish-handover",
        Action.PROMOTE,
        "follow",
        "the link or a process failed in a switchover after the old primary had stepped down",
        **_NONE,
        handover="yes",
    ),
    _row(
        "no-primary",
        Action.WAIT,
        "",
        "neither side is primary: both restarted as secondaries, a switchover was left half way, or neither is fed by "
        "a node that the other could follow",
        **_NONE,
        handover="no",
    ),
    # No primary here, but one above.
    _row(
        "source-incomplete",
        Action.WAIT,
        "",
        "the node that feeds this one is being copied to itself; follow keeps its consistent image until that is done",
        **_GO,
        primaries="relay-busy",
    ),
    _row(
        "source-behind",
        Action.WAIT,
        "",
        "the node that feeds this one lacks records that follow holds (it lost power, or lags); it gets them first",
        **_GO,
        primaries="relay-behind",
    ),
    _row(
        "source-outdated",
        Action.WAIT,
        "",
        "follow carries a newer history than the node that feeds it, which has yet to hear of it",
        **_RELAY,
        relation="outdated",
        consent="no",
    ),
    # Two primaries.
    _row(
        "dual-primary",
        Action.REFUSE,
        "",
        "both sides are primary and neither took over from the other: a group was made primary twice",
        **_BOTH,
        relation="same|fresh",
    ),
    _row(
        "stale-primary",
        Action.STEP_DOWN,
        "follow",
        "follow was replaced by a takeover and holds nothing its successor lacks",
        **_BOTH,
        relation="behind",
    ),
    _row(
        "superseded",
        Action.STEP_DOWN,
        "follow",
        "follow was replaced by a takeover and holds records its successor never received",
        **_BOTH,
        relation="parted",
    ),
    _row(
        "split-brain",
        Action.REFUSE,
        "",
        "both sides opened a history of their own after they lost each other, and hosts wrote to both",
        **_BOTH,
        relation="forked",
        tail="acknowledged|set-back",
        consent="no",
    ),
    _row(
        "split-brain-resolved",
        Action.STEP_DOWN,
        "follow",
        "two histories, and the operator named the one to give up",
        **_BOTH,
        relation="forked",
        tail="acknowledged|set-back",
        consent="yes",
    ),
    _row(
        "split-brain-empty",
        Action.STEP_DOWN,
        "follow",
        "two histories, but no host wrote to the one that gives way",
        **_BOTH,
        relation="forked",
        tail="empty|received|rewound",
    ),
    _row(
        "unrelated",
        Action.REFUSE,
        "",
        "both sides hold data and no common history: one was made anew, or belongs to another pair",
        **_GO,
        primaries="one|both|relay",
        relation="unrelated",
        consent="no",
    ),
    _row(
        "unrelated-step-down",
        Action.STEP_DOWN,
        "follow",
        "no common history, and the operator named the side to give up",
        **_BOTH,
        relation="unrelated",
        consent="yes",
    ),
    _row(
        "outdated-both",
        Action.STEP_DOWN,
        "lead",
        "the operator named the side with the newer history, yet it alone continues the other's",
        **_BOTH,
        relation="outdated",
        consent="no",
    ),
    _row(
        "superseded-chosen",
        Action.STEP_DOWN,
        "follow",
        "the operator prefers the former primary: the side that took over gives way",
        **_BOTH,
        relation="outdated",
        consent="yes",
    ),
    # Two trees that meet.
    _row(
        "two-trees",
        Action.REFUSE,
        "",
        "both nodes are fed by others, and those have parted: hosts wrote to two primaries above them",
        **_GO,
        primaries="rivals",
    ),
    _row(
        "primary-given-up",
        Action.STEP_DOWN,
        "lead",
        "two histories met below this primary, and the operator named it as the one to give up",
        **_GO,
        primaries="given-up",
    ),
    # A source, and nothing of follow stands against it.
    _row("full-fresh", Action.COPY, "follow", "follow is new and holds nothing", **_SOURCE, relation="fresh"),
    _row(
        "stream",
        Action.STREAM,
        "follow",
        "the link was away, and the journal kept what was written meanwhile",
        **_SOURCE,
        relation="same|behind",
        follow="ok|stands",
        journal="covers",
        image="exact",
    ),
    _row(
        "diff-journal-lost",
        Action.COPY,
        "follow",
        "follow was away longer than the journal reaches back; bitmaps know the blocks",
        **_SOURCE,
        relation="same|behind",
        follow="ok",
        journal="lost",
        image="exact",
    ),
    _row(
        "diff-unclean",
        Action.COPY,
        "follow",
        "a power loss left blocks on disk whose records are gone, or a copy was begun that follow never took up",
        **_SOURCE,
        relation="same|behind",
        follow="ok",
        image="unclean",
    ),
    _row(
        "stands-journal-lost",
        Action.WAIT,
        "",
        "follow stands at a marker, and the journal does not reach back there any more: a copy would change its image",
        **_SOURCE,
        relation="same|behind",
        follow="stands",
        journal="lost",
        image="exact",
    ),
    _row(
        "stands-unclean",
        Action.WAIT,
        "",
        "follow stands at a marker, and a side lost power: only a copy makes them equal, which would change its image",
        **_SOURCE,
        relation="same|behind",
        follow="stands",
        image="unclean",
    ),
    _row(
        "resume-resync",
        Action.RESUME,
        "follow",
        "the link was cut during a copy; the source still knows what is left to copy",
        **_SOURCE,
        relation="same|behind",
        follow="resumable",
        journal="covers",
        image="exact",
    ),
    _row(
        "resend-lost-journal",
        Action.RESUME,
        "follow",
        "follow lost its journal with records that it had received; they are sent again",
        **_SOURCE,
        relation="same|behind",
        follow="torn",
        journal="covers",
        image="exact",
    ),
    _row(
        "redo-resync-journal-lost",
        Action.COPY,
        "follow",
        "a copy was under way, or records were lost with a journal, and lead's no longer reaches back to there",
        **_SOURCE,
        relation="same|behind",
        follow="resumable|torn",
        journal="lost",
        image="exact",
    ),
    _row(
        "redo-resync-unclean",
        Action.COPY,
        "follow",
        "a copy was under way when a side lost power",
        **_SOURCE,
        relation="same|behind",
        follow="resumable|torn",
        image="unclean",
    ),
    _row(
        "redo-resync",
        Action.COPY,
        "follow",
        "a copy was under way and its source was restarted or is another node now",
        **_SOURCE,
        relation="same|behind",
        follow="resync",
    ),
    # A source, and follow holds what the source's history lacks.
    _row(
        "diff-source-lost-power",
        Action.COPY,
        "follow",
        "the primary's power failed before records it had sent were durable there; follow gives them up",
        **_SOURCE,
        relation="parted|forked",
        tail="received",
        sync="no",
        follow="ok|resumable|torn|resync",
    ),
    _row(
        "redo-source-lost-power",
        Action.COPY,
        "follow",
        "the primary's power failed while it copied to follow, whose copy was not complete",
        **_SOURCE,
        relation="parted|forked",
        tail="received",
        sync="yes",
        follow="resumable|torn|resync",
    ),
    _row(
        "primary-lost-tail",
        Action.STEP_DOWN,
        "lead",
        "the primary's power failed and the secondary holds promised writes that it lost: the secondary goes on",
        **_ONE,
        relation="parted|forked",
        tail="received",
        sync="yes",
        follow="ok|stands",
        own="no",
        consent="no",
    ),
    _row(
        "lost-tail-conflict",
        Action.REFUSE,
        "",
        "the primary lost promised writes that the secondary holds, and hosts have written to it since",
        **_ONE,
        relation="parted|forked",
        tail="received",
        sync="yes",
        follow="ok|stands",
        own="yes",
        consent="no",
    ),
    _row(
        "relay-lost-tail",
        Action.REFUSE,
        "",
        "the primary and the node that feeds follow lost promised writes that follow holds; nobody said they may go",
        **_RELAY,
        relation="parted|forked",
        tail="received",
        sync="yes",
        follow="ok|stands",
        consent="no",
    ),
    _row(
        "lost-tail-discard",
        Action.COPY,
        "follow",
        "the primary lost writes that the secondary holds, and the operator gave them up",
        **_SOURCE,
        relation="parted|forked",
        tail="received",
        sync="yes",
        follow="ok|stands",
        consent="yes",
    ),
    _row(
        "set-back",
        Action.REFUSE,
        "",
        "the primary lacks records that it had sent and did not lose with its power: it was set back to an older "
        "state, as from a backup; nobody has said which side goes on",
        **_SOURCE,
        relation="parted|forked",
        tail="set-back",
        consent="no",
    ),
    _row(
        "set-back-discard",
        Action.COPY,
        "follow",
        "the primary was set back to an older state, and the operator gave up what follow holds beyond it",
        **_SOURCE,
        relation="parted|forked",
        tail="set-back",
        consent="yes",
    ),
    _row(
        "diff-diverged-tail",
        Action.COPY,
        "follow",
        "follow parted from the primary's history without any host write in its tail",
        **_SOURCE,
        relation="parted|forked",
        tail="empty",
        follow="ok|resumable|torn|resync",
    ),
    _row(
        "diff-rewound",
        Action.COPY,
        "follow",
        "a takeover at a marker took the history back; all that follow holds after the marker was given up with it",
        **_SOURCE,
        relation="parted|forked",
        tail="rewound",
        follow="ok|resumable|torn|resync",
    ),
    _row(
        "stands-source-lost-power",
        Action.WAIT,
        "",
        "follow stands at a marker, and the primary lost records that follow has: a copy would change its image",
        **_SOURCE,
        relation="parted|forked",
        tail="received",
        sync="no",
        follow="stands",
    ),
    _row(
        "stands-parted",
        Action.WAIT,
        "",
        "follow stands at a marker, and the history went on from another place: a copy would change its image",
        **_SOURCE,
        relation="parted|forked",
        tail="empty|rewound",
        follow="stands",
    ),
    _row(
        "diff-discard",
        Action.COPY,
        "follow",
        "a former primary, or a copy of one, holds acknowledged writes its successor lacks, and the operator gave them "
        "up",
        **_SOURCE,
        relation="parted|forked",
        tail="acknowledged",
        consent="yes",
    ),
    _row(
        "former-primary",
        Action.REFUSE,
        "",
        "a former primary, or a copy of one, holds acknowledged writes its successor lacks; nobody has said they may "
        "go",
        **_SOURCE,
        relation="parted|forked",
        tail="acknowledged",
        consent="no",
    ),
    _row(
        "outdated-primary",
        Action.STEP_DOWN,
        "lead",
        "the secondary carries a newer history: it took over once, so the primary's time is over",
        **_ONE,
        relation="outdated",
        consent="no",
    ),
    _row(
        "outdated-discard",
        Action.COPY,
        "follow",
        "the secondary carries a newer history and the operator gave it up",
        **_SOURCE,
        relation="outdated",
        consent="yes",
    ),
    _row(
        "unrelated-discard",
        Action.COPY,
        "follow",
        "no common history, and the operator named the side to overwrite",
        **_SOURCE,
        relation="unrelated",
        consent="yes",
    ),
)


def resolves(label: str, *, primaries: int = 1) -> str:
    """Whose writes have to be given up for a pair that was refused with `label` to go on: "follow", "either" for one of
    the two, "" when that is not what it takes. primaries: how many of the two nodes are primary."""
    if label in ("former-primary", "relay-lost-tail", "lost-tail-conflict", "set-back"):
        return "follow"
    if label == "unrelated":
        return "either" if primaries == 2 else "follow"
    return "either" if label in ("split-brain", "two-trees") else ""


def matches(row: Row, facts: Facts) -> bool:
    """True when every fact has a value the row allows."""
    return all(want == "*" or have in want.split("|") for want, have in zip(row.when, facts, strict=True))


def combinations(row: Row) -> list[Facts]:
    """Every combination of facts that the row matches."""
    allowed = [DOMAIN[n] if v == "*" else v.split("|") for n, v in zip(Facts._fields, row.when, strict=True)]
    return [Facts(*values) for values in product(*allowed)]


def all_facts() -> list[Facts]:
    """Every combination of facts, possible in practice or not."""
    return [Facts(*values) for values in product(*DOMAIN.values())]


def look_up(facts: Facts) -> Row:
    """Return the row for `facts`. The table is total, so there always is one."""
    for row in TABLE:
        if matches(row, facts):
            return row
    raise AssertionError(f"handshake table has a hole at {facts}")
