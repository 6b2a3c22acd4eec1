"""Control operations on pairs.

    pair.create {group, peer, mode?, ack?, on_loss?, loss_timeout_s?, on_full?, full_timeout_s?, retain?,
                 warn_percent?, overwrite?, journal_bytes?, connections?, transfer?, window?, compress?, limit?,
                 schedule?}
                                                 -> pair; this node has the data (as primary, or as a complete copy of
                                                 which the peer gets another one), the peer gets the copy
    pair.list {}                                 -> [pair]
    pair.show {group, peer?}                     -> pair
    pair.split {group, peer?}                    -> {}  the copy stays as it is
    pair.resync {group, peer?, discard?: node}   -> {}  follow again; discard: give up what this node alone has
    pair.delete {group, peer?}                   -> {peer_note}  both sides keep their volumes
    pair.wait {group, peer?, state, timeout_s?}  -> pair  see WAITS
    status {}                                    -> {node, pairs, peers, losses}
    explain {group, peer?}                       -> {word, level, why, means, then, commands, pair}

`group` is a name or uuid, `peer` a name or id; it may be left out while the group has one pair here. A pair is
described in pairview.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from replicator.control import Handler, number
from replicator.core.decisions import resolves
from replicator.core.errors import (
    AlreadyExists,
    BadInput,
    FarstripeError,
    NotFound,
    PeerError,
    Refused,
    TimedOut,
    from_map,
    to_map,
)
from replicator.core.status import TABLE
from replicator.core.transfer import Transfer
from replicator.daemon import numbered, pairview
from replicator.daemon.node import Node
from replicator.daemon.ops_transfer import settings_from
from replicator.daemon.pairstore import PairConfig
from replicator.daemon.peers import Peer

POLICY_KEYS = (
    "mode", "ack", "on_loss", "loss_timeout_s", "on_full", "full_timeout_s", "retain", "warn_percent",
)  # fmt: skip
DEFAULT_WAIT_S = 3600.0
POLL_S = 0.1
"""What no event of a pair tells, such as the end of a lag, is looked for this often."""
ADOPT_S = 300.0
"""Time for a peer to make volumes and write out a journal, which a slow disk may need."""
COMMAND_S = 75.0

View = dict[str, Any]
WAITS: dict[str, Callable[[View], bool]] = {
    "ok": lambda v: v["word"] in ("PAIR", "SYNC"),  # records flow and the copy is consistent
    "sync": lambda v: v["word"] == "SYNC",
    "equal": lambda v: v["word"] in ("PAIR", "SYNC") and v["lag_applied"] == 0,  # all is applied there
    "connected": lambda v: v["connected"],
    "disconnected": lambda v: not v["connected"],
    "primary": lambda v: v["role"] == "primary",
    "secondary": lambda v: v["role"] == "secondary",
}
"""States `pair.wait` knows besides the words of replicator.core.status."""
WORDS = [row.word for row in TABLE]


def handlers(node: Node) -> dict[str, Handler]:
    """The operations, by name."""

    def show(args: dict[str, Any]) -> View:
        return pairview.view(node, chosen(node, args))

    def listing(args: dict[str, Any]) -> list[View]:
        return [pairview.view(node, pair) for pair in node.pairs.store.all()]

    def split(args: dict[str, Any]) -> dict[str, Any]:
        return _command(node, args, "split")

    def resync(args: dict[str, Any]) -> dict[str, Any]:
        discard = str(args.get("discard") or "")
        if discard:
            discard = node.config.node_id if discard in (node.config.name, "this") else _peer_or_self(node, discard)
        _check_discard(node, chosen(node, args), discard)
        return _command(node, args, "resync", discard=discard)

    def wait(args: dict[str, Any]) -> View:
        pair = chosen(node, args)
        state, timeout_s = str(args.get("state") or "ok"), number(args, "timeout_s", DEFAULT_WAIT_S)
        if state.lower() not in WAITS and state.upper() not in WORDS:
            known = ", ".join([*WAITS, *WORDS])
            raise BadInput(f"{state!r} is no state a pair can be in", f"wait for one of {known}")
        reached: Callable[[View], bool] = WAITS.get(state.lower(), lambda view: bool(view["word"] == state.upper()))
        until = time.monotonic() + timeout_s
        while True:
            seen = node.pairs.changes
            view = pairview.view(node, pair)
            if reached(view):
                return view
            if time.monotonic() >= until:
                raise TimedOut(
                    f"group {pair.name} is {view['word']}, not {state}, after {timeout_s:g} s: {view['why']}",
                    f"'farstripe explain {pair.name}' tells more",
                )
            if node.pairs.store.get(*pair.key) is None:
                raise NotFound(f"the pair of group {pair.name} was deleted meanwhile")
            node.pairs.await_change(seen, POLL_S)

    def explain(args: dict[str, Any]) -> dict[str, Any]:
        view = show(args)
        keys = ("word", "level", "why", "means", "then", "commands")
        return {key: view[key] for key in keys} | {"pair": view}

    return {
        "pair.create": lambda args: create(node, args),
        "pair.list": listing,
        "pair.show": show,
        "pair.split": split,
        "pair.resync": resync,
        "pair.delete": lambda args: delete(node, args),
        "pair.wait": wait,
        "explain": explain,
    }


def _command(node: Node, args: dict[str, Any], op: str, **more: Any) -> dict[str, Any]:
    pair = chosen(node, args)
    return node.pairs.loop(pair).command(op, COMMAND_S, **more)


def _check_discard(node: Node, pair: PairConfig, discard: str) -> None:
    """Raise Refused when the pair is refused until writes are given up, and `discard` does not name whose."""
    facts = node.pairs.facts(pair)
    decision = facts.get("decision") or {}
    if facts.get("session") != "refused":
        return
    status = node.target("group.status", group=pair.group, peer=pair.peer)
    primaries = [status.get("role"), facts.get("peer_role")].count("primary")
    wanted = resolves(str(decision.get("label")), primaries=primaries)
    if not wanted:
        return
    follow, sides = str(decision["follow"]), [node.config.node_id, pair.peer]
    lead = next(side for side in sides if side != follow)
    above = status.get("upstream") if follow == node.config.node_id else facts.get("peer_upstream")
    joins = decision["label"] == "former-primary" and primaries == 1
    tree = joins and above not in (None, "", lead)  # follow is fed by another node: lead may join that tree instead
    allowed = sides if wanted == "either" or tree else [follow]
    if discard in allowed:
        return
    names = [node.pairs.name_of(side) for side in allowed]
    which = f"{pair.name} {node.pairs.name_of(pair.peer)}"
    ways = " or ".join(f"farstripe pair resync {which} --discard {name}" for name in names)
    said = f"{node.pairs.name_of(discard)} is not the one" if discard else "say whose writes are given up"
    holds = f"{node.pairs.name_of(follow)} holds {decision.get('lost_records')} records that the other side lacks"
    if discard == lead or decision["label"] == "set-back":
        lead_name, follow_name = node.pairs.name_of(lead), node.pairs.name_of(follow)
        ways += f"; to give up those of {lead_name} instead: farstripe takeover {pair.name} --force  (on {follow_name})"
    raise Refused(f"{decision['cause']}: {holds}; {said}", ways)


def chosen(node: Node, args: dict[str, Any]) -> PairConfig:
    """The pair that `group` and `peer` of a request name. Raises NotFound, BadInput when the peer has to be named."""
    return node.pairs.find(str(args["group"]), str(args.get("peer") or ""))


def _peer_or_self(node: Node, name: str) -> str:
    return name if name == node.config.node_id else node.peers.find(name).node_id


def create(node: Node, args: dict[str, Any]) -> View:
    """Pair a group of this node with a peer. Durable on return: the pair, on both nodes.

    Every check that can refuse comes before the first change; what fails later is taken back.
    """
    status = node.target("group.status", group=str(args["group"]))
    peer = node.peers.find(str(args["peer"]))
    _check_new(node, status, peer, args)
    numbered.check_peer(node, peer, status["uuid"])
    policy = {key: args[key] for key in POLICY_KEYS if args.get(key) is not None}
    mode = str(policy.pop("mode", None) or status["policy"]["mode"])
    if all(known.group != status["uuid"] for known in node.pairs.store.all()):
        policy["mode"] = mode  # what holds for the group until its pairs differ
    pair = PairConfig(status["uuid"], status["name"], peer.node_id, **settings_from(args, Transfer()).to_map())
    before = {k: v for k, v in status["policy"].items() if k in policy}  # no more: a mode would be that of every pair
    wanted = node.target("group.policy", group=pair.group, **policy)
    try:
        _adopt_at_peer(node, peer, status, {**wanted, "mode": mode}, args)
        try:
            node.target("group.arm", group=pair.group, peer=peer.node_id, mode=mode)
            node.pairs.store.put(pair)
        except BaseException:
            node.call(peer, "pair.forget", group=pair.group, undo=True)
            raise
    except BaseException:
        node.target("group.policy", group=pair.group, **before)
        raise
    node.pairs.start_one(pair)
    node.events.add("pair.created", f"group {pair.name} is paired with {peer.name}", group=pair.name)
    return pairview.view(node, pair)


def _check_new(node: Node, status: dict[str, Any], peer: Peer, args: dict[str, Any]) -> None:
    name = status["name"]
    if node.pairs.store.get(status["uuid"], peer.node_id) is not None:
        raise AlreadyExists(
            f"group {name} is paired with {peer.name} already",
            f"'farstripe pair delete {name} {peer.name}' ends that pair",
        )
    if status["role"] == "primary":
        return
    if status["state"] != "ok" or not status.get("upstream"):
        raise Refused(
            f"group {name} is secondary here and {_incomplete(status)}",
            "create the pair on the primary, or when the copy here is complete: farstripe pair wait",
        )
    foreign = [key for key in POLICY_KEYS if key != "mode" and args.get(key) is not None]
    if foreign:
        raise Refused(
            f"group {name} is secondary here: {', '.join(foreign)} can be set on the primary only",
            f"leave it out here; on the primary: farstripe group policy {name}",
        )


def _incomplete(status: dict[str, Any]) -> str:
    return "no node feeds it" if status["state"] == "ok" else f"its copy is {status['state']}"


def _adopt_at_peer(
    node: Node, peer: Peer, status: dict[str, Any], policy: dict[str, Any], args: dict[str, Any]
) -> None:
    # the ring is what the status counts; the file has two superblocks in front of it
    journal_bytes = args.get("journal_bytes") or int(status["journal"]["capacity"]) + 8192
    volumes = sorted(status["volumes"], key=lambda volume: volume["index"])
    try:
        node.call(
            peer,
            "pair.adopt",
            ADOPT_S,
            group=status["uuid"],
            name=status["name"],
            volumes=[{key: volume.get(key, 0) for key in ("name", "size", "index", "born")} for volume in volumes],
            journal_bytes=journal_bytes,
            policy=policy,
            transfer=settings_from(args, Transfer()).to_map(),
            overwrite=bool(args.get("overwrite")),
        )
    except (PeerError, TimedOut):
        raise  # of the way to the peer; says so
    except FarstripeError as exc:
        raise from_map(to_map(exc) | {"message": f"on {peer.name}: {exc.message}"}) from exc


def delete(node: Node, args: dict[str, Any]) -> dict[str, Any]:
    """End a pair on both nodes; volumes and contents stay. Durable: that there is no pair here.

    A peer that cannot be reached keeps its half, and the note says so; it deletes it by the same command.
    """
    pair = chosen(node, args)
    note = ""
    peer = node.peers.get(pair.peer)
    if args.get("local_only"):
        note = "only this side was asked to forget the pair"
    elif peer is not None:
        try:
            note = str((node.call(peer, "pair.forget", 30.0, group=pair.group) or {}).get("note", ""))
        except NotFound:
            note = f"{peer.name} had no such pair any more"
        except (PeerError, TimedOut) as exc:
            note = f"{peer.name} still has its half: {exc.message}"
    forget(node, pair)
    return {"peer_note": note}


def forget(node: Node, pair: PairConfig) -> str:
    """End this node's half of a pair. Returns a note about what the target would not do. Durable."""
    node.pairs.stop_one(pair.key)
    note = ""
    try:
        node.target("group.disarm", group=pair.group, peer=pair.peer)
    except NotFound:
        pass  # the group is gone; so goes the pair
    except FarstripeError as exc:
        note = f"the group stays as it is on {node.config.name}: {exc.message}"
    node.pairs.store.delete(pair.key)
    peer = node.pairs.name_of(pair.peer)
    text = f"group {pair.name} is not paired with {peer} any more"
    node.events.add("pair.deleted", text + (f"; {note}" if note else ""))
    return note
