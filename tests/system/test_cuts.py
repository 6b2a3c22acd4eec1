"""Real nodes: groups whose copies belong together, while processes die. The load is that of testing/database.py."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from replicator.core.errors import FarstripeError
from tests.testing.database import (
    BLOCK,
    HOLDER,
    Database,
    free_port,
    join,
    judge,
    newest,
    replicate,
    standing,
    with_pool,
)
from tests.testing.nodes import Node, kill_together, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture
def four() -> Iterator[tuple[Node, Node, Node, Node]]:
    """A and C are primary of a group each; their copies are on B and D."""
    with contextlib.ExitStack() as stack:
        a, b, c, d = (with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "ABCD")
        join(a, b)
        join(c, d)
        join(a, c)
        join(b, d)
        replicate(a, "log", b)
        replicate(c, "data", d)
        yield a, b, c, d


@pytest.fixture
def two() -> Iterator[tuple[Node, Node]]:
    """A is primary of two groups that are a set; their copies are on B."""
    with Node("A", replication_port=free_port()) as a, Node("B", replication_port=free_port()) as b:
        for node in (a, b):
            with_pool(node)
        join(a, b)
        for volume in ("log", "data"):
            replicate(a, volume, b)
        a.farstripe("set", "create", "shop", "log", "data")
        wait_until(lambda: standing(b) == "whole", lambda: b.ask("replicator", "set.list"))
        yield a, b


def test_a_set_is_taken_over_at_one_instant_after_its_primary_was_killed(two: tuple[Node, Node]) -> None:
    a, b = two
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 300, "no load")
    a.kill()
    load.stop()
    b.farstripe("set", "takeover", "shop", "--yes")
    assert 0 < judge((b, "log"), (b, "data")) <= load.committed
    assert b.group("log")["role"] == b.group("data")["role"] == "primary"
    Database(b.writer("log"), b.writer("data")).stop()


def test_a_set_follows_an_idle_group_and_waits_for_one_whose_link_is_cut(two: tuple[Node, Node]) -> None:
    a, b = two
    log = a.writer("log")
    log.pwrite(b"x" * BLOCK, 0)
    wait_until(lambda: b.group("log")["applied"] == a.group("log")["pos"], "an idle group holds the other one", 5)
    a.farstripe("pair", "split", "data")
    wait_until(lambda: not b.group("data")["link_up"] and a.json("pair", "show", "data")["split"], "not split")
    log.pwrite(b"y" * BLOCK, 0)
    time.sleep(1.5)
    held = b.group("log")
    assert held["applied"] < held["pos"] == a.group("log")["pos"]
    assert b.ask("replicator", "set.list")[0]["held_by"] == "data"
    a.farstripe("set", "delete", "shop", "--yes")
    wait_until(lambda: b.group("log")["applied"] == a.group("log")["pos"], "still held after the set is gone", 20)


def test_a_set_goes_back_to_the_image_of_its_last_cycle_after_both_nodes_were_killed_in_the_middle_of_one(
    two: tuple[Node, Node],
) -> None:
    a, b = two
    a.farstripe("set", "cycle", "shop", "--every", 0.5, "--keep", 2)
    load = Database(a.writer("log"), a.writer("data"))

    def images() -> list[dict[str, Any]]:
        return list(b.ask("replicator", "set.images", name="shop")["here"])

    wait_until(lambda: images() and images()[0]["n"] >= 3, lambda: b.ask("replicator", "set.list"))
    image = images()[0]
    names = [f"log.shop-{image['n']}", f"data.shop-{image['n']}"]
    assert [name for group in image["groups"] for name in group["snapshots"].values()] == names
    seen = judge((b, names[0]), (b, names[1]))
    b.pause("target")  # its copies fall behind: they are in the middle of a cycle
    before = load.committed
    wait_until(lambda: load.committed > before + 50, "no load")
    b.resume("target")
    kill_together(a, b)
    load.stop()
    b.start()
    found = images()
    assert 1 <= len(found) <= 3 and found[0]["n"] >= image["n"]
    newest = judge((b, f"log.shop-{found[0]['n']}"), (b, f"data.shop-{found[0]['n']}"))
    assert newest >= seen
    assert "no image 99" in b.farstripe("set", "takeover", "shop", "--image", 99, "--yes", expect=5)
    assert f"from image {found[0]['n']}" in b.farstripe("set", "takeover", "shop", "--cycle", "--yes")
    assert judge((b, "log"), (b, "data")) == newest
    assert b.group("log")["role"] == b.group("data")["role"] == "primary"
    Database(b.writer("log"), b.writer("data")).stop()
    b.farstripe("set", "cycle", "shop", "--off")
    wait_until(lambda: "shop-" not in b.farstripe("volume", "list"), "images stay", 20)


def test_a_set_that_orders_by_counter_numbers_all_records_once_and_is_taken_over_at_one_instant(
    two: tuple[Node, Node],
) -> None:
    a, b = two
    a.farstripe("set", "delete", "shop", "--yes")
    a.farstripe("set", "create", "count", "log", "data", "--order", "counter")
    wait_until(lambda: standing(b, "count") == "whole", lambda: b.ask("replicator", "set.list"))
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 100, "no load")
    load.stop()
    logs = [a.json("group", "journal", "log", volume, "--limit", 10000)["records"] for volume in ("log", "data")]
    assert all(one["number"] for log in logs for one in log if one["kind"] == "write")
    assert all(one["time_ns"] > 10**18 for log in logs for one in log), "and the time of day beside it"
    numbers = [[one["number"] for one in log if one["number"]] for log in logs]
    begin, end = max(each[0] for each in numbers), min(each[-1] for each in numbers)  # what both journals still hold
    row = sorted(number for each in numbers for number in each if begin <= number <= end)
    assert row == list(range(begin, end + 1)), "each number once"
    a.kill("target")  # numbers that were drawn may be lost
    a.start()
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 200, "no load")
    written = {name: a.ask("target", "group.status", group=name)["pos"] for name in ("log", "data")}
    wait_until(
        lambda: all(b.ask("target", "group.status", group=name)["applied"] >= written[name] for name in written),
        "a gap holds the copies",
    )
    kill_together(a)
    load.stop()
    b.farstripe("set", "takeover", "count", "--yes")
    assert 0 < judge((b, "log"), (b, "data")) <= load.committed


def test_markers_over_four_nodes_under_load_are_one_instant_and_so_is_a_takeover_at_one(
    four: tuple[Node, Node, Node, Node],
) -> None:
    a, b, c, d = four
    load = Database(a.writer("log"), c.writer("data"))
    wait_until(lambda: load.committed > 50, "no load")
    seen = 0
    for n in range(5):
        a.farstripe("marker", "create", f"m{n}", "--groups", "log,data@C")
        a.farstripe("marker", "wait", f"m{n}")
        done = judge((b, f"log.m{n}"), (d, f"data.m{n}"))
        assert done > seen
        seen = done
    assert load.longest_s < 2.5, "hosts were held longer than the deadline"
    kill_together(a, c)
    load.stop()
    b.farstripe("marker", "takeover", "--groups", "log,data@D", "--yes")
    d.farstripe("marker", "takeover", "m4", "--groups", "data,log@B", "--yes")
    assert judge((b, "log"), (d, "data")) == seen
    Database(b.writer("log"), d.writer("data")).stop()


def test_a_coordinator_that_dies_frees_the_hosts_within_the_deadline(two: tuple[Node, Node]) -> None:
    a, _ = two
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 50, "no load")
    began = time.monotonic()
    a.ask("target", "marker.hold", n=1 << 40, groups=["log", "data"], lease_s=2.0)  # and nothing more comes
    assert a.group("log")["parked"] == a.group("data")["parked"] == "marker"
    before = load.committed
    wait_until(lambda: load.committed > before + 1, "hosts do not go on", 20)
    assert 1.5 < time.monotonic() - began < 5.0
    a.farstripe("marker", "create", "next", "--groups", "log,data")
    load.stop()


def test_hosts_hold_their_own_writes_and_a_marker_is_made_only_if_all_do(
    four: tuple[Node, Node, Node, Node], tmp_path: Path
) -> None:
    a, b, c, d = four
    load = Database(a.writer("log"), c.writer("data"), tmp_path / "hold")
    wait_until(lambda: load.committed > 50, "no load")
    groups = ("--groups", "log,data@C", "--hold", "hosts")
    assert "no host is linked" in a.farstripe("marker", "create", "m", *groups, expect=4)
    a.farstripe("marker", "host", "add", "db", "--run", HOLDER.format(tmp_path))
    a.farstripe("marker", "host", "test", "db")
    a.farstripe("marker", "create", "m", *groups, "--deadline", 10)
    a.farstripe("marker", "wait", "m")
    seen = judge((b, "log.m"), (d, "data.m"))
    assert newest(b, "log.m") == seen, "the host had stopped between two transactions"
    wait_until(lambda: load.committed > seen + 20, "the host does not go on")
    a.farstripe("marker", "host", "remove", "db")
    a.farstripe("marker", "host", "add", "other", "--run", "echo held; read word; echo released")
    said = a.farstripe("marker", "create", "n", *groups, expect=4)
    assert "was written to while its hosts were to hold" in said
    assert list(a.json("marker", "list")["hosts"]) == ["other"]
    load.stop()
    assert "log.n" not in b.farstripe("volume", "list")


def _states(node: Node) -> dict[str, Any]:
    """The markers of a coordinator that are neither made nor settled."""
    try:
        return {one["name"]: one["state"] for one in node.ask("replicator", "marker.list")["markers"]}
    except FarstripeError:
        return {"?": "?"}


def test_copies_stand_at_a_suspending_marker_while_writes_go_on(two: tuple[Node, Node]) -> None:
    a, b = two
    load = Database(a.writer("log"), a.writer("data"), pause_s=0.01)
    wait_until(lambda: load.committed > 50, "no load")
    a.farstripe("marker", "create", "night", "--groups", "log,data", "--suspend")
    a.farstripe("marker", "wait", "night")
    first = judge((b, "log"), (b, "data"))
    time.sleep(0.5)
    assert judge((b, "log"), (b, "data")) == first == judge((b, "log.night"), (b, "data.night"))
    load.stop()
    assert load.committed > first
    for node, where in ((a, "the copy on B"), (b, "the copy here")):
        said = node.farstripe("pair", "wait", "log", "--state", "equal", "--timeout", "30", expect=4)
        assert f"{where} stands at a marker" in said and "farstripe marker resume --groups log" in said
    a.farstripe("marker", "resume", "night")
    for volume in ("log", "data"):
        a.farstripe("pair", "wait", volume, "--state", "equal", "--timeout", "30")
    assert judge((b, "log"), (b, "data")) == load.committed
    a.farstripe("marker", "delete", "night", "--yes")
    assert "log.night" not in b.farstripe("volume", "list")


def test_a_copy_that_stands_is_not_changed_when_the_journal_no_longer_reaches_back(two: tuple[Node, Node]) -> None:
    a, b = two
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 50, "no load")
    a.farstripe("marker", "create", "night", "--groups", "log,data", "--suspend")
    a.farstripe("marker", "wait", "night")
    first = judge((b, "log"), (b, "data"))
    wait_until(lambda: a.group("log")["mode"] == "bitmap", lambda: a.group("log"), 60)
    load.stop()
    for node in two:
        wait_until(lambda node=node: word_of(node, "log") == "STANDS", lambda node=node: word_of(node, "log"), 60)
    time.sleep(7)  # longer than the nodes rest before they compare again
    assert judge((b, "log"), (b, "data")) == first
    said = a.farstripe("pair", "wait", "log", "--state", "equal", "--timeout", "30", expect=4)
    assert "stands at a marker" in said and "farstripe marker resume --groups log" in said
    a.farstripe("marker", "resume", "night")
    for volume in ("log", "data"):
        a.farstripe("pair", "wait", volume, "--state", "equal", "--timeout", "60")
    assert judge((b, "log"), (b, "data")) == load.committed


def word_of(node: Node, group: str) -> str:
    return str(node.ask("replicator", "pair.show", group=group)["word"])


def test_a_marker_made_by_the_path_of_the_data_also_while_writes_are_held(two: tuple[Node, Node]) -> None:
    a, b = two
    door = a.connect(".marker")
    load = Database(a.writer("log"), a.writer("data"))
    wait_until(lambda: load.committed > 50, "no load")
    a.ask("target", "group.hold", group="log", deadline_s=20)
    with pytest.raises(nbd.Error):  # it is answered, though writes of the group wait, and somebody else holds them
        door.pwrite(b"early log,data\n", 0)
    assert "held" in json.loads(bytes(door.pread(4096, 0)).rstrip(b"\0"))["error"]["message"]
    a.ask("target", "group.release", group="log")
    door.pwrite(b"door log,data 5\n".ljust(4096, b"\0"), 0)
    assert json.loads(bytes(door.pread(4096, 0)).rstrip(b"\0"))["ok"]
    a.farstripe("marker", "wait", "door")
    load.stop()
    assert judge((b, "log.door"), (b, "data.door")) > 50
    with pytest.raises(nbd.Error):
        door.pwrite(b"door log,data\n".ljust(4096, b"\0"), 0)
    assert "door" in json.loads(bytes(door.pread(4096, 0)).rstrip(b"\0"))["error"]["message"]
    assert ".marker" not in a.farstripe("volume", "list")


def test_a_marker_made_by_the_node_of_a_copy_reaches_that_copy_too(two: tuple[Node, Node]) -> None:
    _a, b = two
    b.farstripe("marker", "create", "m", "--groups", "log@A,data@A", "--suspend")
    b.farstripe("marker", "wait", "m")
    copies = b.json("marker", "show", "m")["copies"]
    assert {(one["node"], one["group"]) for one in copies} == {(x, y) for x in "AB" for y in ("log", "data")}
    assert "STANDS AT A MARKER" in b.farstripe("status")
    assert "marker resume --groups log" in b.farstripe("explain", "log")
    b.farstripe("marker", "resume", "m")
    assert "STANDS" not in b.farstripe("status")
    b.farstripe("marker", "delete", "m", "--yes")
    assert "log.m" not in b.farstripe("volume", "list")


def test_a_schedule_goes_on_after_a_restart_and_keeps_what_it_is_told(two: tuple[Node, Node]) -> None:
    a, b = two
    a.farstripe("marker", "schedule", "often", "--every", "1", "--keep", "2", "--groups", "log,data")
    wait_until(lambda: len(_states(a)) >= 2, "no markers")
    a.kill("replicator")
    a.start()
    known = set(_states(a))
    wait_until(lambda: len(set(_states(a)) - known) >= 3, "the schedule was forgotten", 40)
    wait_until(lambda: b.farstripe("volume", "list").count("log.often") <= 4, "old images stay", 60)
    a.farstripe("marker", "unschedule", "often")


def test_bad_input_and_nodes_that_are_away_change_nothing(two: tuple[Node, Node]) -> None:
    a, b = two
    assert "no group" in a.farstripe("marker", "create", "m", "--groups", "log,nothing", expect=5)
    assert "no peer" in a.farstripe("marker", "create", "m", "--groups", "log@nowhere", expect=5)
    for twice in ("log,log", "log,log@B"):  # B has a copy, and passes on to A
        assert "named twice" in a.farstripe("marker", "create", "m", "--groups", twice, expect=3)
    assert "no group" in a.farstripe("marker", "schedule", "s", "--every", 1, "--groups", "log,nothing", expect=5)
    assert a.json("marker", "list")["schedules"] == {}
    a.farstripe("marker", "create", "m", "--groups", "log")
    assert "already" in a.farstripe("marker", "create", "m", "--groups", "log", expect=6)
    assert "hook" in a.farstripe("marker", "create", "h", "--groups", "log", "--before", "exit 3", expect=4)
    assert "cannot be compared" in a.farstripe("set", "create", "s", "log", "data@B", expect=4)
    assert "group log is in set" in a.farstripe("set", "create", "s", "log", "data", expect=6)
    assert "secondary here" in b.farstripe("set", "create", "s", "log", "data", expect=4)
    b.kill()
    assert "B" in a.farstripe("marker", "create", "far", "--groups", "log,data@B", expect=8)
    assert a.group("log")["parked"] == ""
    a.writer("log").pwrite(b"z" * BLOCK, 0)
