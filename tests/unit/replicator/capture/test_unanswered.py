"""What a synchronous group's pool holds and its peers may lack: who waits for what, and that nothing stays for ever."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from replicator.capture import edges, unanswered
from replicator.capture.engine import GroupEngine
from replicator.core.records import FLAG_FUA
from replicator.journal.page import HEAD_OFF
from tests.testing.pairharness import PEER_DURABLE_OFF, PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ, Pair, running_pair

K = 1024


def synchronous() -> tuple[Pair, GroupEngine]:
    pair = running_pair()
    engine = pair.a.engine
    edges.set_policy(engine, {"mode": "sync"}, "")
    edges.set_sync(engine, engine.state.edges[0], True)
    return pair, engine


def waits_for(engine: GroupEngine, offset: int, length: int, volume: int = 0) -> list[tuple[int, bool]]:
    return sorted(engine.unanswered.over(volume, offset, length))


def test_every_kind_of_write_is_there_before_the_pool_has_it_and_what_overlaps_it_waits() -> None:
    _, engine = synchronous()
    seen: list[int] = []

    def looked(action: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            seen.append(len(engine.unanswered.entries))
            action(*args)

        return call

    volume: Any = engine.volumes[0]
    volume.pwrite, volume.zero = looked(volume.pwrite), looked(volume.zero)
    first = engine.write(0, 8 * K, b"x" * 4 * K)
    second = engine.zero(0, 16 * K, 4 * K, True, True)
    third = engine.zero(0, 32 * K, 4 * K, True, trim=True)
    assert seen == [1, 2, 3]
    assert waits_for(engine, 8 * K, 1) == waits_for(engine, 0, 8 * K + 1) == [(first, False)]
    assert waits_for(engine, 12 * K - 1, 4 * K) == [(first, False)]
    assert waits_for(engine, 12 * K, 4 * K) == waits_for(engine, 0, 8 * K) == waits_for(engine, 8 * K, K, 1) == []
    assert waits_for(engine, 16 * K, 512) == [(second, True)], "one with FUA is answered when the peer's disk has it"
    assert waits_for(engine, 0, 64 * K) == [(second, True), (third, False)], "the newest of either kind"


def test_nothing_is_noted_where_nobody_is_waited_for() -> None:
    pair = running_pair()
    pair.a.write(0, 1)
    assert not pair.a.engine.unanswered.entries
    _, engine = synchronous()
    engine.write(0, 0, b"x" * K)
    edges.degrade(engine, engine.state.edges[0])
    assert not engine.unanswered.entries
    engine.write(0, 0, b"x" * K)
    assert not engine.unanswered.entries


@pytest.mark.parametrize("end", ["async", "removed", "switched off"])
def test_however_the_waiting_for_a_peer_ends_nothing_stays(end: str) -> None:
    _, engine = synchronous()
    edge = engine.state.edges[0]
    engine.write(0, 0, b"x" * K)
    assert engine.unanswered.entries
    if end == "async":
        edges.set_policy(engine, {"mode": "async"}, "")
    elif end == "removed":
        with engine.lock:
            edges.remove(engine, edge)
    else:
        edges.set_sync(engine, edge, False)
    assert not engine.unanswered.entries


def test_what_the_peer_has_got_is_forgotten_and_with_fua_when_its_disk_has() -> None:
    pair, engine = synchronous()
    plain = engine.write(0, 0, b"x" * K)
    fua = engine.write(0, K, b"x" * K, True)
    late = engine.write(0, 2 * K, b"x" * K)
    engine.unanswered.purge(engine)
    assert sorted(engine.unanswered.entries) == [plain, fua, late]
    pair.a.page[PEER_RECEIVED_SEQ] = fua
    engine.unanswered.purge(engine)
    assert sorted(engine.unanswered.entries) == [fua, late]
    pair.a.page[PEER_RECEIVED_SEQ] = late
    engine.unanswered.purge(engine)
    assert sorted(engine.unanswered.entries) == [fua]
    pair.a.page[PEER_DURABLE_SEQ] = fua
    engine.unanswered.purge(engine)
    assert not engine.unanswered.entries


def test_a_policy_that_wants_stable_storage_keeps_all_until_then() -> None:
    pair, engine = synchronous()
    edges.set_policy(engine, {"ack": "durable"}, "")
    seq = engine.write(0, 0, b"x" * K)
    pair.a.page[PEER_RECEIVED_SEQ] = seq
    engine.unanswered.purge(engine)
    assert waits_for(engine, 0, 1) == [(seq, False)]
    pair.a.page[PEER_DURABLE_SEQ] = seq
    engine.unanswered.purge(engine)
    assert not engine.unanswered.entries


def test_after_a_write_that_the_pool_refused_readers_wait_for_the_record_of_what_the_range_holds() -> None:
    _, engine = synchronous()

    def refuse(*_: object) -> None:
        raise OSError(5, "no")

    engine.volumes[0].pwrite = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="no"):
        engine.write(0, 0, b"x" * K)
    assert waits_for(engine, 0, K) == [(engine.pos, False)]


@pytest.mark.parametrize("power", [False, True])
def test_what_the_journal_holds_beyond_the_peer_is_waited_for_after_a_crash(power: bool) -> None:
    pair, engine = synchronous()
    engine.write(0, 0, b"a" * K)
    pair.flow(pair.a, pair.b)
    pair.acknowledge(pair.a, pair.b)
    pair.a.page[PEER_DURABLE_OFF] = pair.a.page[HEAD_OFF]
    lost = engine.write(0, 64 * K, b"l" * K, True)
    later = engine.zero(1, 0, 4 * K, True, True)
    if power:
        pair.a.power_cut()
    else:
        pair.a.kill()
    engine = pair.a.start()
    assert engine.waits
    engine.unanswered.take_stock(engine, engine.waits)
    assert waits_for(engine, 64 * K, 1) == [(lost, True)]
    assert waits_for(engine, K, 1, 1) == [(later, True)]
    assert waits_for(engine, 128 * K, K) == []
    if not power:
        assert waits_for(engine, 0, K) == [], "the peer is known to have it"


def test_stock_is_taken_of_what_the_peer_has_received_and_should_hold_on_stable_storage() -> None:
    pair, engine = synchronous()
    plain = engine.write(0, 0, b"x" * K)
    fua = engine.write(0, K, b"x" * K, True)
    pair.a.page[PEER_RECEIVED_SEQ] = fua
    engine.unanswered.entries.clear()
    engine.unanswered.take_stock(engine, engine.waits)
    assert waits_for(engine, 0, 2 * K) == [(fua, True)]
    edges.set_policy(engine, {"ack": "durable"}, "")
    engine.unanswered.entries.clear()
    engine.unanswered.take_stock(engine, engine.waits)
    assert waits_for(engine, 0, 2 * K) == [(plain, False), (fua, True)]


def test_of_a_long_journal_no_stock_is_taken_and_then_everything_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, engine = synchronous()
    for n in range(4):
        engine.write(0, n * K, b"x" * K)
    engine.unanswered.entries.clear()
    monkeypatch.setattr(unanswered, "MOST_RECORDS", 3)
    engine.unanswered.take_stock(engine, engine.waits)
    assert waits_for(engine, 200 * K, 1) == waits_for(engine, 0, 1, 1) == [(engine.pos, False)]
    pair.a.page[PEER_RECEIVED_SEQ] = engine.pos
    engine.unanswered.purge(engine)
    assert not engine.unanswered.entries


def test_stock_is_no_writers_to_take_out() -> None:
    """A write under way when a second peer becomes synchronous is answered without that one."""
    _, engine = synchronous()
    seq = engine.write(0, 0, b"x" * K)
    engine.unanswered.take_stock(engine, engine.waits)
    engine.unanswered.entries.pop(seq, None)
    assert waits_for(engine, 0, 1) == [(seq, False)]


def test_a_peer_that_becomes_synchronous_is_waited_for_with_what_is_still_on_its_way() -> None:
    pair = running_pair()
    engine = pair.a.engine
    seq = engine.write(0, 0, b"x" * K)
    edges.set_policy(engine, {"mode": "sync"}, "")
    edges.set_sync(engine, engine.state.edges[0], True)
    assert waits_for(engine, 0, 1) == [(seq, False)]


def test_many_that_failed_are_joined_and_never_wait_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = synchronous()
    monkeypatch.setattr(unanswered, "MOST", 4)
    entries, note = engine.unanswered.entries, engine.unanswered.add
    before: dict[int, int] = {}
    for seq, at in zip(itertools.count(engine.pos + 1), (0, 1, 2, 3, 3, 2), strict=False):
        note(seq, 0, at * K, K, FLAG_FUA if at == 1 else 0)
        before[at] = seq
    engine.unanswered.purge(engine)
    assert list(entries.values()) == [(before[2], 0, 0, 4 * K, True)], "they touch"
    for seq, at in zip(itertools.count(max(before.values()) + 1), range(10, 20, 2), strict=False):
        note(seq, at % 4 // 2, at * K, K, 0)
        before[at] = seq
    engine.unanswered.purge(engine)
    assert len(entries) == 2, "one of each volume"
    for at, seq in before.items():
        volume = at % 4 // 2 if at >= 10 else 0
        assert max(n for n, _ in waits_for(engine, at * K, K, volume)) >= seq
