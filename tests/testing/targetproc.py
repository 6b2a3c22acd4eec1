"""A real target process (nbdkit with our plugin) in a directory of the test's own, to be stopped, killed and restarted.

Socket paths must stay under 108 bytes and pytest's directories do not, so the run directory is a short one in /tmp.
Nothing is left behind: close() kills by process id and removes both directories.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbd

from nbdplugin.launch import start_in_background
from replicator.control import ControlClient

MIB = 1 << 20


class TargetProcess:
    """One node's target. `start` before anything else; ops go through `call`."""

    def __init__(self, name: str = "n1", *, threads: int | None = None, nbd_port: int | None = None) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
        self.state, self.run, self.disks = self.base / "state", self.base / "run", self.base / "disks"
        for directory in (self.state, self.run, self.disks):
            directory.mkdir()
        config: dict[str, Any] = {"node_id": os.urandom(16).hex(), "name": name, "nbd": {"port": nbd_port}}
        if threads is not None:
            config["threads"] = threads
        (self.state / "node.json").write_text(json.dumps(config), encoding="utf-8")
        self.pid = 0
        self.client = ControlClient(self.run / "target.sock", timeout_s=30)

    def start(self) -> TargetProcess:
        """Start and wait until it serves."""
        self.pid = start_in_background(self.state, self.run, timeout_s=60)
        return self

    def call(self, op: str, **args: Any) -> Any:
        """Run a control operation."""
        return self.client.call(op, **args)

    def make_pool(
        self, *, level: int = 0, members: int = 6, size: int = 64 * MIB, checksums: bool = False, **more: Any
    ) -> None:
        """Make a pool "pool" with one RAID group "g" over sparse files."""
        paths = [self.disk(f"d{i}", size) for i in range(members)]
        groups = [{"name": "g", "level": level, "members": paths, "chunk": 64 << 10, "checksums": checksums}]
        self.call("pool.create", name="pool", groups=groups, area_bytes=MIB, **more)

    def disk(self, name: str, size: int = 64 * MIB) -> str:
        """Make a sparse file to be a member; returns its path."""
        path = self.disks / name
        with path.open("wb") as f:
            f.truncate(size)
        return str(path)

    def uri(self, volume: str) -> str:
        """The NBD URI of a volume."""
        return f"nbd+unix:///{quote(volume)}?socket={self.run / 'nbd.sock'}"

    def connect(self, volume: str) -> nbd.NBD:
        """Connect a libnbd handle."""
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.connect_uri(self.uri(volume))
        return handle

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._end(signal.SIGKILL)

    def terminate(self, timeout_s: float = 30.0) -> None:
        """SIGTERM; returns when it is gone. AssertionError when it does not go."""
        self._end(signal.SIGTERM, timeout_s)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait until it has ended by itself; returns the wait status."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                self.client.close()
                return status
            time.sleep(0.01)
        raise AssertionError(f"the target did not end within {timeout_s} s\n{self.log()[-2000:]}")

    def _end(self, number: int, timeout_s: float = 30.0) -> None:
        if self.pid:
            os.kill(self.pid, number)
            self.wait(timeout_s)

    def log(self) -> str:
        """What it has printed."""
        with contextlib.suppress(FileNotFoundError):
            return (self.run / "target.log").read_text(errors="replace")
        return ""

    def close(self) -> None:
        """End it and remove everything."""
        try:
            self.kill()
        finally:
            self.client.close()
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> TargetProcess:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
