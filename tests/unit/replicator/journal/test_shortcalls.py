"""Short writes write what os.pwritev writes, report what it reports, and step aside when the medium is slow."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from replicator.journal import shortcalls
from replicator.journal.files import PlainFile
from replicator.journal.shortcalls import SHORT_BYTES, ShortWrites, write_byte


@pytest.mark.parametrize("size", [0, 1, 4096, SHORT_BYTES - 64, SHORT_BYTES, 3 * SHORT_BYTES])
def test_short_and_long_writes_land_where_they_belong(tmp_path: Path, size: int) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=1 << 20)
    payload = os.urandom(size)
    file.pwritev((b"h" * 64, memoryview(payload)), 4097)
    assert file.pread(64 + size, 4097) == b"h" * 64 + payload
    assert file.pread(4097, 0) == bytes(4097)
    file.close()


def test_an_error_of_the_medium_is_an_oserror_with_its_number() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError) as failed:
        ShortWrites(fd).pwritev((b"x",), 0)
    assert failed.value.errno == errno.ENOSPC
    os.close(fd)


def test_a_closed_file_is_not_written_under_its_old_number(tmp_path: Path) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=8192)
    file.close()
    other = os.open(tmp_path / "g", os.O_RDWR | os.O_CREAT)  # takes the number that was freed
    with pytest.raises(OSError):
        file.pwritev((b"x",), 0)
    assert os.fstat(other).st_size == 0
    os.close(other)


def test_after_a_slow_write_the_next_ones_give_up_the_interpreter_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    kept: list[int] = []
    real = shortcalls._pwrite

    def slow(fd: int, data: bytes, size: int, offset: int) -> int:
        kept.append(offset)
        time.sleep(0.002)
        done: int = real(fd, data, size, offset)
        return done

    monkeypatch.setattr(shortcalls, "_pwrite", slow)
    writes = ShortWrites(fd)
    for offset in (0, 1, 2):
        assert writes.pwritev((b"a",), offset) == 0
    assert kept == [0]
    time.sleep(max(0.0, writes._rest_until - time.monotonic()) + 0.01)
    writes.pwritev((b"a",), 3)
    assert kept == [0, 3]
    assert os.pread(fd, 8, 0) == b"aaaa"
    os.close(fd)


def test_a_short_count_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(fd: int, data: bytes, size: int, offset: int) -> int:
        return os.pwrite(fd, data[: size // 2], offset)

    def cut(fd: int, bufs: Sequence[bytes], offset: int) -> int:
        return os.pwrite(fd, b"".join(bufs)[:7], offset)

    monkeypatch.setattr(shortcalls, "_pwrite", half)
    monkeypatch.setattr(os, "pwritev", cut)
    file = PlainFile(tmp_path / "f", create_bytes=8192)
    file.pwritev((b"header", b"payload"), 100)
    assert file.pread(13, 100) == b"headerpayload"
    file.close()


def test_a_full_fifo_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        for _ in range(1 << 20):
            write_byte(fd)
    os.close(fd)
