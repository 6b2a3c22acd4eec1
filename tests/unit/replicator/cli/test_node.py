from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replicator.attach import records
from replicator.attach.handshake import Endpoint
from replicator.attach.records import Attachment
from replicator.cli import processes
from replicator.cli.access import Node
from replicator.core.errors import MediumError
from tests.unit.replicator.cli.conftest import FakeNode

# -- init ----------------------------------------------------------------------------------------------------


def test_init_writes_a_node_of_its_own_id(node: FakeNode, tmp_path: Path) -> None:
    fresh = tmp_path / "other" / "state"
    done = node.run("--state", str(fresh), "node", "init", "B", "--nbd-port", "10809", "--json")
    stored = json.loads((fresh / "node.json").read_text())
    assert done.code == 0 and done.json == stored
    assert stored["name"] == "B"
    assert len(stored["node_id"]) == 32 and set(stored["node_id"]) <= set("0123456789abcdef")
    assert stored["nbd"] == {"port": 10809, "address": "127.0.0.1"}
    assert stored["replication"] == {"address": "127.0.0.1", "port": 10810}
    assert (fresh.stat().st_mode & 0o777) == 0o700
    assert os.listdir(fresh) == ["node.json"]


def test_without_a_port_nbd_is_on_the_unix_socket_only(node: FakeNode, tmp_path: Path) -> None:
    for extra in ([], ["--nbd-port", "0"]):
        state = tmp_path / f"n{len(extra)}"
        node.run("--state", str(state), "node", "init", "B", *extra)
        assert json.loads((state / "node.json").read_text())["nbd"]["port"] is None


def test_an_existing_node_is_never_overwritten(node: FakeNode) -> None:
    before = (node.state / "node.json").read_bytes()
    assert node.run("node", "init", "B").code == 6
    assert (node.state / "node.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["a/b"], 3), (["-x"], 2), ([""], 3), (["x" * 64], 3), (["B", "--nbd-port", "70000"], 2),
        (["B", "--nbd-port", "10810"], 3), (["B", "--nbd-address", "no such host"], 2),
    ],
)  # fmt: skip
def test_bad_names_and_addresses_make_no_node(node: FakeNode, tmp_path: Path, argv: list[str], code: int) -> None:
    state = tmp_path / "s"
    assert node.run("--state", str(state), "node", "init", *argv).code == code
    assert not (state / "node.json").exists()


def test_a_state_directory_that_is_a_file(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert node.run("--state", str(tmp_path / "f"), "node", "init", "B").code == 3


# -- which process is ours -----------------------------------------------------------------------------------


def fake_proc(root: Path, pid: int, *argv: str) -> None:
    (root / str(pid)).mkdir(parents=True)
    (root / str(pid) / "cmdline").write_bytes(b"\0".join(a.encode() for a in argv) + b"\0")
    (root / str(pid) / "stat").write_text(f"{pid} (x) S " + " ".join(["1"] * 40))


def test_a_process_is_ours_by_program_and_run_directory(tmp_path: Path) -> None:
    node = Node(state=tmp_path / "s", run=tmp_path / "r")
    proc, run = tmp_path / "proc", str(tmp_path / "r")
    fake_proc(proc, 1, "farstripe-target", "-f", "python", "plugin.py", "state=/s", f"run={run}")
    fake_proc(proc, 2, "python", "-m", "replicator.daemon", "--state", "/s", "--run", run)
    fake_proc(proc, 3, "farstripe-target", "-f", "python", "plugin.py", "state=/s", f"run={run}2")
    fake_proc(proc, 4, "vi", run)
    assert processes.is_ours(1, "target", node, str(proc))
    assert processes.is_ours(2, "replicator", node, str(proc))
    assert not processes.is_ours(2, "target", node, str(proc))
    assert not processes.is_ours(3, "target", node, str(proc))  # another node of this host
    assert not processes.is_ours(4, "target", node, str(proc))
    assert not processes.is_ours(5, "target", node, str(proc))


# -- stopping ------------------------------------------------------------------------------------------------

STUBBORN = "import signal,sys,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
DOCILE = "import sys,time; print('up', flush=True); time.sleep(60)"
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(node: FakeNode) -> Iterator[Spawn]:
    """Start a stand-in for the replicator: right name and run directory on its command line."""
    children: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", code, "replicator.daemon", "--run", str(node.run_dir)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout and child.stdout.readline() == b"up\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout
        child.stdout.close()


@pytest.fixture
def cli_node(node: FakeNode) -> Node:
    node.replicator.stop()
    return Node(state=node.state, run=node.run_dir)


def test_a_process_without_a_pid_file_is_found_and_stopped(cli_node: Node, spawn: Spawn) -> None:
    child = spawn(DOCILE)
    assert processes.find_pid("replicator", cli_node) == child.pid
    assert processes.stop("replicator", cli_node, 5, force=False) == "stopped"
    assert child.wait(1) == -15
    assert processes.stop("replicator", cli_node, 5, force=False) == "not running"


def test_a_stubborn_process_is_killed_only_by_force(node: FakeNode, cli_node: Node, spawn: Spawn) -> None:
    child = spawn(STUBBORN)
    done = node.run("node", "stop", "--timeout", "0.2")
    assert done.code == 11 and "--force" in done.err
    with pytest.raises(Exception, match="has not ended"):
        processes.stop("replicator", cli_node, 0.2, force=False)
    assert child.poll() is None
    assert processes.stop("replicator", cli_node, 0.2, force=True) == "killed"
    assert child.wait(1) == -9


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(node: FakeNode, cli_node: Node) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (node.run_dir / "replicator.pid").write_text(f"{bystander.pid}\n")
        state = processes.state_of("replicator", cli_node)
        assert not state["running"] and "ended without a goodbye" in state["problem"]
        assert processes.stop("replicator", cli_node, 1, force=True) == "not running"
        assert bystander.poll() is None
        assert not (node.run_dir / "replicator.pid").exists()
    finally:
        bystander.kill()
        bystander.wait()


# -- starting ------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_before_anything_is_started(node: FakeNode, cli_node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = json.loads((node.state / "node.json").read_text())
        config["replication"]["port"] = taken.getsockname()[1]
        (node.state / "node.json").write_text(json.dumps(config))
        with pytest.raises(Exception, match="cannot listen") as caught:
            processes.start("replicator", cli_node)
    assert "ss -ltnp" in str(caught.value)


def test_a_replicator_that_ends_at_once_is_reported_with_its_last_words(
    node: FakeNode, cli_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(processes._MODULES, "replicator", "replicator.no_such_module")
    monkeypatch.setattr(processes, "_check_ports", lambda *_: None)  # somebody may have a node on the default port
    started = time.monotonic()
    with pytest.raises(Exception, match="no_such_module"):
        processes.start("replicator", cli_node)
    assert time.monotonic() - started < 10


def test_the_replicator_is_started_although_the_target_is_not(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(process: str, _node: Node, _force: bool) -> str:
        if process == "target":
            raise MediumError("two disks are gone")
        return "started"

    monkeypatch.setattr(processes, "start", start)
    done = node.run("node", "start")
    assert done.code == 9 and "replicator: started" in done.out and "two disks are gone" in done.err
    done = node.run("node", "start", "--json")
    assert done.out == "" and done.error["message"] == "two disks are gone"


@pytest.mark.parametrize("force", [False, True])
def test_force_reaches_the_target_that_opens_the_pool(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    node.target.stop()
    started: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(argv)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(processes.subprocess, "run", run)
    assert processes.start("target", Node(state=node.state, run=node.run_dir), force) == "started"
    assert started[0][1:3] == ["-m", "nbdplugin.launch"] and ("--force" in started[0]) == force


def test_of_two_starts_at_the_same_moment_one_finds_it_running(cli_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[str] = []

    def start_replicator(node: Node) -> None:
        time.sleep(0.3)
        running.append("replicator")

    monkeypatch.setattr(processes, "find_pid", lambda process, _node: len(running))
    monkeypatch.setattr(processes, "_start_replicator", start_replicator)
    monkeypatch.setattr(processes, "_check_ports", lambda process, _node: None)
    monkeypatch.setattr(Node, "answers", lambda *_: {})
    with ThreadPoolExecutor() as pool:
        words = list(pool.map(lambda _: processes.start("replicator", cli_node), range(3)))
    assert sorted(words) == ["already running", "already running", "started"] and running == ["replicator"]


def test_start_without_a_node_says_so(node: FakeNode) -> None:
    (node.state / "node.json").unlink()
    assert node.run("node", "start").code == 5


# -- status --------------------------------------------------------------------------------------------------


def test_status_of_a_node_that_runs_and_of_one_that_does_not(node: FakeNode) -> None:
    info: dict[str, Any] = {"pid": 1}
    node.target.answers["node.info"] = info
    node.replicator.answers["node.info"] = info
    done = node.run("node", "status")
    assert done.code == 0 and done.out.count("running") == 2
    node.replicator.stop()
    done = node.run("node", "status", "--json")
    assert done.code == 7
    assert done.json["target"]["answers"] and not done.json["replicator"]["answers"]
    assert done.json["replicator"]["problem"] == "not started"


def test_stop_says_which_devices_wait(node: FakeNode) -> None:
    node.target.stop()
    node.replicator.stop()
    started = records.process_started(os.getpid())
    at = Attachment(export="data", endpoint=Endpoint(path="/s"), index=1, pid=os.getpid(), pid_started=started)
    records.save(node.run_dir, at)
    done = node.run("node", "stop")
    assert done.code == 0 and "/dev/nbd1" in done.err
