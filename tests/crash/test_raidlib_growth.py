"""Every crash of a pool whose groups grow: each group has its old size or its new one, and what was said holds.

Members are enlarged by room that holds other data, so whatever is taken for blank and is not comes to light. Below are
bugs that these runs find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from raidlib import create, extending, rebuild, replacing
from raidlib.allocator import Allocator
from raidlib.blockfile import BlockFile
from raidlib.checksums import ChecksummedFile
from raidlib.errors import RaidError
from raidlib.extending import Growth
from raidlib.layout import Layout
from raidlib.ledger import Ledger
from raidlib.raidgroup import RaidGroup
from raidlib.state import GroupInfo
from raidlib.superblock import Superblock
from tests.crash.test_raidlib_crash import SHAPES, STRIDE
from tests.testing.fakedisk import FakeFile
from tests.testing.poolcrash import (
    Step,
    combined_workload,
    degraded_workload,
    explore,
    grown,
    member_workload,
    workload,
    write_all,
)
from tests.testing.poolmodel import Violation
from tests.testing.poolworld import PoolWorld

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize(("level", "members"), SHAPES)
def test_no_crash_of_a_growing_pool_loses_data_or_shows_what_was_there(
    level: int, members: int, checksums: bool
) -> None:
    assert explore(level, members, 1, STRIDE * 4, grown(workload(1), 1), checksums=checksums) > 20


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize(("level", "members"), SHAPES[1:])
def test_no_crash_between_growth_and_swapped_members_loses_data(
    monkeypatch: Patch, level: int, members: int, checksums: bool
) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    monkeypatch.setattr(rebuild, "PROGRESS_AREAS", 2)
    for make in (degraded_workload, member_workload):
        assert explore(level, members, 3, STRIDE * 15, grown(make(3), 3, 0.2), checksums=checksums) > 10


@pytest.mark.parametrize(("level", "members", "second"), [(0, 2, (5, 3)), (5, 3, (0, 1)), (10, 4, None)])
def test_no_crash_of_growth_among_everything_else_loses_data(
    level: int, members: int, second: tuple[int, int] | None
) -> None:
    plan = grown(combined_workload(level, groups=True) if level else workload(7), 7)
    assert explore(level, members, 7, STRIDE * 12, plan, second, checksums=level == 5) > 10


def test_no_crash_of_a_pool_on_disks_that_zero_slowly_shows_what_was_there(monkeypatch: Patch) -> None:
    monkeypatch.setattr(FakeFile, "zeroes_fast", lambda self: False)
    assert explore(5, 3, 2, STRIDE * 5, grown(workload(2, 16), 2), checksums=True) > 10


def size_published_before_the_extension_is_durable(patch: Patch) -> None:
    good = extending.extend

    def extend(group: RaidGroup, allocator: Allocator, ledger: Ledger, growth: Growth) -> None:
        with patch.context() as inner:
            inner.setattr(ledger, "sync_members", lambda: None)
            good(group, allocator, ledger, growth)

    patch.setattr(extending, "extend", extend)


def areas_given_out_before_the_size_is_published(patch: Patch) -> None:
    good = extending.extend

    def extend(group: RaidGroup, allocator: Allocator, ledger: Ledger, growth: Growth) -> None:
        with patch.context() as inner:
            inner.setattr(ledger, "commit", lambda: None)
            good(group, allocator, ledger, growth)

    patch.setattr(extending, "extend", extend)


def size_published_on_one_member_alone(patch: Patch) -> None:
    """In place of the checkpoint on every member, and the next generation comes with the next change."""
    good = extending.extend

    def extend(group: RaidGroup, allocator: Allocator, ledger: Ledger, growth: Growth) -> None:
        with patch.context() as inner:
            everybody = ledger.carriers()
            inner.setattr(ledger, "carriers", lambda: everybody[-1:])
            good(group, allocator, ledger, growth)

    patch.setattr(extending, "extend", extend)


def new_rows_not_zeroed(patch: Patch) -> None:
    good = extending._prepare

    def prepare(file: BlockFile, group: RaidGroup, layout: Layout, growth: Growth, blank: bool) -> None:
        good(file, group, layout, growth, False)

    patch.setattr(extending, "_prepare", prepare)


def areas_of_parts_given_out(patch: Patch) -> None:
    patch.setattr(GroupInfo, "reserved", frozenset())


def entries_of_new_blocks_written_behind_their_table(patch: Patch) -> None:
    good = ChecksummedFile._entry_at

    def entry_at(self: ChecksummedFile, block: int) -> int:
        return good(self, block) + (4 * block if self._tables and block >= self._tables[-1][0] else 0)

    patch.setattr(ChecksummedFile, "_entry_at", entry_at)


def new_member_formatted_for_its_first_size(patch: Patch) -> None:
    good = create.format_member

    def format_member(file: BlockFile, superblock: Superblock, areas: int, *more: Any) -> None:
        extensions = superblock.layout.extensions
        first = replace(superblock, layout=superblock.layout.at_first)
        good(file, first, 12 if extensions else areas, *more)

    patch.setattr(replacing, "format_member", format_member)


Run = tuple[int, int, list[Step], bool]


def healthy(level: int, members: int, checksums: bool = False) -> Iterator[Run]:
    """Runs to find a bug in."""
    for seed in (1, 2, 3):
        yield level, members, grown(workload(seed), seed), checksums


def swapping(level: int, members: int, checksums: bool = False) -> Iterator[Run]:
    """One in which a member is replaced once the group has grown."""
    plan: list[Step] = [lambda w: w.create_volume("a", 8 * 16384), lambda w: w.create_volume("b", 6 * 16384)]
    plan += [partial(PoolWorld.grow, areas=8), write_all, lambda w: w.replace_member(0), lambda w: w.rebuild(100)]
    yield level, members, [*plan, write_all], checksums


BUGS = [
    (size_published_before_the_extension_is_durable, healthy(1, 2)),
    (areas_given_out_before_the_size_is_published, healthy(5, 3)),
    (size_published_on_one_member_alone, healthy(1, 2)),
    (new_rows_not_zeroed, healthy(0, 2)),
    (areas_of_parts_given_out, healthy(5, 3, True)),
    (entries_of_new_blocks_written_behind_their_table, healthy(1, 2, True)),
    (new_member_formatted_for_its_first_size, swapping(1, 2, True)),
]


@pytest.mark.parametrize(("bug", "runs"), BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_bug_is_found(monkeypatch: Patch, bug: Callable[[Patch], None], runs: Iterator[Run]) -> None:
    monkeypatch.setattr(replacing, "PROGRESS_AREAS", 1)
    bug(monkeypatch)
    with pytest.raises((Violation, RaidError, OSError)):
        for level, members, plan, checksums in runs:
            explore(level, members, 1, 11, plan, checksums=checksums)
