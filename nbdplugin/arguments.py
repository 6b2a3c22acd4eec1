"""Arguments of control requests, checked before anything acts on them. A failure is BadInput and names the thing."""

from __future__ import annotations

import os
import re
from typing import Any

from raidlib.nbdfile import is_uri
from replicator.core.errors import BadInput

SIZE_UNIT_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def text(args: dict[str, Any], key: str, default: str | None = None) -> str:
    """The string `key`."""
    value = args.get(key) if default is None else args.get(key, default)
    if not isinstance(value, str) or not value:
        raise BadInput(f"the argument {key!r} must be text, not {value!r}")
    return value


def new_file(path: str) -> str:
    """A path for a file that is to be made: not where devices are, for a name mistyped there would be made in
    memory."""
    parent = os.path.realpath(os.path.dirname(path) or ".")
    if parent == "/dev" or (parent.startswith("/dev/") and parent.split("/")[2] != "shm"):
        raise BadInput(f"there is no device {path}", "name a device that is there, or a file outside /dev")
    return path


def name(args: dict[str, Any], key: str = "name") -> str:
    """A name for something new."""
    value = text(args, key)
    if not _NAME.fullmatch(value):
        raise BadInput(f"{value!r} cannot be a name", "use up to 64 letters, digits, '.', '_' and '-', no sign first")
    return value


def integer(args: dict[str, Any], key: str, default: int | None = None, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """The number `key`, low <= value <= high."""
    value = args.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"the argument {key!r} must be a number from {low} to {high}, not {value!r}")
    return value


def size(args: dict[str, Any], key: str = "size") -> int:
    """A volume's size in bytes."""
    value = integer(args, key, low=1, high=1 << 60)
    if value % SIZE_UNIT_BYTES:
        near = (value // SIZE_UNIT_BYTES + 1) * SIZE_UNIT_BYTES
        raise BadInput(f"a size of {value} bytes is not a multiple of {SIZE_UNIT_BYTES}", f"{near} would be")
    return value


def flag(args: dict[str, Any], key: str, default: bool = False) -> bool:
    """The truth value `key`."""
    value = args.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"the argument {key!r} must be true or false, not {value!r}")
    return value


def names(args: dict[str, Any], key: str) -> list[str]:
    """A list of at least one distinct string."""
    value = args.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise BadInput(f"the argument {key!r} must be a list of names, not {value!r}")
    if len(set(value)) != len(value):
        twice = next(v for v in value if value.count(v) > 1)
        raise BadInput(f"{twice!r} is named twice in {key!r}", "name it once")
    return value


def path(args: dict[str, Any], key: str) -> str:
    """An absolute path."""
    return absolute(text(args, key))


def member(args: dict[str, Any], key: str) -> str:
    """Where a pool member is: an absolute path or an NBD URI."""
    return member_path(text(args, key))


def member_path(value: Any) -> str:
    """`value` when it is an absolute path or an NBD URI."""
    return value if isinstance(value, str) and is_uri(value) else absolute(value)


def absolute(value: Any) -> str:
    """`value` when it is an absolute path."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise BadInput(f"{value!r} is not an absolute path")
    return value
