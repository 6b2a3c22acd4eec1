"""Snapshots, clones and moves on a running target: what NBD clients see, and what is refused."""

from __future__ import annotations

import os
import time

import nbd
import pytest

from tests.interop.test_operations import BAD_INPUT, EXISTS, NOT_FOUND, REFUSED, refused
from tests.testing.targetproc import MIB, TargetProcess


def test_a_snapshot_is_an_export_that_never_changes_and_a_clone_one_that_does(target: TargetProcess) -> None:
    handle = target.connect("v")
    before, after = os.urandom(5 * MIB), os.urandom(MIB)
    handle.pwrite(before, 0)
    target.call("volume.snapshot", volumes=["v"], names=["s"])
    target.call("volume.clone", source="s", name="c")
    handle.pwrite(after, 4 * MIB - 1000)
    snapshot, clone = target.connect("s"), target.connect("c")
    assert snapshot.is_read_only() and not clone.is_read_only()
    clone.pwrite(b"clone", 0)
    assert snapshot.pread(5 * MIB, 0) == before
    assert clone.pread(5 * MIB, 0) == b"clone" + before[5:]
    assert handle.pread(MIB, 4 * MIB - 1000) == after
    facts = {one["name"]: (one["kind"], one["origin"], one["writable"]) for one in target.call("volume.list")}
    assert facts == {"c": ("clone", "s", True), "s": ("snapshot", "v", False), "v": ("volume", None, True)}
    found = target.call("volume.diff", a="s", b="v")
    assert found["ranges"] == [{"start": 3 * MIB, "length": 2 * MIB}] and found["bytes"] == 2 * MIB
    assert target.call("pool.check")["problems"] == []
    refused(target, REFUSED, "may write", "volume.rollback", name="v", snapshot="s")
    refused(target, REFUSED, "open", "volume.delete", name="s")
    for one in (handle, snapshot, clone):
        one.shutdown()
    while any(one["writers"] + one["readers"] for one in target.call("volume.list")):
        time.sleep(0.01)
    target.call("volume.rollback", name="v", snapshot="s")
    assert target.connect("v").pread(5 * MIB, 0) == before
    target.call("volume.delete", name="s")
    with pytest.raises(nbd.Error):
        target.connect("s")


def test_what_cannot_be_snapshotted_is_refused(target: TargetProcess) -> None:
    target.call("volume.snapshot", volumes=["v"], names=["s"])
    refused(target, EXISTS, "s", "volume.snapshot", volumes=["v"], names=["s"])
    refused(target, BAD_INPUT, "snapshot itself", "volume.snapshot", volumes=["s"], names=["t"])
    refused(target, BAD_INPUT, "1 volumes and 2 names", "volume.snapshot", volumes=["v"], names=["t", "u"])
    refused(target, BAD_INPUT, "a/b", "volume.snapshot", volumes=["v"], names=["a/b"])
    refused(target, NOT_FOUND, "nope", "volume.clone", source="nope", name="c")
    refused(target, REFUSED, "snapshot", "volume.resize", name="s", size=128 * MIB)
    refused(target, REFUSED, "snapshot", "group.create", name="g", volumes=["s"])
    assert [one["name"] for one in target.call("volume.list")] == ["s", "v"]


def test_a_volume_moves_to_a_new_group_under_its_client_and_the_old_group_leaves(target: TargetProcess) -> None:
    handle = target.connect("v")
    data = bytearray(os.urandom(24 * MIB))
    handle.pwrite(bytes(data[: 24 * MIB]), 0)
    target.call("volume.snapshot", volumes=["v"], names=["s"])
    disks = [target.disk(f"new{i}") for i in range(3)]
    target.call("pool.add_group", group={"name": "new", "level": 5, "members": disks})
    [old, _] = [group["name"] for group in target.call("pool.status")["groups"]]
    refused(target, NOT_FOUND, "nogroup", "volume.move", name="v", raid_group="nogroup")
    target.call("volume.move", name="v", raid_group="new")
    number = 0
    while target.call("volume.map", name="v")["moves"]:
        number += 1
        piece, off = number.to_bytes(8, "big") * 64, number * 70_000 % (23 * MIB)
        handle.pwrite(piece, off)
        data[off : off + len(piece)] = piece
        assert handle.pread(len(piece), off) == piece
    assert {run["group"] for run in target.call("volume.map", name="v")["ranges"]} == {"new"}
    target.call("pool.remove_group", name=old)
    for _ in range(500):
        if len(target.call("pool.status")["groups"]) == 1:
            break
        time.sleep(0.02)
    assert [group["name"] for group in target.call("pool.status")["groups"]] == ["new"]
    assert handle.pread(24 * MIB, 0) == data
    assert target.call("pool.check")["problems"] == []
    handle.shutdown()
    target.terminate()
    target.start()
    assert target.connect("v").pread(24 * MIB, 0) == data
    kinds = [event["kind"] for event in target.call("events.list")]
    assert "move.done" in kinds and "pool.grown" in kinds and "pool.shrunk" in kinds


def test_a_volume_in_a_replicated_group_is_snapshotted_and_moves(target: TargetProcess) -> None:
    target.call("group.create", name="g", volumes=["v"], journal_bytes=32 * MIB)
    handle = target.connect("v")
    data = os.urandom(8 * MIB)
    handle.pwrite(data, 0)
    target.call("volume.snapshot", volumes=["v"], names=["s"])
    refused(target, REFUSED, "group g", "volume.rollback", name="v", snapshot="s")
    target.call("pool.add_group", group={"name": "new", "level": 0, "members": [target.disk("new0")]})
    target.call("volume.move", name="v", raid_group="new")
    while target.call("volume.map", name="v")["moves"]:
        handle.pwrite(b"moving", MIB)
    handle.pwrite(b"moved", 3 * MIB)
    handle.flush()
    expected = data[:MIB] + b"moving" + data[MIB + 6 : 3 * MIB] + b"moved" + data[3 * MIB + 5 :]
    assert handle.pread(8 * MIB, 0) == expected
    target.kill()
    target.start()
    assert target.connect("v").pread(8 * MIB, 0) == expected
    assert target.connect("s").pread(8 * MIB, 0) == data
    assert target.call("pool.check")["problems"] == []


def test_a_group_that_joins_a_checksummed_pool_has_checksums_unless_told_otherwise(bare: TargetProcess) -> None:
    bare.make_pool(level=1, members=2, checksums=True)
    for name, more in (("alike", {}), ("without", {"checksums": False}), ("mixed", {})):
        group = {"name": name, "level": 0, "members": [bare.disk(name)], **more}
        bare.call("pool.add_group", group=group)
    found = {group["name"]: group["checksums"] for group in bare.call("pool.status")["groups"]}
    assert found == {"g": True, "alike": True, "without": False, "mixed": False}


def test_a_move_from_behind_the_end_is_refused_by_its_range(target: TargetProcess) -> None:
    refused(target, BAD_INPUT, "67108864 bytes of v", "volume.move", name="v", raid_group="g", start=65 * MIB)
