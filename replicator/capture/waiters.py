"""Synchronous writes that wait for the peer's answer.

The replicator stores what the peer has acknowledged in the page and rings. One of the waiting threads (the leader)
sleeps on the doorbell itself, so that a lone write is answered without a hop through another thread. It releases every
write that an answer covers, and when its own is among them it makes one of the others leader.

The point is to wake a thread once, when there is something for it to do: every needless wake-up is two context switches
and a fight for the interpreter lock, and with many writes under way these cost more than all the rest of a write.

A lone writer, whose next write comes only after the answer, sleeps and is woken for each of them. When that has gone on
for LONE_WAITS answers, each within WATCH_S, it may watch the page for so long instead of sleeping, as hypervisors poll
before they halt; watching.py says when that is better. Between two looks at the page it looks at the doorbell too, a
short system call that gives up the interpreter lock: other threads would have to wait for the whole watch otherwise. It
does not yield the processor: on a busy machine it would not get it back for milliseconds. A second writer ends the
watching, for the next LONE_WAITS answers too; and a machine with one processor does not watch.

Invariants, under `_lock`: as long as anybody waits there is exactly one leader (`_led`), and it is not in `_waiting`;
`listed` says whether a waiter is in it; who is taken off it by another is woken, because it leads now or is answered.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from replicator.capture.watching import Watching
from replicator.journal.page import TARGET_ASLEEP, Doorbell, Page

LOOK_S = 0.02
"""How long the leader sleeps at most before it looks at the page again."""
ASK_S = 0.1
"""How often a write that waits asks whether it should give up."""
LONE_WAITS = 8
"""So many writes in a row had the group to themselves before one watches for its answer."""
WATCH_S = 0.001
"""How long a lone write watches at most, and how soon answers have to come for that."""


class _Waiter:
    __slots__ = ("bell", "leads", "listed", "seq", "slot")

    def __init__(self, seq: int, slot: int) -> None:
        self.seq = seq
        self.slot = slot
        self.leads = self.listed = False
        self.bell = threading.Lock()
        self.bell.acquire()


class Waiters:
    """The writes of one group that wait."""

    def __init__(self, page: Page, bell: Doorbell) -> None:
        self._u64 = page.u64
        self._bell = bell
        self._lock = threading.Lock()
        self._waiting: list[_Waiter] = []
        self._led = False
        self._lone = 0
        """Quick answers in a row to writes that nobody joined."""
        self._watching = Watching(4 * WATCH_S)
        self._may_watch = (os.cpu_count() or 1) > 1

    def wait(self, seq: int, slot: int, give_up: Callable[[], bool]) -> bool:
        """Block until page slot `slot` reaches `seq`; returns False when `give_up` (asked now and then) said so first.

        What `give_up` raises is raised.
        """
        u64 = self._u64
        if u64[slot] >= seq:
            return True
        me = _Waiter(seq, slot)
        with self._lock:
            if self._led:
                self._waiting.append(me)
                me.listed = True
                self._lone = 0
            else:
                self._led = me.leads = True
        if not me.leads:
            while True:
                me.bell.acquire(timeout=ASK_S)
                listed = me.listed  # read first: whoever is made leader leads before it is off the list
                if me.leads:
                    break
                if not listed:
                    return True
                try:
                    stays = u64[slot] < seq and not give_up()
                except BaseException:
                    self._leave(me)
                    raise
                if not stays:
                    self._leave(me)
                    return u64[slot] >= seq
        try:
            began = time.monotonic()
            alone = self._lone >= LONE_WAITS and self._may_watch
            if alone and self._watching.now:
                self._watch(seq, slot, began + WATCH_S)
            while u64[slot] < seq:
                u64[TARGET_ASLEEP] = 1
                if u64[slot] < seq:
                    self._bell.wait(LOOK_S)
                u64[TARGET_ASLEEP] = 0
                if self._waiting:
                    with self._lock:
                        self._release_answered()
                if u64[slot] < seq and give_up():
                    return False
            took_s = time.monotonic() - began
            self._lone = self._lone + 1 if took_s < WATCH_S else 0
            if alone:
                self._watching.note(took_s)
            return True
        finally:
            self._hand_over()

    def _watch(self, seq: int, slot: int, until: float) -> None:
        """Look at the page until the answer is there, somebody else waits, the bell is rung, or time is up."""
        u64, clock, rung = self._u64, time.monotonic, self._bell.wait
        while u64[slot] < seq and not self._waiting and not rung(0) and clock() < until:
            pass

    def _leave(self, me: _Waiter) -> None:
        """Take `me` off the list; if it was made leader just now, the next one is."""
        with self._lock:
            if me.listed:
                self._waiting.remove(me)
                me.listed = False
        if me.leads:
            self._hand_over()

    def _hand_over(self) -> None:
        """The leader is done: make the first write that still waits leader."""
        with self._lock:
            self._release_answered()
            if self._waiting:
                heir = self._waiting.pop(0)
                heir.leads, heir.listed = True, False
                _ring(heir)
            else:
                self._led = False

    def _release_answered(self) -> None:
        u64 = self._u64
        rest = []
        for w in self._waiting:
            if u64[w.slot] >= w.seq:
                w.listed = False
                _ring(w)
            else:
                rest.append(w)
        self._waiting = rest

    def wake_all(self) -> None:
        """Make every waiting write ask `give_up` now."""
        with self._lock:
            for w in self._waiting:
                _ring(w)
        self._bell.ring()


def _ring(waiter: _Waiter) -> None:
    """Wake a waiter; the caller holds the list's lock, so nobody else rings at the same time."""
    if waiter.bell.locked():
        waiter.bell.release()
