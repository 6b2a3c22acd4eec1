"""Whoever rests is rung when something changes that no record tells of: replicators, and threads of the target.

A doorbell is rung here although its replicator is awake, or receives: it may be resting on a link that is quiet.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from replicator.capture.clock import WriteClock
from replicator.capture.cutter import SET_BEACON_S, Cutter
from replicator.capture.parking import JournalLost
from replicator.core.errors import MediumError
from replicator.journal.page import BEACON_PACE_MS, INCARNATION
from tests.testing.pairharness import REPLICATOR_ASLEEP, Pair, Side, running_pair
from tests.unit.replicator.capture.test_journalloss import renew, serve


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def listen(side: Side) -> list[int]:
    """The slots that are rung from now on, with every replicator awake."""
    rung: list[int] = []
    side.engine.announce = rung.append
    side.page[REPLICATOR_ASLEEP] = 0
    return rung


def fail_a_sync(side: Side) -> None:
    side.write(0, 1)
    side.disk.fail_next_sync("journal")
    with pytest.raises((JournalLost, MediumError)):
        side.engine.sync_journal()


def test_the_loss_of_a_journal_that_the_group_goes_on_without_is_rung(pair: Pair) -> None:
    rung, life = listen(pair.a), pair.a.page[INCARNATION]
    fail_a_sync(pair.a)
    assert pair.a.engine.journal_lost and not pair.a.engine.failed
    assert pair.a.page[INCARNATION] == life + 1 and rung == [0]


def test_the_failure_of_a_group_is_rung(pair: Pair) -> None:
    rung = listen(pair.b)
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    pair.b.disk.fail_next_sync("journal")
    with pytest.raises(MediumError):
        pair.b.engine.sync_journal()
    assert pair.b.engine.failed and rung == [0]


def test_a_new_journal_is_rung(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.ship(pair.a, pair.b)
    pair.b.disk.fail_next_sync("journal")
    with pytest.raises(MediumError):
        pair.b.engine.sync_journal()
    rung = listen(pair.b)
    renew(pair.b)
    assert rung == [0]


class OneSet:
    """What a Cutter asks of a node's sets."""

    any = True

    def __init__(self) -> None:
        self.wanted = False

    def wants_beacons(self, _uuid: str) -> bool:
        return self.wanted

    def tick(self) -> None:
        """Nothing moves."""


def test_a_new_pace_of_beacons_is_rung_and_an_old_one_is_not(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.a, tmp_path)
    rung = listen(pair.a)
    sets = OneSet()
    cutter = Cutter(WriteClock(time.time_ns), sets, lambda: [service], lambda *_: None)  # type: ignore[arg-type]
    cutter.tick(100.0)
    assert rung == []
    sets.wanted = True
    cutter.tick(200.0)
    assert rung == [0] and pair.a.page[BEACON_PACE_MS] == SET_BEACON_S * 1000
    cutter.tick(300.0)
    assert rung == [0]
    sets.wanted = False
    cutter.tick(400.0)
    assert rung == [0, 0] and pair.a.page[BEACON_PACE_MS] == 0


def test_a_new_policy_is_rung(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.a, tmp_path)
    rung: list[int] = []
    service._ring_edge = rung.append  # type: ignore[method-assign]
    service.set_policy({"ack": "durable"})
    assert rung == [0]


def test_a_follower_that_rests_for_a_failed_group_goes_on_when_it_is_looked_after(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.b, tmp_path)
    pair.b.engine.failed = "its journal cannot be synced"
    service.start()
    try:
        time.sleep(0.3)  # it rests for QUIET_S now
        pair.a.write(0, 7)
        pair.ship(pair.a, pair.b)
        pair.b.engine.failed = ""
        service.look_after()
        deadline = time.monotonic() + 8
        while pair.b.image() != pair.a.image() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pair.b.image() == pair.a.image()
    finally:
        service.stop()
