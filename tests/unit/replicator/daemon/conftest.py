"""Replicator nodes in this process: real sockets and TLS on loopback, a stand-in for the target."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.control import ControlClient, ControlServer
from replicator.core.errors import NotFound
from replicator.daemon.service import Replicator


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class StubTarget:
    """A control socket that remembers what it was asked; groups and volumes are plain maps the test fills in."""

    def __init__(self, path: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.groups: dict[str, dict[str, Any]] = {}
        self.volumes: list[dict[str, Any]] = []
        self.sets: list[dict[str, Any]] = []
        self.fail: dict[str, Exception] = {}
        self.delay_s = 0.0
        self.answer: dict[str, Callable[[dict[str, Any]], Any]] = {}
        ops = ("status", "policy", "arm", "disarm", "adopt", "delete", "list", "link", "follow", "promote", "demote",
               "extend_copy", "resume_copy")  # fmt: skip
        handlers = {f"group.{op}": self._handler(f"group.{op}") for op in ops}
        handlers["volume.list"] = self._handler("volume.list")
        handlers["set.list"] = lambda args: self.sets
        handlers["set.put"] = self._put_set
        self.server = ControlServer(path, handlers)
        self.server.start()

    def add_group(self, uuid: str, name: str, role: str = "primary", **more: Any) -> dict[str, Any]:
        self.groups[uuid] = {
            "uuid": uuid, "name": name, "role": role, "state": "ok" if role == "primary" else "fresh",
            "mode": "journal",
            "pos": 0, "durable": 0, "applied": 0, "floor": 0, "hist": [], "bitmaps": {}, "policy": {"mode": "async"},
            "journal": {"capacity": 1 << 20, "first_seq": 1, "head_seq": 0}, "copying": False, "edge": 0,
            "upstream": "", "edges": [], "volumes": [{"index": 0, "name": "v0", "size": 1 << 20}], **more,
        }  # fmt: skip
        return self.groups[uuid]

    def _handler(self, op: str) -> Callable[[dict[str, Any]], Any]:
        def handle(args: dict[str, Any]) -> Any:
            self.asked.append((op, dict(args)))
            time.sleep(self.delay_s)
            if op in self.fail:
                raise self.fail[op]
            if op in self.answer:
                return self.answer[op](args)
            if op == "volume.list":
                return self.volumes
            if op == "group.list":
                return list(self.groups.values())
            if op == "group.adopt":
                return self.add_group(args["uuid"], args["name"], "secondary")
            group = self._find(args["group"])
            if op == "group.arm" and args.get("upstream"):
                group["upstream"] = args["peer"]
            if op == "group.delete":
                del self.groups[group["uuid"]]
            if op == "group.policy":
                group["policy"] |= {key: value for key, value in args.items() if key not in ("group", "peer")}
                return group["policy"]
            return group

        return handle

    def _put_set(self, args: dict[str, Any]) -> dict[str, Any]:
        if any(one["name"] == args["name"] and one["rev"] >= args["rev"] for one in self.sets):
            return {"stored": False}
        groups = [{"uuid": uuid} for uuid in args["groups"]]
        self.sets = [{"decided_ns": 0, "standing": "source", **args, "groups": groups}]
        return {"stored": True}

    def _find(self, which: str) -> dict[str, Any]:
        for group in self.groups.values():
            if which in (group["uuid"], group["name"]):
                return group
        raise NotFound(f"no group {which!r} on this node")

    def ops(self) -> list[str]:
        return [op for op, _ in self.asked]


class InProcess:
    """One replicator with its stub target."""

    def __init__(self, base: Path, name: str) -> None:
        self.name, self.state, self.run, self.port = name, base / name / "state", base / name / "run", free_port()
        self.state.mkdir(parents=True)
        self.run.mkdir()
        self.node_id = os.urandom(16).hex()
        self.write_config()
        self.target = StubTarget(self.run / "target.sock")
        self.replicator: Replicator | None = None

    def write_config(self, **replication: Any) -> None:
        config = {"node_id": self.node_id, "name": self.name}
        config["replication"] = {"address": "127.0.0.1", "port": self.port, **replication}  # type: ignore[assignment]
        (self.state / "node.json").write_text(json.dumps(config))

    def start(self) -> InProcess:
        self.replicator = Replicator(self.state, self.run)
        self.replicator.start()
        return self

    def stop(self) -> None:
        if self.replicator is not None:
            self.replicator.stop()
            self.replicator = None

    def call(self, op: str, **args: Any) -> Any:
        with ControlClient(self.run / "replicator.sock", 30) as client:
            return client.call(op, **args)

    def events(self) -> list[str]:
        return [event["kind"] for event in self.call("events.list")]

    def close(self) -> None:
        self.stop()
        self.target.server.stop()


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: Unix socket paths have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fsr-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_node(base: Path) -> Iterator[Callable[[str], InProcess]]:
    made: list[InProcess] = []

    def make(name: str) -> InProcess:
        made.append(InProcess(base, name).start())
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def two(make_node: Callable[[str], InProcess]) -> tuple[InProcess, InProcess]:
    return make_node("alpha"), make_node("beta")


@pytest.fixture
def joined(two: tuple[InProcess, InProcess]) -> tuple[InProcess, InProcess]:
    a, b = two
    b.call("peer.join", token=a.call("peer.token")["token"])
    return a, b
