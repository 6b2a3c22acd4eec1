"""The world of cuts bites: each hazard of write times and markers, planted in the code it would be in, is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbdplugin import cyclehost, standing
from replicator.capture import cyclebook, markerbook, marking, numbers, sets
from replicator.capture.clock import WriteClock
from replicator.capture.engine import GroupEngine
from replicator.core import cuts, markers, numbering
from replicator.core.cycles import Cycle
from replicator.core.errors import FarstripeError, Refused
from tests.testing import cutworld
from tests.testing.cutworld import Violation, run

Patch = pytest.MonkeyPatch
SEEDS = range(300)


def two_groups_may_get_the_same_time(patch: Patch) -> None:
    """H1-01: times tick, and everything within a tick has the same one."""

    def tick(clock: WriteClock) -> int:
        now = max(clock.last, clock.wall_ns() // 10**8 * 10**8)
        clock.note(now)
        return now

    patch.setattr(WriteClock, "next", tick)


def times_follow_a_clock_that_is_set_back(patch: Patch) -> None:
    """H1-05."""
    patch.setattr(WriteClock, "next", lambda clock: clock.wall_ns())


def each_group_has_its_own_clock(patch: Patch) -> None:
    """H1-07, H1-14: numbers that rise in a group only."""
    patch.setattr(WriteClock, "next", lambda clock: 1)
    good = GroupEngine._record

    def record(engine: GroupEngine, *change: object) -> int:
        engine.clock.next = lambda: engine._last_time + 1  # type: ignore[method-assign]
        return good(engine, *change)  # type: ignore[arg-type]

    patch.setattr(GroupEngine, "_record", record)


def a_group_nobody_writes_to_says_nothing(patch: Patch) -> None:
    """H1-03."""
    patch.setattr(cutworld, "publish_beacon", lambda engine: False)


def a_group_that_has_told_nothing_is_not_waited_for(patch: Patch) -> None:
    """H1-06."""
    good = cuts.rule
    patch.setattr(
        sets, "rule", lambda state, views, expected: good(state, [v for v in views if v.arrived_ns] or views, 1)
    )


def the_bound_is_followed_before_it_is_durable(patch: Patch) -> None:
    """H1-10, H1-11."""

    good = sets.SetHost._save

    def save(host: sets.SetHost, one: sets._Set, state: cuts.SetState, *definition: Any) -> None:
        if one.state.whole and state.whole and not state.decided_ns:
            one.state = state
        else:
            good(host, one, state, *definition)

    patch.setattr(sets.SetHost, "_save", save)


def the_bound_is_raised_over_records_that_power_loss_takes(patch: Patch) -> None:
    """H1-10: arrived is not durable."""
    patch.setattr(sets, "_make_durable", lambda services, to_end: None)


def a_takeover_applies_all_that_was_received(patch: Patch) -> None:
    """The set's bound is not the place where its groups part from what was received."""
    good = cutworld.roles.promote
    patch.setattr(cutworld.roles, "promote", lambda engine, **_: good(engine))


def a_takeover_is_not_decided_durably(patch: Patch) -> None:
    """Groups taken before and after a crash are taken at different bounds."""
    good = sets.decide

    def forgets(ruling: cuts.Ruling, *, keep: bool) -> cuts.SetState | None:
        state = good(ruling, keep=keep)
        return None if state is None else state._replace(decided_ns=0, bound_ns=state.bound_ns)

    patch.setattr(sets, "decide", forgets)
    patch.setattr(sets.SetHost, "hold_at_start", lambda host, uuid: None)


def a_number_is_used_again(patch: Patch) -> None:
    """H1-19: the successor of a coordinator that died goes on with its number."""
    good = cutworld.CutWorld.next_counter

    def again(world: cutworld.CutWorld) -> int:
        made = {marker.n for marker in world.made}
        return world.counter if world.counter and markers.make_number(world.counter, 1) not in made else good(world)

    patch.setattr(cutworld.CutWorld, "next_counter", again)
    patch.setattr(marking.Marking, "highest", lambda *_: 0)
    patch.setattr(marking, "_keep", lambda *_: None)
    patch.setattr(cutworld.FakePools, "snapshot", keeping_snapshot)


def a_marker_is_made_although_the_hold_has_ended(patch: Patch) -> None:
    """H1-23: MARK finds the groups of the hold that it is for, whether they are held or not."""
    ended: dict[str, list[marking.Booked]] = {}
    good_hold, good_mark = marking.Marking.hold, marking.Marking.mark

    def hold(self: marking.Marking, n: int, groups: list[marking.Booked], lease_s: float, *, park: bool) -> str:
        token = good_hold(self, n, groups, lease_s / 4, park=park)
        ended[token] = groups
        return token

    def mark(self: marking.Marking, marker: markers.Marker, token: str) -> dict[str, int]:
        if token in self._marked or any(hold.token == token for hold in self._holds) or token not in ended:
            return good_mark(self, marker, token)
        for service, book in ended.pop(token):
            try:
                with service.engine.lock:
                    seq = service.engine.append_control(int(marking.Kind.MARKER), payload=marker.pack())
            except OSError as exc:
                raise Refused("this process was killed") from exc
            book.add(markerbook.Entry(marker.n, marker.name, seq, service.engine.epoch, 0, "made"))
        return {}

    patch.setattr(marking.Marking, "hold", hold)
    patch.setattr(marking.Marking, "mark", mark)


def nodes_mark_without_waiting_for_all_to_hold(patch: Patch) -> None:
    """The barrier of step 1604 left out."""

    def handle(self: markers.Attempt, event: object, now: float) -> list[object]:
        if isinstance(event, markers.Answer) and event.ok and event.op == "hold":
            return [markers.Ask(event.node, "mark", event.token)]
        if isinstance(event, markers.Answer) and event.ok and event.op == "mark":
            self._waiting.discard(event.node)
            if not self._waiting and self.stage is markers.Stage.HOLDING:
                self.stage = markers.Stage.MADE
                return [markers.Finished("")]
        return []

    patch.setattr(markers.Attempt, "handle", handle)


def a_hold_has_no_end(patch: Patch) -> None:
    """H1-22."""
    patch.setattr(cutworld.CutWorld, "later", lambda world, seconds, call: None)


def an_abandoned_suspension_is_forgotten(patch: Patch) -> None:
    """H1-27: the order to go on comes before the marker it is for."""
    good = markerbook.MarkerBook.resume

    def resume(book: markerbook.MarkerBook, n: int = 0) -> bool:
        try:
            book.find(n)
        except FarstripeError:
            return False
        return good(book, n)

    patch.setattr(markerbook.MarkerBook, "resume", resume)


def an_image_is_taken_again_after_power_loss(patch: Patch) -> None:
    """H1-28: the journal is passed again over a pool that is ahead of it."""
    patch.setattr(markerbook.MarkerBook, "handled", lambda book, epoch, seq, line: False)
    patch.setattr(cutworld.FakePools, "snapshot", overwriting_snapshot)


def keeping_snapshot(pools: cutworld.FakePools, names: dict[str, str]) -> None:
    """A snapshot that leaves one of its name as it is."""
    for volume, name in names.items():
        pools.images.setdefault(name, pools._sides[volume].image()[0])


def overwriting_snapshot(pools: cutworld.FakePools, names: dict[str, str]) -> None:
    """A snapshot that replaces one of its name."""
    for volume, name in names.items():
        pools.images[name] = pools._sides[volume].image()[0]


def a_takeover_uses_the_volumes_as_they_stand(patch: Patch) -> None:
    """H1-29."""
    patch.setattr(cutworld.MarkerHost, "stand_at", lambda host, service, n: None)


def an_image_goes_when_one_copy_has_a_newer_one(patch: Patch) -> None:
    """H1-17: each node keeps its own newest image."""
    good = cutworld.CutWorld.manage

    def manage(world: cutworld.CutWorld) -> None:
        good(world)
        for name, groups in (("S1", (0, 1)), ("S2", (2,))):
            has = set.intersection(*(set(world.images()[group]) for group in groups))
            for n in sorted(has)[:-1]:
                world.nodes[name].markers.forget(n)

    patch.setattr(cutworld.CutWorld, "manage", manage)


def an_image_of_a_cycle_does_not_wait_for_all_groups(patch: Patch) -> None:
    """[0046]: the copies are mutually consistent at the ends of cycles only."""
    patch.setattr(cyclehost, "stands_at", lambda engine, bound_ns: True)


def the_next_cycle_begins_before_the_image_exists(patch: Patch) -> None:
    """H1-12: groups go on while the image is taken, one after the other."""
    patch.setattr(cyclehost, "stands_at", lambda engine, bound_ns: True)
    patch.setattr(sets.SetHost, "frozen", lambda host, name: True)
    patch.setattr(
        sets.SetHost, "freeze", lambda host, name: next(iter(host._sets.values())).state.bound_ns if host._sets else 0
    )


def an_image_is_offered_while_it_is_taken(patch: Patch) -> None:
    """Half-taken: the process ends before its snapshots exist."""
    good = cyclehost.CycleBook.put

    def put(book: cyclebook.CycleBook, image: cyclebook.Image) -> None:
        good(book, cyclebook.Image(image.n, image.bound_ns, image.places, cyclebook.TAKEN))

    patch.setattr(cyclebook.CycleBook, "put", put)
    patch.setattr(cyclehost.CycleHost, "_exists", lambda host, name: "-" in name and ".set-" in name)
    patch.setattr(cyclehost.CycleHost, "_take", unguarded_take)


def unguarded_take(host: cyclehost.CycleHost, name: str, engines: list[GroupEngine], bound_ns: int) -> None:
    """What CycleHost._take does, with no look at which names are taken."""
    book = host._book(name)
    n = book.next_number
    places = {engine.state.uuid: host._place(engine, name, n) for engine in engines}
    book.put(cyclebook.Image(n, bound_ns, places))
    host._pools.snapshot({v: s for place in places.values() for v, s in place.snapshots.items()})


def the_last_image_goes_before_the_next_exists(patch: Patch) -> None:
    """H1-12: one image, which is overwritten."""
    good = cyclehost.CycleHost._take

    def take(host: cyclehost.CycleHost, name: str, engines: list[GroupEngine], bound_ns: int) -> None:
        host._retire(name, Cycle())
        good(host, name, engines, bound_ns)

    patch.setattr(cyclehost.CycleHost, "_take", take)


def a_takeover_at_an_image_is_not_decided_durably(patch: Patch) -> None:
    """Groups taken before and after a crash go back to different images."""
    good = sets.SetHost._save

    def save(host: sets.SetHost, one: sets._Set, state: cuts.SetState, *definition: Any) -> None:
        if state.decided_cycle:
            return
        good(host, one, state, *definition)

    patch.setattr(sets.SetHost, "_save", save)


def going_back_is_taken_for_done_after_a_kill(patch: Patch) -> None:
    """The state says that it had begun, and what the volumes hold is a mixture."""
    good = standing.rewind

    def once(engine: GroupEngine, seq: int, epoch: int, changed: Any, restore: Callable[[], None]) -> None:
        good(engine, seq, epoch, changed, restore if engine.state.rewind is None else lambda: None)

    patch.setattr(standing, "rewind", once)


def a_group_that_comes_back_in_a_takeover_is_not_held(patch: Patch) -> None:
    """Its follower starts before anybody looks at the set."""
    patch.setattr(sets.SetHost, "hold_at_start", lambda host, uuid: None)


def a_number_is_drawn_before_its_place_in_the_order(patch: Patch) -> None:
    """H1-07: number and content change are two steps, and another write comes between them."""
    good = WriteClock.next_numbered
    drawn: dict[int, list[int]] = {}

    def next_numbered(clock: WriteClock, its: numbers.Numbers) -> tuple[int, int]:
        time_ns, number = good(clock, its)
        early = drawn.setdefault(id(its), [])
        if not early and number % 3 == 0:
            early.append(number)
            return time_ns, its.draw()
        early.append(number)
        return time_ns, early.pop(0)

    patch.setattr(WriteClock, "next_numbered", next_numbered)


def a_number_that_has_not_arrived_is_skipped(patch: Patch) -> None:
    """[0053]: a gap is taken for one that will never be filled."""
    good = numbering.advance
    patch.setattr(sets, "advance", lambda cut, groups, complete_ns: good(cut, groups, cuts.NO_BOUND))


def numbers_that_a_crash_took_are_not_declared_void(patch: Patch) -> None:
    """The copy waits for ever for numbers that nobody has."""
    patch.setattr(sets, "_note", lambda engine, payload: True)


def numbers_are_used_again_after_a_kill(patch: Patch) -> None:
    """H1-10: the counter begins at the last number that is known to be durable."""
    good = numbers.Numbers.__init__

    def again(its: numbers.Numbers, stored: dict[str, Any], boot: int = 0, page: memoryview | None = None) -> None:
        good(its, stored, boot, page)
        if stored:
            its._page[1] = max(0, its._page[1] - 2)

    patch.setattr(numbers.Numbers, "__init__", again)


def only_what_is_known_to_have_arrived_is_made_durable(patch: Patch) -> None:
    """H1-10: by number the bound goes on to the ends of the journals."""
    good = sets._make_durable
    patch.setattr(sets, "_make_durable", lambda services, to_end: good(services, to_end=False))


def nobody_sees_what_a_host_writes_that_was_not_asked_to_hold(patch: Patch) -> None:
    """H1-25."""
    good = marking._park

    def park(service: Any, *, park: bool) -> int:
        good(service, park=park)
        return -1

    patch.setattr(marking, "_park", park)
    append = marking.Marking._append

    def unwatched(self: marking.Marking, hold: marking._Hold, service: Any, *rest: Any) -> int:
        hold.last[service.engine.state.uuid] = service.engine.last_host_seq
        return append(self, hold, service, *rest)

    patch.setattr(marking.Marking, "_append", unwatched)


BUGS: dict[Callable[[Patch], None], tuple[str, ...]] = {
    two_groups_may_get_the_same_time: ("img",),
    times_follow_a_clock_that_is_set_back: ("img", "fin"),
    each_group_has_its_own_clock: ("img", "fin"),
    a_group_nobody_writes_to_says_nothing: ("fin",),
    a_group_that_has_told_nothing_is_not_waited_for: ("img",),
    the_bound_is_followed_before_it_is_durable: ("img",),
    the_bound_is_raised_over_records_that_power_loss_takes: ("img",),
    a_takeover_applies_all_that_was_received: ("img",),
    a_takeover_is_not_decided_durably: ("img", "refused"),
    a_number_is_used_again: ("img",),
    a_marker_is_made_although_the_hold_has_ended: ("img",),
    nodes_mark_without_waiting_for_all_to_hold: ("img",),
    a_hold_has_no_end: ("blk",),
    an_abandoned_suspension_is_forgotten: ("fin",),
    an_image_is_taken_again_after_power_loss: ("img",),
    a_takeover_uses_the_volumes_as_they_stand: ("img",),
    an_image_goes_when_one_copy_has_a_newer_one: ("gone",),
    an_image_of_a_cycle_does_not_wait_for_all_groups: ("img",),
    the_next_cycle_begins_before_the_image_exists: ("img",),
    an_image_is_offered_while_it_is_taken: ("img", "gone"),
    the_last_image_goes_before_the_next_exists: ("gone",),
    a_takeover_at_an_image_is_not_decided_durably: ("img", "refused"),
    going_back_is_taken_for_done_after_a_kill: ("img",),
    a_group_that_comes_back_in_a_takeover_is_not_held: ("img",),
    a_number_is_drawn_before_its_place_in_the_order: ("img", "fin"),
    a_number_that_has_not_arrived_is_skipped: ("img",),
    numbers_that_a_crash_took_are_not_declared_void: ("fin",),
    numbers_are_used_again_after_a_kill: ("num",),
    only_what_is_known_to_have_arrived_is_made_durable: ("img", "fin"),
    nobody_sees_what_a_host_writes_that_was_not_asked_to_hold: ("img",),
}


@pytest.mark.parametrize("bug", list(BUGS), ids=lambda bug: bug.__name__)
def test_the_world_of_cuts_finds(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    found = set()
    for seed in SEEDS:
        try:
            run(seed)
        except Violation as exc:
            found.add(str(exc).partition(":")[0])
        except Refused:
            found.add("refused")  # a takeover that was begun can always be repeated
        if found & set(BUGS[bug]):
            return
    raise AssertionError(f"not found in {len(SEEDS)} histories; only {found}")
