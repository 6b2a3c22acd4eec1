"""Clients that go away with many answers pending: nbdkit must not trip over them. See nbdplugin/departure.py."""

from __future__ import annotations

import time

import nbd
import pytest

from tests.testing.targetproc import MIB, TargetProcess

PEER = "bb" * 16
WRITES = 32
TRIES = 6


@pytest.fixture
def held(target: TargetProcess) -> TargetProcess:
    """A target whose group "g" (volume "v") journals, so that a hold parks its writers."""
    target.call("group.create", name="g", volumes=["v"], journal_bytes=32 * MIB)
    target.call("group.policy", group="g", startup_wait_s=0)
    target.call("group.arm", group="g", peer=PEER)
    return target


class Client:
    """A connection with many writes under way."""

    def __init__(self, target: TargetProcess) -> None:
        self.handle = target.connect("v")
        self.failed = False
        for block in range(WRITES):
            data = nbd.Buffer.from_bytearray(bytearray(b"x" * 4096))
            self.handle.aio_pwrite(data, block * 4096, self._answered)
        self.poll(0.2)

    def _answered(self, error: nbd.Buffer | int) -> int:
        self.failed |= bool(error if isinstance(error, int) else error.value)
        return 1

    def poll(self, seconds: float, until_error: bool = False) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until_error and self.failed):
            self.handle.poll(5)


def test_client_leaves_while_its_writes_are_parked(held: TargetProcess) -> None:
    for _ in range(TRIES):
        held.call("group.hold", group="g", deadline_s=30)
        client = Client(held)
        del client
        held.call("group.release", group="g")
        time.sleep(0.2)
        assert held.call("group.status", group="g")["role"] == "primary"
    assert bytes(held.connect("v").pread(4096, 0)) == b"x" * 4096


def test_client_leaves_at_the_first_of_many_errors(held: TargetProcess) -> None:
    for _ in range(TRIES):
        held.call("group.hold", group="g", deadline_s=30)
        client = Client(held)
        held.call("group.demote", group="g")
        held.call("group.release", group="g")
        client.poll(5, until_error=True)
        assert client.failed
        del client
        time.sleep(0.2)
        held.call("group.promote", group="g", force=True)
    assert held.call("group.status", group="g")["role"] == "primary"
