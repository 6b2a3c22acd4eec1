"""The explorer and the error sweep bite: bugs that need a second crash, an I/O error or a look at the raw bytes.

The others are in test_raidlib_seeded_bugs.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raidlib import recovery
from raidlib.allocator import Allocator
from raidlib.errors import RaidError
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.parityraid import ParityGroup
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState
from tests.testing.faultsweep import SCENARIOS, Sweep, faults
from tests.testing.poolexplorer import Explorer, Run
from tests.testing.poolmodel import Violation

Patch = pytest.MonkeyPatch
Found = (Violation, RaidError, OSError)


def marks_cleared_before_their_regions_are_good(patch: Patch) -> None:
    good = recovery.repair

    def repair(group: RaidGroup, suspects: list[int], force: bool) -> int:
        group.intents.clear(group.intents.marked())
        group.ledger.sync_members()
        return good(group, suspects, force)

    patch.setattr(recovery, "repair", repair)


def punching_forgets_the_last_member(patch: Patch) -> None:
    good = RaidGroup.punch_area

    def punch(self: RaidGroup, area: int) -> None:
        last = self.members.pop()
        try:
            good(self, area)
        finally:
            self.members.append(last)

    patch.setattr(RaidGroup, "punch_area", punch)


def rebuilt_rows_not_written_to(patch: Patch) -> None:
    patch.setattr(Member, "has_row", lambda self, row: bool(self.file) and self.info.state is MemberState.IN_SYNC)


def second_parity_written_as_the_first(patch: Patch) -> None:
    good = ParityGroup._write_columns

    def write(self: ParityGroup, row: int, columns: dict[int, tuple[int, memoryview]]) -> None:
        k = self.geometry.data_chunks
        if self.geometry.parity_chunks == 2 and k in columns:
            columns[k + 1] = columns[k]
        good(self, row, columns)

    patch.setattr(ParityGroup, "_write_columns", write)


def torn_row_served(patch: Patch) -> None:
    patch.setattr(ParityGroup, "settle_row", lambda self, row: None)


def unreadable_chunk_made_up_from_torn_parity(patch: Patch) -> None:
    good = ParityGroup.resync_area
    patch.setattr(ParityGroup, "resync_area", lambda self, area, trust_parity: good(self, area, trust_parity=True))


def failed_sync_tried_again(patch: Patch) -> None:
    good = Ledger._sync_each

    def each(self: Ledger, members: list[Member]) -> list[OSError | None]:
        found = good(self, members)
        return good(self, members) if any(found) else found

    patch.setattr(Ledger, "_sync_each", each)


def write_error_forgiven(patch: Patch) -> None:
    good = Ledger.fail

    def fail(self: Ledger, member: Member, reason: str, **more: object) -> None:
        if not reason.startswith("write"):
            good(self, member, reason, **more)  # type: ignore[arg-type]

    patch.setattr(Ledger, "fail", fail)


def area_leaked_when_there_is_no_space(patch: Patch) -> None:
    patch.setattr(Allocator, "give_back", lambda self, area: None)


EXPLORED = [
    (marks_cleared_before_their_regions_are_good, Run(5, 3, "healthy", 1)),
    (punching_forgets_the_last_member, Run(0, 2, "healthy", 1)),
    (second_parity_written_as_the_first, Run(6, 4, "healthy", 1)),
]
SWEPT = [
    (rebuilt_rows_not_written_to, "rebuild", 5, 3, "punch"),
    (torn_row_served, "degraded write", 5, 3, "write"),
    (unreadable_chunk_made_up_from_torn_parity, "open after a crash", 5, 3, "read"),
    (failed_sync_tried_again, "write", 1, 2, "sync"),
    (write_error_forgiven, "write", 1, 2, "write"),
    (area_leaked_when_there_is_no_space, "write", 0, 2, "reserve"),
]


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value).replace(" ", "-"))


@pytest.mark.parametrize(("bug", "run"), EXPLORED, ids=name_of)
def test_bug_is_found_by_the_explorer(monkeypatch: Patch, bug: Callable[[Patch], None], run: Run) -> None:
    bug(monkeypatch)
    with pytest.raises(Found):
        Explorer().explore(run)


@pytest.mark.parametrize(("bug", "name", "level", "members", "kind"), SWEPT, ids=name_of)
def test_bug_is_found_by_the_sweep(
    monkeypatch: Patch, bug: Callable[[Patch], None], name: str, level: int, members: int, kind: str
) -> None:
    sweep = Sweep(next(scenario for scenario in SCENARIOS if scenario.name == name), level, members)
    bug(monkeypatch)
    with pytest.raises(Found):
        for fault in faults(sweep.members, True, ""):
            if fault[1] == kind:
                sweep.to_exhaustion(*fault)
