"""Consistency sets across nodes: made on the primary, handed on to every node that has copies, finished after a crash.

A definition carries a revision that only rises; nodes hand on what they have to the peers of its groups, so it reaches
the ends of a tree of copies, and a peer that was away gets it later. A takeover that was decided and not finished is
finished here: the decision is the target's, durable, and each group is taken at the bound it names.

    set.create {name, groups, order?, every_s?, keep?} -> set  order: time, counter; not_asked: see numbered.py
    set.list {}                        -> [set], as set.list of the target
    set.cycle {name, every_s, keep?}   -> set  every_s 0: no images any more
    set.images {name}                  -> {here: [image]}  as CycleHost.listing
    set.delete {name}                  -> {}
    set.takeover {name, force?, keep?, give_up?, cycle?} -> {bound_ns, kept, cycle, groups}  cycle: number, 0: newest
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any

from replicator.control import Handler, number
from replicator.core.cycles import Cycle, checked
from replicator.core.errors import AlreadyExists, BadInput, FarstripeError, NotFound, Refused
from replicator.daemon import numbered, ops_role
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHARE_S = 5.0
DEFAULT_KEEP = 3
SETTINGS = {"every_ms": 0, "keep": 0, "order": "time"}
"""What a definition says beside the groups, and what it means when it says nothing."""
Args = dict[str, Any]
Note = Callable[[str, str], None]


class Sets:
    """This node's part of all sets."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[tuple[str, str], int] = {}
        """(set, peer) -> the revision it has."""
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sets", daemon=True)

    def start(self) -> None:
        """Begin to share, and to finish what was decided."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    def handlers(self) -> dict[str, Handler]:
        """The operations, by name."""
        return {
            "set.create": self.create,
            "set.list": lambda args: self._listed(),
            "set.cycle": self.cycle,
            "set.images": lambda args: {
                "here": self._node.target("set.images", 10.0, name=self._find(args["name"])["name"])
            },
            "set.delete": self.delete,
            "set.takeover": self.takeover,
        }

    def remote_handlers(self) -> dict[str, Any]:
        """What peers may ask: to take over a definition of groups that they are paired with here."""

        def share(peer: Peer, args: Args) -> dict[str, Any]:
            paired = {pair.group for pair in self._node.pairs.store.all() if pair.peer == peer.node_id}
            known = next((one for one in self._all() if one["name"] == args["name"]), None)
            before = known["groups"] if known else []
            concerned = {str(uuid) for uuid in args["groups"]} | {group["uuid"] for group in before}
            if not concerned & paired:
                raise Refused(f"no group of set {args['name']} is paired with {peer.name} here")
            settings = {key: args.get(key, default) for key, default in SETTINGS.items()}
            name, rev = str(args["name"]), int(args["rev"])
            stored = self._node.target("set.put", 10.0, name=name, rev=rev, groups=list(args["groups"]), **settings)
            self._wake.set()
            return dict(stored)

        return {"set.share": share}

    # -- definitions --------------------------------------------------------------------------------------------------

    def create(self, args: Args) -> dict[str, Any]:
        """Make a set of groups that are all primary here. Durable: here; peers get it within seconds.

        `not_asked` names nodes of which nobody knows whether they can read the records of a set by counter. Raises
        Refused, with nothing changed, when one cannot.
        """
        name, groups = str(args["name"]), args["groups"]
        if not _NAME.fullmatch(name):
            raise BadInput(f"{name!r} cannot be a set's name", "use up to 64 letters, digits, '.', '_' and '-'")
        if not isinstance(groups, list) or len(groups) < 2:
            raise BadInput("a set needs two groups or more", "one group is consistent by itself")
        cycle, order = _cycle(args), str(args.get("order") or SETTINGS["order"])
        listed = self._all()
        known = {one["name"]: one for one in listed}
        taken = {group.get("uuid"): one["name"] for one in listed for group in one["groups"]}
        if known.get(name, {}).get("groups"):
            raise AlreadyExists(f"there is a set {name} already", f"farstripe set delete {name}")
        uuids = []
        for word in groups:
            if "@" in str(word):
                raise Refused(
                    f"{word} is written through another node, whose write times cannot be compared with this one's",
                    "use markers: farstripe marker create",
                )
            status = self._node.target("group.status", 5.0, group=str(word))
            if status["role"] != "primary":
                raise Refused(f"group {word} is secondary here", "make the set on the node where it is primary")
            uuids.append(status["uuid"])
        if len(set(uuids)) != len(uuids):
            raise BadInput("a group is named twice", "name it once")
        for word, uuid in zip(groups, uuids, strict=True):
            if uuid in taken:
                raise AlreadyExists(
                    f"group {word} is in set {taken[uuid]}",
                    f"a set is made anew to change it: farstripe set delete {taken[uuid]}, then create it",
                )
        not_asked = numbered.check_below(self._node, uuids) if order == "counter" else []
        rev = int(known.get(name, {}).get("rev", 0)) + 1
        self._node.target("set.put", 10.0, name=name, rev=rev, groups=uuids, order=order, **cycle._asdict())
        self._node.events.add("set.created", f"set {name} of {', '.join(map(str, groups))}", set=name)
        self._wake.set()
        return next(one for one in self._all() if one["name"] == name) | {"not_asked": not_asked}

    def cycle(self, args: Args) -> dict[str, Any]:
        """Let the copies of a set take images in cycles, or no more. Durable: here; other nodes get it within seconds.

        Images beyond those to keep are deleted on every node, all of them when there are to be none.
        """
        one, cycle = self._find(str(args["name"])), _cycle(args)
        if one["decided_ns"]:
            raise Refused(f"set {one['name']} is being taken over just now", "try again when that has ended")
        groups = [group["uuid"] for group in one["groups"]]
        self._node.target(
            "set.put", 10.0, name=one["name"], rev=one["rev"] + 1, groups=groups, order=one["order"], **cycle._asdict()
        )
        what = f"images every {cycle.every_s:g} s, {cycle.keep} are kept" if cycle.keep else "no images"
        self._node.events.add("set.cycle", f"set {one['name']}: {what}", set=one["name"])
        self._wake.set()
        return self._find(one["name"])

    def delete(self, args: Args) -> dict[str, Any]:
        """Let the groups of a set go their own way, on every node. Durable here."""
        one = self._find(str(args["name"]))
        self._node.target("set.put", 10.0, name=one["name"], rev=one["rev"] + 1, groups=[])
        self._node.events.add("set.deleted", f"set {one['name']} deleted", set=one["name"])
        self._wake.set()
        return {}

    def _all(self) -> list[dict[str, Any]]:
        return list(self._node.target("set.list", 5.0))

    def _listed(self) -> list[dict[str, Any]]:
        return [one for one in self._all() if one["groups"]]

    def _find(self, name: str) -> dict[str, Any]:
        for one in self._listed():
            if one["name"] == name:
                return one
        raise NotFound(f"no set {name!r} on this node", "farstripe set list shows them")

    # -- takeover -----------------------------------------------------------------------------------------------------

    def takeover(self, args: Args) -> dict[str, Any]:
        """Make this node primary of every group of a set at one instant. May be repeated; goes on after a crash.

        Every group is judged before anything is decided. Durable: the decision first, then each group.
        """
        one, force = self._find(str(args["name"])), bool(args.get("force"))
        for group in one["groups"]:
            if group["name"] is None or group["role"] == "primary":
                continue
            back = args.get("cycle") is not None or one["decided_cycle"] > 0
            judged = ops_role.plan(self._node, {"group": group["uuid"], "force": force, "cycle": back})
            if not judged["allowed"]:
                raise Refused(f"group {group['name']}: {judged['message']}", judged["way_out"])
        where: dict[str, Any] = {}
        if args.get("cycle") is not None:
            where["cycle"] = int(number(args, "cycle", 0))
        keep = bool(args.get("keep")) or all(self._never_alone(group["uuid"]) for group in one["groups"])
        give_up = bool(args.get("give_up"))
        if give_up and args.get("keep"):
            raise BadInput("a set is taken over with --keep or with --give-up, not with both", "choose one")
        decided: dict[str, Any] = self._node.target(
            "set.decide", 60.0, name=one["name"], keep=keep and not give_up, give_up=give_up, **where
        )
        what = f"at image {decided['cycle']}" if decided["cycle"] else f"as of write time {decided['bound_ns']}"
        self._node.events.add("set.takeover", f"set {one['name']} is taken over {what}", set=one["name"])
        self._finish(one, decided["cycle"])
        return decided

    def _never_alone(self, uuid: str) -> bool:
        """Whether no write of the group was ever answered that is not here, as long as it was in sync."""
        policy = self._node.target("group.status", 5.0, group=uuid).get("policy") or {}
        return policy.get("mode") == "sync" and policy.get("on_loss") == "stall"

    def _finish(self, one: dict[str, Any], cycle: int) -> None:
        """Take over the groups that are not primary here yet, as it was decided.

        One that cannot be taken just now keeps no other waiting; its error is raised at the end.
        """
        where = {"cycle": {"set": one["name"], "n": cycle}} if cycle else {"at_limit": True}
        failed: FarstripeError | None = None
        for group in one["groups"]:
            try:
                status = self._node.target("group.status", 5.0, group=group["uuid"])
                if status["role"] == "secondary":
                    ops_role.takeover(self._node, {"group": group["uuid"], "force": True, **where})
            except FarstripeError as exc:
                failed = failed or exc
        if failed is not None:
            raise failed

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(SHARE_S)
            self._wake.clear()
            if self._stopping:
                return
            with contextlib.suppress(FarstripeError):  # the target is away: later
                for one in self._all():
                    self._look_after(one)

    def _look_after(self, one: dict[str, Any]) -> None:
        """Finish what was decided for a set, as far as it can be just now, and let the peers know the set."""
        with contextlib.suppress(FarstripeError):  # a group cannot be taken just now: later
            if one["standing"] == "decided":
                self._finish(one, one["decided_cycle"])
        self._share(one)

    def _share(self, one: dict[str, Any]) -> None:
        groups = [group["uuid"] for group in one["groups"]]
        for pair in self._node.pairs.store.all():
            key = one["name"], pair.peer
            peer = self._node.peers.get(pair.peer)
            if peer is None or self._told.get(key) == one["rev"] or (groups and pair.group not in groups):
                continue
            try:
                settings = {key: one[key] for key in SETTINGS}
                self._node.call(peer, "set.share", 5.0, name=one["name"], rev=one["rev"], groups=groups, **settings)
            except Refused:
                pass  # it has none of these groups from us
            except FarstripeError:
                continue
            self._told[key] = one["rev"]


def _cycle(args: Args) -> Cycle:
    """The settings of a set's cycles. Raises BadInput."""
    return checked(number(args, "every_s", 0.0), int(number(args, "keep", DEFAULT_KEEP)))
