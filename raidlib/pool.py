"""A pool: RAID groups, the volumes on them, and the operations an administrator has.

This is the face of raidlib, made of openpool.py (what all else rests on), poolimages.py, poolgroups.py and
poolmembers.py. They join the parts and hold no logic of their own that another file could: create.py and assemble.py
make and find members, ledger.py keeps the durable state, recovery.py repairs after a crash, volume.py serves,
space.py, allocator.py and intents.py keep areas and marks, rebuild.py and replacing.py fill new members.

Threads: requests on volumes run in parallel with each other and with everything here. Administrative calls are
serialised by one lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from raidlib import create, readd, recovery, replacing
from raidlib.assemble import assemble
from raidlib.check import check
from raidlib.create import DEFAULT_AREA_BYTES, GroupSpec, OpenFile
from raidlib.errors import Refused
from raidlib.ledger import Ledger
from raidlib.levels import LEVELS
from raidlib.looks import Look
from raidlib.memberops import resume
from raidlib.nbdfile import open_exclusive
from raidlib.parity import Engine, choose
from raidlib.poolgroups import PoolGroups
from raidlib.poolimages import PoolImages
from raidlib.poolmembers import PoolMembers
from raidlib.raidgroup import RaidGroup
from raidlib.report import pool_report


class Pool(PoolImages, PoolGroups, PoolMembers):
    """An open pool. Made by Pool.open; sizes, offsets and lengths are bytes."""

    # Making, opening, closing

    @classmethod
    def create(
        cls,
        name: str,
        groups: Sequence[GroupSpec],
        area_bytes: int = DEFAULT_AREA_BYTES,
        open_file: OpenFile = open_exclusive,
        *,
        force: bool = False,
    ) -> Pool:
        """Make a pool on existing files or devices and open it. With force, members of other pools are overwritten.

        Raises BadInput, NotFound, MemberInUse, MediumError; unless it is MediumError nothing was changed.
        Durable: the empty pool.
        """
        create.create_members(name, groups, area_bytes, open_file, force)
        return cls.open([path for spec in groups for path in spec.members], open_file)

    @classmethod
    def open(
        cls,
        paths: Sequence[str],
        open_file: OpenFile = open_exclusive,
        *,
        force: bool = False,
        boot_id: str | None = None,
        engine: Engine | None = None,
    ) -> Pool:
        """Find the members of a pool, repair what a crash left, and open it.

        paths: any of its members; the others are looked for where they were. Raises as assemble(), and Refused when a
        group is degraded and dirty (yields to force).
        Durable: a new generation, with members that are missing recorded as failed; repairs.
        """
        if boot_id is None:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        assembly = assemble(paths, open_file, force)
        state = assembly.state
        ledger = Ledger(state, assembly.members, assembly.geometries, assembly.layouts)
        try:
            resume(assembly, ledger)
            was_clean, same_boot = state.clean, state.boot_id == boot_id
            marks: list[set[int]] = [set() for _ in state.groups]
            groups: list[RaidGroup] = []
            for index, info in enumerate(state.groups):
                if info.removed:
                    continue
                layout, members = assembly.layouts[index], assembly.members[index]
                if not was_clean:
                    marks[index] = recovery.read_marks(info, layout, members)
                    recovery.distrust_free_areas(state, index, marks[index])
                groups.append(
                    LEVELS[info.level](
                        index,
                        info,
                        assembly.geometries[index],
                        layout,
                        members,
                        ledger,
                        engine or choose(),
                        marks[index],
                    )
                )
            suspects = {group.index: recovery.suspect_areas(state, group.index, marks[group.index]) for group in groups}
            for group in groups:
                recovery.check_write_hole(group, suspects[group.index], force)
            by_index = {group.index: group for group in groups}
            ledger.on_change = lambda index: by_index[index].refresh()
            unclean = recovery.unclean_ranges(state, marks)
            state.clean, state.boot_id = False, boot_id
            ledger.commit()
            repaired = sum(recovery.repair(group, suspects[group.index], force) for group in groups)
            if not was_clean:
                for group in groups:
                    replacing.copy_suspects(group, ledger, suspects[group.index])
                ledger.sync_members()
            for group in groups:
                group.secure_degraded()
            pool = cls(ledger, groups, was_clean, same_boot, assembly.spares)
            pool.remarks, pool.repaired_chunks, pool._unclean = assembly.remarks, repaired, unclean
            return pool
        except BaseException:
            ledger.close()
            for file in assembly.spares.values():
                file.close()
            raise

    def close(self, kept: Collection[str] = ()) -> None:
        """Wait for calls in flight, sync, and record that the pool is clean. Raises MediumError; the files are closed.

        kept: volumes of somebody who could not take over what their marks tell; see clear_intents. When there are any,
        these stay, and the pool is not called clean. Durable: everything.
        """
        with self._admin:
            if self._closed:
                return
            self._closed = True
            ledger = self._ledger
            try:
                for volume in self._volumes.values():
                    volume.retire()
                ledger.sync_members()
                self._scrubs.close()
                with ledger.lock:
                    stay, stay_blocks = self._marks_of(kept)
                for group in self._groups:
                    with group.intents.lock:
                        group.intents.cool()
                    gone = [region for region in group.intents.marked() if (group.index, region) not in stay]
                    readd.note_missed(group, ledger, gone)
                    group.intents.clear(gone)
                with ledger.lock:
                    ledger.state.touched.intersection_update(stay_blocks)
                    marked = any(group.intents.marked() for group in self._groups)
                    ledger.state.clean = not (marked or ledger.state.touched)
                    ledger.commit()
            finally:
                ledger.close()
                self._member_ops.spares.close()

    def destroy(self, *, force: bool = False) -> list[str]:
        """Make all members and spares nobody's, and close the pool. Its volumes are gone.

        Raises Refused while there are volumes (yields to force). Returns what could not be erased, one line each.
        Durable: that.
        """
        with self._admin:
            if self._volumes and not force:
                raise Refused(
                    f"pool {self.name} has volumes: {', '.join(self._volumes)}", "delete them first, or use force"
                )
            for volume in self._volumes.values():
                volume.retire()
            trouble = self._member_ops.wipe()
            self._closed = True
            self._ledger.close()
            self._member_ops.spares.close()
            return trouble

    # Reporting

    def status(self) -> dict[str, Any]:
        """Return what there is to know, as plain data: sizes in bytes, counts, states."""
        with self._ledger.lock:
            return {
                **pool_report(self._ledger.state, self._groups, self._allocators, self._volumes.values()),
                "stopped": self.stopped,
                **self._member_ops.report(),
                "remarks": [*self.remarks, *self._member_ops.remarks],
                "repaired_chunks": self.repaired_chunks,
                "moves": self._mover.report(),
                "scrubs": self.scrub_status(),
            }

    def look_at_members(self, full: Callable[[], None]) -> Look:
        """Time the reads and writes of all members until the look is ended; see looks.py. full: enough was seen."""
        return Look(self._groups, self._ledger, full)

    def check(self) -> dict[str, Any]:
        """Count all areas anew: no leak, no double use, every reference valid. See check.check(); changes nothing."""
        with self._admin:
            return check(self._space)
