"""What is said of a pair: the target's facts, the session's facts, and the word made of both.

group, name, peer (node id), peer_name
word, level, why, means, then, commands      replicator.core.status
role, state, mode, connected, split, session
lag           records the peer has not received (None: not known)
lag_applied   records the peer has not applied
lag_bytes     bytes of journal that are missing on the secondary, at most; None when not known
lag_s         seconds since the newest write that is certainly on the secondary, when known
todo_bytes    left of a copy
rpo           what would be lost with the primary (core/rpo.py), as known here
budget        {limits, exceeded, since_s, reasons}, None for a pair without one
compress, policy, facts (of the session), status (of the target; None when it does not answer)
"""

from __future__ import annotations

import time
from typing import Any

from replicator.core import rpo
from replicator.core import status as words
from replicator.core.errors import FarstripeError
from replicator.daemon.node import Node
from replicator.daemon.pairstore import PairConfig

TARGET_S = 10.0
STATUS_TARGET_S = 2.0
"""The same for all pairs at once: less than the patience of `farstripe status`, which asks the target itself too."""


def view(node: Node, pair: PairConfig) -> dict[str, Any]:
    """Return the description of `pair`."""
    try:
        status = node.target("group.status", TARGET_S, group=pair.group)
    except FarstripeError:
        status = None
    return _described(node, pair, status)


def view_all(node: Node) -> list[dict[str, Any]]:
    """Return the descriptions of all pairs, within STATUS_TARGET_S also when the target hangs: it is asked once."""
    pairs = node.pairs.store.all()
    try:
        listed = node.target("group.list", STATUS_TARGET_S) if pairs else []
        found = {one["uuid"]: one for one in listed if "role" in one}  # a broken group has no status
    except FarstripeError:
        found = {}
    return [_described(node, pair, found.get(pair.group)) for pair in pairs]


def _described(node: Node, pair: PairConfig, status: dict[str, Any] | None) -> dict[str, Any]:
    facts = node.pairs.facts(pair)
    known = status or {}
    view = {
        "group": pair.group,
        "name": pair.name,
        "peer": pair.peer,
        "peer_name": node.pairs.name_of(pair.peer),
        **words.describe(status, facts),
        "role": known.get("role"),
        "state": known.get("state"),
        "mode": known.get("mode"),
        "session": facts.get("session"),
        "connected": bool(facts.get("linked")),
        "split": bool(facts.get("split_wanted", pair.split)),
        "lag": words.lag_records(known, facts),
        "lag_applied": _lag_applied(known, facts),
        "lag_bytes": _lag_bytes(known, facts),
        "lag_s": _lag_s(known, facts),
        "todo_bytes": known.get("todo_bytes"),
        "compress": pair.compress,
        "policy": known.get("policy"),
        "facts": facts,
        "status": status,
    }
    view["rpo"] = rpo.rpo(known, view)
    view["budget"] = _budget(node, pair)
    return view


def _budget(node: Node, pair: PairConfig) -> dict[str, Any] | None:
    if not pair.budget:
        return None
    found = node.rpo_verdicts.get((pair.group, pair.peer))
    exceeded = found is not None and found.exceeded
    return {
        "limits": dict(pair.budget),
        "exceeded": exceeded,
        "since_s": round(time.monotonic() - found.since, 1) if found is not None and exceeded else None,
        "reasons": list(found.reasons) if found is not None else [],
    }


def _lag_applied(status: dict[str, Any], facts: dict[str, Any]) -> int | None:
    if not facts.get("linked") or not status:
        return None
    if status.get("role") == "primary":
        return max(0, int(status["pos"]) - int((facts.get("acked") or {}).get("applied", 0)))
    return max(0, int(facts.get("peer_pos") or 0) - int(status.get("applied", 0)))


def _lag_bytes(status: dict[str, Any], facts: dict[str, Any]) -> int | None:
    """At most so many bytes of journal are missing on the secondary."""
    if status.get("behind"):
        return int(status["behind"]["bytes"])
    beat = facts.get("peer_beat")
    return int(beat["unsent_bytes"]) if beat and status.get("role") == "secondary" else None


def _lag_s(status: dict[str, Any], facts: dict[str, Any]) -> float | None:
    """On a primary: what is missing there was written in the last so many seconds. On a secondary: the age of what is
    applied here, 0 while nothing is missing."""
    if status.get("behind"):
        return round(float(status["behind"]["seconds"]), 3)
    if status.get("role") != "secondary" or facts.get("session") not in ("target", "copy-target"):
        return None
    if not _lag_applied(status, facts):
        return 0.0
    applied_ns = status.get("applied_time_ns") or 0
    return max(0.0, round(time.time() - applied_ns / 1e9, 3)) if applied_ns else None
