"""Before nbdkit runs: locks, sockets, and what is said when one cannot be had."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdplugin import launch
from replicator.core.errors import AlreadyExists, BadInput, NotFound, Refused


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fs-", dir="/tmp") as directory:
        yield Path(directory)


def test_a_state_directory_has_one_target(tmp_path: Path) -> None:
    held = launch.lock_state(tmp_path)
    with pytest.raises(AlreadyExists, match="a target runs"):
        launch.lock_state(tmp_path)
    os.close(held)
    os.close(launch.lock_state(tmp_path))


def test_a_target_that_dies_just_now_is_waited_for(tmp_path: Path) -> None:
    held = launch.lock_state(tmp_path)
    timer = threading.Timer(0.2, os.close, (held,))
    timer.start()
    os.close(launch.lock_state(tmp_path))
    timer.join()


def test_the_unix_socket_replaces_a_dead_one_and_is_ours_alone(short_dir: Path) -> None:
    path = short_dir / "nbd.sock"
    launch.unix_listener(path).close()
    with launch.unix_listener(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_path_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="longer than 107 bytes") as caught:
        launch.unix_listener(tmp_path / ("x" * 100) / "nbd.sock")
    assert "--run" in caught.value.way_out


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} on 127.0.0.1 is in use") as caught:
            launch.tcp_listener("127.0.0.1", port)
    assert "nbd.port" in caught.value.way_out


def test_a_foreign_address_is_named() -> None:
    with pytest.raises(BadInput, match=r"192\.0\.2\.1"):
        launch.tcp_listener("192.0.2.1", 10809)


def test_a_missing_node_is_an_error_of_the_caller(short_dir: Path) -> None:
    with pytest.raises(NotFound, match="holds no node"):
        launch.start_in_background(short_dir, short_dir / "run")


def test_the_command_line_reports_the_reason_and_its_exit_status(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = {"node_id": "0" * 32, "name": "a", "nbd": {"port": port}}
        (short_dir / "node.json").write_text(json.dumps(config))
        argv = [sys.executable, "-m", "nbdplugin.launch", "--state", short_dir, "--run", short_dir / "run"]
        for extra in ([], ["--background"]):
            done = subprocess.run([*argv, *extra], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == Refused.exit_code
            assert f"port {port} on 127.0.0.1 is in use" in done.stderr
