"""Volumes, snapshots and clones of an open pool: making, growing, deleting, rolling back."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from raidlib import create, images, placing
from raidlib.errors import AlreadyExists, BadInput, OutOfSpace, Refused
from raidlib.openpool import OpenPool
from raidlib.state import ImageKind, VolumeInfo
from raidlib.volume import BLOCK_BYTES, Volume


class PoolImages(OpenPool):
    """What is done with images."""

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

    def snapshot(self, names: Mapping[str, str], attributes: Mapping[str, Any] | None = None) -> list[Volume]:
        """Take snapshots of volumes {volume: name of its snapshot}, all at one instant.

        attributes: a small map that each of them carries; the pool makes nothing of it.

        A snapshot never changes, shares areas with its volume, and is a volume of the pool by its own name. Requests
        that are not answered may or may not be in it. Raises BadInput, NotFound, AlreadyExists, OutOfSpace (no room for
        its metadata), MediumError; then nothing was changed. Durable: the snapshots and what they hold.
        """
        return self._take_images(names, ImageKind.SNAPSHOT, attributes or {})

    def clone(self, source: str, name: str) -> Volume:
        """Make a volume that begins as a copy of a snapshot or volume and shares its areas. Otherwise as snapshot()."""
        return self.clone_all({source: name})[0]

    def clone_all(self, names: Mapping[str, str], attributes: Mapping[str, Any] | None = None) -> list[Volume]:
        """Make clones {source: name of its clone}, all at one instant. Otherwise as clone() and snapshot()."""
        return self._take_images(names, ImageKind.CLONE, attributes or {})

    def finish_clones(
        self, names: Sequence[str], attributes: Mapping[str, Any], *, freeze: bool = False
    ) -> list[Volume]:
        """Give clones these attributes and, with `freeze`, let them be snapshots, which never change, from now on.

        Nobody may be using them meanwhile. Raises NotFound, BadInput, OutOfSpace (no room for the metadata),
        MediumError; then nothing was changed. Durable: that, and what they hold.
        """
        with self._admin:
            volumes = [self.volume(name) for name in names]
            for volume in volumes:
                if volume.info.kind is not ImageKind.CLONE:
                    raise BadInput(f"{volume.name} is no clone", "the list of volumes shows which are")
            self._space.sync()
            for volume in volumes:
                volume.raise_if_lost()
            with self._ledger.map_lock, self._ledger.lock:
                before = [(volume.info, volume.info.kind, volume.info.attributes) for volume in volumes]
                for info, kind, _ in before:
                    info.attributes, info.kind = dict(attributes), ImageKind.SNAPSHOT if freeze else kind
                try:
                    self._ledger.check_room()
                except OutOfSpace:
                    for info, kind, old in before:
                        info.kind, info.attributes = kind, old
                    raise
                self._ledger.commit()
            made = [self._make_volume(volume.info) for volume in volumes]
            self._volumes.update({volume.name: volume for volume in made})
            return made

    def _take_images(self, names: Mapping[str, str], kind: ImageKind, attributes: Mapping[str, Any]) -> list[Volume]:
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
                sources_info = [(source.info, name) for source, name in sources]
                added = images.add(self._space, sources_info, kind, attributes)
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

    # Inside

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
