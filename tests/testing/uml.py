"""A real Linux kernel in an ordinary process: User Mode Linux with nbd.ko and ext4, and a shell in it.

The guest's root file system is this machine's own, read-only through hostfs, so every installed program (nbd-client,
e2fsck, Python, this checkout) is there; /tmp, /mnt, /run and /root are memory of its own. It has one CPU, and one
network card: a tap device in a namespace of the test's own (`netns.NetNS`), where the servers it talks to run.

    with NetNS() as net, Guest(net) as guest:
        result = guest.run("mkfs.ext4 -q /dev/nbd0", check=True)

Scripts travel over UML serial lines, one agent (uml-init) a line, so they work whatever the network does, and
several can run at once. `kill()` is a power cut: what the guest had not written to its block devices is gone.

The guest lives in a PID namespace that dies with it, and is killed when the thread that started it ends
(PR_SET_PDEATHSIG): start guests from the main thread, as pytest does. Every wait here has an end.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testing.needs import needs
from tests.testing.netns import GUEST_IP, PREFIX_BITS, TAP, NetNS

UML = "/usr/bin/linux.uml"
MODULES = "/usr/lib/uml/modules"
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
BOOT_TIMEOUT_S = 90.0


class GuestError(Exception):
    """The guest died, or a script that had to succeed did not."""


class GuestTimeout(GuestError):
    """A script (or the boot) did not end in time; the guest may still be running it."""


@dataclass(frozen=True)
class Result:
    rc: int
    out: str
    seconds: float


class Job:
    """One script running in the guest. Output so far is `out`; `wait` gives the result."""

    def __init__(self, guest: Guest, line: socket.socket, script: str) -> None:
        self._guest, self._line = guest, line
        self._started = time.monotonic()
        self._seconds = 0.0
        self._rc: int | None = None
        self._buffer = bytearray()
        self._ended = threading.Event()
        self._mark = f"\n{secrets.token_hex(8)} RC=".encode()
        body = script.encode()
        line.settimeout(None)
        line.sendall(b"RUN %s %d\n" % (self._mark[1:-4], len(body)) + body)
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        try:
            while self._rc is None:
                data = self._line.recv(65536)
                if not data:
                    return
                self._buffer += data
                self._look_for_end(len(data))
        except OSError:
            pass  # the guest was killed: wait() says so
        finally:
            self._seconds = time.monotonic() - self._started
            if self._rc is not None:
                self._guest.give_back(self._line)
            self._ended.set()

    def _look_for_end(self, fresh: int) -> None:
        start = self._buffer.find(self._mark, max(0, len(self._buffer) - fresh - len(self._mark) - 8))
        end = self._buffer.find(b"\n", start + len(self._mark)) if start >= 0 else -1
        if end >= 0:
            self._rc = int(self._buffer[start + len(self._mark) : end])
            del self._buffer[start:]

    @property
    def out(self) -> str:
        return self._buffer.decode(errors="replace")

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def wait(self, timeout_s: float = 120.0, check: bool = False) -> Result:
        """Wait for the script's end. GuestTimeout when it takes longer; GuestError when the guest died, or on a
        non-zero status with `check`."""
        if not self._ended.wait(timeout_s):
            raise GuestTimeout(f"guest script still running after {timeout_s} s; output so far:\n{self.out[-4000:]}")
        if self._rc is None:
            raise GuestError(f"the guest went away; output so far:\n{self.out[-4000:]}\n{self._guest.console_tail()}")
        if check and self._rc:
            raise GuestError(f"guest script: status {self._rc}\n{self.out[-4000:]}\n{self._guest.console_tail()}")
        return Result(self._rc, self.out, self._seconds)


class Guest:
    """One User Mode Linux machine. Not thread-safe beyond running several jobs at once."""

    def __init__(
        self, net: NetNS | None = None, mem_mb: int = 384, lines: int = 4, venv: Path | None = None,
        disks: Sequence[Path] = (),
    ) -> None:
        """disks: files of this machine that the guest has as /dev/ubda and so on."""
        needs("unshare", "setpriv", "ip", "insmod", "mkfs.ext4", "nbd-client", root=True, files=(UML, MODULES))
        self._net, self._mem_mb, self._line_count = net, mem_mb, lines
        self._disks = list(disks)
        self._venv = venv or Path(os.environ.get("VIRTUAL_ENV") or _running_venv())
        self._dir = Path(tempfile.mkdtemp(prefix="fsuml-", dir="/tmp"))
        self._proc: subprocess.Popen[bytes] | None = None
        self._lines: list[socket.socket] = []
        self._free: list[socket.socket] = []
        self._lock = threading.Lock()

    def start(self, timeout_s: float = BOOT_TIMEOUT_S) -> Guest:
        """Boot; returns when every agent line answers. GuestTimeout or GuestError when it does not."""
        deadline = time.monotonic() + timeout_s
        pairs = [socket.socketpair() for _ in range(self._line_count)]
        self._lines = [ours for ours, _ in pairs]
        argv = self._argv([theirs.fileno() for _, theirs in pairs])
        environment = dict(os.environ)
        if shutil.disk_usage("/dev/shm").free < self._mem_mb << 20:
            environment["TMPDIR"] = str(self._dir)  # the guest's memory is a file; containers have a small /dev/shm
        with open(self._dir / "console", "wb") as console:
            self._proc = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                pass_fds=[theirs.fileno() for _, theirs in pairs], start_new_session=True, env=environment,
            )  # fmt: skip
        for _, theirs in pairs:
            theirs.close()
        try:
            for line in self._lines:
                self._await_ready(line, deadline)
        except BaseException:
            self.kill()
            raise
        self._free = list(self._lines)
        return self

    def _argv(self, fds: list[int]) -> list[str]:
        argv = ["setpriv", "--pdeathsig", "KILL"]
        argv += self._net.argv([]) if self._net else []
        argv += ["unshare", "--pid", "--fork", "--kill-child"]
        argv += [UML, f"mem={self._mem_mb}M", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"]
        argv += ["random.trust_cpu=on", f"uml_dir={self._dir}", "umid=u", "con=null", "con0=null,fd:1", "ssl=null"]
        argv += [f"init={HERE}/uml-init", f"fs.checkout={CHECKOUT}", f"fs.venv={self._venv}"]
        argv += [f"fs.modules={MODULES}", f"fs.lines={len(fds)}"]
        argv += [f"ubd{n}={path}" for n, path in enumerate(self._disks)]
        argv += [f"ssl{n}=fd:{fd}" for n, fd in enumerate(fds)]
        if self._net:
            argv += [f"vec0:transport=tap,ifname={TAP},depth=64,gro=1", f"fs.ip={GUEST_IP}/{PREFIX_BITS}"]
        return argv

    def _await_ready(self, line: socket.socket, deadline: float) -> None:
        seen = b""
        while b"READY\n" not in seen:
            line.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                data = line.recv(100)
            except TimeoutError:
                raise GuestTimeout(f"the guest did not come up\n{self.console_tail()}") from None
            if not data:
                raise GuestError(f"the guest died while booting\n{self.console_tail()}")
            seen += data

    def popen(self, script: str, env: Mapping[str, object] | None = None) -> Job:
        """Start a bash script in the guest, in /root; stdout and stderr are its output."""
        exports = "".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in (env or {}).items())
        with self._lock:
            if not self._free:
                raise GuestError(f"all {self._line_count} agent lines are busy")
            line = self._free.pop()
        return Job(self, line, exports + script)

    def run(
        self, script: str, timeout_s: float = 120.0, check: bool = True, env: Mapping[str, object] | None = None
    ) -> Result:
        """Run a bash script to its end. See Job.wait for the errors."""
        return self.popen(script, env).wait(timeout_s, check)

    def give_back(self, line: socket.socket) -> None:
        with self._lock:
            self._free.append(line)

    def console_tail(self, characters: int = 3000) -> str:
        try:
            return "guest console: " + (self._dir / "console").read_text(errors="replace")[-characters:]
        except OSError:
            return "guest console: none"

    def kill(self) -> None:
        """Power cut. Returns when the guest is gone."""
        if self._proc is not None:
            if self._proc.poll() is None:
                os.killpg(self._proc.pid, signal.SIGKILL)  # a session of its own: UML is several processes
            self._proc.wait(timeout=30)
        for line in self._lines:
            line.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._dir, ignore_errors=True)

    def __enter__(self) -> Guest:
        return self.start() if self._proc is None else self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _running_venv() -> str:
    import sys

    return sys.prefix
