"""What can truthfully be said of this node's groups and pairs, put together from its two processes.

The target knows roles, positions and journals; the replicator knows links. Either may be away; then what it would have
said is None ("unknown"), never a default and never yesterday's value. What is known only as a limit, or only as of the
last contact with the peer, says so.
"""

from __future__ import annotations

from typing import Any

from replicator.cli.access import Node
from replicator.core.errors import DaemonNotRunning, FarstripeError, NotFound, TimedOut
from replicator.core.rpo import of_group, rpo
from replicator.core.status import describe, edge_status

Facts = dict[str, Any]

PATIENCE_S = 3.0
"""A process that takes longer counts as not answering: a status that hangs helps nobody. Each is asked once."""


def collect(here: Node) -> Facts:
    """Return the node and its groups with their pairs.

    Raises DaemonNotRunning or TimedOut when neither process answers.
    """
    config = here.config()
    silent: dict[str, FarstripeError] = {}
    pairs = _ask(here, "replicator", "status", silent)
    groups = _ask(here, "target", "group.list", silent)
    if len(silent) == 2:
        raise silent["target"]
    by_pair: dict[str, list[Facts]] = {}
    for one in (pairs or {}).get("pairs", ()):
        by_pair.setdefault(one["group"], []).append(one)
    by_group: dict[str, Facts] = {one["uuid"]: one for one in groups or ()}
    node = {
        "name": config.get("name"),
        "node_id": config.get("node_id"),
        "target": groups is not None,
        "replicator": pairs is not None,
        "hangs": [process for process, exc in silent.items() if isinstance(exc, TimedOut)],
    }
    found = [
        whole_view(by_group.get(uuid), by_pair.get(uuid, []), replicator=pairs is not None)
        for uuid in dict.fromkeys([*by_group, *by_pair])
    ]
    return {"node": node, "groups": sorted(found, key=lambda one: str(one["name"]))}


def one_group(here: Node, name: str) -> Facts:
    """Return one group of `collect`. Raises NotFound."""
    known = collect(here)
    for found in known["groups"]:
        if name in (found["name"], found["uuid"]):
            return found  # type: ignore[no-any-return]
    if not known["node"]["target"]:
        raise NotFound(f"no group {name!r} is known while the target does not answer", "farstripe node status")
    raise NotFound(f"no group {name!r} on this node", "farstripe group list shows them")


def _ask(here: Node, process: str, op: str, silent: dict[str, FarstripeError]) -> Any:
    """Return the answer of a process; None, and the reason in `silent`, when it gives none."""
    try:
        return here.target(op, wait_s=PATIENCE_S) if process == "target" else here.replicator(op, wait_s=PATIENCE_S)
    except DaemonNotRunning as exc:
        silent[process] = exc
    except TimedOut:
        silent[process] = TimedOut(
            f"the {process} runs but does not answer within {PATIENCE_S:g} s",
            f"it is stopped, or waits for a disk; its log is {here.run / process}.log",
        )
    return None


_WORST_FIRST = ("bad", "warn", "busy", "ok")


def whole_view(status: Facts | None, pairs: list[Facts], replicator: bool) -> Facts:
    """Return what is known of one group: as group_view for its worst pair, with `edges`, one such entry for each pair,
    and `losses`: what the loss of this node, and of each peer, means.

    Of several pairs `rpo` is that of the copy which lacks most, and `rpo_best` what would be lost with the primary now.
    """
    edges = [group_view(edge_status(status, pair["peer"]), pair, replicator) for pair in pairs]
    whole = group_view(status, None, replicator)
    worst = min(edges, key=lambda one: _WORST_FIRST.index(one["level"]), default=whole)
    losses: list[Facts] = next((pair["losses"] for pair in pairs if pair.get("losses")), [])
    told = [(bool(pair.get("feeds_us")), one["rpo"]) for pair, one in zip(pairs, edges, strict=True) if one["rpo"]]
    most, least = of_group(told)
    return {**worst, "rpo": most, "rpo_best": least, "edges": edges, "losses": losses}


def group_view(status: Facts | None, pair: Facts | None, replicator: bool) -> Facts:
    """Return what is known of one group. `status`: group.status or None; `pair`: the replicator's view or None.

    `replicator`: whether the replicator answered, so that no pair means that there is none.
    """
    known = status or {}
    words = describe(_for_words(status, pair, replicator), (pair or {}).get("facts") or None)
    journal = known.get("journal") or {}
    used, capacity = journal.get("used"), journal.get("capacity")
    paired = True if pair else (False if replicator or known.get("mode") == "none" else None)
    return {
        "name": known.get("name") or (pair or {}).get("name"),
        "uuid": known.get("uuid") or (pair or {}).get("group"),
        **words,
        "role": known.get("role"),
        "copy": known.get("state"),
        "mode": known.get("mode"),
        "policy": known.get("policy"),
        "degraded": known.get("degraded"),
        "held": known.get("held"),
        "stands_at": (known.get("limit_seq") or None) if known.get("role") == "secondary" else None,
        "peer_stands_at": (pair or {}).get("stands_at") if known.get("role") == "primary" else None,
        "writers": known.get("writers"),
        "paired": paired,
        "peer": _peer(pair),
        "rpo": rpo(known, pair) if paired and known else None,
        "budget": (pair or {}).get("budget"),
        "copy_left_bytes": known.get("todo_bytes") if known.get("copying") or known.get("state") == "resync" else None,
        "journal": {
            "used": used,
            "capacity": capacity,
            "ratio": used / capacity if capacity and used is not None else None,
        },
        "volumes": [volume["name"] for volume in known.get("volumes", ())] if known else None,
        "size": known.get("size"),
        "retention": known.get("retention"),
        "kept_image": known.get("kept_image"),
        "failed": known.get("failed") or None,
    }


def _for_words(status: Facts | None, pair: Facts | None, replicator: bool) -> Facts | None:
    if status and replicator and not pair:
        return {**status, "mode": "none"}  # the replicator answers and knows no pair: there is none
    return status


def _peer(pair: Facts | None) -> Facts | None:
    if not pair:
        return None
    facts = pair.get("facts") or {}
    return {
        "name": pair.get("peer_name"),
        "node_id": pair.get("peer"),
        "connected": bool(pair.get("connected")),
        "heard_s_ago": facts.get("contact_age_s"),
    }
