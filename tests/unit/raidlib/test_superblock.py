from __future__ import annotations

import uuid

import pytest

from raidlib.errors import IntegrityError
from raidlib.superblock import (
    SUPERBLOCK_BYTES,
    Layout,
    Superblock,
    erase_superblock,
    read_superblock,
    write_superblock,
)
from tests.testing.fakedisk import FakeDisk, FakeFile

BLOCK = Superblock(uuid.uuid4().hex, uuid.uuid4().hex, 1 << 20, Layout(16384, 4096, 20480, 8192, 4096, 45056, 0, 49152))


def file_with(block: Superblock | None) -> FakeFile:
    disk = FakeDisk()
    disk.create("m", 1 << 20)
    file = disk.open("m")
    if block is not None:
        write_superblock(file, block)
    return file


def test_what_was_written_is_read() -> None:
    assert read_superblock(file_with(BLOCK)) == BLOCK


def test_a_file_without_one_is_nobodys() -> None:
    assert read_superblock(file_with(None)) is None


@pytest.mark.parametrize("copy", [0, 1])
def test_either_copy_will_do(copy: int) -> None:
    file = file_with(BLOCK)
    file.pwrite(b"x" * 512, copy * SUPERBLOCK_BYTES)
    assert read_superblock(file) == BLOCK


def test_an_unreadable_first_copy_is_no_obstacle() -> None:
    file = file_with(BLOCK)
    file._disk.fail_reads("m", 0, 512)
    assert read_superblock(file) == BLOCK


def test_two_damaged_copies_are_an_integrity_error() -> None:
    file = file_with(BLOCK)
    for copy in (0, 1):
        file.pwrite(b"\xff", copy * SUPERBLOCK_BYTES + 60)
    with pytest.raises(IntegrityError, match="m: superblock is damaged"):
        read_superblock(file)


def test_it_survives_a_power_cut_as_soon_as_it_is_written() -> None:
    file = file_with(BLOCK)
    file._disk.crash(lambda _i, _w: "drop")
    assert read_superblock(file._disk.open("m")) == BLOCK


def test_erasing_makes_the_file_nobodys() -> None:
    file = file_with(BLOCK)
    erase_superblock(file)
    assert read_superblock(file) is None
