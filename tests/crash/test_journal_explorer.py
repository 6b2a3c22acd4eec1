"""A journal whose files come and go, cut at every write: what it holds afterwards is a whole prefix with all promises.

Each story is run again and again, stopped one disk operation later each time, then by power loss and by a kill.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.errors import Refused
from replicator.daemon.link.receiver import Receiver
from replicator.daemon.link.shipper import Stopped
from replicator.journal import layout, relayout, ring, superblock
from replicator.journal.page import HEAD_SEQ, LAYOUT_GEN
from tests.testing.fakedisk import PowerCut
from tests.testing.journalrig import Rig, run

STEPS = 60


def explore(seed: int, *, remote: bool, steps: int = STEPS, stride: int = 1) -> int:
    """Cut one story at every `stride`-th operation; returns the number of cuts."""
    rng = random.Random(seed)
    whole = Rig(1500, seed, remote=remote)
    before = whole.disk.operations
    run(whole, rng, steps)
    whole.check()
    cuts = 0
    for cut in range(before, whole.disk.operations, stride):
        rig = Rig(1500, seed, remote=remote)
        rig.disk.cut_at(cut)
        try:
            run(rig, random.Random(seed), steps)
        except PowerCut:
            pass
        else:
            raise AssertionError(f"operation {cut} did not come again")
        rig.disk.cut_at(None)
        cuts += 1
        (rig.crash if (cut + seed) % 3 else rig.kill)()
        rig.check()
        run(rig, random.Random(cut), 25)  # life goes on
        rig.check()
        rig.crash()
        rig.check()
    return cuts


@pytest.mark.parametrize("remote", [False, True], ids=["appends here", "another process appends"])
@pytest.mark.parametrize("seed", range(2))
def test_every_cut_leaves_a_whole_journal(seed: int, remote: bool) -> None:
    assert explore(seed, remote=remote) > 60


@given(st.integers(0, 1 << 30), st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_was_written_is_read_again_whatever_joins_and_leaves(seed: int, remote: bool) -> None:
    rig = Rig(2000, seed, remote=remote)
    run(rig, random.Random(seed), 150)
    rig.check()
    rig.kill()
    rig.check()


def forgotten_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is released is made nobody's before the superblocks say so."""
    right = relayout.release

    def early(journal: ring.Journal, page: Any) -> set[int]:
        gone = layout.files_of(journal.super.ring()) - layout.files_of(layout.pruned(journal.super.ring(), page[10]))
        for index in gone:
            journal._ring[0][index].pwrite_durable(bytes(8192), 0)
        return right(journal, page)

    monkeypatch.setattr(relayout, "release", early)


def out_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of a new file is counted from the ring's first byte, not from where it stands."""
    right = layout.with_file

    def wrong(layouts: layout.Layouts, start: int, file: int, length: int) -> layout.Layouts:
        new = right(layouts, start, file, length)
        return (*new[:-1], new[-1]._replace(phase=0))

    monkeypatch.setattr(relayout, "with_file", wrong)


def capacity_of_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a file was taken away the room of the former ring still counts."""
    right = ring.Journal._adopt

    def wrong(self: ring.Journal, files: Any, sup: superblock.Super) -> None:
        right(self, files, sup)
        self.capacity = max(one.capacity for one in sup.ring())

    monkeypatch.setattr(ring.Journal, "_adopt", wrong)


def released_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is released as soon as the head has passed it."""
    monkeypatch.setattr(relayout, "TAIL_OFF", 3)


def half_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync reaches the file in which the journal ends, and no other."""

    def wrong(self: ring.Journal) -> None:
        head = self._u64[3]
        files, layouts = self._ring
        files[layout.piece_at(layouts, head).file].fdatasync()

    monkeypatch.setattr(ring.Journal, "sync", wrong)


def at_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout begins at the head although another process appends."""
    right = layout.next_start
    monkeypatch.setattr(relayout, "next_start", lambda layouts, tail, head: right(layouts, tail, tail))


def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The appender does not look whether the ring was changed."""
    monkeypatch.setattr(ring.Journal, "follow", lambda self: None)


BUGS = [forgotten_early, out_of_place, capacity_of_old, released_early, half_synced, at_head, deaf]


def _found(seeds: Iterator[int]) -> bool:
    for seed in seeds:
        for remote in (False, True):
            try:
                explore(seed, remote=remote, steps=80, stride=7)
            except Exception:  # whatever breaks shows the bug
                return True
    return False


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_found(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    assert _found(iter(range(12))), bug.__doc__


def test_a_full_ring_has_room_as_soon_as_a_file_was_added() -> None:
    rig = Rig(2000)
    while rig.add(bytes(200)):
        pass
    head = rig.page[HEAD_SEQ]
    rig.join(3000)
    while rig.add(bytes(200)):
        pass
    assert rig.page[HEAD_SEQ] >= head + 10
    rig.check()


def test_a_file_that_leaves_is_free_when_the_tail_has_passed_it() -> None:
    rig = Rig(2000)
    rig.join(2000)
    for _ in range(4):
        rig.add(bytes(200))
    rig.leave(1)
    assert rig.files.indices() == [0, 1]
    rig.trim(rig.page[HEAD_SEQ] + 1)
    assert rig.files.indices() == [0]
    rig.check()


def test_the_first_file_can_leave_too_and_another_becomes_the_anchor() -> None:
    rig = Rig(2000)
    rig.add(b"one")
    rig.join(2000)
    rig.leave(0)
    rig.add(b"two")
    assert rig.files.indices() == [0, 1]
    rig.trim(3)
    rig.crash()
    assert rig.files.indices() == rig.members() == [1]
    rig.add(b"three")
    rig.check()


def test_a_removal_that_would_leave_too_little_is_refused() -> None:
    rig = Rig(2000)
    with pytest.raises(Refused):
        rig.leave(0)
    rig.join(600)
    while rig.add(bytes(300)):
        pass
    with pytest.raises(Refused):
        rig.leave(0)


def test_a_former_version_does_not_find_a_superblock_once_there_are_two_files() -> None:
    rig = Rig(2000)
    rig.join(600)
    versions = [rig.disk._find("journal").data[slot + 4] for slot in (0, 4096)]
    assert versions == [2, 2]


def test_a_missing_file_is_named() -> None:
    rig = Rig(2000)
    rig.join(600)
    rig.disk.remove("journal.1")
    rig.disk.kill()
    with pytest.raises(Exception, match="missing or damaged: 1"):
        rig.reopen(trusted=True)


def test_the_page_says_which_layout_counts() -> None:
    rig = Rig(2000, remote=True)
    rig.add(b"one")
    rig.join(600)
    assert rig.page[LAYOUT_GEN] == rig.journal.super.layout_gen == 1
    assert rig.appender.super.layout_gen == 0
    rig.add(b"two")
    assert rig.appender.super.layout_gen == 1


def test_a_receiver_judges_room_by_the_ring_as_it_is_now() -> None:
    rig = Rig(4000, remote=True)
    rig.join(4000)
    assert rig.appender.room_for(1)  # it knows of both files
    for _ in range(20):
        rig.add(bytes(100))
    receiver = Receiver(SimpleNamespace(u64=rig.page.u64, journal=rig.appender), rig.page[HEAD_SEQ] + 1, 0)  # type: ignore[arg-type]
    assert receiver.room_for(memoryview(bytes(4500)), 0)
    rig.leave(0)
    with pytest.raises(Stopped, match="never fit"):
        receiver.room_for(memoryview(bytes(4500)), 0)
    assert receiver.room_for(memoryview(bytes(100)), 0)
