"""fio's verify load against a volume that moves and whose server dies.

fio gives up at its first error, so between it and the node stands an nbdkit of our own with the `nbd` plugin and the
`retry` filter: it reopens the connection until the node (or its successor) serves, and fio sees a pause. The proxy
dials a symbolic link; `aim` points it at another node.

fio writes random blocks, reads them back while it goes on, and compares checksums; what it was told is written must
read back, also after every restart. It is not for asynchronous takeovers, which may lose what it was told.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.testing.needs import needs

RETRY = ["retries=120", "retry-delay=1", "retry-exponential=no"]


class FioLoad:
    """One proxy, and one fio at a time through it."""

    def __init__(self, export: str, size_bytes: int, seed: int) -> None:
        needs("fio", "nbdkit")
        self._dir = Path(tempfile.mkdtemp(prefix="fsfio-", dir="/tmp"))
        self._export, self._size, self._seed = export, size_bytes, seed
        self._proxy: subprocess.Popen[bytes] | None = None
        self._fio: subprocess.Popen[str] | None = None

    def aim(self, node_socket: Path) -> None:
        """Send reconnections (and, at first, the connection) to this node."""
        fresh = self._dir / "fresh"
        fresh.symlink_to(node_socket)
        fresh.rename(self._dir / "node")

    def start(self, seconds: float) -> None:
        """Start writing and verifying; returns after its first write. It ends by itself after about `seconds`.

        The first connection is not retried by anybody, so the node must be up when this is called."""
        if self._proxy is None:
            self._start_proxy()
        self._seed += 1
        self._fio = subprocess.Popen(
            [
                "fio", "--name=verify", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={self._dir / 'proxy'}",
                f"--size={self._size}", "--rw=randwrite", "--bs=4k-32k", "--blockalign=4k", "--iodepth=4",
                "--rate_iops=200", "--verify=crc32c", "--verify_backlog=32", "--verify_fatal=1",
                "--serialize_overlap=1",
                "--time_based", f"--runtime={seconds}", f"--randseed={self._seed}", "--minimal",
            ],
            cwd=self._dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

        requests = self._dir / "requests"
        already = requests.stat().st_size
        deadline = time.monotonic() + 30
        while b" Write " not in requests.read_bytes()[already:]:
            assert self._fio.poll() is None and time.monotonic() < deadline, f"fio does not begin\n{self._proxy_log()}"
            time.sleep(0.02)

    def _start_proxy(self) -> None:
        socket = self._dir / "proxy"
        argv = ["nbdkit", "-f", "-U", str(socket), "--filter=log", "--filter=retry", "nbd"]
        with (self._dir / "proxy.log").open("ab") as log:
            self._proxy = subprocess.Popen(
                [
                    *argv,
                    f"socket={self._dir / 'node'}",
                    f"export={self._export}",
                    *RETRY,
                    f"logfile={self._dir / 'requests'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while not socket.exists():
            assert self._proxy.poll() is None, (self._dir / "proxy.log").read_text()
            time.sleep(0.01)

    def finish(self, timeout_s: float = 90.0) -> None:
        """Wait for fio's end. AssertionError when it found wrong data, saw an error, or hangs."""
        assert self._fio is not None
        try:
            out, _ = self._fio.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._fio.kill()
            out, _ = self._fio.communicate()
            raise AssertionError(f"fio did not end within {timeout_s} s:\n{out[-2000:]}\n{self._proxy_log()}") from None
        assert self._fio.returncode == 0, f"fio: status {self._fio.returncode}\n{out[-2000:]}\n{self._proxy_log()}"

    def _proxy_log(self) -> str:
        return "proxy: " + (self._dir / "proxy.log").read_text()[-2000:]

    def close(self) -> None:
        for process in (self._fio, self._proxy):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(30)
        shutil.rmtree(self._dir, ignore_errors=True)
