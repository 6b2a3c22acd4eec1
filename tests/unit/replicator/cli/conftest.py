"""A node whose two processes are made up: real control sockets, answers given by the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from replicator.cli import main as cli_main
from replicator.control import ControlServer

Answer = Any


@dataclass
class Process:
    """One made-up process. `answers` maps an op to a result, an exception, or a function of the arguments."""

    path: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    server: ControlServer | None = None

    def start(self) -> None:
        self.server = ControlServer(self.path, _Handlers(self))
        self.server.start()

    def stop(self) -> None:
        if self.server:
            self.server.stop()
        self.server = None

    def asked(self, op: str) -> dict[str, Any]:
        """The arguments of the last call of `op`."""
        return next(args for name, args in reversed(self.calls) if name == op)


class _Handlers(dict[str, Callable[[dict[str, Any]], object]]):
    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def get(self, op: str, default: Any = None) -> Any:  # type: ignore[override]
        if op not in self._process.answers:
            return default

        def handle(args: dict[str, Any]) -> object:
            self._process.calls.append((op, dict(args)))
            answer = self._process.answers[op]
            if callable(answer):
                return answer(args)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return handle


@dataclass
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.err)["error"]  # type: ignore[no-any-return]


@dataclass
class FakeNode:
    state: Path
    run_dir: Path
    target: Process
    replicator: Process
    _capsys: pytest.CaptureFixture[str]

    def run(self, *argv: str) -> Done:
        """Run `farstripe ARGV` against this node, in this process."""
        self._capsys.readouterr()
        code = cli_main.run(["--state", str(self.state), "--run", str(self.run_dir), *argv])
        seen = self._capsys.readouterr()
        return Done(code, seen.out, seen.err)


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[FakeNode]:
    """A node named A, initialised, both processes up and knowing no operation yet."""
    state, run_dir = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    run_dir.mkdir()
    config = {"node_id": "a" * 32, "name": "A", "nbd": {"port": None, "address": "127.0.0.1"},
              "replication": {"address": "127.0.0.1", "port": 10810}}  # fmt: skip
    (state / "node.json").write_text(json.dumps(config))
    fake = FakeNode(state, run_dir, Process(run_dir / "target.sock"), Process(run_dir / "replicator.sock"), capsys)
    fake.target.start()
    fake.replicator.start()
    yield fake
    fake.target.stop()
    fake.replicator.stop()
