"""One node of the demo, driven through the farstripe command as anybody would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class DemoError(Exception):
    """A step that had to work did not; the message says which, and what it said."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """A node in `root`: disks, state and run directory."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.state, self.run = root / "state", root / "run"
        self.environment = {"FARSTRIPE_STATE": str(self.state), "FARSTRIPE_RUN": str(self.run)}
        root.mkdir()

    @property
    def socket(self) -> Path:
        return self.run / "nbd.sock"

    def farstripe(self, *args: object, timeout_s: float = 120.0) -> str:
        """Run a farstripe command on this node; returns what it printed. DemoError when it fails."""
        argv = [sys.executable, "-m", "replicator.cli.main", *map(str, args)]
        try:
            done = subprocess.run(
                argv, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DemoError(f"on {self.name}: farstripe {args[0]} … did not end in {timeout_s:g} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise DemoError(f"on {self.name}: farstripe {' '.join(map(str, args))}\n{said}\n{self._logs()}")
        return done.stdout

    def json(self, *args: object, timeout_s: float = 120.0) -> Any:
        return json.loads(self.farstripe(*args, "--json", timeout_s=timeout_s))

    def _logs(self) -> str:
        parts = []
        for process in ("target", "replicator"):
            with contextlib.suppress(OSError):
                parts += [f"last lines of {self.name}'s {process}:"]
                parts += (self.run / f"{process}.log").read_text().splitlines()[-6:]
        return "\n".join(parts)

    def make(self, member_bytes: int) -> None:
        """Init, start, and a pool of two RAID groups: RAID-6 over six files, RAID-0 over two."""
        self.farstripe("node", "init", self.name, "--replication-port", free_port())
        self.farstripe("node", "start")
        disks = [self.root / f"disk{n}" for n in range(8)]
        layout = ["raid6", *disks[:6], "raid0", *disks[6:]]
        self.farstripe("pool", "create", "pool", *layout, "--make-files", member_bytes)

    def pids(self) -> list[int]:
        """Every process of this node: those whose command line names its run directory."""
        mark, found = str(self.run).encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """SIGKILL target and replicator at once, as if the machine had gone."""
        pids = []
        for process in ("target", "replicator"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pids.append(int((self.run / f"{process}.pid").read_text().split()[0]))
        for pid in set(pids) & set(self.pids()):
            os.kill(pid, signal.SIGKILL)

    def erase(self) -> None:
        """Kill whatever is left of the node's processes."""
        for _ in range(50):
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.1)
