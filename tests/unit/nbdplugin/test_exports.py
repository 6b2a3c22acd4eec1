"""Volumes that join and leave a group: whose reads are guarded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nbdplugin.exports import Exports
from tests.unit.nbdplugin.test_routes import MemoryVolume, Reads


class Group:
    """Stands in for a GroupService."""

    def __init__(self, *, on: bool) -> None:
        self.reads: Any = Reads()
        self.reads.on = on
        self.reads.unanswered[1] = "a write"
        self.engine = SimpleNamespace()

    def write(self, *_: object) -> None:
        """Nothing."""

    zero = flush = write


def asks(exports: Exports, group: Any) -> bool:
    """Whether a read of the volume looks for unanswered writes of the group."""
    before = len(group.reads.settled)
    exports.get("v").read(bytearray(4), 0)
    return len(group.reads.settled) > before


def test_reads_of_a_volume_are_guarded_as_long_as_it_is_in_a_group_that_wants_it() -> None:
    exports = Exports()
    exports.add(MemoryVolume(), lambda volume: None)
    asynchronous: Any = Group(on=False)
    exports.join_group({"v": 0}, asynchronous)
    assert not asks(exports, asynchronous)
    exports.guard_reads(asynchronous, True)
    assert asks(exports, asynchronous)
    exports.guard_reads(asynchronous, False)
    assert not asks(exports, asynchronous)
    synchronous: Any = Group(on=True)
    exports.leave_group(["v"], lambda volume: None)
    exports.join_group({"v": 3}, synchronous)
    assert asks(exports, synchronous) and synchronous.reads.settled == [(3, 0, 4)]
    exports.guard_reads(asynchronous, False)
    assert asks(exports, synchronous), "another group's volume"
    exports.leave_group(["v"], lambda volume: None)
    assert not asks(exports, synchronous)


def test_a_group_that_becomes_synchronous_while_a_volume_joins_misses_none() -> None:
    exports = Exports()
    exports.add(MemoryVolume(), lambda volume: None)
    group: Any = Group(on=False)
    route = exports.get("v")
    switch = type(route).switch

    class Between(type(route)):  # type: ignore[misc]
        __slots__ = ()

        def switch(self, *args: Any, **kw: Any) -> None:
            exports.guard_reads(group, True)  # it does not know of the volume yet
            group.reads.on = True
            switch(self, *args, **kw)

    route.__class__ = Between
    exports.join_group({"v": 0}, group)
    assert asks(exports, group)
