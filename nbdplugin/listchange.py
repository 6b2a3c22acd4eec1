"""Changing which volumes a group has, and their sizes, on its primary: what is checked first, and routes.

Everything that can be refused is refused before the change. A volume joins a group that has peers only while nothing
was ever written to it: then all copies of it are equal from the start. So its requests go to the group first, which
refuses changes of a volume that it does not have, and what the volume holds is looked at after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbdplugin.exports import Exports, join, refuse_if_open, refuse_if_writers
from nbdplugin.groupvolumes import allocated, in_the_way
from replicator.capture import volumeset
from replicator.capture.state import PRIMARY
from replicator.core.errors import BadInput, NotFound, Refused
from replicator.core.records import Kind

if TYPE_CHECKING:
    from nbdplugin.grouphost import GroupHost
    from nbdplugin.poolhost import PoolHost
    from nbdplugin.routes import VolumeRoute
    from replicator.capture.service import GroupService


def add(groups: GroupHost, pools: PoolHost, exports: Exports, which: str, name: str) -> dict[str, Any]:
    """Put a volume into a group. Returns the group's status. Durable: that it is in.

    Raises Refused, BadInput, NoRoom with nothing changed.
    """
    with pools.changing:
        service, route = _primary(groups, which), exports.get(name)
        state = service.engine.state
        if route.group is not service or _has(service, name):  # else an earlier attempt failed half way
            groups.check_free(name)
        refuse_if_writers(route, "added to a group")
        groups.check_extent(state.name, [*(v["size"] for v in state.volumes), route.volume.size])
        index = volumeset.reserve(service.engine)
        join(route, service, index)
        try:
            if state.edges and allocated(pools, name):
                raise Refused(
                    f"volume {name} has been written to, or is not thin, and group {state.name} is paired",
                    "make a new volume, add that, and copy the data into it; or add it before the group is paired",
                )
            service.change_volumes(Kind.VOLUME_ADD, name, route.volume.size)
        except BaseException:
            engine = service.engine
            if not (_has(service, name) or engine.failed or engine.journal_lost):
                exports.leave_group([name], pools.require().sync)
            raise
        return service.status()


def remove(groups: GroupHost, pools: PoolHost, exports: Exports, which: str, name: str) -> dict[str, Any]:
    """Take a volume out of its group; it stays, with its contents. Otherwise like `add`."""
    with pools.changing:
        service = _primary(groups, which)
        _require(service, name)
        refuse_if_writers(exports.get(name), "taken out of its group")
        service.change_volumes(Kind.VOLUME_REMOVE, name)
        return service.status()


def resize(groups: GroupHost, pools: PoolHost, route: VolumeRoute, size: int, force: bool) -> None:
    """Change the size of a volume of a group; `force` may cut data. Otherwise like `add`."""
    with pools.changing:
        service = _primary(groups, route.group.engine.state.uuid)
        _require(service, route.name)
        state, before = service.engine.state, route.volume.size
        if size == before:
            return
        groups.check_extent(state.name, [size if v["name"] == route.name else v["size"] for v in state.volumes])
        if size < before:
            refuse_if_open(route, "resize")
            held = sum(n for n, taken in route.volume.extents(size, before - size) if taken)
            if held and not force:
                raise Refused(
                    f"volume {route.name} holds data beyond {size} bytes",
                    "repeat with --force to cut it off everywhere",
                )
        service.change_volumes(Kind.RESIZE, route.name, size)


def check(groups: GroupHost, pools: PoolHost, exports: Exports, which: str, name: str, size: int) -> None:
    """Raise Refused when a volume that the primary is about to add could not be made here."""
    service = groups.get(which)
    if _has(service, name):
        return
    try:
        route = exports.get(name)
    except NotFound:
        pools.require()
        return
    if why := in_the_way(route, size, allocated(pools, name)):
        raise Refused(why, f"rename or delete volume {name} there first")


def _primary(groups: GroupHost, which: str) -> GroupService:
    service = groups.get(which)
    state = service.engine.state
    if state.role != PRIMARY:
        raise Refused(f"group {state.name} is secondary here", "change its volumes on the primary; this copy follows")
    return service


def _has(service: GroupService, name: str) -> bool:
    return any(v["name"] == name for v in service.engine.state.volumes)


def _require(service: GroupService, name: str) -> None:
    if not _has(service, name):
        raise BadInput(f"volume {name} is not in group {service.engine.state.name}", "farstripe group list shows which")
