"""Filling a member many rows at a time: reads and writes overlap, and nobody goes on before all is written."""

from __future__ import annotations

import threading

import pytest

from raidlib import Pool
from raidlib.errors import MediumError
from tests.testing.fakedisk import FakeDisk, FakeFile
from tests.testing.pools import AREA, new_pool, pattern, states

SHAPES = [(1, 2), (5, 3), (6, 4), (10, 4)]
SIZE = 6 * AREA


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a slice, and files that threads are worth it for."""
    monkeypatch.setattr("raidlib.fillrows.SLICE_BYTES", 4096)
    monkeypatch.setattr(FakeFile, "parallel_sync", True)


def degraded(level: int, members: int, checksums: bool) -> tuple[FakeDisk, Pool]:
    disk, pool = new_pool(level, members, checksums=checksums)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    disk.create("new", len(disk.peek("m1", 0, 1 << 30)))
    pool.fail_member("m1")
    pool.replace_member("m1", "new", disk.open_exclusive)
    return disk, pool


def rebuild(pool: Pool) -> None:
    while pool.rebuild_step():
        pass


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_what_was_filled_in_slices_is_right(level: int, members: int, checksums: bool) -> None:
    _, pool = degraded(level, members, checksums)
    rebuild(pool)
    assert set(states(pool)) == {"in_sync"}
    pool.fail_member("m0")
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_slice_is_written_while_the_next_one_is_read(
    level: int, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raidlib.fillrows.READ_AHEAD", 1)
    writing, read_meanwhile = threading.Event(), threading.Event()

    def before(disk: FakeDisk, op: str, name: str, off: int, length: int, data: bytes = b"") -> None:
        if op == "read" and name != "new" and off >= second and not read_meanwhile.is_set():
            assert writing.wait(20), "the second slice is read, and the first one is not being written"
            read_meanwhile.set()

    def pwrite(self: FakeFile, buf: memoryview, off: int) -> None:
        if self.path == "new" and not read_meanwhile.is_set():
            writing.set()
            assert read_meanwhile.wait(20), "the second slice is not read while the first one is written"
        good(self, buf, off)

    good = FakeFile.pwrite
    _, pool = degraded(level, members, False)
    second = pool._groups[0].member_offset(0) + 4096
    monkeypatch.setattr(FakeDisk, "before", before)
    monkeypatch.setattr(FakeFile, "pwrite", pwrite)
    rebuild(pool)
    assert read_meanwhile.is_set() and set(states(pool)) == {"in_sync"}


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_a_write_behind_that_fails_fails_the_new_member(level: int, members: int) -> None:
    disk, pool = degraded(level, members, False)
    at = pool._groups[0].member_offset(1)
    disk.fail_writes("new", at + 4096, at + 8192)
    rebuild(pool)
    assert states(pool)[1] == "failed" and states(pool).count("in_sync") == members - 1
    assert pool.volume("v").pread(SIZE, 0) == pattern(SIZE)


@pytest.mark.parametrize(("level", "members"), [(1, 2), (5, 3)])
def test_a_source_that_cannot_be_read_half_way_stops_the_rebuild_and_nothing_is_called_right(
    level: int, members: int
) -> None:
    disk, pool = degraded(level, members, False)
    at = pool._groups[0].member_offset(0)
    disk.fail_reads("m0", at + 4096, at + 8192)
    with pytest.raises(MediumError):
        rebuild(pool)
    assert states(pool)[1] == "rebuilding" and pool._groups[0].members[1].rebuilt_rows <= 1
