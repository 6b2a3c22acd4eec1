"""A member that takes longer than the others is told of, with figures, and stays in use."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[str]:
    """The URI of an export that answers reads and writes 30 ms late."""
    needs("nbdkit")
    file, sock = tmp_path / "slow", tmp_path / "slow.sock"
    with file.open("wb") as f:
        f.truncate(64 * MIB)
    delays = ["rdelay=30ms", "wdelay=30ms"]
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(sock), "--filter=delay", "file", str(file), *delays])
    try:
        deadline = time.monotonic() + 20
        while not sock.exists():
            assert time.monotonic() < deadline, "nbdkit did not start"
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={sock}"
    finally:
        server.kill()  # it would wait for the target, which is still connected
        server.wait()


def test_a_slow_disk_is_seen_while_the_pool_is_used(bare: TargetProcess, slow_disk: str) -> None:
    groups = [{"name": "g", "level": 1, "members": [bare.disk("quick"), slow_disk], "chunk": 64 << 10}]
    bare.call("pool.create", name="pool", groups=groups, area_bytes=MIB)
    bare.call("volume.create", name="v", size=16 * MIB)
    handle = bare.connect("v")
    for at in range(4):
        handle.pwrite(b"data" * 1024, at * MIB)
    deadline = time.monotonic() + 90
    members: list[dict[str, Any]] = []
    while not (members and members[1]["slow"]):
        assert time.monotonic() < deadline, members
        for at in range(8):
            handle.pwrite(b"more" * 1024, at * 4096)
            handle.pread(4096, at * (64 << 10))
        members = bare.call("pool.status")["groups"][0]["members"]
    quick, slow = members
    assert slow["state"] == "in_sync" and slow["write_s"] >= 0.03 and "those of the others" in slow["slow"]
    assert not quick["slow"] and quick["write_s"] < slow["write_s"] / 4
    handle.shutdown()
