"""TLS 1.3 between nodes: both sides show their certificate, and only pinned ones pass.

The one exception is a join: the newcomer has nothing we could know, so the listener lets a client without certificate
in as far as one join message (joining.py); and the newcomer knows our fingerprint from its token.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from replicator.core.errors import AuthError, PeerError
from replicator.daemon.identity import Identity, fingerprint_of
from replicator.daemon.peers import Peer, PeerStore
from replicator.daemon.tlsstream import TlsStream

USER_TIMEOUT_MS = 15_000


class Contexts:
    """TLS contexts for the present peers; `refresh` after a change of peers."""

    def __init__(self, identity: Identity, peers: PeerStore) -> None:
        self._identity = identity
        self._peers = peers
        self.refresh()

    def refresh(self) -> None:
        """Take up the pinned certificates of all present peers. Connections that stand are not touched."""
        server = self._base(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_OPTIONAL
        server.num_tickets = 0
        client = self._base(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_REQUIRED
        pinned = "".join(peer.cert for peer in self._peers.all())
        if pinned:
            server.load_verify_locations(cadata=pinned)
            client.load_verify_locations(cadata=pinned)
        self.server, self.client = server, client

    def _base(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._identity.cert_path, self._identity.key_path)
        return context

    def connect(self, peer: Peer, timeout_s: float) -> TlsStream:
        """Connect to `peer` and authenticate both ways. The socket has `timeout_s` seconds for each operation.

        Raises PeerError (unreachable), AuthError (another certificate than the pinned one answers).
        """
        raw = _connect_tcp(peer.address, peer.port, timeout_s, peer.name)
        try:
            stream = TlsStream(raw, self.client)
        except ssl.SSLCertVerificationError as exc:
            raw.close()
            raise AuthError(
                f"what answers at {peer.address} port {peer.port} is not node {peer.name}: "
                "its certificate is not the pinned one",
                "if its key was replaced on purpose: 'farstripe peer delete', then join again",
            ) from exc
        except OSError as exc:
            raw.close()
            raise PeerError(
                f"no TLS with {peer.name} at {peer.address} port {peer.port}: {exc}", "is a farstripe replicator there?"
            ) from exc
        if fingerprint_of(stream.peer_certificate) != peer.fingerprint:
            stream.close()
            raise AuthError(f"another peer than {peer.name} answers at {peer.address} port {peer.port}")
        return stream


def connect_unknown(address: str, port: int, fingerprint: bytes, timeout_s: float) -> TlsStream:
    """Connect without a certificate of ours to a node known by fingerprint only (from a token).

    Raises PeerError (unreachable), AuthError (another certificate).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared below, before anything is sent
    raw = _connect_tcp(address, port, timeout_s, "the node")
    try:
        stream = TlsStream(raw, context)
    except OSError as exc:
        raw.close()
        raise PeerError(f"no TLS with {address} port {port}: {exc}", "is a farstripe replicator there?") from exc
    if fingerprint_of(stream.peer_certificate) != fingerprint:
        stream.close()
        raise AuthError(
            f"what answers at {address} port {port} is not the node that made the token",
            "check the address; make a new token if the node's key was replaced",
        )
    return stream


def _connect_tcp(address: str, port: int, timeout_s: float, name: str) -> socket.socket:
    try:
        raw = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as exc:
        raise PeerError(
            f"{name} cannot be reached at {address} port {port}: {exc.strerror or exc}",
            "is its replicator running, and does a firewall let us through?",
        ) from exc
    tune(raw)
    return raw


def tune(sock: socket.socket) -> None:
    """Set what every connection between nodes wants: no delay, and a dead peer noticed by the kernel too."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(OSError):  # not every kernel has these; heartbeats do the same later
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
