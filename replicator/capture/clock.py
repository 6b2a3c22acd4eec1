"""The node's hybrid logical clock: the write times of all groups of a node come from one clock.

A write time is the wall clock where that has moved on, else the last one plus a nanosecond. So times are unique on
the node and rise strictly in the order in which they are given out, whatever the wall clock does: a write that was
issued after another one was answered has a later time, also in another group. That is what cuts by time rest on
(core/cuts.py).

    wall clock steps back      times count on by nanoseconds until it has caught up; nothing waits
    wall clock steps forward   times follow it as far as the reserve reaches, which grows within a second
    ... and is corrected       as a step back
    the process is killed      the last time lies in a page on tmpfs, as unsynced journal bytes do
    power is lost              times go on above the reserve, a durable number that no wall-clock time given out exceeds
    a secondary takes over     it has noted the times it received, and goes on above them
    a host states a time       later writes get at least that; an older one changes nothing (H1-04)

The reserve is extended ahead of time by the thread of cutter.py, so a write never waits for a disk here. Should the
disk refuse, times count on above it: a start after power loss leaves room for COUNTED_NS of them.

Sources: seed 001 sections 2.4, 7 and 8.2 (H1-04 to H1-07, H1-10); Kulkarni et al., Logical Physical Clocks (2014).
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from replicator.capture.numbers import Numbers
from replicator.core.errors import BadInput
from replicator.journal.files import RandomFile
from replicator.journal.slots import SlotFile

AHEAD_NS: Final = 10 * 10**9
"""How far the reserve reaches beyond the last time; half of it may pass between two writes of it."""
COUNTED_NS: Final = 1 << 33
"""Times that may be counted above a reserve that cannot be written: a day of 100 000 writes a second."""
HOST_AHEAD_NS: Final = 3600 * 10**9
"""A host's time may be so far ahead of the clock: a host in the wrong century must not take ours there."""
RESERVE_SLOT_BYTES: Final = 512
RESERVE_FILE_BYTES: Final = 2 * RESERVE_SLOT_BYTES
_BOOT, _LAST = 0, 1


class WriteClock:
    """Gives out write times. Thread-safe; `next` is in the hot path of every write."""

    def __init__(
        self,
        wall_ns: Callable[[], int],
        boot: int = 0,
        page: memoryview | None = None,
        reserve: RandomFile | None = None,
    ) -> None:
        """Go on above every time given out before.

        wall_ns: nanoseconds since 1970, may jump. boot: a number that names this boot of the machine. page: two u64
        that live as long as the machine is up, None for a clock that only lives as long as this object. reserve: a file
        of RESERVE_FILE_BYTES, None for a clock that need not survive power loss. Raises IntegrityError, OSError.
        """
        self.wall_ns = wall_ns
        self.error = ""
        """Why the reserve cannot be written, "" while it can."""
        self._lock = threading.Lock()
        self._extending = threading.Lock()
        self._page = memoryview(bytearray(16)).cast("Q") if page is None else page
        self._slots = None if reserve is None else SlotFile(reserve, b"FSRC", RESERVE_SLOT_BYTES)
        self._limit = 0 if self._slots else 1 << 63
        self.host_ns = 0
        """The last time a host has stated, for information."""
        if self._slots is not None:
            self._limit = int((self._slots.load() or {}).get("limit_ns", 0))
        if self._page[_BOOT] != boot or not boot:
            self._page[_LAST] = self._limit + COUNTED_NS if self._limit and self._slots else 0
            self._page[_BOOT] = boot
        self.extend()

    # -- times ----------------------------------------------------------------------------------------------------

    def next(self) -> int:
        """Return a time later than all others of this node, nanoseconds since 1970."""
        with self._lock:
            now = self.wall_ns()
            if now > self._limit:
                now = self._limit
            last = self._page[_LAST]
            if now <= last:
                now = last + 1
            self._page[_LAST] = now
            return now

    def next_numbered(self, numbers: Numbers) -> tuple[int, int]:
        """Return (time, number): as `next`, and the next number of a set, in one step: their orders are one (H1-07)."""
        with self._lock:
            now = max(min(self.wall_ns(), self._limit), self._page[_LAST] + 1)
            self._page[_LAST] = now
            return now, numbers.draw()

    @property
    def last(self) -> int:
        """The latest time given out or noted."""
        return self._page[_LAST]

    def note(self, time_ns: int) -> None:
        """Give out only times after `time_ns` from now on: it was seen in a record, here or from a peer."""
        if time_ns <= self._page[_LAST]:
            return
        with self._lock:
            self._page[_LAST] = max(time_ns, self._page[_LAST])
        if time_ns > self._limit:
            self.extend()

    def state_host_time(self, time_ns: int) -> None:
        """A host says what time it is there. Raises BadInput for one that is too far ahead to be true."""
        if time_ns > max(self.wall_ns(), self.last) + HOST_AHEAD_NS:
            raise BadInput(
                f"the host's time {time_ns} is more than {HOST_AHEAD_NS // 10**9} s ahead of this node's clock",
                "set the host's clock, or this node's",
            )
        self.host_ns = time_ns
        self.note(time_ns - 1)

    # -- the reserve ----------------------------------------------------------------------------------------------

    @property
    def wants_extending(self) -> bool:
        """Whether `extend` is due."""
        return max(self.last, self.wall_ns()) + AHEAD_NS // 2 > self._limit

    def extend(self) -> bool:
        """Reserve times ahead. Durable: that none of them is given out again. False, and `error`, when it cannot be."""
        if self._slots is None:
            return True
        with self._extending:
            wanted = max(self._page[_LAST], self.wall_ns()) + AHEAD_NS
            try:
                if wanted > self._limit:
                    self._slots.save({"limit_ns": wanted})
            except OSError as exc:
                self.error = f"the clock's reserve cannot be written: {exc.strerror or exc}"
                return False
            self._limit = max(self._limit, wanted)
            self.error = ""
            return True

    def close(self) -> None:
        """Give back what of the reserve was not used. Durable: that, when the disk takes it."""
        if self._slots is None:
            return
        with self._extending, self._lock:
            try:
                self._slots.save({"limit_ns": max(0, self._page[_LAST] - COUNTED_NS)})
            except OSError as exc:
                self.error = str(exc)  # the next start goes on above the reserve as it stands
            self._limit = self._page[_LAST]


def map_clock_page(path: str | os.PathLike[str]) -> memoryview:
    """Map the two numbers of a clock at `path`, made when missing. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < mmap.PAGESIZE:
            os.ftruncate(fd, mmap.PAGESIZE)
        return memoryview(mmap.mmap(fd, mmap.PAGESIZE))[:16].cast("Q")
    finally:
        os.close(fd)
