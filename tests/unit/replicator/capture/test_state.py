"""The group's state on disk."""

from __future__ import annotations

import random
import struct
from dataclasses import asdict

import msgpack
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.capture.state import (
    BITMAP,
    JOURNAL,
    PRIMARY,
    RESYNC,
    SECONDARY,
    STATE_FILE_BYTES,
    UNTRACKED,
    Edge,
    GroupState,
    Policy,
    StateFile,
)
from replicator.core.errors import BadInput, IntegrityError
from tests.testing.fakedisk import FakeDisk


def disk(seed: int = 0) -> FakeDisk:
    made = FakeDisk(random.Random(seed))
    made.create("state", STATE_FILE_BYTES)
    return made


def state(**fields: object) -> GroupState:
    return GroupState("ab" * 16, "g", 7, **fields)  # type: ignore[arg-type]


def load(d: FakeDisk) -> GroupState:
    return StateFile(d.open("state")).load()  # type: ignore[arg-type]


def test_everything_comes_back() -> None:
    d = disk()
    saved = state(role=SECONDARY, copy=RESYNC, hist=[[1 << 24 | 7, 0]], bitmaps={2: 77}, policy=Policy(mode="sync"))
    saved.attaching = {"p": 5, "epoch": 9, "hist": [[9, 4]], "copy_id": "c"}
    saved.edges = [Edge(3, "b" * 32, "sync", degraded=True), Edge(0, "c" * 32, copy_id="x", synced_after=9)]
    saved.upstream, saved.extended = "b" * 32, {"x": 12}
    StateFile(d.open("state")).save(saved)  # type: ignore[arg-type]
    assert load(d) == saved


@given(st.integers(0, 1 << 30), st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_after_any_power_cut_the_last_or_the_one_before_is_whole(seed: int, saves: int) -> None:
    d = disk(seed)
    file = StateFile(d.open("state"))  # type: ignore[arg-type]
    s = state()
    for n in range(1, saves):
        s.floor = n
        file.save(s)
    s.floor, s.hist = saves, [[n << 24, n] for n in range(seed % 100)]
    d.cut_at(d.operations + 1)  # after the write, before its sync
    with pytest.raises(BaseException, match="cut at"):
        file.save(s)
    d.crash()
    found = load(d)
    assert found.floor in (saves - 1, saves)
    assert len(found.hist) == (0 if found.floor < saves else seed % 100)


def test_a_file_without_a_state_is_refused_with_a_way_out() -> None:
    with pytest.raises(IntegrityError) as caught:
        load(disk())
    assert caught.value.way_out


def test_a_state_that_does_not_fit_its_slot_leaves_the_former_one() -> None:
    d = disk()
    file = StateFile(d.open("state"))  # type: ignore[arg-type]
    file.save(state(floor=1))
    with pytest.raises(BadInput):
        file.save(state(volumes=[{"name": "x" * 70000}]))
    assert load(d).floor == 1


def test_the_state_of_a_newer_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    d = disk()
    s = state()
    real = StateFile.save.__globals__["asdict"]
    monkeypatch.setitem(StateFile.save.__globals__, "asdict", lambda x: {**real(x), "from_the_future": 1})
    StateFile(d.open("state")).save(s)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="from_the_future"):
        load(d)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "x"},
        {"ack": 1},
        {"loss_timeout_s": -1},
        {"loss_timeout_s": True},
        {"full_timeout_s": "5"},
        {"x": 1},
        {"loss_timeout_s": float("nan")},
        {"full_timeout_s": float("inf")},
    ],
)
def test_a_wrong_policy_is_refused_and_named(changes: dict[str, object]) -> None:
    policy = Policy()
    with pytest.raises(BadInput, match=next(iter(changes))):
        policy.changed(changes)


def test_a_policy_changes_by_copy() -> None:
    policy = Policy()
    assert policy.changed({"mode": "sync", "loss_timeout_s": 0.5}).mode == "sync"
    assert policy.mode == "async"


class Deceived:
    """A file whose sync failed once: the system shows what was written and believes it to be on the medium."""

    def __init__(self) -> None:
        self.shown, self.medium, self.fails = bytearray(STATE_FILE_BYTES), bytearray(STATE_FILE_BYTES), False
        self.dirty: list[tuple[int, bytes]] = []

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.shown[offset : offset + length])

    def pwrite(self, buf: bytes, offset: int) -> None:
        self.shown[offset : offset + len(buf)] = buf
        self.dirty.append((offset, bytes(buf)))

    def fdatasync(self) -> None:
        dirty, self.dirty = self.dirty, []
        if self.fails:
            self.fails = False
            raise OSError(5, "Input/output error")
        for offset, data in dirty:
            self.medium[offset : offset + len(data)] = data

    def pwrite_durable(self, buf: bytes, offset: int) -> None:
        self.pwrite(buf, offset)
        self.fdatasync()


def test_a_state_whose_sync_failed_is_made_durable_before_the_next_save_takes_the_other_slot() -> None:
    file = Deceived()
    first = StateFile(file)  # type: ignore[arg-type]
    first.save(state(floor=1))
    file.fails = True
    with pytest.raises(OSError):
        first.save(state(floor=2))
    second = StateFile(file)  # type: ignore[arg-type]
    assert second.load().floor == 2
    second.keep()
    torn = len(file.dirty)
    second._file.pwrite(b"half a save", (second._generation + 1) % 2 * (STATE_FILE_BYTES // 2))
    assert len(file.dirty) == torn + 1
    for offset, data in file.dirty:  # the power goes while this is on its way
        file.medium[offset : offset + len(data)] = data
    file.shown[:] = file.medium
    assert StateFile(file).load().floor == 2  # type: ignore[arg-type]


# -- states of a version whose groups had one peer --------------------------------------------------------------------


def store_old(d: FakeDisk, **fields: object) -> None:
    """Write a state as that version did."""
    values = asdict(state())
    for new in ("edges", "upstream", "extended"):
        del values[new]
    old = {"degraded": False, "sync_on": False, "copying": False, "synced_seq": 0}
    body = msgpack.packb({**values, **old, **fields})
    head = struct.pack("<4sIQ", b"FSRG", len(body), 4)
    d.open("state").pwrite(head + struct.pack("<I", crc32c(body, crc32c(head))) + body, 0)


def test_the_one_peer_of_an_older_version_becomes_an_edge_that_names_nobody() -> None:
    d = disk()
    policy = asdict(Policy(mode="sync"))
    store_old(d, mode=JOURNAL, role=PRIMARY, policy=policy, degraded=True, copying=True, copy_id="x", synced_seq=7)
    found = load(d)
    assert found.edges == [Edge(0, "", "sync", degraded=True, copying=True, copy_id="x", synced_seq=7)]
    assert (found.copy_id, found.upstream) == ("", "")


def test_the_copy_of_an_older_secondary_stays_the_copy_it_receives() -> None:
    d = disk()
    store_old(d, mode=JOURNAL, role=SECONDARY, copy=RESYNC, copy_id="x")
    found = load(d)
    assert found.copy_id == "x" and found.edges == [Edge(0, "")]


def test_what_an_older_primary_owed_its_peer_is_owed_still() -> None:
    d = disk()
    store_old(d, mode=BITMAP, role=PRIMARY, unclean=True)
    [edge] = load(d).edges
    assert edge.dropped and edge.unclean
    store_old(d, mode=UNTRACKED, role=PRIMARY)
    assert load(d).edges == []


def test_an_edge_of_a_newer_version_is_refused() -> None:
    d = disk()
    saved = asdict(state(edges=[Edge(0, "b" * 32)]))
    saved["edges"][0]["colour"] = "red"
    body = msgpack.packb(saved)
    head = struct.pack("<4sIQ", b"FSRG", len(body), 4)
    d.open("state").pwrite(head + struct.pack("<I", crc32c(body, crc32c(head))) + body, 0)
    with pytest.raises(IntegrityError, match="colour"):
        load(d)
