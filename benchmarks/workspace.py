"""One directory and the processes of a benchmark run, and their end.

Everything a run creates lies under one fresh directory and every process it starts is known by its pid, so that
leaving the `with` block ends and removes all of it, whether the run succeeded or not. Processes are started with a
parent-death signal: they end as well when the benchmark itself is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1
FILL_BYTES = 256 << 10
"""Both sides' files are filled in pieces of this size: the kernel keeps a file cached in the pieces it was written in,
and small writes into larger pieces are slower."""
_libc = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(Exception):
    """A tool is missing, a server did not start, or a load generator reported errors."""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Poll `condition` every 20 ms until it is true. Raises BenchmarkError naming `what` after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise BenchmarkError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


def is_listening(path: Path) -> bool:
    """True when a server accepts connections on the unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class Workspace:
    """A directory `path` and child processes that both end with the `with` block."""

    def __init__(self, parent: Path) -> None:
        """Make a fresh directory under `parent` (which decides the filesystem that is measured)."""
        parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="farstripe-bench.", dir=parent))
        # Unix socket names are limited to 107 bytes, so they do not live below a directory the user chose.
        self.sockets = Path(tempfile.mkdtemp(prefix="fsb."))
        self._children: list[subprocess.Popen[bytes]] = []
        self._closers: list[Callable[[], None]] = []

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def on_close(self, action: Callable[[], None]) -> None:
        """Run `action` first (last added first) when the workspace closes."""
        self._closers.append(action)

    def spawn(self, argv: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start `argv`; its output goes to a log in the directory. Returns the process."""
        log = self.path / f"{Path(argv[0]).name}.{len(self._children)}.log"
        with log.open("wb") as out:
            try:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    preexec_fn=_die_with_parent,
                )
            except FileNotFoundError as e:
                raise BenchmarkError(f"{argv[0]}: not installed; scripts/setup installs it") from e
        self._children.append(child)
        return child

    def spawn_server(self, argv: list[str], sock: Path) -> subprocess.Popen[bytes]:
        """Start `argv` and return when it listens on the unix socket `sock`; raises BenchmarkError with its log."""
        child = self.spawn(argv)
        log = self.path / f"{Path(argv[0]).name}.{len(self._children) - 1}.log"
        try:
            wait_for(lambda: child.poll() is not None or is_listening(sock), argv[0], 10)
        except BenchmarkError as e:
            raise BenchmarkError(f"{e}: {log.read_text(errors='replace')[-500:]}") from e
        if child.poll() is not None:
            raise BenchmarkError(f"{argv[0]} ended at once: {log.read_text(errors='replace')[-500:]}")
        return child

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        """End one process: SIGTERM, after 5 seconds SIGKILL."""
        if child in self._children:
            self._children.remove(child)
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def close(self) -> None:
        """End the processes, newest first, and remove the directory; for the main thread.

        SIGINT and SIGTERM take effect afterwards: half of it is worse than none.
        """
        caught: list[int] = []
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda caught_now, _frame: caught.append(caught_now)) for number in numbers]
        try:
            self._clean_up()
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])

    def _clean_up(self) -> None:
        for action in reversed(self._closers):
            try:
                action()
            except (BenchmarkError, OSError, subprocess.SubprocessError) as e:
                print(f"bench: while cleaning up: {e}", flush=True)
        self._closers.clear()
        for child in reversed(self._children.copy()):
            self.stop(child)
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)


def make_file(path: Path, size_bytes: int) -> None:
    """Create `path` with `size_bytes` of data that is neither sparse nor compressible by a filesystem.

    Durable: the file's data and size.
    """
    block = os.urandom(FILL_BYTES)
    with path.open("wb", buffering=0) as f:
        left = size_bytes
        while left:
            left -= f.write(block[: min(left, len(block))])
        os.fdatasync(f.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Make `target` with the bytes of `source`, written as make_file writes. Durable: its data and size."""
    with source.open("rb") as origin, target.open("wb", buffering=FILL_BYTES) as f:
        while block := origin.read(FILL_BYTES):
            f.write(block)
        f.flush()
        os.fdatasync(f.fileno())


def settle(path: Path) -> None:
    """Write back the dirty pages of all files below `path`, so that one run's writeback is not in the next's time."""
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue  # a socket, or gone meanwhile
            try:
                os.fdatasync(fd)
            except OSError:
                pass  # a FIFO has nothing to write back
            finally:
                os.close(fd)
