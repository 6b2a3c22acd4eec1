"""What is said of a pair: the target's facts, the session's facts, and the word made of both.

group, name, peer (node id), peer_name
word, level, why, means, then, commands, conditions      replicator.core.status
role, state, mode, connected, split, session
feeds_us      the peer feeds this node, else this node feeds it (or would)
losses        what the loss of this node, and of each of its peers, would mean: replicator.core.protection
lag           records the peer has not received (None: not known)
lag_applied   records the peer has not applied
lag_bytes     bytes of journal that are missing on the secondary, at most; None when not known
lag_s         seconds since the newest write that is certainly on the secondary, when known
stands_at     seq of the marker at which the copy of this edge stands until it is resumed; None when it does not
todo_bytes    left of a copy
rpo           what would be lost with the primary (core/rpo.py), as known here
budget        {limits, exceeded, since_s, reasons}, None for a pair without one
transfer      settings and measures of how records are moved: see `transfer`
policy, facts (of the session), status (of the target; None when it does not answer)
"""

from __future__ import annotations

import time
from typing import Any

from replicator.core import conditions, protection, rpo
from replicator.core import status as words
from replicator.core.errors import FarstripeError, MediumError
from replicator.core.protection import EdgeFacts
from replicator.daemon.node import Node
from replicator.daemon.pairstore import PairConfig

TARGET_S = 10.0
STATUS_TARGET_S = 2.0
"""The same for all pairs at once: less than the patience of `farstripe status`, which asks the target itself too."""


def view(node: Node, pair: PairConfig) -> dict[str, Any]:
    """Return the description of `pair`."""
    status: dict[str, Any] | None
    try:
        status = node.target("group.status", TARGET_S, group=pair.group, peer=pair.peer)
    except MediumError:
        status = _unopened(node, pair.group)
    except FarstripeError:
        status = None
    found = _described(node, pair, status)
    others = [one for one in node.pairs.store.of_group(pair.group) if one.peer != pair.peer]
    edges = [found, *(_described(node, one, words.edge_status(status, one.peer)) for one in others)]
    return found | {"losses": losses(node, edges)}


def _unopened(node: Node, group: str) -> dict[str, Any] | None:
    """What the target says of a group that it could not open: `name`, `volumes`, `failed`, and no role."""
    try:
        return next((one for one in node.target("group.list", TARGET_S) if one["uuid"] == group), None)
    except FarstripeError:
        return None


def view_all(node: Node) -> list[dict[str, Any]]:
    """Return the descriptions of all pairs, within STATUS_TARGET_S also when the target hangs: it is asked once."""
    pairs = node.pairs.store.all()
    try:
        listed = node.target("group.list", STATUS_TARGET_S) if pairs else []
        found = {one["uuid"]: one for one in listed}
    except FarstripeError:
        found = {}
    views = [_described(node, pair, words.edge_status(found.get(pair.group), pair.peer)) for pair in pairs]
    by_group: dict[str, list[dict[str, Any]]] = {}
    for one in views:
        by_group.setdefault(one["group"], []).append(one)
    means = {group: losses(node, edges) for group, edges in by_group.items()}
    return [one | {"losses": means[one["group"]]} for one in views]


def losses(node: Node, edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the loss of this node and of each peer means, from the descriptions of all edges of one group."""
    status = next((one["status"] for one in edges if one["status"]), None)
    if status is None or "role" not in status:
        return []  # it does not answer, or could not open the group
    facts = [
        EdgeFacts(
            peer=one["peer_name"],
            feeds=one["feeds_us"],
            linked=one["connected"],
            complete=_complete(one, status),
            in_sync=_in_sync(one),
            lag=_known_lag(one, status),
            others=tuple(node.pairs.name_of(peer) for peer in (one["facts"].get("peer_feeds") or ())),
            further=_further(node, one, status),
            current=not one["feeds_us"] or one["rpo"]["bound"] == "exact",
            unknown=not one["feeds_us"] and not _complete(one, status) and _unheard(one),
            kept=0 if one["feeds_us"] or _complete(one, status) else int(one["facts"].get("peer_kept") or 0),
        )
        for one in edges
    ]
    found = protection.losses(node.config.name, str(status["role"]), str(status["state"]), facts)
    return [loss._asdict() for loss in found]


def _complete(one: dict[str, Any], status: dict[str, Any]) -> bool:
    """The copy at the fed end of the edge is consistent, as far as this node knows."""
    if one["feeds_us"]:
        return bool(status["state"] == "ok")
    if not one["status"] or one["status"].get("copying"):
        return False
    facts = one["facts"]
    agrees = (facts.get("decision") or {}).get("action") != "refuse" and facts.get("peer_role") == "secondary"
    return bool(facts.get("was_complete") or (facts.get("peer_copy") == "ok" and agrees))


def _unheard(one: dict[str, Any]) -> bool:
    """It is not known whether the copy is consistent: nothing was heard, or not how a copy that was begun has ended."""
    facts, status = one["facts"], one["status"] or {}
    incomplete = facts.get("peer_copy") in ("fresh", "resync")
    if status.get("copying"):
        return facts.get("peer_state") != "copy-target" and not incomplete
    ended = bool(status.get("synced_seq")) and not one["connected"]  # all was sent, and perhaps it has come
    return not facts.get("peer_copy") or (incomplete and ended)


def _further(node: Node, one: dict[str, Any], status: dict[str, Any]) -> tuple[tuple[str, int | None], ...]:
    """Copies below a peer that this node feeds, as it last told, with the records that each lacks."""
    if one["feeds_us"]:
        return ()
    copies, pos = one["facts"].get("peer_copies") or {}, int(status["pos"])
    return tuple((node.pairs.name_of(peer), max(0, pos - seq) if seq else None) for peer, seq in copies.items())


def _in_sync(one: dict[str, Any]) -> bool:
    """Every write waits for the fed end. Of the primary that is known as of its last word only: one that has not been
    heard for as long as it waits for an answer may have gone on alone."""
    if not one["feeds_us"]:
        return bool(one["word"] == "SYNC")
    policy, age_s = one["policy"] or {}, one["rpo"]["as_of_s"]
    patience_s = float(policy.get("loss_timeout_s") or 0.0)
    alone = policy.get("on_loss") != "stall" and bool(patience_s) and (age_s is None or age_s >= patience_s)
    heard = one["facts"].get("peer_state") == "sync-source" and one["rpo"]["bound"] == "exact"
    return bool(heard and one["word"] == "PAIR" and not alone)


def _known_lag(one: dict[str, Any], status: dict[str, Any]) -> int | None:
    lag: int | None = one["lag"]
    if lag is not None or one["feeds_us"]:
        return lag
    received = int(((one["status"] or {}).get("peer") or {}).get("received") or 0)
    return max(0, int(status["pos"]) - received) if received else None


def after_takeover(node: Node, pair: PairConfig, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What becomes of the other nodes known here when this one takes over from the peer of `pair`: [{peer, means}]."""
    below = [one.peer for one in node.pairs.store.of_group(pair.group) if one.peer != pair.peer]
    found = [{"peer": node.pairs.name_of(peer), "means": "it goes on with this node"} for peer in below]
    name = node.pairs.name_of(pair.peer)
    waits = f"it waits for {name}, keeps its image, and gets nothing until {name} is back"
    found += [{"peer": node.pairs.name_of(peer), "means": waits} for peer in facts.get("peer_feeds") or ()]
    above = str(facts.get("peer_upstream") or "")
    if facts.get("peer_role") == "secondary" and above not in ("", node.config.node_id):
        alive = (
            f"it fed {name} when that was last heard of: see first whether it is alive, for then both sides are "
            "written to"
        )
        found.append({"peer": node.pairs.name_of(above), "means": alive})
    return found


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
        "feeds_us": known.get("role") == "secondary" and known.get("upstream") in ("", None, pair.peer),
        "state": known.get("state"),
        "mode": known.get("mode"),
        "session": facts.get("session"),
        "connected": bool(facts.get("linked")),
        "split": bool(facts.get("split_wanted", pair.split)),
        **_lag(known, facts),
        "lag_applied": _lag_applied(known, facts),
        "stands_at": conditions.stands_at(known, facts) or None,
        "todo_bytes": known.get("todo_bytes"),
        "transfer": transfer(pair, facts),
        "policy": known.get("policy"),
        "facts": facts,
        "status": status,
    }
    view["rpo"] = lost = rpo.rpo(known, view)
    if facts.get("session") == "target":
        view |= {"lag": lost["writes"], "lag_bytes": lost["bytes"], "lag_s": lost["seconds"]}
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


def transfer(pair: PairConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What is said of a pair's transfer: the settings by name, and what was measured.

    connections_open, rate (bytes a second in force; None where this side does not ship), starved (waits for credit),
    round_trip_s, held_bytes (came before their turn), and of all that was shipped since the process began plain_bytes,
    wire_bytes, ratio (None before anything was), skipped_bytes, cpu_s.
    """
    found = dict(facts.get("transfer") or {})
    found["connections_open"] = found.pop("connections", 0)
    plain, wire = found.get("plain_bytes") or 0, found.get("wire_bytes") or 0
    return {**pair.settings.to_map(), **found, "ratio": round(plain / wire, 3) if wire else None}


def _lag_applied(status: dict[str, Any], facts: dict[str, Any]) -> int | None:
    if not facts.get("linked") or not status:
        return None
    if conditions.feeds(status, facts):
        if not words.told(facts):
            return None
        return max(0, int(status.get("pos", 0)) - int((facts.get("acked") or {}).get("applied", 0)))
    return max(0, int(facts.get("peer_pos") or 0) - int(status.get("applied", 0)))


def _lag(status: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """How far the peer that this node feeds is behind; on the node that is fed only what HELLO and heartbeats said."""
    lag, behind, missing = words.lag_records(status, facts), status.get("behind"), facts.get("missing")
    if lag is None or not missing or facts.get("session") not in rpo.FLOWING:
        size = int(behind["bytes"]) if behind else None
    else:
        lag, size = missing["writes"], missing["bytes"]
    return {"lag": lag, "lag_bytes": size, "lag_s": round(float(behind["seconds"]), 3) if behind else None}
