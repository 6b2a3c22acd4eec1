"""The real files under a group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.journal.files import MappedFile, PlainFile


def test_a_made_file_has_its_size_and_reads_as_zeroes(tmp_path: Path) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=10000)
    assert file.size == 10000
    assert file.pread(10000, 0) == bytes(10000)
    assert (tmp_path / "f").stat().st_blocks * 512 >= 10000, "preallocated: a journal never runs out of space"


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        PlainFile(tmp_path / "f", create_bytes=10)
    assert (tmp_path / "f").read_bytes() == b"precious"


def test_buffers_are_written_back_to_back(tmp_path: Path) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=100)
    file.pwritev((b"ab", memoryview(b"cde")), 10)
    file.pwrite(b"f", 15)
    file.fdatasync()
    assert file.pread(6, 10) == b"abcdef"


def test_short_system_calls_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=100)
    pwrite, pwritev, pread = os.pwrite, os.pwritev, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, buf, off: pwrite(fd, bytes(buf)[:3], off))
    monkeypatch.setattr(os, "pwritev", lambda fd, bufs, off: pwritev(fd, [b"".join(bufs)[:4]], off))
    monkeypatch.setattr(os, "pread", lambda fd, n, off: pread(fd, min(n, 3), off))
    file.pwritev((b"abcde", b"fghij"), 0)
    file.pwrite(b"0123456789", 20)
    assert file.pread(10, 0) == b"abcdefghij"
    assert file.pread(10, 20) == b"0123456789"


def test_reading_beyond_the_end_gives_what_there_is(tmp_path: Path) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=10)
    assert file.pread(20, 5) == bytes(5)
    assert file.preadinto(bytearray(20), 5) == 5


def test_a_mapped_file_keeps_what_was_stored(tmp_path: Path) -> None:
    mapped = MappedFile(tmp_path / "m", 5000)
    mapped.buf[4999] = 7
    mapped.sync()
    assert (tmp_path / "m").read_bytes()[4999] == 7
    mapped.close()
    assert MappedFile(tmp_path / "m", 5000).buf[4999] == 7


def test_a_mapped_file_that_is_too_short_grows_by_zeroes(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\1" * 10)
    mapped = MappedFile(tmp_path / "m", 5000)
    assert mapped.buf[:11] == b"\1" * 10 + b"\0"
    assert len(mapped.buf) == 5000


def test_only_what_was_never_written_is_known_to_be_blank(tmp_path: Path) -> None:
    file = PlainFile(tmp_path / "f", create_bytes=1 << 20)
    assert file.known_blank(0)
    file.pwrite(b"x", 700_000)
    assert not file.known_blank(0)
    file.fdatasync()
    file.close()
    again = PlainFile(tmp_path / "f")
    assert not again.known_blank(0)
    assert again.known_blank(800_000)
    again.close()
