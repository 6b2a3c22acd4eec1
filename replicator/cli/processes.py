"""The two processes of a node as the command line sees them: are they there, start them, end them.

A process counts as ours only when /proc says so: a pid file may outlive its process, and its number may belong to
somebody else by then. Nothing is ever killed by a number alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from replicator.attach.records import process_started
from replicator.attach.spawn import package_env
from replicator.cli.access import Node
from replicator.core.errors import DaemonNotRunning, FarstripeError, Refused, TimedOut, from_map

PROCESSES = ("target", "replicator")
_MODULES = {"target": "nbdplugin.launch", "replicator": "replicator.daemon"}
_MARKS = {"target": "farstripe-target", "replicator": "replicator.daemon"}
PROBES = {"target": "node.info", "replicator": "node.info"}
STOPS = {"target": "node.stop", "replicator": "node.stop"}
START_TIMEOUT_S = 60.0
DYING_S = 2.0


def command_line(pid: int, proc: str = "/proc") -> list[str]:
    """Return a living process's arguments, [] when there is none."""
    try:
        raw = Path(proc, str(pid), "cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0") if part]


def is_ours(pid: int, process: str, node: Node, proc: str = "/proc") -> bool:
    """Whether process `pid` is this node's target or replicator: right program, right run directory."""
    arguments = command_line(pid, proc)
    run = str(node.run.resolve())
    return (
        bool(process_started(pid, proc))
        and any(_MARKS[process] in argument for argument in arguments)
        and any(argument == run or argument == f"run={run}" or argument == f"--run={run}" for argument in arguments)
    )


def pid_in_file(process: str, node: Node) -> int:
    """Return the number in RUN/<process>.pid, 0 when there is none."""
    try:
        return int((node.run / f"{process}.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def find_pid(process: str, node: Node) -> int:
    """Return the pid of the node's process, 0 when it does not run. Looks past a missing or stale pid file."""
    pid = pid_in_file(process, node)
    if pid and is_ours(pid, process, node):
        return pid
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_ours(int(entry.name), process, node):
            return int(entry.name)
    return 0


def state_of(process: str, node: Node) -> dict[str, Any]:
    """Return what can be said of a process: running, answering, pid, and in words what is wrong."""
    pid = find_pid(process, node)
    stale = pid_in_file(process, node)
    info = None
    problem = ""
    try:
        info = node.answers(process, PROBES[process])
    except FarstripeError as exc:
        problem = exc.message
    if info is None and not problem:
        if pid:
            problem = "runs but does not answer on its control socket"
        elif stale:
            problem = (
                f"ended without a goodbye (its pid file names {stale}, which is not it); see {log_of(process, node)}"
            )
        elif (node.run / f"{process}.sock").exists():
            problem = f"ended without a goodbye (its socket is left over); see {log_of(process, node)}"
        else:
            problem = "not started"
    return {"running": pid > 0, "answers": info is not None, "pid": pid or None, "problem": problem, "info": info}


def log_of(process: str, node: Node) -> Path:
    return node.run / f"{process}.log"


def start(process: str, node: Node, force: bool = False) -> str:
    """Start a process unless it runs; returns what happened in a word. Raises the reason when it does not come up.

    Of several commands that start it at the same moment, one does and the others find it running.

    `force`: the target opens a pool also when too many members are lost or stripes may be torn.
    """
    with _starting(process, node):
        return _start(process, node, force)


@contextlib.contextmanager
def _starting(process: str, node: Node) -> Iterator[None]:
    """Hold RUN/<process>.starting locked; the lock ends with this command, however it ends."""
    node.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(node.run / f"{process}.starting", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(process: str, node: Node, force: bool) -> str:
    if find_pid(process, node):
        if node.answers(process, PROBES[process], START_TIMEOUT_S) is None:
            raise DaemonNotRunning(
                f"the {process} runs but does not answer", "farstripe node stop --force, then node start"
            )
        return "already running"
    _check_ports(process, node)
    with contextlib.suppress(FileNotFoundError):  # find_pid has shown that it names nobody of ours
        (node.run / f"{process}.pid").unlink()
    if process == "target":
        _start_target(node, force)
    else:
        _start_replicator(node)
    return "started"


def _start_target(node: Node, force: bool) -> None:
    argv = [sys.executable, "-m", _MODULES["target"], *_directories(node), "--background"]
    if force:
        argv.append("--force")
    done = subprocess.run(argv, capture_output=True, text=True, env=package_env(), check=False)
    if done.returncode == 0:
        return
    with contextlib.suppress(OSError, ValueError):
        raise from_map(json.loads((node.run / "target.failed").read_text()))
    reason = done.stderr.strip().removeprefix("farstripe-target: ") or _last_line(log_of("target", node))
    raise DaemonNotRunning(
        f"the target did not start: {reason}", f"see {log_of('target', node)}", exit_code=max(1, done.returncode)
    )


def _start_replicator(node: Node) -> None:
    argv = [sys.executable, "-m", _MODULES["replicator"], *_directories(node)]
    path = log_of("replicator", node)
    before = path.stat().st_size if path.exists() else 0
    with open(path, "ab") as log:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", env=package_env()
        )
    until = time.monotonic() + START_TIMEOUT_S
    while node.answers("replicator", PROBES["replicator"]) is None:
        if child.poll() is not None:
            reason = _last_line(path, before) or f"exit code {child.returncode}"
            raise DaemonNotRunning(f"the replicator did not start: {reason}", f"see {path}")
        if time.monotonic() > until:
            raise TimedOut(f"the replicator does not answer after {START_TIMEOUT_S:g} s", f"see {path}")
        time.sleep(0.05)
    child.returncode = 0  # it lives on; this object must not complain about that


def become(process: str, node: Node) -> NoReturn:
    """Replace this program by the process."""
    argv = [sys.executable, "-m", _MODULES[process], *_directories(node)]
    os.execve(sys.executable, argv, package_env())


def stop(process: str, node: Node, timeout_s: float, force: bool) -> str:
    """End a process, in good order when it lets us; returns what happened in a word. Raises TimedOut.

    `force`: when it has not ended after `timeout_s` seconds, SIGKILL.
    """
    pid = find_pid(process, node)
    if not pid:
        _clear(process, node)
        return "not running"
    try:
        node.answers(process, STOPS[process], timeout_s)
    except FarstripeError:
        pass  # too busy or too old to listen: the signal asks for the same
    if not _ended(pid, process, node, min(1.0, timeout_s)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if _ended(pid, process, node, timeout_s):
        _clear(process, node)
        return "stopped"
    if not force:
        raise TimedOut(
            f"the {process} (pid {pid}) has not ended in {timeout_s:g} s",
            "wait, or farstripe node stop --force, which kills it as a crash would",
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not _ended(pid, process, node, 10.0):
        raise TimedOut(f"the {process} (pid {pid}) does not die", "it hangs in the kernel: look at dmesg and the disks")
    _clear(process, node)
    return "killed"


def _ended(pid: int, process: str, node: Node, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while is_ours(pid, process, node):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _clear(process: str, node: Node) -> None:
    """Remove the pid file of a process that is gone, so that nobody is misled."""
    if not find_pid(process, node):
        with contextlib.suppress(FileNotFoundError):
            (node.run / f"{process}.pid").unlink()


def _check_ports(process: str, node: Node) -> None:
    """Say, better than the process could, when its port is taken for longer than a killed process takes to be gone."""
    settings = node.config().get("nbd" if process == "target" else "replication") or {}
    address, port = settings.get("address") or "127.0.0.1", settings.get("port")
    if not port:
        return
    deadline = time.monotonic() + DYING_S
    try:
        where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        while True:
            try:
                _listen(where[0], where[4])
                return
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)
    except OSError as exc:
        kind = "nbd" if process == "target" else "replication"
        raise Refused(
            f"the {process} cannot listen on {address} port {port}: {exc.strerror or exc}",
            f"'ss -ltnp sport = :{port}' shows who has it; {kind}.port in {node.config_path} is ours to change",
        ) from exc


def _listen(family: int, where: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen(1)


def _directories(node: Node) -> list[str]:
    return ["--state", str(node.state.resolve()), "--run", str(node.run.resolve())]


def _last_line(path: Path, offset: int = 0) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(offset, file.seek(0, 2) - 8192))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1].removeprefix("farstripe-replicator: ") if lines else ""
