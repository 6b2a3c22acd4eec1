"""What the writer was promised, and whether a disk keeps it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nbd
import writer


@dataclass(frozen=True)
class Entry:
    """A file that was fsynced, and when that was (nanoseconds since 1970)."""

    number: int
    digest: str
    size: int
    safe_ns: int


def read(path: Path) -> list[Entry]:
    """The ledger, oldest first. A last line that was cut short is no promise."""
    entries = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            number, digest, size, safe_ns = line.split()
            entries.append(Entry(int(number), digest, int(size), int(safe_ns)))
    return entries


def keep(path: Path, entries: list[Entry]) -> None:
    """Rewrite the ledger: what a takeover gave up is promised no more."""
    path.write_text("".join(f"{e.number} {e.digest} {e.size} {e.safe_ns}\n" for e in entries))


def missing(entries: list[Entry], root: Path) -> list[Entry]:
    """The files that are not there, whole."""
    lost = []
    for entry in entries:
        try:
            data = (root / f"{entry.number:06d}").read_bytes()
        except OSError:
            data = b""
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.digest:
            lost.append(entry)
    return lost


def last_log_record(socket: Path, export: str) -> int:
    """The highest file number in the log volume, -1 when there is none."""
    log = nbd.NBD()
    log.set_export_name(export)
    log.connect_unix(str(socket))
    last = -1
    for offset in range(0, log.get_size(), 1 << 20):
        data = bytes(log.pread(min(1 << 20, log.get_size() - offset), offset))
        for at in range(0, len(data), writer.LOG_BYTES):
            magic, number = writer.LOG_RECORD.unpack_from(data, at)
            if magic == writer.LOG_MAGIC:
                last = max(last, number)
    return last
