"""Control operations on markers and consistency sets, used by the replicator.

    marker.hold {n, groups, lease_s, park?}       -> {token}  hold the groups' writes, for lease_s at most; park false:
                                                  hosts hold them, and it is watched that none comes
    marker.mark {n, token, name, by, of, image, suspend} -> {seqs: {group uuid: seq}}  one record in each; writes go on
    marker.release {n}                            -> {}  writes go on
    marker.list {groups?}                         -> see MarkerHost.listing
    marker.forget {n}                             -> {groups}  delete its images here
    marker.resume {groups, n?}                    -> {groups}  copies that stand at a marker (that one) follow again
    set.put {name, rev, groups, order?, every_ms?, keep?} -> {stored}
    set.list {}                                   -> see SetHost.listing; with images: how many, newest_ns, trouble
    set.images {name}                             -> see CycleHost.listing
    set.decide {name, keep, give_up?, cycle?}     -> {bound_ns, kept, cycle, groups}  cycle: an image; 0: the newest
    clock.status {}                               -> {last_ns, wall_ns, ahead_ns, error}

`groups` are names or uuids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin import arguments
from replicator.capture.service import GroupService
from replicator.capture.sets import ORDERS, TIME
from replicator.core.cycles import Cycle
from replicator.core.errors import BadInput
from replicator.core.markers import Marker

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler

MAX_LEASE_S = 60.0


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    groups, cuts = target.groups, target.groups.cuts

    def named(args: dict[str, Any]) -> list[GroupService]:
        return [groups.get(name) for name in arguments.names(args, "groups")]

    def hold(args: dict[str, Any]) -> dict[str, Any]:
        lease_s = args["lease_s"]
        if isinstance(lease_s, bool) or not isinstance(lease_s, int | float) or not 0 < lease_s <= MAX_LEASE_S:
            raise BadInput(f"a lease must be more than 0 and at most {MAX_LEASE_S:g} seconds, not {lease_s!r}")
        booked = cuts.markers.booked(named(args))
        n, park = arguments.integer(args, "n"), arguments.flag(args, "park", True)
        return {"token": cuts.markers.marking.hold(n, booked, float(lease_s), park=park)}

    def mark(args: dict[str, Any]) -> dict[str, Any]:
        marker = Marker(
            arguments.integer(args, "n"),
            arguments.name(args),
            arguments.text(args, "by"),
            arguments.integer(args, "of"),
            arguments.flag(args, "image", True),
            arguments.flag(args, "suspend"),
        )
        return {"seqs": cuts.markers.marking.mark(marker, arguments.text(args, "token"))}

    def release(args: dict[str, Any]) -> dict[str, Any]:
        cuts.markers.marking.release(arguments.integer(args, "n"))
        return {}

    def listing(args: dict[str, Any]) -> list[dict[str, Any]]:
        return cuts.markers.listing(named(args) if args.get("groups") else groups.services())

    def clock(args: dict[str, Any]) -> dict[str, Any]:
        wall_ns, last_ns = cuts.clock.wall_ns(), cuts.clock.last
        ahead_ns = max(0, last_ns - wall_ns)
        return {"last_ns": last_ns, "wall_ns": wall_ns, "ahead_ns": ahead_ns, "error": cuts.clock.error}

    def put(args: dict[str, Any]) -> dict[str, Any]:
        members = args["groups"]
        if not isinstance(members, list) or not all(isinstance(one, str) for one in members):
            raise BadInput("the argument 'groups' must be a list of uuids")
        cycle = Cycle(arguments.integer(args, "every_ms", 0), arguments.integer(args, "keep", 0))
        order = arguments.text(args, "order", TIME)
        if order not in ORDERS:
            raise BadInput(f"{order!r} is nothing that a set can go by", f"one of {', '.join(ORDERS)}")
        name, rev = arguments.name(args), arguments.integer(args, "rev")
        return {"stored": cuts.sets.put(name, rev, members, cycle, order)}

    def listed_sets(args: dict[str, Any]) -> list[dict[str, Any]]:
        found = cuts.sets.listing()
        for one in found:
            images = cuts.cycles.listing(one["name"])
            one["images"], one["newest_ns"] = len(images), images[0]["bound_ns"] if images else None
            one["trouble"] = cuts.cycles.trouble(one["name"])
        return found

    def decide(args: dict[str, Any]) -> dict[str, Any]:
        name = arguments.name(args)
        if args.get("cycle") is None:
            return cuts.sets.decide(name, arguments.flag(args, "keep"), arguments.flag(args, "give_up"))
        return cuts.cycles.decide(name, arguments.integer(args, "cycle"))

    return {
        "marker.hold": hold,
        "marker.mark": mark,
        "marker.release": release,
        "marker.list": listing,
        "marker.forget": lambda args: {"groups": cuts.markers.forget(arguments.integer(args, "n"))},
        "marker.resume": lambda args: {"groups": cuts.markers.resume(named(args), arguments.integer(args, "n", 0))},
        "set.put": put,
        "set.list": listed_sets,
        "set.images": lambda args: cuts.cycles.listing(arguments.name(args)),
        "set.decide": decide,
        "clock.status": clock,
    }
