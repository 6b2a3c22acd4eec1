"""What is to be said of a pair besides its word: who stands, who waits, who fails. Several may hold at once.

The word says how the two sides stand; a condition says what that does to writers just now, or what keeps a copy from
following although records flow. So a pair may be PAIR and yet be in need of somebody. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Facts = dict[str, Any]


def feeds(status: Facts, facts: Facts) -> bool:
    """Whether this node is the one of the two that feeds the other: a primary always, a secondary where it ships."""
    return status.get("role") == "primary" or facts.get("session") in ("source", "sync-source", "copy-source")


SHIPS = ("source", "sync-source", "holding", "draining", "copy-source")
"""Sessions in which the target counts the peer as connected: what it has shipped makes room in the journal."""


class Condition(NamedTuple):
    """What is to be said besides the word; several may hold. Texts may use {group}, {peer}, {waits} of
    status.Word, and {at}, {on_at}, {standing}, {slow}."""

    label: str
    level: str
    when: Callable[[Facts, Facts], bool]
    text: str
    then: str
    commands: tuple[str, ...] = ()
    said_by: str = ""
    """The word that says it already."""


FULL_S = 2.0
"""A journal that has been full for a moment is back-pressure; one that stays so for longer is told."""


def stands_at(status: Facts, facts: Facts) -> int:
    """The record of the marker at which the copy of this edge stands, 0 where it does not."""
    own = status.get("limit_seq") if status.get("role") == "secondary" and not feeds(status, facts) else 0
    return int(own or facts.get("peer_stands") or 0)


def _copy_is_full(status: Facts, facts: Facts) -> bool:
    """The fed side of the edge has taken no record in for some time, for want of room in its journal."""
    full_s = facts.get("full_s") if facts.get("session") == "target" else facts.get("peer_full_s")
    return bool(facts.get("linked")) and float(full_s or 0.0) >= FULL_S


def _writers(what: str, how: str) -> Callable[[Facts, Facts], bool]:
    def when(status: Facts, facts: Facts) -> bool:
        writers = status.get("writers") or {}
        mine = not writers.get("peer") or writers["peer"] == facts.get("peer") or not facts.get("peer")
        return bool(mine and writers.get(how) and writers.get("what") == what)

    return when


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        "WRITES-FAIL-FULL",
        "bad",
        _writers("room", "fails"),
        "writes of hosts fail: the journal is full with what {peer} lacks",
        "find out why {peer} takes nothing, or not enough; a file more gives the journal room for a while. With "
        "on_full=bitmap, where on_loss=stall does not forbid it, {peer} is given up instead and follows by difference",
        (
            "farstripe explain {group}  (on {peer})",
            "farstripe group policy {group}",
            "farstripe group journal add {group} FILE",
        ),
    ),
    Condition(
        "WRITES-FAIL-UNANSWERED",
        "bad",
        _writers("peer", "fails"),
        "writes of hosts fail: {peer} does not answer, and on_loss=stall lets none go on without it",
        "repair the link or the peer, or let writes go on here alone",
        ("farstripe events", "farstripe group policy {group} --on-loss degrade"),
    ),
    Condition(
        "WRITERS-WAIT-FULL",
        "bad",
        _writers("room", "waits"),
        "writes of hosts wait: the journal is full with what {peer} lacks; {slow}",
        "find out why {peer} takes nothing, or not enough; a file more gives the journal room for a while",
        (
            "farstripe explain {group}  (on {peer})",
            "farstripe group policy {group}",
            "farstripe group journal add {group} FILE",
        ),
        said_by="JOURNAL-FULL",
    ),
    Condition(
        "WRITERS-WAIT-UNANSWERED",
        "bad",
        _writers("peer", "waits"),
        "writes of hosts wait for the answer of {peer}: {waits}",
        "repair the link or the peer, or change the policy",
        ("farstripe events", "farstripe group policy {group}"),
        said_by="STALLED",
    ),
    Condition(
        "COPY-JOURNAL-FULL",
        "warn",
        _copy_is_full,
        "the journal of the copy on {at} is full, and nothing more is taken in there{standing}; what is written "
        "meanwhile stays in the journal of the node that feeds it, until that is full too",
        "have the copy go on, if it stands at a marker; else see what keeps {at} from applying",
        ("farstripe marker resume --groups {group}{on_at}", "farstripe explain {group}{on_at}"),
    ),
    Condition(
        "STANDS-AT-A-MARKER",
        "busy",
        lambda s, f: bool(stands_at(s, f)),
        "the copy on {at} stands at a marker{standing}: what comes after it is kept in its journal and not applied",
        "have it go on when the instant has served its purpose, before that journal is full",
        ("farstripe marker resume --groups {group}{on_at}",),
        said_by="STANDS",
    ),
)


def held(status: Facts, facts: Facts, word: str) -> list[Condition]:
    """Return the conditions that hold for a pair and are not said by its word. Other arguments as those of
    status.describe, and no None."""
    return [one for one in CONDITIONS if one.said_by != word and one.when(status, facts)]


def texts(status: Facts, facts: Facts) -> dict[str, str]:
    """What conditions say besides what status.describe knows: {at, on_at, standing, slow}."""
    slow = _slow(status.get("policy") or {}, alone=not status.get("sync_on"), connected=facts.get("session") in SHIPS)
    return {**_standing(status, facts), "slow": slow}


def _standing(status: Facts, facts: Facts) -> dict[str, str]:
    """Where the copy of this edge is, where its commands are to be given, and at which record it stands, if it does."""
    seq = stands_at(status, facts)
    peer = str(facts.get("peer_name") or facts.get("peer") or "the peer")
    here = facts.get("session") == "target" or not feeds(status, facts)
    return {
        "at": "this node" if here else peer,
        "on_at": "" if here else f"  (on {peer})",
        "standing": f" (it stands at a marker, record {seq})" if seq else "",
    }


def _slow(policy: Facts, *, alone: bool, connected: bool) -> str:
    """What becomes of host writes that find no room, for a peer that keeps the journal full: losspolicy.FULL."""
    timeout_s, on_full = policy.get("full_timeout_s"), policy.get("on_full")
    if on_full == "fail":
        return "they fail"
    if not timeout_s or (on_full == "stall" and connected):
        return "each waits until there is some, however long it takes"
    gives_up = on_full != "stall" and (alone or policy.get("on_loss") != "stall")
    ends = "the peer is given up, and follows by difference" if gives_up else "it fails"
    return f"each waits {timeout_s:g} s at most, then {ends}"
