"""Starting, stopping, being killed, coming back: real processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import nbd
import pytest

from replicator.core.errors import AlreadyExists, DaemonNotRunning
from tests.testing.stamped import StampedLoad, check_nothing_lost, read_generations
from tests.testing.targetproc import MIB, TargetProcess


def test_a_stop_in_order_ends_within_a_moment_though_a_client_is_idle(target: TargetProcess) -> None:
    handle = target.connect("v")
    handle.pwrite(b"kept", 0)
    began = time.monotonic()
    target.terminate(10)
    assert time.monotonic() - began < 5
    assert "everything marked clean" in target.log()
    target.start()
    assert target.connect("v").pread(4, 0) == b"kept"
    assert [e["kind"] for e in target.call("events.list")][-3:] == ["node.stopping", "node.stopped", "node.started"]


def test_node_stop_does_the_same(target: TargetProcess) -> None:
    target.call("node.stop")
    assert os.waitstatus_to_exitcode(target.wait(10)) == 0
    assert not (target.run / "target.pid").exists()
    with pytest.raises(DaemonNotRunning):
        target.call("node.info")


def test_busy_clients_lose_their_connection_at_a_stop_and_are_told_no_error(target: TargetProcess) -> None:
    """A kernel client repeats what was not answered; an error answer it passes on to the filesystem."""
    ends: list[int] = []

    def write(handle: nbd.NBD) -> None:
        try:
            while True:
                handle.pwrite(bytes(65536), 0)
        except nbd.Error as exc:
            ends.append(exc.errnum)

    for _ in range(4):
        clients = [threading.Thread(target=write, args=(target.connect("v"),)) for _ in range(12)]
        for client in clients:
            client.start()
        time.sleep(0.3)
        target.terminate(10)
        for client in clients:
            client.join(10)
        target.start()
    assert set(ends) == {errno.ENOTCONN} and len(ends) == 48


def test_a_second_target_on_the_same_state_is_refused(target: TargetProcess) -> None:
    second = TargetProcess()
    second.state = target.state
    with second, pytest.raises(AlreadyExists, match="a target runs on"):
        second.start()
    assert target.call("node.info")["pid"] == target.pid


def test_a_killed_target_leaves_nothing_that_hinders_the_next(target: TargetProcess) -> None:
    target.kill()
    assert (target.run / "nbd.sock").exists()
    target.start()
    assert target.connect("v").get_size() == 64 * MIB


@pytest.mark.kill
@pytest.mark.parametrize("level", [0, 5])
def test_every_acknowledged_write_survives_kill_9_under_load(bare: TargetProcess, level: int) -> None:
    bare.make_pool(level=level)
    bare.call("volume.create", name="v", size=32 * MIB)
    blocks = 2048
    load = StampedLoad(lambda: bare.connect("v"), blocks, seed=level).start()
    try:
        for _ in range(5):
            load.wait_acked(400)
            bare.kill()
            bare.start()
    finally:
        load.stop()
    check_nothing_lost(load.ledger, read_generations(bare.connect("v"), blocks))


@pytest.mark.kill
def test_a_stop_under_load_answers_or_drops_but_never_fails_a_request(target: TargetProcess) -> None:
    load = StampedLoad(lambda: target.connect("v"), 1024, seed=7).start()
    try:
        for _ in range(3):
            load.wait_acked(200)
            target.terminate()
            target.start()
        load.wait_acked(50)
    finally:
        load.stop()
    assert not [text for text in load.refused if "errno" in text and "108" in text]  # 108: ESHUTDOWN
    check_nothing_lost(load.ledger, read_generations(target.connect("v"), 1024))


def test_a_volume_made_before_a_kill_is_there_after_it(target: TargetProcess) -> None:
    target.call("volume.create", name="late", size=8 * MIB)
    target.connect("late").pwrite(b"x" * 4096, 0)
    target.kill()
    target.start()
    assert target.connect("late").pread(4096, 0) == b"x" * 4096


def test_a_pool_whose_making_was_cut_short_is_found_or_forgotten(target: TargetProcess) -> None:
    hints, making = target.state / "pool.json", target.state / "pool.json.making"
    target.call("volume.delete", name="v")
    target.terminate()
    hints.rename(making)
    target.start()
    assert target.call("pool.status")["name"] == "pool"
    assert hints.exists() and not making.exists()
    target.terminate()
    hints.rename(making)
    for disk in target.disks.iterdir():
        disk.write_bytes(bytes(64 * MIB))
    target.start()
    assert target.call("node.info")["pool"] is None
    target.call("pool.create", name="p", groups=[
        {"name": "g", "level": 0, "members": [str(d) for d in target.disks.iterdir()], "chunk": 65536}
    ])  # fmt: skip


def test_a_target_whose_pool_is_gone_says_so_at_start(target: TargetProcess) -> None:
    target.terminate()
    for disk in target.disks.iterdir():
        disk.unlink()
    with pytest.raises(Exception, match=r"d0|member|pool") as caught:
        target.start()
    target.pid = 0
    assert getattr(caught.value, "exit_code", 0) in (3, 5, 9)


def test_a_connection_during_the_stop_is_turned_away(target: TargetProcess) -> None:
    target.terminate()
    with pytest.raises(nbd.Error):
        target.connect("v")


def test_a_service_manager_is_told_when_it_serves_and_when_it_stops() -> None:
    with TargetProcess() as target, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(target.base / "notify"))
        manager.settimeout(30)
        argv = [sys.executable, "-m", "nbdplugin.launch", "--state", target.state, "--run", target.run]
        env = {**os.environ, "NOTIFY_SOCKET": str(target.base / "notify")}
        process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert manager.recv(1000).startswith(b"READY=1")
            assert target.call("node.info")["pid"] == process.pid
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_a_target_lives_on_when_the_one_who_started_it_ends() -> None:
    with TargetProcess() as target:
        argv = [sys.executable, "-m", "nbdplugin.launch", "--state", target.state, "--run", target.run, "--background"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        pid = int(done.stdout)
        try:
            time.sleep(0.3)
            assert target.call("node.info")["pid"] == pid
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_client_that_leaves_in_the_middle_does_not_end_the_service(target: TargetProcess) -> None:
    """nbdkit 1.32 aborts when a client goes away while answers to it are under way: then the target comes back."""
    target.terminate(10)
    argv = [sys.executable, "-m", "nbdplugin.launch", "--state", target.state, "--run", target.run, "--background"]
    first = int(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout)
    try:
        keeper = nbd.NBD()
        keeper.connect_uri(target.uri("v"))
        keeper.pwrite(b"kept" * 1024, 0)
        for _ in range(200):
            try:
                client = nbd.NBD()
                client.connect_uri(target.uri("v"))
                answered: list[int] = []

                def note(error: int, answered: list[int] = answered) -> int:
                    answered.append(error)
                    return 1  # libnbd may forget the command

                for i in range(32):
                    client.aio_pwrite(bytes(4096), (1 + i) * MIB, completion=note)
                while not answered:
                    client.poll(100)
            except nbd.Error:
                time.sleep(0.2)  # it is on its way back
            if int((target.run / "target.pid").read_text()) != first:
                break
        deadline = time.monotonic() + 20
        while True:
            try:
                again = nbd.NBD()
                again.connect_uri(target.uri("v"))
                break
            except nbd.Error:
                assert time.monotonic() < deadline, (target.run / "target.log").read_text()[-2000:]
                time.sleep(0.1)
        assert bytes(again.pread(4096, 0)) == b"kept" * 1024
    finally:
        os.kill(int((target.run / "target.pid").read_text()), signal.SIGKILL)
