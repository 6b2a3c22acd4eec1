"""A volume: a map from its logical areas to areas of RAID groups. Snapshots and clones are volumes too (images).

Hot path. pwrite and pread_into are closures, made once per volume, so that a 4 KiB request inside one chunk costs two
list look-ups, a little arithmetic and one system call. They look only into the hot maps:
* read map: for each logical area the group's table and place, None when the slow path must look (not allocated, not
  read yet, or on another group than the volume's home);
* write map: filled only while the area's region is marked hot in the intent map (intents.py) and no other image
  shares the area; on a RAID 0 home only for areas of that group. Its entries are plain integers: it is emptied while
  writers wait, and that takes a fraction of what other objects would take.
Everything else (allocation, copies of shared areas, marking, several chunks, errors, lost members) is the slow path
below.

Who changes the hot maps holds the ledger's map_lock. Who takes an entry away and then relies on nobody using it
(freeing, moving, clearing marks) calls gate.wait() in between; every request is between enter and leave. All images of
a family share one gate, for they share areas.

A bar on a range of logical areas keeps writers out while its places change or an image of it is taken: set the bar,
empty the write map, wait at the gate; then no writer is inside and none comes until the bar is lifted. A writer that
meets a bar waits outside the gate, before it has written anything.

Calls may run in parallel on any number of threads. Overlapping writes are the caller's to order; unordered, the result
is one or the other per block, never a damaged stripe.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from raidlib import cow
from raidlib.areamap import area_of, group_of
from raidlib.blockfile import Buffer
from raidlib.errors import BadInput, NotFound, OutOfSpace, Refused
from raidlib.raidgroup import ZEROES, RaidGroup
from raidlib.space import Space
from raidlib.state import TOUCH_AREAS, Kind, Record, VolumeInfo
from raidlib.striped import StripedGroup

BLOCK_BYTES = 4096


class Volume:
    """One open volume. Made by the pool. Offsets and lengths are bytes."""

    pwrite: Callable[[Buffer, int], None]
    """pwrite(buf, off): write all of buf. Raises OSError, MediumError, OutOfSpace, BadInput; Refused for a snapshot.

    Durable: nothing until Pool.sync(); it survives the death of the process."""

    pread_into: Callable[[bytearray | memoryview, int], None]
    """pread_into(buf, off): fill buf. Unallocated parts read as zeroes. Raises MediumError, BadInput."""

    writer: Callable[[Buffer, int], None]
    """pwrite as it is, whatever watches it: for who keeps the function."""

    def __init__(self, info: VolumeInfo, space: Space) -> None:
        self.info = info
        self.space = space
        self.gate = space.gate(info.family)
        self._ledger = space.ledger
        self._area_bytes = self._ledger.state.area_bytes
        self._shift = self._area_bytes.bit_length() - 1
        self._size = [info.size]
        self._readable: list[Any] = []
        self._writable: list[int | None] = []
        """Home on RAID 0: where the area is on every member. Else its area of home, or minus its place elsewhere."""
        self._bars: tuple[tuple[int, int], ...] = ()
        self.turn = threading.Condition()
        """Guards bars and `copying`."""
        self.copying: set[int] = set()
        """Logical areas of which a copy is being made."""
        self._home = self.group
        """The group that the hot maps and closures are made for."""
        self._bind()
        if info.writable:
            self._fit_maps(info.size)

    @property
    def name(self) -> str:
        """Its name, unique in the pool."""
        return self.info.name

    @property
    def uuid(self) -> str:
        """Its identity, 32 hex digits."""
        return self.info.uuid

    @property
    def size(self) -> int:
        """Size in bytes, a multiple of 4096."""
        return self._size[0]

    @property
    def readonly(self) -> bool:
        """Whether it is a snapshot, which never changes."""
        return not self.info.writable

    @property
    def group(self) -> RaidGroup:
        """Its home group; areas may lie on others too."""
        return self.space.groups[self.info.group]

    def raise_if_lost(self) -> None:
        """Raise MediumError when a group that it has areas on, or its home, has lost too many members."""
        for index, group in self.space.groups.items():
            if group.lost and (index == self.info.group or self.uses(index)):
                group.raise_lost()

    def uses(self, group: int) -> bool:
        """Whether it has areas on a group."""
        with self._ledger.lock:
            return bool(((self.info.areas.owned() >> 32) == group + 1).any())

    # Requests

    def pread(self, n: int, off: int) -> bytes:
        """Return n bytes at off. Errors as pread_into."""
        buf = bytearray(n)
        self.pread_into(buf, off)
        return bytes(buf)

    def zero(self, off: int, length: int, punch: bool = True) -> None:
        """Make a range read as zeroes.

        With punch, whole areas of a thin volume are freed; without, everything in the range ends up allocated.
        Errors as pwrite. Durable: nothing until Pool.sync().
        """
        if not self.info.writable:
            self._refuse()
        self._check(off, length)
        freeable: list[int] = []
        end, area_bytes = off + length, self._area_bytes
        while off < end:
            index, start = divmod(off, area_bytes)
            n = min(area_bytes - start, end - off)
            whole = start == 0 and (n == area_bytes or off + n == self._size[0])
            if whole and punch and self.info.thin:
                freeable.append(index)
            else:
                self._zero_part(index, start, n, punch)
            off += n
        if freeable:
            self._free(freeable)

    def extents(self, off: int, length: int) -> list[tuple[int, bool]]:
        """Return the range as runs (length, allocated). Unallocated runs read as zeroes. Raises BadInput."""
        self._check(off, length)
        runs: list[tuple[int, bool]] = []
        end, areas = off + length, self.info.areas
        while off < end:
            index = off >> self._shift
            n = min((index + 1 << self._shift) - off, end - off)
            allocated = index in areas
            if runs and runs[-1][1] == allocated:
                runs[-1] = (runs[-1][0] + n, allocated)
            else:
                runs.append((n, allocated))
            off += n
        return runs

    def pread_once(self, buf: bytearray | memoryview, off: int) -> None:
        """Fill buf with what nobody will want again soon: where the system can, the page cache stays as it was.

        Otherwise as pread_into.
        """
        enter, leave = self.gate.pair
        enter()
        try:
            self._read_slow(buf, off, once=True)
        finally:
            leave()

    # Used by the pool

    def cool(self) -> None:
        """Empty the write map: every writer asks the intent map again. Call under the ledger's map_lock."""
        self._writable[:] = [None] * len(self._writable)

    @contextlib.contextmanager
    def barred(self, first: int = 0, end: int = 1 << 32) -> Iterator[None]:
        """Keep writers out of a range of logical areas. They are out once gate.wait() has returned."""
        bar = (first, end)
        with self.turn:
            self._bars = (*self._bars, bar)
        try:
            with self._ledger.map_lock:
                n = max(min(end, len(self._writable)) - first, 0)
                self._writable[first : first + n] = [None] * n
            yield
        finally:
            with self.turn:
                bars = list(self._bars)
                bars.remove(bar)
                self._bars = tuple(bars)
                self.turn.notify_all()

    def forget(self, indexes: Sequence[int]) -> None:
        """The places of these logical areas change: look them up again. Call under the ledger's map_lock."""
        for hot in (self._readable, self._writable):
            for index in indexes:
                if index < len(hot):
                    hot[index] = None

    def forget_all(self) -> None:
        """All places may have changed. Call under the ledger's map_lock."""
        self._readable[:] = [None] * len(self._readable)
        self.cool()

    def rehome(self, group: int) -> None:
        """Another group is home now, durably: requests on its areas are the fast ones from here on.

        Makes pwrite and pread_into anew. Who holds the old ones can go on with them, at the speed of the slow path.
        """
        with self._ledger.map_lock:
            self.info.group = group
            self._home = self.group
            self.forget_all()
            self._readable, self._writable = self._readable.copy(), self._writable.copy()
            self._bind()

    def watch_writes(self, around: Callable[[Callable[[Buffer, int], None]], Callable[[Buffer, int], None]]) -> None:
        """Let pwrite be `around(writer)` until unwatch_writes(), or until the volume gets another home."""
        with self._ledger.map_lock:
            self.pwrite = around(self.writer)

    def unwatch_writes(self) -> None:
        """End that. Calls that began before may still be in the function."""
        with self._ledger.map_lock:
            self.pwrite = self.writer

    def set_size(self, size: int) -> None:
        """Take over a new size that is durable in info. The maps grow at once; they shrink when nobody looks."""
        with self._ledger.map_lock:
            self._fit_maps(size)
            self._size[0] = size

    def retire(self) -> None:
        """The volume is deleted: every later request fails; return when none is in flight."""
        with self._ledger.map_lock:
            self._size[0] = 0
            self.forget_all()
        self.gate.wait()

    def zero_tail(self) -> None:
        """Zero what lies behind the end in the last area, so that growing shows zeroes. Durable: nothing."""
        index, start = divmod(self._size[0], self._area_bytes)
        if start and index in self.info.areas:
            self._zero_part(index, start, self._area_bytes - start, True)

    def punch_freed(self, places: list[int]) -> None:
        """Places that were unmapped: zero them once nobody can be using them, and hand them on."""
        if places:
            self.gate.wait()
            self.space.punch(places)

    def _bind(self) -> None:
        """Make the closures for the home group."""
        group = self._home
        if not self.info.writable:
            self.pwrite = self._refuse
        elif isinstance(group, StripedGroup):
            self.pwrite = self._striped_pwrite(group)
        else:
            self.pwrite = self._general_pwrite()
        self.writer = self.pwrite
        self.pread_into = self._make_pread()

    def _refuse(self, *_request: object) -> None:
        raise Refused(f"{self.info.name} is a snapshot and never changes", "make a clone of it to write to")

    # Hot closures

    def _striped_pwrite(self, group: StripedGroup) -> Callable[[Buffer, int], None]:
        gate, size, slow = self.gate, self._size, self._write_slow
        writable, writers, row_offset = self._writable, group.write_table, group.row_offset
        shift, area_mask = self._shift, self._area_bytes - 1
        chunk_shift, chunk_mask = group.chunk_shift, group.geometry.chunk_bytes - 1
        chunk_bytes = group.geometry.chunk_bytes

        def pwrite(buf: Buffer, off: int) -> None:
            enter, leave = gate.pair
            enter()
            try:
                n = len(buf)
                inner = off & chunk_mask
                if inner + n <= chunk_bytes and 0 <= off <= size[0] - n:
                    base = writable[off >> shift]
                    if base is not None:
                        chunk = (off & area_mask) >> chunk_shift
                        if writers[chunk](buf, base + row_offset[chunk] + inner) == n:
                            return
            finally:
                leave()
            slow(buf, off)

        return pwrite

    def _general_pwrite(self) -> Callable[[Buffer, int], None]:
        gate, size, slow = self.gate, self._size, self._write_slow
        writable, shift, area_bytes = self._writable, self._shift, self._area_bytes
        write, elsewhere, area_mask = self._home.writer, self._write_elsewhere, area_bytes - 1

        def pwrite(buf: Buffer, off: int) -> None:
            enter, leave = gate.pair
            enter()
            try:
                n = len(buf)
                start = off & area_mask
                if n > 0 and start + n <= area_bytes and 0 <= off <= size[0] - n:
                    entry = writable[off >> shift]
                    if entry is not None:
                        if entry >= 0:
                            write(entry, start, memoryview(buf))
                        else:
                            elsewhere(-entry, start, memoryview(buf))
                        return
            finally:
                leave()
            slow(buf, off)

        return pwrite

    def _write_elsewhere(self, place: int, start: int, view: memoryview) -> None:
        self.space.group_at(place).write(area_of(place), start, view)

    def _make_pread(self) -> Callable[[bytearray | memoryview, int], None]:
        gate, size, slow, readable = self.gate, self._size, self._read_slow, self._readable
        home, shift, area_mask = self._home, self._shift, self._area_bytes - 1
        row_offset, chunk_shift, chunk_mask = home.row_offset, home.chunk_shift, home.geometry.chunk_bytes - 1
        chunk_bytes = home.geometry.chunk_bytes

        def pread_into(buf: bytearray | memoryview, off: int) -> None:
            enter, leave = gate.pair
            enter()
            try:
                n = len(buf)
                inner = off & chunk_mask
                if inner + n <= chunk_bytes and 0 <= off <= size[0] - n:
                    entry = readable[off >> shift]
                    if entry is not None:
                        table, base = entry
                        chunk = (off & area_mask) >> chunk_shift
                        if table[chunk]((buf,), base + row_offset[chunk] + inner) == n:
                            return
                slow(buf, off)
            except (OSError, IndexError):  # the read map of a snapshot is empty until its first read
                slow(buf, off)
            finally:
                leave()

        return pread_into

    # Slow paths

    def _read_slow(self, buf: bytearray | memoryview, off: int, *, once: bool = False) -> None:
        """Read piece by piece. The caller has entered the gate."""
        view = memoryview(buf)
        self._check(off, len(view))
        at, end = 0, len(view)
        while at < end:
            index, start = divmod(off, self._area_bytes)
            n = min(self._area_bytes - start, end - at)
            place = self.info.areas[index]
            if not place:
                _fill_zeroes(view[at : at + n])
            else:
                self.space.group_at(place).read(area_of(place), start, view[at : at + n], once=once)
                if group_of(place) == self._home.index and not once:
                    self._warm(index, place)
            at += n
            off += n

    def _warm(self, index: int, place: int) -> None:
        """Let the hot path read a logical area from now on."""
        if index < len(self._readable) and self._readable[index] is not None:
            return
        with self._ledger.map_lock:
            if index >= len(self._readable):
                self._fit_maps(self._size[0])
            at_home = group_of(place) == self._home.index
            if at_home and self.info.areas[index] == place and index < len(self._readable):
                self._readable[index] = self._home.entry(area_of(place))

    def _write_slow(self, buf: Buffer, off: int) -> None:
        view = memoryview(buf)
        leave = self._enter(off, len(view))
        try:
            self._check(off, len(view))
            at, end = 0, len(view)
            while at < end:
                index, start = divmod(off, self._area_bytes)
                n = min(self._area_bytes - start, end - at)
                place = self.info.areas[index] if self._writable[index] is not None else 0
                if not place:
                    place = self._prepare(index)
                self.space.group_at(place).write(area_of(place), start, view[at : at + n])
                at += n
                off += n
        finally:
            leave()

    def _enter(self, off: int, length: int) -> Callable[[], int]:
        """Enter the gate for a change of a range, where no bar is; return leave."""
        first, last = off >> self._shift, off + max(length, 1) - 1 >> self._shift
        while True:
            enter, leave = self.gate.pair
            enter()
            # Looked at after entering: who sets a bar and then waits at the gate has seen us, or we see the bar.
            if not self._bars or not self._is_barred(first, last):
                return leave
            leave()
            with self.turn:
                while self._is_barred(first, last):
                    self.turn.wait()

    def _is_barred(self, first: int, last: int) -> bool:
        return any(first < end and start <= last for start, end in self._bars)

    def _zero_part(self, index: int, start: int, length: int, punch: bool) -> None:
        leave = self._enter(index << self._shift, 1)
        try:
            if punch and index not in self.info.areas:
                return
            fresh = index not in self.info.areas
            place = self._prepare(index)
            if not fresh:
                self.space.group_at(place).zero(area_of(place), start, length)
        finally:
            leave()

    def _prepare(self, index: int) -> int:
        """Return the place of a logical area: allocated, its own, its region marked, the hot maps filled.

        The caller has entered the gate. Durable: the mark; that areas come in this part of the volume; a copy.
        """
        areas, space, map_lock = self.info.areas, self.space, self._ledger.map_lock
        while True:
            place = areas[index]
            if not place:
                place = self._allocate(index)
            elif space.shared(place):
                cow.copy_shared(self, index)
                continue
            group, area = space.group_at(place), area_of(place)
            region = group.region_of(area)
            with map_lock:
                # An entry goes in only while the region is hot, and the area is this one and nobody else's.
                if group.intents.heat(region) and areas[index] == place and not space.shared(place):
                    entry = group.entry(area)
                    if group is self._home:
                        self._readable[index] = entry
                    if self._bars and self._is_barred(index, index):
                        pass  # who waits for us to leave must not find a way past the bar
                    elif not isinstance(self._home, StripedGroup):
                        self._writable[index] = area if group is self._home else -place
                    elif group is self._home:
                        self._writable[index] = entry[1]
                    return place
            group.intents.mark((region,))

    def _allocate(self, index: int) -> int:
        info, ledger, space = self.info, self._ledger, self.space
        while True:
            with ledger.lock:
                known = info.areas[index]
                if known:
                    return known
                if index << self._shift >= self._size[0]:
                    raise NotFound(f"volume {info.name} ends before area {index}")
                place, ready = space.take(space.order(info, index))
                if ready:
                    try:
                        self.touch({index // TOUCH_AREAS})
                    except BaseException:
                        space.allocators[group_of(place)].give_back(area_of(place))
                        raise
                    try:
                        ledger.record([Record(Kind.ALLOC, group_of(place), info.id, index, area_of(place))])
                    except OutOfSpace:
                        space.allocators[group_of(place)].give_back(area_of(place))
                        raise
                    return place
            with contextlib.suppress(OutOfSpace):  # then take() says so, or finds room elsewhere
                space.prepare(place)

    def touch(self, blocks: set[int]) -> None:
        """Note that areas come or go in these blocks of the volume, whatever a power cut keeps of it.

        Call under the ledger's lock. Durable: that.
        """
        touched = self.space.touched
        keys = [(self.info.id, block) for block in sorted(blocks)]
        fresh = [Record(Kind.TOUCH, 0, *key) for key in keys if key not in touched]
        if fresh:
            self._ledger.record(fresh, durable=True)
        for key in keys:
            touched[key] = True

    def mark(self, places: Iterable[int]) -> None:
        """Mark the regions of these places. Durable: the marks."""
        regions: dict[int, set[int]] = {}
        for place in places:
            group = self.space.group_at(place)
            regions.setdefault(group.index, set()).add(group.region_of(area_of(place)))
        for index, some in regions.items():
            self.space.groups[index].intents.mark(some)

    def _free(self, indexes: list[int]) -> None:
        """Give areas back. Durable: nothing until Pool.sync()."""
        leave = self._enter(indexes[0] << self._shift, (indexes[-1] - indexes[0] << self._shift) + 1)
        gone: list[int] = []
        try:
            for at in range(0, len(indexes), TOUCH_AREAS):  # the ledger asks for room for all of a call at once
                gone += self._unmap(indexes[at : at + TOUCH_AREAS])
        finally:
            leave()
            self.punch_freed(gone)

    def _unmap(self, indexes: list[int]) -> list[int]:
        """Log that areas are no longer mapped; return the places that nobody has now."""
        info, ledger, space = self.info, self._ledger, self.space
        while True:
            # Marked, so that after a power cut that undoes the freeing the range counts as unclean.
            self.mark(place for index in indexes if (place := info.areas[index]))
            with ledger.map_lock, ledger.lock:
                mapped = [(index, place) for index in indexes if (place := info.areas[index])]
                if not mapped:
                    return []
                if not all(self._is_hot(place) for _, place in mapped):
                    continue
                self.forget([index for index, _ in mapped])
                self.touch({index // TOUCH_AREAS for index, _ in mapped})
                records = []
                for index, place in mapped:
                    kind = Kind.UNMAP if space.shared(place) else Kind.FREE
                    records.append(Record(kind, group_of(place), info.id, index, area_of(place)))
                ledger.record(records)
                return space.release(place for _, place in mapped)

    def _is_hot(self, place: int) -> bool:
        group = self.space.group_at(place)
        return group.intents.is_hot(group.region_of(area_of(place)))

    # Inside

    def _fit_maps(self, size: int) -> None:
        """Make the hot maps long enough for a size, in place. Call under the ledger's map_lock."""
        length = -(-size >> self._shift)
        self._readable.extend([None] * (length - len(self._readable)))
        if self.info.writable:
            self._writable.extend([None] * (length - len(self._writable)))

    def _check(self, off: int, length: int) -> None:
        if off < 0 or length < 0 or off + length > self._size[0]:
            raise BadInput(
                f"volume {self.info.name} has {self._size[0]} bytes; {off}+{length} is beyond its end",
                "the request must lie within the volume",
            )


def _fill_zeroes(view: memoryview) -> None:
    at, end = 0, len(view)
    while at < end:
        n = min(len(ZEROES), end - at)
        view[at : at + n] = ZEROES[:n]
        at += n
