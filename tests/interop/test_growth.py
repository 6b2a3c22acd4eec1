"""RAID groups of a running target take the room that their members got, while hosts write."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from replicator.core.errors import FarstripeError
from tests.interop.test_members import events, make, members
from tests.testing.targetproc import MIB, TargetProcess
from tests.unit.raidlib.test_nbdfile import Server

BLOCK = 4096


class Writer(threading.Thread):
    """Writes blocks of a volume in random order until it is told to stop, and knows what it wrote."""

    def __init__(self, target: TargetProcess, volume: str, first: int, blocks: int) -> None:
        super().__init__()
        self.handle = target.connect(volume)
        self.first, self.blocks = first, blocks
        self.written: dict[int, bytes] = {}
        self.stop = threading.Event()
        self.trouble: list[BaseException] = []

    def run(self) -> None:
        """See Thread."""
        rng = random.Random(self.first)
        try:
            while not self.stop.is_set():
                block, data = self.first + rng.randrange(self.blocks), rng.randbytes(BLOCK)
                self.handle.pwrite(data, block * BLOCK)
                self.written[block] = data
                if rng.random() < 0.01:
                    self.handle.flush()
        except Exception as exc:
            self.trouble.append(exc)

    def end(self) -> None:
        """Stop, flush, and say whether all went well."""
        self.stop.set()
        self.join()
        self.handle.flush()
        self.handle.shutdown()
        assert not self.trouble


@pytest.mark.parametrize(("level", "disks", "checksums"), [(5, 3, True), (0, 2, False), (10, 4, False)])
def test_a_group_grows_under_writes_and_holds_them_after_a_kill(
    bare: TargetProcess, level: int, disks: int, checksums: bool
) -> None:
    bare.make_pool(level=level, members=disks, size=24 * MIB, checksums=checksums)
    before = bare.call("pool.status")["groups"][0]
    with pytest.raises(FarstripeError, match=r"no room for more areas: .*make every member larger first"):
        bare.call("pool.grow")
    bare.call("volume.create", name="v", size=before["size"] + 24 * MIB)
    writers = [Writer(bare, "v", first * 2048, 2048) for first in range(2)]
    for writer in writers:
        writer.start()
    for turn in (1, 2):
        for member in members(bare):
            os.truncate(member["path"], (24 + 16 * turn) * MIB)
        growable = bare.call("pool.status")["groups"][0]["growable"]
        assert growable > 10 * MIB
        planned = bare.call("pool.grow", dry_run=True)
        assert planned == bare.call("pool.grow", name="g")
        assert planned["groups"][0]["size"] - planned["groups"][0]["old_size"] == growable
    for writer in writers:
        writer.end()
    assert events(bare).count('"pool.grown"') == 2
    handle = bare.connect("v")
    size = before["size"] + 24 * MIB
    for at in range(0, size, MIB):
        handle.pwrite(b"%8d" % at, at + MIB - 8)
    handle.flush()
    bare.kill()
    bare.start()
    handle = bare.connect("v")
    for writer in writers:
        for block, data in writer.written.items():
            if block * BLOCK % MIB < MIB - BLOCK:
                assert handle.pread(BLOCK, block * BLOCK) == data
    assert all(handle.pread(8, at + MIB - 8) == b"%8d" % at for at in range(0, size, MIB))
    assert bare.call("pool.check")["problems"] == []
    handle.shutdown()
    bare.terminate()


def test_an_export_that_was_enlarged_is_measured_anew(bare: TargetProcess, tmp_path: Path) -> None:
    server = Server(tmp_path, "remote", size=32 * MIB)
    try:
        make(bare, 1, [bare.disk("a", 32 * MIB), server.uri])
        writer = Writer(bare, "v", 0, 2048)
        writer.start()
        os.truncate(bare.disks / "a", 64 * MIB)
        with pytest.raises(FarstripeError, match="no room for more areas"):
            bare.call("pool.grow", name="g")
        os.truncate(server.backing, 64 * MIB)
        (grown,) = bare.call("pool.grow")["groups"]
        assert grown["size"] - grown["old_size"] > 28 * MIB
        writer.end()
        bare.call("volume.create", name="w", size=28 * MIB)
        handle = bare.connect("w")
        for at in range(0, 28 * MIB, MIB):
            handle.pwrite(b"%8d" % at, at)
        handle.flush()
        bare.call("pool.fail", member=str(bare.disks / "a"))
        assert all(handle.pread(8, at) == b"%8d" % at for at in range(0, 28 * MIB, MIB))
        handle.shutdown()
        handle = bare.connect("v")
        assert all(handle.pread(BLOCK, block * BLOCK) == data for block, data in writer.written.items())
        handle.shutdown()
        assert [member["state"] for member in members(bare)] == ["failed", "in_sync"]
        bare.terminate()
    finally:
        server.kill()
