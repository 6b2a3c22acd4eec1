"""Control operations on consistency groups: group.*. Used by the command line and by the replicator.

`group` names a group by name or uuid, `peer` one of its edges by the peer's node id. What an operation means and makes
durable, GroupService says. The replicator may name its peer also where that makes no difference.

    group.status {peer?, settle?}                        facts.py; with peer, what concerns one peer is said of that one
    group.policy {peer?, <field>: value, ...}            mode with a peer: of that edge
    group.arm {peer, mode?, upstream?}                   -> {epoch, pos, edge}; upstream: the peer feeds this secondary
    group.disarm {peer}
    group.link {peer, up}                                records flow to the peer, or no longer
    group.journal_damaged {off, seq}                     -> {damaged}; what is to be shipped cannot be read there
    group.follow {peer}                                  records of the peer come in: it feeds this node
    group.sync_on {peer, on}                             -> {seq, sync_on}
    group.bitmap {c}                                     -> {start, volumes}
    group.begin_copy {peer, c, peer_bitmaps, copy_id}    -> {p, epoch, hist, masks, full, todo_blocks}
    group.pin_copy {peer, c, peer_bitmaps, copy_id}      -> {p, epoch, hist, masks, full}; then:
    group.extend_copy {copy_id, masks}                   -> {seq, epoch}; on the primary; masks None: every block
    group.copy_until {peer, copy_id, seq, epoch}         -> {copying}; on the node that pinned, before the peer attaches
    group.resume_copy {}
    group.attach {peer, p, c, epoch, hist, masks, copy_id, full, synced_after?, synced_epoch?, volumes?,
                  rewound?, last_write?}
    group.add_volume {group, volume}, group.remove_volume {group, volume}     on the primary; see listchange.py
    group.check_volume {group, volume, size}                                  could it be made here?
    group.hold {deadline_s}, group.release {}, group.demote {diverged?, upto?}
    group.promote {force?, marker?, cycle?, at_limit?}    marker: a number; cycle: {set, n}; what to go back to first
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbdplugin import arguments, listchange
from replicator.capture.marking import state_host_time
from replicator.capture.service import GroupService
from replicator.core.errors import BadInput

if TYPE_CHECKING:
    from nbdplugin.target import Target
    from replicator.control import Handler

DEFAULT_JOURNAL_BYTES = 256 << 20


def handlers(target: Target) -> dict[str, Handler]:
    """The operations, by name."""
    groups, told = target.groups, target.views.told
    hosts = groups, target.pools, target.exports

    def attach(service: GroupService, args: dict[str, Any]) -> object:
        step = _step(args)
        with target.views.keeping_image(service.engine, step["masks"], full=bool(step["full"])):
            until = {
                "synced_after": _position(args, "synced_after"),
                "synced_epoch": _position(args, "synced_epoch") or 0,
            }
            lists = {"volumes": args.get("volumes"), "rewound": args.get("rewound")}
            return service.attach(_peer(args), last_write=_position(args, "last_write"), **lists, **until, **step)

    def create(args: dict[str, Any]) -> dict[str, Any]:
        journal_path = arguments.path(args, "journal_path") if args.get("journal_path") else None
        service = groups.create(
            arguments.name(args), arguments.names(args, "volumes"), _journal_bytes(args), journal_path
        )
        return service.status()

    def adopt(args: dict[str, Any]) -> dict[str, Any]:
        uuid = arguments.text(args, "uuid")
        if len(uuid) != 32 or set(uuid) - set("0123456789abcdef"):
            raise BadInput(f"{uuid!r} is not a group's uuid")
        service = groups.adopt(uuid, arguments.name(args), _volumes(args), _journal_bytes(args))
        return service.status()

    def listing(args: dict[str, Any]) -> list[dict[str, Any]]:
        return [told(one) for one in groups.statuses()]

    def delete(args: dict[str, Any]) -> None:
        groups.delete(arguments.text(args, "group"), arguments.flag(args, "force"), arguments.flag(args, "undo"))

    def promote(service: GroupService, args: dict[str, Any]) -> dict[str, Any]:
        force = arguments.flag(args, "force")
        if args.get("marker") is not None:
            groups.cuts.markers.stand_at(service, arguments.integer(args, "marker"))
            return service.promote(force)
        if args.get("cycle") is not None:
            name = arguments.name(args["cycle"], "set")
            groups.cuts.cycles.stand_at(service, name, arguments.integer(args["cycle"], "n"))
            return service.promote(force)
        return service.promote(force, arguments.flag(args, "at_limit"))

    def on(run: Callable[[GroupService, dict[str, Any]], object]) -> Handler:
        """An operation of one group; `run` gets the arguments without `group`."""

        def handler(args: dict[str, Any]) -> object:
            rest = type(args)(args)
            service = groups.get(arguments.text(rest, "group"))
            del rest["group"]
            return run(service, rest)

        return handler

    return {
        "group.create": create,
        "group.adopt": adopt,
        "group.list": listing,
        "group.delete": delete,
        "group.add_journal": lambda args: groups.add_journal(
            arguments.text(args, "group"), arguments.path(args, "path"), _journal_bytes(args, "size")
        ),
        "group.remove_journal": lambda args: groups.remove_journal(
            arguments.text(args, "group"), arguments.text(args, "path")
        ),
        "group.replace_journal": lambda args: groups.replace_journal(
            arguments.text(args, "group"),
            arguments.path(args, "path") if args.get("path") else None,
            _journal_bytes(args, "size"),
            arguments.flag(args, "force"),
        ),
        "group.add_volume": lambda args: listchange.add(
            *hosts, arguments.text(args, "group"), arguments.text(args, "volume")
        ),
        "group.remove_volume": lambda args: listchange.remove(
            *hosts, arguments.text(args, "group"), arguments.text(args, "volume")
        ),
        "group.check_volume": lambda args: listchange.check(
            *hosts, arguments.text(args, "group"), arguments.text(args, "volume"), arguments.size(args)
        ),
        "group.journal": on(lambda g, a: g.journal()),
        "group.log": on(lambda g, a: g.records(arguments.integer(a, "since", 0), arguments.integer(a, "limit", 100))),
        "group.status": on(lambda g, a: told(g.status(arguments.flag(a, "settle"), _peer(a, needed=False)))),
        "group.policy": on(
            lambda g, a: g.set_policy({k: v for k, v in a.items() if k != "peer"}, _peer(a, needed=False))
        ),
        "group.arm": on(
            lambda g, a: g.arm(
                _peer(a), arguments.text(a, "mode") if a.get("mode") else "", arguments.flag(a, "upstream")
            )
        ),
        "group.disarm": on(lambda g, a: g.disarm(_peer(a))),
        "group.bitmap": on(lambda g, a: g.common_bitmap(_position(a, "c"))),
        "group.begin_copy": on(lambda g, a: g.begin_copy(*_copy(a))),
        "group.pin_copy": on(lambda g, a: g.pin_copy(*_copy(a))),
        "group.copy_until": on(
            lambda g, a: g.copy_until(
                _peer(a), arguments.text(a, "copy_id"), arguments.integer(a, "seq"), arguments.integer(a, "epoch")
            )
        ),
        "group.extend_copy": on(lambda g, a: g.extend_copy(arguments.text(a, "copy_id"), a["masks"])),
        "group.resume_copy": on(lambda g, a: g.resume_copy()),
        "group.attach": on(attach),
        "group.link": on(lambda g, a: g.set_link(_peer(a), arguments.flag(a, "up"))),
        "group.journal_damaged": on(
            lambda g, a: g.journal_damaged(arguments.integer(a, "off"), arguments.integer(a, "seq"))
        ),
        "group.follow": on(lambda g, a: g.follow(_peer(a))),
        "group.note_source": on(lambda g, a: g.note_source(_peer(a), arguments.integer(a, "seq"))),
        "group.sync_on": on(lambda g, a: g.set_sync(_peer(a), arguments.flag(a, "on", True))),
        "group.hold": on(lambda g, a: g.hold(_seconds(a, "deadline_s"))),
        "group.release": on(lambda g, a: g.release("asked for")),
        "group.promote": on(promote),
        "group.host_time": on(lambda g, a: state_host_time(g, arguments.integer(a, "time_ns"))),
        "group.demote": on(lambda g, a: g.demote(arguments.flag(a, "diverged"), _position(a, "upto"))),
    }


def _journal_bytes(args: dict[str, Any], key: str = "journal_bytes") -> int:
    return arguments.integer(args, key, DEFAULT_JOURNAL_BYTES, low=1, high=1 << 50)


def _position(args: dict[str, Any], key: str) -> int | None:
    return None if args.get(key) is None else arguments.integer(args, key)


def _seconds(args: dict[str, Any], key: str) -> float:
    value = args[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise BadInput(f"the argument {key!r} must be seconds, more than 0 and at most 3600, not {value!r}")
    return float(value)


def _peer(args: dict[str, Any], *, needed: bool = True) -> str:
    """The node id of the peer; "" when it may be left out and is."""
    return arguments.text(args, "peer") if needed or args.get("peer") else ""


def _copy(args: dict[str, Any]) -> tuple[str, int | None, Any, str]:
    """The arguments of a copy's beginning."""
    return _peer(args), _position(args, "c"), args["peer_bitmaps"], arguments.text(args, "copy_id")


def _step(args: dict[str, Any]) -> dict[str, Any]:
    """What every attach states."""
    return _known(args, "p", "c", "epoch", "hist", "masks", "copy_id", "full")


def _known(args: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The arguments `keys`, all of which must be there; others are left out."""
    return {key: args[key] for key in keys}


def _volumes(args: dict[str, Any]) -> list[dict[str, Any]]:
    """The `volumes` of group.adopt: {name, size, index?, born?} sorted by index."""
    given = args["volumes"]
    if not isinstance(given, list) or not given or not all(isinstance(v, dict) for v in given):
        raise BadInput("the argument 'volumes' must be a list of {name, size}")
    volumes = []
    for one in given:
        volume: dict[str, Any] = {"name": arguments.name(one), "size": arguments.size(one)}
        volume |= {key: arguments.integer(one, key) for key in ("index", "born") if one.get(key) is not None}
        if one.get("raid_group"):
            volume["raid_group"] = arguments.text(one, "raid_group")
        volumes.append(volume)
    if len({v["name"] for v in volumes}) != len(volumes):
        raise BadInput("a volume is named twice")
    if len({v.get("index", at) for at, v in enumerate(volumes)}) != len(volumes):
        raise BadInput("two volumes have one index")
    return volumes
