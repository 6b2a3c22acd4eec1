"""A pool on a FakeDisk beside a model of what it must hold, through kills and power cuts.

The model is in poolmodel.py, what may happen to members in poolmembers.py. What the model demands after each crash and
open:

* a sector holds its last acknowledged value, or, in a write that was in flight, the old or the new one; after a power
  cut also any value it had since the last completed sync;
* where that is not the last acknowledged value, Pool.unclean_ranges covers it;
* volumes exist, and have the sizes, that completed calls say; a call in flight happened or did not;
* a group that grows has its old number of areas or its new one;
* snapshots of one call exist all or not at all, and hold exactly what was acknowledged when they were taken, for ever;
* Pool.check() finds every area accounted for once;
* a new volume reads as zeroes wherever it was not written;
* redundancy holds: with any members gone that the level can bear, the same bytes are read.

A violation raises Violation. Made for one thread.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Sequence

from raidlib import GroupSpec, Pool, Volume
from raidlib.errors import NotFound, OutOfSpace, RaidError, Refused
from raidlib.scrub import COUNTS
from tests.testing.fakedisk import SECTOR_BYTES, FakeDisk, PowerCut
from tests.testing.poolmembers import MemberWorld, member_bytes
from tests.testing.poolmodel import (
    TOLERATES,
    DoubleFault,
    InFlight,
    Violation,
    VolumeModel,
    sector_bytes,
    sector_set,
    tag_of,
)


class PoolWorld(MemberWorld):
    """One pool with its disk and its model. Operations mirror the pool's; each tells the model."""

    def __init__(
        self,
        rng: random.Random,
        level: int,
        members: int,
        *,
        areas: int = 12,
        chunk_bytes: int = 4096,
        area_bytes: int = 16384,
        second: tuple[int, int] | None = None,
        disk: FakeDisk | None = None,
        checksums: bool = False,
    ) -> None:
        """second: level and members of another group, h, for areas to move to."""
        self.rng = rng
        self.disk = disk or FakeDisk(rng)
        self.level = level
        self.paths = [f"m{i}" for i in range(members)]
        self.models: dict[str, VolumeModel] = {}
        self.area_bytes = area_bytes
        self.checksums = checksums
        self._tags = itertools.count(1)
        self._in_flight: InFlight | None = None
        self.member_bytes = member_bytes(level, members, areas, chunk_bytes, area_bytes) + 4096 * checksums
        for path in self.paths:
            self.disk.create(path, self.member_bytes)
        specs = [GroupSpec("g", level, list(self.paths), chunk_bytes, checksums)]
        if second is not None:
            others = [f"n{i}" for i in range(second[1])]
            for path in others:
                self.disk.create(path, member_bytes(*second, areas, chunk_bytes, area_bytes) + 4096 * checksums)
            specs.append(GroupSpec("h", second[0], others, chunk_bytes, checksums))
            self.paths += others
        self.pool = Pool.create("tank", specs, area_bytes, self._open)

    def fork(self, rng: random.Random, disk: FakeDisk | None = None) -> PoolWorld:
        """Return this world after the cut once more, to try another outcome; the pool object is dead in both.

        disk: what the outcome left; by default a copy of this world's.
        """
        other = copy.copy(self)
        other.rng = rng
        other.disk = self.disk.fork(rng) if disk is None else disk
        other.models = {name: model.copy() for name, model in self.models.items()}
        other.paths = list(self.paths)
        return other

    def expects_the_same(self, other: PoolWorld) -> bool:
        """Whether a crash may leave the same in both."""
        return (
            self._in_flight is other._in_flight
            and (self.losing, self.damaged) == (other.losing, other.damaged)
            and self.areas_of_g == other.areas_of_g
            and self.paths == other.paths
            and self.models == other.models
        )

    # Operations

    def create_volume(self, name: str, size: int, thin: bool = True) -> None:
        """Make a volume; out of space changes nothing."""
        self._begin(InFlight("create", name, size=size))
        try:
            self.pool.create_volume(name, size, thin=thin)
        except OutOfSpace:
            self._end()
            return
        self.models[name] = VolumeModel(size)
        self._end()

    def delete_volume(self, name: str) -> None:
        """Delete a volume."""
        self._begin(InFlight("delete", name))
        self.pool.delete_volume(name)
        del self.models[name]
        self._end()

    def resize_volume(self, name: str, size: int) -> None:
        """Grow or, with force, shrink."""
        self._begin(InFlight("resize", name, size=size))
        self.pool.resize_volume(name, size, force=True)
        self.models[name].resize(size)
        self._end()

    def write(self, name: str, first: int, count: int) -> None:
        """Write `count` sectors with a new tag; out of space may leave any part written."""
        tag = next(self._tags)
        sectors = range(first, first + count)
        self._begin(InFlight("write", name, sectors, tag))
        data = b"".join(sector_bytes(tag, sector) for sector in sectors)
        self._write(name, sectors, tag, lambda volume: volume.pwrite(data, first * SECTOR_BYTES))

    def zero(self, name: str, first: int, count: int, punch: bool = True) -> None:
        """Zero or trim `count` sectors."""
        sectors = range(first, first + count)
        self._begin(InFlight("zero", name, sectors, 0))
        self._write(name, sectors, 0, lambda volume: volume.zero(first * SECTOR_BYTES, count * SECTOR_BYTES, punch))

    def sync(self) -> None:
        """Sync; what was acknowledged before is then the only truth."""
        self.pool.sync()
        for model in self.models.values():
            model.since_sync.clear()

    def snapshot(self, names: dict[str, str], *, clone: bool = False) -> None:
        """Take snapshots {volume: snapshot} at one instant, or a clone; no room for their metadata changes nothing."""
        self._begin(InFlight("clone" if clone else "snapshot", "", images=names))
        try:
            if clone:
                [(source, name)] = names.items()
                self.pool.clone(source, name)
            else:
                self.pool.snapshot(names)
        except OutOfSpace:
            self._end()
            return
        self._add_images(names, frozen=not clone)
        self._end()

    def rollback(self, name: str, snapshot: str) -> None:
        """Take a volume back to its snapshot."""
        self._begin(InFlight("rollback", name, images={name: snapshot}))
        try:
            self.pool.rollback(name, snapshot)
        except OutOfSpace:
            self._end()
            return
        self.models[name] = self.models[snapshot].image(frozen=False)
        self._end()

    def _add_images(self, names: dict[str, str], *, frozen: bool) -> None:
        for source, name in names.items():
            self.models[name] = self.models[source].image(frozen=frozen)
            self.models[source].since_sync.clear()  # what an image holds is durable

    def move(self, name: str, first: int, areas: int, group: str) -> None:
        """Have areas of an image moved, unless some of them are moved already, or the group is not there."""
        size = self.models[name].size
        start = first * self.area_bytes
        if start < size:
            with contextlib.suppress(Refused, NotFound):  # the group may have left
                self.pool.move(name, start, min(areas * self.area_bytes, size - start), group)

    def add_group(self) -> None:
        """Let the pool grow by a RAID 1 group, unless it has three groups."""
        names = [group["name"] for group in self.pool.status()["groups"]]
        if len(names) < 3 and not self.losing:
            paths = [self._new_disk(), self._new_disk()]
            self.paths += paths
            spec = GroupSpec(f"with-{paths[0]}", 1, paths, 4096, self.checksums)
            self.pool.add_group(spec, self._open)

    def remove_group(self) -> None:
        """Have the last group emptied and dropped, if the others have room."""
        names = [group["name"] for group in self.pool.status()["groups"] if group["name"] != "g"]
        if names and not self.losing:
            with contextlib.suppress(Refused, OutOfSpace):
                self.pool.remove_group(names[-1])

    def move_steps(self, steps: int) -> None:
        """Move a little; a full target ends it."""
        try:
            for _ in range(steps):
                self.pool.move_step()
        except OutOfSpace:
            for volume in self.pool.volumes:
                self.pool.cancel_move(volume.name)

    def relocate(self, name: str, index: int) -> None:
        """Move one area of an image to the other group, as balancing does, if it has one and there is room."""
        others = {group["name"] for group in self.pool.status()["groups"]}
        for run in self.pool.volume_map(name):
            target = "h" if run["group"] == "g" else "g"
            if target in others and run["start"] <= index * self.area_bytes < run["start"] + run["length"]:
                with contextlib.suppress(OutOfSpace):
                    self.pool.relocate(name, index, run["group"], target)

    def clear_intents(self) -> None:
        """Let the pool clear idle marks."""
        self.pool.clear_intents()

    # Crashes

    def close_and_open(self) -> None:
        """A clean restart."""
        self.pool.close()
        for model in self.models.values():
            model.since_sync.clear()
        self.pool = Pool.open(self.paths, self._open, boot_id="a")
        if self.pool.stopped != "clean" or self.pool.unclean_ranges:
            raise Violation(f"a closed pool opened as {self.pool.stopped}")
        self.check_contents()

    def kill_and_open(self, *, cut_open_at: int | None = None) -> None:
        """The process dies; the page cache lives."""
        self.disk.kill()
        self._reopen(power=False, cut_open_at=cut_open_at)

    def power_cut_and_open(
        self, fate: Callable[[int, object], str] | None = None, *, cut_open_at: int | None = None
    ) -> None:
        """The power goes: unsynced writes are lost, torn or kept. cut_open_at: cut again so many operations later."""
        self.disk.crash(fate)  # type: ignore[arg-type]
        self._reopen(power=True, cut_open_at=cut_open_at)

    def reopen(self, *, power: bool, boot_id: str) -> None:
        """Open what a crash left on the disk, and check it. Raises DoubleFault, Violation, RaidError."""
        self._open_pool(boot_id)
        self.check_reopened(power=power)

    def _reopen(self, *, power: bool, cut_open_at: int | None) -> None:
        boot_id = "b" if power else "a"
        if cut_open_at is not None:
            self.disk.cut_at(self.disk.operations + cut_open_at)
        try:
            self._open_pool(boot_id)
        except PowerCut:
            if power:
                self.disk.crash()
            else:
                self.disk.kill()
            self._open_pool(boot_id)
        self.disk.cut_at(None)
        self.check_reopened(power=power)

    def _open_pool(self, boot_id: str) -> None:
        try:
            self.pool = Pool.open(self.paths, self._open, boot_id=boot_id)
        except Refused as exc:
            if self.losing:
                raise DoubleFault(str(exc)) from exc
            raise

    def check_reopened(self, *, power: bool) -> None:
        """The pool that was just opened after a crash holds what it must; the model follows where it has a choice."""
        self._settle_lifecycle()
        self._check_members()
        self._check_size()
        unclean = {name: sector_set(ranges) for name, ranges in self.pool.unclean_ranges.items()}
        flight = self._in_flight
        for name, model in self.models.items():
            in_flight = flight if flight is not None and flight.volume == name else None
            found = self._read_tags(name)
            if found is model.current:
                model.since_sync.clear()
                continue
            covered = unclean.get(name, set())
            for sector, (value, acknowledged) in enumerate(zip(found, model.current, strict=True)):
                if value == acknowledged:
                    continue
                allowed = {acknowledged}
                if in_flight is not None and in_flight.kind == "rollback":
                    continue
                if power or self.losing:
                    # A sync that failed dropped writes, and nobody lived to record it: as after a power cut.
                    allowed |= model.since_sync.get(sector, frozenset())
                if in_flight is not None and sector in in_flight.sectors:
                    allowed.add(in_flight.tag)
                if value not in allowed:
                    raise Violation(f"{name} sector {sector} holds {value}, may hold {sorted(allowed)}")
                if sector not in covered:
                    raise Violation(f"{name} sector {sector} holds {value}, not {acknowledged}, and is not unclean")
            model.current = found
            model.since_sync.clear()
        self._in_flight = None
        self.check_books()

    def _settle_lifecycle(self) -> None:
        """A create, delete or resize that was in flight happened or did not: let the model follow."""
        flight = self._in_flight
        there = {volume.name: volume.size for volume in self.pool.volumes}
        if flight is not None:
            if flight.kind in ("snapshot", "clone") and set(flight.images.values()) <= there.keys():
                self._add_images(flight.images, frozen=flight.kind == "snapshot")
            elif flight.kind == "rollback":
                self._settle_rollback(flight)
            if flight.kind == "create" and flight.volume in there:
                self.models[flight.volume] = VolumeModel(flight.size)
            elif flight.kind == "delete" and flight.volume not in there:
                self.models.pop(flight.volume, None)
            elif flight.kind == "resize" and there.get(flight.volume) == flight.size:
                self.models[flight.volume].resize(flight.size)
        expected = {name: model.size for name, model in self.models.items()}
        if there != expected:
            raise Violation(f"volumes are {there}, should be {expected}")

    def _settle_rollback(self, flight: InFlight) -> None:
        """A rollback in flight happened wholly or not at all."""
        [(name, snapshot)] = flight.images.items()
        model = self.models[name]
        after = self.models[snapshot].image(frozen=False)
        found = self._read_tags(name)
        if found == after.current:
            self.models[name] = after
            return
        for sector, value in enumerate(found):
            if value not in {model.current[sector], *model.since_sync.get(sector, ())}:
                raise Violation(f"{name} sector {sector} holds {value} after a rollback that did not happen")

    # Checks

    def check_books(self) -> None:
        """Every area is accounted for once."""
        unread = "its metadata cannot be read"  # an error of the medium, which says nothing of the books
        if problems := [one for one in self.pool.check()["problems"] if unread not in one]:
            raise Violation("; ".join(problems))

    def _check_members(self) -> None:
        """Whatever the state names as a member or a spare must be found, but what vanished."""
        for member in self._members():
            if member["state"] == "failed" and member["reason"] == "missing" and not member["away"]:
                raise Violation(f"member {member['path']} is not to be found")
        for remark in self.pool.remarks:
            if remark.endswith("missing; replace it again"):
                raise Violation(remark)
        for spare in self.pool.status()["spares"]:
            if not spare["there"]:
                raise Violation(f"spare {spare['path']} is not to be found")

    def check_contents(self) -> None:
        """Every volume holds exactly what was acknowledged."""
        for name, model in self.models.items():
            found = self._read_tags(name)
            if found != model.current:
                wrong = [i for i, (a, b) in enumerate(zip(found, model.current, strict=True)) if a != b]
                raise Violation(f"{name} sector {wrong[0]} holds {found[wrong[0]]}, not {model.current[wrong[0]]}")

    def check_new_volume_is_zero(self) -> None:
        """Every free area reads as zeroes, once allocated, but for the one sector written."""
        free = sum(group["free_areas"] for group in self.pool.status()["groups"] if not group["draining"])
        if not free:
            return
        volume = self.pool.create_volume("probe", free * self.area_bytes)
        for area in range(free):
            volume.pwrite(sector_bytes(7, 7), area * self.area_bytes + SECTOR_BYTES)
            data = volume.pread(self.area_bytes, area * self.area_bytes)
            if data[:SECTOR_BYTES].strip(b"\0") or data[2 * SECTOR_BYTES :].strip(b"\0"):
                raise Violation(f"new area {area} shows old data")
        self.pool.delete_volume("probe")

    def check_no_checksum_error(self) -> None:
        """Nothing damaged a block, so none was found damaged; and none of what volumes hold is, on any member."""
        for member in self.pool.status()["groups"][0]["members"]:
            if member["checksum_errors"]:
                raise Violation(f"{member['path']}: {member['checksum_errors']} blocks do not fit their checksums")
        group = self.pool._groups[0]
        if not self.checksums:
            return
        length = group.geometry.area_member_bytes
        for area in sorted(self.pool._allocators[0].allocated):
            for member in group.members:
                if member.has_row(area * group.geometry.rows_per_area):
                    try:
                        member.live_file().pread(length, group.member_offset(area))
                    except OSError as exc:
                        raise Violation(f"{member.path}, area {area}: {exc.strerror}") from exc

    def scrub(self, steps: int) -> None:
        """Scrub a little, with leave to repair; whatever is found is a violation, unless something was damaged."""
        if self.damaged:
            self.repair_damage()
            return
        if self.losing or self.pool.status()["groups"][0]["state"] == "lost":
            return
        self.pool.scrub_start("g", repair=True)
        for _ in range(steps):
            self.pool.scrub_step()
        found = {key: count for key, count in self.pool.scrub_status()["g"].items() if key in COUNTS and count}
        if found:
            raise Violation(f"a scrub found {found}")

    def check_redundancy(self, lost: Sequence[int] | None = None) -> None:
        """With members gone (by default as many as the level bears, at random) the same bytes are read.

        Ends this world: the pool is closed, and the disk is put back as it was.
        """
        self.check_contents()
        states = self.pool.status()["groups"][0]["members"]
        away = sum(member["state"] != "in_sync" for member in states)
        spare = TOLERATES[self.level] - away
        healthy = [i for i, member in enumerate(states) if member["state"] == "in_sync"]
        if lost is None:
            lost = self.rng.sample(healthy, max(0, spare))
        self.pool.close()
        saved = self.disk.snapshot()
        for index in lost:
            self.disk.remove(states[index]["path"])
        self.pool = Pool.open(self.disk.names(), self._open, force=True, boot_id="a")
        try:
            self.check_contents()
        finally:
            self.pool.close()
            self.disk.restore(saved)

    # Inside

    def _begin(self, flight: InFlight) -> None:
        self._in_flight = flight

    def _end(self) -> None:
        self._in_flight = None

    def _write(self, name: str, sectors: range, tag: int, call: Callable[[Volume], None]) -> None:
        model = self.models[name]
        try:
            call(self.pool.volume(name))
        except OutOfSpace:
            found = self._read_tags(name)
            for sector in sectors:
                if found[sector] not in (tag, model.current[sector]):
                    raise Violation(f"{name} sector {sector} holds {found[sector]} after a failed write") from None
                if found[sector] == tag:
                    model.put(range(sector, sector + 1), tag)
        else:
            model.put(sectors, tag)
        self._end()

    def _read_tags(self, name: str) -> list[int]:
        try:
            volume = self.pool.volume(name)
            data = volume.pread(volume.size, 0)
        except (NotFound, RaidError) as exc:
            raise Violation(f"{name} cannot be read: {exc}") from exc
        model = self.models.get(name)
        if model is not None and data == model.bytes():
            return model.current
        return [tag_of(data[at : at + SECTOR_BYTES], at // SECTOR_BYTES) for at in range(0, len(data), SECTOR_BYTES)]
