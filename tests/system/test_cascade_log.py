"""Three nodes A -> B -> C list the same records: A stamps them, with times that hosts state or its own, and B passes
them on as they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.testing.netns import NetNS
from tests.testing.nodes import Node, wait_until
from tests.testing.targetproc import MIB
from tests.testing.trees import running_nodes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BLOCK = 4096
TOLD = ("seq", "epoch", "time_ns", "host_time_ns", "kind", "volume", "offset", "length", "fua", "number")


GROUPS = ("data", "log")
"""One volume each, of the same name."""


@pytest.fixture
def chain() -> Iterator[list[Node]]:
    """A feeds B synchronously, B feeds C; two groups, so that they can be a set."""
    with NetNS() as net, running_nodes(net, "ABC") as (a, b, c):
        for node in (a, b, c):
            node.farstripe("pool", "create", "pool", "raid0", node.dir / "disk", "--make-files", 64 * MIB)
        for name in GROUPS:
            a.farstripe("volume", "create", name, "--size", 2 * MIB)
            a.farstripe("group", "create", name, name, "--journal", "16M")
        for up, down, mode in ((a, b, "sync"), (b, c, "async")):
            up.farstripe("peer", "join", down.farstripe("peer", "token").split()[-1])
            for name in GROUPS:
                up.farstripe("pair", "create", name, "--peer", down.name, "--mode", mode)
                up.farstripe("pair", "wait", name, down.name, "--state", "equal")
        yield [a, b, c]


def equal(chain: list[Node]) -> bool:
    """Every node has applied all that A has."""
    states = [[node.group(name) for name in GROUPS] for node in chain]
    return all(
        there and there["state"] == "ok" and there["pos"] == there["applied"] == top["pos"]
        for node in states[1:]
        for there, top in zip(node, states[0], strict=True)
    )


def logs(chain: list[Node]) -> str:
    return "\n".join(f"--- {node.name} {[node.group(name) for name in GROUPS]}\n{node.logs()}" for node in chain)


class Reader:
    """Lists a node's records as they come, by `since`; says so when one was freed before it could be listed."""

    def __init__(self, node: Node, group: str, since: int) -> None:
        self.node, self._group, self._seen = node, group, since
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.records: list[dict[str, Any]] = []
        self.freed: list[list[int]] = []
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(0.1)
        self._look()

    def _look(self) -> None:
        found = self.node.ask("target", "group.log", group=self._group, since=self._seen, limit=10_000)
        if found["first"] > self._seen + 1 <= found["last"]:
            self.freed.append([self._seen + 1, found["first"] - 1])
        self.freed += found["freed"]
        self.records += [{key: one[key] for key in TOLD} for one in found["records"]]
        self._seen = max([self._seen, *(one["seq"] for one in found["records"])])

    def stop(self) -> list[dict[str, Any]]:
        self._stop.set()
        self._thread.join(30)
        assert not self.freed, f"{self.node.name} freed {self.freed} before it was listed"
        return self.records


@pytest.mark.parametrize("order", ["time", "counter"])
def test_all_nodes_of_a_cascade_list_the_same_records_with_the_times_that_hosts_stated(
    chain: list[Node], order: str
) -> None:
    a = chain[0]
    a.farstripe("set", "create", "both", *GROUPS, "--order", order)
    for node in chain:
        wait_until(lambda node=node: "both" in node.farstripe("set", "list"), lambda: logs(chain))  # type: ignore[misc]
    wait_until(lambda: equal(chain), lambda: logs(chain))
    before = {name: a.group(name)["pos"] for name in GROUPS}
    readers = {name: [Reader(node, name, before[name]) for node in chain] for name in GROUPS}
    stated = write_some(a)
    wait_until(lambda: equal(chain), lambda: logs(chain))
    numbers: list[int] = []
    for name in GROUPS:
        lists = [reader.stop() for reader in readers[name]]
        end = min(each[-1]["seq"] for each in lists)
        first, *others = [[one for one in each if one["seq"] <= end] for each in lists]
        assert [one["seq"] for one in first] == list(range(before[name] + 1, end + 1))
        for node, other in zip(chain[1:], others, strict=True):
            assert other == first, f"{node.name} lists other records than A"
        assert sum(one["kind"] == "write" for one in first) == WRITES // 2
        assert {"zero", "trim", "marker"} <= {one["kind"] for one in first}
        told = {one["seq"]: one["host_time_ns"] for one in first if one["host_time_ns"]}
        assert told == stated[name] and len(told) > 5
        times = [one["time_ns"] for one in first]
        assert times == sorted(set(times)), "times are unique, and rise"
        for seq, time_ns in told.items():
            assert all(one["time_ns"] >= time_ns for one in first if one["seq"] > seq), "a time fell below a stated one"
        if order == "counter":
            numbers += [one["number"] for one in first]
        else:
            assert not any(one["number"] for one in first)
    assert len(numbers) == len(set(numbers)) and None not in numbers, "each number is given once"


WRITES = 48


def write_some(a: Node) -> dict[str, dict[int, int]]:
    """Write to both volumes in turn, every third write after a host has stated a time. Returns the times by group and
    seq."""
    handles = {name: a.writer(name) for name in GROUPS}
    stated: dict[str, dict[int, int]] = {name: {} for name in GROUPS}
    for n in range(WRITES):
        name = GROUPS[n % 2]
        handle = handles[name]
        if n % 3 == 0:
            time_ns = time.time_ns() + (n % 5 - 2) * 5 * 10**9  # ahead of the clock, or behind it
            said = a.ask("target", "group.host_time", group=name, time_ns=time_ns)
            stated[name][said["seq"]] = time_ns
        handle.pwrite(bytes([n]) * BLOCK, n * BLOCK)
        if n % 12 < 2:
            handle.zero(BLOCK, n * BLOCK)
            handle.flush()
        elif n % 12 < 4:
            handle.trim(BLOCK, n * BLOCK)
    return stated
