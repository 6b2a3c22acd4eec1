"""What a group retains on this node: its policy, and the ring of pre-images under it.

    STATE/groups/<uuid>/retention.json   {"bytes", "seconds", "path", "keep_image", "failed"}; none: nothing is retained
    STATE/groups/<uuid>/preimages        the ring, or a symbolic link to where it is

The policy belongs to the node: a group retains here and not there. It is written before anything acts on it, so a crash
leaves retention off, or on with a whole ring. A ring that could not be written has `failed` with the reason, which is
durable before anything is applied without being recorded; only a new ring ends that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbdplugin import arguments
from replicator.capture.engine import GroupEngine
from replicator.capture.preimages.frames import Instant
from replicator.capture.preimages.instants import format_time
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.preimages.window import DATA_START, LEAST_BYTES, Window
from replicator.capture.state import SECONDARY
from replicator.core.errors import AlreadyExists, BadInput, FarstripeError, MediumError
from replicator.journal.files import PlainFile, sync_directory
from replicator.journal.page import APPLIED_SEQ

DEFAULT_BYTES = 1 << 30
"""Of a window that is bounded by time alone."""

_RING, _NEW = "preimages", "preimages.new"

Note = Callable[[str], None]


@dataclass
class Policy:
    """Bytes of the ring's file (0: nothing is retained), age in seconds (0: no limit), where the file is ("": here)."""

    bytes: int = 0
    seconds: float = 0.0
    path: str = ""
    keep_image: bool = True
    """Before a resync, the last consistent image is kept as a snapshot until it is complete."""
    failed: str = ""

    @classmethod
    def load(cls, directory: Path) -> Policy:
        """Read the policy of the group in `directory`. Raises MediumError."""
        try:
            return cls(**json.loads((directory / "retention.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as e:
            raise MediumError(f"{directory / 'retention.json'} cannot be read: {e}", "remove it") from e

    def save(self, directory: Path) -> None:
        """Durable: the policy. Raises OSError."""
        fresh = directory / "retention.json.new"
        with fresh.open("w", encoding="utf-8") as f:
            json.dump(asdict(self), f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(directory / "retention.json")
        sync_directory(directory)


def open_recorder(directory: Path, uuid: str, note: Note) -> PreImages | None:
    """Open the ring of a group that retains; None when it does not, or no longer can, which `note` is told."""
    try:
        policy = Policy.load(directory)
        if not policy.bytes:
            remove_rings(directory)
        if not policy.bytes or policy.failed:
            return None
    except MediumError as e:
        note(str(e))
        return None
    give_up = _giver(directory, note)
    try:
        window = Window.open(PlainFile(directory / _RING), bytes.fromhex(uuid))
    except (OSError, FarstripeError) as e:
        give_up(str(e))
        return None
    window.keep_ns = int(policy.seconds * 1e9)
    return PreImages(window, give_up)


def _giver(directory: Path, note: Note) -> Note:
    def give_up(reason: str) -> None:
        policy = Policy.load(directory)
        policy.failed = reason
        policy.save(directory)
        note(reason)

    return give_up


def change(engine: GroupEngine, directory: Path, wanted: Policy, note: Note) -> None:
    """Retain as `wanted` from now on. A ring of another size or place begins a new window; the old one is gone.

    Durable: the policy, and the ring. Raises BadInput, AlreadyExists, MediumError; then all is as before, but that a
    ring whose place is to be used again is gone, and nothing is retained.
    """
    now = Policy.load(directory)
    if wanted.bytes and wanted.bytes < LEAST_BYTES:
        raise BadInput(f"a window of {wanted.bytes} bytes is too small", f"give at least {LEAST_BYTES}")
    if (wanted.bytes, wanted.path) == (now.bytes, now.path) and not now.failed:
        wanted.save(directory)
        if engine.preimages is not None:
            engine.preimages.window.keep_ns = int(wanted.seconds * 1e9)
        return
    again = bool(wanted.path) and wanted.path == now.path
    if again:
        _turn_off(engine, directory, wanted.keep_image)
    if wanted.bytes:
        _make_ring(directory, wanted)
    if not again:
        _turn_off(engine, directory, wanted.keep_image)
    if wanted.bytes:
        (directory / _NEW).rename(directory / _RING)
        wanted.save(directory)
        _turn_on(engine, directory, note)


def _turn_off(engine: GroupEngine, directory: Path, keep_image: bool) -> None:
    with engine.apply_lock:
        Policy(keep_image=keep_image).save(directory)
        engine.preimages = None
    _remove(directory / _RING)


def remove_rings(directory: Path) -> None:
    """Remove the file of the ring, wherever it is, and what a crash left of another one."""
    _remove(directory / _RING)
    _remove(directory / _NEW)


def _remove(ring: Path) -> None:
    if ring.is_symlink():
        ring.resolve().unlink(missing_ok=True)
    ring.unlink(missing_ok=True)


def _make_ring(directory: Path, wanted: Policy) -> None:
    """Make a ring beside the one in use. Durable: it."""
    _remove(directory / _NEW)
    path = Path(arguments.new_file(wanted.path)) if wanted.path else directory / _NEW
    try:
        file = PlainFile(path, create_bytes=wanted.bytes)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists", "name a file that does not exist yet") from None
    except OSError as e:
        raise MediumError(
            f"a window of {wanted.bytes} bytes cannot be made at {path}: {e.strerror or e}",
            "make room there, or give another size (--bytes) or place (--path)",
        ) from e
    try:
        Window.create(file, bytes.fromhex(directory.name), wanted.bytes)
    finally:
        file.close()
    if wanted.path:
        (directory / _NEW).symlink_to(path)
    sync_directory(directory)


def _turn_on(engine: GroupEngine, directory: Path, note: Note) -> None:
    recorder = open_recorder(directory, engine.state.uuid, note)
    if recorder is None:
        raise MediumError("the window cannot be opened", "see farstripe events")
    with engine.apply_lock:
        recorder.settle(engine)
        if engine.state.role == SECONDARY and engine.page[APPLIED_SEQ] == engine.pos:
            recorder.begin(engine)  # else it begins with the first record that is not here yet
        engine.preimages = recorder


def facts(engine: GroupEngine, directory: Path) -> dict[str, Any] | None:
    """What status tells of a group's window; None when nothing is retained. Sizes are bytes, times nanoseconds."""
    try:
        policy = Policy.load(directory)
    except MediumError as e:
        return {"failed": str(e)}
    recorder = engine.preimages
    if not policy.bytes:
        return None
    spans = [] if recorder is None or recorder.failed or not recorder.window.active else list(recorder.window.spans)
    return {
        "bytes": policy.bytes,
        "seconds": policy.seconds or None,
        "path": policy.path or None,
        "failed": policy.failed or None,
        "used": recorder.window.used_bytes + DATA_START if recorder is not None and spans else 0,
        "from": _instant(spans[0].first) if spans else None,
        "to": _instant(spans[-1].last) if spans else None,
        "spans": [{"from": _instant(span.first), "to": _instant(span.last)} for span in spans],
    }


def _instant(instant: Instant) -> dict[str, Any]:
    return {
        "seq": instant.seq,
        "epoch": instant.epoch,
        "time_ns": instant.time_ns or None,
        "time": format_time(instant.time_ns) if instant.time_ns else None,
    }
