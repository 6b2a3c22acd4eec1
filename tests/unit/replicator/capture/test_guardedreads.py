"""Reads of a synchronous group: told when the write they met is, failing when it fails, and never waiting for ever."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from replicator.capture.guardedreads import GuardedReads
from replicator.capture.state import Edge
from replicator.core.errors import MediumError, Refused, TimedOut
from replicator.journal.page import TARGET_ASLEEP
from tests.testing.pairharness import PEER_DURABLE_SEQ, PEER_RECEIVED_SEQ
from tests.unit.replicator.capture.test_service import B, Served, eventually, served

__all__ = ["served"]
BLOCK = 4096
FOREVER = 1 << 40


def begun(served: Served, fua: bool = False) -> object:
    """A write to the first block is in the pool and waits for the peer; returns what gives its result."""
    result = served.background(lambda: served.a.write(0, 0, b"\1" * BLOCK, fua))
    eventually(lambda: served.pair.a.page[TARGET_ASLEEP] == 1)
    return result


def test_a_read_waits_for_the_write_it_met_and_others_do_not(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    write = begun(served)
    assert not served.a.reads.settle(0, BLOCK, BLOCK) and not served.a.reads.settle(1, 0, BLOCK)
    read = served.background(lambda: served.a.reads.settle(0, 0, 512))
    time.sleep(0.05)
    assert all(thread.is_alive() for thread in served._threads)
    served.pair.a.page[PEER_RECEIVED_SEQ] = served.a.seq
    write()  # type: ignore[operator]
    assert read() is True
    assert not served.a.engine.unanswered.entries
    assert not served.a.reads.settle(0, 0, 512)


def test_a_read_of_a_write_with_fua_waits_for_the_peers_disk_as_that_does(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    begun(served, fua=True)
    read = served.background(lambda: served.a.reads.settle(0, 0, BLOCK))
    served.pair.a.page[PEER_RECEIVED_SEQ] = FOREVER
    time.sleep(0.15)
    assert all(thread.is_alive() for thread in served._threads)
    served.pair.a.page[PEER_DURABLE_SEQ] = FOREVER
    assert read() is True


def test_a_read_goes_on_when_the_group_has_degraded_durably(served: Served) -> None:
    served.sync(loss_timeout_s=0.2, on_loss="degrade")
    write = begun(served)
    assert served.background(lambda: served.a.reads.settle(0, 0, BLOCK))() is True
    assert served.durable_state(served.pair.a).degraded
    write()  # type: ignore[operator]
    assert served.names().count("degraded") == 1
    assert not served.a.engine.unanswered.entries


def test_a_read_of_what_a_stalling_group_could_not_get_across_fails_until_the_peer_has_it(served: Served) -> None:
    served.sync(loss_timeout_s=0.1, on_loss="stall")
    with pytest.raises(MediumError, match="has not answered"):
        served.a.write(0, 0, b"\1" * BLOCK)
    for _ in range(2):
        with pytest.raises(MediumError, match="has not answered"):
            served.a.reads.settle(0, 0, BLOCK)
    assert not served.a.reads.settle(0, BLOCK, BLOCK)
    served.pair.a.page[PEER_RECEIVED_SEQ] = served.a.seq
    served.a.reads.settle(0, 0, BLOCK)
    served.a.start()
    eventually(lambda: not served.a.engine.unanswered.entries)


@pytest.mark.parametrize("way", ["async", "sync off", "pair deleted", "switchover", "successor", "stop"])
def test_whatever_ends_the_waiting_of_writes_ends_that_of_reads(served: Served, way: str) -> None:
    served.sync(loss_timeout_s=0)
    begun(served)
    read = served.background(lambda: served.a.reads.settle(0, 0, BLOCK))
    time.sleep(0.02)
    if way == "async":
        served.a.set_policy({"mode": "async"})
    elif way == "sync off":
        served.a.set_sync(B, False)
    elif way == "pair deleted":
        served.a.disarm(B)
    elif way == "stop":
        served.a.end_waits()
    else:
        served.a.demote(diverged=way == "successor")
    if way == "stop":
        with pytest.raises(MediumError, match="stopping"):
            read()
    elif way == "successor":
        with pytest.raises(Refused, match="gave up the primary role"):
            read()
    else:
        assert read() is True


def test_reads_go_on_in_a_hold_and_wait_only_for_writes_that_began_before(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    begun(served)
    served.a.hold(60)
    served.background(lambda: served.a.write(0, BLOCK, b"\2" * BLOCK))
    time.sleep(0.02)
    assert not served.a.reads.settle(0, BLOCK, BLOCK), "what is parked is not in the pool"
    read = served.background(lambda: served.a.reads.settle(0, 0, BLOCK))
    served.pair.a.page[PEER_RECEIVED_SEQ] = FOREVER
    assert read() is True


def test_a_stopped_group_lets_no_read_wait(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    served.a.start()
    begun(served)
    read = served.background(lambda: served.a.reads.settle(0, 0, BLOCK))
    time.sleep(0.02)
    served.a.stop()
    with pytest.raises(MediumError, match="stopping"):
        read()


def test_after_a_restart_what_the_peer_is_not_known_to_have_is_told_when_it_has(served: Served, tmp_path: Path) -> None:
    served.sync(loss_timeout_s=0.1, on_loss="stall")
    with pytest.raises(MediumError):
        served.a.write(0, 0, b"\1" * BLOCK)
    served.pair.a.kill()
    served.pair.a.start()
    service = served.serve(served.pair.a)
    service.start()
    try:
        assert service.reads.on
        with pytest.raises(MediumError, match="has not answered"):
            service.reads.settle(0, 0, BLOCK)
        assert not service.reads.settle(1, 0, BLOCK)
        served.pair.a.page[PEER_RECEIVED_SEQ] = service.seq
        service.reads.settle(0, 0, BLOCK)
        eventually(lambda: not service.engine.unanswered.entries)
    finally:
        service.stop()


def test_a_peer_that_becomes_synchronous_while_a_read_waits_is_waited_for_too(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    begun(served)
    engine, waited = served.a.engine, []
    both = (*engine.waits, Edge(1, "c" * 32))

    def wait_peers(seq: int, durable: bool) -> None:
        waited.append(engine.waits)
        engine.waits = both

    assert GuardedReads(engine, wait_peers).settle(0, 0, BLOCK)
    assert waited == [both[:1], both]
    engine.waits = both[:1]
    served.pair.a.page[PEER_RECEIVED_SEQ] = FOREVER


# -- when reads are guarded at all


def test_reads_are_guarded_before_a_write_waits_and_as_long_as_one_may(served: Served) -> None:
    told: list[tuple[bool, bool]] = []
    served.a.reads.install = lambda on: told.append((on, bool(served.a.engine.waits)))
    assert not served.a.reads.on
    served.a.set_policy({"mode": "sync"})
    assert told == []
    served.a.set_sync(B, True)
    served.a.set_sync(B, False)
    served.a.set_sync(B, True)
    assert told == [(True, False)]
    served.a.set_policy({"mode": "async"})
    assert told == [(True, False), (False, False)]
    assert not served.a.reads.on


def test_where_reads_cannot_be_guarded_writes_do_not_begin_to_wait_and_it_is_tried_again(served: Served) -> None:
    served.a.set_policy({"mode": "sync"})
    tries: list[bool] = []

    def install(on: bool) -> None:
        tries.append(on)
        if len(tries) == 1:
            raise TimedOut("a read does not end")

    served.a.reads.install = install
    with pytest.raises(TimedOut):
        served.a.set_sync(B, True)
    assert not served.a.engine.waits
    assert served.a.set_sync(B, True)["sync_on"]
    assert tries == [True, True]


def test_no_read_ever_tells_what_the_peer_lacks(served: Served) -> None:
    """Threads: writers count up in a block, the peer follows late, readers hold what they saw against its position."""
    served.sync(loss_timeout_s=0)
    service, page, volume = served.a, served.pair.a.page, served.pair.a.engine.volumes[0]
    seq_of: dict[int, int] = {0: 0}
    stop = threading.Event()
    wrong: list[str] = []
    inner = service.engine.write

    def numbered(index: int, offset: int, buf: bytes, fua: bool = False) -> int:
        seq_of[int.from_bytes(buf[:8], "big")] = FOREVER  # until it is known
        seq = inner(index, offset, buf, fua)
        seq_of[int.from_bytes(buf[:8], "big")] = seq
        return seq

    service.engine.write = numbered  # type: ignore[method-assign,assignment]

    def peer() -> None:
        while not stop.is_set():
            seen = service.seq
            time.sleep(0.002)
            page[PEER_RECEIVED_SEQ] = seen
            service._own_bell.ring()

    def read() -> None:
        buf = bytearray(8)
        while not stop.is_set():
            volume.pread_into(memoryview(buf), 0)
            if service.engine.unanswered.entries:
                service.reads.settle(0, 0, 8)
            while (seq := seq_of[int.from_bytes(buf, "big")]) == FOREVER:
                time.sleep(0)
            if seq > page[PEER_RECEIVED_SEQ]:
                wrong.append(f"{seq} was read, the peer is at {page[PEER_RECEIVED_SEQ]}")

    threads = [threading.Thread(target=f) for f in (peer, read, read, read)]
    for thread in threads:
        thread.start()
    for count in range(1, 31):
        service.write(0, 0, count.to_bytes(8, "big") * (BLOCK // 8))
    stop.set()
    for thread in threads:
        thread.join(5)
    assert not wrong, wrong[:3]
