"""RAID groups of an open pool: moving areas between them, adding and removing them, their loads, scrubbing."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from raidlib import extending, growing, loads, placing, recovery, stats
from raidlib.allocator import Allocator
from raidlib.create import GroupSpec, OpenFile
from raidlib.errors import MediumError, NotFound, Refused
from raidlib.levels import LEVELS
from raidlib.nbdfile import open_exclusive
from raidlib.openpool import OpenPool
from raidlib.volume import Volume


class PoolGroups(OpenPool):
    """What is done with RAID groups."""

    # Moving

    def move(self, name: str, start: int, length: int, raid_group: str) -> tuple[int, int]:
        """Have a range of a volume moved to another group by move_step(); return the range, whole areas, that moves.

        Snapshots and clones that share an area move with it. New areas of the range come from that group once all is
        moved; then, if it is the whole volume, the group is its home. Raises BadInput, NotFound, Refused.
        Durable: the intention, which outlives a crash.
        """
        with self._admin:
            return self._mover.begin(self.volume(name), start, length, raid_group)

    def cancel_move(self, name: str) -> int:
        """End the moves of a volume; what has moved stays. Returns how many there were. Durable: that."""
        with self._admin:
            return self._mover.cancel(self.volume(name))

    def move_step(self) -> int:
        """Move a few areas; return how many remain. Call it in one thread, again and again, until it returns 0.

        Raises OutOfSpace, MediumError; the move is kept, and a later call tries again. Durable: that they moved.
        """
        with self._admin:
            if self._closed:
                return 0
            if not self._mover.step():
                empty = [index for index in self._mover.draining() if not len(self._allocators[index].allocated)]
                if not empty:
                    return 0
                self.remarks += growing.drop_group(self._space, empty[0])
            return self._mover.remaining() or len(self._ledger.state.moves) + len(self._mover.draining())

    def relocate(self, name: str, index: int, source: str, target: str) -> bool:
        """Move one logical area of a volume from group `source` to another, now; see Mover.relocate()."""
        with self._admin:
            return not self._closed and self._mover.relocate(self.volume(name), index, source, target)

    def loads(
        self,
        rates: Mapping[str, Mapping[int, stats.Row]],
        resting: Container[tuple[str, int]] = (),
        placed_too: bool = False,
    ) -> loads.Loads:
        """Lay rates over the groups that the areas lie on; see loads.lay_out()."""
        with self._admin:
            return loads.lay_out(self._space, list(self._volumes.values()), rates, resting, placed_too)

    def moves(self) -> list[dict[str, Any]]:
        """What is being moved where, and how much remains; see Mover.report()."""
        with self._ledger.lock:
            return self._mover.report()

    def volume_map(self, name: str) -> list[dict[str, Any]]:
        """Where the areas of a volume lie: runs {start, length, group} in bytes, rising; the rest is not mapped."""
        with self._ledger.lock:
            volume = self.volume(name)
            area_bytes = self._ledger.state.area_bytes
            runs: list[dict[str, Any]] = []
            for index, place in volume.info.areas.items():
                group = self._space.group_at(place).info.name
                if runs and runs[-1]["group"] == group and runs[-1]["start"] + runs[-1]["length"] == index * area_bytes:
                    runs[-1]["length"] += area_bytes
                else:
                    runs.append({"start": index * area_bytes, "length": area_bytes, "group": group})
            return runs

    def on_rehome(self, call: Callable[[Volume], None]) -> None:
        """Have `call` told when a move gave a volume another home: its pwrite and pread_into are new ones then."""
        self._mover.on_rehome = call

    # Groups

    def add_group(self, spec: GroupSpec, open_file: OpenFile = open_exclusive, *, force: bool = False) -> None:
        """Let the pool grow by a RAID group. With force, members of other pools are overwritten.

        Raises BadInput, AlreadyExists, NotFound, MemberInUse, OutOfSpace, MediumError; then the pool is as it was.
        Durable: the group.
        """
        with self._admin:
            info, members, geometry, layout = growing.prepare_group(self._space, spec, open_file, force)
            try:
                index = growing.join_group(self._space, info, members, geometry, layout)
            except BaseException:
                growing.close_members(members)
                raise
            engine = self._groups[0].engine
            group = LEVELS[spec.level](index, info, geometry, layout, members, self._ledger, engine)
            allocator = Allocator(group, self._ledger, recovery.allocated_areas(self._ledger.state, index))
            with self._ledger.lock:
                self._space.allocators = {**self._space.allocators, index: allocator}
                self._space.groups = {**self._space.groups, index: group}

    def grow(self, raid_group: str | None = None, *, dry_run: bool = False) -> dict[str, Any]:
        """Let a group, or every group that can, take the room that its members got since; see extending.py.

        dry_run: only find out. Returns {"groups": what they become, sizes in bytes, with the spares that are too small
        for them then, "refused": the other groups and why}. Raises NotFound, Refused when none can, OutOfSpace,
        MediumError; then what is not grown is as it was. Durable: that they have grown.
        """
        with self._admin:
            indexes = list(self._space.groups) if raid_group is None else [placing.group_named(self._space, raid_group)]
            grown: list[dict[str, Any]] = []
            refused: list[dict[str, Any]] = []
            for group in (self._space.groups[index] for index in indexes):
                before = group.info.usable_areas
                try:
                    growth = extending.check(group)
                except (Refused, MediumError) as exc:
                    if len(indexes) == 1:
                        raise
                    refused.append({"name": group.info.name, "reason": exc.message})
                    continue
                if not dry_run:
                    extending.extend(group, self._allocators[group.index], self._ledger, growth)
                grown.append(
                    {
                        "name": group.info.name,
                        "old_size": before * self.area_bytes,
                        "size": (before + growth.gained_areas) * self.area_bytes,
                        "unfit_spares": self._member_ops.spares.too_small(group, group.member_offset(growth.areas)),
                    }
                )
            if not grown:
                raise Refused(
                    f"no RAID group can grow: {'; '.join(one['reason'] for one in refused)}",
                    "enlarge every member of a group first, or add a group: pool add-group",
                )
            return {"groups": grown, "refused": refused}

    def remove_group(self, name: str) -> int:
        """Have everything on a group moved to others by move_step(), which then drops it; return the areas to move.

        Nothing new is put on it from now on. Raises NotFound, Refused, OutOfSpace (the others have no room); then
        nothing was changed. Durable: the intention, which outlives a crash.
        """
        with self._admin:
            index = placing.group_named(self._space, name)
            for volume, home in growing.begin_removal(self._space, index, list(self._volumes.values())):
                volume.rehome(home)
                self._mover.on_rehome(volume)
            return len(self._allocators[index].allocated)

    def keep_group(self, name: str) -> None:
        """Give up the removal of a group; what has moved stays where it is. Raises NotFound. Durable: that."""
        with self._admin, self._ledger.lock:
            for index in self._mover.draining():
                if self._space.groups[index].info.name == name:
                    self._space.groups[index].info.draining = False
                    self._ledger.commit()
                    return
            raise NotFound(f"no RAID group {name} is being removed", "pool status shows the groups")

    # Scrubbing

    def scrub_start(self, raid_group: str | None = None, *, repair: bool = False, limit_bytes_s: int = 0) -> None:
        """See Scrubs.start."""
        self._scrubs.start(raid_group, repair, limit_bytes_s)

    def scrub_pause(self, raid_group: str | None = None) -> None:
        """See Scrubs.pause."""
        self._scrubs.pause(raid_group)

    def scrub_resume(self, raid_group: str | None = None) -> None:
        """See Scrubs.resume."""
        self._scrubs.resume(raid_group)

    def scrub_stop(self, raid_group: str | None = None) -> None:
        """See Scrubs.stop."""
        self._scrubs.stop(raid_group)

    def scrub_step(self) -> tuple[int, float]:
        """See Scrubs.step."""
        return self._scrubs.step()

    def scrub_status(self) -> dict[str, dict[str, Any]]:
        """See Scrubs.status."""
        return self._scrubs.status()
