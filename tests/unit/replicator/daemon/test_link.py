"""The data path without targets: two link threads, real TLS, real journals; what arrives is what was appended."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.core.events import Acked, AskTarget, ClaimJournal, DataStopped, LinkDown, StartReceiving, StartShipping
from replicator.core.records import FLAG_FUA, Kind
from replicator.core.transfer import Transfer
from replicator.daemon.link import shipper
from replicator.daemon.link.connection import Connection
from replicator.journal.page import (
    APPLIED_SEQ,
    DURABLE_SEQ,
    HEAD_OFF,
    HEAD_SEQ,
    INCARNATION,
    SYNC_ON,
    TAIL_OFF,
    TAIL_SEQ,
)
from tests.testing.faultproxy import FaultProxy
from tests.testing.linkpair import GROUP, LinkPair, Scripted, Side, connect_tls, make_loop, tls_pair
from tests.testing.pairharness import PEER_APPLIED_SEQ, PEER_DURABLE_OFF, PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def same_journals(a: Side, b: Side) -> bool:
    length = a.page[HEAD_OFF]
    return b.page[HEAD_OFF] == length and a.journal.read(0, length) == b.journal.read(0, length)


def apply_all(side: Side) -> bool:
    """Play the secondary's target: all that came is durable, applied and trimmed."""
    page = side.page
    off, seq = page[HEAD_OFF], page[HEAD_SEQ]
    page[DURABLE_SEQ] = page[APPLIED_SEQ] = seq
    page[TAIL_SEQ], page[TAIL_OFF] = seq + 1, off
    return True


def test_records_arrive_byte_for_byte_and_are_acknowledged(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        for n in range(300):
            last = pair.a.append(os.urandom(17 * n))
        assert pair.a.wait_acked(last)
        assert same_journals(pair.a, pair.b)
        assert pair.b.page[HEAD_SEQ] == last
        assert until(lambda: any(isinstance(e, Acked) and e.received == last for e in pair.source.seen))


def test_the_session_hears_when_everything_received_is_applied(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        last = pair.a.append(b"x")
        assert pair.a.wait_acked(last)
        time.sleep(0.1)
        assert pair.sink.times_caught_up == 0
        apply_all(pair.b)
        assert until(lambda: pair.sink.times_caught_up > 0)
        assert pair.source.times_caught_up == 0


def test_records_written_before_the_link_are_shipped_too(folder: Path) -> None:
    pair = LinkPair(folder)
    for _ in range(50):
        last = pair.a.append(os.urandom(5000), ring=False)
    with pair.connect():
        assert pair.a.wait_acked(last)
        assert same_journals(pair.a, pair.b)


@pytest.mark.parametrize("size", [300 << 10, 3 << 20, 20 << 20])
def test_records_longer_than_the_buffers_pass(folder: Path, size: int) -> None:
    with LinkPair(folder, capacity=64 << 20).connect() as pair:
        pair.a.append(b"small")
        pair.a.append(os.urandom(size))
        last = pair.a.append(b"small again")
        assert pair.a.wait_acked(last)
        assert same_journals(pair.a, pair.b)


def test_compressed_runs_arrive_as_written(folder: Path) -> None:
    with LinkPair(folder, settings=Transfer(compress=1)).connect() as pair:
        for n in range(60):
            last = pair.a.append(bytes([n]) * 30000 if n % 2 else os.urandom(20000))
        assert pair.a.wait_acked(last)
        assert same_journals(pair.a, pair.b)


def test_a_ring_that_wraps_many_times_keeps_every_record(folder: Path) -> None:
    with LinkPair(folder, capacity=1 << 20).connect() as pair:
        a, b = pair.a.page, pair.b.page
        for _ in range(300):
            payload = os.urandom(50000)
            while True:
                try:
                    last = pair.a.append(payload)
                    break
                except BufferError:
                    assert until(lambda: apply_all(pair.b) and a[PEER_DURABLE_OFF] > a[TAIL_OFF])
                    a[TAIL_SEQ], a[TAIL_OFF] = a[PEER_DURABLE_SEQ] + 1, a[PEER_DURABLE_OFF]
        assert pair.a.wait_acked(last)
        assert a[HEAD_OFF] == b[HEAD_OFF] > 10 << 20
        assert pair.a.journal.read(a[HEAD_OFF] - 50064, 50064) == pair.b.journal.read(b[HEAD_OFF] - 50064, 50064)


def test_a_full_journal_at_the_secondary_holds_the_primary_back_and_loses_nothing(folder: Path) -> None:
    pair = LinkPair(folder)
    pair.loop_b.stop()
    pair.b = Side(folder / "small", 1 << 20)
    pair.loop_b = make_loop(pair.b, pair.sink, "b")
    with pair.connect():
        for _ in range(100):
            last = pair.a.append(os.urandom(60000))
        assert until(lambda: pair.b.page[HEAD_SEQ] > 0)  # or more: what fits depends on how they are run together
        time.sleep(0.2)
        held = pair.b.page[HEAD_SEQ]
        assert held < last
        b = pair.b.page
        while b[HEAD_SEQ] < last:
            b[TAIL_OFF] = b[HEAD_OFF]
            assert until(lambda before=held: b[HEAD_SEQ] > before)
            held = b[HEAD_SEQ]
        assert pair.a.wait_acked(last)


def test_received_is_not_durable_until_it_is_synced(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        last = pair.a.append(b"x" * 4096)
        assert pair.a.wait_acked(last)
        time.sleep(0.1)
        assert pair.a.page[PEER_DURABLE_SEQ] == 0
        pair.b.page[DURABLE_SEQ] = last
        assert pair.a.wait_durable(last)
        assert pair.a.page[PEER_DURABLE_OFF] == pair.a.page[HEAD_OFF]
        pair.b.page[APPLIED_SEQ] = last
        assert until(lambda: pair.a.page[PEER_APPLIED_SEQ] == last)


@pytest.mark.parametrize(("kind", "flags"), [(Kind.BARRIER, 0), (Kind.WRITE, FLAG_FUA)])
def test_a_barrier_and_a_fua_write_are_made_durable_at_once(folder: Path, kind: int, flags: int) -> None:
    with LinkPair(folder).connect() as pair:
        pair.a.append(b"x" * 4096)
        last = pair.a.append(b"" if kind == Kind.BARRIER else b"y" * 4096, kind=kind, flags=flags)
        assert pair.a.wait_durable(last, 5)


def test_a_durable_policy_makes_every_write_durable(folder: Path) -> None:
    pair = LinkPair(folder)
    pair.source.status = {"policy": {"mode": "sync", "ack": "durable"}}
    with pair.connect():
        for _ in range(20):
            last = pair.a.append(b"x" * 4096)
            assert pair.a.wait_durable(last, 5)


def test_shipping_starts_in_the_middle(folder: Path) -> None:
    pair = LinkPair(folder)
    for _ in range(20):
        last = pair.a.append(os.urandom(100), ring=False)
        pair.b.append(os.urandom(100), ring=False)
    pair.source.on_link, pair.sink.on_link = [StartShipping(21)], [StartReceiving(21, 0)]
    with pair.connect():
        last = pair.a.append(b"new")
        assert pair.a.wait_acked(last)
        assert pair.b.page[HEAD_SEQ] == 21


@pytest.mark.parametrize("from_seq", [0, 22, 1000])
def test_a_record_the_journal_lacks_stops_shipping(folder: Path, from_seq: int) -> None:
    pair = LinkPair(folder)
    for _ in range(20):
        pair.a.append(b"x", ring=False)
    pair.source.on_link = [StartShipping(from_seq)]
    with pair.connect():
        assert pair.source.saw(DataStopped).cause == "journal"


def test_damage_in_the_primarys_journal_is_its_own_mediums_error(folder: Path) -> None:
    pair = LinkPair(folder)
    for _ in range(20):
        pair.a.append(b"x" * 1000, ring=False)
    with open(pair.a.state / "groups" / GROUP / "journal", "r+b") as file:
        file.seek(8192 + 5 * 1064 + 500)
        file.write(b"?")
    with pair.connect():
        stopped = pair.source.saw(DataStopped)
        assert (stopped.cause, stopped.off, stopped.seq) == ("damaged", 0, 1), "where it was read from"
        assert pair.b.page[HEAD_SEQ] == 0


def test_damage_behind_what_is_proved_ends_the_connection_and_the_next_one_names_the_medium(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "PROVE_BYTES", 1)
    pair = LinkPair(folder)
    for _ in range(4):
        pair.a.append(b"x" * 700_000, ring=False)  # each has a frame of its own
    with open(pair.a.state / "groups" / GROUP / "journal", "r+b") as file:
        file.seek(8192 + 2 * 700_064 + 500)
        file.write(b"?")
    with pair.connect():
        assert "CRC" in pair.sink.saw(LinkDown).reason
        assert pair.source.saw(LinkDown) and not any(isinstance(e, DataStopped) for e in pair.source.seen)
        assert pair.b.page[HEAD_SEQ] == 2, "what came before the damage was kept, and no byte of it"
        pair.source.on_link, pair.sink.on_link = [StartShipping(3)], [StartReceiving(3, 0)]
        pair.connect()
        assert pair.source.saw(DataStopped).cause == "damaged"
        assert pair.b.page[HEAD_SEQ] == 2


def test_a_journal_started_over_stops_the_flow_at_once(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        assert pair.a.wait_acked(pair.a.append(b"x"))
        pair.a.page[INCARNATION] += 1
        assert pair.source.saw(DataStopped, 2).cause == "journal"
        pair.b.page[INCARNATION] += 1
        assert pair.sink.saw(DataStopped, 2).cause == "journal"


def test_duplicates_are_dropped_and_a_gap_ends_the_connection(folder: Path) -> None:
    pair = LinkPair(folder)
    for _ in range(10):
        pair.a.append(b"x" * 100, ring=False)
        pair.b.append(b"x" * 100, ring=False)
    pair.source.on_link, pair.sink.on_link = [StartShipping(5)], [StartReceiving(11, 0)]
    with pair.connect():
        last = pair.a.append(b"y")
        assert pair.a.wait_acked(last)
        assert pair.b.page[HEAD_SEQ] == 11
    gap = LinkPair(folder / "gap")
    for _ in range(10):
        gap.a.append(b"x" * 100, ring=False)
    gap.source.on_link, gap.sink.on_link = [StartShipping(5)], [StartReceiving(1, 0)]
    with gap.connect():
        assert "record 5" in gap.sink.saw(LinkDown).reason
        assert gap.b.page[HEAD_SEQ] == 0


def test_records_of_an_older_epoch_end_the_connection(folder: Path) -> None:
    pair = LinkPair(folder)
    pair.sink.on_link = [StartReceiving(1, 9 << 24)]
    with pair.connect():
        pair.a.append(b"x")
        assert "older" in pair.sink.saw(LinkDown).reason
        assert pair.b.page[HEAD_SEQ] == 0


def test_a_new_connection_replaces_the_old_one(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        assert pair.a.wait_acked(pair.a.append(b"x"))
        pair.source.on_link, pair.sink.on_link = [StartShipping(2)], [StartReceiving(2, 0)]
        pair.connect()
        assert pair.sink.saw(LinkDown)
        assert pair.a.wait_acked(pair.a.append(b"y"))
        assert pair.source.link == pair.sink.link == 2


def test_stop_ends_the_threads_and_the_peer_sees_an_end(folder: Path) -> None:
    pair = LinkPair(folder).connect()
    assert pair.a.wait_acked(pair.a.append(b"x"))
    pair.loop_a.stop()
    assert "closed" in pair.sink.saw(LinkDown).reason
    pair.loop_b.stop()


class Reconnecting:
    """A pair whose connections go through a fault proxy and are made anew from the receiver's position."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.pair = LinkPair(folder)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.proxy = FaultProxy(self.listener.getsockname()[1], seed=seed)

    def connect(self) -> bool:
        pair = self.pair
        expect = pair.b.page[HEAD_SEQ] + 1
        pair.source.on_link, pair.sink.on_link = [StartShipping(expect)], [StartReceiving(expect, 0)]
        pair.source.seen.clear()
        pair.sink.seen.clear()
        self.listener.settimeout(2)
        try:
            one, other = connect_tls(pair.folder, self.listener, self.proxy.port)
        except (OSError, IndexError):
            return False
        pair.loop_a.connected(Connection(one))
        pair.loop_b.connected(Connection(other))
        return True

    def down(self) -> bool:
        """Both ends have noticed."""
        ends = (self.pair.source, self.pair.sink)
        return all(any(isinstance(event, LinkDown) for event in list(end.seen)) for end in ends)

    def close(self) -> None:
        self.pair.close()
        self.proxy.close()
        self.listener.close()


@pytest.fixture
def reconnecting(folder: Path) -> Iterator[Reconnecting]:
    made = Reconnecting(folder)
    yield made
    made.close()


def test_cuts_at_any_byte_lose_nothing_and_repeat_nothing(reconnecting: Reconnecting) -> None:
    pair, proxy = reconnecting.pair, reconnecting.proxy
    last = 0
    for cut_after in (1, 300, 5000, 16400, 70000, 131, 99999, 40000, 1500, 262200):
        assert reconnecting.connect()
        proxy.truncate_after(cut_after)
        for _ in range(40):
            last = pair.a.append(os.urandom(9000))
        assert until(reconnecting.down)
    proxy.heal()
    assert reconnecting.connect()
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)


def test_corrupt_bytes_end_the_connection_and_nothing_of_them_is_kept(reconnecting: Reconnecting) -> None:
    pair, proxy = reconnecting.pair, reconnecting.proxy
    for _ in range(5):
        assert reconnecting.connect()
        proxy.corrupt(every_bytes=60_000)
        for _ in range(40):
            last = pair.a.append(os.urandom(9000))
        assert until(reconnecting.down)
        proxy.heal()
    assert reconnecting.connect()
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)


def test_a_slow_line_holds_back_and_memory_stays_bounded(reconnecting: Reconnecting) -> None:
    pair, proxy = reconnecting.pair, reconnecting.proxy
    proxy.rate_bytes_s = 2_000_000
    assert reconnecting.connect()
    for _ in range(300):
        last = pair.a.append(os.urandom(60000))
    time.sleep(0.5)
    assert pair.a.page[PEER_RECEIVED_SEQ] < last
    proxy.heal()
    assert pair.a.wait_acked(last)
    assert same_journals(pair.a, pair.b)


def test_scripted_sessions_hear_of_a_stall_only_by_silence(reconnecting: Reconnecting) -> None:
    pair, proxy = reconnecting.pair, reconnecting.proxy
    assert reconnecting.connect()
    assert pair.a.wait_acked(pair.a.append(b"x"))
    proxy.stall()
    last = pair.a.append(b"y")
    assert not pair.a.wait_acked(last, 0.3)
    proxy.resume()
    assert pair.a.wait_acked(last)


def test_nothing_that_rests_on_the_journal_is_done_when_another_session_has_it(folder: Path) -> None:
    asked: list[str] = []
    session = Scripted(ClaimJournal(), AskTarget(0, "group.follow", {}), StartReceiving(1, 0))
    loop = make_loop(Side(folder, 1 << 20), session, "late", ask=lambda effect: asked.append(effect.op))
    other = object()
    loop._around.claims.look(other)
    assert loop._around.claims.take(other, lambda: None)
    end, _kept = tls_pair(folder)
    loop.connected(Connection(end, "bundle"))
    session.saw(LinkDown)
    loop.stop()
    assert not asked


def test_make_loop_answers_questions_about_itself(folder: Path) -> None:
    loop = make_loop(Side(folder, 1 << 20), Scripted(), "x")
    assert loop.facts()["bytes_in"] == 0
    loop.stop()


def test_records_that_nobody_waits_for_gather_and_those_that_are_waited_for_do_not(folder: Path) -> None:
    with LinkPair(folder).connect() as pair:
        assert pair.a.wait_acked(pair.a.append(b"first"))
        pair.a.page[SYNC_ON] = 1
        begin = time.monotonic()
        for _ in range(50):
            assert pair.a.wait_acked(pair.a.append(b"waited for"))
        each_s = (time.monotonic() - begin) / 50
        pair.a.page[SYNC_ON] = 0
        before = pair.loop_a.facts()["bytes_out"]
        for n in range(200):
            last = pair.a.append(os.urandom(100))
            if n % 10 == 9:
                time.sleep(0.0002)
        assert pair.a.wait_acked(last)
        frames = (pair.loop_a.facts()["bytes_out"] - before - 200 * 164) / 16
        assert frames < 100, "every record had a frame of its own"
        assert each_s < 0.1
        assert same_journals(pair.a, pair.b)
