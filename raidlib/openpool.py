"""What every part of an open pool rests on: its groups and volumes, syncs, and the marks of the intent log.

Pool (pool.py) is made of this and of poolimages.py, poolgroups.py and poolmembers.py, which are the operations that an
administrator has.

Threads: requests on volumes run in parallel with each other and with everything here. Administrative calls are
serialised by one lock, `_admin`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from raidlib import readd, recovery
from raidlib.allocator import Allocator
from raidlib.areamap import area_of, group_of
from raidlib.blockfile import BlockFile
from raidlib.errors import NotFound
from raidlib.ledger import Ledger
from raidlib.memberops import MemberOps
from raidlib.move import Mover
from raidlib.raidgroup import RaidGroup
from raidlib.recovery import Ranges
from raidlib.scrubs import Scrubs
from raidlib.space import Space
from raidlib.state import Kind, Record, VolumeInfo
from raidlib.volume import Volume


class OpenPool:
    """Groups and volumes of an open pool; sizes, offsets and lengths are bytes."""

    def __init__(
        self,
        ledger: Ledger,
        groups: list[RaidGroup],
        was_clean: bool,
        same_boot: bool,
        spare_files: dict[str, BlockFile] | None = None,
    ) -> None:
        self._ledger = ledger
        self._admin = threading.RLock()
        allocators = {
            group.index: Allocator(group, ledger, recovery.allocated_areas(ledger.state, group.index))
            for group in groups
        }
        self._space = Space(ledger, {group.index: group for group in groups}, allocators)
        ledger.on_change = self._refresh
        self._touched = self._space.touched
        self._volumes = {info.name: self._make_volume(info) for info in ledger.state.volumes.values()}
        self._mover = Mover(self._space, self._volumes)
        self._scrubs = Scrubs(lambda: self._groups, lambda index: self._allocators[index], ledger, lambda: self.volumes)
        self._member_ops = MemberOps(ledger, self._space, self._wait_at_gates, spare_files)
        self._closed = False
        self.stopped = "clean" if was_clean else "killed" if same_boot else "lost power"
        """How the pool ended before this open: clean, killed (nothing written is lost), or lost power."""
        self.remarks: list[str] = []
        """What open found that an operator should know, one line each."""
        self.repaired_chunks = 0
        """Chunks of parity or mirrors that open had to make good."""
        self._unclean: Ranges = {}

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._ledger.state.name

    @property
    def uuid(self) -> str:
        """The pool's identity, 32 hex digits."""
        return self._ledger.state.uuid

    @property
    def area_bytes(self) -> int:
        """Size of an area."""
        return self._ledger.state.area_bytes

    @property
    def volumes(self) -> list[Volume]:
        """All volumes, in the order they were made."""
        return list(self._volumes.values())

    def volume(self, name: str) -> Volume:
        """Return a volume by name. Raises NotFound."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"there is no volume {name} in pool {self.name}", "see the list of volumes")
        return volume

    # Durability

    def sync(self, volume: Volume | None = None) -> None:
        """Sync every member. Calls that come together share one round.

        A member whose sync fails is failed and never synced again. Raises MediumError as soon as and as long as a group
        is lost; when a volume is given, only for the loss of a group that it lies on.
        Durable: everything written, zeroed or freed before the call, in every volume of a group that is not lost.
        """
        self._space.sync()
        if volume is not None:
            volume.raise_if_lost()
            return
        for group in self._groups:
            if group.lost:
                group.raise_lost()

    @property
    def unclean_ranges(self) -> Ranges:
        """Ranges (offset, length) by volume that the last unclean stop may have left different from another copy.

        The marks behind them stay on the members until clear_intents() is first called: call that only once the ranges
        have been taken over durably, or name the volumes for which they have not; then a second crash loses nothing.
        """
        return self._unclean

    def clear_intents(self, settle: Callable[[], Collection[str]] | None = None) -> int:
        """Clear the marks of regions not written to since the call before; return how many. Syncs if there are any.

        settle: called before the marks go; whoever relies on `unclean_ranges` to know what changed makes its own notes
        of all writes before the call durable there, and returns the names of volumes for which it could not: their
        marks stay. Meant to be called every few seconds. Raises MediumError and what settle raises (then no mark is
        cleared). Durable: everything written before, if it synced.
        """
        groups = list(self._groups)
        with self._ledger.map_lock:
            idle = [group.intents.cool() for group in groups]
            for volume in self._volumes.values():
                volume.cool()
        with self._ledger.lock:
            idle_blocks = [block for block, hot in self._touched.items() if not hot]
            for block in self._touched:
                self._touched[block] = False
        if not any(idle) and not idle_blocks:
            return 0
        self._wait_at_gates()
        kept = settle() if settle is not None else ()
        self.sync()
        cleared = 0
        with self._ledger.lock:
            stay, stay_blocks = self._marks_of(kept)
        idle_blocks = [block for block in idle_blocks if block not in stay_blocks]
        for group, cool in zip(groups, idle, strict=True):
            regions = [region for region in cool if (group.index, region) not in stay]
            readd.note_missed(group, self._ledger, regions)
            cleared += group.intents.clear(regions)
        with self._ledger.lock:
            gone = [block for block in idle_blocks if self._touched.get(block) is False]
            for block in gone:
                del self._touched[block]
            if gone:
                self._ledger.record([Record(Kind.UNTOUCH, 0, *block) for block in gone])
        return cleared

    # Inside

    @property
    def _groups(self) -> list[RaidGroup]:
        return list(self._space.groups.values())

    @property
    def _allocators(self) -> dict[int, Allocator]:
        return self._space.allocators

    def _marks_of(self, names: Collection[str]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """The (RAID group, region) in which areas of these volumes are, and their touched blocks.

        Call under the ledger's lock.
        """
        volumes = [volume.info for name, volume in self._volumes.items() if name in names]
        state = self._ledger.state
        places = {place for info in volumes for _, place in info.areas.items()}
        regions = {(group_of(place), area_of(place) // state.groups[group_of(place)].region_areas) for place in places}
        ids = {info.id for info in volumes}
        return regions, {block for block in self._touched if block[0] in ids}

    def _refresh(self, index: int) -> None:
        group = self._space.groups.get(index)
        if group is not None:
            group.refresh()

    def _make_volume(self, info: VolumeInfo) -> Volume:
        return Volume(info, self._space)

    def _wait_at_gates(self) -> None:
        """Return when every request that is in flight now has ended."""
        for gate in {volume.gate for volume in list(self._volumes.values())}:
            gate.wait()

    def _drain(self) -> None:
        """Return when every request on a volume that is in flight has ended."""
        for volume in list(self._volumes.values()):
            volume.gate.wait()
