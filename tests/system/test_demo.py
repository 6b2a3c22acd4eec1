"""scripts/demo as people run it: it must pass, say so, and leave nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testing.needs import needs
from tests.testing.uml import Guest

pytestmark = pytest.mark.system

CHECKOUT = Path(__file__).resolve().parent.parent.parent
DEMO = [sys.executable, str(CHECKOUT / "scripts/demo.d")]


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(root)}


def leftovers(root: Path) -> list[str]:
    """What demos below `root` may have forgotten on this machine: directories, mounts, loop devices, processes."""
    found = [str(path) for path in root.iterdir()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    loops = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout
    found += [line for line in loops.splitlines() if str(root) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            found += [command] if str(root) in command else []
    return found


@pytest.fixture
def root() -> Iterator[Path]:
    """A short directory of this test's own for TMPDIR; it must be empty when the test ends."""
    needs("losetup", "nbdfuse", "mkfs.ext4", root=True, files=("/dev/fuse", "/dev/loop-control"))
    root = Path(tempfile.mkdtemp(prefix="fst-", dir="/tmp"))
    yield root
    assert not leftovers(root)
    root.rmdir()


def test_the_whole_story_on_this_machine(root: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--mode", "sync", "--seconds", "2"],
        env=environment(root), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("RPO", "RTO", "resync", "7 of 7 passed", "block device"):
        assert word in done.stdout
    assert "0 writes" in done.stdout or "none of them acknowledged" in done.stdout


@pytest.mark.parametrize("after", ["two nodes", "data is /dev/", "still writing", "A is started again"])
def test_an_interrupt_leaves_nothing_behind(root: Path, after: str) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--seconds", "1"], env=environment(root), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if after in line:
                break
        time.sleep(0.2)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait()


def test_the_whole_story_on_the_kernels_nbd_driver() -> None:
    with Guest(mem_mb=1500) as guest:
        result = guest.run("python /run/checkout/scripts/demo.d --mode async --seconds 3", timeout_s=280)
        assert "kernel NBD, configured by netlink" in result.out
        assert "7 of 7 passed" in result.out
        assert guest.run("ls /tmp; grep nbd /proc/mounts; cat /sys/block/nbd*/pid 2>/dev/null", check=False).out == ""
