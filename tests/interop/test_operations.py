"""Control operations on a running target, mostly what bad input gets."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import nbd
import pytest

from replicator.core.errors import FarstripeError
from tests.testing.targetproc import MIB, TargetProcess
from tests.unit.nbdplugin.test_signatures import LUKS

BAD_INPUT, REFUSED, NOT_FOUND, EXISTS = 3, 4, 5, 6


def refused(target: TargetProcess, code: int, word: str, op: str, **args: Any) -> FarstripeError:
    """Assert that `op` fails with exit code `code` and a message that has `word` in it."""
    with pytest.raises(FarstripeError) as caught:
        target.call(op, **args)
    error = caught.value
    assert error.exit_code == code, f"{error.name}: {error}"
    assert word in str(error), str(error)
    return error


def test_a_node_without_a_pool_says_what_to_do(bare: TargetProcess) -> None:
    assert "pool create" in refused(bare, NOT_FOUND, "no pool", "pool.status").way_out
    refused(bare, NOT_FOUND, "no pool", "volume.create", name="v", size=MIB)
    assert bare.call("volume.list") == []


def test_pools_that_cannot_be_are_refused_and_change_nothing(bare: TargetProcess) -> None:
    disks = [bare.disk(f"x{i}") for i in range(4)]

    def group(**changes: Any) -> list[dict[str, Any]]:
        return [{"name": "g", "level": 6, "members": disks, "chunk": 65536, **changes}]

    refused(bare, BAD_INPUT, "groups", "pool.create", name="p", groups=[])
    refused(bare, BAD_INPUT, "groups", "pool.create", name="p", groups="g")
    refused(bare, BAD_INPUT, "3", "pool.create", name="p", groups=group(members=disks[:3]))
    refused(bare, BAD_INPUT, "7", "pool.create", name="p", groups=group(level=7))
    refused(bare, BAD_INPUT, "5000", "pool.create", name="p", groups=group(chunk=5000))
    refused(bare, BAD_INPUT, disks[0], "pool.create", name="p", groups=group(members=[disks[0], *disks[:3]]))
    refused(bare, BAD_INPUT, "relative", "pool.create", name="p", groups=group(members=["relative", *disks[:3]]))
    with pytest.raises(FarstripeError, match="missing-disk"):
        bare.call("pool.create", name="p", groups=group(members=[str(bare.disks / "missing-disk"), *disks[:3]]))
    refused(bare, BAD_INPUT, "a/b", "pool.create", name="a/b", groups=group())
    bare.call("pool.create", name="p", groups=group())
    refused(bare, EXISTS, "p", "pool.create", name="q", groups=group())


def test_members_of_another_pool_are_refused(target: TargetProcess) -> None:
    with TargetProcess("n2") as other:
        other.start()
        members = [str(target.disks / f"d{i}") for i in range(6)]
        refused(
            other, BAD_INPUT, "d0", "pool.create", name="p",
            groups=[{"name": "g", "level": 0, "members": members, "chunk": 65536}],
        )  # fmt: skip
    assert target.connect("v").get_size() == 64 * MIB


def test_a_disk_that_holds_something_is_taken_only_by_force(bare: TargetProcess) -> None:
    disks = [bare.disk(f"x{i}") for i in range(3)]
    with open(disks[1], "r+b") as disk:
        disk.write(LUKS)
    groups = [{"name": "g", "level": 5, "members": disks, "chunk": 65536}]
    error = refused(bare, REFUSED, "x1 holds data of type crypto_LUKS", "pool.create", name="p", groups=groups)
    assert "--force" in error.way_out
    with open(disks[1], "rb") as disk:
        assert disk.read(len(LUKS)) == LUKS
    bare.call("pool.create", name="p", groups=groups, force=True)
    fresh = bare.disk("spare")
    with open(fresh, "r+b") as disk:
        disk.write(LUKS)
    refused(bare, REFUSED, "spare holds", "pool.replace", old=disks[0], new=fresh)
    bare.call("pool.replace", old=disks[0], new=fresh, force=True)


def test_volume_names_and_sizes_are_checked(target: TargetProcess) -> None:
    refused(target, EXISTS, "v", "volume.create", name="v", size=MIB)
    refused(target, BAD_INPUT, "4097", "volume.create", name="w", size=4097)
    refused(target, BAD_INPUT, "size", "volume.create", name="w", size=0)
    refused(target, BAD_INPUT, "size", "volume.create", name="w")
    refused(target, BAD_INPUT, "../w", "volume.create", name="../w", size=MIB)
    refused(target, NOT_FOUND, "nogroup", "volume.create", name="w", size=MIB, raid_group="nogroup")
    refused(target, NOT_FOUND, "nope", "volume.delete", name="nope")
    refused(target, NOT_FOUND, "nope", "volume.resize", name="nope", size=MIB)
    assert [v["name"] for v in target.call("volume.list")] == ["v"]


def test_a_volume_in_use_is_not_deleted_or_cut(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.pwrite(b"mine", 0)
    assert "detach" in refused(target, REFUSED, "1 NBD connection", "volume.delete", name="v").way_out
    refused(target, REFUSED, "1 NBD connection", "volume.resize", name="v", size=4 * MIB, force=True)
    assert handle.pread(4, 0) == b"mine"
    handle.shutdown()
    while target.call("volume.list")[0]["writers"]:
        pass
    target.call("volume.delete", name="v")
    with pytest.raises(nbd.Error):
        target.connect("v")


def test_growing_is_seen_by_new_connections_and_shrinking_needs_force(target: TargetProcess) -> None:
    handle = target.connect("v")
    target.call("volume.resize", name="v", size=80 * MIB)
    assert handle.get_size() == 64 * MIB
    assert target.connect("v").get_size() == 80 * MIB
    handle.pwrite(b"a", 60 * MIB)
    handle.shutdown()
    while target.call("volume.list")[0]["writers"]:
        pass
    error = refused(target, REFUSED, "cut allocated data", "volume.resize", name="v", size=4 * MIB)
    assert "force" in error.way_out
    target.call("volume.resize", name="v", size=4 * MIB, force=True)
    assert target.connect("v").get_size() == 4 * MIB


def test_unknown_operations_and_missing_arguments_are_named(target: TargetProcess) -> None:
    refused(target, NOT_FOUND, "pool.explode", "pool.explode")
    refused(target, BAD_INPUT, "old", "pool.replace")
    refused(target, BAD_INPUT, "since", "events.list", since="yesterday")


def test_garbage_on_the_control_socket_ends_that_connection_only(target: TargetProcess) -> None:
    for garbage in (os.urandom(64), struct.pack("<I", 1 << 30), struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1", b"\x05"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(target.run / "target.sock"))
            sock.settimeout(10)
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            try:
                assert sock.recv(100) == b""
            except ConnectionError:
                pass  # reset, as good as closed
    assert target.call("node.info")["volumes"] == 1


def test_a_lost_member_is_replaced_while_clients_go_on(bare: TargetProcess) -> None:
    bare.make_pool(level=6)
    bare.call("volume.create", name="v", size=16 * MIB)
    handle = bare.connect("v")
    data = os.urandom(8 * MIB)
    handle.pwrite(data, 0)
    lost, fresh = str(bare.disks / "d2"), bare.disk("spare")
    bare.call("pool.fail", member=lost)
    assert handle.pread(8 * MIB, 0) == data
    handle.pwrite(b"degraded", 0)
    bare.call("pool.replace", old=lost, new=fresh)
    for _ in range(600):
        [group] = bare.call("pool.status")["groups"]
        if group["state"] == "ok":
            break
        handle.pwrite(b"rebuild!", 0)
    assert group["state"] == "ok"
    assert handle.pread(8 * MIB, 0) == b"rebuild!" + data[8:]
    kinds = [e["kind"] for e in bare.call("events.list")]
    assert "member.failed" in kinds and "member.replaced" in kinds and "rebuild.done" in kinds
