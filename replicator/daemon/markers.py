"""Making markers and following them through the tree of copies: the coordinator, on any node.

Decisions are in core/markers.py; this sends its asks, each in a thread of its own, and feeds the answers. A node is
asked through its replicator (this one directly), which asks its target. What copies make of a marker is asked down
the tree: every node asks its target and the peers that get the group from it.

Writes are held at storage, or by the hosts themselves (hosthold.py); then the nodes watch that none comes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replicator.core.errors import AlreadyExists, BadInput, FarstripeError, NotFound, PeerError, Refused, TimedOut
from replicator.core.markers import Answer, Ask, Attempt, Finished, Tick
from replicator.core.markerway import RECEIPT, shorter_s
from replicator.daemon.hosthold import HostHolds, linked
from replicator.daemon.markerstore import DEAD, DELETED, MADE, MAKING, MarkerStore, Record
from replicator.daemon.markerway import MarkerWay
from replicator.daemon.node import Node

DEADLINE_S = 2.0
HOOK_S = 30.0
PLACED = ("uuid", "node", "at", "via")
"""What a marker's record keeps of how a group was found; see MarkerWay.find."""
RELEASE_S = 2.0
RECEIPT_S = 5.0
ASK_TREE_S = 10.0
ASK_WAY_S = 15.0
"""The way up to the primary and back, and its tree."""
STORAGE, HOSTS = "storage", "hosts"
HOLDS = (STORAGE, HOSTS)
"""Who holds the writes while a marker is made."""


class Markers:
    """This node's markers: made here, and asked for by others."""

    def __init__(self, node: Node, store: MarkerStore) -> None:
        self._node, self.store = node, store
        self.way = MarkerWay(node, lambda op, n, group, left_s: self.where(op, n, [group], left_s=left_s))
        self.failing: dict[str, str] = {}
        """Why the last marker of a schedule was not made; schedules that go well are not in it."""
        for record in store.all():
            if record["state"] == MAKING:
                store.change(record["name"], record["n"], state=DEAD, why="its coordinator stopped")

    # -- making ---------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        groups: list[str],
        *,
        deadline_s: float = DEADLINE_S,
        image: bool = True,
        suspend: bool = False,
        before: str = "",
        after: str = "",
        schedule: str = "",
        hold: str = STORAGE,
    ) -> Record:
        """Make marker `name` over groups (NAME or NAME@NODE). Durable on return: its record here, and nothing else.

        NODE is the primary of the group, or has a copy of it and passes on what it is asked.

        before, after: commands run around the hold; when `before` fails nothing is held, `after` runs in any case.
        hold: STORAGE, or HOSTS: every linked host that writes to one of the groups holds, and says so.
        Raises BadInput, NotFound, AlreadyExists, PeerError with nothing held; Refused when the attempt died, and when
        the marker is made and `after` failed: its message says which.
        """
        if any(one["name"] == name and one["state"] != DEAD for one in self.store.all()):
            raise AlreadyExists(f"there is a marker {name} already", "choose another name")
        try:
            members = self.resolve(groups)
        except (PeerError, TimedOut) as exc:
            what = f"marker {name} was not made, and nothing was held: {exc.message}"
            raise PeerError(what, exc.way_out or "see that the node can be reached: farstripe peer list") from exc
        hosts = linked(self.store.hosts(), list(members)) if hold == HOSTS else {}
        n = self.store.next_number(int(one["highest"]) for one in members)
        listed = [{"group": one["name"], "seq": 0, **{key: one[key] for key in PLACED}} for one in members]
        record = self.store.begin(
            name, n, image=image, suspend=suspend, schedule=schedule, groups=listed, why="", hosts=sorted(hosts)
        )
        try:
            self._carry_out(record, before, deadline_s, hosts)
        finally:
            failed = self._run_after(after, name)
        if failed:
            raise Refused(
                f"marker {name} was made, but {failed}",
                "the marker stays; see that what --before stopped goes on again",
            )
        return self.store.find(name)

    def _carry_out(self, record: Record, before: str, deadline_s: float, hosts: dict[str, str]) -> None:
        """Put a marker that has begun into the sequences, and say in its record how that went. Durable on return.

        Raises Refused when it was not made; what was made of it by then is undone, as far as nodes can be reached.
        """
        name, n = record["name"], record["n"]
        seqs: dict[str, int] = {}
        why, owed, way_out = "an error", True, "try again; writes go on"
        try:
            try:
                run_hook(before, name)
            except FarstripeError as exc:
                why, owed, way_out = exc.message, False, exc.way_out
            else:
                if hosts:
                    seqs, why, owed = self._while_hosts_hold(record, deadline_s, hosts)
                else:
                    seqs, why, owed = self._attempt(record, deadline_s)
        finally:
            if why:
                self.store.change(name, n, state=DEAD, why=why)
        if why:
            if owed:
                self._settle(self.store.find(name))
            else:
                self.store.drop(name)
            raise Refused(f"marker {name} was not made: {why}", way_out)
        groups = [{**one, "seq": seqs[one["uuid"]]} for one in record["groups"]]
        self.store.change(name, n, state=MADE, groups=groups)
        listed = ", ".join(one["group"] for one in groups)
        self._node.events.add("marker.made", f"marker {name} was put into {listed}", marker=name)

    def _run_after(self, command: str, name: str) -> str:
        """Run the hook that ends what `before` began. Returns why it failed, which is an event too; else ""."""
        try:
            run_hook(command, name)
        except FarstripeError as exc:
            self._node.events.add("marker.hook-failed", f"marker {name}: {exc.message}", marker=name)
            return exc.message
        return ""

    def resolve(self, groups: list[str]) -> list[dict[str, Any]]:
        """Find each group where it is primary, see MarkerWay.find. Raises before anything is held."""
        found: list[dict[str, Any]] = []
        for word in groups:
            name, _, at = word.partition("@")
            one = self.way.find(name, at)
            if one["uuid"] in [other["uuid"] for other in found]:
                raise BadInput(f"group {word} is named twice", "name it once")
            found.append(one)
        if not found:
            raise BadInput("a marker needs at least one group", "name it")
        return found

    def _while_hosts_hold(
        self, record: Record, deadline_s: float, hosts: dict[str, str]
    ) -> tuple[dict[str, int], str, bool]:
        """As _attempt, while the hosts hold their writes. They are released in any case; one that did not hold all the
        time makes it none."""
        holds = HostHolds(hosts, record["name"], deadline_s)
        seqs: dict[str, int] = {}
        why, owed = "an error", True
        try:
            try:
                left_s = holds.hold() - time.monotonic()
            except FarstripeError as exc:
                why, owed = exc.message, False
            else:
                seqs, why, owed = self._attempt(record, max(0.05, left_s), park=False)
        finally:
            lapsed = holds.release()
        if not why and lapsed:
            why = lapsed
        return seqs, why, owed

    def test_host(self, name: str) -> None:
        """Have a linked host hold for an instant. Raises NotFound, Refused."""
        hosts = self.store.hosts()
        if name not in hosts:
            raise NotFound(f"no host {name!r} is linked", "farstripe marker host list")
        holds = HostHolds({name: str(hosts[name]["command"])}, "test", DEADLINE_S)
        try:
            holds.hold()
        finally:
            lapsed = holds.release()
        if lapsed:
            raise Refused(lapsed, "see what its command does")

    def _attempt(self, record: Record, deadline_s: float, *, park: bool = True) -> tuple[dict[str, int], str, bool]:
        """Carry out one attempt. Returns ({group uuid: seq}, "" or why it died, whether a node may have a record)."""
        asked = places(record)
        answers: queue.SimpleQueue[tuple[Answer, dict[str, int]]] = queue.SimpleQueue()
        began = time.monotonic()
        attempt = Attempt(record["n"], asked, began, deadline_s)
        seqs: dict[str, int] = {}
        marked = False

        def send(ask: Ask) -> None:
            args: dict[str, Any] = {"n": record["n"]}
            if ask.op == "hold":
                args |= {"lease_s": deadline_s, "park": park}
            elif ask.op == "mark":
                args |= {
                    "token": ask.token, "name": record["name"], "by": self._node.config.node_id,
                    "of": len(record["groups"]), "image": record["image"], "suspend": record["suspend"],
                }  # fmt: skip
            left_s = RELEASE_S if ask.op == "release" else max(0.1, attempt.deadline - time.monotonic())
            try:
                result = self._on(asked[ask.node], ask.op, left_s, args)
                answer = Answer(ask.node, ask.op, True, token=str(result.get("token", "")))
                answers.put((answer, dict(result.get("seqs") or {})))
            except FarstripeError as exc:
                answers.put((Answer(ask.node, ask.op, False, exc.message), {}))

        effects = attempt.begin()
        while True:
            for effect in effects:
                if isinstance(effect, Finished):
                    return seqs, self._named(effect.why, record), marked
                marked |= effect.op == "mark"
                threading.Thread(target=send, args=(effect,), name="marker", daemon=True).start()
            event: Answer | Tick = Tick()
            try:
                event, more = answers.get(timeout=max(0.01, attempt.deadline - time.monotonic()))
                seqs |= more
            except queue.Empty:
                pass
            effects = attempt.handle(event, time.monotonic())

    def _named(self, text: str, record: Record) -> str:
        """`text` with names in the place of the ids of nodes."""
        for one in record["groups"]:
            text = text.replace(one["node"], self._name(one))
            text = text.replace(one.get("via") or one["node"], self._node.pairs.name_of(one.get("via") or one["node"]))
        return text

    def _name(self, group: Mapping[str, Any]) -> str:
        """What the node is called that was primary of a record's group."""
        name = self._node.pairs.name_of(group["node"])
        return name if name != group["node"] else str(group.get("at") or name)

    def _on(self, place: Place, op: str, timeout_s: float, args: Mapping[str, Any]) -> dict[str, Any]:
        """Run a marker operation where groups are primary: by this node's target, or by another node's replicator."""
        node = self._node
        if place.via:
            result = self.way.ask(place.via, op, place.groups[0], timeout_s, args)
        else:
            more = {**args, "groups": list(place.groups)} if op == "hold" else args
            if place.node == node.config.node_id:
                result = node.target(f"marker.{op}", timeout_s, **more)
            else:
                result = node.call(node.peers.find(place.node), f"marker.{op}", timeout_s, **more)
        return result if isinstance(result, dict) else {"result": result}

    # -- following ------------------------------------------------------------------------------------------------

    def where(
        self, op: str, n: int, groups: list[str], asked_by: str = "", left_s: float = ASK_TREE_S
    ) -> list[dict[str, Any]]:
        """Do `op` ("look", "forget", "resume") for marker `n` here and on every node that gets `groups` from here.

        left_s: how long whoever asks waits. The nodes below are asked at once, and each has less time than this one, so
        one that is silent is named by the node that feeds it.
        Returns one entry a node and group: {node, group, uuid, role, state, why}; state "unreachable" for a whole node.
        """
        timeout_s = max(0.1, min(ASK_TREE_S, shorter_s(left_s, 0.0)))
        found: list[dict[str, Any]] = []

        def ask(peer_id: str, uuids: list[str]) -> None:
            found.extend(self._ask_below(peer_id, timeout_s, op, n, uuids))

        below = self._below(groups, asked_by)
        threads = [threading.Thread(target=ask, args=one, name="markers-tree", daemon=True) for one in below.items()]
        for thread in threads:
            thread.start()
        try:
            here = self._own(op, n, groups)
        finally:
            for thread in threads:
                thread.join()
        return here + found

    def _ask_below(self, peer_id: str, timeout_s: float, op: str, n: int, groups: list[str]) -> list[dict[str, Any]]:
        """`where` at a peer that gets groups from here."""
        peer = self._node.peers.get(peer_id)
        try:
            if peer is None:
                raise NotFound(f"node {peer_id} is no peer any more")
            more = {"do": op, "n": n, "groups": groups, "left_s": timeout_s}
            return list(self._node.call(peer, "marker.where", timeout_s, **more))
        except FarstripeError as exc:
            name = peer.name if peer else peer_id
            return [{"node": name, "group": "", "role": "secondary", "state": "unreachable", "why": exc.message}]

    def _own(self, op: str, n: int, groups: list[str]) -> list[dict[str, Any]]:
        node = self._node
        present = {one["uuid"] for one in node.target("group.list", 5.0) if "role" in one}
        mine = [uuid for uuid in groups if uuid in present]
        if not mine:
            return []
        if op == "forget":
            node.target("marker.forget", 60.0, n=n)
        elif op == "resume":
            node.target("marker.resume", 10.0, groups=mine, n=n)
            node.pairs.look_again(mine)
        found = []
        for book in node.target("marker.list", 5.0, groups=mine):
            entry: dict[str, Any] = next((one for one in book["entries"] if one["n"] == n), {})
            found.append({
                "node": node.config.name, "group": book["group"], "uuid": book["uuid"], "role": book["role"],
                "state": entry.get("state", "awaited"), "why": entry.get("why", ""),
                "stands": bool(entry) and book["suspended"] == entry["seq"], "snapshots": entry.get("snapshots", {}),
                "applied": book.get("applied", 0),
            })  # fmt: skip
        return found

    def _below(self, groups: list[str], asked_by: str) -> dict[str, list[str]]:
        """Peers that have a pair of one of these groups with this node, but the one that asks."""
        below: dict[str, list[str]] = {}
        for pair in self._node.pairs.store.all():
            if pair.group in groups and pair.peer != asked_by:
                below.setdefault(pair.peer, []).append(pair.group)
        return below

    def copies(self, op: str, record: Record) -> list[dict[str, Any]]:
        """`where` over all nodes at which a marker was made."""
        found: list[dict[str, Any]] = []
        for place in places(record).values():
            if not place.via and place.node == self._node.config.node_id:
                found += self.where(op, record["n"], list(place.groups))
                continue
            try:
                found += self._ask_tree(place, op, record["n"])
            except FarstripeError as exc:
                name = next(self._name(one) for one in record["groups"] if one["node"] == place.node)
                found.append({"node": name, "group": "", "role": "primary", "state": "unreachable", "why": exc.message})
        return found

    def _ask_tree(self, place: Place, op: str, n: int) -> list[dict[str, Any]]:
        if place.via:
            found = self.way.ask(place.via, op, place.groups[0], ASK_WAY_S, {"n": n})
        else:
            peer = self._node.peers.find(place.node)
            groups = list(place.groups)
            found = self._node.call(peer, "marker.where", ASK_TREE_S, do=op, n=n, groups=groups, whole=True)
        return list(found)

    def show(self, name: str) -> Record:
        """A marker's record with `copies` and `complete`."""
        record = self.store.find(name)
        copies = [passed_over(record, one) for one in self.copies("look", record)]
        return {**record, "copies": copies, "complete": record["state"] == MADE and is_complete(record, copies)}

    def wait(self, name: str, timeout_s: float) -> Record:
        """Return the marker once every copy of all its groups has it. Raises TimedOut, Refused when it never will."""
        until = time.monotonic() + timeout_s
        while True:
            shown = self.show(name)
            if shown["complete"]:
                return shown
            missed = [one for one in shown["copies"] if one["state"] == "missed"]
            if missed or shown["state"] != MADE:
                why = f"{missed[0]['node']}: {missed[0]['why']}" if missed else shown["why"]
                raise Refused(f"marker {name} has no complete image: {why}", "make another one")
            if time.monotonic() >= until:
                slow = sorted({f"{one['node']} ({one['state']})" for one in shown["copies"] if not _has(one)})
                raise TimedOut(f"marker {name} is not complete after {timeout_s:g} s: {', '.join(slow)}")
            time.sleep(0.1)

    def wait_received(self, name: str, timeout_s: float) -> Record:
        """Return the marker once every node that a primary of its groups feeds has received it.

        It then outlives the loss of the primaries, but not power loss of all these nodes. Raises TimedOut, Refused.
        """
        until = time.monotonic() + timeout_s
        record = self.store.find(name)
        while True:
            if record["state"] != MADE:
                raise Refused(f"marker {name} is {record['state']}", "make another one")
            missing = [text for one in record["groups"] for text in self._not_received(record["n"], one)]
            if not missing:
                return record
            if time.monotonic() >= until:
                raise TimedOut(
                    f"marker {name} has not been received everywhere after {timeout_s:g} s: {', '.join(missing)}",
                    f"it goes on its way; farstripe marker show {name}",
                )
            time.sleep(0.05)

    def _not_received(self, n: int, group: Mapping[str, Any]) -> list[str]:
        """Which nodes lack a marker that the primary of `group` feeds, or why that cannot be said."""
        try:
            peers = self.way.ask(group.get("via") or group["node"], RECEIPT, group["uuid"], RECEIPT_S, {"n": n})
        except (PeerError, TimedOut) as exc:
            return [exc.message]
        if not peers:
            raise Refused(f"group {group['group']} has no copies that could receive a marker", "farstripe pair create")
        return [f"{name} (group {group['group']})" for name, has in peers.items() if not has]

    def delete(self, name: str) -> Record:
        """Delete a marker and its images everywhere. Nodes that cannot be reached now are told later."""
        record = self.store.find(name)
        self.store.change(name, record["n"], state=DELETED)
        return {"name": name, "left": self._settle(self.store.find(name))}

    def resume(self, name: str) -> list[dict[str, Any]]:
        """Let the copies that stand at the marker follow again."""
        return self.copies("resume", self.store.find(name))

    def _settle(self, record: Record) -> list[str]:
        """Do what is owed for a dead or deleted marker: no copy stands at it, none has an image of it any more.

        Returns the nodes that were not reached.
        """
        copies = self.copies("resume", record) if record["suspend"] else []  # also where the record has yet to come
        copies += self.copies("forget", record)
        left = sorted({str(one["node"]) for one in copies if one["state"] == "unreachable"})
        if not left:
            self.store.drop(record["name"])
        return left

    def tidy(self) -> None:
        """Settle dead and deleted markers as far as nodes can be reached."""
        for record in self.store.all():
            if record["state"] in (DEAD, DELETED):
                self._settle(record)

    def of_schedule(self, schedule: str) -> list[Record]:
        """The markers of a schedule that were made and are not to be deleted, oldest first."""
        return [one for one in self.store.all() if one["schedule"] == schedule and one["state"] == MADE]


@dataclass(frozen=True)
class Place:
    """Where groups of a marker are primary, and how that is reached."""

    node: str
    """Its id."""
    via: str
    """Id of the node that passes asks on to it, also this one's; "" for nobody."""
    groups: tuple[str, ...]
    """Uuids; with `via` one: ways of several groups may part."""


def places(record: Record) -> dict[str, Place]:
    """Where the groups of a record are primary, by a text that names the place with ids of nodes."""
    found: dict[str, Place] = {}
    for one in record["groups"]:
        node, via = one["node"], str(one.get("via") or "")
        text = f"{node} for group {one['group']} by way of {via}" if via else node
        known = found.get(text, Place(node, via, ()))
        found[text] = Place(node, via, (*known.groups, one["uuid"]))
    return found


def _has(copy: Mapping[str, Any]) -> bool:
    return copy["state"] in ("taken", "noted", "made")


def passed_over(record: Record, copy: dict[str, Any]) -> dict[str, Any]:
    """What a node says of a marker, where it awaits one that it will never get: it was copied to beyond its place."""
    seq = next((one["seq"] for one in record["groups"] if one["uuid"] == copy.get("uuid")), 0)
    if copy["state"] != "awaited" or copy["role"] != "secondary" or not 0 < seq <= copy.get("applied", 0):
        return copy
    return {**copy, "state": "missed", "why": "it was copied to by difference, beyond the marker's place"}


def is_complete(record: Record, copies: list[dict[str, Any]]) -> bool:
    """Whether every group has the marker where it was made, and every copy of it has it, at least one each."""
    groups = {one["uuid"] for one in record["groups"]}
    copied = {one.get("uuid") for one in copies if one["role"] == "secondary"}
    return all(_has(one) for one in copies) and groups <= copied


def run_hook(command: str, marker: str, timeout_s: float = HOOK_S) -> None:
    """Run a command of the operator's by the shell, with FARSTRIPE_MARKER set. Raises Refused when it fails.

    One that takes too long is killed with all it has started: what it may do later, such as freezing a filesystem,
    would come behind the command that is to undo it.
    """
    if not command:
        return
    with subprocess.Popen(
        ["/bin/sh", "-c", command], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "FARSTRIPE_MARKER": marker},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as hook:  # fmt: skip
        try:
            out, err = hook.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(hook.pid, signal.SIGKILL)
            way_out = "make it faster; what it did may have to be undone"
            raise Refused(f"the hook {command!r} did not end within {timeout_s:g} s, and was killed", way_out) from exc
    if hook.returncode:
        said = (err or out).strip()[-300:]
        raise Refused(f"the hook {command!r} ended with {hook.returncode}{said and ': '}{said}", "see why it fails")
