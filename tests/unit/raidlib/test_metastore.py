from __future__ import annotations

import random

from raidlib.layout import Layout
from raidlib.metastore import MetaStore
from raidlib.state import Kind, PoolState, Record, pack_record
from tests.testing.fakedisk import FakeDisk

LAYOUT = Layout(16384, 4096, 20480, 8192, 4096, 45056, 0, 49152)


def new_store(seed: int = 0) -> tuple[FakeDisk, MetaStore]:
    disk = FakeDisk(random.Random(seed))
    disk.create("m", 1 << 20)
    return disk, MetaStore(disk.open("m"), LAYOUT)


def state(generation: int) -> PoolState:
    return PoolState("a" * 32, f"tank{generation}", 4096, generation)


def test_an_empty_member_has_no_state() -> None:
    _, store = new_store()
    assert store.read() is None


def test_the_newest_checkpoint_is_read() -> None:
    disk, store = new_store()
    for generation in (1, 2, 3):
        store.write_checkpoint(generation, state(generation).encode())
    found = MetaStore(disk.open("m"), LAYOUT).read()
    assert found is not None and found.state == state(3)


def test_a_torn_checkpoint_leaves_the_one_before() -> None:
    disk, store = new_store()
    for generation in (7, 8):
        store.write_checkpoint(generation, state(generation).encode())
    disk.cut_at(disk.operations)
    try:
        store.write_checkpoint(9, state(9).encode() + bytes(3000))
    except BaseException:  # the power cut itself
        disk.crash(lambda _i, _w: "tear")
    found = MetaStore(disk.open("m"), LAYOUT).read()
    assert found is not None and found.state == state(8)


def test_the_next_checkpoint_spares_the_only_good_one_whatever_its_generation() -> None:
    disk, store = new_store()
    store.write_checkpoint(4, state(4).encode())
    again = MetaStore(disk.open("m"), LAYOUT)
    again.read()
    disk.trace = lambda op, name, off, n: offsets.append(off)
    offsets: list[int] = []
    again.write_checkpoint(6, state(6).encode())
    first = MetaStore(disk.open("m"), LAYOUT)
    disk.open("m").pwrite(b"x", offsets[0] + 40)
    found = first.read()
    assert found is not None and found.state == state(4)


def test_the_log_after_a_checkpoint_is_applied() -> None:
    disk, store = new_store()
    store.write_checkpoint(1, state(1).encode())
    data = pack_record(Record(Kind.COMMIT), 1, 0) + pack_record(Record(Kind.TOUCH, 0, 5, 6), 1, 1)
    disk.open("m").pwrite(data, store.log_offset)
    found = MetaStore(disk.open("m"), LAYOUT).read()
    assert found is not None
    assert found.rank == (1, 2) and found.state.touched == {(5, 6)} and found.state.committed == 1


def test_a_log_left_by_an_older_checkpoint_in_the_slot_is_not_applied() -> None:
    disk, store = new_store()
    store.write_checkpoint(1, state(1).encode())
    disk.open("m").pwrite(pack_record(Record(Kind.TOUCH, 0, 5, 6), 1, 0), store.log_offset)
    store.write_checkpoint(2, state(2).encode())
    store.write_checkpoint(3, state(3).encode())
    found = MetaStore(disk.open("m"), LAYOUT).read()
    assert found is not None and found.rank == (3, 0) and not found.state.touched
