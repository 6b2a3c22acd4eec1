"""The journal ring: order, wrapping, what a crash leaves of it, and what it must never take for its own."""

from __future__ import annotations

import random
import threading

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.errors import IntegrityError
from replicator.core.records import HEADER_BYTES, Kind, pack_header, unpack_header
from replicator.journal import volumes as volumes_module
from replicator.journal.page import DURABLE_SEQ, EPOCH, HEAD_OFF, HEAD_SEQ, TAIL_OFF, TAIL_SEQ, Page
from replicator.journal.relayout import files_facts
from replicator.journal.ring import DATA_START, Journal
from tests.testing.fakedisk import FakeDisk
from tests.testing.journalrig import Rig

GROUP = bytes(range(16))
E1, E2, E3 = 1 << 24 | 5, 2 << 24 | 5, 2 << 24 | 9


def record(seq: int, payload: bytes, epoch: int = E1, kind: int = Kind.WRITE) -> bytes:
    return pack_header(kind, 0, epoch, seq, seq, 0, len(payload), 0, len(payload), crc32c(payload) if payload else 0)


class Ring:
    """A journal on a fake disk."""

    def __init__(self, capacity: int = 4096, seed: int = 0) -> None:
        self.capacity = capacity
        self.disk = FakeDisk(random.Random(seed))
        self.disk.create("journal", DATA_START + capacity)
        self.page = Page.in_memory()
        self.journal = Journal.create(self.disk.open("journal"), self.page, GROUP, capacity)  # type: ignore[arg-type]

    def add(self, payload: bytes, epoch: int = E1, kind: int = Kind.WRITE) -> int:
        seq = self.page[HEAD_SEQ] + 1
        self.journal.append(record(seq, payload, epoch, kind), payload or None, seq, epoch)
        return seq

    def trim(self, seq: int) -> None:
        """Free everything before `seq`."""
        off = self.journal.find(seq)
        self.journal.set_tail(off, seq, off, seq)

    def reopen(self, trusted: bool) -> None:
        head = (self.page[HEAD_OFF], self.page[EPOCH]) if trusted else None
        if not trusted:
            self.page.clear(1)
        self.journal = Journal.open(self.disk.open("journal"), self.page)  # type: ignore[arg-type]
        self.journal.recover(head)

    def records(self) -> list[tuple[int, bytes]]:
        found, off = [], self.page[TAIL_OFF]
        while off < self.page[HEAD_OFF]:
            header = self.journal.header_at(off)
            found.append((header.seq, self.journal.read(off + HEADER_BYTES, header.payload_len)))
            off += header.total_bytes
        return found


def test_records_come_back_in_order_and_are_found_by_seq() -> None:
    ring = Ring()
    for n in range(5):
        ring.add(bytes([n]) * (n * 10))
    assert ring.records() == [(n + 1, bytes([n]) * (n * 10)) for n in range(5)]
    assert ring.journal.header_at(ring.journal.find(4)).seq == 4
    assert ring.journal.find(6) == ring.page[HEAD_OFF]
    with pytest.raises(IntegrityError):
        ring.journal.find(7)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=60), st.integers(1024, 4096))
@settings(max_examples=60, deadline=None)
def test_the_ring_wraps_at_every_size(sizes: list[int], capacity: int) -> None:
    ring = Ring(capacity)
    kept: list[tuple[int, bytes]] = []
    for n, size in enumerate(sizes):
        payload = random.Random(n).randbytes(size)
        while not ring.journal.room_for(HEADER_BYTES + size):
            kept.pop(0)
            ring.trim(kept[0][0] if kept else ring.page[HEAD_SEQ] + 1)
        kept.append((ring.add(payload), payload))
        assert ring.records() == kept
    for trusted in (True, False):
        ring.reopen(trusted)
        assert ring.records() == kept
        assert ring.page[HEAD_SEQ] == len(sizes)


@given(st.lists(st.tuples(st.integers(0, 700), st.booleans()), min_size=1, max_size=40), st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None)
def test_power_loss_leaves_a_prefix_with_everything_synced(steps: list[tuple[int, bool]], seed: int) -> None:
    ring = Ring(2048, seed)
    written: list[tuple[int, bytes]] = []
    durable = 0
    for size, sync in steps:
        if not ring.journal.room_for(HEADER_BYTES + size):
            ring.journal.sync()
            durable = ring.page[HEAD_SEQ]
            ring.trim(durable + 1)
            written = []
        payload = random.Random(seed + size).randbytes(size)
        written.append((ring.add(payload), payload))
        if sync:
            ring.journal.sync()
            durable = written[-1][0]
    ring.disk.crash()
    ring.reopen(trusted=False)
    found = ring.records()
    assert found == written[: len(found)]
    assert ring.page[HEAD_SEQ] >= durable


def test_space_is_not_free_before_the_superblock_says_so_durably() -> None:
    ring = Ring(1024)
    for _ in range(3):
        ring.add(bytes(200))
    synced: list[int] = []
    ring.disk.trace = lambda op, *_: synced.append(ring.page[TAIL_OFF]) if op == "write_durable" else None
    ring.trim(3)
    assert synced == [0]
    assert ring.page[TAIL_SEQ] == 3


def test_a_trusted_head_behind_missing_bytes_is_refused() -> None:
    ring = Ring()
    ring.add(bytes(500))
    ring.add(bytes(500))
    ring.disk._find("journal").data[DATA_START + 600] ^= 1
    with pytest.raises(IntegrityError):
        ring.reopen(trusted=True)
    ring.page[HEAD_OFF] = 0
    ring.reopen(trusted=False)
    assert ring.page[HEAD_SEQ] == 1


def test_a_trusted_head_hides_a_record_that_was_written_but_never_published() -> None:
    ring = Ring()
    ring.add(b"one")
    head = ring.page[HEAD_OFF], ring.page[HEAD_SEQ]
    ring.add(b"two")
    ring.page[HEAD_OFF] = head[0]  # killed after HEAD_SEQ was stored, before HEAD_OFF
    ring.reopen(trusted=True)
    assert (ring.page[HEAD_OFF], ring.page[HEAD_SEQ]) == head


def test_a_record_that_was_never_published_does_not_come_back_after_power_loss() -> None:
    ring = Ring()
    ring.add(b"one")
    head = ring.page[HEAD_OFF]
    ring.add(b"unpublished")
    ring.page[HEAD_OFF] = head
    ring.reopen(trusted=True)
    ring.journal.forget_beyond_head()
    ring.journal.sync()
    ring.add(b"its successo")  # the same seq, other bytes, and none of them reaches the disk
    ring.disk.crash(lambda _index, _write: "drop")
    ring.reopen(trusted=False)
    assert ring.records() == [(1, b"one")]


def test_forgetting_beyond_the_head_spares_the_tail_of_a_full_ring() -> None:
    ring = Ring(1024)
    ring.add(bytes(1024 - 2 * HEADER_BYTES - 32))
    ring.add(b"")
    assert ring.page[HEAD_OFF] == 1024 - 32
    ring.journal.forget_beyond_head()
    assert [seq for seq, _ in ring.records()] == [1, 2]


def test_another_process_may_append_while_the_head_is_kept() -> None:
    ring = Ring()
    ring.add(b"one")
    head = ring.page[HEAD_OFF], ring.page[EPOCH]
    target = Journal.open(ring.disk.open("journal"), ring.page)  # type: ignore[arg-type]
    ring.add(b"two")  # the replicator, while the target looks through the journal
    target.recover(head, keep_head=True)
    assert ring.page[HEAD_SEQ] == 2
    assert ring.records()[-1] == (2, b"two")


def test_the_records_of_an_earlier_journal_on_the_same_device_are_not_taken_for_ours() -> None:
    ring = Ring()
    for n in range(4):
        ring.add(bytes([n]) * 100)
    ring.journal.sync()
    again = Page.in_memory()
    Journal.create(ring.disk.open("journal"), again, GROUP, ring.capacity)  # type: ignore[arg-type]
    ring.page.clear(1)
    ring.disk.crash(lambda _index, _write: "drop")
    ring.reopen(trusted=False)
    assert ring.records() == []


def test_stale_records_behind_what_is_always_written_are_wiped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes_module, "FILL_BYTES", 4096)
    test_the_records_of_an_earlier_journal_on_the_same_device_are_not_taken_for_ours()


def test_after_a_reset_stale_records_are_not_found_again() -> None:
    ring = Ring()
    for n in range(6):
        ring.add(bytes([n]) * 50)
    ring.trim(3)
    ring.journal.reset(100, E2)
    assert (ring.page[HEAD_SEQ], ring.page[DURABLE_SEQ], ring.records()) == (100, 100, [])
    ring.add(b"new", E2, Kind.WRITE)
    ring.reopen(trusted=False)
    assert ring.records() == [(101, b"new")]


def test_an_epoch_changes_only_with_its_record() -> None:
    ring = Ring()
    ring.add(b"one", E1)
    ring.add(b"", E2, Kind.EPOCH)
    ring.add(b"two", E2)
    ring.add(b"of a lost branch", E3)  # same position, an epoch that nobody announced here
    ring.reopen(trusted=False)
    assert [seq for seq, _ in ring.records()] == [1, 2, 3]


def test_offsets_do_not_fall_when_a_journal_is_reset_before_its_head_was_looked_for() -> None:
    ring = Ring(1024)
    for _ in range(4):
        ring.add(bytes(300))
        ring.trim(ring.page[HEAD_SEQ] + 1)
    before = ring.page[HEAD_OFF]
    ring.page.clear(1)
    journal = Journal.open(ring.disk.open("journal"), ring.page)  # type: ignore[arg-type]
    journal.reset(50, E2)
    assert ring.page[HEAD_OFF] >= before


def test_a_superblock_that_was_torn_gives_way_to_the_former_one() -> None:
    ring = Ring()
    ring.add(bytes(100))
    ring.trim(2)
    generation = ring.journal.super.generation
    ring.disk._find("journal").data[generation % 2 * 4096 + 50] ^= 1
    opened = Journal.open(ring.disk.open("journal"), ring.page)  # type: ignore[arg-type]
    assert opened.super.generation == generation - 1


def test_a_file_without_a_superblock_is_refused_with_a_way_out() -> None:
    disk = FakeDisk()
    disk.create("journal", DATA_START + 4096)
    with pytest.raises(IntegrityError) as caught:
        Journal.open(disk.open("journal"), Page.in_memory())  # type: ignore[arg-type]
    assert caught.value.way_out


def test_a_header_that_wraps_is_read_whole() -> None:
    ring = Ring(1024)
    ring.add(bytes(1024 - HEADER_BYTES - 30))
    ring.trim(2)
    seq = ring.add(b"behind the seam")
    off = ring.journal.find(seq)
    assert off % 1024 == 1024 - 30
    assert unpack_header(ring.journal.read(off, HEADER_BYTES)).seq == seq
    assert ring.records() == [(2, b"behind the seam")]


def test_the_tail_is_read_as_a_whole_while_another_process_moves_it() -> None:
    ring = Ring()
    for n in range(4):
        ring.add(bytes([n]) * 10)
    off = ring.journal.find(3)
    ring.page[TAIL_SEQ] = 3  # stored; the offset follows
    threading.Timer(0.02, lambda: ring.page.u64.__setitem__(TAIL_OFF, off)).start()
    assert ring.journal.tail() == (off, 3)
    ring.page[TAIL_SEQ] = 9
    with pytest.raises(IntegrityError):
        ring.journal.tail()


def test_what_takes_the_place_of_records_that_were_cut_off_is_synced_too() -> None:
    ring = Ring()
    for _ in range(3):
        ring.add(bytes(300))
    ring.journal.sync()
    off = ring.journal.find(2)
    ring.journal.end_at(off, 1, E1)
    ring.journal.sync()
    ring.add(b"instead")
    ring.journal.sync()
    ring.disk.crash(lambda _index, _write: "drop")
    ring.reopen(trusted=False)
    assert ring.records()[1:] == [(2, b"instead")]


def test_a_file_that_fails_is_named() -> None:
    rig = Rig(4096)
    index = rig.join(2048)
    rig.add(b"x" * 100)
    rig.disk.fail_next_sync(rig.files.name(index))
    with pytest.raises(OSError, match=f"file {index}"):
        rig.journal.sync()
    states = {one["index"]: one["state"] for one in files_facts(rig.journal)}
    assert states == {0: "in use", index: "failed: Input/output error"}
    assert {one["state"] for one in files_facts(rig.journal, broken=True)} == {"not used", states[index]}


def test_damage_before_the_redo_point_is_passed_over_and_nothing_behind_it_is_lost() -> None:
    rig = Rig(4096)
    for n in range(4):
        rig.add(bytes([n]) * 100)
    redo = rig.journal.find(3)
    rig.sync()
    rig.journal.set_tail(0, 1, redo, 3)
    rig.disk._find("journal").data[DATA_START + 164 + 80] ^= 1  # of record 2
    rig.reopen(trusted=False)
    assert rig.journal.passed_over == (2, 3)
    assert (rig.page[TAIL_OFF], rig.page[TAIL_SEQ], rig.page[HEAD_SEQ]) == (redo, 3, 4)
    rig.crash()  # the new tail was durable
    assert rig.journal.passed_over is None and rig.page[HEAD_SEQ] == 4
