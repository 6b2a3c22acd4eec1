"""Fixtures: a real target, with a pool and one volume."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess


@pytest.fixture
def bare() -> Iterator[TargetProcess]:
    """A running target without a pool."""
    needs("nbdkit")
    with TargetProcess() as target:
        yield target.start()


@pytest.fixture
def target(bare: TargetProcess) -> TargetProcess:
    """A running target with a RAID-0 pool of six files and a volume "v" of 64 MiB."""
    bare.make_pool()
    bare.call("volume.create", name="v", size=64 * MIB)
    return bare


@pytest.fixture
def loop_device(target: TargetProcess) -> Iterator[str]:
    """A block device over a file of 32 MiB."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    path = target.base / "device"
    path.touch()
    os.truncate(path, 32 * MIB)
    done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    yield device
    target.kill()
    subprocess.run(["losetup", "-d", device], check=False)
