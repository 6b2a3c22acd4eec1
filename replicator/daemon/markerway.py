"""Asks about markers that go from node to node: this node as coordinator, as one on the way, and as the primary.

    marker.up {do, group, passed, left_s, n?, …}   of a peer; group: name or uuid, passed: node ids, do and the rest:

    locate                             -> {uuid, name, node: id of the primary, at: its name, highest}
    hold {n, lease_s, park}            -> {token}
    mark {n, token, name, by, of, image, suspend} -> {seqs}
    release {n}                        -> {}
    receipt {n}                        -> {peer: whether it has received the marker} of the peers that the primary feeds
    look, forget, resume {n}           -> [copies], see Markers.where: of the whole tree below the primary

Which node may have what done, and where an ask goes, is core/markerway.py. What the primary is asked directly by a peer
of its own are the older operations of ops_marker.py, which every version knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replicator.control import number
from replicator.core.errors import (
    BadInput,
    DaemonNotRunning,
    FarstripeError,
    NotFound,
    PeerError,
    Refused,
    TimedOut,
    from_map,
    to_map,
)
from replicator.core.markerway import (
    FOLLOWING,
    LOCATE,
    MAX_HOPS,
    OPS,
    RECEIPT,
    Standing,
    check_asker,
    check_number,
    onward,
    shorter_s,
)
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer
from replicator.daemon.rpc import is_unknown

UP = "marker.up"
LOCATE_S = 5.0
LOOK_S = 5.0
"""For the own target to say how a group stands."""
MAX_LEFT_S = 120.0
LEAST_S = 0.1
"""A call is given so long at least: a release goes out also when the time is over."""
MORE_TIME = "allow more time: --deadline"
ANOTHER_NODE = "'farstripe group list' shows the groups; GROUP@NODE asks another node"
TAKEN = {
    "hold": ("n", "lease_s", "park"),
    "mark": ("n", "token", "name", "by", "of", "image", "suspend"),
    "release": ("n",),
}
"""What the target is given of an ask; nothing else of it goes there."""

Args = dict[str, Any]


class MarkerWay:
    """The asks of one node."""

    def __init__(self, node: Node, where: Callable[[str, int, str, float], list[dict[str, Any]]]) -> None:
        """where(do, n, group, seconds): does `look`, `forget` or `resume` here and below."""
        self._node, self._where = node, where

    # -- asking -----------------------------------------------------------------------------------------------------

    def find(self, name: str, at: str) -> dict[str, Any]:
        """Find the primary of group `name` by way of node `at` (name or id; "": this one).

        Returns {uuid, name, node, at, highest, via}: via is the node that asks go to first, "" when it is the primary.
        Raises NotFound, Refused, PeerError and others: whatever says that it cannot be found.
        """
        own = self._node.config
        via = own.node_id
        if at and at not in (own.name, own.node_id):
            via = self._peer(name, at).node_id
        try:
            found = self.ask(via, LOCATE, name, LOCATE_S)
        except NotFound as exc:
            if not is_unknown(exc, UP):
                raise
            found = self._of_older(self._node.peers.find(via), name)
        return {**found, "via": "" if found["node"] in (via, own.node_id) else via}

    def _peer(self, group: str, at: str) -> Peer:
        try:
            return self._node.peers.find(at)
        except NotFound as exc:
            if not any(pair.name == group for pair in self._node.pairs.store.all()):
                raise
            hint = f"write {group} without @{at}: its primary is found by way of the nodes that feed the copy here"
            raise NotFound(exc.message, hint) from exc

    def _of_older(self, peer: Peer, group: str) -> dict[str, Any]:
        """Ask a node that passes nothing on: whether it is the primary itself."""
        try:
            found: dict[str, Any] = self._node.call(peer, "marker.locate", LOCATE_S, group=group)
        except Refused as exc:
            raise Refused(
                f"{exc.message}, and {peer.name} is of an older version that passes nothing on to the primary",
                f"upgrade farstripe on {peer.name}, or name the group's primary: GROUP@NODE",
            ) from exc
        return {"at": peer.name, **found}

    def ask(self, via: str, do: str, group: str, timeout_s: float, args: Mapping[str, Any] | None = None) -> Any:
        """Ask the primary of `group` by way of node `via` (an id, also this node's own).

        Raises what any node on the way answers; the message names the line that is down.
        """
        if via == self._node.config.node_id:
            began = time.monotonic()
            uuid, standing = self._standing(group, timeout_s)
            return self._go(do, uuid, standing, [], timeout_s - (time.monotonic() - began), args or {})
        ask = {**(args or {}), "do": do, "group": group, "passed": [self._node.config.node_id]}
        return self._call(self._node.peers.find(via), ask, timeout_s)

    # -- on the way -------------------------------------------------------------------------------------------------

    def serve(self, peer: Peer, args: Args) -> Any:
        """Answer a peer's marker.up, or pass it on. Raises BadInput, Refused, NotFound and what is answered above."""
        began = time.monotonic()
        do, group, passed = args["do"], args["group"], args["passed"]
        if do not in OPS:
            raise BadInput(f"{do!r} is nothing to do with a marker")
        if not isinstance(passed, list) or not 1 <= len(passed) <= MAX_HOPS:
            raise BadInput(f"an ask about a marker names the nodes that it has passed, {MAX_HOPS} at most")
        if not isinstance(group, str) or not all(isinstance(node_id, str) for node_id in passed):
            raise BadInput("an ask about a marker names one group, and nodes by their ids")
        if do != LOCATE and (isinstance(args["n"], bool) or not isinstance(args["n"], int)):
            raise BadInput(f"{args['n']!r} is no marker's number")
        given_s = min(MAX_LEFT_S, number(args, "left_s", LOCATE_S))
        uuid, standing = self._standing(group, given_s)
        paired = self._node.pairs.store.get(uuid, peer.node_id) is not None
        try:
            check_asker(self._node.config.node_id, peer.node_id, passed, standing, paired=paired)
        except Refused as exc:
            raise Refused(self._named(exc.message, passed), exc.way_out) from exc
        if do != LOCATE:
            check_number(args["n"], passed[0])
        return self._go(do, uuid, standing, passed, given_s - (time.monotonic() - began), args)

    def _go(
        self, do: str, uuid: str, standing: Standing, passed: list[str], left_s: float, args: Mapping[str, Any]
    ) -> Any:
        """Answer an ask where this node is primary, else have the node above answer it."""
        own, began = self._node.config, time.monotonic()
        try:
            above = onward(own.node_id, standing, passed)
        except Refused as exc:
            raise Refused(self._named(exc.message, passed), exc.way_out) from exc
        if left_s <= 0 and do != "release":  # whoever asked has given up: nothing is to be held for it
            raise TimedOut(f"what was asked about group {standing.group} came to {own.name} too late", MORE_TIME)
        if not above:
            return self._here(do, uuid, left_s, args)
        peer = self._node.peers.get(above)
        if peer is None:
            raise PeerError(
                f"{own.name} gets group {standing.group} from node {above}, which is no peer of it any more",
                f"join it again on {own.name}, or name the group's primary: GROUP@NODE",
            )
        more = {key: args[key] for key in ("n", *TAKEN.get(do, ())) if key in args}
        ask = {**more, "do": do, "group": uuid, "passed": [*passed, own.node_id]}
        try:
            return self._call(peer, ask, shorter_s(left_s, time.monotonic() - began))
        except FarstripeError as exc:
            if is_unknown(exc, UP):
                raise Refused(
                    f"{peer.name}, which feeds group {standing.group} to {own.name}, is of an older version that "
                    "takes no asks about markers from there",
                    f"upgrade farstripe on {peer.name}, or name the group's primary: GROUP@NODE",
                ) from exc
            if exc.answered:  # further up not every node has a name for those below
                raise from_map(to_map(exc) | {"message": self._named(exc.message, passed)}) from exc
            line = f"{own.name} gets group {standing.group} from {peer.name}, which cannot be asked"
            raise from_map(to_map(exc) | {"message": f"{line}: {exc.message}"}) from exc

    def _call(self, peer: Peer, ask: Args, left_s: float) -> Any:
        return self._node.call(peer, UP, max(LEAST_S, left_s), **ask, left_s=left_s)

    def _standing(self, group: str, left_s: float) -> tuple[str, Standing]:
        """Return the uuid of a group and how it stands here. Raises NotFound, DaemonNotRunning that name this node."""
        try:
            status = self._node.target("group.status", max(LEAST_S, min(LOOK_S, left_s)), group=group)
        except (NotFound, DaemonNotRunning, TimedOut) as exc:
            at = f"on {self._node.config.name}: {exc.message}"
            way_out = ANOTHER_NODE if isinstance(exc, NotFound) else exc.way_out
            raise from_map(to_map(exc) | {"message": at, "way_out": way_out}) from exc
        return status["uuid"], Standing(status["name"], status["role"], str(status.get("upstream") or ""))

    def _named(self, text: str, node_ids: Sequence[str]) -> str:
        """`text` with names in the place of the ids of nodes."""
        for node_id in (*node_ids, self._node.config.node_id):
            text = text.replace(node_id, self._node.pairs.name_of(node_id))
        return text

    # -- at the primary ---------------------------------------------------------------------------------------------

    def _here(self, do: str, uuid: str, left_s: float, args: Mapping[str, Any]) -> Any:
        if do == LOCATE:
            return self.locate(uuid)
        if do in FOLLOWING:
            return self._where(do, int(args["n"]), uuid, left_s)
        if do == RECEIPT:
            return self._receipt(uuid, int(args["n"]))
        more = {key: args[key] for key in TAKEN[do] if key in args}
        if do == "hold":
            more["groups"] = [uuid]
        return self._node.target(f"marker.{do}", max(LEAST_S, left_s), **more)

    def _receipt(self, uuid: str, n: int) -> dict[str, bool]:
        """Say of every peer that this node feeds whether it has received marker `n`. Raises NotFound."""
        (book,) = self._node.target("marker.list", LOOK_S, groups=[uuid])
        entry = next((one for one in book["entries"] if one["n"] == n), None)
        if entry is None:
            raise NotFound(f"group {book['group']} has no marker number {n} on {self._node.config.name}")
        status = self._node.target("group.status", LOOK_S, group=uuid)
        return {
            self._node.pairs.name_of(edge["peer"]): edge["received"] >= entry["seq"]
            and not edge["copying"] and not edge["dropped"]
            for edge in status["edges"]
            if not edge["upstream"]
        }  # fmt: skip

    def locate(self, group: str) -> dict[str, Any]:
        """Describe a group of this node for a marker: {uuid, name, node, at, highest}, highest the number that a new
        one has to be above.

        Raises NotFound, Refused when it is not primary here.
        """
        own = self._node.config
        status = self._node.target("group.status", LOOK_S, group=group)
        if status.get("role") != "primary":
            raise Refused(f"group {status['name']} is not primary on {own.name}", "name its primary: GROUP@NODE")
        (book,) = self._node.target("marker.list", LOOK_S, groups=[status["uuid"]])
        return {
            "uuid": status["uuid"], "name": status["name"], "node": own.node_id, "at": own.name,
            "highest": max([int(book.get("highest", 0)), *(entry["n"] for entry in book["entries"])]),
        }  # fmt: skip
