"""Markers at intervals, and their images' end.

Two threads: while nodes are slow or away, what concerns older markers may take long; new ones are made all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replicator.core.errors import FarstripeError
from replicator.daemon.markers import STORAGE, Markers
from replicator.daemon.markerstore import Record

RETIRE_S = 1.0
"""How often it is seen which images of schedules are no longer needed."""
TIDY_S = 30.0
"""How often what is owed to nodes that could not be reached is tried again."""


class Scheduler:
    """Makes markers at intervals, and tidies up. Resumed by a restart: the schedules are stored."""

    def __init__(self, markers: Markers, note: Callable[[str, str], None]) -> None:
        self._markers, self._note = markers, note
        self._stop = threading.Event()
        self._untidy = ""
        """Why tidying up failed last."""
        self._due: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._run, "markers"), (self._run_tidying, "markers-tidy"))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            now = time.monotonic()
            for name, what in self._markers.store.schedules().items():
                if now >= self._due.get(name, 0.0):
                    self._due[name] = max(now, self._due.get(name, now) + what["interval_s"])
                    self._make(name, what)

    def _run_tidying(self) -> None:
        tidy_at = time.monotonic() + TIDY_S
        while not self._stop.wait(RETIRE_S):
            try:
                for name, what in self._markers.store.schedules().items():
                    self._markers.retire(name, what["keep"])
                if time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + TIDY_S
                    self._markers.tidy()
                self._untidy = ""
            except FarstripeError as exc:
                if exc.message != self._untidy:
                    self._untidy = exc.message
                    self._note("marker.untidy", f"markers cannot be tidied up: {exc.message}")

    def _make(self, name: str, what: Record) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f".{time.time_ns() // 10**6 % 1000:03}"
        try:
            self._markers.create(
                f"{name}-{stamp}", what["groups"], deadline_s=what["deadline_s"], image=what["image"],
                before=what["before"], after=what["after"], schedule=name, hold=what.get("hold", STORAGE),
            )  # fmt: skip
            self._markers.failing.pop(name, None)
        except FarstripeError as exc:
            if self._markers.failing.get(name) != exc.message:  # one that fails each second would fill the log
                self._markers.failing[name] = exc.message
                self._note("marker.failed", f"schedule {name}: {exc.message}")
