"""A chain of real nodes whose records are kept until they are applied: journals of copies are lost, and what was in them
is sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, wait_until
from tests.testing.trees import Tree, running_nodes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1 << 20
VOLUMES = {"data": 32 * MIB}


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABC") as three:
        yield three


def lose_journal(node: Node) -> None:
    """The node is killed, and nothing of its journal can be read any more."""
    path = next((node.state / "groups").iterdir()) / "journal"
    node.kill()
    with Path(path).open("r+b") as file:
        file.write(bytes(16 * MIB))
    node.start()
    wait_until(lambda: node.group()["journal"]["error"], node.logs)
    node.farstripe("group", "journal", "replace", GROUP, "--size", "16M", "--yes")


def used(node: Node) -> int:
    return int(node.group()["journal"]["used"])


def events(node: Node, what: str) -> list[dict[str, Any]]:
    return [one for one in node.json("events") if what in str(one)]


def test_what_was_in_a_lost_journal_is_sent_again(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)], policy=("--retain", "applied"))
    host = a.writer("data")
    for n in range(24):
        host.pwrite(bytes([n + 1]) * MIB, n * MIB)
    tree.wait_in_sync()
    for node in (c, b):
        node.pause("target")
        before = {one.name: one.ask("replicator", "pair.list")[0]["transfer"]["plain_bytes"] for one in (a, b)}
        print("BEFORE", node.name, before, {one.name: used(one) for one in (a, b, c) if one is not node})
        for n in range(4):
            host.pwrite(bytes([100 + n]) * MIB, n * MIB)
        wait_until(lambda: a.group()["edges"][0]["received"] == a.group()["pos"], tree.situation)
        import time; time.sleep(1)
        print("KEPT", {one.name: used(one) for one in (a, b, c) if one is not node})
        node.resume("target") if False else None
        lose_journal(node)
        tree.wait_in_sync()
        after = {one.name: one.ask("replicator", "pair.list")[-1]["transfer"]["plain_bytes"] for one in (a, b)}
        print("AFTER", node.name, after, {one.name: used(one) for one in (a, b, c)})
        for one in (a,b,c):
            print(one.name, [e for e in one.farstripe("events").splitlines()][-15:])
    tree.assert_images_equal()
    assert 0
