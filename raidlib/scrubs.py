"""The scrubs of a pool: orders, one step after the other, how much to rest between them, and what was found where.

One group is scrubbed at a time, for groups may share disks. `raid_group` is a group's name, None for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from raidlib.allocator import Allocator
from raidlib.areamap import place_of
from raidlib.errors import NotFound, Refused
from raidlib.ledger import Ledger
from raidlib.raidgroup import RaidGroup
from raidlib.scrub import PAUSED, RUNNING, STOPPED, Scrub
from raidlib.volume import Volume

HOST_SHARE = 0.75
"""Part of the time left to hosts while they have requests."""


class Scrubs:
    """One Scrub per group. step() is called by one thread; everything else by any."""

    def __init__(
        self,
        groups: Callable[[], Sequence[RaidGroup]],
        allocator: Callable[[int], Allocator],
        ledger: Ledger,
        volumes: Callable[[], Sequence[Volume]],
    ) -> None:
        """groups: those that the pool has now. allocator: theirs, by index."""
        self._groups = groups
        self._allocator = allocator
        self._ledger = ledger
        self._known: dict[RaidGroup, Scrub] = {}
        self._volumes = volumes
        self._area_bytes = ledger.state.area_bytes
        self._host_requests = 0

    @property
    def all(self) -> list[Scrub]:
        """The scrub of every group there is now, in the order of the groups."""
        with self._ledger.lock:
            groups = list(self._groups())
            for group in groups:
                if group not in self._known:
                    self._known[group] = Scrub(group, self._allocator(group.index), self._ledger)
            return [self._known[group] for group in groups]

    def start(self, raid_group: str | None, repair: bool, limit_bytes_s: int) -> None:
        """Scrub a group, or all that are not lost; step() then does it. One that is under way goes on.

        repair: see scrub.py. limit_bytes_s: read at most so many bytes a second, 0 for no limit.
        Raises NotFound, Refused. Durable: that they run.
        """
        for scrub in self._those(raid_group):
            if raid_group is not None or not scrub.group.lost:
                scrub.start(repair, limit_bytes_s)

    def pause(self, raid_group: str | None) -> None:
        """Halt scrubs where they are. Raises NotFound, Refused when none runs. Durable: that they are paused."""
        self._turn(raid_group, PAUSED, "is being scrubbed", "is not being scrubbed")

    def resume(self, raid_group: str | None) -> None:
        """Go on with paused scrubs. Raises NotFound, Refused when none is paused. Durable: that they run."""
        self._turn(raid_group, RUNNING, "has a paused scrub", "has no paused scrub")

    def stop(self, raid_group: str | None) -> None:
        """End scrubs; what they found stays. Raises NotFound, Refused when there is none. Durable: that they ended."""
        self._turn(raid_group, STOPPED, "has a scrub under way", "has no scrub under way")

    def step(self) -> tuple[int, float]:
        """Do a small step of the first scrub that runs; return the bytes that it read and the seconds to rest now.

        (0, 0) when none runs. Call it in one thread, again and again. Raises MediumError.
        """
        scrub = next((one for one in self.all if one.active), None)
        if scrub is None:
            return 0, 0.0
        began = time.monotonic()
        before, self._host_requests = self._host_requests, sum(volume.gate.entered for volume in self._volumes())
        done = scrub.step()
        took = time.monotonic() - began
        return max(done, 1), rest_s(done, took, scrub.limit_bytes_s, self._host_requests - before)

    def status(self) -> dict[str, dict[str, Any]]:
        """Each group's last scrub by the group's name: see Scrub.status; ranges are given in volumes, too."""
        found = {}
        for scrub in self.all:
            status = scrub.status()
            ranges = status.get("ranges", [])
            owners = self._owners(scrub.group, {one["area"] for one in ranges}) if ranges else {}
            for one in ranges:
                one["volumes"] = [
                    {"volume": volume.name, "offset": start + one["offset"], "length": n}
                    for volume, start in owners.get(one["area"], ())
                    if (n := self._length(volume, start, one["offset"], one["length"])) > 0
                ]
            found[scrub.group.info.name] = status
        return found

    def close(self) -> None:
        """Let go of threads. Durable: nothing."""
        for scrub in self._known.values():
            scrub.close()

    def _those(self, raid_group: str | None) -> list[Scrub]:
        found = [scrub for scrub in self.all if raid_group in (None, scrub.group.info.name)]
        if not found:
            names = ", ".join(scrub.group.info.name for scrub in self.all)
            raise NotFound(f"there is no RAID group {raid_group}", f"the pool's groups are: {names}")
        return found

    def _turn(self, raid_group: str | None, state: str, what: str, what_not: str) -> None:
        turned = [scrub.turn(state) for scrub in self._those(raid_group)]
        if not any(turned):
            found = f"no RAID group {what}" if raid_group is None else f"RAID group {raid_group} {what_not}"
            raise Refused(found, "farstripe pool status shows scrubs")

    def _owners(self, group: RaidGroup, areas: set[int]) -> dict[int, list[tuple[Volume, int]]]:
        """Whose the areas of a group are: area -> (volume, where in the volume it begins)."""
        found: dict[int, list[tuple[Volume, int]]] = {}
        wanted = {place_of(group.index, area): area for area in areas}
        with self._ledger.lock:
            for volume in self._volumes():
                for index, place in volume.info.areas.items():
                    if place in wanted:
                        found.setdefault(wanted[place], []).append((volume, index * self._area_bytes))
        return found

    def _length(self, volume: Volume, start: int, offset: int, length: int) -> int:
        """How much of a place in an area that begins at `start` belongs to the volume: the last may reach too far."""
        return min(length, self._area_bytes - offset, volume.size - start - offset)


def rest_s(did_bytes: int, took_s: float, limit_bytes_s: int, host_requests: int) -> float:
    """How long to rest after a step: to keep the limit, and to leave hosts their share if they want something."""
    rest = did_bytes / limit_bytes_s - took_s if limit_bytes_s else 0.0
    return max(rest, took_s * HOST_SHARE / (1 - HOST_SHARE) if host_requests else 0.0, 0.0)
