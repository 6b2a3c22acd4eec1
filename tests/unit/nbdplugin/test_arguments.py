"""Arguments of control requests: what is refused, and that the thing is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbdplugin import arguments
from replicator.core.errors import BadInput


@pytest.mark.parametrize(
    ("check", "args", "word"),
    [
        (arguments.name, {"name": ""}, "name"),
        (arguments.name, {"name": "a/b"}, "a/b"),
        (arguments.name, {"name": "-a"}, "-a"),
        (arguments.name, {"name": "x" * 65}, "x" * 65),
        (arguments.name, {"name": 7}, "name"),
        (arguments.size, {"size": 4097}, "4097"),
        (arguments.size, {"size": 0}, "size"),
        (arguments.size, {"size": -4096}, "-4096"),
        (arguments.size, {"size": True}, "True"),
        (arguments.size, {"size": "1G"}, "1G"),
        (lambda a: arguments.flag(a, "force"), {"force": 1}, "force"),
        (lambda a: arguments.names(a, "volumes"), {"volumes": []}, "volumes"),
        (lambda a: arguments.names(a, "volumes"), {"volumes": ["a", "b", "a"]}, "'a'"),
        (lambda a: arguments.names(a, "volumes"), {"volumes": "a"}, "volumes"),
        (lambda a: arguments.path(a, "new"), {"new": "relative/disk"}, "relative/disk"),
        (lambda a: arguments.integer(a, "since"), {}, "since"),
    ],
)
def test_a_wrong_argument_is_named(check: Callable[[dict[str, Any]], Any], args: dict[str, Any], word: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(args)
    assert word in caught.value.message


def test_a_wrong_size_comes_with_the_next_right_one() -> None:
    with pytest.raises(BadInput) as caught:
        arguments.size({"size": 4097})
    assert "8192" in caught.value.way_out


def test_right_arguments_pass_through() -> None:
    args = {"name": "vol-1.a_b", "size": 1 << 30, "volumes": ["a", "b"], "force": True, "new": "/dev/sdb"}
    assert arguments.name(args) == "vol-1.a_b"
    assert arguments.size(args) == 1 << 30
    assert arguments.names(args, "volumes") == ["a", "b"]
    assert arguments.flag(args, "force") is True
    assert arguments.path(args, "new") == "/dev/sdb"
    assert arguments.integer(args, "since", 5) == 5


@pytest.mark.parametrize("path", ["/dev/nvme9n9", "/dev/disk/by-id/typo", "/tmp/../dev/typo"])
def test_no_file_is_made_where_a_device_was_meant(path: str) -> None:
    with pytest.raises(BadInput, match="there is no device"):
        arguments.new_file(path)


@pytest.mark.parametrize("path", ["/var/lib/journal", "/dev/shm/journal", "journal", "/device/journal"])
def test_a_file_elsewhere_may_be_made(path: str) -> None:
    assert arguments.new_file(path) == path
