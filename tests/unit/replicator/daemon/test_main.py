"""The process itself: start, readiness, signals, exit codes, death and return."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.control import ControlClient
from replicator.core.errors import EXIT_BAD_INPUT as BAD_INPUT
from replicator.core.errors import EXIT_EXISTS, EXIT_INTEGRITY, EXIT_NOT_FOUND, EXIT_REFUSED, DaemonNotRunning
from tests.unit.replicator.daemon.conftest import free_port

CHECKOUT = Path(__file__).resolve().parents[4]


class Process:
    def __init__(self, base: Path, **env: str) -> None:
        self.state, self.run = base / "state", base / "run"
        argv = [sys.executable, "-m", "replicator.daemon", "--state", str(self.state), "--run", str(self.run)]
        self.child = subprocess.Popen(
            argv, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, env=os.environ | env, stdin=subprocess.DEVNULL
        )

    def ready(self) -> Process:
        until = time.monotonic() + 20
        while time.monotonic() < until and self.child.poll() is None:
            try:
                self.call("node.info")
                return self
            except DaemonNotRunning:
                time.sleep(0.02)
        raise AssertionError(f"not ready: {self.child.poll()}")

    def call(self, op: str, **args: object) -> object:
        with ControlClient(self.run / "replicator.sock", 10) as client:
            return client.call(op, **args)

    def ends(self) -> tuple[int, str]:
        _, err = self.child.communicate(timeout=20)
        return self.child.returncode, err


def configure(base: Path, **fields: object) -> None:
    (base / "state").mkdir(exist_ok=True)
    config = {"node_id": "ab" * 16, "name": "n", "replication": {"address": "127.0.0.1", "port": free_port()}}
    (base / "state" / "node.json").write_text(json.dumps(config | fields))


@pytest.fixture
def start(base: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def run(**env: str) -> Process:
        started.append(Process(base, **env))
        return started[-1]

    yield run
    for process in started:
        if process.child.poll() is None:
            process.child.kill()
        process.child.wait()
        if process.child.stderr:
            process.child.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(base: Path, start: Callable[..., Process], number: int) -> None:
    configure(base)
    process = start().ready()
    process.child.send_signal(number)
    assert process.ends()[0] == 0
    assert list((base / "run").iterdir()) == []


def test_node_stop_stops_it(base: Path, start: Callable[..., Process]) -> None:
    configure(base)
    process = start().ready()
    assert process.call("node.stop") == {"pid": process.child.pid}
    assert process.ends()[0] == 0


def test_systemd_is_told(base: Path, start: Callable[..., Process]) -> None:
    configure(base)
    path = base / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        process = start(NOTIFY_SOCKET=str(path))
        assert b"READY=1" in manager.recv(4096)
        process.child.terminate()
        assert b"STOPPING=1" in manager.recv(4096)
        assert process.ends()[0] == 0


def test_after_sigkill_it_starts_again(base: Path, start: Callable[..., Process]) -> None:
    configure(base)
    first = start().ready()
    first.child.kill()
    first.child.wait()
    assert (base / "run" / "replicator.sock").exists()
    again = start().ready()
    assert (base / "run" / "replicator.pid").read_text().strip() == str(again.child.pid)


def test_a_second_one_is_refused_and_the_first_lives(base: Path, start: Callable[..., Process]) -> None:
    configure(base)
    first = start().ready()
    code, err = start().ends()
    assert code == EXIT_EXISTS and "runs already" in err
    assert first.call("node.info")


def test_no_node_bad_configuration_and_damage_have_their_exit_codes(base: Path, start: Callable[..., Process]) -> None:
    code, err = start().ends()
    assert code == EXIT_NOT_FOUND and err.splitlines()[-1].startswith("farstripe-replicator: there is no node")
    configure(base, node_id="x")
    assert start().ends()[0] == BAD_INPUT
    configure(base)
    (base / "state" / "peers").mkdir(exist_ok=True)
    (base / "state" / "peers" / "x.json").write_text("{")
    code, err = start().ends()
    assert code == EXIT_INTEGRITY and "x.json" in err


def test_a_taken_port_is_refused(base: Path, start: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configure(base, replication={"address": "127.0.0.1", "port": port})
        code, err = start().ends()
        assert code == EXIT_REFUSED and f"port {port}" in err
