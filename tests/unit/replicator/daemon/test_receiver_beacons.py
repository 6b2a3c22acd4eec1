"""What a receiver makes of beacons: nothing where its journal is gone, nothing before the records have come."""

from __future__ import annotations

import pytest

from replicator.daemon.link.receiver import Receiver
from replicator.journal.beacons import look
from replicator.journal.page import ARRIVED_GEN
from tests.fuzz.mutate import record
from tests.fuzz.test_receiver import Files


@pytest.fixture
def files() -> Files:
    return Files()


def receiver(files: Files) -> Receiver:
    made = Receiver(files, 1, 0)  # type: ignore[arg-type]  # by shape
    assert made.offer(0, 1, memoryview(record(1, b"x"))) == 1
    return made


def test_a_beacon_of_what_has_come_is_published(files: Files) -> None:
    made = receiver(files)
    late = look(files.u64, ARRIVED_GEN).time_ns + 10**9
    made.note_beacon(1, late)
    assert look(files.u64, ARRIVED_GEN) == (1, late)


def test_a_beacon_for_a_journal_that_is_gone_is_not(files: Files) -> None:
    made = receiver(files)
    before = look(files.u64, ARRIVED_GEN)
    files.current = False
    made.note_beacon(1, before.time_ns + 10**9)
    assert look(files.u64, ARRIVED_GEN) == before


def test_a_beacon_that_overtook_its_records_waits_for_them(files: Files) -> None:
    made = receiver(files)
    before = look(files.u64, ARRIVED_GEN)
    made.note_beacon(2, before.time_ns + 10**12)
    assert look(files.u64, ARRIVED_GEN) == before
    assert made.offer(0, 2, memoryview(record(2, b"y"))) == 1
    assert look(files.u64, ARRIVED_GEN) == (2, before.time_ns + 10**12)
