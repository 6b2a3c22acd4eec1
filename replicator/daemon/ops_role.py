"""Control operations that move the primary role.

    switchover {group, peer?, deadline_s?}   -> {primary}  planned: nothing is lost. On the primary `peer`
                                             becomes it; on a node that the primary feeds, that node does
    takeover {group, force?}                 -> {epoch, base, label, message, lost, others}  forced: this node becomes
                                             primary
    takeover.plan {group, force?}            -> {allowed, label, message, way_out, lost, peer, others}  what it would do

A takeover is judged by the node that feeds this one, and by what each other peer says that can be reached: one of them
may have become primary. `others` says what becomes of the other nodes that are known here:
[{peer, means}].

`lost` is {records, bytes, seconds, certain, alive}: what the primary had and this node lacks, None where nobody knows;
`certain` when the peer's target itself told us just now; `alive` when it goes on: this is what it had then.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from replicator.control import Handler, number
from replicator.core.errors import FarstripeError, NotFound, Refused
from replicator.core.takeover import Plan, plan_takeover
from replicator.daemon import pairview
from replicator.daemon.node import Node
from replicator.daemon.pairstore import PairConfig
from replicator.daemon.peers import Peer

PEEK_S = 1.0
"""How long a peer that may be dead is asked. Short: a takeover is urgent, and a living peer answers in milliseconds."""
SWITCHOVER_S = 90.0
TAKEOVER_S = 120.0


def handlers(node: Node) -> dict[str, Handler]:
    """The operations, by name."""
    return {
        "switchover": lambda args: switchover(node, args),
        "takeover": lambda args: takeover(node, args),
        "takeover.plan": lambda args: plan(node, args),
    }


def switchover(node: Node, args: dict[str, Any]) -> dict[str, Any]:
    """Exchange the roles with a peer. On a secondary, the primary is asked to; a `peer` can only be this node then.

    Raises NotFound for a peer that has no pair with this node, Refused for one that cannot become primary from here.
    """
    group = str(args["group"])
    status = node.target("group.status", group=node.pairs.store.of_group(group)[0].group)
    if status.get("role") != "secondary":
        return switch_to(node, node.pairs.find(group, str(args.get("peer") or "")), args)
    wanted = str(args.get("peer") or "")
    if wanted not in ("", node.config.name, node.config.node_id):
        to = node.pairs.name_of(node.pairs.find(group, wanted).peer)
        raise Refused(
            f"{node.config.name} is not primary of group {status['name']}, so it cannot hand the role to {to}",
            f"ask on the primary; without PEER {node.config.name} becomes primary itself",
        )
    pair = feeding(node, group, status)
    peer = node.peers.get(pair.peer)
    if peer is None:
        raise NotFound(f"node {pair.peer} is no peer any more", "join it again")
    result: dict[str, Any] = node.call(peer, "pair.switchover", SWITCHOVER_S, group=pair.group, **_deadline(args))
    return _named(node, result)


def switch_to(node: Node, pair: PairConfig, args: dict[str, Any]) -> dict[str, Any]:
    """Give the primary role to the peer of `pair`. Raises Refused where this node does not have it."""
    status = node.target("group.status", group=pair.group)
    if status.get("role") != "primary":
        raise Refused(
            f"{node.config.name} is not primary of group {pair.name} and cannot hand the role over",
            "switch over on the primary, to a node that it feeds; repeat it node by node to go further down",
        )
    return _named(node, node.pairs.loop(pair).command("switchover", SWITCHOVER_S, **_deadline(args)))


def _named(node: Node, result: dict[str, Any]) -> dict[str, Any]:
    return result | {"primary_name": node.pairs.name_of(str(result.get("primary", "")))}


def _deadline(args: dict[str, Any]) -> dict[str, Any]:
    return {"deadline_s": deadline_s} if (deadline_s := number(args, "deadline_s", 0.0)) else {}


def feeding(node: Node, group: str, status: dict[str, Any]) -> PairConfig:
    """The pair with the node that feeds this one; on a primary, or one that nobody feeds, the first."""
    pairs = node.pairs.store.of_group(group)
    return next((pair for pair in pairs if pair.peer == status.get("upstream")), pairs[0])


class _Judged:
    """A plan, with what it was made of."""

    def __init__(self, node: Node, args: dict[str, Any]) -> None:
        group, force = str(args["group"]), bool(args.get("force"))
        uuid = node.pairs.store.of_group(group)[0].group
        self.status: dict[str, Any] = node.target("group.status", group=uuid)
        self.pair = pair = feeding(node, group, self.status)
        self.peek = peek_at_peer(node, pair)
        facts = node.pairs.facts(pair)
        self.lost = lost(self.status, facts, self.peek)
        facts["primaries"] = primaries(node, uuid, but=pair.peer)
        facts["linked"] = self.peek["reachable"] and self.peek["target"]
        facts["peer_role"] = self.peek.get("role") or facts.get("peer_role")
        facts["peer_upstream"] = self.peek.get("upstream") or facts.get("peer_upstream")
        self.others = pairview.after_takeover(node, pair, facts)
        if self.peek.get("pos") is not None:
            facts["peer_pos"] = self.peek["pos"]
        facts["goes_back"] = bool(args.get("marker") or args.get("cycle"))
        self.plan: Plan = plan_takeover(self.status, facts, force=force)


def plan(node: Node, args: dict[str, Any]) -> dict[str, Any]:
    """Say what a takeover would do now, by the code that does it. Changes nothing."""
    judged = _Judged(node, args)
    return judged.plan._asdict() | {"lost": judged.lost, "peer": judged.peek, "others": judged.others}


def takeover(node: Node, args: dict[str, Any]) -> dict[str, Any]:
    """Make this node primary. Durable on return: the role and a new epoch, so the former primary is superseded.

    Raises Refused while the primary lives and `force` is not given, or when the copy here cannot be used.
    """
    judged = _Judged(node, args)
    if not judged.plan.allowed:
        raise Refused(judged.plan.message, judged.plan.way_out)
    where = {key: args[key] for key in ("marker", "cycle", "at_limit") if args.get(key)}
    # The peer was asked just now, which is newer than what the session heard: a primary whose target is dead, or that
    # is cut off, is no reason to refuse.
    result = node.pairs.loop(judged.pair).command("takeover", TAKEOVER_S, force=True, status=judged.status, **where)
    told = {"label": judged.plan.label, "message": judged.plan.message, "lost": judged.lost, "others": judged.others}
    return result | told


def primaries(node: Node, group: str, but: str) -> list[str]:
    """Ask every peer at once, but one, whether it is primary of the group; returns the names of those that say so.

    Peers need no pair with this node for that. Whoever does not answer in PEEK_S, or is of an older version, is left
    out. group: its uuid.
    """

    def says_so(peer: Peer) -> bool:
        try:
            found: dict[str, Any] = node.call(peer, "group.role", PEEK_S, group=group)
        except FarstripeError:
            return False
        return bool(found.get("target")) and found.get("role") == "primary"

    peers = [peer for peer in node.peers.all() if peer.node_id != but]
    if not peers:
        return []
    with ThreadPoolExecutor(len(peers), thread_name_prefix="role") as pool:
        return [peer.name for peer, yes in zip(peers, pool.map(says_so, peers), strict=True) if yes]


def peek_at_peer(node: Node, pair: PairConfig) -> dict[str, Any]:
    """Ask the peer how it stands: {"reachable": bool, "target": bool} and what ops_remote.peek says, or a "reason"."""
    peer = node.peers.get(pair.peer)
    if peer is None:
        return {"reachable": False, "target": False, "reason": "it is no peer any more"}
    try:
        found: dict[str, Any] = node.call(peer, "pair.peek", PEEK_S, group=pair.group)
    except FarstripeError as exc:
        return {"reachable": False, "target": False, "reason": exc.message}
    return {"reachable": True, **found}


def lost(status: dict[str, Any], facts: dict[str, Any], peek: dict[str, Any]) -> dict[str, Any]:
    """Say in numbers what the primary has and this node lacks."""
    pos = int(status.get("pos") or 0)
    if peek.get("pos") is not None and peek.get("role") == "primary":
        records = max(0, int(peek["pos"]) - pos)
        seconds = _age_s(int(peek.get("last_write_time_ns") or 0), status) if records else 0.0
        unsent = peek.get("unsent_bytes") or None  # what is under way on the line is in nobody's count
        return {
            "records": records,
            "bytes": 0 if not records else unsent,
            "seconds": seconds,
            "certain": True,
            "alive": bool(peek.get("target")),
        }
    beat = facts.get("peer_beat")
    known = max(int(facts.get("peer_pos") or 0), int(beat["head_seq"]) if beat else 0)
    behind = None if beat is None else int(beat["unsent_bytes"])
    missing = max(0, known - pos) if known else None
    silent_s = facts.get("contact_age_s")
    return {
        "records": missing,
        "bytes": 0 if missing == 0 else behind or None,
        "seconds": silent_s,
        "certain": False,
        "alive": False,
    }


def _age_s(last_write_ns: int, status: dict[str, Any]) -> float | None:
    mine = int(status.get("applied_time_ns") or 0)
    return round(max(0, last_write_ns - mine) / 1e9, 3) if last_write_ns and mine else None
