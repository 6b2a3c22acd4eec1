"""Rows run end to end at tiny sizes: the figures mean nothing, the machinery is what is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import Load, fio, nbdcopy
from benchmarks.peers import FilePlugin, QemuMirror
from benchmarks.workspace import Workspace
from tests.testing.needs import needs
from tests.testing.uml import MODULES, UML

pytestmark = pytest.mark.system  # starts real nodes

CHECKOUT = Path(__file__).resolve().parents[3]
SIZE = 8 << 20


def test_qemu_mirror_carries_every_write_to_its_target(tmp_path: Path) -> None:
    needs("fio", "nbdkit", "qemu-storage-daemon")
    with Workspace(tmp_path) as space:
        for copy_mode in ("write-blocking", "background"):
            mirror = QemuMirror(space, copy_mode, SIZE, copy_mode, 65536)
            before = mirror.target.file.read_bytes()
            assert fio(mirror.uri, Load("randwrite", 4096, 4), 0.2, SIZE).iops > 0
            mirror.drain()
            assert mirror.file.read_bytes() == mirror.target.file.read_bytes() != before


def test_workspace_ends_its_processes_and_removes_its_files(tmp_path: Path) -> None:
    needs("nbdkit", "nbdcopy")
    with Workspace(tmp_path) as space:
        served = FilePlugin(space, "a", SIZE)
        copy = space.path / "copy"
        copy.touch()
        assert nbdcopy(served.uri, str(copy)) > 0
        assert copy.read_bytes() == served.file.read_bytes()
        sockets = space.sockets
    assert list(tmp_path.iterdir()) == []
    assert not sockets.exists()


def run_rows(rows: str, directory: Path) -> dict[str, dict[str, object]]:
    """Run the benchmark as a user does, tiny; returns its results by name."""
    argv = [
        sys.executable, "-m", "benchmarks", "--json", "--rows", rows, "--seconds", "0.2", "--rounds", "1",
        "--size-mb", "16", "--resync-mb", "16", "--dir", str(directory),
    ]  # fmt: skip
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(directory.iterdir()) == []
    return {row["name"]: row for row in json.loads(done.stdout)["results"]}


def test_an_unreplicated_row_is_measured(tmp_path: Path) -> None:
    needs("fio", "nbdkit", "nbdcopy")
    results = run_rows("raid6-seqwrite-256k", tmp_path)
    assert results["raid6-seqwrite-256k"]["ratio"] > 0  # type: ignore[operator]


def test_replicated_rows_are_measured(tmp_path: Path) -> None:
    needs("fio", "nbdkit", "nbdcopy", "qemu-storage-daemon")
    results = run_rows("async-randwrite-4k,sync-randwrite-4k-qd1,resync-1g,ship-64k-zstd,takeover", tmp_path)
    assert set(results) == {
        "async-randwrite-4k", "sync-randwrite-4k-qd1", "resync-1g", "ship-64k-zstd", "takeover-first-write",
    }  # fmt: skip
    assert all(row["ratio"] > 0 for row in results.values())  # type: ignore[operator]


def test_rows_of_a_pool_are_measured(tmp_path: Path) -> None:
    needs("fio", "nbdkit", "nbdcopy")
    results = run_rows("degraded-read-64k-two,rebuild-raid6,scrub-raid6,snapshot-1tib,memory-per-tib", tmp_path)
    assert len(results) == 5
    assert all(row["ratio"] > 0 for row in results.values())  # type: ignore[operator]


def test_md_is_measured_in_a_guest(tmp_path: Path) -> None:
    needs("fio", "nbdkit", "nbdcopy", root=True, files=(UML, MODULES))
    results = run_rows("raid6-seqwrite-256k-vs-md", tmp_path)
    assert results["raid6-seqwrite-256k-vs-md"]["peer"] > 0  # type: ignore[operator]
