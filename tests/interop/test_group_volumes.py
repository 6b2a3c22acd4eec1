"""Volumes come into a group, change their size and leave, while hosts write and copies follow: real nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator.core.errors import Refused
from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, wait_until
from tests.testing.stamped import check_nothing_lost
from tests.testing.trees import Tree, running_nodes

VOLUMES = {"data": 4 << 20, "log": 1 << 20}
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABC") as three:
        yield three


def grouped(node: Node) -> dict[str, int]:
    """The group's volumes and their sizes, as the node has applied them."""
    return {v["name"]: v["size"] for v in node.group()["volumes"]}


def test_a_chain_follows_changes_of_the_list_under_load_while_its_middle_is_killed(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, dict(VOLUMES), [(a, b), (b, c)])
    load = tree.load("data", seed=1, writes_per_s=200)
    load.wait_acked(50)
    a.farstripe("volume", "create", "more", "--size", 1 << 20)
    a.farstripe("group", "add-volume", GROUP, "more")
    tree.volumes["more"] = 1 << 20
    second = tree.load("more", seed=2, writes_per_s=200)
    second.wait_acked(50)
    b.kill()
    second.stop()
    a.farstripe("volume", "resize", "more", "--size", 2 << 20)
    a.farstripe("group", "remove-volume", GROUP, "log")
    assert grouped(a) == {"data": 4 << 20, "more": 2 << 20}
    del tree.volumes["log"]
    tree.volumes["more"] = 2 << 20
    second = tree.load("more", seed=3, ledger=second.ledger, writes_per_s=200)
    second.wait_acked(50)
    b.start()
    tree.wait_streaming()
    load.stop()
    second.stop()
    tree.assert_images_equal()
    assert grouped(b) == grouped(c) == grouped(a)
    check_nothing_lost(load.ledger, tree.image(c))
    check_nothing_lost(second.ledger, tree.image(c, "more"))
    for node in nodes:  # it stays everywhere, and is anybody's
        [left] = [v for v in node.json("volume", "list") if v["name"] == "log"]
        assert (left["group"], left["writable"]) == (None, True)
        node.kill()
        node.start()
    tree.wait_streaming()
    tree.assert_images_equal()


def test_what_a_copy_could_not_make_is_refused_before_anything_changes(nodes: list[Node]) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, dict(VOLUMES), [(a, b), (b, c)])
    a.farstripe("volume", "create", "more", "--size", 1 << 20)
    c.farstripe("volume", "create", "more", "--size", 2 << 20)
    taken = a.farstripe("group", "add-volume", GROUP, "more", expect=Refused.exit_code)
    assert "on B: on C: volume more exists with" in taken
    c.farstripe("volume", "delete", "more", "--yes")
    b.kill()
    away = a.farstripe("group", "add-volume", GROUP, "more", expect=Refused.exit_code)
    assert "B cannot be asked" in away
    assert set(grouped(a)) == set(VOLUMES)
    a.farstripe("group", "add-volume", GROUP, "more", "--force")
    b.start()
    tree.volumes["more"] = 1 << 20
    tree.assert_images_equal()
    a.farstripe("volume", "create", "old", "--size", 1 << 20)
    handle = a.writer("old")
    handle.pwrite(b"x" * 4096, 0)
    handle.shutdown()
    wait_until(lambda: not a.json("volume", "list")[-1]["writers"], tree.situation)
    written = a.farstripe("group", "add-volume", GROUP, "old", expect=Refused.exit_code)
    assert "has been written to" in written
    assert [v["group"] for v in a.json("volume", "list") if v["name"] == "old"] == [None]


def test_after_a_takeover_without_the_change_the_former_primary_gets_the_list_with_a_copy(nodes: list[Node]) -> None:
    a, b, _ = nodes
    tree = Tree.grow(a, dict(VOLUMES), [(a, b)])
    b.kill()
    a.farstripe("volume", "create", "more", "--size", 1 << 20)
    a.farstripe("group", "add-volume", GROUP, "more", "--force")
    a.farstripe("group", "remove-volume", GROUP, "log")
    handle = a.writer("more")
    handle.pwrite(b"x" * 4096, 0)
    handle.shutdown()
    a.kill()
    b.start()
    b.farstripe("takeover", GROUP, "--yes", "--force")
    tree.primary = b
    a.start()
    a.farstripe("volume", "delete", "log", "--yes")  # it left there and holds data: it has to make room for the copy
    b.farstripe("pair", "resync", GROUP, "A", "--discard", "A", "--yes")
    tree.assert_images_equal()
    assert grouped(a) == grouped(b) == VOLUMES
    [left] = [v for v in a.json("volume", "list") if v["name"] == "more"]
    assert left["group"] is None
