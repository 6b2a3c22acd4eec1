"""Faults of a network, by ways to move records, by what a pair is doing, on two living nodes.

The nodes live through all scenarios of this file. Each one runs a stamped load, has the network misbehave, heals it and
then holds both images against what hosts were promised: nothing acknowledged is missing anywhere, both are equal.
All the while no side may claim that the other holds what it does not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from replicator.core.errors import FarstripeError
from tests.testing.faultproxy import FaultProxy
from tests.testing.needs import needs
from tests.testing.nodes import GROUP, Node, wait_until
from tests.testing.proxied import Proxied, proxied

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SIZE = 2 << 20
MODES: dict[str, dict[str, object]] = {
    "async": {"mode": "async"},
    "sync": {"mode": "sync", "on_loss": "stall", "loss_timeout_s": 60},
    "pull": {"mode": "async", "transfer": "pull", "window": 64 << 10},
    "lanes": {"mode": "sync", "on_loss": "stall", "loss_timeout_s": 60, "connections": 3},
}


class Living:
    """The two nodes through the scenarios: the present mode, and who is primary."""

    def __init__(self, net: Proxied) -> None:
        self.net = net
        self.mode = ""
        self.seed = 0
        net.join()

    def use(self, mode: str) -> None:
        """Have the pair move its records this way; a change makes the pair anew."""
        if self.mode == mode:
            self.net.wait("ok", 30)
            return
        if self.mode:
            self.net.a.ask("replicator", "pair.delete", 60, group=GROUP)
            self.net.b.ask("target", "group.delete", 30, group=GROUP, force=True)
        self.create(mode)
        self.net.wait("ok", 30)

    def create(self, mode: str) -> None:
        self.mode = mode
        self.net.a.ask("replicator", "pair.create", 60, group=GROUP, peer="B", overwrite=True, **MODES[mode])

    def suffer(
        self, fault: Callable[[Proxied], None], during: Callable[[], None] = lambda: None, ends: bool = False
    ) -> None:
        """Run a load, the fault and what goes on `during` it; heal; then everything must be right.

        ends: the fault must have ended connections, which were made anew.
        """
        net, self.seed = self.net, self.seed + 1
        load = net.load(self.seed, writes_per_s=800)
        watch = _Watch(net.a, net.b)
        made = sum(proxy.accepted for proxy in net.proxies)
        try:
            load.wait_acked(20)
            during()
            fault(net)
        finally:
            net.each(FaultProxy.heal)
        try:
            load.wait_acked(30)
        finally:
            load.stop()
            watch.stop()
        net.assert_equal()
        assert not ends or sum(proxy.accepted for proxy in net.proxies) > made, "the connection outlived the fault"


class _Watch:
    """Asks both nodes, again and again: what the one says the other has, the other must have by then."""

    def __init__(self, primary: Node, secondary: Node) -> None:
        self._nodes = primary, secondary
        self._wrong: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        primary, secondary = self._nodes
        while not self._end.wait(0.1):
            try:
                view = primary.ask("replicator", "pair.show", group=GROUP)
                there = secondary.group()
            except FarstripeError:
                continue
            claims = (view.get("facts") or {}).get("acked") or {}
            if view["role"] != "primary" or there.get("role") != "secondary" or not view["connected"]:
                continue
            for what, key in (("received", "pos"), ("durable", "durable"), ("applied", "applied")):
                if claims.get(what, 0) > there[key]:
                    self._wrong.append(f"{view['word']}: {what} {claims[what]} claimed, {there[key]} there")

    def stop(self) -> None:
        self._end.set()
        self._thread.join(30)
        assert not self._wrong, self._wrong[:5]


@pytest.fixture(scope="module")
def living() -> Iterator[Living]:
    needs("nbdkit")
    with proxied(SIZE) as net:
        yield Living(net)


# -- faults -----------------------------------------------------------------------------------------------------


def _for(seconds: float, act: Callable[[FaultProxy], object], every_proxy: bool = True) -> Callable[[Proxied], None]:
    def fault(net: Proxied) -> None:
        net.each(act) if every_proxy else act(net.live)
        time.sleep(seconds)

    return fault


def _set(name: str, value: object) -> Callable[[FaultProxy], None]:
    return lambda proxy: setattr(proxy, name, value)


def _one(number: int, act: Callable[[FaultProxy], object]) -> Callable[[FaultProxy], None]:
    """Act on one connection of the link only."""

    def fault(proxy: FaultProxy) -> None:
        proxy.only = number
        act(proxy)

    return fault


def _refuse(proxy: FaultProxy) -> None:
    proxy.refuse = True
    proxy.cut()


def _replay(net: Proxied) -> None:
    """What a connection said is said again: to the port, and in the middle of the next connection."""
    for proxy in net.proxies:
        proxy.record = True
    net.each(FaultProxy.cut)
    time.sleep(0.5)
    for proxy in net.proxies:
        proxy.record = False
        for number in range(len(proxy._said)):
            if proxy._said[number]:
                proxy.replay(number, 0.2)
    net.live.tamper("old")
    time.sleep(0.2)


FAULTS: dict[str, Callable[[Proxied], None]] = {
    "reset": _for(0.2, FaultProxy.cut),
    "refused-for-a-while": _for(0.5, _refuse),
    "stalled-both-ways": _for(0.5, FaultProxy.stall),
    "stalled-up": _for(0.5, lambda proxy: proxy.stall("up")),
    "stalled-down": _for(0.5, lambda proxy: proxy.stall("down")),
    "delayed": _for(0.5, _set("delay_s", 0.03)),
    "throttled": _for(0.5, _set("rate_bytes_s", 150_000)),
    "trickle": _for(0.5, _set("rate_bytes_s", 4_000)),
    "bits-flipped": _for(0.4, lambda proxy: proxy.corrupt(every_bytes=20_000)),
    "bytes-lost": _for(0.3, lambda proxy: proxy.tamper("drop")),
    "bytes-doubled": _for(0.3, lambda proxy: proxy.tamper("double")),
    "bytes-swapped": _for(0.3, lambda proxy: proxy.tamper("swap")),
    "cut-mid-frame": _for(0.3, lambda proxy: proxy.tamper("half")),
    "old-bytes-replayed": _replay,
}
ENDING = ("reset", "refused-for-a-while", "bits-flipped", "bytes-lost", "bytes-doubled", "bytes-swapped",
          "cut-mid-frame", "old-bytes-replayed")  # fmt: skip
"""TLS must notice what is done to bytes: the connection ends and nothing of it is taken."""
LONG: dict[str, Callable[[Proxied], None]] = {
    "half-open": _for(6.0, FaultProxy.half_open),
    "one-way-loss": _for(6.0, lambda proxy: proxy.stall("up")),
}
OF_ONE_CONNECTION: dict[str, Callable[[Proxied], None]] = {
    "first-cut": _for(0.3, _one(0, FaultProxy.cut)),
    "second-cut": _for(0.3, _one(1, FaultProxy.cut)),
    "last-half-open": _for(0.5, _one(2, FaultProxy.half_open)),
}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("fault", list(FAULTS))
def test_records_flow(living: Living, mode: str, fault: str) -> None:
    living.use(mode)
    living.suffer(FAULTS[fault], ends=fault in ENDING)


@pytest.mark.parametrize("fault", list(OF_ONE_CONNECTION))
def test_one_connection_of_several(living: Living, fault: str) -> None:
    living.use("lanes")
    wait_until(lambda: _transfer(living)["connections_open"] == 3, living.net.situation, 20)
    living.suffer(OF_ONE_CONNECTION[fault], ends=fault.endswith("cut"))


def _transfer(living: Living) -> dict[str, Any]:
    return dict(living.net.a.ask("replicator", "pair.show", group=GROUP)["transfer"])


@pytest.mark.parametrize(("mode", "fault"), [("lanes", "half-open"), ("async", "one-way-loss")])
def test_nobody_is_told_and_silence_must_do(living: Living, mode: str, fault: str) -> None:
    living.use(mode)
    living.suffer(LONG[fault], ends=True)


@pytest.mark.parametrize("fault", ["reset", "bits-flipped", "stalled-up", "cut-mid-frame"])
def test_a_first_copy(living: Living, fault: str) -> None:
    living.use("async")
    net = living.net
    net.a.ask("replicator", "pair.delete", 60, group=GROUP)
    net.b.ask("target", "group.delete", 30, group=GROUP, force=True)
    living.suffer(FAULTS[fault], during=lambda: living.create("async"))


@pytest.mark.parametrize("fault", ["reset", "bytes-lost", "throttled", "old-bytes-replayed"])
def test_a_copy_by_difference(living: Living, fault: str) -> None:
    living.use("async")
    net = living.net
    net.a.ask("replicator", "pair.split", 60, group=GROUP)
    living.suffer(FAULTS[fault], during=lambda: net.a.ask("replicator", "pair.resync", 60, group=GROUP))


@pytest.mark.parametrize("fault", ["reset", "refused-for-a-while", "stalled-down", "cut-mid-frame"])
def test_a_switchover(living: Living, fault: str) -> None:
    """It happens or it does not; either way there is one primary, which has everything."""
    living.use("async")
    net, living.seed = living.net, living.seed + 1
    load = net.load(living.seed, writes_per_s=800)
    load.wait_acked(20)
    done = threading.Thread(target=lambda: _switch(net.a), daemon=True)
    done.start()
    FAULTS[fault](net)
    net.each(FaultProxy.heal)
    done.join(60)
    wait_until(lambda: {net.a.group().get("role"), net.b.group().get("role")} == {"primary", "secondary"},
               net.situation, 40)  # fmt: skip
    if net.b.group()["role"] == "primary":
        net.wait("equal", 40, net.b)
        wait_until(lambda: _switch(net.b), net.situation, 40)
    load.wait_acked(20)
    load.stop()
    net.assert_equal()


def _switch(node: Node) -> bool:
    """Ask for a switchover; whether it happened."""
    try:
        node.ask("replicator", "switchover", 40, group=GROUP, deadline_s=5)
    except FarstripeError:
        return False
    return True
