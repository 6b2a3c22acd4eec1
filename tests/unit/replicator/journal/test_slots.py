"""A small durable value: whole after any crash, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.core.errors import BadInput, IntegrityError
from replicator.journal.beacons import NOTHING, Beacon, look, publish
from replicator.journal.files import PlainFile
from replicator.journal.page import ARRIVED_GEN, Page
from replicator.journal.slots import SlotFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    PlainFile(tmp_path / "value", create_bytes=2048).close()
    return tmp_path / "value"


def opened(path: Path) -> SlotFile:
    return SlotFile(PlainFile(path), b"TEST", 1024)


def test_the_newest_value_is_read_and_a_torn_newest_gives_the_one_before(path: Path) -> None:
    slots = opened(path)
    assert slots.load() is None
    for n in range(5):
        slots.save({"n": n})
    assert opened(path).load() == {"n": 4}
    with path.open("r+b") as f:
        f.seek(1024 + 22)  # generation 5 lies in slot 1
        f.write(b"\xff")
    again = opened(path)
    assert again.load() == {"n": 3}
    again.save({"n": 9})
    assert opened(path).load() == {"n": 9}


def test_nothing_whole_is_an_error_and_so_is_a_value_that_does_not_fit(path: Path) -> None:
    with pytest.raises(BadInput):
        opened(path).save("x" * 2000)
    path.write_bytes(b"?" * 2048)
    with pytest.raises(IntegrityError):
        opened(path).load()


def test_a_failed_write_is_never_followed_by_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = opened(path)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr(PlainFile, "pwrite_durable", refuse)
        with pytest.raises(OSError):
            slots.save(1)
    with pytest.raises(OSError, match="earlier"):
        slots.save(2)


def test_a_beacon_is_read_whole_and_one_half_written_by_a_dead_process_says_nothing() -> None:
    u64 = Page.in_memory().u64
    assert look(u64, ARRIVED_GEN) == NOTHING
    publish(u64, ARRIVED_GEN, 5, 100)
    assert look(u64, ARRIVED_GEN) == Beacon(5, 100)
    u64[ARRIVED_GEN] += 1
    assert look(u64, ARRIVED_GEN) == NOTHING
    publish(u64, ARRIVED_GEN, 6, 200)
    assert look(u64, ARRIVED_GEN) == Beacon(6, 200)
