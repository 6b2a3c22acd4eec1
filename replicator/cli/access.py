"""Which node this command talks to: its directories, its configuration, its two control sockets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from replicator.control import ControlClient
from replicator.core.errors import BadInput, DaemonNotRunning, NotFound, Refused

DEFAULT_STATE = "/var/lib/farstripe"
DEFAULT_RUN = "/run/farstripe"
MAX_SOCKET_PATH_BYTES = 107


@dataclass
class Node:
    """The node that --state and --run name."""

    state: Path = Path(DEFAULT_STATE)
    run: Path = Path(DEFAULT_RUN)
    timeout_s: float = 30.0
    _clients: dict[str, ControlClient] = field(default_factory=dict)

    @property
    def config_path(self) -> Path:
        return self.state / "node.json"

    def config(self) -> dict[str, Any]:
        """Return node.json. Raises NotFound when the node was never made, BadInput when the file is damaged."""
        try:
            raw = json.loads(self.config_path.read_text())
        except FileNotFoundError:
            raise NotFound(f"there is no node in {self.state}", "make one: farstripe node init NAME") from None
        except PermissionError:
            raise Refused(f"{self.config_path} may not be read by you", "run as root") from None
        except (OSError, ValueError) as exc:
            raise BadInput(f"{self.config_path} cannot be read: {exc}", "restore it from a backup") from exc
        if not isinstance(raw, dict):
            raise BadInput(f"{self.config_path} is not a node configuration", "restore it from a backup")
        return raw

    def socket(self, process: str) -> Path:
        """Return the control socket of `target` or `replicator`. Raises BadInput for a path too long for a socket."""
        path = self.run / f"{process}.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise BadInput(
                f"{path} is longer than the {MAX_SOCKET_PATH_BYTES} bytes a Unix socket may have",
                "choose a shorter run directory with --run",
            )
        return path

    def target(self, op: str, /, *, wait_s: float | None = None, **args: Any) -> Any:
        """Ask the target. `wait_s`: how long this one call may take. Raises what the target raises."""
        return self._call("target", op, wait_s, args)

    def replicator(self, op: str, /, *, wait_s: float | None = None, **args: Any) -> Any:
        """Ask the replicator, like `target`."""
        return self._call("replicator", op, wait_s, args)

    def _call(self, process: str, op: str, wait_s: float | None, args: dict[str, Any]) -> Any:
        if wait_s is not None:
            with ControlClient(self.socket(process), wait_s) as client:
                return self._explained(process, client, op, args)
        client = self._clients.setdefault(process, ControlClient(self.socket(process), self.timeout_s))
        return self._explained(process, client, op, args)

    def _explained(self, process: str, client: ControlClient, op: str, args: dict[str, Any]) -> Any:
        try:
            return client.call(op, **args)
        except DaemonNotRunning as exc:
            if str(client.path) not in exc.message:
                raise  # it did answer: that another process does not
            if isinstance(exc.__cause__, PermissionError):
                raise Refused(f"{client.path} may not be opened by you", "run as root") from exc
            self.config()  # there may be no node at all, which is then what to say
            raise DaemonNotRunning(
                f"the {process} does not answer on {client.path}",
                f"farstripe node status tells why; its log is {self.run / process}.log",
            ) from exc

    def answers(self, process: str, op: str, timeout_s: float = 2.0) -> Any:
        """Return the answer to `op`, or None when the process does not answer."""
        try:
            with ControlClient(self.socket(process), timeout_s) as client:
                return client.call(op)
        except DaemonNotRunning:
            return None


def pass_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its Node as the first argument."""
    return click.make_pass_decorator(Node, ensure=True)(function)
