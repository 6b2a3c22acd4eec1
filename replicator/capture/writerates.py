"""How much a group's hosts write, hour by hour over a week: what a journal is sized by.

Counted in bytes of journal, while the group journals. Written to a small file now and then, without a sync: a power cut
costs some minutes of statistics. A file that cannot be read, or makes no sense, is begun anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOURS = 7 * 24
SAVE_S = 300.0
MINUTE_S = 60.0


class WriteRates:
    """The statistics of one group. Hours are counted since 1970."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        """path: where they are kept; None: in memory only. clock: seconds since 1970."""
        self._path = path
        self._clock = clock
        self.hours: dict[int, list[float]] = {}
        """hour: [seconds seen, bytes written, most bytes in a minute]"""
        self._last: tuple[float, int] | None = None
        self._minute = (0.0, 0.0)  # (seconds, bytes) so far
        self._saved = clock()
        if path is not None:
            self.hours = _load(path)

    def note(self, head_off: int) -> None:
        """Note the end of the journal; at least every few seconds while the group journals."""
        now = self._clock()
        last, self._last = self._last, (now, head_off)
        if last is None or not 0 < now - last[0] < MINUTE_S or head_off < last[1]:
            return
        seconds, written = now - last[0], head_off - last[1]
        hour = self.hours.setdefault(int(now // 3600), [0.0, 0.0, 0.0])
        hour[0] += seconds
        hour[1] += written
        spent, so_far = self._minute[0] + seconds, self._minute[1] + written
        if spent >= MINUTE_S:
            hour[2] = max(hour[2], so_far * MINUTE_S / spent)
            spent, so_far = 0.0, 0.0
        self._minute = (spent, so_far)
        if now - self._saved > SAVE_S:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one. Durable: nothing in particular."""
        self._saved = self._clock()
        oldest = int(self._saved // 3600) - HOURS
        self.hours = {hour: found for hour, found in self.hours.items() if hour > oldest}
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps({str(hour): found for hour, found in self.hours.items()}), encoding="ascii")
            new.replace(self._path)
        except OSError:
            pass  # statistics are not worth an error

    def history(self) -> list[dict[str, Any]]:
        """The hours, oldest first: {hour, seconds, bytes, peak_minute}."""
        return [
            {"hour": hour, "seconds": round(s), "bytes": round(b), "peak_minute": round(peak)}
            for hour, (s, b, peak) in sorted(self.hours.items())
        ]


def _load(path: Path) -> dict[int, list[float]]:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        return {int(hour): [float(s), float(b), float(peak)] for hour, (s, b, peak) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
