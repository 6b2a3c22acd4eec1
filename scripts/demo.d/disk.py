"""A volume as a block device of this machine, with ext4 on it.

Two ways. Where the kernel has its NBD driver: `farstripe attach`, which configures it by netlink. Elsewhere (many
container hosts build it out): nbdfuse shows the volume as a file, and a loop device makes a disk of it. The second is
not the kernel's NBD client and never reconnects, but FLUSH and TRIM pass, so fsync means what it says.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from node import DemoError, Node

COMMAND_TIMEOUT_S = 60.0


def command(*argv: object, ok: tuple[int, ...] = (0,)) -> str:
    """Run a system command. DemoError unless its status is one of `ok`."""
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode not in ok:
        raise DemoError(f"{' '.join(map(str, argv))}: status {done.returncode}\n{done.stdout.strip()}")
    return done.stdout.strip()


def _is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def kernel_has_nbd() -> bool:
    subprocess.run(["modprobe", "nbd"], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
    return Path("/sys/block/nbd0").exists()


class Disk:
    """One volume attached, and its filesystem.

    `detach` may be called at any time, and again, also after an interrupt in the middle of anything here: it looks at
    what is there instead of remembering what was done.
    """

    kind = ""

    def __init__(self, node: Node, volume: str, mountpoint: Path) -> None:
        self.node, self.volume, self.mountpoint = node, volume, mountpoint
        self.device = ""
        mountpoint.mkdir(exist_ok=True)

    def make_filesystem(self) -> None:
        command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device)

    def replay_and_check(self) -> str:
        """Replay the filesystem's journal as a mount after a crash would, then check; returns "" or what is wrong."""
        command("e2fsck", "-p", self.device, ok=(0, 1))
        try:
            command("e2fsck", "-fn", self.device)
        except DemoError as error:
            return str(error)
        return ""

    def mount(self) -> None:
        command("mount", "-t", "ext4", self.device, self.mountpoint)

    def unmount(self) -> None:
        if _is_mounted(self.mountpoint):
            command("umount", self.mountpoint)

    def detach(self) -> None:
        """Unmount and give the device back, its node alive or dead."""
        raise NotImplementedError


class KernelDisk(Disk):
    kind = "kernel NBD, configured by netlink (farstripe attach)"

    def attach(self) -> None:
        self.device = self.node.json("attach", self.volume)["device"]

    def detach(self) -> None:
        if not self.device:
            return
        try:
            self.unmount()
            self.node.farstripe("detach", self.device)
        finally:
            self.device = ""

    def cut_off(self) -> None:
        """The node is dead and stays so: fail the I/O that waits for it, then unmount."""
        device, self.device = self.device, ""
        if device:
            self.node.farstripe("detach", device, "--force", "--yes")
        self.unmount()


class FuseDisk(Disk):
    kind = "nbdfuse and a loop device (this kernel has no NBD driver)"

    def __init__(self, node: Node, volume: str, mountpoint: Path) -> None:
        super().__init__(node, volume, mountpoint)
        self._fuse = mountpoint.with_name(f"{mountpoint.name}.fuse")
        self._server: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        self._fuse.mkdir(exist_ok=True)
        uri = f"nbd+unix:///{self.volume}?socket={self.node.socket}"
        file = self._fuse / "disk"
        with open(self._fuse.with_suffix(".log"), "ab") as log:
            self._server = subprocess.Popen(
                ["nbdfuse", str(file), uri], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while not file.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"nbdfuse: {self._fuse.with_suffix('.log').read_text().strip()}")
            time.sleep(0.02)
        self.device = command("losetup", "--find", "--show", file)

    def detach(self) -> None:
        self.unmount()
        for line in command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            device, *file = line.split(maxsplit=1)
            if file and file[0].startswith(f"{self._fuse}/"):
                command("losetup", "--detach", device)
        self.device = ""
        self._end_server()

    def _end_server(self) -> None:
        """nbdfuse ends when its file is unmounted, which waits until the kernel has let go of the loop device."""
        deadline = time.monotonic() + 10
        while _is_mounted(self._fuse):
            lazy = ["--lazy"] if time.monotonic() > deadline else []
            command("umount", *lazy, self._fuse, ok=(0, 32))
            time.sleep(0.05)
        if self._server is not None:
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(10)
            self._server = None

    def cut_off(self) -> None:
        """The node is dead: nbdfuse fails all I/O by itself."""
        self.detach()


def new(node: Node, volume: str, mountpoint: Path, kernel: bool) -> KernelDisk | FuseDisk:
    return (KernelDisk if kernel else FuseDisk)(node, volume, mountpoint)
