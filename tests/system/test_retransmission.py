"""A chain of real nodes whose records are kept until they are applied: the journal of a copy is lost with what it had
received and not applied, and that is sent again, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

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
    """The node is killed, nothing of its journal can be read any more, and it gets a new one."""
    path = next((node.state / "groups").iterdir()) / "journal"
    node.kill()
    with path.open("r+b") as file:
        file.write(bytes(16 * MIB))
    node.start()
    wait_until(lambda: node.group()["journal"]["error"], node.logs)
    assert node.group()["state"] == "resync"
    node.farstripe("group", "journal", "replace", GROUP, "--size", "16M", "--yes")


def shipped(node: Node) -> int:
    """Bytes of records that a node has shipped to the node below."""
    return sum(int(pair["transfer"]["plain_bytes"]) for pair in node.ask("replicator", "pair.list"))


@pytest.mark.parametrize("where", ["middle", "end"])
def test_what_was_in_a_lost_journal_is_sent_again(nodes: list[Node], where: str) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)], policy=("--retain", "applied"))
    host = a.writer("data")
    for n in range(24):
        host.pwrite(bytes([n + 1]) * MIB, n * MIB)
    tree.wait_in_sync()
    lost, source = (b, a) if where == "middle" else (c, b)
    before = shipped(source)
    lost.pause("target")  # what comes now is received and not applied
    for n in range(4):
        host.pwrite(bytes([100 + n]) * MIB, n * MIB)
    wait_until(lambda: shipped(source) >= before + 4 * MIB, tree.situation)
    lose_journal(lost)
    tree.wait_in_sync()
    assert "both sides agree: resend-lost-journal" in lost.farstripe("events")
    assert 8 * MIB <= shipped(source) - before <= 9 * MIB, "more than the lost part was sent again"
    tree.assert_images_equal()
    wait_until(lambda: all(node.group()["journal"]["used"] < MIB for node in (a, b, c)), "space is not freed", 30)
    if lost is b:
        assert shipped(b) <= 5 * MIB, "the node below was copied to"
