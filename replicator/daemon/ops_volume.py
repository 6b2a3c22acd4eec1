"""Control operations on the volumes of a paired group.

    volumes.add {group, volume, force?}          -> the target's group.status

Every node of the group's tree makes the volume when it comes to the record that adds it, which stops a copy where the
name is taken. So all nodes that can be reached are asked before anything changes, each asks those below it, and one
that cannot be reached refuses the change unless `force` takes the risk. A volume that leaves, or gets another size,
needs nothing that a peer could lack.

    pair.check_volume {group, volume, size, hops} -> {away: [names]}   of a peer: see `check`
"""

from __future__ import annotations

from typing import Any

from replicator.control import Handler
from replicator.core.errors import FarstripeError, NotFound, PeerError, Refused, TimedOut, from_map, to_map
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer
from replicator.daemon.tree import MAX_HOPS

CHECK_S = 20.0
CHANGE_S = 120.0


def handlers(node: Node) -> dict[str, Handler]:
    """The operations, by name."""
    return {"volumes.add": lambda args: add(node, args)}


def remote_handlers(node: Node) -> dict[str, Any]:
    """What peers may ask: op -> function(peer, args)."""
    return {"pair.check_volume": lambda peer, args: check(node, peer, args)}


def add(node: Node, args: dict[str, Any]) -> Any:
    """Put a volume of this node into a paired group whose primary is here. Durable on return: that it is in.

    Raises Refused with nothing changed when a node of the tree could not make the volume, or cannot be asked.
    """
    group, name = node.pairs.store.of_group(str(args["group"]))[0].group, str(args["volume"])
    volume = next((v for v in node.target("volume.list") if v["name"] == name), None)
    if volume is None:
        raise NotFound(f"no volume {name!r} on this node", "farstripe volume list shows them")
    away = _ask_below(node, group, "", name, int(volume["size"]), 0)
    if away and not args.get("force"):
        raise Refused(
            f"{', '.join(away)} cannot be asked whether volume {name} could be made there",
            "reconnect it; or repeat with --force: its copy stands still if the name is taken there",
        )
    return node.target("group.add_volume", CHANGE_S, group=group, volume=name)


def check(node: Node, peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
    """Say whether this node and those below it could make a volume. Raises Refused when one could not.

    Returns the names of the nodes that could not be asked.
    """
    group, name, size, hops = str(args["group"]), str(args["volume"]), int(args["size"]), int(args.get("hops", 0))
    if node.pairs.store.get(group, peer.node_id) is None:
        raise NotFound(f"the group has no pair with {peer.name} on {node.config.name}")
    if hops >= MAX_HOPS:
        raise Refused("the question went through more nodes than a group can have", "see 'farstripe pair list' there")
    node.target("group.check_volume", CHECK_S, group=group, volume=name, size=size)
    return {"away": _ask_below(node, group, peer.node_id, name, size, hops + 1)}


def _ask_below(node: Node, group: str, asker: str, name: str, size: int, hops: int) -> list[str]:
    away = []
    for pair in node.pairs.store.of_group(group):
        if pair.peer == asker:
            continue
        peer = node.peers.get(pair.peer)
        if peer is None:
            away.append(pair.peer)
            continue
        try:
            asked = node.call(peer, "pair.check_volume", CHECK_S, group=group, volume=name, size=size, hops=hops)
            away += asked["away"]
        except (PeerError, TimedOut):
            away.append(peer.name)
        except FarstripeError as exc:
            raise from_map(to_map(exc) | {"message": f"on {peer.name}: {exc.message}"}) from exc
    return away
