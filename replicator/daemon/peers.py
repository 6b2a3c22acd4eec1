"""The peers this node knows: STATE/peers/<node id>.json, one file each.

    {"node_id", "name", "address", "port", "cert": PEM, "joined": seconds since 1970}

A peer is trusted by its pinned certificate alone. Address and port say where it was last; they may change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from replicator.core.errors import AlreadyExists, BadInput, IntegrityError, NotFound
from replicator.daemon.durablefile import read_json, remove, write_json
from replicator.daemon.identity import check_cert

MAX_PEERS = 256


@dataclass(frozen=True)
class Peer:
    """One other node."""

    node_id: str
    name: str
    address: str
    port: int
    cert: str
    fingerprint: bytes
    joined: float


class PeerStore:
    """All peers; thread-safe. `on_change` is called after each change, without the lock."""

    def __init__(self, folder: Path) -> None:
        """Load the peers in `folder`, made when missing. Raises IntegrityError for a damaged file."""
        self._folder = folder
        self._lock = threading.Lock()
        self.on_change: Callable[[], None] = lambda: None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._peers = {peer.node_id: peer for peer in map(_load, sorted(folder.glob("*.json")))}

    def all(self) -> list[Peer]:
        """Every peer, by name."""
        with self._lock:
            return sorted(self._peers.values(), key=lambda p: (p.name, p.node_id))

    def get(self, node_id: str) -> Peer | None:
        """The peer with that id, or None."""
        with self._lock:
            return self._peers.get(node_id)

    def find(self, name_or_id: str) -> Peer:
        """The peer of that name or id (8 digits of an id will do). Raises NotFound, BadInput when it is ambiguous."""
        found = [p for p in self.all() if p.name == name_or_id or p.node_id == name_or_id]
        if not found and len(name_or_id) >= 8:
            found = [p for p in self.all() if p.node_id.startswith(name_or_id)]
        if not found:
            raise NotFound(f"no peer {name_or_id!r}", "'farstripe peer list' shows the peers; 'peer join' adds one")
        if len(found) > 1:
            raise BadInput(f"{len(found)} peers are called {name_or_id!r}", "name the peer by its node id")
        return found[0]

    def by_fingerprint(self, fingerprint: bytes) -> Peer | None:
        """The peer whose pinned certificate has this fingerprint, or None."""
        with self._lock:
            return next((p for p in self._peers.values() if p.fingerprint == fingerprint), None)

    def check_addable(self, node_id: str, fingerprint: bytes) -> None:
        """Raise AlreadyExists when the node is known with another certificate, BadInput when there are too many."""
        known = self.get(node_id)
        if known is not None and known.fingerprint != fingerprint:
            raise AlreadyExists(
                f"node {known.name} ({node_id}) is a peer already, with another certificate",
                "if its key was replaced on purpose: 'farstripe peer delete', then join again",
            )
        if known is None and len(self.all()) >= MAX_PEERS:
            raise BadInput(f"there are {MAX_PEERS} peers already", "delete those that are gone")

    def add(self, node_id: str, name: str, address: str, port: int, cert_pem: str) -> Peer:
        """Add a peer, or renew what is known of one with the same certificate.

        Durable: the peer. Raises as check_addable, and ValueError when the certificate is none.
        """
        cert, fingerprint = check_cert(cert_pem)
        self.check_addable(node_id, fingerprint)
        peer = Peer(node_id, name, address, port, cert, fingerprint, time.time())
        stored = {key: value for key, value in asdict(peer).items() if key != "fingerprint"}
        with self._lock:
            write_json(self._folder / f"{node_id}.json", stored)
            self._peers[node_id] = peer
        self.on_change()
        return peer

    def delete(self, node_id: str) -> None:
        """Forget a peer: from now on its connections are refused. Durable."""
        with self._lock:
            remove(self._folder / f"{node_id}.json")
            self._peers.pop(node_id, None)
        self.on_change()


def _load(path: Path) -> Peer:
    raw = read_json(path)
    try:
        cert, fingerprint = check_cert(raw["cert"])
        return Peer(
            str(raw["node_id"]), str(raw["name"]), str(raw["address"]), int(raw["port"]), cert, fingerprint,
            float(raw["joined"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"{path} is damaged: {exc}", "remove it and join the peer again") from exc
