"""Links of several connections, pulled transfers and limits, on real threads, TLS and journals."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.core import credits
from replicator.core.events import DataStopped, LinkDown, StartReceiving, StartShipping
from replicator.core.transfer import AUTO, PULL, PUSH, Transfer
from replicator.daemon.link import wire
from replicator.daemon.link.connection import Connection
from replicator.journal.page import HEAD_SEQ, SYNC_ON, TAIL_OFF, TAIL_SEQ
from tests.testing.faultproxy import FaultProxy
from tests.testing.linkpair import LinkPair, connect_tls, tls_pair
from tests.testing.pairharness import PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ
from tests.unit.replicator.daemon.test_link import apply_all, same_journals, until


class Lanes(LinkPair):
    """A pair whose further connections go through a proxy of their own each; `connect` returns when all stand."""

    def __init__(self, folder: Path, settings: Transfer, **shape: Any) -> None:
        super().__init__(folder, settings=settings, **shape)
        self.proxies: list[FaultProxy] = []
        self.listener = socket.create_server(("127.0.0.1", 0))

    def _open_more(self, bundle: str, count: int) -> None:
        for _ in range(count):
            proxy = FaultProxy(self.listener.getsockname()[1])
            self.proxies.append(proxy)
            one, other = connect_tls(self.folder, self.listener, proxy.port)
            self.loop_b.joined(Connection(other, bundle))
            self.loop_a.joined(Connection(one, bundle))

    def connect(self) -> Lanes:
        super().connect()
        assert until(lambda: self.connections == self.settings.connections)
        return self

    @property
    def connections(self) -> int:
        counts = [loop.facts()["transfer"]["connections"] for loop in (self.loop_a, self.loop_b)]
        return min(counts)

    def close(self) -> None:
        super().close()
        for proxy in self.proxies:
            proxy.close()
        self.listener.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Lanes]]:
    made: list[Lanes] = []

    def build(settings: Transfer, **shape: Any) -> Lanes:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Lanes(folder, settings, **shape))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_records_spread_over_connections_of_unequal_delay_arrive_in_order(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer(connections=4)).connect()
    for number, proxy in enumerate(pair.proxies):
        proxy.delay_s = 0.004 * number
    for n in range(400):
        last = pair.a.append(os.urandom(1 + 97 * n))
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)
    assert all(proxy.bytes_passed["up"] > 100_000 for proxy in pair.proxies), "a connection carried nothing"


def test_a_connection_that_is_held_up_holds_back_what_follows_and_memory_stays_bounded(
    make: Callable[..., Lanes],
) -> None:
    pair = make(Transfer(connections=2), capacity=96 << 20).connect()
    pair.proxies[0].stall("up")
    for _ in range(60):
        last = pair.a.append(os.urandom(1 << 20))
    time.sleep(1.0)
    assert pair.b.page[HEAD_SEQ] < last
    assert 0 < pair.loop_b.facts()["transfer"]["held_bytes"] <= 16 << 20
    pair.proxies[0].resume()
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)


def test_a_run_that_never_comes_ends_the_link(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer(connections=2)).connect()
    pair.proxies[0].stall("up")
    for _ in range(100):
        pair.a.append(os.urandom(50_000))
    down = pair.sink.saw(LinkDown, 15.0)
    assert "did not come for 5 s" in down.reason
    assert pair.a.page[PEER_RECEIVED_SEQ] == pair.b.page[HEAD_SEQ]


def test_a_last_run_that_never_comes_ends_the_link_too(make: Callable[..., Lanes]) -> None:
    """Nothing follows that would show the gap; the sender's heartbeat does."""
    pair = make(Transfer(connections=3)).connect()
    for proxy in pair.proxies:
        proxy.stall("up")
    for _ in range(3):  # one over each connection
        assert not pair.a.wait_acked(pair.a.append(b"x"), 0.05) or pair.b.page[HEAD_SEQ] < 3
    assert "was sent and did not come" in pair.sink.saw(LinkDown, 15.0).reason


def test_the_loss_of_one_connection_ends_the_link_and_the_next_goes_on_without_loss(
    make: Callable[..., Lanes],
) -> None:
    pair = make(Transfer(connections=3)).connect()
    for n in range(200):
        last = pair.a.append(os.urandom(20_000))
        if n == 100:
            pair.proxies[1].cut()
    assert "connection" in pair.source.saw(LinkDown).reason + pair.sink.saw(LinkDown).reason
    got = pair.b.page[HEAD_SEQ]
    pair.source.on_link, pair.sink.on_link = [StartShipping(got + 1)], [StartReceiving(got + 1, 0)]
    pair.connect()
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)


def test_a_connection_of_another_link_is_closed_and_changes_nothing(make: Callable[..., Lanes], tmp_path: Path) -> None:
    pair = make(Transfer(connections=2)).connect()
    one, other = tls_pair(tmp_path)
    pair.loop_b.joined(Connection(other, "some other link"))
    one.settimeout(5)
    assert one.recv_into(memoryview(bytearray(10))) == 0
    last = pair.a.append(b"x")
    assert pair.a.wait_acked(last) and pair.connections == 2


def test_only_records_may_come_over_further_connections(make: Callable[..., Lanes], tmp_path: Path) -> None:
    pair = make(Transfer(connections=2)).connect()
    one, other = tls_pair(tmp_path)
    pair.loop_b.joined(Connection(other, "bundle"))
    one.sendall(wire.beat(1, 2, 3, 4, 5))
    assert "something else than records" in pair.sink.saw(LinkDown).reason


@pytest.mark.parametrize("connections", [1, 3])
def test_a_pulled_transfer_with_a_small_window_moves_everything(make: Callable[..., Lanes], connections: int) -> None:
    pair = make(Transfer(connections=connections, transfer=PULL, window=64 << 10), capacity=64 << 20).connect()
    for number, proxy in enumerate(pair.proxies):
        proxy.delay_s = 0.002 * number
    for n in range(300):
        last = pair.a.append(os.urandom((n * 7919) % 40_000))
    pair.a.append(os.urandom(5 << 20))  # larger than the window by far
    last = pair.a.append(b"end")
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)
    assert pair.kept["transfer"] == PULL and pair.kept["window"] == 64 << 10


def test_what_the_receiver_cannot_take_is_not_sent(make: Callable[..., Lanes]) -> None:
    """Its journal is full: a window at most is under way, and the sender keeps the rest."""
    window, journal = 256 << 10, 1 << 20
    pair = make(Transfer(transfer=PULL, window=window), sink_capacity=journal).connect()
    for _ in range(200):
        last = pair.a.append(os.urandom(50_000))
    time.sleep(0.5)
    assert pair.a.page[PEER_RECEIVED_SEQ] < last
    sent = pair.loop_a.facts()["transfer"]["wire_bytes"]
    assert journal * 0.9 <= sent <= journal + window
    assert until(lambda: apply_all(pair.b) and pair.a.page[PEER_RECEIVED_SEQ] == last)


def test_a_sender_without_credit_is_cut_off(make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credits.Credit, "room", property(lambda self: 1 << 40))
    pair = make(Transfer(transfer=PULL, window=64 << 10)).connect()
    for _ in range(10):
        pair.a.append(os.urandom(100_000))
    assert "were granted" in pair.sink.saw(LinkDown).reason


def test_a_limit_holds_back_records_and_never_what_else_the_link_carries(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer(limit=1 << 20)).connect()
    assert pair.a.wait_acked(pair.a.append(b"first"))
    begin = time.monotonic()
    for _ in range(32):
        last = pair.a.append(os.urandom(64 << 10))
    time.sleep(0.6)
    beat = pair.loop_b.facts()["peer_beat"]
    assert pair.a.page[PEER_RECEIVED_SEQ] < last and beat is not None
    assert pair.loop_a.facts()["transfer"]["rate"] == 1 << 20
    assert pair.a.wait_acked(last)
    took = time.monotonic() - begin
    assert 1.6 < took < 4.0, f"2 MiB at 1 MiB/s took {took:.2f} s"


def test_a_limit_is_lifted_while_it_holds_back(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer(limit=64 << 10)).connect()
    for _ in range(32):
        last = pair.a.append(os.urandom(64 << 10))
    assert not pair.a.wait_acked(last, 0.5)
    pair.settings = Transfer()
    pair.loop_a.retune()
    assert pair.a.wait_acked(last, 5.0)
    assert until(lambda: pair.kept.get("limit") == 0)


def test_settings_that_need_it_make_the_link_start_over(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer()).connect()
    assert pair.a.wait_acked(pair.a.append(b"x"))
    pair.settings = Transfer(connections=2)
    pair.loop_a.retune()
    assert "other transfer settings" in pair.source.saw(LinkDown).reason


def test_automatic_compression_shrinks_what_can_be_and_leaves_the_rest(make: Callable[..., Lanes]) -> None:
    pair = make(Transfer(compress=AUTO)).connect()
    for n in range(40):
        last = pair.a.append(bytes([n]) * 60_000 if n % 2 else os.urandom(60_000))
        assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)
    found = pair.loop_a.facts()["transfer"]
    assert found["plain_bytes"] >= 40 * 60_000
    assert 0.5 <= found["wire_bytes"] / found["plain_bytes"] < 0.6
    assert found["skipped_bytes"] >= 20 * 60_000


@pytest.mark.parametrize("settings", [Transfer(), Transfer(connections=3), Transfer(transfer=PULL)])
def test_a_lone_write_that_is_waited_for_is_not_delayed(make: Callable[..., Lanes], settings: Transfer) -> None:
    pair = make(settings).connect()
    pair.a.page[SYNC_ON] = 1
    assert pair.a.wait_acked(pair.a.append(b"x"))
    times = []
    for _ in range(100):
        begin = time.monotonic()
        assert pair.a.wait_acked(pair.a.append(bytes(4096)))
        times.append(time.monotonic() - begin)
    assert sorted(times)[50] < 0.02


@pytest.mark.parametrize("transfer", [PUSH, PULL])
@pytest.mark.parametrize("asked", ["beyond the end", "freed"])
def test_records_that_the_journal_does_not_hold_are_refused_and_nothing_is_freed(
    make: Callable[..., Lanes], transfer: str, asked: str
) -> None:
    pair = make(Transfer(transfer=transfer))
    for _ in range(5):
        last = pair.a.append(b"x" * 1000)
    if asked == "freed":
        off = pair.a.journal.find(4)
        pair.a.journal.set_tail(off, 4, off, 4)
    kept = pair.a.page[TAIL_SEQ], pair.a.page[TAIL_OFF], pair.a.page[HEAD_SEQ]
    wanted = last + 3 if asked == "beyond the end" else 2
    pair.source.on_link, pair.sink.on_link = [StartShipping(wanted)], []
    LinkPair.connect(pair)
    stopped = pair.source.saw(DataStopped)
    assert stopped.cause == "journal", "and both sides compare what they hold"
    assert f"record {wanted} is not in the journal, which holds {kept[0]} to {last}" in stopped.message
    assert (pair.a.page[TAIL_SEQ], pair.a.page[TAIL_OFF], pair.a.page[HEAD_SEQ]) == kept
    assert pair.b.page[HEAD_SEQ] == 0 and pair.a.page[PEER_DURABLE_SEQ] == 0


@pytest.mark.parametrize("transfer", [PUSH, PULL])
def test_a_peer_that_claims_what_was_never_written_is_cut_off_and_frees_nothing(
    make: Callable[..., Lanes], tmp_path: Path, transfer: str
) -> None:
    pair = make(Transfer(transfer=transfer))
    last = pair.a.append(b"x")
    here, there = tls_pair(tmp_path)
    pair.loop_a.connected(Connection(there, "bundle"))
    here.sendall(wire.ack(last + 1, last + 1, last + 1))
    assert f"the journal ends at {last}" in pair.source.saw(LinkDown).reason
    assert pair.a.page[PEER_RECEIVED_SEQ] == pair.a.page[PEER_DURABLE_SEQ] == 0


def test_a_receiver_that_lags_asks_more_often(make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch) -> None:
    grants: list[float] = []
    grant = wire.grant
    monkeypatch.setattr(wire, "grant", lambda total: (grants.append(time.monotonic()), grant(total))[1])
    pair = make(Transfer(transfer=PULL, window=16 << 20, limit=1 << 20)).connect()

    def asked(seconds: float, pause_s: float) -> int:
        """How many grants went out while a small record was written every `pause_s`."""
        grants.clear()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pair.a.append(b"small")
            time.sleep(pause_s)
        return len(grants)

    assert pair.a.wait_acked(pair.a.append(b"first"))
    in_time = asked(3.0, 0.02)
    for _ in range(100):
        pair.a.append(os.urandom(256 << 10))  # 25 MiB: more than the window, at 1 MiB/s
    time.sleep(1.5)  # until a beat has told so
    behind = asked(3.0, 0.02)
    assert in_time <= 5 and behind >= 3 * max(in_time, 1), f"{in_time} grants in 3 s without a lag, {behind} with one"
