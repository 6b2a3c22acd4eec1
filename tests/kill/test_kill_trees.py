"""SIGKILL of real processes in a chain of three nodes, at random instants, under load; then the promises are held
against the images of all three.

Stamped writes run on the primary, who knows which were acknowledged. After every round every node's image is compared
byte by byte, and with the acknowledgements. A failure names its seed and round. Longer runs:
FARSTRIPE_KILL_TREE_ROUNDS=100 pytest tests/kill/test_kill_trees.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, PROCESSES, Node, kill_together, wait_until
from tests.testing.stamped import StampedLoad, check_nothing_lost, check_prefix
from tests.testing.trees import Tree, running_nodes

pytestmark = [pytest.mark.kill, pytest.mark.timeout(1200)]

ROUNDS = int(os.environ.get("FARSTRIPE_KILL_TREE_ROUNDS", "5"))
VOLUMES = {"data": 8 << 20}
STALL = ("--on-loss", "stall", "--loss-timeout", "120")


class Chain:
    """Three nodes in a row under load, and what can happen to them."""

    def __init__(self, tree: Tree, seed: int, sync: bool) -> None:
        self.tree, self.sync, self.rng = tree, sync, random.Random(seed)
        self.row = list(tree.nodes)
        """From the primary down."""
        self.load: StampedLoad | None = None

    # -- victims: each kills, brings back, and returns when the chain can be expected to recover by itself -------------

    def one_process(self) -> None:
        node = self.rng.choice(self.row)
        node.kill(self.rng.choice(PROCESSES))
        self._go_on_meanwhile()
        node.start()

    def one_node(self) -> None:
        node = self.rng.choice(self.row)
        node.kill()
        self._go_on_meanwhile()
        node.start()

    def middle_node(self) -> None:
        self.row[1].kill()
        self._go_on_meanwhile()
        self.row[1].start()

    def all_nodes(self) -> None:
        kill_together(*self.row)
        for node in self.rng.sample(self.row, 3):
            node.start()

    def primary_and_takeover_in_the_middle(self) -> None:
        """The middle node becomes primary, the last one goes on with it, and the dead one comes back below."""
        old, new, last = self.row
        old.kill()
        assert self.load is not None
        self.load.stop()
        new.farstripe("takeover", GROUP, "--yes")
        image = self.tree.image(new)
        if self.sync:
            check_nothing_lost(self.load.ledger, image)
        else:
            check_prefix(self.load.ledger, image)
            self.load.ledger.restart_from(image)
        self.tree.primary = new
        self._start_load()
        self.load.wait_acked(1 if self.sync else 30)
        old.start()
        self._give_up_tail_of(old)
        # The dead node was the top of a chain of three; now both others hang on the node that was in the middle.
        self.row = [new, *self.rng.sample([old, last], 2)]

    def _give_up_tail_of(self, node: Node) -> None:
        """A former primary keeps writes its successor never had until an operator gives them up: do that if asked."""

        def refused() -> bool:
            return "SUPERSEDED" in self.tree.primary.farstripe("status")

        wait_until(lambda: self.tree.streaming() or refused(), self.tree.situation)
        if refused():
            self.tree.primary.farstripe("pair", "resync", GROUP, node.name, "--discard", node.name, "--yes")

    VICTIMS: tuple[Callable[[Chain], None], ...] = (
        one_process, middle_node, one_node, primary_and_takeover_in_the_middle, all_nodes,
    )  # fmt: skip

    # -- a round ------------------------------------------------------------------------------------------------------

    def round(self, victim: Callable[[Chain], None]) -> None:
        self._start_load()
        assert self.load is not None
        self.load.wait_acked(50)
        time.sleep(self.rng.random() * 0.7)
        victim(self)
        self.tree.wait_streaming()
        self.load.wait_acked(30)
        self.load.stop()
        self.tree.assert_images_equal()
        for node in self.row:
            check_nothing_lost(self.load.ledger, self.tree.image(node))

    def _start_load(self) -> None:
        former, seed = self.load, self.rng.randrange(1 << 30)
        self.load = self.tree.load("data", seed, former.ledger if former else None, writes_per_s=300)

    def _go_on_meanwhile(self) -> None:
        """Let writes pile up while the victim is away; in a synchronous chain they wait instead."""
        time.sleep(0.1 + self.rng.random() * 0.5)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABC") as three:
        yield three


@pytest.mark.parametrize(("mode", "seed"), [("async", 1), ("sync", 2)])
def test_promises_hold_along_a_chain_after_sigkill(nodes: list[Node], mode: str, seed: int) -> None:
    a, b, c = nodes
    tree = Tree.grow(a, VOLUMES, [(a, b), (b, c)], mode, STALL if mode == "sync" else ())
    chain = Chain(tree, seed, mode == "sync")
    victims: list[Callable[[Chain], None]] = []
    once = [victim for victim in Chain.VICTIMS if victim is not Chain.primary_and_takeover_in_the_middle]
    while len(victims) < ROUNDS:
        known = Chain.VICTIMS if not victims else once  # after the takeover it is a chain no more
        victims += chain.rng.sample(known, len(known))
    for number, victim in enumerate(victims[:ROUNDS]):
        began = time.monotonic()
        try:
            chain.round(victim)
        except AssertionError as error:
            raise AssertionError(
                f"{mode}, seed {seed}, round {number}: {victim.__name__}: {error}\n{tree.situation()}"
            ) from error
        print(f"round {number}: {victim.__name__}: {time.monotonic() - began:.1f} s")
