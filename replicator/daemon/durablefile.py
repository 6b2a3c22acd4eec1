"""Small JSON files that are whole after any crash: written beside, synced, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from replicator.core.errors import IntegrityError, MediumError
from replicator.journal.files import sync_directory


def write_bytes(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`. Durable: the new content and its name; after a crash the old or the new, whole.

    Raises MediumError that names the file.
    """
    try:
        _write_beside(path, data, mode)
    except OSError as exc:
        raise MediumError(
            f"{path} cannot be written: {exc.strerror or exc}", "make room on its disk, or repair it"
        ) from exc


def _write_beside(path: Path, data: bytes, mode: int) -> None:
    beside = path.with_name(f".{path.name}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(beside, path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, readable by the owner only. Durable: as write_bytes."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return the map in `path`. Raises FileNotFoundError, or IntegrityError when it is not a JSON object."""
    raw = path.read_bytes()
    try:
        value = json.loads(raw)
    except ValueError as exc:
        raise IntegrityError(f"{path} is damaged: {exc}", "restore it from a backup, or remove it") from exc
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is damaged: not a JSON object", "restore it from a backup, or remove it")
    return value


def remove(path: Path) -> None:
    """Remove `path`; nothing happens when it is not there. Durable: its absence. Raises MediumError."""
    try:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as exc:
        raise MediumError(f"{path} cannot be removed: {exc.strerror or exc}", "repair its disk") from exc
