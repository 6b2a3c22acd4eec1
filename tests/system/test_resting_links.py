"""Quiet links to one peer leave the heartbeat to one of them, and lose nothing by it: two real nodes, three groups."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from replicator.control import ControlClient
from tests.testing.needs import needs
from tests.testing.nodes import Node, wait_until
from tests.unit.replicator.daemon.conftest import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

GROUPS = ("g0", "g1", "g2")


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    needs("nbdkit")
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(Node(name, replication_port=free_port())) for name in "AB")
        for node in (a, b):
            node.init()
            node.farstripe("pool", "create", "pool", "raid0", *(str(node.dir / f"disk{n}") for n in range(2)),
                           "--make-files", 64 << 20)  # fmt: skip
        token = b.ask("replicator", "peer.token")["token"]
        a.ask("replicator", "peer.join", token=token)
        for name in GROUPS:
            a.ask("target", "volume.create", name=f"v{name}", size=4 << 20)
            a.ask("target", "group.create", name=name, volumes=[f"v{name}"], journal_bytes=16 << 20)
            a.ask("replicator", "pair.create", 60, group=name, peer=b.name, mode="async")
        yield a, b


def facts(node: Node, group: str) -> dict[str, Any]:
    return dict(node.ask("replicator", "pair.show", group=group)["facts"])


def resting(node: Node) -> list[str]:
    return [name for name in GROUPS if facts(node, name)["rests"]]


def linked(node: Node) -> list[str]:
    return [name for name in GROUPS if facts(node, name)["linked"]]


def wait_equal(node: Node, group: str, timeout_s: float = 10) -> None:
    with ControlClient(node.run_dir / "replicator.sock", timeout_s + 10) as client:
        client.call("pair.wait", group=group, state="equal", timeout_s=timeout_s)


def test_links_rest_wake_for_a_write_outlive_their_carrier_and_notice_a_dead_peer(nodes: tuple[Node, Node]) -> None:
    a, b = nodes

    def situation() -> str:
        return a.logs() + b.logs()

    for name in GROUPS:
        wait_equal(a, name, 30)
    wait_until(lambda: len(resting(a)) == 2 and len(resting(b)) == 2, situation, 30)

    woken = resting(a)[0]
    handle = a.writer(f"v{woken}")
    handle.pwrite(b"x" * 4096, 0)
    wait_equal(a, woken, 3)
    handle.shutdown()
    assert woken not in resting(a)

    carrier = next(name for name in GROUPS if name not in resting(b) and name != woken)
    a.ask("replicator", "pair.delete", 60, group=carrier, peer=b.name)
    left = [name for name in GROUPS if name != carrier]
    os.kill(b.pid("replicator"), signal.SIGSTOP)  # its kernel goes on to answer for it
    try:
        wait_until(lambda: not any(facts(a, name)["linked"] for name in left), situation, 20)
    finally:
        os.kill(b.pid("replicator"), signal.SIGCONT)
    for name in left:
        wait_equal(a, name, 20)
