"""The node's event log: what happened to pool, volumes, groups and processes, for `farstripe events`.

JSON lines, one event each, in STATE/events.jsonl; when it holds KEEP events it becomes events.1.jsonl and a new one
starts, so between KEEP and twice KEEP events are there. Events number on across restarts.

    {"n": 17, "time": "2024-05-06T07:08:09.123456Z", "kind": "member.failed", "text": "…", "data": {…}}

Events inform people; nothing is decided from them. A line torn by a crash is skipped.
"""

from __future__ import annotations

import datetime
import json
import threading
from pathlib import Path
from typing import Any

KEEP = 2000


class EventLog:
    """Append and list events; thread-safe."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "events.jsonl"
        self._older = state_dir / "events.1.jsonl"
        self._lock = threading.Lock()
        lines = _read(self._path)
        self._in_file = len(lines)
        before = lines or _read(self._older)
        self._last = before[-1]["n"] if before else 0
        self._file = self._path.open("a", encoding="utf-8")
        if self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n"):
            self._file.write("\n")

    def add(self, kind: str, text: str, **data: Any) -> None:
        """Append one event. `kind` is noun.verb, `text` one sentence for people, `data` JSON values.

        Durable: nothing; the event survives a killed process, not a power cut.
        """
        now = datetime.datetime.now(datetime.UTC)
        with self._lock:
            if self._file.closed:
                return
            self._last += 1
            event = {"n": self._last, "time": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "kind": kind, "text": text}
            if data:
                event["data"] = data
            self._file.write(json.dumps(event, default=str) + "\n")
            self._file.flush()
            self._in_file += 1
            if self._in_file >= KEEP:
                self._file.close()
                self._path.replace(self._older)
                self._file = self._path.open("a", encoding="utf-8")
                self._in_file = 0

    def since(self, n: int = 0, limit: int = KEEP) -> list[dict[str, Any]]:
        """Return the newest `limit` events numbered above `n`, oldest first."""
        with self._lock:
            events = _read(self._older) + _read(self._path)
        return [e for e in events if e["n"] > n][-limit:]

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
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
