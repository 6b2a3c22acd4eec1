"""A plain nbdkit file server in a namespace, on a fixed port, to be killed and started again on the same image.

It stands in for a node's target where a test is about the client side: the guest kernel or `farstripe attach`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.testing.netns import HOST_IP, NetNS

PORT = 10809


class PlainNBD:
    def __init__(self, net: NetNS, image: Path, size_bytes: int = 128 << 20) -> None:
        self._net, self._image, self._log = net, image, image.with_suffix(".log")
        with image.open("ab") as file:
            file.truncate(size_bytes)
        self._proc: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 20.0) -> None:
        """Serve; returns when a connection is accepted."""
        with self._log.open("ab") as log:
            argv = ["nbdkit", "-f", "-i", HOST_IP, "-p", str(PORT), "file", str(self._image)]
            self._proc = self._net.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s
        probe = self._net.argv(["nbdinfo", "--size", f"nbd://{HOST_IP}:{PORT}"])
        while subprocess.run(probe, capture_output=True, timeout=timeout_s, check=False).returncode:
            if self._proc.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nbdkit does not serve: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._proc is not None:
            self._proc.kill()
            self._proc.wait(timeout=30)
