"""A pool: RAID groups, the volumes on them, and the operations an administrator has.

This is the face of raidlib. It joins the parts and holds no logic of its own that another file could:
create.py and assemble.py make and find members, ledger.py keeps the durable state, recovery.py repairs after a crash,
volume.py serves, allocator.py and intents.py keep areas and marks, rebuild.py restores redundancy.

Threads: requests on volumes run in parallel with each other and with everything here. Administrative calls are
serialised by one lock.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raidlib import create, readd, recovery, replacing
from raidlib.allocator import Allocator
from raidlib.assemble import assemble, known_paths
from raidlib.blockfile import BlockFile
from raidlib.create import DEFAULT_AREA_BYTES, GroupSpec, OpenFile
from raidlib.errors import AlreadyExists, BadInput, MediumError, NotFound, OutOfSpace, Refused
from raidlib.ledger import Ledger
from raidlib.memberops import MemberOps, resume
from raidlib.mirrored import MirroredGroup
from raidlib.nbdfile import open_exclusive
from raidlib.parity import Engine, choose
from raidlib.parityraid import ParityGroup
from raidlib.raidgroup import RaidGroup
from raidlib.recovery import Ranges
from raidlib.report import pool_report
from raidlib.rounds import Rounds
from raidlib.state import Kind, Record, VolumeInfo
from raidlib.striped import StripedGroup
from raidlib.volume import BLOCK_BYTES, Volume

_LEVELS: dict[int, type[RaidGroup]] = {
    0: StripedGroup,
    1: MirroredGroup,
    5: ParityGroup,
    6: ParityGroup,
    10: MirroredGroup,
}


class Pool:
    """An open pool. Made by Pool.open; sizes, offsets and lengths are bytes."""

    def __init__(
        self,
        ledger: Ledger,
        groups: list[RaidGroup],
        was_clean: bool,
        same_boot: bool,
        spare_files: dict[str, BlockFile] | None = None,
    ) -> None:
        self._ledger = ledger
        self._groups = groups
        self._admin = threading.RLock()
        self._touched = dict.fromkeys(ledger.state.touched, False)
        self._allocators = [
            Allocator(group, ledger, recovery.allocated_areas(ledger.state, group.index)) for group in groups
        ]
        self._volumes = {info.name: self._make_volume(info) for info in ledger.state.volumes.values()}
        self._member_ops = MemberOps(ledger, groups, self._allocators, self._drain, spare_files)
        self._syncs = Rounds(self._sync_round)
        self._closed = False
        self.stopped = "clean" if was_clean else "killed" if same_boot else "lost power"
        """How the pool ended before this open: clean, killed (nothing written is lost), or lost power."""
        self.remarks: list[str] = []
        """What open found that an operator should know, one line each."""
        self.repaired_chunks = 0
        """Chunks of parity or mirrors that open had to make good."""
        self._unclean: Ranges = {}

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
                layout, members = assembly.layouts[index], assembly.members[index]
                if not was_clean:
                    marks[index] = recovery.read_marks(info, layout, members)
                    recovery.distrust_free_areas(state, index, marks[index])
                groups.append(
                    _LEVELS[info.level](
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
            suspects = [recovery.suspect_areas(state, index, marks[index]) for index in range(len(groups))]
            for group in groups:
                recovery.check_write_hole(group, suspects[group.index], force)
            ledger.on_change = lambda index: groups[index].refresh()
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

    def close(self) -> None:
        """Wait for calls in flight, sync, and record that the pool is clean. Raises MediumError; the files are closed.

        Durable: everything.
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
                for group in self._groups:
                    with group.intents.lock:
                        group.intents.cool()
                    readd.note_missed(group, ledger, group.intents.marked())
                    group.intents.clear(group.intents.marked())
                with ledger.lock:
                    ledger.state.touched.clear()
                    ledger.state.clean = True
                    ledger.commit()
            finally:
                ledger.close()
                self._member_ops.spares.close()

    # Volumes

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._ledger.state.name

    @property
    def uuid(self) -> str:
        """The pool's identity, 32 hex digits."""
        return self._ledger.state.uuid

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

    def create_volume(
        self, name: str, size: int, raid_group: str | None = None, thin: bool = True, volume_uuid: str | None = None
    ) -> Volume:
        """Make a volume of zeroes. Without raid_group the one with most free areas is taken.

        Raises BadInput, AlreadyExists, NotFound, OutOfSpace; then nothing was changed. Durable: the volume.
        """
        create.check_name("volume", name)
        _check_size(name, size)
        with self._admin:
            if name in self._volumes:
                raise AlreadyExists(f"there is a volume {name} already", "take another name")
            group = self._pick_group(raid_group)
            volume_id = self._ledger.state.next_volume_id
            info = VolumeInfo(volume_id, name, volume_uuid or uuid.uuid4().hex, 0, group.index, thin)
            volume = self._make_volume(info)
            self._grow(volume, size)
            self._volumes[name] = volume
            return volume

    def delete_volume(self, name: str) -> None:
        """Delete a volume; requests on it fail from now on. Raises NotFound. Durable: that it is gone."""
        with self._admin:
            volume = self.volume(name)
            del self._volumes[name]
            volume.retire()
            with volume.group.intents.lock, self._ledger.lock:
                del self._ledger.state.volumes[volume.info.id]
                self._forget_touched(volume.info.id)
                areas = self._unmap(volume, list(volume.info.areas))
                self._ledger.commit()
            volume.punch_freed(areas)

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> None:
        """Grow or shrink a volume. New space reads as zeroes. Shrinking that cuts allocated data needs force.

        Raises BadInput, NotFound, OutOfSpace, Refused; then nothing was changed. Durable: the new size.
        """
        _check_size(name, size)
        with self._admin:
            volume = self.volume(name)
            info, area_bytes = volume.info, self._ledger.state.area_bytes
            if size > info.size:
                volume.zero_tail()
                self.sync()
                self._grow(volume, size)
            elif size < info.size:
                cut = sorted(index for index in info.areas if (index + 1) * area_bytes > size)
                if cut and not force:
                    raise Refused(
                        f"volume {name}: shrinking to {size} bytes would cut allocated data",
                        "trim the end of the volume first, or use force to lose it",
                    )
                volume.set_size(size)
                volume.gate.wait()
                with volume.group.intents.lock, self._ledger.lock:
                    info.size = size
                    areas = self._unmap(volume, [index for index in cut if index * area_bytes >= size])
                    self._ledger.commit()
                volume.punch_freed(areas)

    # Durability

    def sync(self, volume: Volume | None = None) -> None:
        """Sync every member. Calls that come together share one round.

        A member whose sync fails is failed and never synced again. Raises MediumError as soon as and as long as a group
        is lost; when a volume is given, only for the loss of its own group.
        Durable: everything written, zeroed or freed before the call, in every volume of a group that is not lost.
        """
        self._syncs.join()
        for group in self._groups if volume is None else [volume.group]:
            if group.lost:
                group.raise_lost()

    @property
    def unclean_ranges(self) -> Ranges:
        """Ranges (offset, length) by volume that the last unclean stop may have left different from another copy.

        The marks behind them stay on the members until clear_intents() is first called: call that only once the ranges
        have been taken over durably, and a second crash loses nothing.
        """
        return self._unclean

    def clear_intents(self, settle: Callable[[], None] | None = None) -> int:
        """Clear the marks of regions not written to since the call before; return how many. Syncs if there are any.

        settle: called before the marks go; whoever relies on `unclean_ranges` to know what changed makes its own notes
        of all writes before the call durable there. Meant to be called every few seconds. Raises MediumError and what
        settle raises (then no mark is cleared). Durable: everything written before, if it synced.
        """
        idle: list[list[int]] = []
        for group in self._groups:
            with group.intents.lock:
                idle.append(group.intents.cool())
                for volume in self._volumes_of(group):
                    volume.cool()
        with self._ledger.lock:
            idle_blocks = [block for block, hot in self._touched.items() if not hot]
            for block in self._touched:
                self._touched[block] = False
        if not any(idle) and not idle_blocks:
            return 0
        for volume in list(self._volumes.values()):
            volume.gate.wait()
        if settle is not None:
            settle()
        self.sync()
        cleared = 0
        for group, regions in zip(self._groups, idle, strict=True):
            readd.note_missed(group, self._ledger, regions)
            cleared += group.intents.clear(regions)
        with self._ledger.lock:
            gone = [block for block in idle_blocks if self._touched.get(block) is False]
            for block in gone:
                del self._touched[block]
            if gone:
                self._ledger.record([Record(Kind.UNTOUCH, 0, *block) for block in gone])
        return cleared

    # Members

    def replace_member(
        self, old: str, new_path: str, open_file: OpenFile = open_exclusive, *, force: bool = False
    ) -> None:
        """Put a new file or device in the place of a member (its path or uuid); rebuild_step() then fills it.

        A member that works stays, and is read and written, until the new one is complete (replacing.py).
        Raises NotFound, MemberInUse (yields to force), BadInput, Refused, MediumError; then nothing was changed.
        Durable: the exchange; of a member that works, that it is to be exchanged.
        """
        with self._admin:
            self._member_ops.replace(old, new_path, open_file, force)

    def rebuild_step(self) -> int:
        """Do a small step (one area) of the first rebuild or replacement there is; return the areas that remain in all.

        Call it in one thread, again and again, until it returns 0. Raises MediumError.
        """
        return self._member_ops.step()

    def fail_member(self, path: str) -> None:
        """Take a member (its path or uuid) out in good order; of a replacement under way, the new one.

        Raises NotFound, MediumError, Refused when its group needs it. Durable: that it is out.
        """
        with self._admin:
            self._member_ops.fail(path)

    def remove_member(self, path: str) -> None:
        """Let go for good of a spare, a replacement under way, or a member that failed, which then cannot be re-added.

        Raises NotFound, Refused for a member in use. Durable: that.
        """
        with self._admin:
            self._member_ops.forget(path)

    def readd_member(self, path: str, open_file: OpenFile = open_exclusive) -> int:
        """Take back a member that was away; rebuild_step() copies what was written meanwhile (readd.py).

        Returns about how many bytes that is. Raises NotFound, Refused with the reason, MediumError; then nothing was
        changed. Durable: that it takes part again.
        """
        with self._admin:
            return self._member_ops.readd(path, open_file)

    def add_spare(
        self, path: str, raid_group: str = "", open_file: OpenFile = open_exclusive, *, force: bool = False
    ) -> None:
        """Make a file or device a hot spare, of one RAID group or of all.

        Raises NotFound, MemberInUse (yields to force), BadInput, AlreadyExists, MediumError. Durable: the spare.
        """
        with self._admin:
            self._member_ops.add_spare(path, raid_group, open_file, force)

    def take_spare(self) -> tuple[str, str] | None:
        """Put the smallest spare that fits in the place of a failed member, if there are both; rebuild_step() fills it.

        Returns (failed, spare). Raises MediumError. Durable: the exchange.
        """
        with self._admin:
            return self._member_ops.take_spare()

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

    @property
    def wants_spare(self) -> bool:
        """Whether a member failed and there is a spare. Cheap."""
        return self._member_ops.wants_spare

    @property
    def rebuilds(self) -> list[dict[str, Any]]:
        """Rebuilds and replacements under way, as in status()."""
        with self._ledger.lock:
            rebuilds: list[dict[str, Any]] = self._member_ops.report()["rebuilds"]
            return rebuilds

    @property
    def rebuilt_bytes(self) -> int:
        """Bytes that the last rebuild or replacement that ended wrote, as far as this process did it."""
        return self._member_ops.rebuilt_bytes

    @property
    def member_remarks(self) -> list[str]:
        """What became of replacements that did not come off, one line each."""
        return list(self._member_ops.remarks)

    @property
    def requests(self) -> int:
        """A number that grows with every request on a volume that is there."""
        return sum(volume.gate.entered for volume in list(self._volumes.values()))

    @property
    def paths(self) -> list[str]:
        """Where its members, those that are to replace some, and its spares are."""
        with self._ledger.lock:
            return known_paths(self._ledger.state)

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
            }

    # Inside

    def _make_volume(self, info: VolumeInfo) -> Volume:
        return Volume(info, self._groups[info.group], self._allocators[info.group], self._ledger, self._touched)

    def _volumes_of(self, group: RaidGroup) -> list[Volume]:
        return [volume for volume in list(self._volumes.values()) if volume.group is group]

    def _pick_group(self, name: str | None) -> RaidGroup:
        if name is None:
            return max(self._groups, key=lambda group: (not group.lost, self._allocators[group.index].free_areas))
        for group in self._groups:
            if group.info.name == name:
                return group
        names = ", ".join(group.info.name for group in self._groups)
        raise NotFound(f"there is no RAID group {name} in pool {self.name}", f"its groups are: {names}")

    def _drain(self) -> None:
        """Return when every request on a volume that is in flight has ended."""
        for volume in list(self._volumes.values()):
            volume.gate.wait()

    def _grow(self, volume: Volume, size: int) -> None:
        """Make a new volume or a larger size durable, with all its areas if it is thick; then serve it."""
        info, ledger, allocator = volume.info, self._ledger, self._allocators[volume.info.group]
        while True:
            if not info.thin:
                allocator.prepare(-(-size // ledger.state.area_bytes) - len(info.areas))
            with ledger.lock:
                records = [] if info.thin else volume.allocate_all(size)
                if records is None:
                    continue  # somebody else took what was prepared
                state, old_size = ledger.state, info.size
                is_new = info.id not in state.volumes
                state.volumes[info.id] = info
                info.size = size
                for record in records:
                    state.apply(record)
                try:
                    ledger.check_room()
                except OutOfSpace:
                    info.size = old_size
                    for record in records:
                        del info.areas[record.place]
                        allocator.give_back(record.area)
                    if is_new:
                        del state.volumes[info.id]
                    raise
                state.next_volume_id = max(state.next_volume_id, info.id + 1)
                ledger.commit()
                break
        volume.set_size(size)

    def _unmap(self, volume: Volume, indexes: list[int]) -> list[int]:
        """Take logical areas out of the state; the caller commits and then punches what is returned."""
        areas = [volume.info.areas.pop(index) for index in indexes]
        volume.group.info.dirty.update(areas)
        self._allocators[volume.group.index].freed(areas)
        return areas

    def _forget_touched(self, volume_id: int) -> None:
        for block in [block for block in self._touched if block[0] == volume_id]:
            del self._touched[block]
            self._ledger.state.touched.discard(block)

    def _sync_round(self) -> None:
        with self._ledger.lock:
            ready = [allocator.unsettled() for allocator in self._allocators]
        try:
            self._ledger.sync_members()
        except MediumError:
            return  # sync() looks for itself whom this concerns; nothing is called clean
        for group in self._groups:
            if group.degraded:
                # What is durable now must be readable after a power cut, also when nobody writes any more.
                group.secure_degraded()
        with self._ledger.lock:
            for allocator, areas in zip(self._allocators, ready, strict=True):
                allocator.settle(areas)


def _check_size(name: str, size: int) -> None:
    if size <= 0 or size % BLOCK_BYTES:
        raise BadInput(
            f"volume {name}: size {size} is not a positive multiple of {BLOCK_BYTES}",
            f"the next size is {max(1, -(-size // BLOCK_BYTES)) * BLOCK_BYTES}",
        )
