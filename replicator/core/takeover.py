"""May this node become primary by force, and what would be lost: one labelled table.

A takeover is always local: it asks nobody. So the table's business is to refuse what must not be, and to say in
numbers what the operator gives up. Used by the session (the executor) and by `farstripe takeover --plan`, so the plan
cannot lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """The outcome of plan_takeover."""

    label: str
    allowed: bool
    message: str  # what is lost, or why not
    way_out: str


class Row(NamedTuple):
    """The first row whose `when` holds for (status, facts) counts; force: None never, True if forced, False always."""

    label: str
    when: Callable[[dict[str, Any], dict[str, Any]], bool]
    force: bool | None
    message: str
    way_out: str


def _primary_answers(status: dict[str, Any], facts: dict[str, Any]) -> bool:
    return bool(facts.get("linked")) and facts.get("peer_role") == "primary"


def _fed_elsewhere(facts: dict[str, Any]) -> bool:
    return facts.get("peer_upstream") not in (None, "", facts.get("node"))


TABLE: tuple[Row, ...] = (
    Row(
        "already-primary",
        lambda s, f: s.get("role") == "primary",
        None,
        "this node is primary already",
        "nothing is to be done here; 'farstripe status' shows how it stands with the peer",
    ),
    Row(
        "no-copy",
        lambda s, f: s.get("state") == "fresh",
        None,
        "this node has no copy of the data yet",
        "wait for the first copy with 'farstripe pair wait'",
    ),
    Row(
        "inconsistent",
        lambda s, f: s.get("state") == "resync" and not (s.get("rewinding") and f.get("goes_back")),
        None,
        "the copy here is inconsistent: a resync is under way, its blocks are of different times",
        "bring the primary back and let the resync finish",
    ),
    Row(
        "no-journal",
        lambda s, f: bool((s.get("journal") or {}).get("error")),
        None,
        "the journal of this node is broken: {journal}",
        "give it a new one first, which gives up what it held and the volumes lack: farstripe group journal replace",
    ),
    Row(
        "damaged",
        lambda s, f: bool(s.get("damaged_at")),
        None,
        "records were received here from {damaged} on that cannot be applied: that one is damaged in this node's "
        "journal",
        "connect the node that feeds this one, which sends them again; if it is lost, give them up with 'farstripe "
        "group journal replace {group}', and take over then",
    ),
    Row(
        "failed",
        lambda s, f: bool(s.get("failed")),
        None,
        "a disk of this node failed: {failed}",
        "repair it first; see 'farstripe pool status'",
    ),
    Row(
        "diverged",
        lambda s, f: s.get("state") == "diverged",
        True,
        "this node is a former primary that was replaced; becoming primary again makes two histories",
        "resync it from the peer, or use --force to go on with this node's data",
    ),
    Row(
        "primary-alive",
        _primary_answers,
        True,
        "the primary is alive and answers: its hosts are cut off from this pair, and {lost}",
        "use 'farstripe switchover', or --force if the primary must be abandoned",
    ),
    Row(
        "primary-elsewhere",
        lambda s, f: bool(f.get("primaries")),
        True,
        "{primaries} is primary of the group now and answers: a takeover here makes two primaries (split brain), and "
        "{lost}",
        "see there with 'farstripe status'; use 'farstripe switchover', or pair this node with it, or --force if that "
        "primary must be abandoned",
    ),
    Row(
        "source-alive",
        lambda s, f: bool(f.get("linked")) and f.get("peer_role") == "secondary" and _fed_elsewhere(f),
        True,
        "the node that feeds this one is alive and fed by another: a takeover parts this node from that tree, and "
        "{lost}",
        "take over on the node next to the lost primary, or use --force",
    ),
    Row(
        "primary-unknown",
        lambda s, f: not f.get("linked") and (f.get("peer_role") == "secondary" or _fed_elsewhere(f)),
        False,
        "the node that fed this one was a copy itself, and nobody who answers here is primary: make sure that the "
        "primary is lost, or this makes two (split brain); {lost}",
        "",
    ),
    Row("clean", lambda s, f: True, False, "{lost}", ""),
)


def plan_takeover(status: dict[str, Any], facts: dict[str, Any], *, force: bool) -> Plan:
    """Judge a takeover on the node with this group.status and these Session.facts. `force`: the operator insists.

    `primaries` in the facts: names of other nodes that say they are primary of the group, asked just now. A true
    `goes_back` says that it goes back to an image: then what a crash left of that is no hindrance.
    """
    for row in TABLE:
        if row.when(status, facts):
            primaries = " and ".join(facts.get("primaries") or ())
            message = row.message.format(lost=lost_text(status, facts), primaries=primaries, **_reasons(status))
            allowed = row.force is False or (row.force is True and force)
            way_out = row.way_out.replace("{group}", str(status.get("name") or "GROUP"))
            return Plan(row.label, allowed, message, "" if allowed else way_out + _kept_text(status))
    raise AssertionError("the last row matches everything")


def _reasons(status: dict[str, Any]) -> dict[str, str]:
    return {
        "failed": status.get("failed", ""),
        "journal": (status.get("journal") or {}).get("error", ""),
        "damaged": status.get("damaged_at", 0),
    }


def _kept_text(status: dict[str, Any]) -> str:
    """Name the image that was kept when the resync began."""
    kept = status.get("kept_image")
    if not kept:
        return ""
    written = f", written {kept['time']}" if kept["time"] else ""
    return (
        f"; the last consistent image (after record {kept['seq']}{written}) is kept: {', '.join(kept['names'])}, which "
        "'farstripe volume clone' makes writable"
    )


def usable_pos(status: dict[str, Any]) -> int:
    """The last record that this node's image holds, or will: of a copy, none from the one on that it cannot apply."""
    pos, damaged = int(status.get("pos") or 0), int(status.get("damaged_at") or 0)
    return min(pos, damaged - 1) if damaged else pos


def lost_text(status: dict[str, Any], facts: dict[str, Any]) -> str:
    """Say what this node knows to be missing here."""
    missing = max(0, int(facts.get("peer_pos") or 0) - usable_pos(status))
    age = facts.get("contact_age_s")
    if age is None:
        return "what the primary wrote since the last contact is lost; this replicator has had none since it started"
    since = f"what it wrote in the {age:.1f} s since the last contact is lost unless the pair was synchronous"
    if missing:
        return f"at least {missing} records the primary had reported are lost, and {since}"
    return f"no reported record is missing; {since}"
