"""Consistency groups on a real target: making them under load, roles, holds, crashes, bad input. No replicator runs."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

import nbd
import pytest

from nbdplugin import maintenance
from replicator.core.errors import FarstripeError
from tests.testing.nodes import wait_until
from tests.testing.stamped import StampedLoad, check_nothing_lost, read_generations
from tests.testing.targetproc import MIB, TargetProcess

BAD_INPUT, REFUSED, NOT_FOUND, EXISTS, MEDIUM = 3, 4, 5, 6, 9
UUID = "00112233445566778899aabbccddeeff"
PEER = "bb" * 16


def refused(target: TargetProcess, code: int, word: str, op: str, **args: Any) -> FarstripeError:
    """Assert that `op` fails with exit code `code` and a message that has `word` in it."""
    with pytest.raises(FarstripeError) as caught:
        target.call(op, **args)
    assert caught.value.exit_code == code, f"{caught.value.name}: {caught.value}"
    assert word in str(caught.value), str(caught.value)
    return caught.value


def group(target: TargetProcess, armed: bool = True, **policy: Any) -> dict[str, Any]:
    """Make group "g" of volume "v", by default journaling as if it had a peer; returns its status."""
    target.call("group.create", name="g", volumes=["v"], journal_bytes=32 * MIB)
    target.call("group.policy", group="g", startup_wait_s=0, **policy)
    if armed:
        target.call("group.arm", group="g", peer=PEER)
    return dict(target.call("group.status", group="g"))


def test_a_new_group_is_primary_untracked_and_listed(target: TargetProcess) -> None:
    status = group(target, armed=False)
    assert (status["role"], status["state"], status["mode"], status["pos"]) == ("primary", "ok", "none", 0)
    [facts] = target.call("volume.list")
    assert (facts["group"], facts["role"], facts["index"], facts["writable"]) == ("g", "primary", 0, True)
    assert [s["name"] for s in target.call("group.list")] == ["g"]
    assert target.call("group.status", group=status["uuid"])["name"] == "g"
    assert target.call("node.info")["groups"] == ["g"]


def test_groups_that_cannot_be_are_refused_and_change_nothing(target: TargetProcess) -> None:
    refused(target, BAD_INPUT, "too small", "group.create", name="g", volumes=["v"], journal_bytes=MIB)
    refused(target, NOT_FOUND, "nope", "group.create", name="g", volumes=["v", "nope"], journal_bytes=32 * MIB)
    refused(target, BAD_INPUT, "twice", "group.create", name="g", volumes=["v", "v"], journal_bytes=32 * MIB)
    refused(target, BAD_INPUT, "g/1", "group.create", name="g/1", volumes=["v"], journal_bytes=32 * MIB)
    refused(
        target, EXISTS, "d0", "group.create", name="g", volumes=["v"], journal_bytes=32 * MIB,
        journal_path=str(target.disks / "d0"),
    )  # fmt: skip
    assert (target.disks / "d0").exists()
    refused(
        target, BAD_INPUT, "No such file", "group.create", name="g", volumes=["v"], journal_bytes=32 * MIB,
        journal_path=str(target.disks / "nowhere" / "j"),
    )  # fmt: skip
    assert target.call("group.list") == []
    group(target, armed=False)
    refused(target, EXISTS, "g", "group.create", name="g", volumes=["v"], journal_bytes=32 * MIB)
    refused(target, REFUSED, "in group g", "group.create", name="h", volumes=["v"], journal_bytes=32 * MIB)
    refused(target, BAD_INPUT, "mode", "group.policy", group="g", mode="sometimes")
    refused(target, BAD_INPUT, "unknown policy", "group.policy", group="g", colour="red")
    refused(target, NOT_FOUND, "nope", "group.status", group="nope")
    refused(target, BAD_INPUT, "deadline_s", "group.hold", group="g", deadline_s=-1)
    refused(target, BAD_INPUT, "copy_id", "group.begin_copy", group="g", peer=PEER, c=None, peer_bitmaps=None)


def _why_not(target: TargetProcess, op: str, **args: object) -> str:
    with pytest.raises(FarstripeError) as caught:
        target.call(op, **args)
    return caught.value.message


def test_a_volume_of_a_group_is_not_deleted_and_not_cut_by_mistake(target: TargetProcess) -> None:
    group(target, armed=False)
    handle = target.connect("v")
    handle.pwrite(b"kept", 32 * MIB)
    refused(target, REFUSED, "in group g", "volume.delete", name="v")
    refused(target, REFUSED, "connection open", "volume.resize", name="v", size=8 * MIB)
    handle.shutdown()
    wait_until(
        lambda: "holds data beyond" in _why_not(target, "volume.resize", name="v", size=8 * MIB), "it is open", 10
    )
    target.call("volume.resize", name="v", size=80 * MIB)
    assert target.call("group.status", group="g")["volumes"][0]["size"] == 80 * MIB
    assert target.connect("v").pread(4, 32 * MIB) == b"kept"


def test_every_write_after_arming_under_load_is_in_the_journal(target: TargetProcess) -> None:
    load = StampedLoad(lambda: target.connect("v"), 1024, seed=3).start()
    try:
        load.wait_acked(100)
        group(target, armed=False)
        load.wait_acked(100)
        before = target.call("group.arm", group="g", peer=PEER)["pos"]
        acked_before = load.ledger.acked_count
        load.wait_acked(300)
    finally:
        load.stop()
    status = target.call("group.status", group="g")
    assert load.reconnects == 1
    assert status["pos"] - before >= load.ledger.acked_count - acked_before
    check_nothing_lost(load.ledger, read_generations(target.connect("v"), 1024))


@pytest.mark.kill
def test_a_journaled_volume_loses_nothing_to_kill_9_under_load(target: TargetProcess) -> None:
    group(target)
    load = StampedLoad(lambda: target.connect("v"), 2048, seed=11).start()
    try:
        for _ in range(5):
            load.wait_acked(300)
            before = target.call("group.status", group="g")
            target.kill()
            target.start()
            after = target.call("group.status", group="g")
            assert after["pos"] >= before["pos"] and after["epoch"] >= before["epoch"]
            assert (after["role"], after["state"]) == ("primary", "ok")
    finally:
        load.stop()
    check_nothing_lost(load.ledger, read_generations(target.connect("v"), 2048))


def test_a_stop_in_order_leaves_nothing_to_redo(target: TargetProcess) -> None:
    group(target)
    target.connect("v").pwrite(b"x" * MIB, 0)
    target.terminate()
    target.start()
    status = target.call("group.status", group="g")
    assert status["durable"] == status["applied"] == status["pos"]
    assert target.connect("v").pread(MIB, 0) == b"x" * MIB


def test_writes_zeroes_trims_and_large_requests_through_the_journal_read_back(target: TargetProcess) -> None:
    group(target)
    handle = target.connect("v")
    handle.pwrite(b"\xaa" * (24 * MIB), 1000)
    handle.pwrite(b"\xbb" * 5000, 3 * MIB, nbd.CMD_FLAG_FUA)
    handle.zero(2 * MIB, 5 * MIB, nbd.CMD_FLAG_NO_HOLE)
    handle.trim(2 * MIB, 9 * MIB, nbd.CMD_FLAG_FUA)
    handle.flush()
    want = bytearray(32 * MIB)
    want[1000 : 1000 + 24 * MIB] = b"\xaa" * (24 * MIB)
    want[3 * MIB : 3 * MIB + 5000] = b"\xbb" * 5000
    want[5 * MIB : 7 * MIB] = bytes(2 * MIB)
    want[9 * MIB : 11 * MIB] = bytes(2 * MIB)
    assert handle.pread(32 * MIB, 0) == bytes(want)
    target.kill()
    target.start()
    assert target.connect("v").pread(32 * MIB, 0) == bytes(want)


def test_a_held_group_parks_writers_and_lets_them_go_on(target: TargetProcess) -> None:
    group(target)
    handle = target.connect("v")
    target.call("group.hold", group="g", deadline_s=30)
    done = threading.Event()

    def write() -> None:
        handle.pwrite(b"parked", 0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not done.wait(0.3)
    target.call("group.release", group="g")
    assert done.wait(5)
    writer.join()


def test_a_hold_ends_by_itself_at_its_deadline(target: TargetProcess) -> None:
    group(target)
    target.call("group.hold", group="g", deadline_s=0.3)
    began = time.monotonic()
    target.connect("v").pwrite(b"parked", 0)
    assert 0.1 < time.monotonic() - began < 5


def test_a_demoted_group_refuses_writes_of_open_connections_and_serves_new_ones_read_only(
    target: TargetProcess,
) -> None:
    group(target)
    handle = target.connect("v")
    handle.pwrite(b"before", 0)
    target.call("group.demote", group="g")
    for request in (lambda: handle.pwrite(b"after", 0), lambda: handle.zero(4096, 0), lambda: handle.trim(4096, 0)):
        with pytest.raises(nbd.Error) as caught:
            request()
        assert caught.value.errnum == errno.EPERM
    assert "secondary here" in target.log()
    late = target.connect("v")
    assert late.is_read_only()
    assert late.pread(6, 0) == b"before"
    assert not target.call("volume.list")[0]["writable"]
    assert "secondary here, read-only" in dict(_exports(target))["v"]
    target.call("group.promote", group="g")
    assert not target.connect("v").is_read_only()


def _exports(target: TargetProcess) -> list[tuple[str, str]]:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(str(target.run / "nbd.sock"))
    seen: list[tuple[str, str]] = []
    handle.opt_list(lambda name, description: seen.append((name, description)) or 0)
    handle.opt_abort()
    return seen


def test_adopting_makes_missing_volumes_and_a_read_only_copy(target: TargetProcess) -> None:
    volumes = [{"name": "v", "size": 64 * MIB}, {"name": "new", "size": 8 * MIB}]
    args = {"uuid": UUID, "name": "theirs", "volumes": volumes, "journal_bytes": 32 * MIB}
    status = target.call("group.adopt", **args)
    assert (status["uuid"], status["role"], status["state"]) == (UUID, "secondary", "fresh")
    assert target.connect("new").is_read_only() and target.connect("new").get_size() == 8 * MIB
    assert target.call("group.adopt", **args)["uuid"] == UUID
    refused(target, REFUSED, "never completed", "group.promote", group="theirs")
    refused(target, REFUSED, "other volumes", "group.adopt", **{**args, "volumes": volumes[:1]})
    refused(target, REFUSED, "no consistent image", "volume.snapshot", volumes=["v"], names=["s"])
    refused(target, REFUSED, "no consistent image", "volume.clone", source="new", name="c")
    target.kill()
    target.start()
    assert target.call("group.status", group="theirs")["state"] == "fresh"
    target.call("group.delete", group="theirs", force=True)
    assert not target.connect("new").is_read_only()


def test_undoing_an_adoption_removes_the_volumes_it_made_and_no_others(target: TargetProcess) -> None:
    volumes = [{"name": "v", "size": 64 * MIB}, {"name": "new", "size": 8 * MIB}]
    target.call("group.adopt", uuid=UUID, name="theirs", volumes=volumes, journal_bytes=32 * MIB)
    target.call("group.delete", group=UUID, force=True, undo=True)
    assert [v["name"] for v in target.call("volume.list")] == ["v"]


def test_adopting_over_what_is_different_or_in_use_is_refused_and_makes_nothing(target: TargetProcess) -> None:
    other = {"name": "new", "size": 8 * MIB}
    base = {"uuid": UUID, "name": "theirs", "journal_bytes": 32 * MIB}
    wrong = [other, {"name": "v", "size": 32 * MIB}]
    refused(target, BAD_INPUT, "on the other node", "group.adopt", **base, volumes=wrong)
    handle = target.connect("v")
    right = [other, {"name": "v", "size": 64 * MIB}]
    refused(target, REFUSED, "open for writing", "group.adopt", **base, volumes=right)
    refused(target, BAD_INPUT, "uuid", "group.adopt", **{**base, "uuid": "../../etc"}, volumes=[other])
    assert [v["name"] for v in target.call("volume.list")] == ["v"]
    assert target.call("group.list") == []
    handle.shutdown()


def test_a_paired_group_is_not_deleted_and_an_unpaired_one_leaves_its_volumes(target: TargetProcess) -> None:
    uuid = group(target)["uuid"]
    target.connect("v").pwrite(b"kept", 0)
    refused(target, REFUSED, "paired", "group.delete", group="g")
    target.call("group.disarm", group="g", peer=PEER)
    target.call("group.delete", group="g")
    assert target.call("group.list") == []
    assert not list(target.run.glob(f"{uuid}*")) and not list((target.state / "groups").iterdir())
    handle = target.connect("v")
    assert handle.pread(4, 0) == b"kept"
    handle.pwrite(b"free", 0)


def test_the_journal_may_lie_elsewhere_and_goes_with_the_group(target: TargetProcess) -> None:
    elsewhere = target.base / "fast-journal"
    target.call("group.create", name="g", volumes=["v"], journal_bytes=32 * MIB, journal_path=str(elsewhere))
    assert elsewhere.stat().st_size == 32 * MIB
    target.call("group.arm", group="g", peer=PEER)
    target.connect("v").pwrite(b"there", 0)
    target.call("volume.create", name="w", size=4 * MIB)
    refused(
        target, EXISTS, "fast-journal", "group.create", name="h", volumes=["w"], journal_bytes=32 * MIB,
        journal_path=str(elsewhere),
    )  # fmt: skip
    assert elsewhere.stat().st_size == 32 * MIB
    target.kill()
    target.start()
    assert target.connect("v").pread(5, 0) == b"there"
    target.call("group.disarm", group="g", peer=PEER)
    target.call("group.delete", group="g")
    assert not elsewhere.exists()


def test_a_device_that_is_in_use_is_no_journal(target: TargetProcess, loop_device: str) -> None:
    wanted = {"journal_bytes": 32 * MIB, "journal_path": loop_device}
    held = os.open(loop_device, os.O_RDWR | os.O_EXCL)
    refused(target, BAD_INPUT, "busy", "group.create", name="g", volumes=["v"], **wanted)
    os.close(held)
    target.call("group.create", name="g", volumes=["v"], **wanted)
    target.call("volume.create", name="w", size=4 * MIB)
    refused(target, BAD_INPUT, "another group", "group.create", name="h", volumes=["w"], **wanted)


def test_a_full_journal_without_a_peer_becomes_a_bitmap_and_says_so(target: TargetProcess) -> None:
    group(target, full_timeout_s=0.2)
    handle = target.connect("v")
    for i in range(60):
        handle.pwrite(b"z" * MIB, (i % 60) * MIB)
    status = target.call("group.status", group="g")
    assert status["mode"] == "bitmap"
    assert "group.journal-overflow" in [e["kind"] for e in target.call("events.list")]
    assert handle.pread(MIB, 59 * MIB) == b"z" * MIB


def test_what_a_power_loss_may_have_changed_is_known_when_the_state_can_be_read_again(target: TargetProcess) -> None:
    uuid = group(target)["uuid"]
    target.connect("v").pwrite(b"z" * 4096, 5 * MIB)
    target.kill()
    directory = target.state / "groups" / uuid
    whole, bits = (directory / "state").read_bytes(), directory / "bitmap.0"
    bits.write_bytes(bytes(bits.stat().st_size))  # power loss takes what was not synced
    (target.run / f"{uuid}.page").unlink()
    (directory / "state").write_bytes(bytes(4096))
    target.start()
    time.sleep(2.5 * maintenance.TICK_S)  # the pool clears the marks of what has been quiet
    target.terminate()
    assert "but for v" in target.log()
    target.start()
    target.terminate()
    (directory / "state").write_bytes(whole)
    target.start()
    assert target.call("group.status", group="g")["unclean"]
    target.terminate()
    assert bits.read_bytes()[5 * MIB >> 16]
    target.start()
    assert target.call("pool.status")["stopped"] == "clean"


def test_a_group_whose_state_is_destroyed_blocks_its_volumes_and_no_others(target: TargetProcess) -> None:
    target.call("volume.create", name="w", size=8 * MIB)
    uuid = group(target)["uuid"]
    target.connect("v").pwrite(b"safe", 0)
    target.terminate()
    (target.state / "groups" / uuid / "state").write_bytes(bytes(4096))
    target.start()
    target.connect("w").pwrite(b"fine", 0)
    handle = target.connect("v")
    assert handle.pread(4, 0) == b"safe"
    assert handle.is_read_only()
    handle.shutdown()
    [broken] = target.call("group.list")
    assert broken["name"] == "g" and broken["failed"]
    refused(target, MEDIUM, "could not be opened", "group.status", group="g")
    refused(target, REFUSED, "group g could not be opened", "volume.delete", name="v")
    refused(target, REFUSED, "not to be used", "group.create", name="h", volumes=["v"], journal_bytes=32 * MIB)
    target.call("group.delete", group="g", force=True)
    target.connect("v").pwrite(b"free", 0)


def told_once_nobody_is_waited_for(target: TargetProcess) -> bytes:
    """What the first ten bytes are: nobody is told what the peer may lack, as long as its group waits for it."""
    handle, told = target.connect("v"), []
    reader = threading.Thread(target=lambda: told.append(bytes(handle.pread(10, 0))), daemon=True)
    reader.start()
    reader.join(0.5)
    assert not told, "a read showed what the peer may lack"
    target.call("group.policy", group="g", peer=PEER, mode="async")
    reader.join(10)
    assert told, "the read still waits"
    return told[0]


def test_a_stop_with_a_write_that_waits_for_its_peer_ends_and_forgets_nothing(target: TargetProcess) -> None:
    group(target, mode="sync", on_loss="stall", loss_timeout_s=0)
    target.call("group.sync_on", group="g", peer=PEER)
    handle = target.connect("v")
    failures: list[nbd.Error] = []

    def write() -> None:
        try:
            handle.pwrite(b"unanswered", 0)
        except nbd.Error as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.2)
    assert writer.is_alive()
    began = time.monotonic()
    target.terminate(30)
    assert time.monotonic() - began < 15
    writer.join(5)
    assert failures and failures[0].errnum in (errno.ENOTCONN, errno.ESHUTDOWN, 0)
    target.start()
    assert told_once_nobody_is_waited_for(target) == b"unanswered"
