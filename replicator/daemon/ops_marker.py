"""Control operations on markers.

    marker.create {name, groups, deadline_s?, image?, suspend?, before?, after?, hold?, received?} -> marker
                                       received: once every node that a primary of the groups feeds has it
    marker.list {}   -> {markers, schedules, failing: {schedule: why}, hosts, here: marker.list of this node's target}
    marker.show {name}                 -> marker with copies, complete
    marker.wait {name, timeout_s?}     -> the same, once it is complete; with received: true the marker, as of create
    marker.delete {name}               -> {name, left: nodes that are told later}
    marker.resume {name?, groups?}     -> {copies}  by the marker's name where it was made, or by groups of this node
    marker.schedule {name, groups, interval_s, keep?, image?, deadline_s?, before?, after?, hold?} -> {}
    marker.unschedule {name}           -> {}
    marker.host_add {name, command, groups?} -> {}  a host that holds its own writes; hold: "storage" or "hosts"
    marker.host_remove {name}          -> {}
    marker.host_test {name}            -> {}  it holds for an instant
    marker.offers {groups}             -> {offers: [{n, name}]}  newest first: what every group's copy here can give
    marker.takeover {groups, name?, force?} -> {marker, groups}  become primary at the newest, or the named one

`groups` of create and schedule are NAME or NAME@NODE: NODE is the primary, or has a copy and passes on what it is asked
(markerway.py); without it the way begins at this node. `groups` of offers and takeover also, and the nodes named are
asked what they can give, but each node is taken over by a command of its own. A marker is as in markerstore.py.
"""

from __future__ import annotations

import re
from typing import Any

from replicator.control import Handler, number
from replicator.core.errors import BadInput, FarstripeError, NotFound, Refused, from_map, to_map
from replicator.core.markers import offered
from replicator.daemon import ops_role
from replicator.daemon.markers import ASK_TREE_S, DEADLINE_S, HOLDS, STORAGE, Markers
from replicator.daemon.markerway import UP
from replicator.daemon.node import Node
from replicator.daemon.peers import Peer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
MAX_DEADLINE_S = 30.0
DEFAULT_KEEP = 2
RECEIVED_S = 30.0
"""So long is a marker that was made waited for at the nodes that are to receive it."""
Args = dict[str, Any]


def handlers(node: Node, markers: Markers) -> dict[str, Handler]:
    """The operations, by name."""

    def create(args: Args) -> dict[str, Any]:
        name = _name(args)
        made = markers.create(name, _words(args), suspend=bool(args.get("suspend")), **_options(args))
        if not args.get("received"):
            return made
        try:
            return markers.wait_received(name, RECEIVED_S)
        except FarstripeError as exc:
            raise from_map(to_map(exc) | {"message": f"marker {name} was made, but: {exc.message}"}) from exc

    def wait(args: Args) -> dict[str, Any]:
        name, timeout_s = str(args["name"]), number(args, "timeout_s", 60.0)
        return markers.wait_received(name, timeout_s) if args.get("received") else markers.wait(name, timeout_s)

    def listing(args: Args) -> dict[str, Any]:
        return {
            "markers": markers.store.all(),
            "schedules": markers.store.schedules(),
            "failing": dict(markers.failing),
            "hosts": markers.store.hosts(),
            "here": node.target("marker.list", 10.0),
        }

    def resume(args: Args) -> dict[str, Any]:
        if args.get("name"):
            return {"copies": markers.resume(str(args["name"]))}
        resumed = node.target("marker.resume", 10.0, groups=_words(args))["groups"]
        node.pairs.look_again(resumed)
        return {"copies": resumed}

    def schedule(args: Args) -> dict[str, Any]:
        interval_s, keep = number(args, "interval_s", 0.0), int(number(args, "keep", DEFAULT_KEEP))
        if interval_s < 0.5 or not 1 <= keep <= 90:
            raise BadInput("a schedule needs an interval of at least half a second, and keeps 1 to 90 images")
        markers.resolve(_words(args))
        what = {"groups": _words(args), "interval_s": interval_s, "keep": keep, **_options(args)}
        markers.store.schedule(_name(args), what)
        return {}

    def unschedule(args: Args) -> dict[str, Any]:
        markers.store.schedule(str(args["name"]), None)
        markers.failing.pop(str(args["name"]), None)
        return {}

    def host_add(args: Args) -> dict[str, Any]:
        command = args["command"]
        if not isinstance(command, str) or not command.strip():
            raise BadInput("a host needs a command that has it hold", "such as: ssh web1 farstripe-freeze /srv")
        words = _words(args) if args.get("groups") else []
        uuids = [one["uuid"] for one in markers.resolve(words)] if words else []
        markers.store.host(_name(args, "host"), {"command": command, "groups": words, "uuids": uuids})
        return {}

    def host_remove(args: Args) -> dict[str, Any]:
        markers.store.host(str(args["name"]), None)
        return {}

    def host_test(args: Args) -> dict[str, Any]:
        markers.test_host(str(args["name"]))
        return {}

    return {
        "marker.host_add": host_add,
        "marker.host_remove": host_remove,
        "marker.host_test": host_test,
        "marker.create": create,
        "marker.list": listing,
        "marker.show": lambda args: markers.show(str(args["name"])),
        "marker.wait": wait,
        "marker.delete": lambda args: markers.delete(str(args["name"])),
        "marker.resume": resume,
        "marker.schedule": schedule,
        "marker.unschedule": unschedule,
        "marker.offers": lambda args: {"offers": offers(node, _words(args))},
        "marker.takeover": lambda args: takeover(node, args),
    }


def remote_handlers(node: Node, markers: Markers) -> dict[str, Any]:
    """What peers may ask. Nodes that know each other mark each other's groups; a hold ends by itself.

    What goes on to other nodes is UP alone: markerway.py.
    """

    def on_target(op: str) -> Any:
        return lambda peer, args: node.target(op, 60.0, **args)

    def where(peer: Peer, args: Args) -> Any:
        op = str(args["do"])
        if op not in ("look", "forget", "resume"):
            raise BadInput(f"{op!r} is nothing to do with a marker")
        asked_by = "" if args.get("whole") else peer.node_id
        left_s = min(ASK_TREE_S, number(args, "left_s", ASK_TREE_S))  # older versions do not say
        return markers.where(op, int(args["n"]), [str(uuid) for uuid in args["groups"]], asked_by, left_s)

    return {
        "marker.locate": lambda peer, args: markers.way.locate(str(args["group"])),
        UP: markers.way.serve,
        "marker.hold": on_target("marker.hold"),
        "marker.mark": on_target("marker.mark"),
        "marker.release": on_target("marker.release"),
        "marker.where": where,
        "marker.images": lambda peer, args: _images(node, str(args["group"])),
    }


def offers(node: Node, groups: list[str]) -> list[dict[str, Any]]:
    """Return the markers of which every group's copy has an image, on its node, newest first."""
    images: dict[str, dict[int, str]] = {}
    for word in groups:
        name, _, where = word.partition("@")
        if where and where not in (node.config.name, node.config.node_id):
            found = node.call(node.peers.find(where), "marker.images", 5.0, group=name)
        else:
            found = _images(node, name)
        images[word] = {int(n): str(marker) for n, marker in found.items()}
    first = next(iter(images.values()))
    return [{"n": n, "name": first[n]} for n in offered(images)]


def _images(node: Node, group: str) -> dict[int, str]:
    (book,) = node.target("marker.list", 5.0, groups=[group])
    return {entry["n"]: entry["name"] for entry in book["entries"] if entry["state"] == "taken"}


def takeover(node: Node, args: Args) -> dict[str, Any]:
    """Make this node primary of its groups among `groups`, all at one marker. May be repeated after any failure.

    Raises NotFound when no marker has an image in every group, Refused as ops_role.takeover; every group is judged
    before the first one is taken.
    """
    words, force = _words(args), bool(args.get("force"))
    found = offers(node, words)
    if args.get("name"):
        found = [one for one in found if one["name"] == str(args["name"])]
    if not found:
        raise NotFound("no marker has an image in each of these groups", "farstripe marker list shows what there is")
    marker, local = found[0], []
    for word in words:
        name, _, where = word.partition("@")
        if not where or where in (node.config.name, node.config.node_id):
            local.append(name)
    status = {name: node.target("group.status", 5.0, group=name) for name in local}
    waiting = [name for name in local if status[name]["role"] == "secondary"]
    for name in waiting:
        judged = ops_role.plan(node, {"group": name, "force": force, "marker": marker["n"]})
        if not judged["allowed"]:
            raise Refused(f"group {name}: {judged['message']}", judged["way_out"])
    for name in waiting:
        ops_role.takeover(node, {"group": name, "force": force, "marker": marker["n"]})
    return {"marker": marker["name"], "n": marker["n"], "groups": local}


def _name(args: Args, what: str = "marker") -> str:
    name = args["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} cannot be a {what}'s name", "use up to 41 letters, digits, '.', '_' and '-'")
    return name


def _words(args: Args) -> list[str]:
    words = args["groups"]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise BadInput("name at least one group", "GROUP, or GROUP@NODE for one that is primary elsewhere")
    return words


def _options(args: Args) -> dict[str, Any]:
    deadline_s = number(args, "deadline_s", DEADLINE_S)
    if not 0.05 <= deadline_s <= MAX_DEADLINE_S:
        raise BadInput(f"a deadline must be 0.05 to {MAX_DEADLINE_S:g} seconds, not {deadline_s:g}")
    hold = args.get("hold") or STORAGE
    if hold not in HOLDS:
        raise BadInput(f"{hold!r} cannot hold writes", f"one of {', '.join(HOLDS)}")
    return {
        "hold": hold,
        "deadline_s": deadline_s,
        "image": args.get("image") is not False,
        "before": str(args.get("before") or ""),
        "after": str(args.get("after") or ""),
    }
