"""The crash explorer bites: each of these bugs, put into raidlib on purpose, is found.

A bug is a patch of a line or two that a tired engineer could write. Names say what is wrong with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from raidlib import cow, readd, recovery, replacing, spares, stripejournal
from raidlib.allocator import Allocator
from raidlib.areamap import AreaMap
from raidlib.arearefs import AreaRefs
from raidlib.errors import RaidError
from raidlib.intents import HOT, IntentMap
from raidlib.ledger import Ledger
from raidlib.metastore import MetaStore, encode_header
from raidlib.move import Mover
from raidlib.parityraid import ParityGroup
from raidlib.pool import Pool
from raidlib.raidgroup import RaidGroup
from raidlib.rebuild import Rebuild
from raidlib.space import Space
from raidlib.state import ImageKind, Kind, PoolState, Record
from raidlib.twin import TwinFile
from raidlib.volume import Volume
from tests.testing.poolcrash import (
    away_workload,
    degraded_workload,
    explore,
    image_workload,
    member_workload,
    move_workload,
    workload,
)
from tests.testing.poolmodel import Violation

Patch = pytest.MonkeyPatch


def mark_in_memory_only(patch: Patch) -> None:
    def mark(self: IntentMap, regions: set[int]) -> None:
        for region in regions:
            self.states[region] = HOT

    patch.setattr(IntentMap, "mark", mark)


def mark_not_durable(patch: Patch) -> None:
    good = RaidGroup._store_intents
    patch.setattr(RaidGroup, "_store_intents", lambda self, offset, data, durable: good(self, offset, data, False))


def clear_marks_without_sync(patch: Patch) -> None:
    good = Pool.clear_intents

    def clear(self: Pool) -> int:
        patch.setattr(self, "sync", lambda: None)
        return good(self)

    patch.setattr(Pool, "clear_intents", clear)


def skip_resync_after_crash(patch: Patch) -> None:
    patch.setattr(recovery, "repair", lambda group, suspects, force: 0)


def checkpoint_written_in_place(patch: Patch) -> None:
    def write(self: MetaStore, generation: int, payload: bytes) -> None:
        self._file.pwrite_durable(encode_header(generation, payload) + payload, self._slot_offset(self._current))

    patch.setattr(MetaStore, "write_checkpoint", write)


def checkpoint_not_durable(patch: Patch) -> None:
    def write(self: MetaStore, generation: int, payload: bytes) -> None:
        self._current = 1 - self._current
        self._file.pwrite(encode_header(generation, payload) + payload, self._slot_offset(self._current))

    patch.setattr(MetaStore, "write_checkpoint", write)


def freed_area_reused_at_once(patch: Patch) -> None:
    def punched(self: Allocator, areas: list[int], epoch: int) -> None:
        for area in areas:
            self._limbo.discard(area)
            self._dirty.discard(area)
            heapq.heappush(self._clean, area)

    patch.setattr(Allocator, "punched", punched)


def freed_area_not_zeroed(patch: Patch) -> None:
    patch.setattr(RaidGroup, "punch_area", lambda self, area: None)
    patch.setattr(ParityGroup, "punch_area", lambda self, area: None)


def free_areas_trusted_after_power_cut(patch: Patch) -> None:
    patch.setattr(recovery, "distrust_free_areas", lambda state, group, marked: None)


def coming_and_going_of_areas_not_noted(patch: Patch) -> None:
    patch.setattr(Volume, "touch", lambda self, blocks: None)


def failed_sync_ignored(patch: Patch) -> None:
    good = Ledger._sync_each

    def each(self: Ledger, members: list[object]) -> list[None]:
        return [None for _ in good(self, members)]  # type: ignore[arg-type]

    patch.setattr(Ledger, "_sync_each", each)


def failure_kept_in_memory(patch: Patch) -> None:
    good = Ledger.fail

    def fail(self: Ledger, *args: object, **more: object) -> None:
        commit = self._commit
        self._commit = lambda: None  # type: ignore[method-assign]
        try:
            good(self, *args, **more)  # type: ignore[arg-type]
        finally:
            self._commit = commit  # type: ignore[method-assign]

    patch.setattr(Ledger, "fail", fail)


def rebuild_progress_before_its_data(patch: Patch) -> None:
    good = Rebuild._note_progress

    def note(self: Rebuild) -> None:
        file = self.member.live_file()
        sync, file.fdatasync = file.fdatasync, lambda: None  # type: ignore[method-assign]
        try:
            good(self)
        finally:
            file.fdatasync = sync  # type: ignore[method-assign]

    patch.setattr(Rebuild, "_note_progress", note)
    patch.setattr("raidlib.rebuild.PROGRESS_AREAS", 1)


def stripe_journal_after_the_stripe(patch: Patch) -> None:
    def write_columns(self: ParityGroup, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        self._write_in_place(row, columns)
        if self.info.journaled and self._journal is not None:
            with self._journal.journaled(stripejournal.COLUMNS, row, columns):
                pass

    patch.setattr(ParityGroup, "_write_columns", write_columns)


def stripe_journal_not_replayed(patch: Patch) -> None:
    def replay(self: ParityGroup) -> int:
        self.info.journaled = 0
        return 0

    patch.setattr(ParityGroup, "replay_journal", replay)


def stripe_journal_wraps_without_sync(patch: Patch) -> None:
    good = stripejournal.StripeJournal._append

    def append(self: stripejournal.StripeJournal, *args: object) -> Callable[[], int]:
        self._sync = lambda: None
        return good(self, *args)  # type: ignore[arg-type]

    patch.setattr(stripejournal.StripeJournal, "_append", append)


def region_missed_by_one_that_is_away_forgotten(patch: Patch) -> None:
    patch.setattr(readd, "note_missed", lambda group, ledger, regions: None)


def area_given_out_while_one_is_away_not_counted_as_missed(patch: Patch) -> None:
    good = PoolState.apply

    def apply(self: PoolState, record: Record) -> None:
        missed = set(self.groups[record.group].missed)
        good(self, record)
        if record.kind == Kind.ALLOC:
            self.groups[record.group].missed = missed

    patch.setattr(PoolState, "apply", apply)


def marked_regions_not_copied_to_one_that_was_away(patch: Patch) -> None:
    patch.setattr("raidlib.rebuild.may_differ", lambda group, area: group.region_of(area) in group.info.missed)


def old_member_retired_before_the_new_one_is_stable(patch: Patch) -> None:
    good = replacing.Replacement._finish

    def finish(self: replacing.Replacement) -> None:
        patch.setattr(self._ledger, "sync_members", lambda: None)
        good(self)

    patch.setattr(replacing.Replacement, "_finish", finish)


def progress_of_a_replacement_before_its_data(patch: Patch) -> None:
    patch.setattr(TwinFile, "sync_new", lambda self: None)
    patch.setattr(replacing, "copy_suspects", lambda group, ledger, suspects: None)


def write_above_the_frontier_only(patch: Patch) -> None:
    def both(self: TwinFile, off: int, length: int, act: Callable[..., None], *, always: bool = False) -> None:
        with self._hold(off, length):
            if self.old is not None:
                act(self.old, length)
            if self.new is not None and (always or self.old is None or off < self._data_offset):
                act(self.new, length)

    patch.setattr(TwinFile, "_both", both)


def torn_twins_not_made_equal(patch: Patch) -> None:
    patch.setattr(replacing, "copy_suspects", lambda group, ledger, suspects: None)


def spare_listed_before_its_superblock_is_durable(patch: Patch) -> None:
    patch.setattr(spares, "write_superblock", lambda file, block: file.pwrite(block.encode(), 0))


def spare_taken_before_its_superblock_is_durable(patch: Patch) -> None:
    patch.setattr(replacing, "write_superblock", lambda file, block: file.pwrite(block.encode() * 2, 0))


def copy_logged_before_it_is_durable(patch: Patch) -> None:
    good = cow._copy

    def copy(volume: Volume, index: int, old: int) -> None:
        sync, volume.space.sync = volume.space.sync, lambda: None  # type: ignore[method-assign]
        try:
            good(volume, index, old)
        finally:
            volume.space.sync = sync  # type: ignore[method-assign]

    patch.setattr(cow, "_copy", copy)


def only_the_new_place_of_a_copy_is_marked(patch: Patch) -> None:
    good = Volume.mark

    def mark(self: Volume, places: Iterable[int]) -> None:
        good(self, places[1:] if isinstance(places, tuple) else places)

    patch.setattr(Volume, "mark", mark)


def shared_area_freed_with_its_first_reference(patch: Patch) -> None:
    patch.setattr(AreaRefs, "drop", lambda self, area: not self._refs.__setitem__(area, 0))


def shared_area_written_in_place(patch: Patch) -> None:
    patch.setattr(Space, "shared", lambda self, place: False)


def snapshot_of_what_is_not_synced(patch: Patch) -> None:
    good = Pool._take_images

    def take(self: Pool, names: dict[str, str], kind: ImageKind, attributes: dict[str, Any]) -> list[Volume]:
        space = self._space
        sync, space.sync = space.sync, lambda: None  # type: ignore[method-assign]
        try:
            return good(self, names, kind, attributes)
        finally:
            space.sync = sync  # type: ignore[method-assign]

    patch.setattr(Pool, "_take_images", take)


def snapshots_of_one_call_committed_one_by_one(patch: Patch) -> None:
    good = Pool._take_images

    def take(self: Pool, names: dict[str, str], kind: ImageKind, attributes: dict[str, Any]) -> list[Volume]:
        return [good(self, {source: name}, kind, attributes)[0] for source, name in names.items()]

    patch.setattr(Pool, "_take_images", take)


def map_of_a_snapshot_not_of_its_own(patch: Patch) -> None:
    patch.setattr(AreaMap, "copy", lambda self: self)


def moved_area_logged_without_being_durable(patch: Patch) -> None:
    good = Ledger.record

    def record(self: Ledger, records: list[Record], *, durable: bool = False) -> None:
        good(self, records, durable=durable and records[0].kind != Kind.ALLOC)

    patch.setattr(Ledger, "record", record)


def moved_area_for_one_of_its_sharers(patch: Patch) -> None:
    good = Mover._copy

    def copy(self: Mover, family: list[Volume], pairs: list[tuple[int, int, int]]) -> list[int]:
        return good(self, family[:1], pairs)

    patch.setattr(Mover, "_copy", copy)


def moved_data_not_synced(patch: Patch) -> None:
    good = Mover._copy

    def copy(self: Mover, family: list[Volume], pairs: list[tuple[int, int, int]]) -> list[int]:
        space = self._space
        sync, space.sync = space.sync, lambda: None  # type: ignore[method-assign]
        try:
            return good(self, family, pairs)
        finally:
            space.sync = sync  # type: ignore[method-assign]

    patch.setattr(Mover, "_copy", copy)


IMAGES = [
    (copy_logged_before_it_is_durable, 0, 2, 1),
    (only_the_new_place_of_a_copy_is_marked, 0, 2, 2),
    (shared_area_freed_with_its_first_reference, 0, 2, 1),
    (shared_area_written_in_place, 0, 2, 1),
    (snapshot_of_what_is_not_synced, 0, 2, 1),
    (snapshots_of_one_call_committed_one_by_one, 0, 2, 1),
    (map_of_a_snapshot_not_of_its_own, 0, 2, 1),
]
MOVES = [
    (moved_area_logged_without_being_durable, 0, 2, 1),
    (moved_area_for_one_of_its_sharers, 0, 2, 1),
    (moved_data_not_synced, 0, 2, 1),
]
HEALTHY = [
    (mark_in_memory_only, 5, 3, 1),
    (mark_not_durable, 6, 4, 1),
    (clear_marks_without_sync, 1, 2, 1),
    (skip_resync_after_crash, 5, 3, 1),
    (checkpoint_written_in_place, 0, 2, 1),
    (checkpoint_not_durable, 0, 2, 1),
    (freed_area_reused_at_once, 0, 2, 1),
    (freed_area_not_zeroed, 0, 2, 1),
    (free_areas_trusted_after_power_cut, 0, 2, 1),
    (coming_and_going_of_areas_not_noted, 0, 2, 1),
]
DEGRADED = [
    (failed_sync_ignored, 1, 2, 12),
    (failure_kept_in_memory, 1, 2, 7),
    (rebuild_progress_before_its_data, 1, 2, 2),
    (stripe_journal_after_the_stripe, 5, 3, 1),
    (stripe_journal_not_replayed, 5, 3, 1),
    (stripe_journal_wraps_without_sync, 5, 3, 2),
]
SWAPPED = [
    (region_missed_by_one_that_is_away_forgotten, 1, 2, 17),
    (marked_regions_not_copied_to_one_that_was_away, 5, 3, 1),
    (old_member_retired_before_the_new_one_is_stable, 0, 2, 1),
    (progress_of_a_replacement_before_its_data, 0, 2, 1),
    (write_above_the_frontier_only, 0, 2, 1),
    (torn_twins_not_made_equal, 0, 2, 16),
    (spare_listed_before_its_superblock_is_durable, 1, 2, 1),
    (spare_taken_before_its_superblock_is_durable, 1, 2, 1),
]
AWAY = [
    (area_given_out_while_one_is_away_not_counted_as_missed, 1, 2, 1),
    (area_given_out_while_one_is_away_not_counted_as_missed, 5, 3, 4),
]
Found = (Violation, RaidError)


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), HEALTHY, ids=name_of)
def test_bug_is_found(monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for further in range(10):
            explore(level, members, seed + further, 5, workload(seed + further))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), DEGRADED, ids=name_of)
def test_bug_of_a_degraded_pool_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int
) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for further in range(10):
            explore(level, members, seed + further, 3, degraded_workload(seed + further))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), MOVES, ids=name_of)
def test_bug_of_moves_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int
) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for further in range(6):
            explore(level, members, seed + further, 2, move_workload(seed + further), (5, 3))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), IMAGES, ids=name_of)
def test_bug_of_snapshots_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int
) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for further in range(12):
            explore(level, members, seed + further, 5, image_workload(seed + further, 40), (5, 3))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), SWAPPED, ids=name_of)
def test_bug_of_a_pool_whose_members_come_and_go_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int
) -> None:
    bug(monkeypatch)
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    with pytest.raises(Found):
        for further in range(10):
            explore(level, members, seed + further, 5, member_workload(seed + further))


@pytest.mark.parametrize(("bug", "level", "members", "seed"), AWAY, ids=name_of)
def test_bug_of_areas_that_change_hands_while_a_member_is_away_is_found(
    monkeypatch: Patch, bug: Callable[[Patch], None], level: int, members: int, seed: int
) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        for further in range(6):
            explore(level, members, seed + further, 15, away_workload(seed + further))
