"""A pool: RAID groups, the volumes on them, and the operations an administrator has.

This is the face of raidlib. It joins the parts and holds no logic of its own that another file could:
create.py and assemble.py make and find members, ledger.py keeps the durable state, recovery.py repairs after a crash,
volume.py serves, allocator.py and intents.py keep areas and marks, rebuild.py restores redundancy.

Threads: requests on volumes run in parallel with each other and with everything here. Administrative calls are
serialised by one lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raidlib import create, growing, images, placing, readd, recovery, replacing
from raidlib.allocator import Allocator
from raidlib.assemble import assemble, known_paths
from raidlib.blockfile import BlockFile
from raidlib.check import check
from raidlib.create import DEFAULT_AREA_BYTES, GroupSpec, OpenFile
from raidlib.errors import AlreadyExists, BadInput, NotFound, OutOfSpace, Refused
from raidlib.ledger import Ledger
from raidlib.memberops import MemberOps, resume
from raidlib.mirrored import MirroredGroup
from raidlib.move import Mover
from raidlib.nbdfile import open_exclusive
from raidlib.parity import Engine, choose
from raidlib.parityraid import ParityGroup
from raidlib.raidgroup import RaidGroup
from raidlib.recovery import Ranges
from raidlib.report import pool_report
from raidlib.scrubs import Scrubs
from raidlib.space import Space
from raidlib.state import ImageKind, Kind, Record, VolumeInfo
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
                self._scrubs.close()
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
        self,
        name: str,
        size: int,
        raid_group: str | None = None,
        thin: bool = True,
        volume_uuid: str | None = None,
        placement: Sequence[placing.PlacedRange] = (),
    ) -> Volume:
        """Make a volume of zeroes.

        raid_group: all its areas come from that group; without it from the one with most room, then from others.
        placement: (first byte, length, group) for ranges that come from a group of their own; info.placement says which
        areas those are.
        Raises BadInput, AlreadyExists, NotFound, Refused, OutOfSpace; then nothing was changed. Durable: the volume.
        """
        create.check_name("volume", name)
        _check_size(name, size)
        with self._admin:
            self._check_unused(name)
            placed = placing.plan(self._space, placement, size)
            home = self._pick_home() if raid_group is None else placing.group_named(self._space, raid_group)
            volume_id = self._ledger.state.next_volume_id
            info = VolumeInfo(
                volume_id,
                name,
                volume_uuid or uuid.uuid4().hex,
                0,
                home,
                thin,
                pinned=raid_group is not None,
                placement=placed,
                created=int(time.time()),
            )
            volume = self._make_volume(info)
            self._grow(volume, size)
            self._volumes[name] = volume
            return volume

    def extend_volume(self, name: str, start: int, length: int, raid_group: str) -> tuple[int, int]:
        """Grow a volume by a range on a chosen group; return the range [first byte, end) that is mapped now.

        The range may begin where the volume's last area ends, or later. Raises BadInput, NotFound, Refused, OutOfSpace;
        then nothing was changed. Durable: the new size and, for a thick volume, the areas.
        """
        with self._admin:
            volume = self.volume(name)
            self._check_writable(volume)
            info, area_bytes = volume.info, self._ledger.state.area_bytes
            end = -(-info.size // area_bytes) * area_bytes
            if start < end:
                raise BadInput(
                    f"volume {name}: the range {start}+{length} overlaps [0, {end}), which is mapped already",
                    f"the next range can begin at {end}",
                )
            _check_size(name, start + length)
            (placed,) = placing.plan(self._space, [(start, length, raid_group)], start + length)
            volume.zero_tail()
            self.sync()
            before = info.placement
            info.placement = placing.replaced(before, *placed)
            try:
                self._grow(volume, start + length)
            except BaseException:
                info.placement = before
                raise
            return placed[0] * area_bytes, placed[1] * area_bytes

    def delete_volume(self, name: str) -> None:
        """Delete a volume, snapshot or clone; requests on it fail from now on. Areas that others share stay.

        Raises NotFound; OutOfSpace when others are stored as difference to it and could not be without it.
        Durable: that it is gone.
        """
        with self._admin:
            volume = self.volume(name)
            with self._ledger.lock:
                images.check_removable(self._space, volume.info)
            del self._volumes[name]
            volume.retire()
            with self._ledger.map_lock, self._ledger.lock:
                self._forget_touched(volume.info.id)
                gone = images.remove(self._space, volume.info)
                self._ledger.commit()
            volume.punch_freed(gone)

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> None:
        """Grow or shrink a volume. New space reads as zeroes. Shrinking that cuts allocated data needs force.

        Raises BadInput, NotFound, OutOfSpace, Refused; then nothing was changed. Durable: the new size.
        """
        _check_size(name, size)
        with self._admin:
            volume = self.volume(name)
            self._check_writable(volume)
            info, area_bytes = volume.info, self._ledger.state.area_bytes
            if size > info.size:
                volume.zero_tail()
                self.sync()
                self._grow(volume, size)
            elif size < info.size:
                if any(move.volume == info.id for move in self._ledger.state.moves):
                    raise Refused(f"volume {name} is being moved", "wait for the move, or cancel it")
                self._check_cut(info, size, force)
                volume.set_size(size)
                try:
                    volume.gate.wait()
                    self._check_cut(info, size, force)  # again: writes that came before the new size have ended
                except Refused:
                    volume.set_size(info.size)
                    raise
                with self._ledger.map_lock, self._ledger.lock:
                    info.size = size
                    indexes = [index for index in info.areas if index * area_bytes >= size]
                    places = [info.areas[index] for index in indexes]
                    for index in indexes:
                        del info.areas[index]
                    volume.forget(indexes)
                    gone = self._space.release(places)
                    self._ledger.commit()
                volume.punch_freed(gone)

    # Snapshots and clones

    def snapshot(self, names: Mapping[str, str]) -> list[Volume]:
        """Take snapshots of volumes {volume: name of its snapshot}, all at one instant.

        A snapshot never changes, shares areas with its volume, and is a volume of the pool by its own name. Requests
        that are not answered may or may not be in it. Raises BadInput, NotFound, AlreadyExists, OutOfSpace (no room for
        its metadata), MediumError; then nothing was changed. Durable: the snapshots and what they hold.
        """
        return self._take_images(names, ImageKind.SNAPSHOT)

    def clone(self, source: str, name: str) -> Volume:
        """Make a volume that begins as a copy of a snapshot or volume and shares its areas. Otherwise as snapshot()."""
        return self._take_images({source: name}, ImageKind.CLONE)[0]

    def _take_images(self, names: Mapping[str, str], kind: ImageKind) -> list[Volume]:
        with self._admin, contextlib.ExitStack() as bars:
            sources = [(self.volume(source), name) for source, name in names.items()]
            for _, name in sources:
                create.check_name(kind.value, name)
                self._check_unused(name)
            if not sources or len(set(names.values())) < len(sources):
                raise BadInput("every image needs a name of its own", "give each its own name")
            live = [source for source, _ in sources if source.info.writable]
            for source, _ in sources:
                if kind is ImageKind.SNAPSHOT and not source.info.writable:
                    raise BadInput(f"{source.name} is a snapshot itself", "make a clone of it, or use it as it is")
            if live:
                self._space.sync()  # most of the work, while writers go on
            for source in live:
                bars.enter_context(source.barred())
            for gate in {source.gate for source in live}:
                gate.wait()
            if live:
                self._space.sync()
            for source, _ in sources:
                source.raise_if_lost()
            with self._ledger.map_lock, self._ledger.lock:
                added = images.add(self._space, [(source.info, name) for source, name in sources], kind)
                self._ledger.commit()
            made = [self._make_volume(info) for info in added]
            self._volumes.update({volume.name: volume for volume in made})
            return made

    def rollback(self, name: str, snapshot: str) -> None:
        """Give a volume the contents and the size of a snapshot of its family. What it held since then is lost.

        The caller sees to it that nobody uses the volume meanwhile. Raises NotFound, BadInput, OutOfSpace, MediumError;
        then nothing was changed. Durable: that.
        """
        with self._admin:
            volume, source = self.volume(name), self.volume(snapshot)
            self._check_writable(volume)
            if source.info.writable or source.info.family != volume.info.family:
                raise BadInput(f"{snapshot} is not a snapshot of volume {name}", "the list of volumes shows them")
            source.raise_if_lost()
            with volume.barred():
                volume.gate.wait()
                with self._ledger.map_lock, self._ledger.lock:
                    info, before = volume.info, (volume.info.areas, volume.info.size)
                    info.areas, info.size = source.info.areas.copy(), source.info.size
                    try:
                        self._ledger.check_room()
                    except OutOfSpace:
                        info.areas, info.size = before
                        raise
                    images.refer(self._space, info.areas)
                    gone = images.unrefer(self._space, before[0])
                    volume.forget_all()
                    self._ledger.commit()
                volume.set_size(info.size)
                volume.gate.wait()
            volume.punch_freed(gone)

    def snapshot_diff(self, a: str, b: str) -> list[tuple[int, int]]:
        """Return the ranges (offset, length) in which two images of a family may differ. Raises NotFound, BadInput."""
        with self._admin, self._ledger.lock:
            one, other = self.volume(a).info, self.volume(b).info
            if one.family != other.family:
                raise BadInput(f"{a} and {b} have nothing in common", "name snapshots of one volume, or the volume")
            return images.changed_ranges(one, other, self._ledger.state.area_bytes)

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
            group = _LEVELS[spec.level](index, info, geometry, layout, members, self._ledger, engine)
            allocator = Allocator(group, self._ledger, recovery.allocated_areas(self._ledger.state, index))
            with self._ledger.lock:
                self._space.allocators = {**self._space.allocators, index: allocator}
                self._space.groups = {**self._space.groups, index: group}

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
        have been taken over durably, and a second crash loses nothing.
        """
        return self._unclean

    def clear_intents(self, settle: Callable[[], None] | None = None) -> int:
        """Clear the marks of regions not written to since the call before; return how many. Syncs if there are any.

        settle: called before the marks go; whoever relies on `unclean_ranges` to know what changed makes its own notes
        of all writes before the call durable there. Meant to be called every few seconds. Raises MediumError and what
        settle raises (then no mark is cleared). Durable: everything written before, if it synced.
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
        if settle is not None:
            settle()
        self.sync()
        cleared = 0
        for group, regions in zip(groups, idle, strict=True):
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

    def check(self) -> dict[str, Any]:
        """Count all areas anew: no leak, no double use, every reference valid. See check.check(); changes nothing."""
        with self._admin:
            return check(self._space)

    # Inside

    @property
    def _groups(self) -> list[RaidGroup]:
        return list(self._space.groups.values())

    @property
    def _allocators(self) -> dict[int, Allocator]:
        return self._space.allocators

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

    def _check_unused(self, name: str) -> None:
        if name in self._volumes:
            raise AlreadyExists(f"there is a {self._volumes[name].info.kind} {name} already", "take another name")

    def _check_writable(self, volume: Volume) -> None:
        if not volume.info.writable:
            raise Refused(f"{volume.name} is a snapshot and never changes", "make a clone of it")

    def _check_cut(self, info: VolumeInfo, size: int, force: bool) -> None:
        area_bytes = self._ledger.state.area_bytes
        with self._ledger.lock:
            cut = any((index + 1) * area_bytes > size for index in info.areas)
        if cut and not force:
            raise Refused(
                f"volume {info.name}: shrinking to {size} bytes would cut allocated data",
                "trim the end of the volume first, or use force to lose it",
            )

    def _pick_home(self) -> int:
        """The group with most room."""
        groups = [group for group in self._groups if not group.info.draining]
        best = max(groups, key=lambda group: (not group.lost, self._allocators[group.index].free_areas))
        return best.index

    def _drain(self) -> None:
        """Return when every request on a volume that is in flight has ended."""
        for volume in list(self._volumes.values()):
            volume.gate.wait()

    def _grow(self, volume: Volume, size: int) -> None:
        """Make a new volume or a larger size durable, with all its areas if it is thick; then serve it."""
        info, ledger, space = volume.info, self._ledger, self._space
        state = ledger.state
        records = [] if info.thin else placing.allocate(space, info, -(-size // state.area_bytes))
        with ledger.lock:
            old_size, is_new = info.size, info.id not in state.volumes
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
                placing.give_back(space, records)
                if is_new:
                    del state.volumes[info.id]
                raise
            state.next_volume_id = max(state.next_volume_id, info.id + 1)
            ledger.commit()
        volume.set_size(size)

    def _forget_touched(self, volume_id: int) -> None:
        for block in [block for block in self._touched if block[0] == volume_id]:
            del self._touched[block]
            self._ledger.state.touched.discard(block)


def _check_size(name: str, size: int) -> None:
    if size <= 0 or size % BLOCK_BYTES:
        raise BadInput(
            f"volume {name}: size {size} is not a positive multiple of {BLOCK_BYTES}",
            f"the next size is {max(1, -(-size // BLOCK_BYTES)) * BLOCK_BYTES}",
        )
