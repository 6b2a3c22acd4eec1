"""Free areas of one group.

A free area is clean (it reads as zeroes, durably), dirty (it may hold old data), or in limbo (freed, but a call that
saw it mapped may still be in flight). Only clean areas are given out, so a new area reads as zeroes where nothing was
written, and no crash can show what it held before.

    allocated --FREE logged, unmapped--> limbo --gate waited, punched--> dirty --sync after the punch--> clean

The same sync makes the FREE durable, so an area never has two owners after any crash. After an unclean stop the free
areas of marked regions are dirty: an allocation, and with it the way to the data written there, may have been lost.

Images share areas: an area is free when the last reference to it is gone.

All methods but prepare() are called under the ledger's lock. Cleaning punches and syncs, so it holds no lock over that.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable

from raidlib.arearefs import AreaRefs
from raidlib.errors import MediumError, OutOfSpace
from raidlib.ledger import Ledger
from raidlib.raidgroup import RaidGroup

CLEAN_BATCH_AREAS = 64
SLOW_CLEAN_BATCH_AREAS = 4
"""Areas cleaned at a time where zeroing means writing: a writer waits for it."""


class Allocator:
    """Gives out and takes back the areas of one group."""

    def __init__(self, group: RaidGroup, ledger: Ledger, allocated: AreaRefs) -> None:
        self._group = group
        self._ledger = ledger
        self._dirty = group.info.dirty
        self.allocated = allocated
        """Areas that belong to an image, and to how many."""
        self.epoch = 0
        """Rises when a member joins that missed earlier punches."""
        self._limbo: set[int] = set()
        self._punched: set[int] = set()
        self._refused: set[int] = set()
        """Dirty areas that could not be zeroed when that was last tried: others come first."""
        self._cleaning = threading.Lock()
        kept = self._dirty | group.info.reserved
        self._clean = [area for area in range(group.info.areas) if area not in allocated and area not in kept]

    @property
    def free_areas(self) -> int:
        """Areas that can be had, now or after cleaning."""
        return len(self._clean) + len(self._dirty)

    @property
    def ready_areas(self) -> int:
        """Areas that take() would give, now or after prepare()."""
        return len(self._clean) + len(self._dirty) - len(self._limbo)

    def clean_areas(self) -> list[int]:
        """The clean areas."""
        return list(self._clean)

    def take(self) -> int | None:
        """Return a clean area, the lowest there is; None when prepare() has to be called first.

        Durable: nothing; the caller logs the allocation.
        """
        if not self._clean:
            return None
        area = heapq.heappop(self._clean)
        self.allocated.add(area)
        return area

    def prepare(self, areas: int) -> None:
        """See to it that so many areas are clean, if nobody takes them meanwhile. Call without any lock.

        Raises OutOfSpace, MediumError. Durable: the areas freed so far, and that they are zero.
        """
        fast = all(member.live_file().zeroes_fast() for member in self._group.members if member.carries)
        step = CLEAN_BATCH_AREAS if fast else SLOW_CLEAN_BATCH_AREAS
        with self._cleaning:
            while True:
                with self._ledger.lock:
                    if len(self._clean) >= areas:
                        return
                    usable = self._dirty - self._limbo
                    if len(self._clean) + len(usable) < areas:
                        raise OutOfSpace(
                            f"group {self._group.info.name} has no free area left",
                            "delete or trim volumes, or use another group",
                        )
                    most = max(step, areas - len(self._clean))
                    batch = heapq.nsmallest(most, usable, key=lambda area: (area in self._refused, area))
                    unpunched = [area for area in batch if area not in self._punched]
                    epoch = self.epoch
                trouble: MediumError | None = None
                for area in unpunched:
                    try:
                        self._group.punch_area(area)
                    except MediumError as exc:
                        trouble = exc
                        with self._ledger.lock:
                            self.not_punched(area)
                    else:
                        with self._ledger.lock:
                            self.punched([area], epoch)
                with self._ledger.lock:
                    ready = self.unsettled()
                if trouble is not None and not ready:
                    raise trouble
                self._ledger.sync_members()
                with self._ledger.lock:
                    self.settle(ready)

    def grow(self, clean: Iterable[int]) -> None:
        """The group has more areas; these of them, rising, are clean, others may be in the state's `dirty`."""
        self.allocated.grow(self._group.info.areas)
        self._clean.extend(clean)  # all are higher than those before: it stays a heap

    def give_back(self, area: int) -> None:
        """Put back a clean area that was taken and never mapped."""
        self.allocated.drop(area)
        heapq.heappush(self._clean, area)

    def abandon(self, area: int) -> None:
        """Put back an area that was taken, written to and never mapped; its DIRTY record is logged."""
        self.allocated.drop(area)
        self._dirty.add(area)

    def distrust_clean(self) -> None:
        """A member joined whose data is not known to be zero: clean areas are to be cleaned again."""
        self._dirty.update(self._clean)
        self._clean.clear()
        self._punched.clear()
        self.epoch += 1

    def freed(self, areas: list[int]) -> None:
        """Areas that lost their last reference, logged and in the state's `dirty`: calls may still use them."""
        self._limbo.update(areas)

    def punched(self, areas: list[int], epoch: int) -> None:
        """Areas that nobody can use any more and that have been punched since `epoch` was looked up."""
        self._limbo.difference_update(areas)
        self._refused.difference_update(areas)
        if epoch == self.epoch:
            self._punched.update(areas)

    def not_punched(self, area: int) -> None:
        """An area that nobody can use any more could not be zeroed: that is tried again when it is wanted."""
        self._limbo.discard(area)
        self._refused.add(area)

    def unsettled(self) -> list[int]:
        """The areas that a sync which starts now will make clean; give them to settle() after it."""
        return list(self._punched)

    def settle(self, areas: list[int]) -> None:
        """A sync of all members began after unsettled() returned these areas, and succeeded."""
        for area in areas:
            if area in self._punched:
                self._punched.discard(area)
                self._dirty.discard(area)
                heapq.heappush(self._clean, area)
