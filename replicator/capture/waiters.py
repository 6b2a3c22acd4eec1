"""Synchronous writes that wait for the peer's answer.

The replicator stores what the peer has acknowledged in the page and rings. One of the waiting threads (the leader)
sleeps on the doorbell itself, so that a lone write is answered without a hop through another thread; it releases every
write that the answer covers and, when its own is done, wakes another to lead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from replicator.journal.page import TARGET_ASLEEP, Doorbell, Page

LOOK_S = 0.02


class _Waiter:
    __slots__ = ("lock", "seq", "slot")

    def __init__(self, seq: int, slot: int) -> None:
        self.seq = seq
        self.slot = slot
        self.lock = threading.Lock()
        self.lock.acquire()


class Waiters:
    """The writes of one group that wait."""

    def __init__(self, page: Page, bell: Doorbell) -> None:
        self._u64 = page.u64
        self._bell = bell
        self._lock = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._leader = threading.Lock()

    def wait(self, seq: int, slot: int, give_up: Callable[[], bool]) -> bool:
        """Block until page slot `slot` reaches `seq`; returns False when `give_up` (asked now and then) said so first.

        What `give_up` raises is raised.
        """
        u64 = self._u64
        if u64[slot] >= seq:
            return True
        me = _Waiter(seq, slot)
        with self._lock:
            self._waiting.append(me)
        try:
            while u64[slot] < seq:
                if self._leader.acquire(blocking=False):
                    try:
                        self._lead(me)
                    finally:
                        self._leader.release()
                else:
                    me.lock.acquire(timeout=LOOK_S * 5)
                if u64[slot] < seq and give_up():
                    return False
            return True
        finally:
            with self._lock:
                if me in self._waiting:
                    self._waiting.remove(me)
            self._wake()

    def _lead(self, me: _Waiter) -> None:
        """Sleep on the doorbell once, then release whoever is answered."""
        u64 = self._u64
        u64[TARGET_ASLEEP] = 1
        if u64[me.slot] < me.seq:
            self._bell.wait(LOOK_S)
        u64[TARGET_ASLEEP] = 0
        with self._lock:
            if len(self._waiting) > 1:
                self._release_answered()

    def _wake(self) -> None:
        """Release every answered write, and one more so that somebody leads."""
        with self._lock:
            self._release_answered()
            if self._waiting:
                _release(self._waiting[0])

    def _release_answered(self) -> None:
        u64 = self._u64
        rest = []
        for w in self._waiting:
            if u64[w.slot] >= w.seq:
                _release(w)
            else:
                rest.append(w)
        self._waiting = rest

    def wake_all(self) -> None:
        """Make every waiting write ask `give_up` now."""
        with self._lock:
            for w in self._waiting:
                _release(w)


def _release(waiter: _Waiter) -> None:
    if waiter.lock.locked():
        try:
            waiter.lock.release()
        except RuntimeError:
            pass  # another thread released it between the two lines
