"""Our nodes, started and driven through the real command line, as a user would.

Counters of a running pair are read from the group's page (replicator.journal.page), because asking through the control
socket every few milliseconds would be part of what is measured.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import unix_uri
from benchmarks.workspace import BenchmarkError, Workspace, wait_for
from replicator.control import ControlClient
from replicator.core.errors import FarstripeError

CHECKOUT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One farstripe node in a workspace: `farstripe node init` and `start`; stopped when the workspace closes."""

    def __init__(self, space: Workspace, name: str) -> None:
        self.name = name
        self.directory = space.path / name
        self.directory.mkdir()
        self.state = self.directory / "state"
        self.run_dir = space.sockets / name
        self.port = free_port()
        self.run("node", "init", name, "--replication-port", str(self.port))
        self._clients: dict[str, ControlClient] = {}
        space.on_close(self.end)
        self.start()

    def run(self, *words: str, timeout_s: float = 120) -> Any:
        """Run one `farstripe … --json` command and return its decoded output. Raises BenchmarkError with its error."""
        argv = [
            sys.executable, "-m", "replicator.cli.main", "--state", str(self.state), "--run", str(self.run_dir),
            *words, "--json",
        ]  # fmt: skip
        done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            raise BenchmarkError(f"farstripe {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def start(self) -> None:
        """Start what does not run of target and replicator."""
        self.run("node", "start")

    def make_pool(self, level: str, members: int, member_bytes: int, *options: str) -> list[Path]:
        """Make the node's pool: one RAID group of `members` new files, which are returned.

        options: more words for `farstripe pool create`.
        """
        paths = [self.directory / f"member{i}" for i in range(members)]
        self.run("pool", "create", "pool", level, *map(str, paths), "--make-files", str(member_bytes), *options)
        return paths

    def make_volume(self, name: str, size_bytes: int) -> None:
        """Make a volume whose space is taken at once."""
        self.run("volume", "create", name, "--size", str(size_bytes), "--thick")

    def ask(self, op: str, *, process: str = "target", **arguments: object) -> Any:
        """Call `process` over a connection that stays: where starting a command would be part of what is measured, or
        take longer than all the rest.

        Raises BenchmarkError with its error.
        """
        if process not in self._clients:
            self._clients[process] = ControlClient(self.run_dir / f"{process}.sock", 300)
        try:
            return self._clients[process].call(op, **arguments)
        except FarstripeError as e:
            raise BenchmarkError(f"{op}: {e.message}") from e

    def uri(self, volume: str) -> str:
        """The NBD URI of `volume`."""
        return unix_uri(self.run_dir / "nbd.sock", volume)

    def pid(self, process: str) -> int:
        """Process id of `target` or `replicator`. Raises BenchmarkError when it does not run."""
        try:
            pid = int((self.run_dir / f"{process}.pid").read_text().split()[0])
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError, IndexError) as e:
            raise BenchmarkError(f"the {process} of node {self.name} does not run") from e
        if str(self.run_dir) not in arguments:
            raise BenchmarkError(f"process {pid} is not the {process} of node {self.name}")
        return pid

    def kill(self, process: str) -> None:
        """SIGKILL `target` or `replicator` and wait until it is gone."""
        pid = self.pid(process)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _alive(pid), f"end of process {pid}", 10)

    def peak_memory_bytes(self, process: str) -> int:
        """The most memory that `process` has had resident since it started."""
        for line in Path(f"/proc/{self.pid(process)}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise BenchmarkError(f"no memory figure for the {process} of node {self.name}")

    def cpu_seconds(self, process: str) -> float:
        """Processor time that `process` has used since it started."""
        fields = Path(f"/proc/{self.pid(process)}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Stop both processes, by force when they do not end."""
        try:
            self.run("node", "stop", "--force", "--timeout", "5")
        except (BenchmarkError, subprocess.TimeoutExpired):
            for process in ("target", "replicator"):
                try:
                    self.kill(process)
                except BenchmarkError:
                    pass  # it is gone already


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
