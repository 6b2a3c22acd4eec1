"""A volume: a map from its logical areas to areas of one RAID group.

Hot path. pwrite and pread_into are closures, made once per volume, so that a 4 KiB request inside one chunk costs two
list look-ups, a little arithmetic and one system call. They look only into the hot maps:
* read map: for each logical area the group's table and place, None when the slow path must look (not allocated);
* write map: the same, but filled only while the area's region is marked hot in the intent map (intents.py).
Everything else (allocation, marking, several chunks, errors, lost members) is the slow path below.

Who changes the maps holds the group's IntentMap.lock. Who takes an entry away and then relies on nobody using it
(freeing, clearing marks) calls gate.wait() in between; every request is between enter and leave.

Calls may run in parallel on any number of threads. Overlapping writes are the caller's to order; unordered, the result
is one or the other per block, never a damaged stripe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raidlib.allocator import Allocator
from raidlib.blockfile import Buffer
from raidlib.errors import BadInput, NotFound
from raidlib.gate import Gate
from raidlib.ledger import Ledger
from raidlib.raidgroup import ZEROES, RaidGroup
from raidlib.state import TOUCH_AREAS, Kind, Record, VolumeInfo
from raidlib.striped import StripedGroup

BLOCK_BYTES = 4096


class Volume:
    """One open volume. Made by the pool. Offsets and lengths are bytes."""

    pwrite: Callable[[Buffer, int], None]
    """pwrite(buf, off): write all of buf. Raises OSError, MediumError, OutOfSpace, BadInput.

    Durable: nothing until Pool.sync(); it survives the death of the process."""

    pread_into: Callable[[bytearray | memoryview, int], None]
    """pread_into(buf, off): fill buf. Unallocated parts read as zeroes. Raises MediumError, BadInput."""

    def __init__(
        self,
        info: VolumeInfo,
        group: RaidGroup,
        allocator: Allocator,
        ledger: Ledger,
        touched: dict[tuple[int, int], bool],
    ) -> None:
        self.info = info
        self.group = group
        self.gate = Gate()
        self._allocator = allocator
        self._ledger = ledger
        self._touched = touched
        self._area_bytes = ledger.state.area_bytes
        self._shift = self._area_bytes.bit_length() - 1
        self._size = [info.size]
        self._readable: list[Any] = []
        self._writable: list[Any] = []
        self._fit_maps()
        self.pwrite = self._striped_pwrite(group) if isinstance(group, StripedGroup) else self._general_pwrite()
        self.pread_into = self._make_pread()

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
        """Empty the write map: every writer asks the intent map again. Call under the IntentMap's lock."""
        self._writable[:] = [None] * len(self._writable)

    def set_size(self, size: int) -> None:
        """Take over a new size that is durable in info. The maps grow at once; they shrink when nobody looks."""
        with self.group.intents.lock:
            self._size[0] = size
            self._fit_maps()

    def retire(self) -> None:
        """The volume is deleted: every later request fails; return when none is in flight."""
        with self.group.intents.lock:
            self._size[0] = 0
            self._readable[:] = [None] * len(self._readable)
            self.cool()
        self.gate.wait()

    def allocate_all(self, size: int) -> list[Record] | None:
        """Take areas for every logical area below `size`; return the records, None when prepare() must come first.

        Call under the ledger's lock, before the areas are served.
        """
        records: list[Record] = []
        done = False
        try:
            for index in range(-(-size >> self._shift)):
                if index not in self.info.areas:
                    area = self._allocator.take()
                    if area is None:
                        return None
                    records.append(Record(Kind.ALLOC, self.info.group, self.info.id, index, area))
            for first, count in _runs(sorted(record.area for record in records)):
                self.group.reserve_areas(first, count)
            done = True
            return records
        finally:
            if not done:
                for record in records:
                    self._allocator.give_back(record.area)

    def zero_tail(self) -> None:
        """Zero what lies behind the end in the last area, so that growing shows zeroes. Durable: nothing."""
        index, start = divmod(self._size[0], self._area_bytes)
        if start and index in self.info.areas:
            self._zero_part(index, start, self._area_bytes - start, True)

    def punch_freed(self, areas: list[int]) -> None:
        """Areas that were unmapped durably: zero them once nobody can be using them, and hand them on."""
        self.gate.wait()
        epoch = self._allocator.epoch
        for area in areas:
            self.group.punch_area(area)
        with self._ledger.lock:
            self._allocator.punched(areas, epoch)

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
                slow(buf, off)
            finally:
                leave()

        return pwrite

    def _general_pwrite(self) -> Callable[[Buffer, int], None]:
        gate, size, slow, write = self.gate, self._size, self._write_slow, self.group.write
        writable, shift, area_bytes = self._writable, self._shift, self._area_bytes
        area_mask = area_bytes - 1

        def pwrite(buf: Buffer, off: int) -> None:
            enter, leave = gate.pair
            enter()
            try:
                n = len(buf)
                start = off & area_mask
                if n > 0 and start + n <= area_bytes and 0 <= off <= size[0] - n:
                    area = writable[off >> shift]
                    if area is not None:
                        write(area, start, memoryview(buf))
                        return
                slow(buf, off)
            finally:
                leave()

        return pwrite

    def _make_pread(self) -> Callable[[bytearray | memoryview, int], None]:
        gate, size, slow, readable = self.gate, self._size, self._read_slow, self._readable
        row_offset, shift, area_mask = self.group.row_offset, self._shift, self._area_bytes - 1
        chunk_shift, chunk_mask = self.group.chunk_shift, self.group.geometry.chunk_bytes - 1
        chunk_bytes = self.group.geometry.chunk_bytes

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
            except OSError:
                slow(buf, off)
            finally:
                leave()

        return pread_into

    # Slow paths; the caller has entered the gate

    def _read_slow(self, buf: bytearray | memoryview, off: int, *, once: bool = False) -> None:
        view = memoryview(buf)
        self._check(off, len(view))
        at, end = 0, len(view)
        while at < end:
            index, start = divmod(off, self._area_bytes)
            n = min(self._area_bytes - start, end - at)
            area = self.info.areas.get(index)
            if area is None:
                _fill_zeroes(view[at : at + n])
            else:
                self.group.read(area, start, view[at : at + n], once=once)
            at += n
            off += n

    def _write_slow(self, buf: Buffer, off: int) -> None:
        view = memoryview(buf)
        self._check(off, len(view))
        at, end = 0, len(view)
        while at < end:
            index, start = divmod(off, self._area_bytes)
            n = min(self._area_bytes - start, end - at)
            area = self.info.areas.get(index) if self._writable[index] is not None else None
            self.group.write(self._prepare(index) if area is None else area, start, view[at : at + n])
            at += n
            off += n

    def _zero_part(self, index: int, start: int, length: int, punch: bool) -> None:
        enter, leave = self.gate.pair
        enter()
        try:
            if punch and index not in self.info.areas:
                return
            fresh = index not in self.info.areas
            area = self._prepare(index)
            if not fresh:
                self.group.zero(area, start, length)
        finally:
            leave()

    def _prepare(self, index: int) -> int:
        """Return the area of a logical area, allocated, its region marked, the hot maps filled.

        Durable: the mark; and that areas are being allocated in this part of the volume.
        """
        group, areas = self.group, self.info.areas
        while True:
            area = areas.get(index)
            if area is None:
                area = self._allocate(index)
            region = group.region_of(area)
            with group.intents.lock:
                # An entry goes in only while the region is hot and the area is this one.
                if group.intents.heat(region) and areas.get(index) == area:
                    self._readable[index] = group.entry(area)
                    self._writable[index] = self._write_entry(area)
                    return area
            group.intents.mark((region,))

    def _allocate(self, index: int) -> int:
        info, ledger = self.info, self._ledger
        while True:
            with ledger.lock:
                known = info.areas.get(index)
                if known is not None:
                    return known
                if index << self._shift >= self._size[0]:
                    raise NotFound(f"volume {info.name} ends before area {index}")
                area = self._allocator.take()
                if area is not None:
                    try:
                        self.group.reserve_areas(area, 1)
                        self._touch({index // TOUCH_AREAS})
                    except BaseException:
                        self._allocator.give_back(area)
                        raise
                    ledger.record([Record(Kind.ALLOC, info.group, info.id, index, area)])
                    return area
            self._allocator.prepare(1)

    def _touch(self, blocks: set[int]) -> None:
        """Note that areas come or go in these blocks of the volume, whatever a power cut keeps of it.

        Call under the ledger's lock. Durable: that.
        """
        keys = [(self.info.id, block) for block in sorted(blocks)]
        fresh = [Record(Kind.TOUCH, 0, *key) for key in keys if key not in self._touched]
        if fresh:
            self._ledger.record(fresh, durable=True)
        for key in keys:
            self._touched[key] = True

    def _free(self, indexes: list[int]) -> None:
        """Give areas back. Durable: nothing until Pool.sync()."""
        intents, info, ledger = self.group.intents, self.info, self._ledger
        while True:
            # Marked, so that after a power cut that undoes the freeing the range counts as unclean.
            regions = {self.group.region_of(area) for i in indexes if (area := info.areas.get(i)) is not None}
            intents.mark(regions)
            with intents.lock, ledger.lock:
                mapped = [(i, info.areas[i]) for i in indexes if i in info.areas]
                if not mapped:
                    return
                if not all(intents.is_hot(self.group.region_of(area)) for _, area in mapped):
                    continue
                for index, _ in mapped:
                    self._readable[index] = self._writable[index] = None
                self._touch({index // TOUCH_AREAS for index, _ in mapped})
                ledger.record([Record(Kind.FREE, info.group, info.id, index, area) for index, area in mapped])
                areas = [area for _, area in mapped]
                self._allocator.freed(areas)
            self.punch_freed(areas)
            return

    # Inside

    def _write_entry(self, area: int) -> int:
        return self.group.member_offset(area) if isinstance(self.group, StripedGroup) else area

    def _fit_maps(self) -> None:
        """Make the maps as long as the volume, in place, and fill the read map."""
        length = -(-self._size[0] >> self._shift)
        for hot in (self._readable, self._writable):
            hot.extend([None] * (length - len(hot)))
        for index, area in self.info.areas.items():
            self._readable[index] = self.group.entry(area)

    def _check(self, off: int, length: int) -> None:
        if off < 0 or length < 0 or off + length > self._size[0]:
            raise BadInput(
                f"volume {self.info.name} has {self._size[0]} bytes; {off}+{length} is beyond its end",
                "the request must lie within the volume",
            )


def _runs(areas: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as runs (first, count)."""
    runs: list[tuple[int, int]] = []
    for area in areas:
        if runs and sum(runs[-1]) == area:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((area, 1))
    return runs


def _fill_zeroes(view: memoryview) -> None:
    at, end = 0, len(view)
    while at < end:
        n = min(len(ZEROES), end - at)
        view[at : at + n] = ZEROES[:n]
        at += n
