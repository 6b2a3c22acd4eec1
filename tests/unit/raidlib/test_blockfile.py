"""The real file and the fake one keep the same promises."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raidlib.blockfile import BlockFile, OSFile
from raidlib.parity import Scratch
from tests.testing.fakedisk import FakeDisk

SIZE = 64 << 10
Opener = Callable[[], BlockFile]


@pytest.fixture(params=["real", "fake"])
def openers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Opener, Opener]:
    """How to open one file of 64 KiB, shared and exclusively."""
    if request.param == "real":
        path = str(tmp_path / "m")
        OSFile.create(path, SIZE)
        return lambda: OSFile.open(path), lambda: OSFile.open_exclusive(path)
    disk = FakeDisk()
    disk.create("m", SIZE)
    return lambda: disk.open("m"), lambda: disk.open_exclusive("m")


@pytest.fixture
def file(openers: tuple[Opener, Opener]) -> BlockFile:
    return openers[0]()


def test_a_new_file_is_zeroes_of_its_size(file: BlockFile) -> None:
    assert file.size == SIZE
    assert file.pread(SIZE, 0) == bytes(SIZE)


@pytest.mark.parametrize("kind", ["pwrite", "pwritev", "pwrite_durable", "raw_pwrite"])
def test_what_is_written_is_read_by_every_way_of_reading(file: BlockFile, kind: str) -> None:
    if kind == "pwritev":
        file.pwritev([b"ab", memoryview(b"cd"), bytearray(b"ef")], 100)
    else:
        getattr(file, kind)(memoryview(b"abcdef"), 100)
    assert file.pread(8, 99) == b"\0abcdef\0"
    buf = bytearray(6)
    assert file.preadinto(buf, 100) == 6 and buf == b"abcdef"
    view = memoryview(bytearray(6))
    assert file.raw_preadv([view], 100) == 6 and view == b"abcdef"
    page = Scratch(1, 4096).spans[0].view
    file.read_medium(page, 0)
    assert page[99:107] == b"\0abcdef\0"


def test_more_buffers_than_one_system_call_takes_are_written(file: BlockFile) -> None:
    file.pwritev([bytes([i % 256]) for i in range(1500)], 0)
    assert file.pread(1500, 0) == bytes(i % 256 for i in range(1500))


def test_a_punched_range_reads_as_zeroes_and_the_size_stays(file: BlockFile) -> None:
    file.pwrite(b"x" * SIZE, 0)
    file.punch(1000, 9000)
    assert file.pread(SIZE, 0) == b"x" * 1000 + bytes(9000) + b"x" * (SIZE - 10000)
    file.punch(0, 0)
    assert file.size == SIZE


def test_reading_beyond_the_end_is_an_error(file: BlockFile) -> None:
    with pytest.raises(OSError) as caught:
        file.pread(10, SIZE - 5)
    assert caught.value.errno == errno.EIO


def test_a_second_exclusive_user_is_told_it_is_busy(openers: tuple[Opener, Opener]) -> None:
    first = openers[1]()
    with pytest.raises(OSError) as caught:
        openers[1]()
    assert caught.value.errno == errno.EBUSY
    first.close()
    openers[1]().close()


def test_sync_returns(file: BlockFile) -> None:
    file.pwrite(b"x", 0)
    file.fdatasync()


def test_only_files_and_devices_are_opened(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        OSFile.open(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a regular file nor a block device"):
        OSFile.open(str(tmp_path / "fifo"))


def test_creating_over_an_existing_file_is_refused(tmp_path: Path) -> None:
    OSFile.create(str(tmp_path / "m"), 4096)
    with pytest.raises(FileExistsError):
        OSFile.create(str(tmp_path / "m"), 4096)


@pytest.mark.parametrize("modes", [1, 2])
def test_punching_falls_back_where_the_medium_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: int
) -> None:
    OSFile.create(str(tmp_path / "m"), SIZE)
    file = OSFile.open(str(tmp_path / "m"))
    file.pwrite(b"x" * SIZE, 0)
    refused: list[int] = []

    class Library:
        """fallocate that refuses the first modes it is asked for."""

        @staticmethod
        def fallocate(_fd: int, mode: int, _off: int, _length: int) -> int:
            refused.append(mode)
            return -1

    monkeypatch.setattr("raidlib.blockfile._libc", Library)
    monkeypatch.setattr("raidlib.blockfile.get_errno", lambda: errno.EOPNOTSUPP)
    for _ in range(modes):
        file.punch(100, 5000)
    assert file.pread(SIZE, 0) == b"x" * 100 + bytes(5000) + b"x" * (SIZE - 5100)
    assert len(refused) == 2, "what is not supported is not asked for again"


def test_reading_once_gives_the_same_bytes_and_does_not_fill_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "member"
    data = os.urandom(8 << 20)
    path.write_bytes(data)
    with path.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file = OSFile.open(str(path))
    buf = memoryview(bytearray(1 << 20))
    for at in range(0, len(data), len(buf)):
        assert file.raw_preadv([buf], at, file.once_flags) == len(buf)
        assert buf == data[at : at + len(buf)]
    if file.once_flags:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert resident_pages(mapped) < 1024
    file.close()


def resident_pages(mapped: mmap.mmap) -> int:
    """How many pages of a mapping are in memory, as mincore(2) says."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    view = np.frombuffer(mapped, dtype=np.uint8)
    found = ctypes.create_string_buffer(-(-len(mapped) // mmap.PAGESIZE))
    assert libc.mincore(view.ctypes.data, len(mapped), found) == 0
    del view
    return sum(byte & 1 for byte in found.raw)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_that_takes_no_bytes_is_an_error_and_not_an_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path = str(tmp_path / "m")
    OSFile.create(path, SIZE)
    file = OSFile.open(path)
    monkeypatch.setattr(os, "pwrite", lambda *_args: 0)
    monkeypatch.setattr(os, "pwritev", lambda *_args: 0)
    with pytest.raises(OSError, match="takes no bytes"):
        (file.pwrite_durable if durable else file.pwrite)(b"x" * 512, 0)
