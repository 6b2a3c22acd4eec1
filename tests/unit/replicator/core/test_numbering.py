"""How far numbers over all groups have no gap, and which gaps are void."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.core.cuts import NO_BOUND, GroupView, SetState, Standing, raised, rule
from replicator.core.numbering import Arrival, Arrivals, Cut, advance

SERIES = 7


class Group:
    """Arrivals of one group: numbers, whose write times are ten times as high."""

    def __init__(self, *numbers: int) -> None:
        self.left = [Arrival(10 * number, number, SERIES) for number in numbers]

    def peek(self) -> Arrival | None:
        return self.left[0] if self.left else None

    def take(self) -> None:
        del self.left[0]


def go(cut: Cut, groups: Sequence[Arrivals], complete_ns: int = 0) -> tuple[int, int]:
    found = advance(cut, groups, complete_ns)
    return found.bound_ns, found.number


AT_4 = Cut(40, 4, SERIES, 40)


def test_it_goes_on_as_far_as_numbers_follow_each_other_over_all_groups() -> None:
    groups = [Group(5, 8), Group(6, 7, 9, 11), Group()]
    assert go(AT_4, groups) == (90, 9)
    assert [len(group.left) for group in groups] == [0, 1, 0]


def test_a_number_that_is_late_is_waited_for() -> None:
    late = Group(6)
    assert go(AT_4, [late, Group(7)]) == (40, 4)
    assert go(AT_4, [late, Group(5, 7)]) == (70, 7)


def test_a_gap_is_void_once_every_group_has_everything_up_to_what_follows_it() -> None:
    assert go(AT_4, [Group(7), Group(8)], complete_ns=69) == (40, 4)
    assert go(AT_4, [Group(7), Group(8)], complete_ns=70) == (80, 8)


def test_numbers_of_another_series_or_none_pass_by_time_alone() -> None:
    other = Group()
    other.left = [Arrival(45, 5, SERIES + 1), Arrival(46, 0, 0), Arrival(47, 6, SERIES + 1)]
    assert go(AT_4, [other], complete_ns=44) == (40, 4)
    assert advance(AT_4, [other], 46) == Cut(47, 6, SERIES + 1, 47)


def test_what_lies_before_the_cut_is_passed_over_and_tells_the_last_number() -> None:
    """After a start with a bound whose number nobody knows."""
    assert go(Cut(60), [Group(5, 7), Group(6)]) == (70, 7)
    assert go(Cut(60), [Group(5, 9), Group(7)]) == (60, 5), "6 was applied before, so 7 may be the next one or not"


def test_the_bound_of_a_set_is_the_further_one_of_both_rules() -> None:
    views = [GroupView(name, "secondary", "a", True, arrived, 50) for name, arrived in (("log", 90), ("data", 100))]
    ruling = rule(SetState(70, True), views, 2)
    assert ruling.standing is Standing.WHOLE and ruling.limit_ns == 90
    by_number = raised(ruling, Cut(120, 12, SERIES), waits=False)
    assert (by_number.limit_ns, by_number.state.number, by_number.held_by) == (120, 12, "")
    by_time = raised(ruling, Cut(80, 8, SERIES), waits=True)
    assert (by_time.limit_ns, by_time.state.number, by_time.held_by) == (90, 8, "log")
    assert by_time.limit_ns < NO_BOUND
