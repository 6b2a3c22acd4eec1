"""The parts of a running replicator, in one place for the operations that use them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replicator.control import ControlClient
from replicator.core.rpo import Verdict
from replicator.daemon import rpc
from replicator.daemon.identity import Identity
from replicator.daemon.nodeconfig import NodeConfig
from replicator.daemon.pairs import Pairs
from replicator.daemon.peers import Peer, PeerStore
from replicator.daemon.tls import Contexts
from replicator.daemon.tokens import TokenStore
from replicator.eventlog import EventLog


@dataclass
class Node:
    """This node's replicator."""

    state_dir: Path
    run_dir: Path
    config: NodeConfig
    identity: Identity
    peers: PeerStore
    tokens: TokenStore
    contexts: Contexts
    events: EventLog
    pairs: Pairs
    remote_handlers: dict[str, Any] = field(default_factory=dict)
    """Operations for peers of parts that are made after the node: op -> function(peer, args)."""
    started: float = field(default_factory=time.time)
    rpo_verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    """By (group, peer): how the pair's budget was found last. Written by RpoWatch."""

    def target(self, op: str, timeout_s: float = 60.0, **args: Any) -> Any:
        """Ask this node's target. Raises what it answers, DaemonNotRunning, TimedOut."""
        with ControlClient(self.run_dir / "target.sock", timeout_s) as client:
            return client.call(op, **args)

    def call(self, peer: Peer, op: str, timeout_s: float = 60.0, **args: Any) -> Any:
        """Ask a peer's replicator. Raises what it answers, PeerError, AuthError, TimedOut."""
        return rpc.call(self.contexts, peer, op, args, timeout_s)
