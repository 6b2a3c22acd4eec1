"""scripts/farstripe-freeze on a real filesystem: frozen while it is asked to, and never left so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testing.needs import needs

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "farstripe-freeze"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own."""
    needs("mkfs.ext4", "mount", "umount", "fsfreeze", root=True)
    image, point = tmp_path / "image", tmp_path / "point"
    point.mkdir()
    with image.open("wb") as f:
        f.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, check=False).returncode:
        pytest.skip("no file can be mounted here")
    yield point
    subprocess.run(["fsfreeze", "-u", str(point)], capture_output=True, check=False)
    subprocess.run(["umount", str(point)], check=True)


def run(point: Path, *options: str) -> subprocess.Popen[str]:
    """The command, once it holds."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *options, str(point)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def writer(point: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", f"echo x > {point}/file"])


def test_writes_wait_until_it_is_told_to_go_on(mounted: Path) -> None:
    process = run(mounted)
    write = writer(mounted)
    with pytest.raises(subprocess.TimeoutExpired):
        write.wait(0.3)
    out, _ = process.communicate("release\n", timeout=5)
    assert (out, process.returncode) == ("released\n", 0)
    assert write.wait(5) == 0


@pytest.mark.parametrize("how", ["input", "time", "signal", "kill", "others"])
def test_nothing_stays_frozen_and_a_hold_that_ended_is_not_called_one(mounted: Path, how: str) -> None:
    process = run(mounted, "--seconds", "0.3" if how == "time" else "20")
    if how == "signal":
        process.terminate()
    elif how == "kill":
        process.kill()
    elif how == "others":
        subprocess.run(["fsfreeze", "-u", str(mounted)], check=True)
    if how == "time":
        process.wait(5)
    out, _ = process.communicate("release\n" if how == "others" else None, timeout=5)
    assert out == "" and process.returncode != 0
    assert writer(mounted).wait(5) == 0
