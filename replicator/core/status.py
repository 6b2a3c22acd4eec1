"""The state of a pair in one word, and the explanation of it.

One function from facts to a row; `farstripe status` shows the word, `farstripe explain` the whole row, alerts go by
`level`. The facts are the target's group.status and Session.facts(); either may be empty when its process does not
run. A word is never better than the truth: what is not known to hold is not claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from replicator.core import conditions
from replicator.core.conditions import feeds
from replicator.core.rpo import FLOWING, fed
from replicator.core.takeover import lost_text, usable_pos

Facts = dict[str, Any]


class Word(NamedTuple):
    """One row. Texts may use {group}, {peer}, {pair} (both), {lag}, {todo}, {reason}, {waits}, {full}, {cause}, {lost},
    {follow}, {holds}, {without}, {force}, {refused}, {refused_on}, {instead}, {plan}; a command that is empty is left
    out."""

    word: str
    level: str  # "ok" | "busy" | "warn" | "bad"
    when: Callable[[Facts, Facts], bool]
    why: str
    means: str
    then: str
    commands: tuple[str, ...] = ()
    operator: bool = False
    """Only an operator ends it: waiting for it to pass is in vain."""


NO_PAIR, STRANGER = "no-pair", "stranger"
"""Why the peer sent us away, facts["turned_away"]: it has no such pair (any more); one of us does not know the other's
certificate (any more)."""


def _label(facts: Facts) -> str:
    return str((facts.get("decision") or {}).get("label", "")) if facts.get("linked") else ""


def _in(*states: str) -> Callable[[Facts, Facts], bool]:
    return lambda s, f: f.get("session") in states


def _copy_without_journal(status: Facts) -> bool:
    """A copy lost its journal and nothing else."""
    return status.get("role") == "secondary" and bool((status.get("journal") or {}).get("error"))


def _wants_sync(status: Facts) -> bool:
    return bool((status.get("policy") or {}).get("mode") == "sync")


def _turned_away(kind: str) -> Callable[[Facts, Facts], bool]:
    return lambda s, f: (
        f.get("turned_away") == kind and not f.get("linked") and f.get("session") in ("down", "dialling")
    )


def _refused(*labels: str) -> Callable[[Facts, Facts], bool]:
    return lambda s, f: f.get("session") == "refused" and _label(f) in labels


TABLE: tuple[Word, ...] = (
    Word(
        "TARGET-DOWN",
        "bad",
        lambda s, f: not s,
        "the target process of this node does not answer",
        "no volume of this node is served, and a copy here is not applied",
        "start it; the journal carries on from where it was",
        ("farstripe node start", "farstripe events"),
    ),
    Word(
        "UNREADABLE",
        "bad",
        lambda s, f: bool(s.get("unread_journal")),
        "the journal of this node could not be read when it started: {reason}",
        "no write is taken here, and nothing shipped or received; the volumes can be read: {holds}",
        "make the journal readable (mount its disk) and restart this node; if it is gone for good: {without}",
        ("farstripe group journal replace {group}{force}", "farstripe takeover {group}  (on {peer})"),
        operator=True,
    ),
    Word(
        "DAMAGED",
        "bad",
        lambda s, f: bool(s.get("damaged_at")) and s.get("role") == "secondary",
        "record {damaged} in the journal of this node is damaged and cannot be applied ({reason})",
        "the copy stands at record {whole}, its last consistent instant; what was received after that is of no use "
        "here",
        "wait: as soon as {peer} is connected it sends again what is wanted, or the difference. If {peer} is lost: "
        "give the group a new journal, which gives up what cannot be applied, and take over",
        ("farstripe pair wait {pair}", "farstripe group journal replace {group}  (if {peer} is lost)"),
    ),
    Word(
        "FAILED",
        "bad",
        lambda s, f: bool(s.get("failed")) and not _copy_without_journal(s),
        "a disk of this node failed: {reason}",
        "this side takes no more writes; what the peer holds is not touched",
        "where this is the primary, take over on the peer; or repair the disk and restart this node; what cannot be "
        "repaired: delete the group here (--force) and the pair there, and pair again, which begins with a full copy",
        ("farstripe pool status", "farstripe takeover {group}  (on {peer})"),
        operator=True,
    ),
    Word(
        "APPLY-STOPPED",
        "bad",
        lambda s, f: bool(s.get("apply_error")) and not _copy_without_journal(s),
        "what was received cannot be applied here: {reason}",
        "the copy stays at its last consistent instant and receives as long as its journal has room; then the primary "
        "does what its policy for a full journal says",
        "make room in the pool, repair the disk, or rename what is in the way; it goes on by itself then",
        ("farstripe pool status", "farstripe events"),
        operator=True,
    ),
    Word(
        "NO-JOURNAL",
        "bad",
        lambda s, f: bool((s.get("journal") or {}).get("error")),
        "the journal of this node is broken: {reason}",
        "a primary goes on and counts differences; a secondary receives nothing, and its volumes can be read",
        "give the group a new journal; the peers then follow by difference, or record by record",
        ("farstripe group journal replace {group}", "farstripe group journal show {group}"),
        operator=True,
    ),
    Word(
        "STOPPED",
        "bad",
        _in("stopped"),
        "the journal of this node failed: {reason}",
        "nothing is shipped or received over this pair; hosts of a primary are served",
        "try again, for an error that has passed; else put the journal on another medium (on a primary: add a file, "
        "take the bad one out; on a copy: replace it)",
        ("farstripe pair resync {pair}", "farstripe group journal show {group}"),
        operator=True,
    ),
    Word(
        "UNPAIRED",
        "ok",
        lambda s, f: s.get("mode") == "none" and not f,
        "the group has no pair",
        "writes are stored on this node only",
        "create a pair if the data must be elsewhere too",
        ("farstripe pair create {group} --peer NAME",),
    ),
    Word(
        "REPLICATOR-DOWN",
        "bad",
        lambda s, f: not f,
        "the replicator process of this node does not answer",
        "nothing is shipped or received; a primary goes on and journals as its policy says",
        "start it; it goes on from the journal",
        ("farstripe node start", "farstripe events"),
    ),
    Word(
        "SPLIT-BRAIN",
        "bad",
        _refused("split-brain", "dual-primary", "lost-tail-conflict", "two-trees"),
        "{cause}",
        "both sides hold acknowledged writes the other lacks; nothing is merged or overwritten by itself",
        "look at both, decide which side's {lost} records are given up, then resync with that node's name",
        ("farstripe pair show {pair}", "farstripe pair resync {pair} --discard NODE"),
        operator=True,
    ),
    Word(
        "SUPERSEDED",
        "bad",
        _refused("former-primary", "relay-lost-tail"),
        "{cause}",
        "{follow} holds {lost} records its successor lacks; they are kept until you say they may go",
        "save what you need from it, then give them up",
        ("farstripe pair resync {pair} --discard {follow}",),
        operator=True,
    ),
    Word(
        "SET-BACK",
        "bad",
        _refused("set-back"),
        "{cause}",
        "{follow} holds {lost} records that the primary had and has not any more; neither side is changed, and both "
        "keep what they hold",
        "decide which is right: to go on with what {follow} holds, take over there; to go on with the older state, "
        "give up what {follow} holds beyond it",
        ("farstripe takeover {group} --force  (on {follow})", "farstripe pair resync {pair} --discard {follow}"),
        operator=True,
    ),
    Word(
        "REFUSED",
        "bad",
        _in("refused"),
        "{cause}",
        "nothing is shipped; neither side was changed",
        "remove the cause; the pair looks again by itself",
        ("farstripe pair show {pair}", "farstripe pair resync {pair}"),
        operator=True,
    ),
    Word(
        "ORPHANED",
        "bad",
        _turned_away(NO_PAIR),
        "{peer} has no pair of this group with this node: it was deleted there",
        "nothing is shipped or received, and no link will change that; what is stored here stays as it is",
        "delete this half too; a new pair begins with a full copy",
        ("farstripe pair delete {pair} --local-only", "farstripe pair create {group} --peer NAME"),
        operator=True,
    ),
    Word(
        "ESTRANGED",
        "bad",
        _turned_away(STRANGER),
        "the two nodes do not know each other (any more): {reason}",
        "nothing is shipped or received; what is stored here stays as it is",
        "see that the peer's address is right; if the peer was made anew, its key replaced or this node deleted there: "
        "end this half, join again with a new token, and pair again, which begins with a full copy",
        (
            "farstripe peer list",
            "farstripe pair delete {pair} --local-only",
            "farstripe peer delete {peer}",
            "farstripe peer token  (on {peer})",
            "farstripe peer join TOKEN",
        ),
        operator=True,
    ),
    Word(
        "JOURNAL-FULL",
        "bad",
        lambda s, f: bool(s.get("blocks_writers")) and f.get("session") not in conditions.SHIPS,
        "the journal is full with what {peer} lacks, and {peer} is away ({reason})",
        "{full}, also where other peers are connected; nothing that was answered is lost",
        "bring {peer} back. Or give it up, so that it follows by difference later: with on_full=bitmap, where "
        "on_loss=stall does not forbid that. A file more gives the journal room for a while",
        (
            "farstripe group policy {group}",
            "farstripe group policy {group} --on-full bitmap",
            "farstripe group journal add {group} FILE",
        ),
    ),
    Word(
        "SWITCHING",
        "busy",
        _in("holding", "draining", "yielding", "handed", "promoting", "stepping-down"),
        "roles are being exchanged",
        "writers are parked for a moment",
        "wait; it ends by itself",
        ("farstripe pair wait {pair}",),
    ),
    Word(
        "SPLIT",
        "warn",
        lambda s, f: bool(f.get("split_wanted")) or _label(f) == "split-wanted",
        "an operator split the pair",
        "the primary keeps track of what changes; the copy stays as it was",
        "resync when the copy should follow again (by difference)",
        ("farstripe pair resync {pair}",),
        operator=True,
    ),
    Word(
        "SOURCE-REFUSED",
        "bad",
        lambda s, f: _label(f) == "no-primary" and f.get("session") == "waiting" and bool(f.get("refused_beside")),
        "{refused}",
        "nothing is shipped on this edge; the copy stays at its last consistent instant",
        "clear that pair; this one goes on by itself then",
        ("farstripe explain {group}{refused_on}",),
        operator=True,
    ),
    Word(
        "NO-PRIMARY",
        "bad",
        lambda s, f: _label(f) == "no-primary" and f.get("session") == "waiting",
        "{cause}",
        "no host can write to the group",
        "take over on the node that is to be primary",
        ("farstripe takeover {group}",),
        operator=True,
    ),
    Word(
        "WAITING",
        "warn",
        lambda s, f: f.get("session") == "waiting" and _label(f).startswith("source-"),
        "{cause}",
        "nothing is shipped on this edge; the copy stays at its last consistent instant",
        "wait; the pair looks again by itself. When it lasts, see how {peer} stands with the node that feeds it",
        ("farstripe explain {group}  (on {peer})",),
    ),
    Word(
        "STANDS",
        "warn",
        lambda s, f: f.get("session") == "waiting" and _label(f).startswith("stands-"),
        "{cause}",
        "nothing is shipped on this edge; the copy stays at the marker, and the primary counts what changes",
        "let the copy follow when its image is not needed any more; the difference is copied then",
        ("farstripe marker resume --groups {group}  (on {follow})", "farstripe marker list"),
        operator=True,
    ),
    Word(
        "COPY",
        "busy",
        _in(
            "collecting",
            "planning",
            "extending",
            "offered",
            "mapping",
            "awaiting",
            "adopting",
            "copy-source",
            "copy-target",
        ),
        "blocks are being copied: {cause}",
        "the copy is not consistent until it is complete ({todo} bytes left); hosts are served meanwhile",
        "wait",
        ("farstripe pair wait {pair}",),
    ),
    Word(
        "RECOVERING",
        "busy",
        lambda s, f: s.get("state") == "resync",
        "a copy was interrupted ({reason})",
        "the copy here is a mixture of two instants and cannot take over; it goes on when the primary is back",
        "bring the primary back",
        ("farstripe events",),
    ),
    Word(
        "TRACKING",
        "warn",
        lambda s, f: s.get("mode") == "bitmap",
        "the journal was full: {reason}",
        "changed blocks are counted, not journaled; the copy stays at its last consistent instant",
        "when the link is back the difference is copied",
        ("farstripe status",),
    ),
    Word(
        "DEGRADED",
        "bad",
        lambda s, f: bool(s.get("degraded")),
        "writes do not wait for the peer ({reason})",
        "hosts get answers without {peer}, which lacks what is written now",
        "repair the link or the peer; synchronous writing comes back by itself",
        ("farstripe status", "farstripe events"),
    ),
    Word(
        "SYNC",
        "ok",
        lambda s, f: f.get("session") == "sync-source" and bool(s.get("sync_on")),
        "every write waits for {peer}",
        "nothing acknowledged is lost with this node",
        "nothing",
    ),
    Word(
        "CATCH-UP",
        "busy",
        lambda s, f: f.get("session") == "source" and _wants_sync(s),
        "the peer is {lag} records behind",
        "writes are answered without it until it has caught up",
        "wait",
        ("farstripe pair wait {pair}",),
    ),
    Word(
        "PAIR",
        "ok",
        _in("source", "target", "sync-source"),
        "records flow in write order",
        "the copy is consistent, {lag} records behind",
        "nothing",
    ),
    Word(
        "STALLED",
        "bad",
        lambda s, f: s.get("role") == "primary" and bool(s.get("sync_on")),
        "the peer does not answer ({reason})",
        "{waits}",
        "repair the link or the peer, or change the policy",
        ("farstripe group policy {group}",),
    ),
    Word(
        "CONNECTING",
        "busy",
        _in("asking", "hello", "verdict"),
        "the two sides compare their histories",
        "nothing flows yet",
        "wait",
    ),
    Word(
        "DISCONNECTED",
        "warn",
        lambda s, f: True,
        "no link to {peer}: {reason}",
        "the primary journals what it writes; the copy stays at its last consistent instant",
        "repair the link or the peer; the pair resumes by itself{instead}",
        ("farstripe peer list", "farstripe events", "{plan}"),
    ),
)


_LEVELS = ("ok", "busy", "warn", "bad")


def describe(status: Facts | None, facts: Facts | None) -> dict[str, Any]:
    """Return {"word", "level", "why", "means", "then", "commands", "operator", "conditions"} of a pair; plain values.

    level: the worst of the word's and of the conditions'. conditions: [{label, level, text, then, commands}].

    status: group.status of this node's target, None when it does not answer.
    facts: Session.facts with "turned_away" (NO_PAIR, STRANGER or "") and names added, None when there is no session.
    """
    s, f = status or {}, facts or {}
    row = next(row for row in TABLE if row.when(s, f))
    texts = _texts(s, f)
    besides = [
        {
            "label": one.label,
            "level": one.level,
            "text": one.text.format(**texts),
            "then": one.then.format(**texts),
            "commands": [command.format(**texts) for command in one.commands],
        }
        for one in conditions.held(s, f, row.word)
    ]
    return {
        "word": row.word,
        "level": max([row.level, *(one["level"] for one in besides)], key=_LEVELS.index),
        "conditions": besides,
        "why": row.why.format(**texts),
        "means": row.means.format(**texts),
        "then": row.then.format(**texts),
        "commands": [told for command in row.commands if (told := command.format(**texts))],
        "operator": row.operator,
    }


def edge_status(status: dict[str, Any] | None, peer: str) -> dict[str, Any] | None:
    """What group.status says when asked about one peer, from an answer about the whole group."""
    if status is None:
        return None
    edges = status.get("edges") or []
    edge = next((one for one in edges if one["peer"] == peer), None)
    if edge is None or len(edges) == 1:
        return status
    keys = ("sync_on", "degraded", "copying", "copy_id", "synced_seq", "blocks_writers")
    of_edge = {key: edge[key] for key in keys if key in edge}
    positions = {key: edge[key] for key in ("received", "durable", "applied")}
    policy = {**status["policy"], "mode": edge["mode"]}
    return {**status, **of_edge, "edge": edge["slot"], "link_up": edge["linked"], "peer": positions, "policy": policy,
            "behind": edge.get("behind")}  # fmt: skip


def told(facts: Facts) -> bool:
    """Whether the peer that is fed has said over this link what it holds; without records flowing it has no need to."""
    return bool((facts.get("acked") or {}).get("received")) or facts.get("session") in FLOWING


def lag_records(status: Facts, facts: Facts) -> int | None:
    """How many records the copy is behind as this node knows it, None when it does not."""
    if not facts.get("linked"):
        return None
    if feeds(status, facts):
        if not told(facts):
            return None
        return max(0, int(status.get("pos", 0)) - int((facts.get("acked") or {}).get("received", 0)))
    if facts.get("session") == "target" and facts.get("word"):
        return int(fed(status, facts)["writes"])
    return max(0, int(facts.get("peer_pos") or 0) - usable_pos(status))


def _texts(status: Facts, facts: Facts) -> dict[str, str]:
    decision = facts.get("decision") or {}
    lag = lag_records(status, facts)
    link = "the link is up" if facts.get("linked") else facts.get("link_reason")  # else it says why an older link ended
    broken = (status.get("journal") or {}).get("error")
    reason = status.get("failed") or status.get("apply_error") or broken or link or "no reason known"
    group = str(status.get("name") or "GROUP")
    peer = facts.get("peer_name") or facts.get("peer")
    return {
        "group": group,
        "pair": f"{group} {peer}" if peer else group,
        "peer": str(peer or "the peer"),
        "lag": _lag_text(lag, status, facts),
        "todo": str(status.get("todo_bytes", "an unknown number of")),
        "reason": str(reason),
        "damaged": str(status.get("damaged_at")),
        "whole": str(int(status.get("damaged_at") or 1) - 1),
        "waits": _waits(status.get("policy") or {}),
        "full": _full(status.get("policy") or {}),
        **conditions.texts(status, facts),
        "cause": str(decision.get("cause") or "no cause known"),
        "lost": str(decision.get("lost_records", "an unknown number of")),
        "follow": str(facts.get("follow_name") or decision.get("follow") or "the other node"),
        **_takeover(status, facts, group, str(peer or "the peer")),
        **_refused_beside(facts.get("refused_beside") or {}),
        **_without_journal(status.get("unread_journal") or {}, str(peer or "the peer")),
    }


def _lag_text(lag: int | None, status: Facts, facts: Facts) -> str:
    if lag is None:
        return "an unknown number of"
    certain = facts.get("session") != "target" or fed(status, facts).get("bound") == "exact"
    return str(lag) if certain else f"at least {lag}"


def _takeover(status: Facts, facts: Facts, group: str, peer: str) -> dict[str, str]:
    """What is said of a takeover by a copy that hears nothing of the peer that feeds it."""
    fed = status.get("role") == "secondary" and status.get("upstream") in ("", None, facts.get("peer"))
    if not fed or status.get("state") != "ok":
        return {"instead": "", "plan": ""}
    if facts.get("peer_role") == "secondary":
        when = f"{peer} was a copy itself, so the primary may be well. If that is lost, too,"
    else:
        when = f"If {peer} is lost, or away for too long,"
    instead = f". {when} this node can take over: {lost_text(status, facts)}"
    return {"instead": instead, "plan": f"farstripe takeover {group} --plan"}


def _refused_beside(other: Facts) -> dict[str, str]:
    """What is said of another pair of the group that is refused: {node, here, with, cause}."""
    node, here = str(other.get("node", "the peer")), bool(other.get("here"))
    who = "this node" if here else f"{node}, which would feed this node,"
    text = f"{who} and {other.get('with', 'another one')} do not go together: {other.get('cause', 'no cause known')}"
    return {"refused": text, "refused_on": "" if here else f"  (on {node})"}


def _without_journal(unread: Facts, peer: str) -> dict[str, str]:
    """What is known of a group that was not opened for its journal: {role, intact}."""
    if unread.get("intact"):
        holds = "they hold every write that was answered"
        return {"holds": holds, "without": "give the group a new one; copies then follow by difference", "force": ""}
    if unread.get("role") == "secondary":
        holds = "a copy was under way, they hold no consistent image"
        return {"holds": holds, "without": "give the group a new one; the copy begins anew", "force": " --force"}
    holds = "they may lack writes that were answered and flushed, which were in the journal"
    without = (
        f"take over on {peer}, if its copy is complete; then, or if there is no copy, give the group a new journal by "
        "force, and every block is copied"
    )
    return {"holds": holds, "without": without, "force": " --force"}


def _waits(policy: Facts) -> str:
    """What a write of a synchronous group does whose peer is silent."""
    if not policy.get("loss_timeout_s"):
        return "writers wait for it, however long it takes"
    ends = "go on here alone, which is then shown" if policy.get("on_loss") == "degrade" else "fail"
    return f"a write waits {policy['loss_timeout_s']:g} s for it; then writes {ends}"


def _full(policy: Facts) -> str:
    """What host writes do that find no room in the journal, while the peer that keeps it full is away."""
    if policy.get("on_full") == "fail":
        return "writes of hosts fail"
    if not policy.get("full_timeout_s"):
        return "writes of hosts wait for room, however long it takes"
    return f"writes of hosts wait {policy['full_timeout_s']:g} s for room, and fail then"
