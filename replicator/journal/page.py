"""The page: one small mapped file a group, through which target and replicator share counters; and their doorbells.

Each slot is an aligned 8-byte number with ONE writer, stored and loaded whole. What a counter says is true before it is
stored: `head_*` only after the record's bytes were handed to the kernel, `durable_*` only after fdatasync. The page
lives on tmpfs: it outlives both processes and dies with the machine, which is just as long as unsynced journal bytes
do, so a valid page (same boot) also says which unsynced bytes are whole.

    slot                writer                        meaning
    MAGIC, BOOT         target                        layout, and the boot this page belongs to
    INCARNATION         target                        rises when offsets or roles change: readers start over
    HEAD_OFF, HEAD_SEQ  the appender (primary: target, secondary: replicator)   end of the journal
    EPOCH               the appender                  epoch of the last record
    DURABLE_OFF/_SEQ    target                        journal is on stable storage up to here
    APPLIED_OFF/_SEQ    target                        the pool holds everything up to here
    TAIL_OFF/_SEQ       target                        first record kept; space before it may be overwritten
    SYNC_ON             target                        bit k: writes wait for the peer of edge k
    TARGET_ASLEEP       target                        its doorbell must be rung
    STATE_GEN           target                        generation of the group's state that was written last
    LAYOUT_GEN          target                        rises when the journal is made of other files (ring.py)
    BEACON_GEN/_SEQ/_TIME    target           every record with a write time up to TIME has a seq up to SEQ (beacons.py)
    ARRIVED_GEN/_SEQ/_TIME   replicator       the same, of what a secondary has received; 0 when it does not know
    BEACON_PACE_MS      target                        how often the replicator tells the peers of the beacon
    DROPS + k           target                        rises when the journal is no longer kept for edge k

Each edge (the group's pair with one peer) has a block of EDGE_SLOTS slots; `edge_slot` finds them. The replicator
writes them; the target clears a block when what it said belongs to the past (a new edge, a new copy):

    EDGE_RECEIVED_SEQ   what the peer has said of itself: received, on stable storage, in its pool
    EDGE_DURABLE_SEQ
    EDGE_APPLIED_SEQ
    EDGE_DURABLE_OFF    OUR journal offset up to which the peer holds the records durably
    EDGE_LINK           0 down, 1 up, 2 streaming
    EDGE_ASLEEP         the edge's doorbell must be rung
    EDGE_TREE_DURABLE   the peer and every node below it hold the records durably up to this seq
    EDGE_WANTS          bytes of a run from this peer that waits for room in our journal, 0 when none does
"""

from __future__ import annotations

import mmap
import os
import select
from typing import Final

from replicator.journal.shortcalls import write_byte

MAGIC: Final = 0
BOOT: Final = 1
INCARNATION: Final = 2
HEAD_OFF: Final = 3
HEAD_SEQ: Final = 4
EPOCH: Final = 5
DURABLE_OFF: Final = 6
DURABLE_SEQ: Final = 7
APPLIED_OFF: Final = 8
APPLIED_SEQ: Final = 9
TAIL_OFF: Final = 10
TAIL_SEQ: Final = 11
SYNC_ON: Final = 17
TARGET_ASLEEP: Final = 18
BEACON_GEN: Final = 22
BEACON_SEQ: Final = 23
BEACON_TIME: Final = 24
ARRIVED_GEN: Final = 25
ARRIVED_SEQ: Final = 26
ARRIVED_TIME: Final = 27
BEACON_PACE_MS: Final = 28
LAYOUT_GEN: Final = 29
STATE_GEN: Final = 30
DROPS: Final = 32

EDGES: Final = 16
"""So many edges a group can have on a node."""
EDGE_BASE: Final = 64
EDGE_SLOTS: Final = 8
EDGE_RECEIVED_SEQ: Final = 0
EDGE_DURABLE_SEQ: Final = 1
EDGE_APPLIED_SEQ: Final = 2
EDGE_DURABLE_OFF: Final = 3
EDGE_LINK: Final = 4
EDGE_ASLEEP: Final = 5
EDGE_TREE_DURABLE: Final = 6
EDGE_WANTS: Final = 7
SLOTS: Final = EDGE_BASE + EDGES * EDGE_SLOTS

_RINGS: Final = 256
"""So many rings are taken back at once; there are hardly ever more, and what is left wakes once more."""
PAGE_MAGIC: Final = 0x3147_4150_5253_46
LINK_DOWN: Final = 0
LINK_UP: Final = 1
LINK_STREAMING: Final = 2


def edge_slot(edge: int, what: int) -> int:
    """The slot of counter `what` (EDGE_*) of edge `edge` (0..15)."""
    return EDGE_BASE + EDGE_SLOTS * edge + what


class Page:
    """The counters of one group. Index it with the slot constants of this module."""

    def __init__(self, buffer: mmap.mmap | bytearray) -> None:
        """Wrap a writable buffer of at least SLOTS * 8 bytes, borrowed for the life of the page."""
        self.u64 = memoryview(buffer)[: SLOTS * 8].cast("Q")

    @classmethod
    def in_memory(cls) -> Page:
        """Return a page of its own, for one process (tests, the simulator)."""
        return cls(bytearray(SLOTS * 8))

    @classmethod
    def map(cls, path: str | os.PathLike[str]) -> Page:
        """Map `path`, made when missing. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < mmap.PAGESIZE:
                os.ftruncate(fd, mmap.PAGESIZE)
            return cls(mmap.mmap(fd, mmap.PAGESIZE))
        finally:
            os.close(fd)

    def __getitem__(self, slot: int) -> int:
        return self.u64[slot]

    def __setitem__(self, slot: int, value: int) -> None:
        self.u64[slot] = value

    def valid(self, boot: int) -> bool:
        """Say whether this page was written since the machine booted (`boot`: a number that names the boot)."""
        return self.u64[MAGIC] == PAGE_MAGIC and self.u64[BOOT] == boot

    def clear(self, boot: int) -> None:
        """Start over: all counters 0, the incarnation risen."""
        incarnation = self.u64[INCARNATION]
        for slot in range(SLOTS):
            self.u64[slot] = 0
        self.u64[BOOT] = boot
        self.u64[INCARNATION] = incarnation + 1
        self.u64[MAGIC] = PAGE_MAGIC


def clear_edge(page: Page, edge: int) -> None:
    """Forget what was said of the peer of an edge."""
    for what in (EDGE_RECEIVED_SEQ, EDGE_DURABLE_SEQ, EDGE_APPLIED_SEQ, EDGE_DURABLE_OFF, EDGE_TREE_DURABLE):
        page.u64[edge_slot(edge, what)] = 0


def boot_number() -> int:
    """Return a number that is the same until this machine reboots."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return int(f.read().replace("-", "")[:16], 16) or 1


class Doorbell:
    """A FIFO that wakes the process which waits on it. Rings coalesce; a ring is never lost while the FIFO exists."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the FIFO at `path`, made when missing."""
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass  # either side may come first
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def ring(self) -> None:
        """Wake the waiter, or make its next wait return at once."""
        try:
            write_byte(self._fd)
        except BlockingIOError:
            pass  # full: it has been rung already

    def clear(self) -> None:
        """Take back the rings so far; look at the page AFTER this, not before."""
        try:
            os.read(self._fd, _RINGS)
        except BlockingIOError:
            pass

    def wait(self, timeout_s: float) -> bool:
        """Sleep until rung; returns False when `timeout_s` passed first."""
        if not self._poll.poll(timeout_s * 1000):
            return False
        self.clear()
        return True

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._fd

    def close(self) -> None:
        """Release the descriptor; the FIFO stays."""
        os.close(self._fd)
