"""Small durable files: what a user reads when one cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from replicator.core.errors import MediumError
from replicator.daemon import durablefile
from replicator.daemon.durablefile import read_json, remove, write_bytes, write_json


def test_a_full_disk_is_named_with_the_file_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.json"
    write_json(path, {"n": 1})
    with monkeypatch.context() as full:
        full.setattr("replicator.daemon.durablefile.os.write", _no_space)
        with pytest.raises(MediumError, match=r"tokens\.json cannot be written: No space"):
            write_json(path, {"n": 2})
    assert read_json(path) == {"n": 1}


def _no_space(_fd: int, _data: object) -> int:
    raise OSError(28, os.strerror(28))


def test_what_cannot_be_removed_is_an_error_of_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    remove(path)  # it is not there
    write_bytes(path, b"1")

    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durablefile, "sync_directory", fails)
    with pytest.raises(MediumError, match="x cannot be removed"):
        remove(path)
