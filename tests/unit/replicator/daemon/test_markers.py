"""What a coordinator keeps of its markers, hooks, and how far a peer's clock is away."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.core.errors import AlreadyExists, NotFound, PeerError, Refused, TimedOut
from replicator.daemon.markers import Markers, is_complete, passed_over, run_hook
from replicator.daemon.markerschedule import MOST_AHEAD, RETIRE_S, Images, Scheduler, at_once
from replicator.daemon.markerstore import DEAD, MADE, MarkerStore
from replicator.daemon.skew import measure


def test_a_number_is_never_used_again_also_when_the_coordinator_dies_at_once(tmp_path: Path) -> None:
    first = MarkerStore(tmp_path, 5).next_number([])
    second = MarkerStore(tmp_path, 5).next_number([])
    assert second > first and MarkerStore(tmp_path, 5).next_number([second + (9 << 24)]) > second + (9 << 24)


def test_a_name_is_in_use_until_its_marker_is_dead_or_dropped(tmp_path: Path) -> None:
    store = MarkerStore(tmp_path, 5)
    store.begin("monday", 1, groups=[])
    with pytest.raises(AlreadyExists):
        store.begin("monday", 2, groups=[])
    store.change("monday", 1, state=DEAD)
    store.begin("monday", 2, groups=[])
    store.change("monday", 1, state=MADE)  # of an attempt that is long over
    assert MarkerStore(tmp_path, 5).find("monday")["state"] == "making"
    assert MarkerStore(tmp_path, 5).find("monday#1")["state"] == "dead", "what is owed for the first one is forgotten"
    store.drop("monday")
    with pytest.raises(NotFound):
        MarkerStore(tmp_path, 5).find("monday")


def test_schedules_survive_and_end(tmp_path: Path) -> None:
    MarkerStore(tmp_path, 5).schedule("often", {"groups": ["a"], "interval_s": 1})
    store = MarkerStore(tmp_path, 5)
    assert store.schedules() == {"often": {"groups": ["a"], "interval_s": 1}}
    store.schedule("often", None)
    with pytest.raises(NotFound):
        store.schedule("often", None)


def test_a_marker_is_complete_when_every_copy_has_it_and_every_group_has_one() -> None:
    record = {"groups": [{"uuid": "1"}, {"uuid": "2"}]}
    made = [{"uuid": uuid, "role": "primary", "state": "made"} for uuid in "12"]
    taken = [{"uuid": uuid, "role": "secondary", "state": "taken"} for uuid in "12"]
    assert is_complete(record, made + taken)
    assert not is_complete(record, made + taken[:1])
    assert not is_complete(record, made + taken + [{"uuid": "2", "role": "secondary", "state": "awaited"}])
    assert not is_complete(record, made + taken + [{"node": "C", "role": "secondary", "state": "unreachable"}])


class OneNode:
    """A coordinator's node whose group has no copies: what it asks of its target, and what the target answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fails = ""
        self.config = SimpleNamespace(name="A", node_id="a" * 32)
        self.peers = SimpleNamespace(get=lambda node_id: None)
        self.pairs = SimpleNamespace(store=SimpleNamespace(all=list), name_of=self.name_of)
        self.events = SimpleNamespace(add=lambda *args, **more: None)

    def name_of(self, node_id: str) -> str:
        return self.config.name if node_id == self.config.node_id else node_id

    def target(self, op: str, timeout_s: float, **args: Any) -> Any:
        self.asked.append((op, args))
        if op == self.fails:
            raise TimedOut(f"{'a' * 32} is silent")
        if op == "marker.list":
            return [{"group": "g", "uuid": "1", "role": "primary", "suspended": 0, "entries": []}]
        status = {"uuid": "1", "name": "g", "role": "primary"}
        return {
            "group.status": status, "group.list": [status], "marker.hold": {"token": "t"},
            "marker.mark": {"seqs": {"1": 7}},
        }.get(op, {})  # fmt: skip


def coordinator(folder: Path, node: OneNode) -> Markers:
    return Markers(node, MarkerStore(folder, 5))  # type: ignore[arg-type]


def test_a_marker_is_made_although_the_hook_after_it_fails_and_the_error_says_so(tmp_path: Path) -> None:
    markers = coordinator(tmp_path, OneNode())
    with pytest.raises(Refused, match=r"marker m was made, but the hook 'exit 3' ended with 3 \("):
        markers.create("m", ["g"], after="exit 3")
    assert MarkerStore(tmp_path, 5).find("m")["state"] == MADE
    with pytest.raises(AlreadyExists):
        markers.create("m", ["g"])


def test_a_node_that_cannot_be_asked_is_one_kind_of_error_and_nothing_was_held(tmp_path: Path) -> None:
    node = OneNode()
    node.fails = "group.status"
    markers = coordinator(tmp_path, node)
    with pytest.raises(PeerError, match=r"marker m was not made, and nothing was held: on A: a+ is silent") as caught:
        markers.create("m", ["g"])
    assert "peer list" in caught.value.way_out and markers.store.all() == []


def test_a_marker_is_durable_before_the_hook_after_it_runs(tmp_path: Path) -> None:
    coordinator(tmp_path, OneNode()).create("m", ["g"], after=f"cp {tmp_path}/made/m.json {tmp_path}/then")
    assert '"state": "made"' in (tmp_path / "then").read_text().replace('":"', '": "')


@pytest.mark.parametrize(("fails", "forgotten"), [("marker.hold", False), ("marker.mark", True)])
def test_what_half_a_marker_left_is_forgotten(tmp_path: Path, fails: str, forgotten: bool) -> None:
    node = OneNode()
    node.fails = fails
    markers = coordinator(tmp_path, node)
    with pytest.raises(Refused, match="marker m was not made: A is silent"):
        markers.create("m", ["g"])
    assert ("marker.forget" in [op for op, _ in node.asked]) == forgotten
    assert MarkerStore(tmp_path, 5).all() == []


def test_a_coordinator_that_restarts_in_an_attempt_forgets_its_images(tmp_path: Path) -> None:
    MarkerStore(tmp_path, 5).begin("m", 9, image=True, suspend=False, groups=[{"uuid": "1", "node": "a" * 32}], why="")
    node = OneNode()
    markers = coordinator(tmp_path, node)
    assert markers.store.find("m")["state"] == DEAD
    markers.tidy()
    assert ("marker.forget", {"n": 9}) in node.asked and markers.store.all() == []


class Asked:
    """Markers of a schedule whose copies are made up: what was asked for, and deleted."""

    def __init__(self, folder: Path, complete: list[int], away: list[int]) -> None:
        self.markers = coordinator(folder, OneNode())
        self.complete, self.away = complete, away
        self.missed: list[int] = []
        self.shown: list[int] = []
        self.images = Images(self.markers)
        self.markers.show = self.show  # type: ignore[method-assign]
        self.markers.delete = lambda name: self.markers.store.drop(name) or {}  # type: ignore[method-assign,func-returns-value]

    def made(self, n: int) -> None:
        self.markers.store.begin(f"m{n}", n, schedule="s", groups=[], why="")
        self.markers.store.change(f"m{n}", n, state=MADE)

    def show(self, name: str) -> dict[str, Any]:
        n = int(name[1:])
        self.shown.append(n)
        known = {**dict.fromkeys(self.missed, "missed"), **dict.fromkeys(self.complete, "taken")}
        state = "unreachable" if n in self.away else known.get(n, "awaited")
        return {"complete": state == "taken", "copies": [{"state": state}]}

    def left(self) -> list[int]:
        return [one["n"] for one in self.markers.store.all()]


def test_a_schedule_asks_for_what_it_needs_to_know_and_keeps_the_newest_complete_images(tmp_path: Path) -> None:
    asked = Asked(tmp_path, complete=[1, 2, 3, 5], away=[])
    for n in range(1, 7):
        asked.made(n)
    asked.images.retire("s", 2)
    assert asked.left() == [3, 4, 5, 6] and sorted(asked.shown) == [1, 2, 3, 4, 5, 6]
    asked.shown.clear()
    asked.images.retire("s", 2)
    assert sorted(asked.shown) == [4, 6], "what was complete is not asked for at each turn"
    asked.complete += [6]
    asked.images.retire("s", 2)
    assert asked.left() == [4, 5, 6]


def test_a_schedule_deletes_nothing_and_does_not_ask_for_all_while_a_node_is_away(tmp_path: Path) -> None:
    asked = Asked(tmp_path, complete=[1, 2, 3], away=[4, 5])
    for n in range(1, 6):
        asked.made(n)
    asked.images.retire("s", 1)
    assert asked.left() == [1, 2, 3, 4, 5] and 1 not in asked.shown


def test_markers_that_a_copy_has_passed_over_do_not_stop_their_schedule(tmp_path: Path) -> None:
    """A copy by difference went beyond the places of all that there may be: none will be complete, none replaced."""
    asked = Asked(tmp_path, complete=[1], away=[])
    asked.missed = [3, 4, 6]
    for n in range(1, 1 + MOST_AHEAD):
        asked.made(n)
    asked.images.retire("s", 1)
    assert asked.left() == list(range(1, 1 + MOST_AHEAD)), "there is room"
    asked.made(1 + MOST_AHEAD)
    asked.images.retire("s", 1)
    assert asked.left() == [n for n in range(1, 2 + MOST_AHEAD) if n != 3], "the last complete one stays"


def test_a_copy_that_is_beyond_a_marker_it_awaits_has_missed_it() -> None:
    record = {"groups": [{"uuid": "1", "seq": 10}]}
    copy = {"uuid": "1", "role": "secondary", "state": "awaited", "why": "", "applied": 9}
    assert passed_over(record, copy)["state"] == "awaited"
    assert passed_over(record, {**copy, "applied": 10})["state"] == "missed"
    assert passed_over(record, {**copy, "applied": 10, "state": "taken"})["state"] == "taken"
    old = {key: value for key, value in copy.items() if key != "applied"}
    assert passed_over(record, old) == old


def test_calls_that_are_made_at_once_wait_for_each_other_and_fail_together() -> None:
    both = threading.Barrier(2)

    def meet(record: dict[str, Any]) -> int:
        both.wait(20)
        if record["n"] == 2:
            raise Refused("two")
        return int(record["n"])

    with pytest.raises(Refused, match="two"):
        at_once(meet, [{"n": 1}, {"n": 2}])
    assert at_once(meet, [{"n": 1}, {"n": 3}]) == [1, 3]


def test_markers_of_a_schedule_are_made_while_the_end_of_older_ones_takes_long() -> None:
    silent, made = threading.Event(), threading.Semaphore(0)
    what = {"groups": ["g"], "interval_s": 0.1, "keep": 1, "deadline_s": 1.0, "image": True, "before": "", "after": ""}
    markers: Any = SimpleNamespace(
        store=SimpleNamespace(schedules=lambda: {"s": what}), failing={}, tidy=lambda: None,
        create=lambda *args, **more: made.release(), of_schedule=lambda name: [{"n": n, "name": "m"} for n in (1, 2)],
        show=lambda name: silent.wait(60) and {"copies": [], "complete": False},
    )  # fmt: skip
    scheduler = Scheduler(markers, lambda *said: None)
    scheduler.start()
    try:
        time.sleep(RETIRE_S)
        for _ in range(3):
            assert made.acquire(timeout=20), "no marker while a node is silent"
    finally:
        silent.set()
        scheduler.stop()


def test_a_schedule_waits_while_too_many_of_its_images_are_neither_complete_nor_deleted_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 1, 2, 3, 4, 5, 0, 0, 0)))
    what = {"groups": ["g"], "keep": 3, "deadline_s": 1.0, "image": True, "before": "", "after": ""}
    there, asked, said = [3 + MOST_AHEAD], [], []

    def create(name: str, *args: Any, **more: Any) -> None:
        asked.append(name)
        raise Refused(f"marker {name} was not made: B is away")

    markers: Any = SimpleNamespace(failing={}, create=create, of_schedule=lambda name: [{}] * there[0])
    scheduler = Scheduler(markers, lambda kind, text: said.append(text))
    for _ in range(3):
        scheduler._make("s", what)
    assert asked == [] and "not deleted yet: it waits" in markers.failing["s"] and len(said) == 1
    there[0] -= 1
    for _ in range(3):
        scheduler._make("s", what)
    assert len(asked) == 3 and said[1:] == ["schedule s: marker s-… was not made: B is away"]


def test_a_failing_hook_before_the_hold_leaves_nothing(tmp_path: Path) -> None:
    node = OneNode()
    markers = coordinator(tmp_path, node)
    with pytest.raises(Refused, match=r"marker m was not made: the hook 'false' ended with 1 \("):
        markers.create("m", ["g"], before="false", after=f"touch {tmp_path}/thawed")
    assert "marker.hold" not in [op for op, _ in node.asked] and markers.store.all() == []
    assert (tmp_path / "thawed").exists()


def test_a_hook_knows_the_marker_and_its_failure_or_slowness_is_an_error(tmp_path: Path) -> None:
    run_hook("", "m")
    run_hook(f'echo "$FARSTRIPE_MARKER" > {tmp_path}/said', "monday")
    assert (tmp_path / "said").read_text() == "monday\n"
    with pytest.raises(Refused, match="ended with 3: no"):
        run_hook("echo no >&2; exit 3", "m")
    with pytest.raises(Refused, match="did not end"):
        run_hook("sleep 5", "m", timeout_s=0.1)


def test_a_hook_that_is_too_slow_does_nothing_afterwards(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="was killed"):
        run_hook(f"(sleep 0.4; touch {tmp_path}/frozen) & sleep 5; true", "m", timeout_s=0.1)
    time.sleep(0.8)
    assert not (tmp_path / "frozen").exists()


def test_a_schedule_is_not_replaced_by_another_one_of_its_name(tmp_path: Path) -> None:
    store = coordinator(tmp_path, OneNode()).store
    store.schedule("s", {"groups": ["g", "h@B"], "interval_s": 1.0})
    store.schedule("s", {"groups": ["g", "h@B"], "interval_s": 1.0})
    with pytest.raises(AlreadyExists, match="already, of g,h@B"):
        store.schedule("s", {"groups": ["g"], "interval_s": 1.0})
    assert store.schedules()["s"]["groups"] == ["g", "h@B"]
    store.schedule("s", None)
    store.schedule("s", {"groups": ["g"], "interval_s": 1.0})


@pytest.mark.parametrize(("offset_s", "too_far"), [(0.0, False), (0.9, False), (1.5, True), (-3.0, True)])
def test_a_clock_that_is_away_is_told_from_a_slow_answer(offset_s: float, too_far: bool) -> None:
    now = [10**18]

    def wall() -> int:
        return now[0]

    def ask() -> int:
        now[0] += 10**8  # a tenth of a second there
        told = now[0] + int(offset_s * 1e9)
        now[0] += 3 * 10**8  # three back
        return told

    found = measure(ask, wall)
    assert found.too_far == too_far
    assert abs(found.offset_s - offset_s) <= found.error_s == pytest.approx(0.2)
