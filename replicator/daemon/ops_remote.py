"""Operations peers may ask of this node's replicator, over mutual TLS.

    peer.hello {}                          -> {node_id, name}
    pair.adopt {group, name, volumes, journal_bytes, policy, transfer, overwrite} -> {}  become the secondary of a pair
    pair.forget {group, undo?}             -> {note}  the pair is over; undo: it never was
    pair.peek {group}                      -> {target, role, state, upstream, pos, last_write_time_ns, unsent_bytes}
    group.role {group}                     -> {target, role}  of a group, by its uuid, pair or not
    pair.knock {group}                     -> {}  the caller has started and wants the data path
    pair.switchover {group, deadline_s?}   -> {primary}
    pair.extend_copy {group, copy_id, masks, hops} -> {seq, epoch}  see tree.py
    pair.check_volume {group, volume, size, hops} -> {away}  see ops_volume.py

A peer may only touch groups it is paired with, and adopt what is nobody's. It may ask of any group whose uuid it knows
which role it has here, so that nobody becomes primary beside another who is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.control import Args
from replicator.core.errors import AlreadyExists, FarstripeError, NotFound, Refused
from replicator.core.transfer import from_map
from replicator.daemon import ops_role, tree
from replicator.daemon.node import Node
from replicator.daemon.ops_pair import forget
from replicator.daemon.pairstore import PairConfig
from replicator.daemon.peers import Peer

PEEK_TARGET_S = 0.8
ADOPT_TARGET_S = 280.0

RemoteHandler = Callable[[Peer, dict[str, Any]], Any]


def handlers(node: Node) -> dict[str, RemoteHandler]:
    """The operations, by name."""

    def hello(peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        return {"node_id": node.config.node_id, "name": node.config.name}

    def end(peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        pair = _pair_with(node, peer, str(args["group"]))
        if not args.get("undo"):
            return {"note": forget(node, pair)}
        node.pairs.stop_one(pair.key)
        node.pairs.store.delete(pair.key)
        node.target("group.delete", group=pair.group, force=True, undo=True)
        return {"note": ""}

    def switchover(peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        return ops_role.switch_to(node, _pair_with(node, peer, str(args["group"])), args)

    def extend_copy(peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        pair = _pair_with(node, peer, str(args["group"]))
        status = node.target("group.status", group=pair.group)
        if status.get("upstream") == peer.node_id:
            raise Refused(f"{peer.name} feeds this node, and not the other way round", "it asks again by itself")
        return tree.extend_copy(node.run_dir, node.contexts, node.peers, pair.group, args)

    def knock(peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        node.pairs.loop(_pair_with(node, peer, str(args["group"]))).knock()
        return {}

    return {
        "peer.hello": hello,
        "pair.adopt": lambda peer, args: adopt(node, peer, args),
        "pair.forget": end,
        "pair.peek": lambda peer, args: peek(node, _pair_with(node, peer, str(args["group"]))),
        "group.role": lambda peer, args: role(node, str(args["group"])),
        "pair.knock": knock,
        "pair.switchover": switchover,
        "pair.extend_copy": extend_copy,
    }


def run(node: Node, peer: Peer, op: str, args: dict[str, Any]) -> Any:
    """Run the operation `op` for `peer`. Raises NotFound for one nobody knows, and what the operation raises."""
    handler = handlers(node).get(op) or node.remote_handlers.get(op)
    if handler is None:
        raise NotFound(f"node {node.config.name} knows no operation {op!r}", "run the same version on both nodes")
    return handler(peer, Args(args))


def _pair_with(node: Node, peer: Peer, group: str) -> PairConfig:
    pair = node.pairs.store.get(group, peer.node_id)
    if pair is None:
        raise NotFound(f"group {group} has no pair with {peer.name} on {node.config.name}")
    return pair


def adopt(node: Node, peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
    """Make the copy of a peer's group here and pair with it. Durable on return: group and pair.

    Raises AlreadyExists, Refused, BadInput with nothing changed.
    """
    group, name = str(args["group"]), str(args["name"])
    known = node.pairs.store.get(group, peer.node_id)
    others = [pair for pair in node.pairs.store.all() if pair.group == group and pair.peer != peer.node_id]
    if others:
        names = ", ".join(node.pairs.name_of(pair.peer) for pair in others)
        raise AlreadyExists(
            f"{node.config.name} holds group {name} already, paired with {names}: this pair would make a cycle",
            "a group's pairs form a tree: end the other pair first, or pair with another node",
        )
    present = {status["uuid"]: status for status in node.target("group.list")}
    if group in present and known is None:
        mine = present[group]
        if mine.get("role") == "primary":
            raise Refused(
                f"{node.config.name} has a group {mine['name']} of the same origin, with data of its own",
                f"delete it there first: farstripe group delete {mine['name']}",
            )
    if group not in present and not args.get("overwrite"):
        _refuse_data(node, [volume["name"] for volume in args["volumes"]])
    made = group not in present
    node.target(
        "group.adopt",
        ADOPT_TARGET_S,
        uuid=group,
        name=name,
        volumes=args["volumes"],
        journal_bytes=int(args["journal_bytes"]),
    )
    try:
        policy = dict(args["policy"])
        node.target("group.policy", group=group, **policy)
        node.target("group.arm", group=group, peer=peer.node_id, mode=policy.get("mode", "async"), upstream=True)
        pair = PairConfig(group, name, peer.node_id, **from_map(args.get("transfer") or {}).to_map())
        node.pairs.store.put(pair)
    except BaseException:
        if made:
            node.target("group.delete", group=group, force=True, undo=True)
        raise
    node.pairs.start_one(pair)
    node.events.add("pair.adopted", f"group {name} is a copy of {peer.name}'s now", group=name)
    return {}


def _refuse_data(node: Node, names: list[str]) -> None:
    for volume in node.target("volume.list"):
        if volume["name"] in names and volume.get("group") is None and volume.get("allocated"):
            raise Refused(
                f"volume {volume['name']} exists on {node.config.name} and holds data, which pairing would overwrite",
                "repeat with --overwrite, or rename or delete it there",
            )


def role(node: Node, group: str) -> dict[str, Any]:
    """Say which role a group has here, None when it is not here or nobody knows, and whether it is served."""
    try:
        status = node.target("group.status", PEEK_TARGET_S, group=group)
    except FarstripeError:
        return {"target": False, "role": None}
    return {"target": not status.get("failed"), "role": status.get("role")}


def peek(node: Node, pair: PairConfig) -> dict[str, Any]:
    """Say how this side of a pair stands, also when the target does not answer."""
    try:
        status = node.target("group.status", PEEK_TARGET_S, group=pair.group)
    except FarstripeError as exc:
        return {"target": False, "reason": exc.message}
    facts = node.pairs.facts(pair)
    return {
        "target": not status.get("failed"),
        "role": status.get("role"),
        "state": status.get("state"),
        "upstream": status.get("upstream"),
        "pos": status.get("pos"),
        "last_write_time_ns": status.get("last_write_time_ns"),
        "unsent_bytes": facts.get("unsent_bytes"),
    }
