"""Images of a set's cycles: taken at one cut, kept as many as wanted, whole or not offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbdplugin.cyclehost import PAUSE_S, ROOM_S, STUCK_S, cycle_name
from replicator.capture import roles
from replicator.core.cycles import Cycle
from replicator.core.errors import NotFound, Refused
from tests.testing.cutpools import Died
from tests.testing.cutworld import CYCLE, CutWorld, judge


class Bench:
    """The set of a CutWorld, whose copies are on S1, driven by hand."""

    def __init__(self) -> None:
        self.world = CutWorld(2)
        self.world.rng.random = lambda: 0.4  # type: ignore[method-assign]  # nothing fails by itself
        self.notes: list[str] = []
        self.renew()

    def renew(self) -> None:
        self.host = self.world.nodes["S1"]
        self.host.cycles._note = lambda kind, text, name: self.notes.append(f"{kind}: {text}")

    def write(self, *groups: int) -> None:
        for group in groups:
            self.world.write(group)

    def arrive(self) -> None:
        for group in (0, 1):
            self.world.ship(group, 1000)
            self.world.beacon(group)
            self.world.hear(group)
        self.host.sets.tick()

    def tick(self, seconds: float = 0.0) -> None:
        self.world.pass_time(seconds)
        self.host.cycles.tick(self.world.now)

    def apply(self, *groups: int) -> None:
        for group in groups:
            for _ in range(20):
                self.world.apply(group, 100_000)

    def images(self) -> list[int]:
        return [image["n"] for image in self.host.cycles.listing("set")]

    def cycle(self) -> None:
        """Something new, and its image."""
        self.write(0, 1)
        self.arrive()
        self.apply(0, 1)
        self.tick(CYCLE.every_s * 2)


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.world.close()


def test_an_image_waits_until_every_group_stands_at_the_cut_and_holds_back_what_is_later(bench: Bench) -> None:
    bench.write(0, 1, 0, 1)
    bench.arrive()
    bench.apply(0)
    bench.tick(1)
    assert bench.images() == []
    bench.write(0)
    bench.arrive()
    bench.apply(0)
    held = bench.world.pairs[0].b.engine
    assert held.waiting is not None, "a group that is there already has gone on"
    bench.apply(1)
    bench.tick()
    assert bench.images() == [1]
    bench.world.check_cycles()
    bench.arrive()
    bench.apply(0)
    assert held.waiting is None, "after the image it goes on"


def test_so_many_are_kept_and_none_is_taken_twice(bench: Bench) -> None:
    for _ in range(4):
        bench.cycle()
    assert bench.images() == [4, 3]
    assert len(bench.host.pools.images) == 2 * CYCLE.keep
    bench.tick(5)
    assert bench.images() == [4, 3], "nothing has changed since"


def test_one_that_somebody_reads_stays_until_he_has_done(bench: Bench) -> None:
    bench.cycle()
    get = bench.host.cycles._exports.get

    def opened(name: str) -> Any:
        route = get(name)
        route.readers = name == "g0-0.set-1"
        return route

    bench.host.cycles._exports.get = opened  # type: ignore[method-assign]
    for _ in range(3):
        bench.cycle()
    assert bench.images() == [4, 3, 1]
    bench.host.cycles._exports.get = get  # type: ignore[method-assign]
    bench.tick(6)
    assert bench.images() == [4, 3]


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_process_that_ends_while_it_takes_one_leaves_a_whole_one_or_none(bench: Bench, dies: str) -> None:
    bench.cycle()
    bench.host.pools.dies = dies
    with pytest.raises(Died):
        bench.cycle()
    bench.world.crash("S1", power=True)
    bench.renew()
    assert bench.images() == ([2, 1] if dies == "after" else [1])
    bench.world.check_cycles()
    bench.cycle()
    assert bench.images()[0] > 1


def test_a_pool_that_is_nearly_full_gets_none_and_keeps_the_newest(bench: Bench) -> None:
    bench.cycle()
    bench.cycle()
    bench.host.pools.free_bytes = 1000
    bench.cycle()
    bench.tick(6)
    assert bench.images() == [2]
    assert "nearly full" in bench.host.cycles.trouble("set")
    bench.cycle()
    assert len([note for note in bench.notes if "cycle-missed" in note]) == 1, "told once"
    bench.host.pools.free_bytes = 1 << 30
    bench.cycle()
    assert bench.images()[0] > 2 and bench.host.cycles.trouble("set") == ""


def test_a_group_that_makes_no_way_ends_the_wait_of_the_others(bench: Bench) -> None:
    bench.write(0, 1)
    bench.arrive()
    bench.apply(0)
    bench.tick(1)
    bench.tick(STUCK_S + 1)
    assert "g1 does not come to the cut" in bench.host.cycles.trouble("set")
    bench.write(0)
    bench.arrive()
    bench.apply(0)
    assert bench.world.pairs[0].b.engine.waiting is None


def test_a_takeover_does_not_stop_at_the_cut_of_an_image_that_is_due(bench: Bench) -> None:
    bench.write(0, 1)
    bench.arrive()
    bench.tick(1)
    bench.write(0, 1, 0, 1)
    for group in (0, 1):
        bench.world.ship(group, 1000)
        bench.world.beacon(group)
        bench.world.hear(group)
    bench.host.sets.decide("set", keep=False)
    for group in (0, 1):
        roles.promote(bench.world.pairs[group].b.engine, at_limit=True)
    images = {group: bench.world.pairs[group].b.image()[0] for group in (0, 1)}
    judge(images, "takeover")
    assert images[0] == bench.world.pairs[0].a.image()[0]


def test_a_takeover_at_an_image_takes_every_group_back_to_it(bench: Bench) -> None:
    bench.cycle()
    before = {group: bench.world.pairs[group].b.image()[0] for group in (0, 1)}
    bench.write(0, 1, 1)
    bench.arrive()
    bench.apply(0)
    with pytest.raises(NotFound, match="no image 9"):
        bench.host.cycles.choose("set", 9)
    bench.world.take_over_cycle()
    assert {group: bench.world.pairs[group].b.image()[0] for group in (0, 1)} == before
    bench.host.sets.tick()
    assert bench.host.sets.listing()[0]["standing"] == "source"


def test_the_former_primary_follows_by_difference_after_a_takeover_at_an_image(bench: Bench) -> None:
    bench.cycle()
    bench.write(0, 1, 1)
    bench.arrive()
    bench.apply(0, 1)
    bench.write(0)
    bench.world.take_over_cycle()
    for group in (0, 1):
        pair = bench.world.pairs[group]
        pair.b.engine.write(0, 0, b"n" * 64)
        decision = pair.sync_up(discard=pair.a.node_id)
        assert decision.label.startswith("diff") and pair.a.image() == pair.b.image()


def test_a_group_that_has_other_volumes_now_cannot_go_back(bench: Bench) -> None:
    bench.cycle()
    bench.world.pairs[0].b.engine.state.volumes[0]["name"] = "other"
    with pytest.raises(Refused, match="other volumes"):
        bench.host.cycles.choose("set", 0)


def test_without_cycles_or_without_the_set_the_images_go(bench: Bench) -> None:
    bench.cycle()
    sets = bench.host.sets
    uuids = [bench.world.pairs[group].a.uuid for group in (0, 1)]
    before = sets.listing()[0]["consistent_ns"]
    sets.put("set", 2, uuids, Cycle())
    assert sets.listing()[0]["consistent_ns"] == before, "the set goes on as it stands"
    bench.tick(6)
    assert bench.images() == [] == list(bench.host.pools.images)
    sets.put("set", 3, uuids, CYCLE)
    bench.cycle()
    assert bench.images() == [2], "no number is used again"
    sets.put("set", 4, [])
    bench.tick(6)
    assert bench.images() == [] == list(bench.host.pools.images)


def test_the_image_that_a_takeover_was_decided_on_stays_from_then_on(bench: Bench) -> None:
    for _ in range(2):
        bench.cycle()
    assert bench.images() == [2, 1]
    told = bench.host.cycles.decide("set", 1)
    assert told["cycle"] == 1
    bench.host.cycles._retire("set", Cycle(CYCLE.every_ms, 1))  # as the thread does that had looked before
    assert 1 in bench.images()


def test_a_cycle_that_is_ended_while_an_image_is_waited_for_lets_the_groups_go_on(bench: Bench) -> None:
    bench.write(0, 1)
    bench.arrive()
    bench.tick(1)
    assert bench.host.sets.frozen("set")
    found = bench.host.sets._sets["set"]
    found.cycle = Cycle()
    bench.tick()
    assert not bench.host.sets.frozen("set")


def test_names_of_snapshots_are_short_and_differ() -> None:
    assert cycle_name("db", "shop", 12) == "db.shop-12"
    long = {cycle_name("v" * 40 + end, "s" * 40, n) for end in "ab" for n in (1, 2)}
    assert len(long) == 4 and max(map(len, long)) <= 63


def test_a_copy_that_can_apply_nothing_for_want_of_room_gets_that_of_the_images(bench: Bench) -> None:
    for _ in range(3):
        bench.cycle()
    copy = bench.world.pairs[1].b.engine
    bench.write(0, 1)
    bench.arrive()
    bench.tick(CYCLE.every_s)
    assert bench.host.sets.frozen("set")
    copy.wants_room = True
    bench.tick()
    assert bench.images() == [3] and not bench.host.sets.frozen("set")
    bench.tick(ROOM_S / 2)
    assert bench.images() == [3], "the older ones may do"
    bench.tick(ROOM_S)
    assert bench.images() == [] and bench.host.pools.images == {}
    assert any("given up" in note for note in bench.notes)
    assert "given up" in bench.host.cycles.trouble("set")
    copy.wants_room = False
    bench.cycle()
    assert bench.images() == [], "not at once"
    bench.tick(PAUSE_S)
    bench.apply(0, 1)
    bench.tick()
    assert bench.images() == [4] and not bench.host.cycles.trouble("set")


def test_an_image_that_a_takeover_goes_back_to_stays_whoever_wants_room(bench: Bench) -> None:
    bench.cycle()
    bench.cycle()
    bench.host.cycles.decide("set", 2)
    bench.world.pairs[0].b.engine.wants_room = True
    for _ in range(4):
        bench.tick(ROOM_S)
    assert bench.images() == [2]
