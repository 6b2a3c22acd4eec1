"""node.json as the target reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbdplugin import nodeconfig
from replicator.core.errors import BadInput, NotFound

ID = "0123456789abcdef" * 2


def _write(directory: Path, value: Any) -> Path:
    (directory / "node.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return directory


def test_defaults_are_loopback_no_port_and_the_measured_thread_count(tmp_path: Path) -> None:
    config = nodeconfig.load(_write(tmp_path, {"node_id": ID, "name": "a"}))
    assert (config.nbd_address, config.nbd_port, config.threads) == ("127.0.0.1", None, nodeconfig.DEFAULT_THREADS)
    assert config.tag == 0x012345


def test_a_directory_without_a_node_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        nodeconfig.load(tmp_path)
    assert "node init" in caught.value.way_out


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("{", "cannot be read"),
        ([], "not a JSON object"),
        ({"name": "a"}, "node_id"),
        ({"node_id": "xyz"}, "node_id"),
        ({"node_id": ID, "nbd": {"port": 70000}}, "nbd.port"),
        ({"node_id": ID, "nbd": {"port": "10809"}}, "nbd.port"),
        ({"node_id": ID, "nbd": {"address": 5}}, "nbd.address"),
        ({"node_id": ID, "nbd": 5}, "nbd.address"),
        ({"node_id": ID, "threads": 1}, "threads"),
        ({"node_id": ID, "threads": 10000}, "threads"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, value: Any, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        nodeconfig.load(_write(tmp_path, value))
