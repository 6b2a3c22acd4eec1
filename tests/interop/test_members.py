"""Members of a running target: an NBD member whose server dies and returns, spares, replacing in place, destroying."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replicator.core.errors import FarstripeError
from tests.testing.targetproc import MIB, TargetProcess
from tests.unit.raidlib.test_nbdfile import Server


def wait_for(what: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return found


def members(target: TargetProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = target.call("pool.status")["groups"][0]["members"]
    return found


def healthy(target: TargetProcess) -> bool:
    status = target.call("pool.status")
    return not status["rebuilds"] and all(m["state"] == "in_sync" for m in status["groups"][0]["members"])


def events(target: TargetProcess) -> str:
    return (target.state / "events.jsonl").read_text()


def make(target: TargetProcess, level: int, paths: list[str]) -> None:
    groups = [{"name": "g", "level": level, "members": paths, "chunk": 64 << 10}]
    target.call("pool.create", name="pool", groups=groups, area_bytes=MIB)
    target.call("volume.create", name="v", size=24 * MIB)


@pytest.fixture
def server(bare: TargetProcess, tmp_path: Path) -> Any:
    one = Server(tmp_path, "remote", size=32 * MIB)
    yield one
    one.kill()


def test_an_nbd_member_whose_server_is_killed_and_returns_gets_the_difference(
    bare: TargetProcess, server: Server
) -> None:
    make(bare, 1, [bare.disk("a", 32 * MIB), server.uri])
    handle = bare.connect("v")
    for area in range(24):
        handle.pwrite(bytes([area + 1]) * MIB, area * MIB)
    handle.flush()
    wait_for(lambda: bare.call("pool.status")["groups"][0]["marked_regions"] == 0)  # idle marks are cleared
    server.kill()
    handle.pwrite(b"x" * 4096, 5 * MIB)
    handle.flush()
    lost = members(bare)[1]
    assert lost["state"] == "failed" and lost["away"], lost
    with pytest.raises(FarstripeError, match=r"cannot be opened|does not exist|refused"):
        bare.call("pool.readd", member=server.uri)
    server.start()
    answer = bare.call("pool.readd", member=server.uri)
    assert answer["to_copy_bytes"] == MIB, "one area of 24"
    wait_for(lambda: healthy(bare))
    assert wait_for(lambda: f"{MIB} bytes copied" in events(bare))
    assert handle.pread(4096, 5 * MIB) == b"x" * 4096
    bare.call("pool.fail", member=str(bare.disks / "a"))
    assert handle.pread(4096, 5 * MIB) == b"x" * 4096
    assert all(handle.pread(1, area * MIB + 8192) == bytes([area + 1]) for area in range(24))
    handle.shutdown()
    bare.terminate()


def test_a_spare_takes_over_by_itself_and_a_working_member_is_replaced_in_place(bare: TargetProcess) -> None:
    disks = [bare.disk(name, 32 * MIB) for name in "abcs"]
    make(bare, 5, disks[:3])
    handle = bare.connect("v")
    for area in range(24):
        handle.pwrite(bytes([area + 1]) * MIB, area * MIB)
    bare.call("pool.spare_add", member=disks[3])
    assert [one["path"] for one in bare.call("pool.spare_list")] == [disks[3]]
    bare.call("pool.fail", member=disks[0])
    wait_for(lambda: members(bare)[0]["path"] == disks[3] and healthy(bare))
    assert '"spare.taken"' in events(bare)
    new = bare.disk("new", 32 * MIB)
    bare.call("pool.rebuild_limit", bytes_s=4 * MIB)
    bare.call("pool.replace", old=disks[1], new=new)
    work = wait_for(lambda: bare.call("pool.status")["rebuilds"])[0]
    assert work["replaces"] == disks[1] and members(bare)[1]["path"] == disks[1]
    bare.kill()
    bare.start()
    assert members(bare)[1]["path"] in (disks[1], new)
    assert bare.call("pool.status")["rebuild_limit_bytes_s"] == 4 * MIB
    bare.call("pool.rebuild_limit", bytes_s=0)
    wait_for(lambda: members(bare)[1]["path"] == new and healthy(bare))
    handle = bare.connect("v")
    assert all(handle.pread(1, area * MIB) == bytes([area + 1]) for area in range(24))
    handle.shutdown()


def test_a_destroyed_pool_leaves_free_disks(bare: TargetProcess) -> None:
    disks = [bare.disk(name, 32 * MIB) for name in "ab"]
    make(bare, 1, disks)
    with pytest.raises(FarstripeError, match="has volumes: v"):
        bare.call("pool.destroy")
    assert bare.call("pool.destroy", force=True) == {"not_erased": []}
    with pytest.raises(FarstripeError, match="no pool"):
        bare.call("pool.status")
    make(bare, 0, disks)
    bare.terminate()
    bare.start()
    assert bare.call("pool.status")["groups"][0]["level"] == 0
