"""Where the requests of one volume go: straight to the pool, or through its group's engine.

All connections to a volume share one VolumeRoute. Its slots are functions that nbdplugin.plugin calls with nothing in
between; joining or leaving a group replaces them while clients stay connected.

The hard part is that replacement. A write that took the old slot may still be running when the new one is in place;
a copy that starts then could miss it. So `switch` first puts parking functions into the slots, then waits until no
thread is inside an older request, then installs the new functions and lets the parked ones go on. The hot path pays
nothing for this: who is inside is read from the interpreter's stacks, which only `switch` does.

Reads need no such care, but for one change: when writes begin to wait for a peer, reads begin to look whether what they
saw still waits (`guard_reads`), and those that began without that look have ended before it counts.

Statistics look at a volume for a moment now and then: `watch` puts functions that note each request around those in the
slots, `unwatch` takes them off again. In between the hot path pays nothing.

Invariants: after `switch` returns, no request that was made through the old slots is still running. `_slots` and
`_reader` are what was installed, never what watches it.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import Any, NamedTuple, Protocol

from raidlib.errors import OutOfSpace
from replicator.core.errors import MediumError, Refused, TimedOut

Buffer = memoryview | bytes | bytearray
Around = Callable[[Callable[[Any, int], Any]], Callable[[Any, int], Any]]
"""Makes a function of (buffer, offset) into one that does the same and something besides."""


class Volume(Protocol):
    """What a route needs of raidlib's volume. Offsets and lengths are bytes."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def pread_into(self) -> Callable[[Any, int], Any]: ...
    @property
    def writer(self) -> Callable[[Any, int], Any]: ...
    def watch_writes(self, around: Callable[[Any], Any]) -> None: ...
    def unwatch_writes(self) -> None: ...
    def zero(self, off: int, length: int, punch: bool) -> Any: ...
    def extents(self, off: int, length: int) -> list[tuple[int, bool]]: ...


class Slots(NamedTuple):
    """The functions that change a volume; each returns when the client may be answered, or raises."""

    write: Callable[[Buffer, int], object]
    write_fua: Callable[[Buffer, int], object]
    zero: Callable[[int, int, bool, bool], object]  # offset, length, may punch, FUA
    trim: Callable[[int, int, bool], object]  # offset, length, FUA
    flush: Callable[[], object]


class ReadGuard(NamedTuple):
    """Of one volume of a group: after each read it waits until what was read may be told (GuardedReads)."""

    reads: Any
    """The group's GuardedReads."""
    volume: int
    """The volume's index in it."""

    def around_read(self, reader: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        """Return `reader` with that wait behind it; its result says whether it waited, so that it answers late."""
        unanswered, settle, volume = self.reads.unanswered, self.reads.settle, self.volume

        def read(buf: Buffer, off: int) -> object:
            reader(buf, off)
            return settle(volume, off, len(buf)) if unanswered else False

        return read

    def around_extents(self, extents: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
        """Likewise: where zeroes are is contents, too."""
        unanswered, settle, volume = self.reads.unanswered, self.reads.settle, self.volume

        def told(off: int, length: int) -> Any:
            found = extents(off, length)
            if unanswered:
                settle(volume, off, length)
            return found

        return told


class VolumeRoute:
    """One volume as its clients see it."""

    __slots__ = (
        "_bare", "_guard", "_parked", "_parking_codes", "_reader", "_slots", "_switching",
        "blocked", "extents", "flush", "frozen", "group", "index", "name", "read", "readers", "trim",
        "volume", "write", "write_fua", "writers", "zero",
    )  # fmt: skip

    def __init__(self, volume: Volume, slots: Slots) -> None:
        self.name = volume.name
        self.volume = volume
        self.group: Any = None
        """The engine of the group the volume is in, or None."""
        self.index = 0
        """The volume's index in its group."""
        self.blocked = ""
        """Why nothing may change the volume at all; empty when that is not so."""
        self.frozen = volume.readonly
        """A snapshot: it never changes."""
        self.writers = 0
        """Open connections that may write. NBD names no client, so several connections of one host count each."""
        self.readers = 0
        """Open connections that may only read."""
        self._switching = threading.Lock()
        self._parked: threading.Event | None = None
        self._parking_codes: frozenset[CodeType] = frozenset()
        self._guard: ReadGuard | None = None
        self._slots = slots
        self.read_by(volume.pread_into)
        self._install(slots)

    def _install(self, slots: Slots) -> None:
        self.write, self.write_fua, self.zero, self.trim, self.flush = slots

    def read_by(self, reader: Callable[[Any, int], Any]) -> None:
        """Send reads to `reader` from now on; a guard stays around it."""
        with self._switching:
            self._bare = reader
            self._set_reader()

    def _set_reader(self) -> None:
        guard = self._guard
        self._reader = self._bare if guard is None else guard.around_read(self._bare)
        if self._parked is None:
            self.read = self._reader
            self.extents = self.volume.extents if guard is None else guard.around_extents(self.volume.extents)

    def guard_reads(self, guard: ReadGuard | None, timeout_s: float = 30.0) -> None:
        """Put `guard` around reads, None for nothing, and return when no read is under way that began without it.

        Raises TimedOut, with nothing changed, when one does not end within `timeout_s` seconds.
        """
        with self._switching:
            if guard == self._guard:
                return
            before, self._guard = self._guard, guard
            gate = threading.Event()

            def read(buf: Buffer, off: int) -> object:
                gate.wait()
                return self._reader(buf, off)

            def told(off: int, length: int) -> Any:
                gate.wait()
                return self.extents(off, length)

            try:
                if guard is not None and self._parked is None:
                    self.read, self.extents = read, told
                    parked = frozenset({read.__code__, told.__code__})
                    self._wait_until_idle(parked, time.monotonic() + timeout_s, reading_codes)
            except TimedOut:
                self._guard = before
                raise
            finally:
                self._set_reader()
                gate.set()

    def watch(self, around_read: Around, around_write: Around | None) -> None:
        """Call `around_read(f)` instead of f for every read until unwatch(), and likewise for writes.

        Without around_write, and where nothing may change, writes are as before. Only for a volume in no group: what
        FUA adds to a write of the pool is its flush.
        """
        with self._switching:
            self.read = around_read(self._reader)
            if around_write is None or self.group is not None or self.blocked:
                return
            write, flush = around_write(self._slots.write), self._slots.flush

            def write_fua(buf: Buffer, off: int) -> None:
                write(buf, off)
                flush()

            self.write, self.write_fua = write, write_fua

    def unwatch(self) -> None:
        """End that. Requests that began through the functions of watch() may still be in them."""
        with self._switching:
            self.read = self._reader
            self.write, self.write_fua = self._slots.write, self._slots.write_fua

    def park(self) -> None:
        """Let no request begin any more: it waits for refuse_parked(). Those under way go on; see `busy`."""
        gate = self._parked = threading.Event()

        def wait_and_refuse(*_args: object) -> None:
            gate.wait()
            raise Refused("the target is stopping", "connect again when it has restarted", errno=errno.ESHUTDOWN)

        self._parking_codes = frozenset({wait_and_refuse.__code__})
        self.read = self.extents = wait_and_refuse
        self._install(Slots(*[wait_and_refuse] * 5))

    def refuse_parked(self) -> None:
        """Let the requests that park() keeps fail."""
        if self._parked is not None:
            self._parked.set()

    @property
    def busy(self) -> bool:
        """Whether a request that began before park() is under way."""
        return self._someone_inside(self._parking_codes, watched_codes | reading_codes)

    def block(self, why: str) -> None:
        """Refuse every change from now on, with the reason `why`."""

        def refuse(*_args: object) -> None:
            raise MediumError(f"volume {self.name} is read-only: {why}", "see 'farstripe events'")

        self.switch(Slots(refuse, refuse, refuse, refuse, refuse), None, 0)
        self.blocked = why

    def switch(self, slots: Slots, group: Any, index: int, timeout_s: float = 30.0) -> None:
        """Send all further requests through `slots`, after those under way have ended.

        Raises TimedOut, with the old functions in place, when a request does not end within `timeout_s` seconds.
        """
        with self._switching:
            before = self._slots
            gate = threading.Event()
            parked, codes = self._parking(gate)
            self._install(parked)
            try:
                self._wait_until_idle(codes, time.monotonic() + timeout_s, watched_codes)
            except TimedOut:
                self._install(before)
                raise
            else:
                self._slots = slots
                self._install(slots)
                self.group, self.index, self.blocked = group, index, ""
            finally:
                gate.set()

    def _parking(self, gate: threading.Event) -> tuple[Slots, frozenset[CodeType]]:
        def write(buf: Buffer, off: int) -> object:
            gate.wait()
            return self.write(buf, off)

        def write_fua(buf: Buffer, off: int) -> object:
            gate.wait()
            return self.write_fua(buf, off)

        def zero(off: int, length: int, punch: bool, fua: bool) -> object:
            gate.wait()
            return self.zero(off, length, punch, fua)

        def trim(off: int, length: int, fua: bool) -> object:
            gate.wait()
            return self.trim(off, length, fua)

        def flush() -> object:
            gate.wait()
            return self.flush()

        functions = (write, write_fua, zero, trim, flush)
        return Slots(*functions), frozenset(f.__code__ for f in functions)

    def _wait_until_idle(self, parked: frozenset[CodeType], deadline: float, watched: set[CodeType]) -> None:
        pause_s = 0.0005
        while self._someone_inside(parked, watched):
            if time.monotonic() > deadline:
                raise TimedOut(f"a request to volume {self.name} does not end", "see 'farstripe status'")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    def _someone_inside(self, parked: frozenset[CodeType], watched: set[CodeType]) -> bool:
        """Whether a thread is in a request of this volume that one of the `watched` serves, parked ones apart."""
        for frame in sys._current_frames().values():
            is_parked = False
            at = frame
            while at is not None:
                if at.f_code in parked:
                    is_parked = True
                elif at.f_code in watched and not is_parked:
                    handle = at.f_locals.get("h")
                    if handle is not None and handle.route is self:
                        return True
                at = at.f_back  # type: ignore[assignment]
        return False


watched_codes: set[CodeType] = set()
"""Code of the plugin callbacks that call slots; nbdplugin.plugin registers them. Each names its handle `h`."""
reading_codes: set[CodeType] = set()
"""Likewise of those that read, or say where there is something to read."""


def pool_slots(volume: Volume, sync: Callable[[], object]) -> Slots:
    """Slots of a volume in no group: the pool's own functions, and `sync` where durability is asked for."""
    pwrite, zero_range = volume.writer, volume.zero

    def write_fua(buf: Buffer, off: int) -> None:
        pwrite(buf, off)
        sync()

    def zero(off: int, length: int, punch: bool, fua: bool) -> None:
        zero_range(off, length, punch)
        if fua:
            sync()

    def trim(off: int, length: int, fua: bool) -> None:
        with suppress(OutOfSpace):  # for metadata, or a copy of what a snapshot shares: advice need not be taken
            zero_range(off, length, True)
        if fua:
            sync()

    return Slots(pwrite, write_fua, zero, trim, sync)


def group_slots(service: Any, index: int) -> Slots:
    """Slots of volume `index` of a group: everything passes the group's service.

    A trim that the pool has no room for is answered with success, as everywhere; what the range holds then has been
    recorded for the other side.
    """
    service_write, service_zero = service.write, service.zero

    def write(buf: Buffer, off: int) -> None:
        service_write(index, off, buf)

    def write_fua(buf: Buffer, off: int) -> None:
        service_write(index, off, buf, True)

    def zero(off: int, length: int, punch: bool, fua: bool) -> None:
        service_zero(index, off, length, punch, fua)

    def trim(off: int, length: int, fua: bool) -> None:
        try:
            service_zero(index, off, length, True, fua, True)
        except OutOfSpace:
            if fua:
                service.flush()

    return Slots(write, write_fua, zero, trim, service.flush)
