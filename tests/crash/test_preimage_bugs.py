"""Seeded bugs: each breaks one rule of the window, and the crash explorer shows a view that is not what was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest

from replicator.capture.preimages import frames, putback, recorder
from replicator.capture.preimages.frames import Instant
from replicator.capture.preimages.recorder import PreImages
from replicator.capture.preimages.window import Window
from tests.crash import test_preimage_crash
from tests.crash.test_preimage_crash import WORKLOADS, Explorer, small_frames

Patches = list[tuple[Any, str, Any]]
append, before, find_end, begin = Window.append, PreImages.before, Window._find_end, PreImages.begin


def pool_before_ring() -> Patches:
    """A frame is not on stable storage when the pool is changed."""

    def wrong(self: Window, flags: int, epoch: int, entries: Any, data: Any) -> None:
        self._make_room(1 << 16)
        raw = frames.pack(self._super.life, self.head_off, flags, epoch, entries, data)
        self._write(raw, self.head_off)
        self._appended(frames.unpack_head(raw, self._lives(), self.head_off))

    return [(Window, "append", wrong)]


def redo_is_recorded_again() -> Patches:
    """After a crash, records that were recorded are recorded again, from a pool that holds newer bytes."""

    def wrong(self: PreImages, engine: Any, records: Any, view: Any) -> Any:
        if self.window.active and records[0][0].seq <= self.window.last.seq:
            return recorder._Batch(engine, self.window, records, view).record()
        return before(self, engine, records, view)

    return [(PreImages, "before", wrong)]


def a_batch_is_not_played_through() -> Patches:
    """The pre-image of a record ignores what earlier records of its batch have done."""

    def wrong(self: Any, records: Any, runs: Any) -> None:
        for (header, _), run in zip(records, runs, strict=True):
            self._turn(header)
            at = header.offset - (run.start if run else 0)
            data = bytes(run.buf[at : at + header.length]) if run else b""
            self._add(header, header.offset if run else 0, header.length if run else 0, data)
        self._flush()

    return [(recorder._Batch, "_play", wrong)]


def what_a_kill_left_is_not_synced() -> Patches:
    """At start a frame that only the page cache holds counts as recorded."""

    def wrong(self: Window) -> None:
        write, sync = self._write, self._file.fdatasync
        self._write = lambda *_: None  # type: ignore[method-assign]
        self._file.fdatasync = lambda: None  # type: ignore[method-assign]
        try:
            find_end(self)
        finally:
            self._write, self._file.fdatasync = write, sync  # type: ignore[method-assign]

    return [(Window, "_find_end", wrong)]


def hosts_write_behind_its_back() -> Patches:
    """The window goes on over a time as primary."""
    return [(PreImages, "end", lambda self: None)]


def a_resync_counts_as_consistent() -> Patches:
    """Instants between the attach and SYNCED are offered."""

    def wrong(self: Window, flags: int, epoch: int, entries: Any, data: Any) -> None:
        append(self, flags if flags & frames.ATTACH else flags | frames.CONSISTENT, epoch, entries, data)

    return [(Window, "append", wrong)]


def a_window_begins_in_the_middle_of_redo() -> Patches:
    """The base is a position that the pool was beyond when it was stopped."""

    def wrong(self: PreImages, engine: Any, records: Any, view: Any) -> Any:
        self._settled_at = 0
        return before(self, engine, records, view)

    return [(PreImages, "before", wrong)]


def the_newest_pre_image_counts() -> Patches:
    """Each pre-image is put back, so the last one that is stays."""
    return [(putback.Restored, "take", lambda self, offset, length: [(offset, offset + length)])]


def space_is_freed_in_memory_only() -> Patches:
    """The oldest frames are overwritten while the superblock still points at them."""
    write_super = Window._write_super

    def wrong(self: Window, **changes: int) -> None:
        if set(changes) == {"flags", "tail_off", "base_seq", "base_epoch", "base_time"}:
            self._super = self._super._replace(**changes)
        else:
            write_super(self, **changes)

    return [(Window, "_write_super", wrong)]


def the_base_is_a_record_too_early() -> Patches:
    """A new window claims an instant before the newest bytes of the pool."""
    restart = Window.restart

    def wrong(self: Window, base: Instant, *, consistent: bool) -> None:
        restart(self, base._replace(seq=base.seq - 1), consistent=consistent)

    return [(Window, "restart", wrong)]


BUGS: list[tuple[Callable[[], Patches], str]] = [
    (pool_before_ring, "stream"),
    (redo_is_recorded_again, "stream"),
    (a_batch_is_not_played_through, "stream"),
    (what_a_kill_left_is_not_synced, "stream"),
    (hosts_write_behind_its_back, "promotion"),
    (a_resync_counts_as_consistent, "resync"),
    (a_window_begins_in_the_middle_of_redo, "promotion"),
    (the_newest_pre_image_counts, "stream"),
    (space_is_freed_in_memory_only, "stream"),
    (the_base_is_a_record_too_early, "promotion"),
]


@pytest.mark.parametrize(("bug", "workload"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_the_bug_is_found(bug: Callable[[], Patches], workload: str) -> None:
    with small_frames(), ExitStack() as planted:
        planted.enter_context(patch.object(test_preimage_crash, "SEEDS", 6))  # what hardly shows needs some more
        for owner, name, wrong in bug():
            planted.enter_context(patch.object(owner, name, wrong))
        with pytest.raises(AssertionError, match=r"^before |the view at"):
            WORKLOADS[workload][0](Explorer(workload))
            pytest.fail("not found")
