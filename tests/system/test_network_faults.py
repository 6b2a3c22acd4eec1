"""Two real nodes with a misbehaving network between their replicators: cuts, stalls, throttling, corruption, replay.

Stamped writes run all the while. What is acknowledged must be on both sides in the end, and nothing else; connections
break, the pair does not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from replicator.core.errors import FarstripeError
from tests.testing.faultproxy import FaultProxy
from tests.testing.needs import needs
from tests.testing.nodes import GROUP, wait_until
from tests.testing.proxied import Proxied, proxied
from tests.testing.stamped import BLOCK, check_prefix, read_generations

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SIZE = 8 << 20


@pytest.fixture
def net() -> Iterator[Proxied]:
    needs("nbdkit")
    with proxied(SIZE) as made:
        yield made


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
