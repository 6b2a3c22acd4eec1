"""SIGKILL of real processes, at random instants, under load; then the promises are held against the images.

Two loads run: stamped writes on one volume (who knows which were acknowledged, and in what order), and fio with CRC
verification on another. After every round both nodes' images are compared byte by byte, and the stamped volume with
its acknowledgements; in an asynchronous takeover the survivor must show a prefix, in a synchronous one everything.

One test is ROUNDS rounds on one pair of nodes; the rounds of a test go through all victims in random order. A failure
names its seed and round. Longer runs: FARSTRIPE_KILL_ROUNDS=200 pytest tests/kill
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from replicator.core.errors import FarstripeError
from tests.testing.fio import FioLoad
from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import PROCESSES, Node, Pair, kill_together, wait_until
from tests.testing.stamped import BLOCK, StampedLoad, check_nothing_lost, check_prefix

pytestmark = [pytest.mark.kill, pytest.mark.timeout(1200)]

ROUNDS = int(os.environ.get("FARSTRIPE_KILL_ROUNDS", "11"))
VOLUMES = {"data": 16 << 20, "log": 16 << 20}
SYNC = ["--mode", "sync", "--on-loss", "stall", "--loss-timeout", "120"]
ASYNC = ["--mode", "async"]


class Arena:
    """A pair under both loads, and what can happen to it."""

    def __init__(self, pair: Pair, seed: int, sync: bool) -> None:
        self.pair, self.sync, self.rng = pair, sync, random.Random(seed)
        self.load: StampedLoad | None = None
        self.fio = FioLoad("log", VOLUMES["log"], seed)
        self.lost = 0

    # -- victims: each kills, brings back, and returns when the pair can be expected to recover by itself --------------

    def primary_target(self) -> None:
        self.pair.primary.kill("target")
        self.pair.primary.start()

    def secondary_target(self) -> None:
        self.pair.secondary.kill("target")
        self._go_on_meanwhile()
        self.pair.secondary.start()

    def primary_replicator(self) -> None:
        self.pair.primary.kill("replicator")
        self._go_on_meanwhile()
        self.pair.primary.start()

    def secondary_replicator(self) -> None:
        self.pair.secondary.kill("replicator")
        self._go_on_meanwhile()
        self.pair.secondary.start()

    def secondary_node(self) -> None:
        self.pair.secondary.kill()
        self._go_on_meanwhile()
        self.pair.secondary.start()

    def primary_node(self) -> None:
        self.pair.primary.kill()
        self.pair.primary.start()

    def primary_node_and_takeover(self) -> None:
        """The survivor becomes primary; the dead node comes back as its secondary, by difference."""
        self.pair.primary.kill()
        self._take_over()

    def primary_node_and_takeover_with_lag(self) -> None:
        """The same, after the survivor's replicator has stood still: what was written meanwhile is not there."""
        survivor = self.pair.secondary
        survivor.pause("replicator")
        time.sleep(0.1 + self.rng.random() * 0.4)
        self.pair.primary.kill()
        survivor.resume("replicator")
        self._take_over()

    def _take_over(self) -> None:
        old, new = self.pair.primary, self.pair.secondary
        assert self.load is not None
        self.load.stop()
        new.farstripe("takeover", "app", "--yes")
        image = new.generations("data", VOLUMES["data"] // BLOCK)
        if self.sync:
            check_nothing_lost(self.load.ledger, image)
        else:
            self.lost += check_prefix(self.load.ledger, image)
            self.load.ledger.restart_from(image)
        self.pair.swapped()
        self.fio.aim(new.run_dir / "nbd.sock")
        self._start_stamps(self.load)
        self._go_on_meanwhile()
        old.start()
        self.pair.give_up_tail_of(old)

    def both_nodes(self) -> None:
        """The power of the whole site: every process of both nodes at once."""
        kill_together(self.pair.primary, self.pair.secondary)
        for node in self.rng.sample([self.pair.primary, self.pair.secondary], 2):
            node.start()

    def takeover_and_its_resync(self) -> None:
        """The former primary comes back, and something dies while it is being copied to."""
        self.primary_node_and_takeover_with_lag()
        time.sleep(self.rng.random() * 0.2)
        node = self.rng.choice([self.pair.primary, self.pair.secondary])
        node.kill(self.rng.choice(PROCESSES))
        node.start()

    def switchover(self) -> None:
        """Something dies while roles are being exchanged. Whoever is primary afterwards, nothing may be lost."""
        old, new = self.pair.primary, self.pair.secondary
        with ThreadPoolExecutor(1) as asker:
            asked = asker.submit(try_switchover, old)
            time.sleep(self.rng.random() * 0.25)
            node = self.rng.choice([old, new])
            node.kill(self.rng.choice(PROCESSES))
            node.start()
            asked.result()
        self._settle_roles(old, new)

    def _settle_roles(self, old: Node, new: Node) -> None:
        """Wait until one side is primary. A switchover cut in half may leave none; then an operator decides."""

        def primaries() -> list[Node]:
            return [node for node in (old, new) if node.group().get("role") == "primary"]

        try:
            wait_until(lambda: len(primaries()) == 1 and self._linked(old, new), self.pair.situation, 15)
        except AssertionError:
            if primaries():
                raise
            ahead = max((old, new), key=lambda node: node.group()["pos"])
            ahead.farstripe("takeover", "app", "--yes")
        if primaries() == [new]:
            self.pair.swapped()

    @staticmethod
    def _linked(old: Node, new: Node) -> bool:
        return bool(old.group().get("link_up") or new.group().get("link_up"))

    VICTIMS: tuple[Callable[[Arena], None], ...] = (
        primary_target, secondary_target, primary_replicator, secondary_replicator, secondary_node, primary_node,
        primary_node_and_takeover, primary_node_and_takeover_with_lag, both_nodes, takeover_and_its_resync, switchover,
    )  # fmt: skip

    # -- a round ------------------------------------------------------------------------------------------------------

    def round(self, victim: Callable[[Arena], None]) -> None:
        self.fio.aim(self.pair.primary.run_dir / "nbd.sock")
        # fio takes a refusal for an error, and may not be told less than it wrote: no role may change under it then.
        fio_runs = victim is not Arena.switchover and (self.sync or "takeover" not in victim.__name__)
        if fio_runs:
            self.fio.start(2.0)
        self._start_stamps(self.load)
        assert self.load is not None
        self.load.wait_acked(50)
        time.sleep(self.rng.random() * 0.7)
        victim(self)
        self.load.wait_acked(50)
        self.pair.wait_streaming()
        self.load.stop()
        if fio_runs:
            self.fio.finish()
        self.pair.assert_images_equal()
        image = self.pair.primary.generations("data", VOLUMES["data"] // BLOCK)
        check_nothing_lost(self.load.ledger, image)

    def _start_stamps(self, former: StampedLoad | None) -> None:
        seed = self.rng.randrange(1 << 30)
        self.load = self.pair.load("data", seed, former.ledger if former else None, writes_per_s=600)

    def _go_on_meanwhile(self) -> None:
        """Let writes pile up while the victim is away; in a synchronous group they wait instead."""
        assert self.load is not None
        if not self.sync:
            self.load.wait_acked(self.rng.randrange(20, 200))
        else:
            time.sleep(self.rng.random() * 0.3)

    def close(self) -> None:
        self.fio.close()


def try_switchover(node: Node) -> None:
    """Ask for a switchover; it may well fail, with its replicator dying under it."""
    try:
        node.ask("replicator", "switchover", timeout_s=60, group="app", deadline_s=5)
    except FarstripeError:
        pass  # what counts is what the nodes say afterwards


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    needs("nbdkit", "fio", "ip", root=True)
    with NetNS() as net, Node("A", net, replication_port=10810) as a, Node("B", net, replication_port=10811) as b:
        yield a.init(), b.init()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_promises_hold_after_sigkill(nodes: tuple[Node, Node], mode: str, seed: int) -> None:
    pair = Pair.create(*nodes, VOLUMES, SYNC if mode == "sync" else ASYNC)
    arena = Arena(pair, seed, mode == "sync")
    victims: list[Callable[[Arena], None]] = []
    while len(victims) < ROUNDS:
        victims += arena.rng.sample(Arena.VICTIMS, len(Arena.VICTIMS))
    try:
        for number, victim in enumerate(victims[:ROUNDS]):
            began = time.monotonic()
            try:
                arena.round(victim)
            except AssertionError as error:
                raise AssertionError(
                    f"{mode}, seed {seed}, round {number}: kill of {victim.__name__}: {error}\n{pair.situation()}"
                ) from error
            print(f"round {number}: {victim.__name__}: {time.monotonic() - began:.1f} s")
    finally:
        arena.close()
