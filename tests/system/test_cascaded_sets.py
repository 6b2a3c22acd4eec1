"""Real nodes: sets whose copies are copied on, taken over at an image of a cycle in the middle and at the far end.

A (primary of log and data) -> B -> C
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.testing.database import SLOTS, Database, free_port, join, judge, replicate, standing, with_pool
from tests.testing.nodes import Node, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
Chain = tuple[Node, Node, Node]


@pytest.fixture(params=["time", "counter"])
def chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    with contextlib.ExitStack() as stack:
        a, b, c = (with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "ABC")
        join(a, b)
        join(b, c)
        for volume in ("log", "data"):
            replicate(a, volume, b, "--mode", "async")
            b.farstripe("pair", "create", volume, "--peer", "C", "--mode", "async")
            b.farstripe("pair", "wait", f"{volume}", "C", "--state", "ok")
        a.farstripe("set", "create", "shop", "log", "data", "--order", request.param)
        a.farstripe("set", "cycle", "shop", "--every", 0.5, "--keep", 2)
        for node in (b, c):
            wait_until(lambda node=node: standing(node) == "whole", lambda: c.ask("replicator", "set.list"))  # type: ignore[misc]
        yield a, b, c


def images(node: Node) -> list[dict[str, Any]]:
    return list(node.ask("replicator", "set.images", name="shop")["here"])


def under_load(chain: Chain, *nodes: Node) -> Database:
    """A load, until each of the nodes has taken some images of it."""
    a = chain[0]
    load = Database(a.writer("log"), a.writer("data"))
    seen = {node.name: images(node)[0]["n"] if images(node) else 0 for node in nodes}
    for node in nodes:
        wait_until(
            lambda node=node: images(node) and images(node)[0]["n"] >= seen[node.name] + 3,  # type: ignore[misc]
            lambda node=node: node.ask("replicator", "set.list"),  # type: ignore[misc]
        )
    return load


def of_image(node: Node, n: int) -> int:
    return judge((node, f"log.shop-{n}"), (node, f"data.shop-{n}"))


def gone_back(node: Node) -> int:
    """Take the set over at its newest image; returns the newest transaction that this holds."""
    done = node.json("set", "takeover", "shop", "--cycle", "--yes")
    seen = of_image(node, done["cycle"])
    assert judge((node, "log"), (node, "data")) == seen
    return seen


def roles(node: Node) -> set[str]:
    return {str(node.group(volume).get("role")) for volume in ("log", "data")}


def wait_equal(upper: Node, lower: Node) -> None:
    for volume in ("log", "data"):
        upper.farstripe("pair", "wait", volume, lower.name, "--state", "equal", "--timeout", 90)


def test_the_far_end_goes_back_to_its_image_and_the_others_follow_it(chain: Chain) -> None:
    a, b, c = chain
    load = under_load(chain, b, c)
    a.kill()
    load.stop()
    for volume in ("log", "data"):
        wait_until(lambda volume=volume: c.group(volume)["pos"] == b.group(volume)["pos"], "C lags")  # type: ignore[misc]
    b.kill()
    seen = gone_back(c)
    assert seen <= load.committed and roles(c) == {"primary"}
    after = Database(c.writer("log"), c.writer("data"))
    wait_until(lambda: after.committed > 2 * SLOTS, "no load")
    after.stop()
    b.start()  # it holds nothing but what C had, and gave up
    wait_equal(c, b)
    assert judge((b, "log"), (b, "data")) == after.committed
    a.start()  # it answered hosts for what was given up
    for volume in ("log", "data"):
        wait_until(lambda volume=volume: a.json("pair", "show", volume)["level"] == "bad", a.logs)  # type: ignore[misc]
        a.farstripe("pair", "resync", volume, "--discard", "A", "--yes")
    wait_equal(b, a)
    assert judge((a, "log"), (a, "data")) == after.committed


def test_the_middle_goes_back_to_its_image_and_the_far_end_follows_unasked(chain: Chain) -> None:
    a, b, c = chain
    load = under_load(chain, b, c)
    a.kill()
    load.stop()
    seen = gone_back(b)
    wait_equal(b, c)
    assert judge((c, "log"), (c, "data")) == seen
    after = Database(b.writer("log"), b.writer("data"))
    wait_until(lambda: after.committed > 2 * SLOTS, "no load")
    newest = images(c)[0]["n"] if images(c) else 0
    wait_until(lambda: images(c) and images(c)[0]["n"] > newest, lambda: c.ask("replicator", "set.list"))
    after.stop()
    wait_equal(b, c)
    assert judge((c, "log"), (c, "data")) == after.committed
    assert of_image(c, images(c)[0]["n"]) <= after.committed
