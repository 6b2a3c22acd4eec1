"""Keeps the workers of nbdkit on one processor as long as requests are small.

One thread at a time runs Python, whatever the number of processors. Workers on several of them hand the interpreter
lock (and a group's lock) from one to the other, several times a request, and each time wake a thread on another
processor, which costs more than the request. On one processor a worker runs until it has to wait, and hardly ever finds
a lock taken. Measured with 32 workers on two processors, 4 KiB at depth 32, thousand requests a second, apart and
together: writes to a volume in no group 54 and 116, reads 73 and 136, asynchronous writes 37 and 61, synchronous writes
19 and 28.

Often, while there is something to do, it looks:
* when requests are large, most of their time passes in system calls without the interpreter lock, and the workers may
  run anywhere (256 KiB writes to RAID-6: 2.4 GB/s together, up to 3.9 GB/s apart);
* when something else that cannot move away keeps their processor busy, they move to a quieter one.

Nothing depends on any of this. Where the system does not tell or refuses, the workers run where the scheduler puts
them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

LOOK_S = 0.25
IDLE_LOOK_S = 1.0
LARGE_BYTES = 24 << 10
"""Mean bytes a read or write call above which workers run apart; below half of it they come together again."""
IDLE_SHARE = 0.05
"""Below this share of one processor nothing is worth changing."""
CROWDED_SHARE = 0.25
"""The workers move when others use this much more of their processor than of the quietest one."""


class Sample(NamedTuple):
    """Counters since some beginning; seconds, except for calls and bytes."""

    busy: dict[int, float]
    """Of each processor that we may use."""
    ours: float
    """Processor time of this process."""
    calls: int
    """Read and write calls of this process."""
    bytes: int
    """What they moved."""


def take_sample(cpus: Iterable[int], proc: Path = Path("/proc")) -> Sample:
    """Read the counters. Raises OSError, KeyError or ValueError when the system does not tell."""
    tick = os.sysconf("SC_CLK_TCK")
    busy = {}
    for line in (proc / "stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            idle_and_iowait = int(numbers[3]) + int(numbers[4])
            busy[int(name[3:])] = (sum(map(int, numbers[:8])) - idle_and_iowait) / tick
    io = dict(line.split(": ") for line in (proc / "self" / "io").read_text().splitlines())
    calls, size = int(io["syscr"]) + int(io["syscw"]), int(io["rchar"]) + int(io["wchar"])
    return Sample(busy, sum(os.times()[:2]), calls, size)


def decide(before: Sample, now: Sample, seconds: float, home: int, together: bool) -> tuple[int, bool]:
    """Return where the workers should be from now on: (processor, whether they stay on it)."""
    ours = (now.ours - before.ours) / seconds
    if ours < IDLE_SHARE:
        return home, together
    calls = now.calls - before.calls
    mean_bytes = (now.bytes - before.bytes) / calls if calls else 0
    if not together:
        return home, mean_bytes < LARGE_BYTES / 2
    if mean_bytes > LARGE_BYTES:
        return home, False
    others = {cpu: (now.busy[cpu] - before.busy.get(cpu, 0.0)) / seconds for cpu in now.busy}
    others[home] = others.get(home, 1.0) - ours
    quietest = min(others, key=lambda cpu: others[cpu])
    return (quietest if others[home] - others[quietest] > CROWDED_SHARE else home), True


class Together:
    """The workers of this process. `join` and `stop` may be called from any thread."""

    def __init__(self) -> None:
        self._cpus = os.sched_getaffinity(0)
        self._home = min(self._cpus)
        self._together = len(self._cpus) > 1
        self._workers: set[int] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._current_cpu: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
        self._thread = threading.Thread(target=self._run, name="together", daemon=True)

    def start(self) -> None:
        """Begin to look. On a machine with one processor there is nothing to do."""
        if len(self._cpus) > 1:
            self._thread.start()

    def stop(self) -> None:
        """End that."""
        self._stop.set()

    def join(self) -> None:
        """Count the calling thread among the workers; it begins its first request."""
        if len(self._cpus) == 1:
            return
        me = threading.get_native_id()
        with self._lock:
            if not self._workers:
                here = self._current_cpu()  # where the scheduler found room for it
                self._home = here if here in self._cpus else self._home
            self._workers.add(me)
            if self._together:
                _put((me,), {self._home})

    def _run(self) -> None:
        before: Sample | None = None
        used_s, pause_s = 0.0, LOOK_S
        while not self._stop.wait(pause_s):
            used_before_s, used_s = used_s, sum(os.times()[:2])
            if used_s - used_before_s < IDLE_SHARE * pause_s:
                before, pause_s = None, IDLE_LOOK_S
                continue
            pause_s = LOOK_S
            try:
                now = take_sample(self._cpus)
                if before is not None:
                    self._look(before, now)
                before = now
            except (OSError, KeyError, ValueError):  # this system does not tell, or not now
                before = None
                self._let_go()

    def _let_go(self) -> None:
        """Let the workers run anywhere."""
        with self._lock:
            if self._together:
                self._together = False
                _put(self._workers, self._cpus)

    def _look(self, before: Sample, now: Sample) -> None:
        with self._lock:
            self._workers &= {int(name) for name in os.listdir("/proc/self/task")}
            if not self._workers:
                return
            was = self._home, self._together
            self._home, self._together = decide(before, now, LOOK_S, *was)
            if (self._home, self._together) != was:
                _put(self._workers, {self._home} if self._together else self._cpus)


def _put(threads: Iterable[int], cpus: set[int]) -> None:
    """Let threads of this process run on `cpus` only."""
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended, or a sandbox forbids it
            os.sched_setaffinity(thread, cpus)
