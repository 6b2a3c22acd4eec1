"""A set by counter is made only where every node with a copy can read its records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.core.errors import Refused
from tests.unit.replicator.daemon.conftest import InProcess

LOG, DATA = "12" * 16, "34" * 16
Chain = tuple[InProcess, InProcess, InProcess]


@pytest.fixture
def chain(make_node: Callable[[str], InProcess]) -> Chain:
    """Groups log and data on alpha, copied to beta, and from there to gamma."""
    a, b, c = nodes = make_node("alpha"), make_node("beta"), make_node("gamma")
    b.call("peer.join", token=a.call("peer.token")["token"])
    c.call("peer.join", token=b.call("peer.token")["token"])
    for uuid, name in ((LOG, "log"), (DATA, "data")):
        a.target.add_group(uuid, name)
        a.call("pair.create", group=name, peer="beta")
        b.target.groups[uuid]["state"] = "ok"
    b.call("pair.create", group="log", peer="gamma")
    return nodes


def is_old(node: InProcess) -> None:
    """It runs a farstripe from before there were numbers."""
    assert node.replicator is not None
    del node.replicator.node.remote_handlers["set.reads_numbers"]


def create(node: InProcess, order: str = "counter") -> list[str]:
    made = node.call("set.create", name="shop", groups=["log", "data"], order=order)
    return list(made["not_asked"])


def test_nodes_of_this_version_are_asked_and_it_is_made(chain: Chain) -> None:
    assert create(chain[0]) == []


def test_an_older_node_anywhere_below_is_named_and_nothing_is_made(chain: Chain) -> None:
    a, _, c = chain
    is_old(c)
    with pytest.raises(Refused, match="gamma is older"):
        create(a)
    assert a.target.sets == []
    assert create(a, "time") == []


def test_one_that_cannot_be_asked_is_named(chain: Chain) -> None:
    a, b, c = chain
    c.stop()
    assert create(a) == ["gamma"]
    b.stop()
    a.target.sets.clear()
    assert create(a) == ["beta"]


def test_a_group_of_such_a_set_gets_no_older_peer(chain: Chain, make_node: Callable[[str], InProcess]) -> None:
    a, d = chain[0], make_node("delta")
    d.call("peer.join", token=a.call("peer.token")["token"])
    is_old(d)
    create(a)
    with pytest.raises(Refused, match="delta is older"):
        a.call("pair.create", group="log", peer="delta")
    assert LOG not in d.target.groups
    a.target.sets[0].update(order="time", rev=a.target.sets[0]["rev"] + 1)
    a.call("pair.create", group="log", peer="delta")
