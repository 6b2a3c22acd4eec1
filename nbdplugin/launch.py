"""Start the target: python -m nbdplugin.launch --state S --run R [--background] [--force]

nbdkit listens on one Unix socket or one TCP port by itself, a node wants both and one process. So this makes the
listening sockets, and becomes nbdkit by exec with the sockets passed as systemd passes them (LISTEN_FDS). The process
id stays, which suits a systemd unit; --background forks first and waits until the target serves or has failed.

Invariants
* One target a state directory: STATE/target.lock is locked by the process that is or becomes nbdkit, and the lock goes
  with it however it ends. Only the holder of the lock touches the sockets in RUN.
* nbdkit's interpreter is the distribution's: what the virtual environment adds reaches it by PYTHONPATH.

Exit status: that of replicator.core.errors; the message goes to standard error.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from nbdplugin import nodeconfig
from replicator.core import errors
from replicator.core.errors import AlreadyExists, BadInput, DaemonNotRunning, NotFound, Refused, TimedOut

FIRST_PASSED_FD = 3
UNIX_PATH_MAX_BYTES = 107
START_TIMEOUT_S = 900.0  # a full journal is redone before the target serves; systemd is told the same
ABORTS_WITHIN_S = 60.0
MOST_ABORTS = 20
"""A target in the background that aborts more often than this in ABORTS_WITHIN_S is left alone."""
LOCK_WAIT_S = 2.0
FAILURE_FILE = "target.failed"
"""RUN/target.failed: the error map of the last start that failed."""


def lock_state(state_dir: Path) -> int:
    """Lock the state directory for this process and what it becomes; returns the descriptor.

    Raises AlreadyExists when a target runs on it. One that was killed just now is given LOCK_WAIT_S to be gone: the
    kernel may still be taking it down when nobody can see it any more.
    """
    fd = os.open(state_dir / "target.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise AlreadyExists(f"a target runs on {state_dir}", "farstripe node stop ends it") from None
            time.sleep(0.02)
    os.set_inheritable(fd, True)
    return fd


def unix_listener(path: Path) -> socket.socket:
    """Listen on `path`, replacing what a dead target left. The caller holds the state lock."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise BadInput(f"the socket path {path} is longer than {UNIX_PATH_MAX_BYTES} bytes", "use a shorter --run")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    sock.listen(128)
    return sock


def tcp_listener(address: str, port: int) -> socket.socket:
    """Listen on a TCP port. Raises Refused when it is in use, BadInput when the address is not ours."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as exc:
        raise BadInput(f"nbd.address {address!r}: {exc.strerror or exc}") from exc
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(where)
        sock.listen(128)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise Refused(
                f"port {port} on {address} is in use",
                f"choose another nbd.port, or stop what 'ss -ltnp sport = :{port}' shows",
            ) from None
        raise BadInput(f"cannot listen on {address} port {port}: {exc.strerror}") from exc
    return sock


def nbdkit_environment(listeners: int) -> dict[str, str]:
    """The environment for nbdkit: our packages for its interpreter, and the number of passed sockets."""
    here = str(Path(__file__).resolve().parent.parent)
    site = [p for p in sys.path if p.endswith(("site-packages", "dist-packages")) and p.startswith(sys.prefix)]
    given = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([here, *site, *filter(None, given.split(os.pathsep))])),
        "OPENBLAS_NUM_THREADS": "1",  # numpy is used for parity and bitmaps, not for algebra
        "LISTEN_FDS": str(listeners),
        "LISTEN_PID": str(os.getpid()),
    }


def become_nbdkit(state_dir: Path, run_dir: Path, force: bool = False) -> None:
    """Open the sockets and replace this process by nbdkit with our plugin. Returns only by raising."""
    config = nodeconfig.load(state_dir)
    program = shutil.which("nbdkit") or shutil.which("nbdkit", path="/usr/sbin:/usr/local/sbin:/sbin")
    if program is None:
        raise NotFound("nbdkit is not installed", "scripts/setup, or: apt install nbdkit nbdkit-plugin-python")
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_state(state_dir)
    listeners = [unix_listener(run_dir / "nbd.sock")]
    if config.nbd_port is not None:
        listeners.append(tcp_listener(config.nbd_address, config.nbd_port))
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)
    beyond = FIRST_PASSED_FD + len(listeners)
    fcntl.fcntl(lock, fcntl.F_DUPFD, beyond)  # a copy outside the range that the sockets take; inherited
    parked = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD_CLOEXEC, beyond) for s in listeners]
    for number, fd in enumerate(parked, FIRST_PASSED_FD):
        os.dup2(fd, number, inheritable=True)
    plugin = Path(__file__).resolve().parent / "plugin.py"
    os.execve(
        program,
        [
            "farstripe-target", "-f", "--threads", str(config.threads), "python", str(plugin),
            f"state={state_dir}", f"run={run_dir}", *(["force=1"] if force else []),
        ],
        nbdkit_environment(len(listeners)),
    )  # fmt: skip


def start_in_background(
    state_dir: Path, run_dir: Path, timeout_s: float = START_TIMEOUT_S, force: bool = False, restart: bool = False
) -> int:
    """Start the target as a process of its own and return its id once it serves.

    restart: leave a parent behind that starts it again when nbdkit aborts; the id is then that parent's.

    Its output goes to RUN/target.log. Raises the error the target failed with, or TimedOut (the target is then ended).
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready_read, ready_write = os.pipe()
    log = os.open(run_dir / "target.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    pid = os.fork()
    if pid == 0:
        _child(state_dir, run_dir, log, ready_write, force, restart)
    os.close(ready_write)
    os.close(log)
    try:
        return _await_ready(pid, run_dir, ready_read, timeout_s)
    finally:
        os.close(ready_read)


def _child(state_dir: Path, run_dir: Path, log: int, ready_write: int, force: bool, restart: bool) -> None:
    """Become the target, in a session of its own; report a failure to start as the plugin does."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        kept = fcntl.fcntl(ready_write, fcntl.F_DUPFD, 16)  # above the passed sockets; the plugin closes it when ready
        os.close(ready_write)
        os.environ["FARSTRIPE_READY_FD"] = str(kept)
        os.environ.pop("NOTIFY_SOCKET", None)
        if restart:
            _watch_over(kept)
        become_nbdkit(state_dir, run_dir, force)
    except BaseException as exc:  # the child must end here whatever happened
        record_failure(run_dir, exc)
        print(f"farstripe-target: {exc}", file=sys.stderr, flush=True)
    os._exit(1)


def _watch_over(ready: int) -> None:
    """Stay behind as the parent and start the target again when nbdkit aborts; returns in the process to become it.

    nbdkit 1.32 fails an assertion of its own when a client goes away while several answers to it are under way. The
    units in systemd/ restart the target then; this does it for a target in the background. Any other end is an end:
    a stop, a kill, a failure to start.
    """
    began: list[float] = []
    while True:
        worker = os.fork()
        if worker == 0:
            return
        if not began:
            os.close(ready)
            del os.environ["FARSTRIPE_READY_FD"]
        began.append(time.monotonic())
        _, status = os.waitpid(worker, 0)
        aborted = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT
        recent = [at for at in began if time.monotonic() - at < ABORTS_WITHIN_S]
        if not aborted or len(recent) > MOST_ABORTS:
            os._exit(0)
        print("farstripe-target: nbdkit aborted; starting it again", file=sys.stderr, flush=True)


def _await_ready(pid: int, run_dir: Path, ready_read: int, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    os.set_blocking(ready_read, False)
    while time.monotonic() < deadline:
        try:
            word = os.read(ready_read, 16)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if word:
            return pid
        os.waitpid(pid, 0)  # the pipe closed without a word: the target ended
        raise read_failure(run_dir)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimedOut(f"the target did not serve within {timeout_s:g} s", f"look at {run_dir / 'target.log'}")


def record_failure(run_dir: Path, exc: BaseException) -> None:
    """Leave the reason of a failed start where the one who waits for the target finds it."""
    (run_dir / FAILURE_FILE).write_text(json.dumps(errors.to_map(exc)), encoding="utf-8")


def read_failure(run_dir: Path) -> errors.FarstripeError:
    """Return the error a start failed with."""
    try:
        return errors.from_map(json.loads((run_dir / FAILURE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return DaemonNotRunning("the target ended while it started", f"look at {run_dir / 'target.log'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status when it does not become nbdkit."""
    parser = argparse.ArgumentParser(prog="python -m nbdplugin.launch", description="Start the target of a node.")
    parser.add_argument("--state", default=os.environ.get("FARSTRIPE_STATE", "/var/lib/farstripe"), type=Path)
    parser.add_argument("--run", default=os.environ.get("FARSTRIPE_RUN", "/run/farstripe"), type=Path)
    parser.add_argument(
        "--background",
        action="store_true",
        help="return when the target serves; print its pid. It is started again when nbdkit aborts",
    )
    parser.add_argument(
        "--force", action="store_true", help="open a RAID group although it is degraded and was not stopped in order"
    )
    args = parser.parse_args(argv)
    state_dir, run_dir = args.state.resolve(), args.run.resolve()
    try:
        if args.background:
            start_in_background(state_dir, run_dir, force=args.force, restart=True)
            print((run_dir / "target.pid").read_text(encoding="ascii").strip())
        else:
            become_nbdkit(state_dir, run_dir, args.force)
    except errors.FarstripeError as exc:
        print(f"farstripe-target: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
