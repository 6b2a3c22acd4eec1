"""Markers at intervals, and their images' end.

Two threads: while nodes are slow or away, what concerns older markers may take long; new ones are made all the same.
But only some more than are kept: images that nobody needs would fill the copies' pools, and a copy without room does
not follow any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from replicator.core.errors import FarstripeError
from replicator.core.markers import retire
from replicator.daemon.markers import STORAGE, Markers
from replicator.daemon.markerstore import Record

MOST_AHEAD = 8
"""So many markers of a schedule may be there beyond those that it keeps: not complete yet, or not deleted yet. When
they are so many, those that never will be complete go, the oldest first: no newer one could take their place."""
NOTE_S = 600.0
"""So often is the same failure of a schedule an event."""
AT_ONCE = 4
"""So many markers are asked about, or deleted, at once."""
COMPLETE_S = 60.0
"""So long a marker of a schedule that is complete counts as complete."""
RETIRE_S = 1.0
"""How often it is seen which images of schedules are no longer needed."""
TIDY_S = 30.0
"""How often what is owed to nodes that could not be reached is tried again."""


class Images:
    """The images of schedules: which of them may go."""

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._hopeless: set[int] = set()
        """Numbers of markers that never will be complete: a copy has passed over them."""
        self._complete_until: dict[int, float] = {}
        """Numbers of markers that were complete when last asked for -> when to ask again, by the monotonic clock."""

    def retire(self, schedule: str, keep: int) -> None:
        """Delete the images of a schedule's markers that newer complete ones have replaced.

        What was complete is asked for again once in a while only, and while a node is away nothing is: each question
        goes to every node. Raises what Markers.show and delete raise.
        """
        mine = self._markers.of_schedule(schedule)
        complete: list[int] = []
        for at in range(len(mine), 0, -AT_ONCE):
            found = at_once(self._complete, mine[max(0, at - AT_ONCE) : at])
            if None in found:
                return
            complete += [one["n"] for one, has in zip(mine[max(0, at - AT_ONCE) : at], found, strict=True) if has]
            if len(complete) > keep:
                break
        newest = max(retire(complete, keep), default=0)
        gone = [one for one in mine if one["n"] <= newest]
        too_many = len(mine) - len(gone) - (keep + MOST_AHEAD) + 1
        hopeless = [one for one in mine if one["n"] in self._hopeless and one["n"] > newest]
        gone += hopeless[: max(0, too_many)]
        for at in range(0, len(gone), AT_ONCE):
            at_once(lambda one: self._markers.delete(one["name"]), gone[at : at + AT_ONCE])
        for one in gone:
            self._complete_until.pop(one["n"], None)
            self._hopeless.discard(one["n"])

    def _complete(self, record: Record) -> bool | None:
        """Whether a marker is complete; None when a node is away that would know."""
        n, now = record["n"], time.monotonic()
        if now < self._complete_until.get(n, 0.0):
            return True
        shown = self._markers.show(record["name"])
        if any(copy["state"] == "unreachable" for copy in shown["copies"]):
            return None
        if any(copy["state"] == "missed" for copy in shown["copies"]):
            self._hopeless.add(n)
        if shown["complete"]:
            self._complete_until[n] = now + COMPLETE_S
        return bool(shown["complete"])


def at_once(call: Callable[[Record], Any], records: Sequence[Record]) -> list[Any]:
    """Call for every record, all at once: most of the time is waiting for other nodes. Returns the results in order.

    Raises the first FarstripeError when all have ended. The threads do not hold up the end of the process.
    """
    found: list[Any] = [None] * len(records)
    failed: list[FarstripeError] = []

    def run(at: int) -> None:
        try:
            found[at] = call(records[at])
        except FarstripeError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(at,), name="markers-ask", daemon=True) for at in range(len(records))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


class Scheduler:
    """Makes markers at intervals, and tidies up. Resumed by a restart: the schedules are stored."""

    def __init__(self, markers: Markers, note: Callable[[str, str], None]) -> None:
        self._markers, self._note, self._images = markers, note, Images(markers)
        self._stop = threading.Event()
        self._untidy = ""
        """Why tidying up failed last."""
        self._due: dict[str, float] = {}
        self._noted: dict[tuple[str, str], float] = {}
        """(schedule, why it failed) -> until when that is no news."""
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
                    if len(self._markers.of_schedule(name)) > what["keep"]:
                        self._images.retire(name, what["keep"])
                if time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + TIDY_S
                    self._markers.tidy()
                self._untidy = ""
            except FarstripeError as exc:
                if exc.message != self._untidy:
                    self._untidy = exc.message
                    self._note("marker.untidy", f"markers cannot be tidied up: {exc.message}")

    def _make(self, name: str, what: Record) -> None:
        most = what["keep"] + MOST_AHEAD
        if len(self._markers.of_schedule(name)) >= most:
            self._failed(name, f"{most} of its markers are not complete on every copy, or not deleted yet: it waits")
            return
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + f".{time.time_ns() // 10**6 % 1000:03}"
        marker = f"{name}-{stamp}"
        try:
            self._markers.create(
                marker, what["groups"], deadline_s=what["deadline_s"], image=what["image"],
                before=what["before"], after=what["after"], schedule=name, hold=what.get("hold", STORAGE),
            )  # fmt: skip
            self._markers.failing.pop(name, None)
        except FarstripeError as exc:
            self._failed(name, exc.message.replace(marker, f"{name}-…"))

    def _failed(self, name: str, why: str) -> None:
        self._markers.failing[name] = why
        now = time.monotonic()
        if now >= self._noted.get((name, why), 0.0):  # one that fails each second would fill the log
            self._noted = {told: until for told, until in self._noted.items() if until > now}
            self._noted[name, why] = now + NOTE_S
            self._note("marker.failed", f"schedule {name}: {why}")
