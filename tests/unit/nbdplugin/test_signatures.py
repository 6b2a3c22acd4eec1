"""What a future member holds is recognised, and what holds nothing is left in peace."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from nbdplugin import signatures
from replicator.core.errors import MediumError, Refused
from tests.testing.needs import needs

MIB = 1 << 20
LUKS = b"LUKS\xba\xbe\0\1" + bytes(160) + b"5f4dcc3b-5aa7-65d6-1d83-27deb882cf99\0\0\0\0" + bytes(384)
MBR = bytes(446) + struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\0\2\0", 2048, 8192) + bytes(48) + b"\x55\xaa"


def disk(folder: Path, start: bytes = b"", size: int = 16 * MIB) -> str:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(size)
        file.write(start)
    return str(path)


@pytest.mark.parametrize(("start", "words"), [(LUKS, "of type crypto_LUKS"), (MBR, "a partition table (dos)")])
def test_what_a_disk_holds_is_named(tmp_path: Path, start: bytes, words: str) -> None:
    needs("blkid")
    assert words in signatures.signature_of(disk(tmp_path, start))


def test_a_file_system_is_named_with_its_label(tmp_path: Path) -> None:
    needs("blkid")
    needs("mke2fs")
    path = disk(tmp_path)
    mke2fs = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    subprocess.run([str(mke2fs), "-q", "-F", "-t", "ext4", "-L", "accounts", path], check=True)
    assert signatures.signature_of(path) == "a file system of type ext4, label accounts"
    with pytest.raises(Refused, match="accounts, which would be overwritten") as caught:
        signatures.refuse_signatures([path])
    assert "--force" in caught.value.way_out


def test_zeroes_and_unknown_bytes_hold_nothing(tmp_path: Path) -> None:
    needs("blkid")
    assert signatures.signature_of(disk(tmp_path)) == ""
    assert signatures.signature_of(disk(tmp_path, b"just a file" * 500)) == ""


def test_a_path_that_cannot_be_read_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    signatures.refuse_signatures([str(tmp_path / "missing"), str(tmp_path), "/dev/null"])


def test_where_a_partition_lies_is_not_what_it_holds() -> None:
    assert signatures._in_words({"PART_ENTRY_SCHEME": "gpt", "PART_ENTRY_NUMBER": "1"}) == ""


def test_a_disk_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "blkid"
    hangs.write_text("#!/bin/sh\nexec sleep 20\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(signatures.shutil, "which", lambda *_, **__: str(hangs))
    monkeypatch.setattr(signatures, "ASK_S", 0.2)
    began = time.monotonic()
    with pytest.raises(MediumError, match="did not let itself be read"):
        signatures.signature_of(disk(tmp_path))
    assert time.monotonic() - began < 5


def test_without_blkid_both_ends_must_be_zeroes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures.shutil, "which", lambda *_, **__: None)
    assert signatures.signature_of(disk(tmp_path)) == ""
    assert "not installed" in signatures.signature_of(disk(tmp_path, b"x"))
    assert "not installed" in signatures.signature_of(disk(tmp_path, bytes(16 * MIB - 1) + b"x"))
    assert signatures.signature_of(str(tmp_path / "missing")) == ""
