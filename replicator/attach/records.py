"""What is attached on this host: one small JSON file per device in RUN/attach, written by its supervisor.

The kernel is the authority on whether a device is connected; a record adds what the kernel does not keep (which
server, which process looks after it). A record of a dead process is told from a live one by the process's start time,
so a reused pid is never taken for ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from replicator.attach.handshake import Endpoint


@dataclass(frozen=True)
class Attachment:
    """One attached device and how it is kept. Times are seconds, sizes bytes; `pid` 0 = not supervised yet."""

    export: str
    endpoint: Endpoint
    index: int = -1
    connections: int = 1
    timeout_s: int = 0
    dead_timeout_s: int = 120
    block_size: int = 0
    read_only: bool = False
    size: int = 0
    pid: int = 0
    pid_started: str = ""

    @property
    def device(self) -> str:
        return f"/dev/nbd{self.index}"

    @property
    def identifier(self) -> str:
        """What the kernel shows in /sys/block/nbdN/backend."""
        return f"farstripe:{self.export}"

    @property
    def supervised(self) -> bool:
        return self.pid > 0 and process_started(self.pid) == self.pid_started != ""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Attachment:
        """Raises ValueError for anything that is not a record."""
        raw = json.loads(text)
        try:
            return cls(**{**raw, "endpoint": Endpoint(**raw["endpoint"])})
        except (TypeError, KeyError) as exc:
            raise ValueError("not an attachment record") from exc


def process_started(pid: int, proc: str = "/proc") -> str:
    """Return a process's start time in clock ticks since boot, or "" when there is none (or only its corpse)."""
    try:
        fields = Path(proc, str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def directory(run: str | os.PathLike[str]) -> Path:
    return Path(run) / "attach"


def path_of(run: str | os.PathLike[str], index: int) -> Path:
    return directory(run) / f"nbd{index}.json"


def save(run: str | os.PathLike[str], attachment: Attachment) -> None:
    """Write the record in one step."""
    path = path_of(run, attachment.index)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(attachment.to_json())
    temporary.replace(path)


def load_all(run: str | os.PathLike[str]) -> list[Attachment]:
    """Return all readable records, by device index. A damaged one is left out: the kernel knows the device."""
    found = []
    for path in directory(run).glob("nbd*.json"):
        if re.fullmatch(r"nbd\d+\.json", path.name):
            with contextlib.suppress(OSError, ValueError):
                found.append(Attachment.from_json(path.read_text()))
    return sorted(found, key=lambda one: one.index)


def remove(run: str | os.PathLike[str], index: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        path_of(run, index).unlink()
