"""The replicator put together: stores, TLS, listener, pairs, control socket; started and stopped in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from replicator.control import ControlServer, Handler, number, someone_listens
from replicator.core.epochs import node_tag
from replicator.core.errors import AlreadyExists, Refused
from replicator.daemon import (
    eventtext,
    joining,
    nodeconfig,
    numbered,
    ops_marker,
    ops_pair,
    ops_peer,
    ops_remote,
    ops_role,
    ops_rpo,
    ops_transfer,
    ops_volume,
    pairview,
)
from replicator.daemon.durablefile import write_bytes
from replicator.daemon.identity import load_or_create
from replicator.daemon.listener import Listener
from replicator.daemon.markers import Markers
from replicator.daemon.markerschedule import Scheduler
from replicator.daemon.markerstore import MarkerStore
from replicator.daemon.metrics import Metrics
from replicator.daemon.node import Node
from replicator.daemon.pairs import Pairs
from replicator.daemon.pairstore import Key, PairConfig, PairStore
from replicator.daemon.peers import PeerStore
from replicator.daemon.rpowatch import RpoWatch
from replicator.daemon.sets import Sets
from replicator.daemon.skew import SkewWatch
from replicator.daemon.tls import Contexts
from replicator.daemon.tokens import TokenStore
from replicator.eventlog import EventLog

log = logging.getLogger("farstripe.replicator")


class Replicator:
    """One node's replicator process."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        """Read what is stored. Raises NotFound (no node), BadInput, IntegrityError, AlreadyExists (it runs already)."""
        config = nodeconfig.load(state_dir)
        self._socket_path = run_dir / "replicator.sock"
        if someone_listens(self._socket_path):
            raise AlreadyExists(
                f"the replicator of this node runs already ({self._socket_path})", "farstripe node status"
            )
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid_path = run_dir / "replicator.pid"
        identity = load_or_create(state_dir / "keys", config.node_id)
        peers = PeerStore(state_dir / "peers")
        contexts = Contexts(identity, peers)
        peers.on_change = contexts.refresh
        events = EventLog(state_dir / "replicator-events.jsonl")
        self.stop_wanted = threading.Event()
        self._last_down: dict[Key, Any] = {}
        pairs = Pairs(
            state_dir, run_dir, config.node_id, config.name, PairStore(state_dir / "pairs"), peers, contexts, self._note
        )
        self.node = Node(
            state_dir, run_dir, config, identity, peers, TokenStore(state_dir / "tokens.json"), contexts, events, pairs
        )
        self.markers = Markers(self.node, MarkerStore(state_dir / "markers", node_tag(config.node_id)))
        self._scheduler = Scheduler(self.markers, lambda kind, text: events.add(kind, text))
        self._sets = Sets(self.node)
        self._skew = SkewWatch(self.node)
        self.node.remote_handlers |= {
            "clock.read": lambda peer, args: {"wall_ns": time.time_ns()},
            **ops_marker.remote_handlers(self.node, self.markers),
            **ops_volume.remote_handlers(self.node),
            **numbered.remote_handlers(self.node),
            **self._sets.remote_handlers(),
        }
        self._listener = Listener(
            config.address,
            config.port,
            contexts,
            peers,
            on_join=self._join,
            on_rpc=lambda peer, op, args: ops_remote.run(self.node, peer, op, args),
            on_link=pairs.accept_link,
            event=self._note_connection,
        )
        self._rpo_watch = RpoWatch(self.node)
        self._metrics = Metrics(self.node)
        self._control = ControlServer(self._socket_path, self._handlers())

    def start(self) -> None:
        """Listen, connect, serve. Raises Refused when the port cannot be had (then nothing was started)."""
        self._listener.start()
        if self.node.config.metrics is not None:
            try:
                self._metrics.serve(*self.node.config.metrics)
            except Refused:
                self._listener.stop()
                raise
        write_bytes(self._pid_path, f"{os.getpid()}\n".encode())
        self.node.pairs.start()
        self._rpo_watch.start()
        self._control.start()
        for part in (self._scheduler, self._sets, self._skew):
            part.start()
        self.node.events.add("replicator.started", "the replicator has started", pid=os.getpid())

    def stop(self) -> None:
        """End in order: no new requests, then the pairs, so that peers see an end and not a silence."""
        self._listener.stop()
        self._metrics.stop()
        self._rpo_watch.stop()
        for part in (self._scheduler, self._sets, self._skew):
            part.stop()
        self.node.pairs.stop()
        self.node.events.add("replicator.stopped", "the replicator has stopped")
        self.node.events.close()
        self._control.stop()
        self._pid_path.unlink(missing_ok=True)

    def _handlers(self) -> dict[str, Handler]:
        node = self.node
        return {
            "node.info": lambda args: self._info(),
            "node.stop": lambda args: self._request_stop(),
            "events.list": lambda args: node.events.since(int(number(args, "since", 0))),
            "status": lambda args: {
                "node": self._info(),
                "pairs": pairview.view_all(node),
                "peers": ops_peer.handlers(node)["peer.list"]({}),
                "clocks": self._skew.status(),
            },
            **ops_peer.handlers(node),
            **ops_pair.handlers(node),
            **ops_role.handlers(node),
            **ops_rpo.handlers(node, self._metrics),
            **ops_marker.handlers(node, self.markers),
            **self._sets.handlers(),
            **ops_transfer.handlers(node),
            **ops_volume.handlers(node),
        }

    def _info(self) -> dict[str, Any]:
        node = self.node
        return {
            "node_id": node.config.node_id,
            "name": node.config.name,
            "pid": os.getpid(),
            "started": node.started,
            "replication": {"address": node.config.address, "port": node.config.port},
            "fingerprint": node.identity.fingerprint.hex(),
            "peers": [peer.name for peer in node.peers.all()],
            "pairs": sorted({pair.name for pair in node.pairs.store.all()}),
        }

    def _request_stop(self) -> dict[str, Any]:
        self.stop_wanted.set()
        return {"pid": os.getpid()}

    def _join(self, frame: dict[str, Any], came_from: str) -> dict[str, Any]:
        node = self.node
        reply = joining.accept(frame, came_from, node.config, node.identity, node.peers, node.tokens)
        node.events.add("peer.joined", f"{frame['name']} is a peer now", node_id=frame["node_id"])
        return reply

    def _note(self, pair: PairConfig, name: str, detail: dict[str, Any]) -> None:
        if name in eventtext.QUIET:
            log.debug("pair %s: %s %s", pair.name, name, detail)
            return
        if name == "link-down" and self._last_down.get(pair.key) == detail.get("reason"):
            return  # a peer that is away would fill the log
        if name in ("link-up", "link-down"):
            self._last_down[pair.key] = detail.get("reason")
        peer = self.node.pairs.name_of(pair.peer)
        kind, text = eventtext.describe(name, {"peer": peer, **detail})
        log.info("pair %s: %s", pair.name, text)
        self.node.events.add(kind, f"{pair.name}: {text}", group=pair.name, peer=peer, **_plain(detail))

    def _note_connection(self, name: str, detail: dict[str, Any]) -> None:
        kind, text = eventtext.describe(name, detail)
        log.info("%s", text)
        self.node.events.add(kind, text, **detail)


def _plain(detail: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if key not in ("group", "peer", "kind", "text")}
