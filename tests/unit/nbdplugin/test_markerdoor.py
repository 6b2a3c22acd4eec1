"""The export that makes markers: what may be written to it, and what is read from it."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from nbdplugin.markerdoor import SIZE, MarkerDoor, parse
from replicator.core.errors import BadInput, Refused


def outcome(door: MarkerDoor) -> dict[str, Any]:
    buf = bytearray(SIZE)
    door.read(memoryview(buf), 0)
    found: dict[str, Any] = json.loads(bytes(buf).rstrip(b"\0"))
    return found


def test_a_line_makes_a_marker_and_the_outcome_can_be_read() -> None:
    asked: list[Any] = []

    def ask(op: str, timeout_s: float, **args: Any) -> dict[str, Any]:
        asked.append((op, args))
        return {"name": args["name"], "n": 7}

    door = MarkerDoor(ask)
    assert outcome(door) == {}
    door.write(memoryview(b"before-payroll shop,mail@gamma 2.5\n".ljust(SIZE, b"\0")), 0)
    args = {"name": "before-payroll", "groups": ["shop", "mail@gamma"], "deadline_s": 2.5}
    assert asked == [("marker.create", args)]
    assert outcome(door) == {"ok": True, "marker": {"name": "before-payroll", "n": 7}}
    for line in (b"m shop hosts\n", b"m shop 2 hosts\n"):
        door.write(memoryview(line.ljust(SIZE, b"\0")), 0)
        assert asked.pop()[1]["hold"] == "hosts"
    for line in (b"m shop received\n", b"m shop 2 received\n", b"m shop 2 hosts received\n"):
        door.write(memoryview(line.ljust(SIZE, b"\0")), 0)
        args = asked.pop()[1]
        assert args["received"] and args["groups"] == ["shop"] and ("hold" in args) == (b"hosts" in line)


def test_a_marker_that_is_not_made_is_an_error_of_the_write() -> None:
    def ask(op: str, timeout_s: float, **args: Any) -> None:
        raise Refused("group shop was not held all the time", "try again")

    door = MarkerDoor(ask)
    with pytest.raises(Refused):
        door.write(memoryview(b"m shop\n"), 0)
    assert outcome(door)["error"]["message"] == "group shop was not held all the time"


@pytest.mark.parametrize(
    ("raw", "offset"),
    [(b"", 0), (bytes(512), 0), (b"name\n", 0), (b"m shop\n", 512), (b"m shop soon\n", 0), (b"m shop nan\n", 0),
     (b"m shop 0\n", 0), (b"m shop 1 fsfreeze\n", 0), (b"m shop 2 received hosts\n", 0), (b"\xff\xfe" * 9, 0)],
)  # fmt: skip
def test_what_is_no_instruction_is_the_clients_mistake(raw: bytes, offset: int) -> None:
    with pytest.raises(BadInput) as caught:
        parse(raw, offset)
    assert caught.value.errno == errno.EINVAL


def test_a_part_of_the_outcome_can_be_read() -> None:
    door = MarkerDoor(lambda op, timeout_s, **args: {"n": 1})
    door.write(memoryview(b"m shop\n"), 0)
    buf = bytearray(5)
    door.read(memoryview(buf), 1)
    assert bytes(buf) == b'"ok":'
