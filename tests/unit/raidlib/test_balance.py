"""The balancing plan: what moves, why, in which order, and that it comes to rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidlib.balance import Area, Group, Plan, plan

R0, R0B = Group("a", 0, 100, 50), Group("b", 0, 100, 50)
R1, R5 = Group("mirror", 1, 100, 50), Group("parity", 5, 100, 50)


def hot(group: str, index: int, utilisation: float = 0.2, kind: str = "random", keep: str = "") -> Area:
    rate = 100 * utilisation
    loads = {"random": (rate, 0.0), "sequential": (0.0, rate), "mixed": (rate / 2, rate / 2), "quiet": (0.0, 0.0)}
    return Area("v", index, group, utilisation, *loads[kind], keep)


def steps(made: Plan) -> list[tuple[int, str, str]]:
    return [(move.index, move.source, move.target) for move in made.moves]


def after(areas: list[Area], groups: list[Group], made: Plan) -> tuple[list[Area], list[Group]]:
    """What there is once a plan has been carried out; every move must be possible when its turn comes."""
    lies = {area.order: area.group for area in areas}
    free = {group.name: group.free for group in groups}
    for move in made.moves:
        key = move.volume, move.index
        assert lies[key] == move.source != move.target
        assert free[move.target] > 0
        free[move.source] += 1
        free[move.target] -= 1
        lies[key] = move.target
    return (
        [replace(area, group=lies[area.order]) for area in areas],
        [replace(group, free=free[group.name]) for group in groups],
    )


def test_load_on_one_of_two_groups_is_shared_out() -> None:
    areas = [hot("a", index, 0.1) for index in range(8)]
    made = plan([R0, R0B], areas)
    assert len(made.moves) == 4
    assert made.before == {"a": pytest.approx(0.8), "b": 0}
    assert made.after == {"a": pytest.approx(0.4), "b": pytest.approx(0.4)}
    assert made.moves[0].reason == "levels a (0.80 busy) and b (0.00)"


@pytest.mark.parametrize("loads", [(0.3, 0.25), (0.02, 0.0), (0.0, 0.0)])
def test_small_differences_move_nothing(loads: tuple[float, float]) -> None:
    areas = [hot("a", 0, loads[0] / 2), hot("a", 1, loads[0] / 2), hot("b", 2, loads[1])]
    assert plan([R0, R0B], areas).moves == []


def test_one_busy_area_alone_does_not_move_from_group_to_group() -> None:
    assert plan([R0, R0B], [hot("a", 0, 0.9)]).moves == []


def test_random_areas_go_to_mirrors_and_sequential_ones_to_parity() -> None:
    areas = [hot("parity", 0, 0.2, "random"), hot("mirror", 1, 0.2, "sequential")]
    made = plan([R1, R5], areas)
    assert steps(made) == [(0, "parity", "mirror"), (1, "mirror", "parity")]
    assert made.moves[0].reason == "100 % random requests, for which RAID 1 is better"
    assert made.moves[1].reason == "100 % sequential requests, for which RAID 5 is better"


def test_an_area_whose_requests_are_mixed_stays_where_it_is() -> None:
    areas = [hot("parity", 0, 0.2, "mixed"), hot("mirror", 1, 0.2, "mixed")]
    assert plan([R1, R5], areas).moves == []


def test_what_fits_its_group_is_not_levelled_away_to_where_it_does_not() -> None:
    areas = [hot("mirror", index, 0.1, "random") for index in range(6)]
    made = plan([R1, R5], areas)
    assert made.moves == []
    areas += [hot("mirror", 10, 0.1, "mixed")]
    assert steps(plan([R1, R5], areas)) == [(10, "mirror", "parity")]


def test_groups_that_suit_an_area_equally_badly_share_it_out() -> None:
    areas = [hot("parity", index, 0.1, "random") for index in range(6)]
    assert len(plan([R5, replace(R5, name="other")], areas).moves) == 3


def test_a_better_fit_does_not_make_a_group_the_busiest() -> None:
    areas = [hot("parity", 0, 0.2, "random"), *(hot("mirror", index, 0.1, "random") for index in range(1, 9))]
    made = plan([R1, R5], areas)
    assert made.moves == []
    assert made.skipped == [(areas[0], "mirror would become the busiest group")]


@pytest.mark.parametrize(
    ("free_parity", "free_mirror", "expected"),
    [
        (0, 1, [(0, "parity", "mirror"), (1, "mirror", "parity")]),
        (1, 0, [(1, "mirror", "parity"), (0, "parity", "mirror")]),
        (0, 0, [(1, "mirror", "third"), (0, "parity", "mirror"), (1, "third", "parity")]),
    ],
)
def test_areas_change_places_by_way_of_a_free_area(
    free_parity: int, free_mirror: int, expected: list[tuple[int, str, str]]
) -> None:
    areas = [hot("parity", 0, 0.2, "random"), hot("mirror", 1, 0.2, "sequential")]
    groups = [replace(R1, free=free_mirror), replace(R5, free=free_parity), Group("third", 0, 10, 1)]
    areas.append(hot("third", 2, 0.2, "mixed", keep="somebody chose its group"))
    made = plan(groups, areas)
    assert steps(made) == expected
    after(areas, groups, made)


def test_a_full_group_gives_a_quiet_area_for_a_busy_one() -> None:
    areas = [hot("a", 0, 0.2), hot("a", 1, 0.2), hot("b", 2, 0.0, "quiet"), hot("b", 3, 0.0, "quiet")]
    made = plan([R0, replace(R0B, free=0)], areas)
    assert steps(made) == [(2, "b", "a"), (0, "a", "b")]
    assert made.moves[0].reason == "makes room for area 0 of v"


def test_without_any_free_area_nothing_moves_and_the_plan_says_so() -> None:
    areas = [hot("a", 0, 0.2), hot("a", 1, 0.2), hot("b", 2, 0.0, "quiet")]
    made = plan([replace(R0, free=0), replace(R0B, free=0)], areas)
    assert made.moves == []
    assert made.skipped == [(areas[0], "b has no free area, and nothing to change places with")]


def test_space_for_growing_volumes_is_left() -> None:
    areas = [hot("a", index, 0.05) for index in range(16)]
    groups = [R0, replace(R0B, areas=256, free=7)]
    assert after(areas, groups, plan(groups, areas))[1][1].free == 5


def test_areas_that_may_not_move_stay_and_the_plan_says_why() -> None:
    areas = [hot("a", 0, 0.3, keep="somebody chose its group"), hot("a", 1, 0.3, keep="it moved a short while ago")]
    made = plan([R0, R0B], areas)
    assert made.moves == []
    assert [why for _, why in made.skipped] == ["somebody chose its group", "it moved a short while ago"]


def test_nothing_goes_to_a_group_that_is_not_whole() -> None:
    areas = [hot("a", index, 0.1) for index in range(8)]
    assert plan([R0, replace(R0B, usable=False)], areas).moves == []


def test_a_plan_has_a_bound_and_says_when_there_is_more() -> None:
    areas = [hot("a", index, 0.01) for index in range(100)]
    made = plan([R0, R0B], areas, most=5)
    assert (len(made.moves), made.more) == (5, True)
    assert not plan([R0, R0B], areas).more


def test_load_that_is_not_listed_counts() -> None:
    areas = [hot("a", 0, 0.1), hot("a", 1, 0.1)]
    assert len(plan([replace(R0, rest=0.8), R0B], areas).moves) == 2
    assert plan([replace(R0, rest=0.2), replace(R0B, rest=0.4)], areas).moves == []


worlds = st.builds(
    lambda frees, loads: (
        [Group(f"g{n}", level, 40, free) for n, (level, free) in enumerate(frees)],
        [hot(f"g{at % len(frees)}", n, load, kind, keep) for n, (at, load, kind, keep) in enumerate(loads)],
    ),
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 6, 10]), st.integers(0, 4)), min_size=1, max_size=4),
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.3, 1.5]),
            st.sampled_from(["random", "sequential", "mixed"]),
            st.sampled_from(["", "", "", "it is being moved"]),
        ),
        max_size=30,
    ),
)


@settings(max_examples=150, deadline=None)
@given(worlds, st.integers(3, 40))
def test_plans_are_possible_bounded_the_same_each_time_and_come_to_rest(
    world: tuple[list[Group], list[Area]], most: int
) -> None:
    groups, areas = world
    kept = {area.order: area.group for area in areas if area.keep}
    for _ in range(60):
        made = plan(groups, areas, most)
        assert made == plan(groups[:], list(reversed(areas)), most)
        assert len(made.moves) <= most
        assert max(made.after.values()) <= max(made.before.values()) * 1.001 or any(
            "is better" in move.reason for move in made.moves
        )
        if not made.moves:
            break
        areas, groups = after(areas, groups, made)
    else:
        pytest.fail("areas move to and fro")
    assert {area.order: area.group for area in areas if area.order in kept} == kept
