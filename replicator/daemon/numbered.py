"""Which nodes of a group's tree can read records that have numbers; see core/numbering.py.

A set that orders by counter puts a number into every record of its groups. A node whose farstripe is older takes such a
record for a damaged one: its copy would stand still for as long as it stays so. So all nodes that can be reached are
asked before such a set is made, or such a group gets another peer; each asks those below it. An older one does not know
the question, and that is the answer. One that cannot be reached is named: whoever can read is not known of it.

    set.reads_numbers {group, hops} -> {old: [names], away: [names]}   of a peer
"""

from __future__ import annotations

from typing import Any

from replicator.core.errors import NotFound, PeerError, Refused, TimedOut
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer
from replicator.daemon.rpc import is_unknown
from replicator.daemon.tree import MAX_HOPS

ASK_S = 10.0
OP = "set.reads_numbers"


def remote_handlers(node: Node) -> dict[str, Any]:
    """What peers may ask: op -> function(peer, args)."""

    def reads(peer: Peer, args: dict[str, Any]) -> dict[str, list[str]]:
        hops = int(args.get("hops", 0))
        if hops >= MAX_HOPS:
            raise Refused("the question went through more nodes than a group can have", "see 'farstripe pair list'")
        old, away = _ask_below(node, str(args["group"]), peer.node_id, hops + 1)
        return {"old": old, "away": away}

    return {OP: reads}


def check_below(node: Node, groups: list[str]) -> list[str]:
    """Raise Refused when a node that gets records of `groups` (uuids) from here cannot read numbers.

    Returns the names of those that could not be asked.
    """
    old: set[str] = set()
    away: set[str] = set()
    for group in groups:
        found = _ask_below(node, group, "", 0)
        old.update(found[0])
        away.update(found[1])
    if old:
        raise _too_old(old)
    return sorted(away)


def check_peer(node: Node, peer: Peer, group: str) -> None:
    """Raise Refused when a peer that is to get records of `group` (uuid) cannot read them, for their numbers."""
    sets = node.target("set.list", ASK_S)
    if not any(one["order"] == "counter" and group in {its["uuid"] for its in one["groups"]} for one in sets):
        return
    try:
        node.call(peer, OP, ASK_S, group=group, hops=0)
    except NotFound as exc:
        if not is_unknown(exc, OP):
            raise
        raise _too_old({peer.name}) from exc


def _ask_below(node: Node, group: str, asker: str, hops: int) -> tuple[list[str], list[str]]:
    old: list[str] = []
    away: list[str] = []
    for pair in node.pairs.store.all():
        if pair.group != group or pair.peer == asker:
            continue
        peer = node.peers.get(pair.peer)
        if peer is None:
            away.append(pair.peer)
            continue
        try:
            asked = node.call(peer, OP, ASK_S, group=group, hops=hops)
            old += asked["old"]
            away += asked["away"]
        except NotFound as exc:
            (old if is_unknown(exc, OP) else away).append(peer.name)
        except (PeerError, TimedOut):
            away.append(peer.name)
    return old, away


def _too_old(names: set[str]) -> Refused:
    which = ", ".join(sorted(names))
    return Refused(
        f"the farstripe of {which} is older and cannot read records that have numbers: copies there would stand still",
        "bring it up to date first; or let the set go by time: farstripe set create … --order time",
    )
