"""The volumes of the node as NBD exports: a route for each, who has it open, what a client is told about it.

A volume of a secondary group is served read-only, and its description says why. NBD names no client, so a second
writer cannot be told from a second connection of the first: `writers` counts connections that may write, volume.list
shows it, and `farstripe attach` refuses a volume that has one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nbdplugin.routes import ReadGuard, VolumeRoute, group_slots, pool_slots
from replicator.capture.service import GroupService
from replicator.capture.state import FRESH, OK, PRIMARY, RESYNC, SECONDARY
from replicator.core.errors import NotFound, Refused

ANSWER_S = 0.02
"""How long nbdkit has to send an answer after our callback has returned."""


class Exports:
    """Routes by volume name. Thread-safe."""

    def __init__(self) -> None:
        self._routes: dict[str, VolumeRoute] = {}
        self._lock = threading.Lock()

    def add(self, volume: Any, sync: Callable[[Any], object]) -> None:
        """Serve `volume`; `sync(volume)` makes it durable."""
        with self._lock:
            self._routes[volume.name] = VolumeRoute(volume, pool_slots(volume, partial(sync, volume)))

    def remove(self, name: str) -> None:
        """Stop serving a volume. Raises Refused while a client has it open."""
        with self._lock:
            route = self._routes.get(name)
            if route is None:
                return
            refuse_if_open(route, "delete")
            del self._routes[name]

    def get(self, name: str) -> VolumeRoute:
        """Return the route of `name`. Raises NotFound."""
        route = self._routes.get(name)
        if route is None:
            raise NotFound(f"no volume {name!r} on this node", "farstripe volume list shows them")
        return route

    def routes(self) -> list[VolumeRoute]:
        """All routes, by name."""
        with self._lock:
            return [self._routes[name] for name in sorted(self._routes)]

    def open(self, name: str, readonly: bool) -> tuple[VolumeRoute, bool]:
        """Count a connection to `name`; returns its route and whether it may only read. Raises NotFound."""
        with self._lock:
            route = self.get(name)
            readonly = readonly or not writable(route)
            if readonly:
                route.readers += 1
            else:
                route.writers += 1
            return route, readonly

    def close(self, route: VolumeRoute, readonly: bool) -> None:
        """Take back one `open`."""
        with self._lock:
            if readonly:
                route.readers -= 1
            else:
                route.writers -= 1

    def park(self, timeout_s: float) -> None:
        """Let no request begin from now on; return when those under way have been answered, at most `timeout_s` later.

        Parked ones wait for VolumeRoute.refuse_parked.
        """
        deadline = time.monotonic() + timeout_s
        routes = self.routes()
        for route in routes:
            route.park()
        while any(route.busy for route in routes) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(ANSWER_S)

    def open_count(self) -> int:
        """How many connections have a volume open."""
        return sum(route.writers + route.readers for route in self.routes())

    def join_group(self, volumes: Mapping[str, int], service: GroupService) -> None:
        """Send the requests of these volumes (name -> index in the group) through its service from now on."""
        for name, index in volumes.items():
            join(self.get(name), service, index)

    def guard_reads(self, service: GroupService, on: bool) -> None:
        """Guard the reads of the group's volumes, or no longer; see GuardedReads.install."""
        for route in self.routes():
            if route.group is service:
                route.guard_reads(ReadGuard(service.reads, route.index) if on else None)

    def block(self, names: list[str], why: str) -> None:
        """Serve these volumes read-only and let nothing change them; `why` is told to whoever tries."""
        for name in names:
            if name in self._routes:
                self._routes[name].block(why)

    def leave_group(self, names: list[str], sync: Callable[[Any], object]) -> None:
        """Send the requests of these volumes straight to the pool again; `sync` as in add."""
        for name in names:
            route = self.get(name)
            route.switch(pool_slots(route.volume, partial(sync, route.volume)), None, 0)
            route.guard_reads(None)


def join(route: VolumeRoute, service: GroupService, index: int) -> None:
    """Send the requests of a volume through the service of its group from now on."""

    def guard() -> None:
        route.guard_reads(ReadGuard(service.reads, index) if service.reads.on else None)

    guard()  # before its first write that waits
    route.switch(group_slots(service, index), service, index)
    guard()  # it was not the group's yet if that has changed meanwhile


def writable(route: VolumeRoute) -> bool:
    """Whether a new connection may write."""
    return not route.blocked and not route.frozen and (route.group is None or route.group.engine.state.role == PRIMARY)


def describe(route: VolumeRoute) -> str:
    """One line for the NBD client: what the export is and, when it is read-only, why."""
    if route.blocked:
        return f"volume {route.name}: read-only, {route.blocked}"
    if route.frozen:
        return f"snapshot {route.name}: read-only"
    if route.group is None:
        return f"volume {route.name}"
    state = route.group.engine.state
    text = f"volume {route.name} of group {state.name}"
    if state.role == PRIMARY:
        return text
    if state.copy == OK:
        return f"{text}: secondary here, read-only"
    return f"{text}: secondary here, read-only, not consistent now ({state.copy})"


def refuse_if_writers(route: VolumeRoute, done: str) -> None:
    """Raise Refused when a client has the volume open for writing; `done` is what cannot be done to it."""
    if count := route.writers:
        raise Refused(
            f"volume {route.name} cannot be {done}: {count} NBD connection{'s' * (count > 1)} may write",
            "farstripe detach it, or end the client",
        )


def refuse_if_open(route: VolumeRoute, verb: str) -> None:
    """Raise Refused when a client has the volume open."""
    if count := route.writers + route.readers:
        raise Refused(
            f"volume {route.name} cannot be {verb}d: {count} NBD connection{'s' * (count > 1)} open",
            "farstripe detach it, or end the client",
        )


def refuse_if_inconsistent(route: VolumeRoute, done: str) -> None:
    """Raise Refused when the volume is half a copy; `done` is what cannot be done to it.

    One that diverged holds what its hosts wrote: that may well be kept.
    """
    if route.group is not None:
        state = route.group.engine.state
        if state.role == SECONDARY and state.copy in (FRESH, RESYNC):
            raise Refused(
                f"volume {route.name} cannot be {done}: the copy of group {state.name} is {state.copy}, and the volume"
                " holds no consistent image",
                f"farstripe pair wait {state.name} tells when it does",
            )


def refuse_if_grouped(route: VolumeRoute, done: str) -> None:
    """Raise Refused when the volume is in a group; `done` is what cannot be done to it."""
    if route.blocked:
        raise Refused(f"volume {route.name} cannot be {done}: {route.blocked}", "farstripe group delete --force")
    if route.group is not None:
        raise Refused(
            f"volume {route.name} cannot be {done}: it is in group {route.group.engine.state.name}",
            "farstripe pair delete and farstripe group delete come first",
        )
