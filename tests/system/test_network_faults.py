"""Two real nodes with a misbehaving network between their replicators: cuts, stalls, throttling, corruption, replay.

Stamped writes run all the while. What is acknowledged must be on both sides in the end, and nothing else; connections
break, the pair does not.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator

import pytest

from replicator.control import ControlClient
from replicator.core.errors import FarstripeError
from tests.testing.faultproxy import FaultProxy
from tests.testing.needs import needs
from tests.testing.nodes import GROUP, Node, wait_until
from tests.testing.stamped import BLOCK, Ledger, StampedLoad, check_nothing_lost, check_prefix, read_generations
from tests.unit.replicator.daemon.conftest import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SIZE = 8 << 20


class Proxied:
    """Nodes A (primary) and B whose replicators reach each other through one proxy each way."""

    def __init__(self, a: Node, b: Node, to_a: FaultProxy, to_b: FaultProxy) -> None:
        self.a, self.b = a, b
        self.proxies = (to_a, to_b)
        self.ledger = Ledger()

    def pair(self, **options: object) -> None:
        """Join, make each know the other at its proxy, and pair."""
        token = self.b.ask("replicator", "peer.token")["token"]
        self.a.ask("replicator", "peer.join", token=token)
        for node, proxy in ((self.a, self.proxies[1]), (self.b, self.proxies[0])):
            node.kill("replicator")
            path = next((node.state / "peers").glob("*.json"))
            path.write_text(json.dumps(json.loads(path.read_text()) | {"port": proxy.port}))
            node.start()
        self.a.ask("replicator", "pair.create", 60, group=GROUP, peer="B", **options)
        self.wait("ok")

    def wait(self, state: str, timeout_s: float = 60, node: Node | None = None) -> dict[str, object]:
        node = node or self.a
        with ControlClient(node.run_dir / "replicator.sock", timeout_s + 10) as client:
            return dict(client.call("pair.wait", group=GROUP, state=state, timeout_s=timeout_s))

    def word(self) -> str:
        return str(self.a.ask("replicator", "pair.show", group=GROUP)["word"])

    @property
    def live(self) -> FaultProxy:
        """The proxy through which the data path runs: that of the side which is called, which has the higher id."""
        a_id, b_id = (node.ask("replicator", "pair.show", group=GROUP)["peer"] for node in (self.b, self.a))
        return self.proxies[1 if a_id < b_id else 0]

    def each(self, act: Callable[[FaultProxy], object]) -> None:
        for proxy in self.proxies:
            act(proxy)

    def load(self, seed: int, writes_per_s: int = 500) -> StampedLoad:
        return StampedLoad(
            lambda: self.a.writer("v"), SIZE // BLOCK, seed, ledger=self.ledger, writes_per_s=writes_per_s
        ).start()

    def assert_equal(self) -> None:
        """Nothing acknowledged is missing anywhere, and both images are the same."""
        self.wait("equal")
        images = [read_generations(node.connect("v"), SIZE // BLOCK) for node in (self.a, self.b)]
        check_nothing_lost(self.ledger, images[0])
        assert images[0] == images[1]

    def situation(self) -> str:
        return f"{self.a.logs()}\n{self.b.logs()}"


@pytest.fixture
def net() -> Iterator[Proxied]:
    needs("nbdkit")
    ports = free_port(), free_port()
    with (
        Node("A", replication_port=ports[0]) as a,
        Node("B", replication_port=ports[1]) as b,
        FaultProxy(ports[0], seed=1) as to_a,
        FaultProxy(ports[1], seed=2) as to_b,
    ):
        for node in (a, b):
            node.init()
            disks = [str(node.dir / f"disk{n}") for n in range(3)]
            node.farstripe("pool", "create", "pool", "raid0", *disks, "--make-files", 64 << 20)
        a.ask("target", "volume.create", name="v", size=SIZE)
        a.ask("target", "group.create", name=GROUP, volumes=["v"], journal_bytes=16 << 20)
        yield Proxied(a, b, to_a, to_b)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_connections_cut_at_random_bytes_lose_nothing(net: Proxied, mode: str) -> None:
    net.pair(mode=mode, on_loss="stall", loss_timeout_s=60)
    rng = random.Random(7)
    load = net.load(1)
    for _ in range(12):
        count = load.ledger.acked_count
        net.live.truncate_after(rng.randrange(1, 200_000))
        time.sleep(rng.random() * 0.4)
        if rng.random() < 0.3:
            net.each(FaultProxy.cut)
        wait_until(lambda before=count: load.ledger.acked_count > before + 20, net.situation, 30)
    net.each(FaultProxy.heal)
    load.stop()
    net.assert_equal()


def test_flipped_bits_never_reach_the_copy(net: Proxied) -> None:
    net.pair(mode="async")
    load = net.load(2)
    for _ in range(6):
        net.live.corrupt(every_bytes=40_000)
        time.sleep(0.5)
        net.each(FaultProxy.heal)
        net.wait("ok", 30)
    load.stop()
    net.assert_equal()


def test_a_stalled_line_is_noticed_and_a_synchronous_pair_degrades_visibly(net: Proxied) -> None:
    net.pair(mode="sync", on_loss="degrade", loss_timeout_s=1)
    net.wait("sync")
    load = net.load(3)
    load.wait_acked(50)
    net.each(FaultProxy.stall)
    before = load.ledger.acked_count
    wait_until(lambda: load.ledger.acked_count > before + 50, net.situation, 20)
    assert net.word() == "DEGRADED"
    wait_until(lambda: not net.a.ask("replicator", "pair.show", group=GROUP)["connected"], net.situation, 20)
    net.each(FaultProxy.resume)
    net.wait("sync", 40)
    load.stop()
    net.assert_equal()


def test_a_stall_in_one_direction_is_noticed_on_both_sides(net: Proxied) -> None:
    net.pair(mode="async")
    for way in ("up", "down"):
        net.each(lambda proxy, way=way: proxy.stall(way))
        for node in (net.a, net.b):
            net.wait("disconnected", 20, node)
        net.each(FaultProxy.resume)
        net.wait("ok", 30)


def test_a_slow_line_gives_a_lag_that_is_stated_and_a_prefix_at_takeover(net: Proxied) -> None:
    net.pair(mode="async")
    load = net.load(4, writes_per_s=2000)
    net.live.rate_bytes_s = 400_000
    time.sleep(2.5)
    view = net.a.ask("replicator", "pair.show", group=GROUP)
    assert view["lag"] > 50 and view["lag_bytes"] > 0
    net.a.kill()
    load.stop()
    told = net.b.ask("replicator", "takeover", 60, group=GROUP)
    assert not told["lost"]["certain"] and told["lost"]["seconds"] is not None
    lost = check_prefix(load.ledger, read_generations(net.b.connect("v"), SIZE // BLOCK))
    assert lost > 0


def test_a_cut_off_primary_is_superseded_and_its_late_bytes_change_nothing(net: Proxied) -> None:
    net.pair(mode="async")
    load = net.load(5)
    load.wait_acked(100)
    net.each(FaultProxy.stall)
    time.sleep(0.3)
    told = net.b.ask("replicator", "takeover", 60, group=GROUP)  # nobody answers: that is what takeovers are for
    assert not told["lost"]["certain"]
    load.stop()
    image = read_generations(net.b.connect("v"), SIZE // BLOCK)
    check_prefix(load.ledger, image)
    net.each(FaultProxy.resume)  # what the old primary had sent now arrives, late
    wait_until(lambda: net.a.group().get("role") == "secondary", net.situation, 40)
    assert read_generations(net.b.connect("v"), SIZE // BLOCK) == image
    wait_until(
        lambda: net.b.ask("replicator", "pair.show", group=GROUP)["word"] in ("SUPERSEDED", "PAIR"), net.situation
    )
    if net.b.ask("replicator", "pair.show", group=GROUP)["word"] == "SUPERSEDED":
        net.b.ask("replicator", "pair.resync", group=GROUP, discard="A")
    net.wait("equal", 40, net.b)
    assert read_generations(net.a.connect("v"), SIZE // BLOCK) == image


def test_a_living_primary_is_not_taken_over_without_force(net: Proxied) -> None:
    net.pair(mode="async")
    load = net.load(8)
    load.wait_acked(100)
    with pytest.raises(FarstripeError, match="alive"):
        net.b.ask("replicator", "takeover", 60, group=GROUP)
    assert net.b.group()["role"] == "secondary"
    net.each(FaultProxy.cut)  # the link may be down for a moment: the primary is asked all the same
    with pytest.raises(FarstripeError, match="alive"):
        net.b.ask("replicator", "takeover", 60, group=GROUP)
    load.stop()
    net.b.ask("replicator", "takeover", 60, group=GROUP, force=True)
    assert net.b.group()["role"] == "primary"


def test_a_replayed_connection_is_refused(net: Proxied) -> None:
    for proxy in net.proxies:
        proxy.record = True
    net.pair(mode="async")
    load = net.load(6)
    load.wait_acked(200)
    net.each(FaultProxy.cut)
    net.wait("ok", 30)
    for proxy in net.proxies:
        for number in range(min(proxy.accepted, 6)):
            proxy.replay(number, 1.0)
    load.stop()
    net.assert_equal()
    assert net.word() == "PAIR"


def test_a_full_journal_behind_a_dead_line_ends_in_a_copy_by_difference(net: Proxied) -> None:
    net.pair(mode="async", on_full="bitmap", full_timeout_s=0.5)
    net.each(lambda proxy: setattr(proxy, "refuse", True))
    net.each(FaultProxy.cut)
    handle = net.a.writer("v")
    for n in range(24 << 4):
        handle.pwrite(n.to_bytes(4, "little") * (16 << 10), (n * (64 << 10)) % SIZE)
    assert net.a.group()["mode"] == "bitmap"
    net.each(FaultProxy.heal)
    net.wait("equal", 60)
    a, b = net.a.connect("v"), net.b.connect("v")
    assert bytes(a.pread(SIZE, 0)) == bytes(b.pread(SIZE, 0))
