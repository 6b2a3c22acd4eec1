"""What the target needs to know of its node: STATE/node.json, written by `farstripe node init`.

    {"node_id": 32 hex digits, "name": "…", "nbd": {"port": 10809 or null, "address": "127.0.0.1"}, "threads": 16}

Other keys belong to the replicator and are left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from replicator.core.epochs import node_tag
from replicator.core.errors import BadInput, NotFound

DEFAULT_THREADS = 32
"""Requests in service at a time for one connection.

Measured with 4 KiB random writes at depth 32 on two loaded cores: unreplicated, 4 to 32 threads differ less than two
runs of the same (what made threads expensive, workers.py took away); a synchronous pair, in which each thread waits for
its peer, does a third more with 32 than with 16.
"""
MIN_THREADS = 2  # nbdkit serves a connection that has one thread without watching for its own shutdown
MAX_THREADS = 256


@dataclass(frozen=True)
class NodeConfig:
    """The target's part of node.json."""

    node_id: str
    name: str
    nbd_address: str
    nbd_port: int | None
    """TCP port for NBD clients; None: only the Unix socket."""
    threads: int

    @property
    def tag(self) -> int:
        """The 24 bits that mark the epochs this node opens."""
        return node_tag(self.node_id)


def load(state_dir: Path) -> NodeConfig:
    """Read STATE/node.json. Raises NotFound when there is none, BadInput that names the field otherwise."""
    path = state_dir / "node.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{state_dir} holds no node", "farstripe node init makes one") from None
    except (OSError, ValueError) as exc:
        raise BadInput(f"{path} cannot be read: {exc}", "restore it from a backup, or correct it by hand") from exc
    if not isinstance(raw, dict):
        raise BadInput(f"{path} is not a JSON object", "restore it from a backup, or correct it by hand")
    nbd = raw.get("nbd") or {}
    fields = {
        "node_id": raw.get("node_id"),
        "name": raw.get("name", ""),
        "nbd.address": nbd.get("address", "127.0.0.1") if isinstance(nbd, dict) else None,
        "nbd.port": nbd.get("port") if isinstance(nbd, dict) else -1,
        "threads": raw.get("threads") or DEFAULT_THREADS,
    }
    for field, value in fields.items():
        if problem := _problem(field, value):
            raise BadInput(f"{path}: {field} is {value!r}, which {problem}")
    return NodeConfig(
        str(fields["node_id"]), str(fields["name"]), str(fields["nbd.address"]), fields["nbd.port"], fields["threads"]
    )


def _problem(field: str, value: object) -> str:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if field == "node_id":
        ok = isinstance(value, str) and len(value) == 32 and all(c in "0123456789abcdef" for c in value)
        return "" if ok else "is not 32 hexadecimal digits"
    if field == "nbd.port":
        return "" if value is None or (is_int and 0 < int(value) < 65536) else "is not a port number or null"  # type: ignore[call-overload]
    if field == "threads":
        ok = is_int and MIN_THREADS <= int(value) <= MAX_THREADS  # type: ignore[call-overload]
        return "" if ok else f"is not a number from {MIN_THREADS} to {MAX_THREADS}"
    return "" if isinstance(value, str) else "is not text"
