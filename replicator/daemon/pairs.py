"""The running pairs: one PairLoop each, made from its stored configuration, made again should its thread fail.

The pairs of one group, one with each peer, share the claim on its journal, and tell each other when this node's part in
the tree has changed: what one waits for may be what another has just got.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from replicator.core.batching import Crowd
from replicator.core.errors import AuthError, BadInput, FarstripeError, IntegrityError, NotFound, Refused
from replicator.core.session import Session
from replicator.core.status import NO_PAIR, STRANGER
from replicator.daemon import rpc, tree
from replicator.daemon.link.asker import Asker
from replicator.daemon.link.claims import Claims
from replicator.daemon.link.connection import Connection
from replicator.daemon.link.flow import Flow
from replicator.daemon.link.groupfiles import GroupFiles
from replicator.daemon.link.loop import PairLoop, Surroundings
from replicator.daemon.link.pulse import Pulse
from replicator.daemon.pairstore import Key, PairConfig, PairStore
from replicator.daemon.peers import Peer, PeerStore
from replicator.daemon.tls import Contexts
from replicator.daemon.tlsstream import TlsStream

log = logging.getLogger("farstripe.pairs")

RESTART_S = 5.0
KNOCK_PAUSES_S = (0.0, 0.5, 1.0)
INQUIRE_EVERY_S = 10.0
"""How often the side that waits to be called asks, while it waits, whether the peer still has the pair."""
PART_TAKEN = ("target",)
"""States of a session that begin with news for the group's other pairs: this node is fed, and complete."""
PART_LEFT = ("promoting", "stepping-down")
"""States that end with such news: this node has another role."""
Note = Callable[[PairConfig, str, dict[str, Any]], None]


class _Running:
    def __init__(self, loop: PairLoop, asker: Asker) -> None:
        self.loop, self.asker = loop, asker
        self.ended = threading.Event()


class Pairs:
    """All pairs of this node, running."""

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        node_id: str,
        node_name: str,
        store: PairStore,
        peers: PeerStore,
        contexts: Contexts,
        note: Note,
    ) -> None:
        """note(pair, event name, detail): records what happened."""
        self._state_dir, self._run_dir = state_dir, run_dir
        self._node_id, self._node_name = node_id, node_name
        self.store = store
        self._peers = peers
        self._contexts = contexts
        self._note = note
        self.changes = 0
        """Rises with every event of a pair."""
        self._changed = threading.Condition()
        self._running: dict[Key, _Running] = {}
        self._claims: dict[str, Claims] = {}
        self._instance = secrets.token_hex(8)
        """Names this process."""
        self._pulses: dict[str, Pulse] = {}
        self._turned_away: dict[Key, tuple[str, str]] = {}
        """Pair -> (NO_PAIR or STRANGER, in words): what the peer's node answered last instead of a link."""
        self._names: dict[str, str] = {}
        """Of nodes that are no peers of this one, as peers call them. For people to read only."""
        self._lock = threading.RLock()
        self._crowd = Crowd()
        self._stopped = False

    def start(self) -> None:
        """Start every stored pair."""
        for pair in self.store.all():
            self.start_one(pair)

    def stop(self) -> None:
        """Stop every pair; connections end in order."""
        with self._lock:
            self._stopped = True
            keys = list(self._running)
        for key in keys:
            self.stop_one(key)

    def start_one(self, pair: PairConfig) -> None:
        """Start the thread of a stored pair, unless it runs."""
        with self._lock:
            if self._stopped or pair.key in self._running:
                return
            session = Session(
                self._node_id,
                pair.peer,
                dials=self._node_id < pair.peer,
                rng=random.Random(),
                split=pair.split,
                handover=pair.handover,
            )
            flow = Flow(lambda: self._files(pair, session), self._crowd)
            loop: PairLoop
            claims = self._claims.setdefault(pair.group, Claims())
            asker = Asker(
                self._run_dir / "target.sock",
                pair.group,
                pair.peer,
                lambda reply: loop.reply(reply),
                lambda op, args: tree.extend_copy(self._run_dir, self._contexts, self._peers, pair.group, args),
                lambda timeout_s: claims.take_alone(loop, loop.evict, timeout_s),
            )
            around = Surroundings(
                name=pair.name,
                ask=asker.ask,
                dial=lambda: self._dial(pair, loop),
                open_more=lambda bundle, count: self._open_more(pair, loop, bundle, count),
                persist=lambda changes: self.store.change(pair.key, changes),
                event=lambda name, detail: self._happened(pair, name, detail),
                transfer=lambda: (self.store.get(*pair.key) or pair).settings,
                failed=lambda: self._failed(pair, loop),
                claims=claims,
                pulse=self._pulses.setdefault(pair.peer, Pulse(self._instance)),
                beside=lambda: self._beside(pair),
                acked=lambda: self._nudge(claims, loop),
            )
            loop = PairLoop(session, flow, around)
            self._running[pair.key] = running = _Running(loop, asker)
            loop.start()
        if not session.dials:
            threading.Thread(target=self._knock, args=(pair, running.ended), name="knock", daemon=True).start()

    @staticmethod
    def _nudge(claims: Claims, loop: PairLoop) -> None:
        holder = claims.holder
        if isinstance(holder, PairLoop) and holder is not loop:
            holder.nudge()

    def _files(self, pair: PairConfig, session: Session) -> GroupFiles:
        """Open the group's files for the place in the page that the target has given the pair."""
        slot = session.status.get("edge")
        if slot is None:
            raise IntegrityError(f"the target knows no pair of group {pair.name} with this peer", "delete the pair")
        return GroupFiles(self._state_dir, self._run_dir, pair.group, slot=int(slot))

    def stop_one(self, key: Key) -> None:
        """End the thread of a pair; its configuration stays."""
        with self._lock:
            running = self._running.pop(key, None)
        if running is not None:
            running.ended.set()
            running.loop.stop()
            running.asker.stop()
        self._turned_away.pop(key, None)

    def loop(self, pair: PairConfig) -> PairLoop:
        """The running loop of a pair. Raises Refused while it is being restarted."""
        with self._lock:
            running = self._running.get(pair.key)
        if running is None:
            raise Refused(f"the pair of group {pair.name} is not running just now", "try again in a few seconds")
        return running.loop

    def find(self, group: str, peer: str = "") -> PairConfig:
        """The pair of a group (name or uuid) with a peer (name or id), which may be left out when there is one.

        Raises NotFound, and BadInput that names the peers when one has to be named.
        """
        pairs = self.store.of_group(group)
        names = ", ".join(sorted(self.name_of(pair.peer) for pair in pairs))
        if peer:
            found = [pair for pair in pairs if peer in (pair.peer, self.name_of(pair.peer))]
            if not found:
                raise NotFound(f"group {pairs[0].name} has no pair with {peer!r}", f"it has pairs with {names}")
            return found[0]
        if len(pairs) > 1:
            raise BadInput(f"group {pairs[0].name} has {len(pairs)} pairs: name the peer", f"one of {names}")
        return pairs[0]

    def siblings(self, pair: PairConfig) -> list[PairLoop]:
        """The running loops of the group's other pairs."""
        with self._lock:
            return [r.loop for key, r in self._running.items() if key[0] == pair.group and key[1] != pair.peer]

    def _beside(self, pair: PairConfig) -> dict[str, Any]:
        """What the peer of a pair is told of the group's other pairs; see SessionBase.beside."""
        with self._lock:
            others = {
                key[1]: r.loop for key, r in self._running.items() if key[0] == pair.group and key[1] != pair.peer
            }
        copies = {node: seq for loop in others.values() for node, seq in loop.copies.items()}
        known = {node: self.name_of(node) for node in {*others, *copies}}
        told: dict[str, Any] = {"names": known | {self._node_id: self._node_name}, "copies": copies}
        for peer, loop in others.items():
            for node, name in loop.names.items():
                if node != name:
                    self._names[node] = name
            if refused := loop.refused:
                told["refused"] = {"peer": peer, "label": refused[0], "cause": refused[1]}
        return told

    def retune(self, pair: PairConfig) -> None:
        """Make the pair take up its changed transfer settings, if it runs."""
        with self._lock:
            running = self._running.get(pair.key)
        if running is not None:
            running.loop.retune()

    def facts(self, pair: PairConfig) -> dict[str, Any]:
        """The session's facts with names and `turned_away` added; empty when the pair does not run."""
        try:
            facts = self.loop(pair).facts()
        except FarstripeError:
            return {}
        kind, reason = self._turned_away.get(pair.key, ("", ""))
        facts["turned_away"] = "" if facts.get("linked") else kind
        if facts["turned_away"]:
            facts["link_reason"] = reason
        for node_id, name in facts.get("peer_names", {}).items():
            if node_id != name:
                self._names[node_id] = name
        facts["refused_beside"] = self._refused_beside(pair, facts)
        facts["peer_name"] = self.name_of(pair.peer)
        facts["follow_name"] = self.name_of((facts.get("decision") or {}).get("follow", ""))
        return facts

    def _refused_beside(self, pair: PairConfig, facts: dict[str, Any]) -> dict[str, Any]:
        """Of another pair of the group that is refused: {node, here, with, cause}; empty for none. here: it is a pair
        of this node, else of the peer."""
        for found, here in ((self._beside(pair).get("refused"), True), (facts.get("peer_refused"), False)):
            if found:
                node = self._node_id if here else pair.peer
                other = self.name_of(str(found.get("peer", "")))
                return {"node": self.name_of(node), "here": here, "with": other, "cause": found.get("cause", "")}
        return {}

    def _happened(self, pair: PairConfig, name: str, detail: dict[str, Any]) -> None:
        self._note(pair, name, detail)
        if name == "pair-state" and (detail.get("is") in PART_TAKEN or detail.get("was") in PART_LEFT):
            for sibling in self.siblings(pair):
                sibling.look_again()
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def look_again(self, groups: Collection[str]) -> None:
        """Copies of these groups (by name or uuid) follow again: pairs that wait for it compare now."""
        for pair in self.store.all():
            if pair.group in groups or pair.name in groups:
                with suppress(Refused):  # it is being started again, and compares then
                    self.loop(pair).look_again()

    def await_change(self, seen: int, timeout_s: float) -> None:
        """Return when `changes` is no longer `seen`, after `timeout_s` seconds at the latest."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != seen, timeout_s)

    def name_of(self, node_id: str) -> str:
        """A node's name: this one's, a peer's, or as peers call it; its id when nobody has told."""
        if node_id == self._node_id:
            return self._node_name
        peer = self._peers.get(node_id)
        return peer.name if peer is not None else self._names.get(node_id, node_id)

    # -- connections ----------------------------------------------------------------------------------------------

    def _dial(self, pair: PairConfig, loop: PairLoop) -> None:
        def dial() -> None:
            try:
                bundle = secrets.token_hex(16)
                stream = rpc.open_link(self._contexts, self._peer(pair), pair.group, bundle)
            except FarstripeError as exc:
                loop.not_connected(self._heard(pair, exc))
            except Exception as exc:  # the session must hear of any failure, or it would wait for ever
                log.exception("dialling for pair %s failed", pair.name)
                loop.not_connected(f"{type(exc).__name__}: {exc}")
            else:
                self._turned_away.pop(pair.key, None)
                loop.connected(Connection(stream, bundle))

        threading.Thread(target=dial, name="dial", daemon=True).start()

    def _open_more(self, pair: PairConfig, loop: PairLoop, bundle: str, count: int) -> None:
        """Add connections to a link. One that cannot be made is asked for again by the loop."""

        def open_one() -> None:
            try:
                stream = rpc.open_link(self._contexts, self._peer(pair), pair.group, bundle, more=True)
            except FarstripeError as exc:
                log.info("pair %s: no further connection: %s", pair.name, exc.message)
            else:
                loop.joined(Connection(stream, bundle))

        for _ in range(count):
            threading.Thread(target=open_one, name="dial", daemon=True).start()

    def _heard(self, pair: PairConfig, exc: FarstripeError) -> str:
        """Keep whether the peer sent us away or is merely not there; returns why there is no link, in words."""
        reason = exc.message
        if isinstance(exc, NotFound):  # the peer may know the group by its uuid only
            reason = f"{self.name_of(pair.peer)} has no pair of group {pair.name} with this node"
            self._turned_away[pair.key] = (NO_PAIR, reason)
        elif isinstance(exc, AuthError):
            self._turned_away[pair.key] = (STRANGER, reason)
        else:
            self._turned_away.pop(pair.key, None)
        return reason

    def _knock(self, pair: PairConfig, ended: threading.Event) -> None:
        """Ask the side that makes the connections to call now: a primary that restarts holds its writers until then.

        Afterwards, while there is no link, ask now and then whether it will ever call: it may have deleted the pair.
        """
        for pause_s in KNOCK_PAUSES_S:
            if ended.wait(pause_s) or self._inquire(pair, "pair.knock"):
                break
        while not ended.wait(INQUIRE_EVERY_S):
            self._inquire(pair, "pair.peek")

    def _inquire(self, pair: PairConfig, op: str) -> bool:
        """Ask the peer about the pair. Returns whether it answered, or there is a link and so nothing to ask."""
        with self._lock:
            running = self._running.get(pair.key)
        if running is None or running.loop.connected_now:
            return True
        try:
            rpc.call(self._contexts, self._peer(pair), op, {"group": pair.group}, 2.0)
        except FarstripeError as exc:
            self._heard(pair, exc)  # unless it sent us away, it calls when it comes
            return False
        self._turned_away.pop(pair.key, None)
        return True

    def _peer(self, pair: PairConfig) -> Peer:
        peer = self._peers.get(pair.peer)
        if peer is None:
            raise AuthError(f"node {pair.peer} is no peer any more", "join it again, or delete the pair")
        return peer

    def accept_link(self, peer: Peer, group: str, bundle: str, more: bool) -> Callable[[TlsStream], None]:
        """Check that `peer` may open the data path of `group`; returns what takes the connection.

        bundle: name of the link. more: it is one more connection of that link; of another it will be closed.

        Raises NotFound, Refused.
        """
        pair = self.store.get(group, peer.node_id)
        if pair is None:
            raise NotFound(
                f"group {group} has no pair with {peer.name} here", "create the pair again, or delete it there"
            )
        if self._node_id < pair.peer:
            raise Refused("this side makes the connections of the pair", "nothing: it will call")
        loop = self.loop(pair)

        def take(stream: TlsStream) -> None:
            conn = Connection(stream, bundle)
            if more:
                loop.joined(conn)
                return
            self._turned_away.pop(pair.key, None)
            loop.connected(conn)

        return take

    # -- failure --------------------------------------------------------------------------------------------------

    def _failed(self, pair: PairConfig, loop: PairLoop) -> None:
        """The loop's thread has ended by a defect or a full disk: begin anew from what is stored, after a while."""
        with self._lock:
            running = self._running.get(pair.key)
            if running is None or running.loop is not loop:
                return
            del self._running[pair.key]
        running.ended.set()
        running.asker.stop()
        timer = threading.Timer(RESTART_S, self._restart, (pair.key,))
        timer.daemon = True
        timer.start()

    def _restart(self, key: Key) -> None:
        pair = self.store.get(*key)
        if pair is not None:
            self.start_one(pair)
