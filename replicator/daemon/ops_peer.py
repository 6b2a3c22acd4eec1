"""Control operations on peers.

    peer.token {address?, port?, expires_s?}  -> {token, expires, address, port}
    peer.join {token}                         -> the peer
    peer.list {}                              -> [peer]
    peer.delete {peer, force?}                -> {}

A peer is {node_id, name, address, port, fingerprint, joined, pairs: [group names]}.
"""

from __future__ import annotations

import time
from typing import Any

from replicator.control import Handler
from replicator.core.errors import BadInput, Refused
from replicator.daemon import joining, tokens
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer


def handlers(node: Node) -> dict[str, Handler]:
    """The operations, by name."""

    def token(args: dict[str, Any]) -> dict[str, Any]:
        address, port = args.get("address") or node.config.address, args.get("port")
        port = node.config.port if port is None else port
        if (
            not isinstance(address, str)
            or isinstance(port, bool)
            or not isinstance(port, int)
            or not 1 <= port <= 65535
        ):
            raise BadInput(f"{address!r} port {port!r} is no address to be reached at")
        if joining.is_wildcard(address):
            raise BadInput(
                f"this node listens on all addresses ({address}), the token must name one",
                "give the address at which the other node reaches this one: --address",
            )
        life_s = args.get("expires_s")
        life_s = tokens.DEFAULT_LIFE_S if life_s is None else life_s
        if isinstance(life_s, bool) or not isinstance(life_s, int | float):
            raise BadInput(f"expires_s must be seconds, not {life_s!r}")
        made = node.tokens.issue(address, port, node.config.name, node.identity.fingerprint, float(life_s), time.time())
        return {"token": made.encode(), "expires": made.expires, "address": address, "port": port}

    def join(args: dict[str, Any]) -> dict[str, Any]:
        word = args["token"]
        if not isinstance(word, str):
            raise BadInput("the token must be a text")
        peer = joining.join(tokens.decode(word), node.config, node.identity, node.peers, node.contexts)
        node.events.add("peer.joined", f"{peer.name} is a peer now", node_id=peer.node_id)
        return _facts(node, peer)

    def listing(args: dict[str, Any]) -> list[dict[str, Any]]:
        return [_facts(node, peer) for peer in node.peers.all()]

    def delete(args: dict[str, Any]) -> dict[str, Any]:
        peer = node.peers.find(str(args["peer"]))
        used = _pairs_of(node, peer)
        if used:
            raise Refused(
                f"peer {peer.name} has pairs here: {', '.join(used)}", "delete them first: farstripe pair delete GROUP"
            )
        node.peers.delete(peer.node_id)
        node.events.add("peer.deleted", f"{peer.name} is no peer any more", node_id=peer.node_id)
        return {}

    return {"peer.token": token, "peer.join": join, "peer.list": listing, "peer.delete": delete}


def _pairs_of(node: Node, peer: Peer) -> list[str]:
    return [pair.name for pair in node.pairs.store.all() if pair.peer == peer.node_id]


def _facts(node: Node, peer: Peer) -> dict[str, Any]:
    return {
        "node_id": peer.node_id,
        "name": peer.name,
        "address": peer.address,
        "port": peer.port,
        "fingerprint": peer.fingerprint.hex(),
        "joined": peer.joined,
        "pairs": _pairs_of(node, peer),
    }
