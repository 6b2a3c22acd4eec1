"""How long members take: a slow disk is seen in its syncs, reads and writes, with figures, and stays a member."""

from __future__ import annotations

from typing import Any

import pytest

from raidlib import Pool, ledger, membertimes
from raidlib.membertimes import HALF_LIFE_S, Mean, slow_members
from tests.testing.fakedisk import FakeDisk
from tests.testing.pools import AREA, new_pool, pattern, reopen, states

SHAPES = [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)]
SIZE = 6 * AREA


class Slow:
    """A clock that stands still but in one kind of I/O on member m1."""

    def __init__(self, patch: pytest.MonkeyPatch, op: str, seconds: float) -> None:
        self.now = 0.0

        def before(disk: FakeDisk, its_op: str, name: str, off: int, length: int, data: bytes = b"") -> None:
            if name == "m1" and its_op == op:
                self.now += seconds

        patch.setattr(FakeDisk, "before", before)
        patch.setattr(membertimes, "monotonic", lambda: self.now)
        patch.setattr(ledger.time, "monotonic", lambda: self.now)


def member(pool: Pool, index: int) -> dict[str, Any]:
    found: dict[str, Any] = pool.status()["groups"][0]["members"][index]
    return found


def filled(level: int, members: int, checksums: bool = False) -> Pool:
    _, pool = new_pool(level, members, checksums=checksums)
    pool.create_volume("v", SIZE).pwrite(pattern(SIZE), 0)
    return pool


def use(pool: Pool) -> None:
    volume = pool.volume("v")
    for off in 3 * list(range(0, SIZE, 4096)):
        volume.pwrite(pattern(4096, off), off)
        volume.pread(4096, off)


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize(("level", "members"), SHAPES)
@pytest.mark.parametrize("kind", ["read", "write"])
def test_slow_reads_and_writes_are_seen_and_the_member_stays(
    monkeypatch: pytest.MonkeyPatch, level: int, members: int, kind: str, checksums: bool
) -> None:
    pool = filled(level, members, checksums)
    Slow(monkeypatch, kind, 0.05)
    look = pool.look_at_members(lambda: None)
    use(pool)
    look.end()
    found = member(pool, 1)
    assert f"its {kind}s take" in str(found["slow"]) and float(str(found[f"{kind}_s"])) >= 0.02
    assert all(not member(pool, i)["slow"] for i in range(members) if i != 1)
    assert set(states(pool)) == {"in_sync"}


@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_nothing_is_timed_outside_a_look(level: int, members: int) -> None:
    pool = filled(level, members)
    group = pool._groups[0]
    before = [list(table) for table in group.read_tables]
    look = pool.look_at_members(lambda: None)
    assert [list(table) for table in group.read_tables] != before
    look.end()
    assert [list(table) for table in group.read_tables] == before
    use(pool)
    assert member(pool, 0)["read_s"] is None and all(one.live_file() is one.file for one in group.members)


def test_a_look_says_when_it_has_seen_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = filled(1, 2)
    monkeypatch.setattr("raidlib.looks.LOOK_REQUESTS", 10)
    called: list[int] = []
    look = pool.look_at_members(lambda: called.append(1))
    pool.volume("v").pread(4096, 0)
    assert not called
    use(pool)
    look.end()
    assert called


def test_a_request_that_a_look_saw_begin_counts_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = filled(1, 2)
    look = pool.look_at_members(lambda: None)
    read = pool._groups[0].members[1].live_file().pread
    look.end()
    Slow(monkeypatch, "read", 3.0)
    read(4096, 0)
    assert member(pool, 1)["slow_requests"] == 1 and member(pool, 1)["slowest_s"] == 3.0


def test_another_medium_begins_without_a_past(monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(monkeypatch, "write", 3.0)
    disk, pool = new_pool(1, 2)
    pool.create_volume("v", SIZE)
    look = pool.look_at_members(lambda: None)
    pool.volume("v").pwrite(pattern(SIZE), 0)
    assert member(pool, 1)["slow_requests"]
    disk.create("new", len(disk.peek("m1", 0, 1 << 30)))
    pool.replace_member("m1", "new", disk.open_exclusive)
    while pool.rebuild_step():
        pass
    use(pool)
    look.end()
    assert member(pool, 1)["path"] == "new" and member(pool, 1)["slow_requests"] == 0
    assert pool.volume("v").pread(4096, 0) == pattern(4096, 0)


def test_a_group_grows_while_it_is_looked_at() -> None:
    disk, pool = new_pool(5, 3, checksums=True)
    before = pool.status()["groups"][0]["areas"]
    look = pool.look_at_members(lambda: None)
    for name in disk.names():
        disk.enlarge(name, bytes(8 * AREA))
    pool.grow("g")
    look.end()
    assert pool.status()["groups"][0]["areas"] > before and pool.check()["problems"] == []


def test_slow_requests_are_counted_over_restarts_and_the_longest_since_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, pool = new_pool(1, 2)
    with monkeypatch.context() as patch:
        Slow(patch, "sync", 3.0)
        pool.sync()
    pool.close()
    pool = reopen(disk)
    assert int(str(member(pool, 1)["slow_requests"])) >= 1 and member(pool, 1)["slowest_s"] < 2
    assert member(pool, 1)["since_open"]["slow_requests"] == 0
    assert pool.clear_errors() == 1 and member(pool, 1)["slow_requests"] == 0


def test_slow_syncs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool = new_pool(5, 3)
    Slow(monkeypatch, "sync", 3.0)
    for _ in range(3):
        pool.sync()
    assert int(str(member(pool, 1)["slow_requests"])) >= 3 and member(pool, 1)["slowest_s"] == 3.0
    assert member(pool, 0)["slow_requests"] == 0 and set(states(pool)) == {"in_sync"}


def test_a_mean_decays_and_is_unknown_of_few() -> None:
    mean = Mean()
    mean.add([1.0] * 8, 0.0)
    assert mean.value_s(0.0) is None
    mean.add([1.0] * 24, 0.0)
    assert mean.value_s(0.0) == 1.0
    mean.add([4.0] * 16, HALF_LIFE_S)
    assert mean.value_s(HALF_LIFE_S) == 2.5, "as many count from then as from now"
    assert mean.value_s(20 * HALF_LIFE_S) is None


@pytest.mark.parametrize(
    ("means", "slow"),
    [
        ([0.1, 0.001], [0.001, None]),
        ([0.1, 0.1], [None, None]),
        ([0.009, 0.0001], [None, None]),  # too short to matter
        ([0.1, None], [None, None]),  # nobody to compare with
        ([0.1, 0.002, 0.001, 0.2], [0.002, None, None, 0.002]),
        ([], []),
    ],
)
def test_a_member_is_slow_beside_the_others(means: list[float | None], slow: list[float | None]) -> None:
    assert slow_members(means) == slow
