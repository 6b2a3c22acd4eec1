"""System calls of the real target fail under load: strace makes one member's file refuse, and clients write on.

What was acknowledged is there after the target was killed and started again, or the error was loud; no file is synced
again after its sync has failed. (A short write can only be injected as one that takes nothing: strace does not
execute the call whose result it makes up.)
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess

pytestmark = pytest.mark.system
BLOCK = 16 << 10
BLOCKS = 12 * MIB // BLOCK
CALLS = "fdatasync,pwrite64,pwritev,pwritev2,fallocate,pread64,preadv,preadv2"


class Tracer:
    """strace on a running target; only calls on one file are seen and changed."""

    def __init__(self, target: TargetProcess, path: str, inject: str) -> None:
        self.log = target.base / "strace.log"
        command = ["strace", "-f", "-p", str(target.pid), "-o", str(self.log), "-P", path]
        self._process = subprocess.Popen(
            [*command, "-e", f"trace={CALLS}", "-e", f"inject={inject}"], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while not self._attached(target.pid):
            assert self._process.poll() is None, "strace ended at once"
            assert time.monotonic() < deadline, "strace did not attach"
            time.sleep(0.01)

    def _attached(self, pid: int) -> bool:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return all(f"TracerPid:\t{self._process.pid}\n" in (one / "status").read_text() for one in threads)

    def detach(self) -> list[str]:
        """Let the target go; return the lines of the log."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        return self.log.read_text().splitlines()


class Load:
    """Writes, trims and flushes of one client, and what the volume may hold after them."""

    def __init__(self, handle: nbd.NBD, seed: int) -> None:
        self.handle = handle
        self.rng = random.Random(seed)
        self.allowed: list[set[int]] = [{0} for _ in range(BLOCKS)]
        self.refused: list[int] = []
        self._stamp = 0

    def begin(self) -> None:
        """Write a part, so that some areas are allocated and marked and others not."""
        for block in range(0, BLOCKS // 12, 2):
            self._write(block, 1)
        self.handle.flush()

    def run(self, steps: int) -> None:
        for number in range(steps):
            block = self.rng.randrange(BLOCKS)
            dice = self.rng.random()
            if dice < 0.2:
                self._read(block)
            elif dice < 0.35:
                first = block // 64 * 64
                self._change(first, 64, 0)
            else:
                self._write(block, min(self.rng.choice([1, 1, 2, 12]), BLOCKS - block))
            if number % 8 == 7:
                try:
                    self.handle.flush()
                except nbd.Error as exc:
                    self.refused.append(exc.errnum)

    def _read(self, block: int) -> None:
        try:
            data = bytes(self.handle.pread(BLOCK, block * BLOCK))
        except nbd.Error as exc:
            self.refused.append(exc.errnum)
        else:
            self._check(block, data)

    def _write(self, block: int, count: int) -> None:
        self._stamp += 1
        self._change(block, count, self._stamp)

    def _change(self, block: int, count: int, stamp: int) -> None:
        try:
            if stamp:
                self.handle.pwrite(stamp_bytes(stamp) * count, block * BLOCK)
            else:
                self.handle.trim(count * BLOCK, block * BLOCK)
        except nbd.Error as exc:
            self.refused.append(exc.errnum)
            for one in range(block, block + count):
                self.allowed[one].add(stamp)
        else:
            for one in range(block, block + count):
                self.allowed[one] = {stamp}

    def check(self, handle: nbd.NBD) -> None:
        for block in range(BLOCKS):
            self._check(block, bytes(handle.pread(BLOCK, block * BLOCK)))

    def _check(self, block: int, data: bytes) -> None:
        # A refused call may have got anywhere: look at each 512 bytes.
        for at in range(0, BLOCK, 512):
            assert data[at : at + 512] in {stamp_bytes(stamp)[:512] for stamp in self.allowed[block]}, (
                f"block {block}+{at} holds {data[at : at + 8].hex()}, may hold {self.allowed[block]}"
            )


def stamp_bytes(stamp: int) -> bytes:
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    needs("nbdkit", "strace", root=True)
    with TargetProcess() as target:
        yield target.start()


@pytest.mark.parametrize(
    ("level", "members", "inject", "fails"),
    [
        (1, 2, "fdatasync:error=EIO:when=1", True),
        (5, 3, "fdatasync:error=EIO:when=1", True),
        (6, 4, "fdatasync:error=EIO:when=2", True),
        (1, 2, "pwrite64:error=EIO:when=3", True),
        (5, 3, "pwrite64:error=ENOSPC:when=2+", True),
        (5, 3, "pwritev2:error=EIO:when=1", True),
        (10, 4, "pwritev2:error=ENOSPC:when=1+", True),
        (1, 2, "pwrite64:retval=0:when=2", False),
        (5, 3, "pwrite64:retval=0:when=1+", True),
        (5, 3, "fallocate:error=EIO:when=1", True),
        (1, 2, "preadv2:error=EIO:when=1+", False),
        (5, 3, "preadv2:error=EIO:when=1", False),
    ],
)
def test_one_member_that_fails_is_borne_without_an_error(
    target: TargetProcess, level: int, members: int, inject: str, fails: bool
) -> None:
    load, lines = run(target, level, members, inject)
    assert any("INJECTED" in line for line in lines), "the fault was met"
    assert not load.refused
    states = [member["state"] for member in target.call("pool.status")["groups"][0]["members"]]
    assert states == ["in_sync", "failed" if fails else "in_sync", *["in_sync"] * (members - 2)]


@pytest.mark.parametrize("level", [0, 1, 5])
def test_no_space_on_the_filesystem_under_a_member_is_reported_and_harms_nobody(
    target: TargetProcess, level: int
) -> None:
    load, lines = run(target, level, 3, "fallocate:error=ENOSPC:when=1+")
    assert any("INJECTED" in line for line in lines), "the fault was met"
    # Giving space back can take space too: a RAID 0 that cannot punch a member reports it as it is, an error of that.
    assert set(load.refused) <= ({5, 28} if level == 0 else {28}), "EIO, ENOSPC"


@pytest.mark.parametrize("inject", ["pwrite64:error=EIO:when=2", "fdatasync:error=EIO:when=1"])
def test_without_redundancy_the_error_is_loud(target: TargetProcess, inject: str) -> None:
    load, lines = run(target, 0, 2, inject, restart=False)
    assert any("INJECTED" in line for line in lines), "the fault was met"
    assert load.refused and set(load.refused) == {5}, "EIO"


def run(target: TargetProcess, level: int, members: int, inject: str, restart: bool = True) -> tuple[Load, list[str]]:
    """Write and read with a fault on the second member; kill, start again, check. Returns load and strace log."""
    target.make_pool(level=level, members=members, size=16 * MIB)
    target.call("volume.create", name="v", size=BLOCKS * BLOCK)
    load = Load(target.connect("v"), seed=level)
    load.begin()
    tracer = Tracer(target, str(target.disks / "d1"), inject)
    load.run(64)
    lines = tracer.detach()
    check_no_sync_is_retried(lines)
    if restart:
        target.kill()
        target.start()
        load.check(target.connect("v"))
    return load, lines


def check_no_sync_is_retried(lines: list[str]) -> None:
    syncs = [line for line in lines if re.search(r"\bfdatasync\(", line)]
    failed = next((i for i, line in enumerate(syncs) if "INJECTED" in line), len(syncs))
    assert not syncs[failed + 1 :], "no sync of a file whose sync has failed"
