"""How two nodes become peers: the join message, both its sides.

    newcomer                                     issuer of the token
    connects; compares the certificate with the
    fingerprint in the token
    join {token id, node id, name, address,
          port, certificate, proof}         ---> proof right? token open? then, durably and in this order:
                                                 token used up, newcomer stored
    compares proof, stores the issuer       <--- {node id, name, certificate, proof}
    calls peer.hello with its certificate   ---> answers: both directions of trust are shown to work

proof = HMAC-SHA256(secret, role | fields, length-prefixed | both fingerprints), so neither side can be replaced by one
that only listens. A crash between the two sides leaves the issuer with a peer it may delete; the newcomer joins again
with another token, which is no error for the same certificate.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
from typing import Any

from replicator.core.errors import AuthError, BadInput, PeerError, ProtocolError
from replicator.daemon import rpc
from replicator.daemon.identity import Identity, check_cert
from replicator.daemon.nodeconfig import NodeConfig
from replicator.daemon.peers import Peer, PeerStore
from replicator.daemon.tls import Contexts, connect_unknown
from replicator.daemon.tokens import Token, TokenStore

CONNECT_S = 10.0


def proof(secret: bytes, role: str, fields: list[str], issuer: bytes, newcomer: bytes) -> bytes:
    """Return the HMAC of one side. role: "newcomer" or "issuer"; the last two: fingerprints."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (b"farstripe join 1", role.encode(), *(field.encode() for field in fields), issuer, newcomer):
        mac.update(len(part).to_bytes(4, "little") + part)
    return mac.digest()


def is_wildcard(address: str) -> bool:
    """Whether an address says "all interfaces" and so cannot be told to others."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def accept(
    frame: dict[str, Any], came_from: str, config: NodeConfig, identity: Identity, peers: PeerStore, tokens: TokenStore
) -> dict[str, Any]:
    """Answer a join message. Durable on return: the token is used up and the newcomer is a peer.

    Raises AuthError (token or proof wrong: nothing changed), BadInput, AlreadyExists.
    """
    try:
        token_id, node_id, name = str(frame["token"]), str(frame["node_id"]), str(frame["name"])[:63]
        address, port = str(frame["address"])[:253], int(frame["port"])
        cert, fingerprint = check_cert(frame["cert"])
        shown = bytes(frame["proof"])
    except (KeyError, TypeError, ValueError) as exc:
        raise BadInput(f"the join message is malformed: {exc}", "run the same version on both nodes") from exc
    secret = tokens.secret_of(token_id)
    fields = [token_id, node_id, name, address, str(port)]
    if not hmac.compare_digest(shown, proof(secret, "newcomer", fields, identity.fingerprint, fingerprint)):
        raise AuthError("the token's secret is wrong", "copy the token again, or make a new one")
    if node_id == config.node_id or fingerprint == identity.fingerprint:
        raise BadInput("a node cannot be its own peer", "give the token to another node")
    if len(node_id) != 32 or set(node_id) - set("0123456789abcdef") or not 1 <= port <= 65535:
        raise BadInput("the join message is malformed", "run the same version on both nodes")
    peers.check_addable(node_id, fingerprint)
    tokens.consume(token_id)
    peers.add(node_id, name, came_from if is_wildcard(address) else address, port, cert)
    mine = [token_id, config.node_id, config.name]
    return {
        "node_id": config.node_id,
        "name": config.name,
        "cert": identity.cert_pem,
        "proof": proof(secret, "issuer", mine, identity.fingerprint, fingerprint),
    }


def join(token: Token, config: NodeConfig, identity: Identity, peers: PeerStore, contexts: Contexts) -> Peer:
    """Become a peer of the node that made `token`. Durable on return: it is our peer, and we are its.

    Raises PeerError, AuthError, BadInput, AlreadyExists.
    """
    if token.fingerprint == identity.fingerprint:
        raise BadInput("this node made the token itself", "use it on the other node")
    fields = [token.id, config.node_id, config.name, config.address, str(config.port)]
    frame = {
        "t": "join",
        "token": token.id,
        "node_id": config.node_id,
        "name": config.name,
        "address": config.address,
        "port": config.port,
        "cert": identity.cert_pem,
        "proof": proof(token.secret, "newcomer", fields, token.fingerprint, identity.fingerprint),
    }
    with contextlib.closing(connect_unknown(token.address, token.port, token.fingerprint, CONNECT_S)) as sock:
        sock.settimeout(CONNECT_S)
        reply = rpc.ask(sock, frame, token.name)
    peer = _checked(reply, token, identity, peers)
    try:
        rpc.call(contexts, peer, "peer.hello", {}, CONNECT_S)
    except PeerError as exc:
        raise PeerError(f"joined {peer.name}, but it cannot be called: {exc.message}", exc.way_out) from exc
    return peer


def _checked(reply: Any, token: Token, identity: Identity, peers: PeerStore) -> Peer:
    try:
        node_id, name, shown = str(reply["node_id"]), str(reply["name"]), bytes(reply["proof"])
        cert, fingerprint = check_cert(reply["cert"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ProtocolError(f"{token.name} answered with a malformed message: {exc}") from exc
    expected = proof(token.secret, "issuer", [token.id, node_id, name], token.fingerprint, identity.fingerprint)
    if fingerprint != token.fingerprint or not hmac.compare_digest(shown, expected):
        raise AuthError(f"{token.name} did not prove that it made the token", "make a new token")
    return peers.add(node_id, name, token.address, token.port, cert)
