"""A network namespace of the test's own: its own loopback, its own ports, and a tap device for a guest kernel.

Every test that starts servers does it in here, so that tests run side by side without agreeing on ports, and nothing a
test does reaches the machine's network. Needs root. Not here: routing to the outside; there is none, on purpose.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from typing import Any

HOST_IP = "192.168.77.1"
GUEST_IP = "192.168.77.2"
PREFIX_BITS = 24
TAP = "tap0"


class NetNS:
    """One namespace with loopback up. Use as a context manager, or call close()."""

    def __init__(self) -> None:
        self.name = f"fs{uuid.uuid4().hex[:10]}"
        _ip("netns", "add", self.name)
        try:
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def ip(self, *args: str) -> None:
        """Run ip(8) inside the namespace; CalledProcessError when it refuses."""
        _ip("-n", self.name, *args)

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in here. ip(8) execs it, so the pid is the command's own."""
        return ["ip", "netns", "exec", self.name, *command]

    def popen(self, command: Sequence[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(command), **kwargs)

    def add_tap(self) -> None:
        """A tap device for one guest, this side at HOST_IP. A guest that dies leaves it in place for the next one."""
        self.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
        self.ip("addr", "add", f"{HOST_IP}/{PREFIX_BITS}", "dev", TAP)
        self.ip("link", "set", TAP, "up")

    def set_link(self, up: bool) -> None:
        """Pull (False) or plug (True) the guest's cable: packets are lost silently, as in a partition."""
        self.ip("link", "set", TAP, "up" if up else "down")

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, stderr=subprocess.DEVNULL, timeout=30)

    def __enter__(self) -> NetNS:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, timeout=30)
