"""Corruption and scrubs on a running target: found, repaired, told of, and over a restart."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raidlib.blockfile import OSFile
from raidlib.superblock import read_superblock
from replicator.core.errors import FarstripeError
from tests.testing.needs import needs
from tests.testing.targetproc import MIB, TargetProcess

SIZE = 24 * MIB


@pytest.fixture
def sure() -> Iterator[TargetProcess]:
    """A target with a checksummed RAID-5 pool and a volume "v" that is full of known bytes."""
    needs("nbdkit")
    with TargetProcess() as target:
        target.start()
        target.make_pool(level=5, members=3, checksums=True)
        target.call("volume.create", name="v", size=SIZE)
        write(target)
        yield target


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (MIB // 8)


def write(target: TargetProcess) -> None:
    handle = target.connect("v")
    for i in range(SIZE // MIB):
        handle.pwrite(block(i + 1), i * MIB)
    handle.flush()
    handle.shutdown()


def corrupt(target: TargetProcess, member: int, off: int) -> None:
    """Change the data of a member at `off` behind the target's back."""
    superblock = read_superblock(OSFile.open(str(target.disks / f"d{member}")))
    assert superblock is not None
    off += superblock.layout.data_offset
    with (target.disks / f"d{member}").open("r+b") as f:
        f.seek(off)
        f.write(os.urandom(100))
        f.flush()
        os.fsync(f.fileno())


def finished(target: TargetProcess, timeout_s: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status: dict[str, Any] = target.call("pool.scrub.status")["g"]
        if status["state"] != "running":
            return status
        time.sleep(0.05)
    raise AssertionError(f"the scrub did not end: {status}")


def events(target: TargetProcess) -> dict[str, dict[str, Any]]:
    lines = (target.state / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return {event["kind"]: event for event in map(json.loads, lines)}


def wait_for_event(target: TargetProcess, kind: str, timeout_s: float = 20) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while kind not in events(target):
        assert time.monotonic() < deadline, sorted(events(target))
        time.sleep(0.05)
    return events(target)[kind]


def test_a_scrub_repairs_corruption_and_tells_of_it(sure: TargetProcess) -> None:
    corrupt(sure, 1, 5000)
    sure.call("pool.scrub.start", group="g", mode="check", limit_bytes_s=0)
    status = finished(sure)
    assert (status["state"], status["checksum_errors"], status["repaired"]) == ("finished", 1, 1)
    wait_for_event(sure, "scrub.started")
    assert "1 checksum errors, 1 repaired" in wait_for_event(sure, "scrub.finished")["text"]
    assert wait_for_event(sure, "member.corrupt")["data"]["path"].endswith("d1")
    handle = sure.connect("v")
    assert all(handle.pread(MIB, i * MIB) == block(i + 1) for i in range(SIZE // MIB))
    handle.shutdown()


def test_a_scrub_goes_on_after_the_target_was_killed(sure: TargetProcess) -> None:
    sure.call("pool.scrub.start", mode="check", limit_bytes_s=1 << 20)
    sure.kill()
    sure.start()
    assert sure.call("pool.scrub.status")["g"]["state"] == "running"
    sure.call("pool.scrub.pause", group="g")
    assert sure.call("pool.status")["scrubs"]["g"]["state"] == "paused"
    sure.call("pool.scrub.start", group="g", mode="check", limit_bytes_s=0)
    assert finished(sure)["state"] == "finished"


def test_bad_input_for_a_scrub_is_refused(sure: TargetProcess) -> None:
    for word, op, args in [
        ("no RAID group nope", "start", {"group": "nope"}),
        ("mode", "start", {"mode": "fix"}),
        ("limit_bytes_s", "start", {"limit_bytes_s": -1}),
        ("paused", "resume", {"group": "g"}),
        ("no RAID group is being scrubbed", "pause", {}),
    ]:
        with pytest.raises(FarstripeError, match=word):
            sure.call(f"pool.scrub.{op}", **args)
