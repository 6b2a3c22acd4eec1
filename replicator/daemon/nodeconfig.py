"""What the replicator needs to know of its node: STATE/node.json, written by `farstripe node init`.

    {"node_id": 32 hex digits, "name": "...", "replication": {"address": "127.0.0.1", "port": 10810},
     "metrics": {"address": "127.0.0.1", "port": 10811}}        (the last is optional)

Other keys belong to the target and are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicator.core.errors import BadInput, NotFound
from replicator.daemon.durablefile import read_json

DEFAULT_PORT = 10810


@dataclass(frozen=True)
class NodeConfig:
    """The replicator's part of node.json."""

    node_id: str
    name: str
    address: str
    """Address the replication port is bound to."""
    port: int
    metrics: tuple[str, int] | None = None
    """Address and port of the metrics, None for none."""


def load(state_dir: Path) -> NodeConfig:
    """Read STATE/node.json. Raises NotFound when there is none, BadInput that names the field otherwise."""
    path = state_dir / "node.json"
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise NotFound(f"there is no node in {state_dir}", "make one: farstripe node init NAME") from None
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror}") from exc
    node_id, name = raw.get("node_id"), raw.get("name")
    if not isinstance(node_id, str) or len(node_id) != 32 or set(node_id) - set("0123456789abcdef"):
        raise BadInput(f"{path}: node_id must be 32 lower-case hexadecimal digits, not {node_id!r}")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{path}: name must be a text, not {name!r}")
    address, port = _listening(path, raw, "replication", DEFAULT_PORT)
    metrics = _listening(path, raw, "metrics", None) if raw.get("metrics") is not None else None
    return NodeConfig(node_id, name, address, port, metrics)


def _listening(path: Path, raw: dict[str, Any], key: str, default_port: int | None) -> tuple[str, int]:
    """Return address and port below `key`. Raises BadInput."""
    given = raw.get(key, {})
    if not isinstance(given, dict):
        raise BadInput(f"{path}: {key} must be an object")
    address, port = given.get("address", "127.0.0.1"), given.get("port", default_port)
    if not isinstance(address, str) or not address:
        raise BadInput(f"{path}: {key}.address must be an address, not {address!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise BadInput(f"{path}: {key}.port must be 1..65535, not {port!r}")
    return address, port
