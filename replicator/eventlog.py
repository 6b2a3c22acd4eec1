"""A log of events for people: JSON lines, numbered on across restarts, bounded.

    {"n": 17, "time": "2024-05-06T07:08:09.123456Z", "kind": "noun.verb", "text": "...", "data": {...}}

When the file holds KEEP events it becomes "<stem>.1<suffix>" and a new one starts, so between KEEP and 2 * KEEP events
are there. Nothing is decided from them; a line torn by a crash is skipped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from pathlib import Path
from typing import Any

KEEP = 2000


class EventLog:
    """Append and list events; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open the log at `path`, made when missing."""
        self._path = path
        self._older = path.with_name(f"{path.stem}.1{path.suffix}")
        self._lock = threading.Lock()
        lines = _read(path)
        self._in_file = len(lines)
        before = lines or _read(self._older)
        self._last = before[-1]["n"] if before else 0
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")

    def add(self, kind: str, text: str, **data: Any) -> None:
        """Append one event. `kind` is noun.verb, `text` one sentence for people, `data` JSON values.

        Durable: nothing; the event survives a killed process, not a power cut. A full disk loses the event only.
        """
        now = datetime.datetime.now(datetime.UTC)
        with self._lock:
            if self._file.closed:
                return
            self._last += 1
            event = {"n": self._last, "time": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "kind": kind, "text": text}
            if data:
                event["data"] = data
            try:
                self._file.write(json.dumps(event, default=str) + "\n")
                self._file.flush()
                self._in_file += 1
                if self._in_file >= KEEP:
                    self._file.close()
                    self._path.replace(self._older)
                    self._file = self._path.open("a", encoding="utf-8")
                    self._in_file = 0
            except OSError:
                pass  # events inform; they must not stop what they inform about

    def since(self, n: int = 0, limit: int = KEEP) -> list[dict[str, Any]]:
        """Return the newest `limit` events numbered above `n`, oldest first."""
        with self._lock:
            events = _read(self._older) + _read(self._path)
        return [event for event in events if event["n"] > n][-limit:]

    def close(self) -> None:
        """Close the file; later events are dropped, and so are some that a full disk did not take."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("n"), int):
            events.append(event)
    return events
