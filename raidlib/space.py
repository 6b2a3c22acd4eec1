"""The space of a pool as its images see it: groups, free areas, who shares an area, where a new one comes from.

Where a new area of an image comes from:
* in a range placed on a group: from that group alone, because somebody chose it;
* of a pinned image: from its home group alone, likewise;
* else from home, and when that is full from the group with most room.
A group that is being removed gives nothing, and a lost one is asked last.

An area that more than one map refers to is shared. It is never written: who wants to takes a copy first (cow.py).
References rise only while nobody writes to the images concerned (images.py), so an area that a writer saw unshared
stays so until its call ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from raidlib.allocator import Allocator
from raidlib.areamap import area_of, group_of, place_of
from raidlib.errors import MediumError, OutOfSpace
from raidlib.gate import Gate
from raidlib.ledger import Ledger
from raidlib.raidgroup import RaidGroup
from raidlib.rounds import Rounds
from raidlib.state import VolumeInfo


class Space:
    """Groups and allocators by index, shared by all volumes of a pool."""

    def __init__(self, ledger: Ledger, groups: dict[int, RaidGroup], allocators: dict[int, Allocator]) -> None:
        self.ledger = ledger
        self.groups = groups
        self.allocators = allocators
        self.touched = dict.fromkeys(ledger.state.touched, False)
        """Blocks of 64 logical areas (volume id, block) in which areas come or go, and whether lately."""
        self.pending: set[int] = set()
        """Places that a call has taken and not mapped yet. Under the ledger's lock."""
        self._gates: dict[int, Gate] = {}
        self._syncs = Rounds(self._sync_round)

    def sync(self) -> None:
        """Sync every member; calls that come together share one round. Whether a group is lost is the caller's to ask.

        Durable: everything written before the call to a group that is not lost; areas punched before become clean.
        """
        self._syncs.join()

    def _sync_round(self) -> None:
        with self.ledger.lock:
            ready = {index: allocator.unsettled() for index, allocator in self.allocators.items()}
        try:
            self.ledger.sync_members()
        except MediumError:
            return  # whom this concerns looks for itself; nothing is called clean
        for group in list(self.groups.values()):
            if group.degraded:
                # What is durable now must be readable after a power cut, also when nobody writes any more.
                group.secure_degraded()
        with self.ledger.lock:
            for index, areas in ready.items():
                if index in self.allocators:
                    self.allocators[index].settle(areas)

    def gate(self, family: int) -> Gate:
        """The gate that all images of a family share: areas of one may be read through the map of another."""
        return self._gates.setdefault(family, Gate())

    def group_at(self, place: int) -> RaidGroup:
        """The group of a place."""
        return self.groups[group_of(place)]

    def shared(self, place: int) -> bool:
        """Whether more than one map refers to a place."""
        return self.allocators[group_of(place)].allocated.count(area_of(place)) > 1

    def order(self, info: VolumeInfo, index: int, first: int | None = None) -> list[int]:
        """The groups that a logical area may be taken from, best first; `first` is preferred if one may choose."""
        for start, end, group in info.placement:
            if start <= index < end:
                return [group]
        if info.pinned:
            return [info.group]
        home = info.group if first is None else first
        with self.ledger.lock:
            return sorted(
                (index for index, group in self.groups.items() if not group.info.draining),
                key=lambda index: (self.groups[index].lost, index != home, -self.allocators[index].ready_areas),
            )

    def take(self, groups: Iterable[int], *, reserve: bool = True) -> tuple[int, bool]:
        """Take a clean area of the first group that has one: (place, True), with its space on the members reserved.

        (group, False): prepare() that group first. Raises OutOfSpace. Call under the ledger's lock.
        Durable: nothing; the caller logs the allocation.
        """
        names: list[str] = []
        for index in groups:
            if index not in self.groups or self.groups[index].info.draining:
                continue  # since the order was made
            allocator = self.allocators[index]
            names.append(self.groups[index].info.name)
            if allocator.ready_areas:
                area = allocator.take()
                if area is None:
                    return index, False
                if reserve:
                    try:
                        self.groups[index].reserve_areas(area, 1)
                    except BaseException:
                        allocator.give_back(area)
                        raise
                return place_of(index, area), True
        raise OutOfSpace(
            f"group {names[0]} has no free area left"
            if len(names) == 1
            else f"no free area is left in the groups {', '.join(names) or 'that may be used'}",
            "delete or trim volumes, delete snapshots, or add a group",
        )

    def prepare(self, group: int, areas: int = 1) -> None:
        """See Allocator.prepare. Call without any lock."""
        self.allocators[group].prepare(areas)

    def punch(self, places: Iterable[int]) -> None:
        """Zero areas that lost their last reference durably, or by a trim, and that no call can be using any more.

        Raises MediumError when some could not be zeroed: they stay free, and it is tried again before they are used.
        Durable: nothing; the next sync makes them clean.
        """
        trouble: MediumError | None = None
        by_group: dict[int, list[int]] = {}
        for place in places:
            by_group.setdefault(group_of(place), []).append(area_of(place))
        for index, areas in by_group.items():
            allocator = self.allocators[index]
            epoch = allocator.epoch
            for area in areas:
                try:
                    self.groups[index].punch_area(area)
                except MediumError as exc:
                    trouble = exc
                    with self.ledger.lock:
                        allocator.not_punched(area)
                else:
                    with self.ledger.lock:
                        allocator.punched([area], epoch)
        if trouble is not None:
            raise trouble

    def release(self, places: Iterable[int]) -> list[int]:
        """Drop a reference to each place; return those that are free now, in limbo. Call under the ledger's lock.

        The caller has logged it, or commits, with the free ones in their groups' `dirty`.
        """
        gone: list[int] = []
        for place in places:
            allocator = self.allocators[group_of(place)]
            if allocator.allocated.drop(area_of(place)):
                self.groups[group_of(place)].info.dirty.add(area_of(place))
                allocator.freed([area_of(place)])
                gone.append(place)
        return gone
