"""Real nodes: target and replicator processes made and driven through the real command line, in temporary directories.

    with NetNS() as net, Node("A", tmp, net) as a, Node("B", tmp, net) as b:
        pair = Pair.create(a, b, mode="sync")
        load = a.load("data", seed=1)
        a.kill("target")
        a.start()
        pair.wait_in_sync()

Set-up and changes go through `farstripe …`, as a user would; looking at a group goes straight to the control socket,
because tests look often. Processes are killed by pid, and only after /proc has shown that the pid is that process of
that node. Directories are short and below /tmp: Unix sockets have paths of 107 bytes at most.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd

from replicator.control import ControlClient
from replicator.core.errors import FarstripeError
from tests.testing.netns import NetNS
from tests.testing.stamped import BLOCK, Ledger, StampedLoad, read_generations

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PROCESSES = ("target", "replicator")
GROUP = "app"
MEMBER_BYTES = 128 << 20
WAIT_S = 90.0


_CLOCK_HOOK = """import time
_ns = time.time_ns
def _ahead_ns():
    with open({path!r}) as file:
        return int(float(file.read()) * 10**9)
time.time_ns = lambda: _ns() + _ahead_ns()
time.time = lambda: time.time_ns() / 1e9
"""


class CommandFailed(AssertionError):
    """A farstripe command ended with another status than it should; the message has its output."""

    def __init__(self, message: str, returncode: int, stderr: str) -> None:
        super().__init__(message)
        self.returncode, self.stderr = returncode, stderr


def wait_until(condition: Callable[[], object], what: Callable[[], object] | str, timeout_s: float = WAIT_S) -> None:
    """Poll until the condition holds. AssertionError with `what` (a text or a function of now) when it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s: {what() if callable(what) else what}")
        time.sleep(0.02)


class Node:
    """One node in directories of its own, its processes in `net` (None: in the machine's own network)."""

    def __init__(
        self, name: str, net: NetNS | None = None, address: str = "127.0.0.1", nbd_port: int = 0,
        replication_port: int = 10810,
    ) -> None:  # fmt: skip
        self.name, self.net, self.address = name, net, address
        self.nbd_port, self.replication_port = nbd_port, replication_port
        self.dir = Path(tempfile.mkdtemp(prefix=f"fs{name}-", dir="/tmp"))
        self.state, self.run_dir = self.dir / "state", self.dir / "run"
        self._env = {**os.environ, "FARSTRIPE_STATE": str(self.state), "FARSTRIPE_RUN": str(self.run_dir)}
        self._env |= {"PYTHONPATH": str(CHECKOUT), "FARSTRIPE_DEBUG": "1"}
        self._under: list[str] = []

    # -- commands ---------------------------------------------------------------------------------------------------

    def farstripe(self, *args: object, timeout_s: float = 120.0, expect: int = 0) -> str:
        """Run `farstripe ARGS…` on this node and return what it printed. CommandFailed unless it ends as expected."""
        command = [*self._under, sys.executable, "-m", "replicator.cli.main", *map(str, args)]
        argv = self.net.argv(command) if self.net else command
        done = subprocess.run(
            argv,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != expect:
            said = f"{done.stdout}{done.stderr}"
            raise CommandFailed(
                f"{self.name}: farstripe {' '.join(map(str, args))}: status {done.returncode}, not {expect}\n{said}"
                f"\n{self.logs() if done.returncode == 1 else ''}",
                done.returncode, done.stderr,
            )  # fmt: skip
        return done.stdout if expect == 0 else done.stderr

    def start_farstripe(self, *args: object) -> subprocess.Popen[bytes]:
        """Start `farstripe ARGS…` and return at once; what it prints is lost."""
        command = [sys.executable, "-m", "replicator.cli.main", *map(str, args)]
        argv = self.net.argv(command) if self.net else command
        nothing = subprocess.DEVNULL
        return subprocess.Popen(argv, env=self._env, stdin=nothing, stdout=nothing, stderr=nothing)

    def json(self, *args: object, timeout_s: float = 120.0) -> Any:
        return json.loads(self.farstripe(*args, "--json", timeout_s=timeout_s))

    def init(self) -> Node:
        """Make the node and start it."""
        ports = ["--nbd-port", self.nbd_port, "--nbd-address", self.address] if self.nbd_port else []
        replication = ["--replication-address", self.address, "--replication-port", self.replication_port]
        self.farstripe("node", "init", self.name, *ports, *replication)
        self.start()
        return self

    def start(self) -> None:
        """Start what does not run; returns when both processes answer."""
        self.farstripe("node", "start")

    def stop(self) -> None:
        self.farstripe("node", "stop")

    def limit(self, **limits: int) -> None:
        """Start processes from now on with these limits in bytes, by their names in prlimit(1): data, stack, …"""
        self._under = ["prlimit", *(f"--{name}={value}" for name, value in limits.items())]

    def own_clock(self) -> Node:
        """Give the processes started from now on a wall clock that `step_clock` moves; the machine's stays as it is."""
        (self.dir / "clock").write_text("0")
        hook = self.dir / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(_CLOCK_HOOK.format(path=str(self.dir / "clock")))
        self._env["PYTHONPATH"] = f"{hook}{os.pathsep}{CHECKOUT}"
        return self

    def step_clock(self, ahead_s: float) -> None:
        """Let the node's wall clock be so far ahead of the machine's, from this instant on. Needs `own_clock`."""
        new = self.dir / "clock.new"
        new.write_text(str(ahead_s))
        new.rename(self.dir / "clock")

    # -- looking ----------------------------------------------------------------------------------------------------

    def ask(self, process: str, op: str, timeout_s: float = 10.0, **args: object) -> Any:
        """Call an operation of the node's target or replicator over its control socket."""
        with ControlClient(self.run_dir / f"{process}.sock", timeout_s) as client:
            return client.call(op, **args)

    def group(self, name: str = GROUP) -> dict[str, Any]:
        """group.status, or {} while the target is away."""
        try:
            return dict(self.ask("target", "group.status", group=name))
        except FarstripeError:
            return {}

    def logs(self, tail: int = 3000) -> str:
        """The ends of both logs, for a failure's message."""
        parts = []
        for process in PROCESSES:
            with contextlib.suppress(OSError):
                parts.append(f"--- {self.name} {process}.log\n" + (self.run_dir / f"{process}.log").read_text()[-tail:])
        return "\n".join(parts)

    def connect(self, volume: str) -> nbd.NBD:
        """A libnbd connection to a volume over the node's Unix socket."""
        handle = nbd.NBD()
        handle.set_export_name(volume)
        handle.connect_unix(str(self.run_dir / "nbd.sock"))
        return handle

    def writer(self, volume: str) -> nbd.NBD:
        """A connection that may write. OSError when it may not: a secondary hands out read-only ones."""
        handle = self.connect(volume)
        if handle.is_read_only():
            raise OSError(f"{self.name} serves {volume} read-only")
        return handle

    def uri(self, volume: str) -> str:
        return f"nbd+unix:///{volume}?socket={self.run_dir / 'nbd.sock'}"

    def generations(self, volume: str, blocks: int) -> list[int]:
        return read_generations(self.connect(volume), blocks)

    # -- violence ---------------------------------------------------------------------------------------------------

    def pid(self, process: str) -> int:
        """The pid of a living process of this node, 0 when there is none."""
        try:
            pid = int((self.run_dir / f"{process}.pid").read_text().split()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            return 0
        return pid if str(self.dir).encode() in command else 0

    def kill(self, *processes: str) -> None:
        """SIGKILL, all at once; returns when they are gone. With no name: the whole node."""
        _kill({pid for process in processes or PROCESSES if (pid := self.pid(process))})

    def pause(self, process: str) -> None:
        """SIGSTOP: it lives, its sockets stay open, and it does nothing until `resume`."""
        os.kill(self.pid(process), signal.SIGSTOP)

    def resume(self, process: str) -> None:
        os.kill(self.pid(process), signal.SIGCONT)

    def close(self) -> None:
        """Kill whatever of this node still runs, its attach supervisors included, and remove its directories."""
        mark = str(self.dir).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)
        if not os.environ.get("FARSTRIPE_TEST_KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def kill_together(*nodes: Node) -> None:
    """SIGKILL every process of several nodes, with nothing in between."""
    _kill({pid for node in nodes for process in PROCESSES if (pid := node.pid(process))})


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(_alive(pid) for pid in pids), f"{pids} survive SIGKILL", 30)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


@dataclass
class Pair:
    """Two nodes with one group of volumes between them. `primary` follows the roles as the test changes them."""

    primary: Node
    secondary: Node
    volumes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def create(
        cls, a: Node, b: Node, volumes: dict[str, int], options: Iterable[object] = (), journal: str = "32M"
    ) -> Pair:
        """Pools on both, the volumes (name to bytes) on `a`, one group, paired a → b; returns when the copy is whole.

        The first volume lies on RAID-6, the others on RAID-0."""
        for node in (a, b):
            disks = [node.dir / f"disk{n}" for n in range(8)]
            layout = ["raid6", *disks[:6], "raid0", *disks[6:]]
            node.farstripe("pool", "create", "pool", *layout, "--make-files", MEMBER_BYTES)
        for number, (name, size) in enumerate(volumes.items()):
            a.farstripe("volume", "create", name, "--size", size, "--raid-group", "raid0" if number else "raid6")
        a.farstripe("group", "create", GROUP, *volumes, "--journal", journal)
        token = b.farstripe("peer", "token").split()[-1]
        a.farstripe("peer", "join", token)
        a.farstripe("pair", "create", GROUP, "--peer", b.name, *options)
        pair = cls(a, b, volumes)
        pair.wait_in_sync()
        return pair

    def swapped(self) -> None:
        self.primary, self.secondary = self.secondary, self.primary

    def in_sync(self) -> bool:
        """The secondary has applied all the primary has, and nothing is left to copy. Meaningful without load only."""
        ours, theirs = self.primary.group(), self.secondary.group()
        return bool(
            ours and theirs and ours["role"] == "primary" and theirs["role"] == "secondary"
            and theirs["state"] == "ok" and not ours["copying"] and ours["mode"] == "journal"
            and ours["pos"] == theirs["pos"] == theirs["applied"]
            and (ours["sync_on"] or ours["policy"]["mode"] != "sync")
        )  # fmt: skip

    def wait_in_sync(self, timeout_s: float = WAIT_S) -> None:
        wait_until(self.in_sync, self.situation, timeout_s)

    def streaming(self) -> bool:
        """The secondary follows record by record (also under load)."""
        ours, theirs = self.primary.group(), self.secondary.group()
        return bool(
            ours and theirs and ours["role"] == "primary" and theirs["role"] == "secondary" and theirs["state"] == "ok"
            and ours["link_up"] and not ours["copying"] and (ours["sync_on"] or ours["policy"]["mode"] != "sync")
        )  # fmt: skip

    def wait_streaming(self, timeout_s: float = WAIT_S) -> None:
        wait_until(self.streaming, self.situation, timeout_s)

    def situation(self) -> str:
        """Everything a failure's message should show."""
        lines = []
        for node in (self.primary, self.secondary):
            lines += [f"--- {node.name} {node.group()}", node.logs()]
        return "\n".join(lines)

    def give_up_tail_of(self, node: Node) -> None:
        """A former primary keeps writes its successor never had until an operator gives them up: do that if asked."""
        wait_until(lambda: self.streaming() or self._refused(), self.situation)
        if self._refused():
            self.primary.farstripe("pair", "resync", GROUP, "--discard", node.name, "--yes")

    def _refused(self) -> bool:
        status = self.primary.json("status")
        return "SUPERSEDED" in json.dumps(status)

    def load(self, volume: str, seed: int, ledger: Ledger | None = None, **options: Any) -> StampedLoad:
        """A stamped load on a volume of whoever is primary at the moment it connects."""
        blocks = self.volumes[volume] // BLOCK
        return StampedLoad(lambda: self.primary.writer(volume), blocks, seed, ledger=ledger, **options).start()

    def assert_images_equal(self) -> None:
        """Compare every volume byte by byte through NBD. The pair must be in sync and idle."""
        self.wait_in_sync()
        for name, size in self.volumes.items():
            ours, theirs = self.primary.connect(name), self.secondary.connect(name)
            for offset in range(0, size, 1 << 20):
                length = min(1 << 20, size - offset)
                if bytes(ours.pread(length, offset)) != bytes(theirs.pread(length, offset)):
                    raise AssertionError(f"volume {name} differs within 1 MiB of {offset}\n{self.situation()}")
