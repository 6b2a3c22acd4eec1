"""Real nodes: acceptance of ordered replication that needs a clock that steps, a cut link, a cascade, or a coordinator
that dies at a chosen moment. Which test shows which row is in docs/CHECKLIST.md.

The load is that of testing/database.py.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.testing.database import (
    BLOCK,
    SLOTS,
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

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

HOUR_S = 3600.0
LEASE_S = 2.0


def stamps(node: Node, volume: str) -> list[int]:
    """The write times of the newest records that the journal of a volume's group holds, in their order."""
    since = max(0, int(node.group(volume)["pos"]) - 900)
    listed = node.json("group", "journal", "log", volume, "--since", since, "--limit", 1000)["records"]
    return [int(one["time_ns"]) for one in listed]


def goes_on(load: Database, writes: int = 50, timeout_s: float = 10.0) -> None:
    """Raise unless the load commits so many transactions more in time."""
    before = load.committed
    wait_until(lambda: load.committed >= before + writes, "the load stands still", timeout_s)


# -- F1-14: the primary's clock


def test_a_clock_that_steps_by_an_hour_neither_stalls_writes_nor_spoils_their_order() -> None:
    with Node("A", replication_port=free_port()) as a, Node("B", replication_port=free_port()) as b:
        with_pool(a.own_clock())
        with_pool(b)
        join(a, b)
        for volume in ("log", "data"):
            replicate(a, volume, b)
        a.farstripe("set", "create", "shop", "log", "data")
        wait_until(lambda: standing(b) == "whole", lambda: b.ask("replicator", "set.list"))
        load = Database(a.writer("log"), a.writer("data"))
        goes_on(load)
        for ahead_s in (HOUR_S, -HOUR_S):
            a.step_clock(ahead_s)
            goes_on(load)
            a.kill("target")
            load.stop()
            a.start()
            load = Database(a.writer("log"), a.writer("data"))
            goes_on(load)
        times = {volume: stamps(a, volume) for volume in ("log", "data")}
        a.kill()
        load.stop()
        for seen in times.values():
            assert seen == sorted(set(seen)), "write times fell"
        assert times["log"][-1] > (time.time() + HOUR_S / 2) * 1e9, "they did not go on above the hour that was ahead"
        b.farstripe("set", "takeover", "shop", "--yes")
        assert 0 < judge((b, "log"), (b, "data"))
        after = Database(b.writer("log"), b.writer("data"))
        goes_on(after)
        after.stop()
        assert stamps(b, "log")[-1] > times["log"][-1], "the successor's times fell"


# -- F1-02: a write is done when the primary has it


def latency_s(node: Node, volume: str, writes: int = 200) -> float:
    """The median of writes of 4 KiB, one at a time."""
    handle, took = node.writer(volume), []
    for n in range(writes):
        began = time.monotonic()
        handle.pwrite(b"x" * BLOCK, (SLOTS + n % SLOTS) * BLOCK)  # the load has the first SLOTS
        took.append(time.monotonic() - began)
    assert max(took) < 1.0, "a write waited"
    return statistics.median(took)


def test_a_write_waits_neither_for_a_slow_link_nor_for_a_cut_one_and_survives_a_kill() -> None:
    with Node("A", replication_port=free_port()) as a, Node("B", replication_port=free_port()) as b:
        with_pool(a)
        with_pool(b)
        join(a, b)
        replicate(a, "data", b, "--mode", "async")
        a.farstripe("volume", "create", "alone", "--size", 1 << 20)
        alone = latency_s(a, "alone")
        a.farstripe("pair", "set", "data", "--limit", "128K")
        slow = latency_s(a, "data")
        b.pause("replicator")
        silent = latency_s(a, "data")
        b.kill()
        cut = latency_s(a, "data")
        for name, took in (("slow", slow), ("silent", silent), ("cut", cut)):
            assert took < 4 * alone + 0.002, f"link {name}: {took * 1e3:.2f} ms, unpaired {alone * 1e3:.2f} ms"
        load = Database(a.writer("data"), a.writer("data"))
        goes_on(load)
        a.kill("target")
        load.stop()
        a.start()
        assert newest(a, "data") >= load.committed


# -- F1-26, F1-28, F1-32: a marker's coordinator anywhere, which may die


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Node, Node, Node]]:
    """A is primary of log, C of data; B has both copies."""
    with contextlib.ExitStack() as stack:
        a, b, c = (with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "ABC")
        join(a, b)
        join(c, b)
        join(a, c)
        replicate(a, "log", b)
        replicate(c, "data", b)
        yield a, b, c


@pytest.fixture
def load(shared: tuple[Node, Node, Node]) -> Iterator[Database]:
    """A load over both groups, which must be able to go on at the end."""
    a, _, c = shared
    load = Database(a.writer("log"), c.writer("data"))
    goes_on(load)
    yield load
    goes_on(load)
    load.stop()


def parked(node: Node, volume: str) -> bool:
    """Whether a marker holds the writes of a volume's group."""
    return bool(node.group(volume)["parked"] == "marker")


def test_a_coordinator_killed_between_hold_and_mark_frees_hosts_everywhere_and_leaves_no_image(
    shared: tuple[Node, Node, Node], load: Database
) -> None:
    a, b, c = shared
    silence = f"kill -STOP {c.pid('replicator')}"  # so the HOLD for C is not answered, and comes late
    try:
        pending = b.start_farstripe(
            "marker", "create", "dead", "--groups", "log@A,data@C", "--deadline", LEASE_S, "--before", silence
        )
        wait_until(lambda: parked(a, "log"), "A does not hold", 20)
        held = time.monotonic()
        b.kill("replicator")
        assert parked(a, "log"), "it was not killed in between"
    finally:
        c.resume("replicator")
    wait_until(lambda: not parked(a, "log"), "A still holds", 20)
    assert time.monotonic() - held < LEASE_S + 1.0
    wait_until(lambda: not parked(c, "data"), "C still holds", LEASE_S + 1.0)
    goes_on(load)
    assert pending.wait(30) != 0
    b.start()
    wait_until(lambda: a.group("log")["link_up"] and c.group("data")["link_up"], "B is not back", 30)
    dead = next((one for one in b.json("marker", "list")["markers"] if one["name"] == "dead"), {"state": "dead"})
    assert dead["state"] == "dead"
    assert ".dead" not in b.farstripe("volume", "list")
    b.farstripe("marker", "create", "later", "--groups", "log@A,data@C")
    b.farstripe("marker", "wait", "later")
    assert judge((b, "log.later"), (b, "data.later")) > 0


def test_any_node_makes_markers_by_command_and_by_the_path_of_the_data(
    shared: tuple[Node, Node, Node], load: Database
) -> None:
    a, b, c = shared
    for n, node in enumerate((a, b, c)):
        node.connect(".marker").pwrite(f"path{n} log@A,data@C 5\n".encode().ljust(BLOCK, b"\0"), 0)
        node.farstripe("marker", "create", f"word{n}", "--groups", "log@A,data@C")
        for name in (f"path{n}", f"word{n}"):
            node.farstripe("marker", "wait", name)
            assert judge((b, f"log.{name}"), (b, f"data.{name}")) > 0
    assert load.longest_s < LEASE_S + 0.5, "hosts were held longer than the deadline"


def test_a_cycle_of_markers_goes_on_under_load_and_is_told_by_polling(
    shared: tuple[Node, Node, Node], load: Database
) -> None:
    """No copy reports anything to a coordinator: who wants to know asks. While the copies' node is silent, nobody can
    be asked, and markers are made all the same."""
    a, b, _ = shared
    a.farstripe("marker", "schedule", "tick", "--every", "1", "--keep", "50", "--groups", "log,data@C")

    def made() -> list[str]:
        listed = a.ask("replicator", "marker.list")["markers"]
        return [one["name"] for one in sorted(listed, key=lambda one: one["n"]) if one["name"].startswith("tick-")]

    wait_until(lambda: len(made()) >= 2, "no markers", 20)
    b.pause("replicator")
    before = len(made())
    wait_until(lambda: len(made()) >= before + 2, "the cycle stands still with its copies silent", 20)
    b.resume("replicator")
    wait_until(lambda: len(made()) >= before + 3, "the cycle stands still", 20)
    a.farstripe("marker", "unschedule", "tick")
    at = 0
    for name in made()[: before + 3]:
        wait_until(
            lambda name=name: a.ask("replicator", "marker.show", name=name)["complete"], f"{name} is missing", 20
        )  # type: ignore[misc]
        done = judge((b, f"log.{name}"), (b, f"data.{name}"))
        assert done >= at
        at = done
    assert load.longest_s < LEASE_S + 0.5


# -- F1-19, F1-30: a cascade with several sources


@pytest.fixture(scope="module")
def crossed() -> Iterator[tuple[Node, Node, Node, Node]]:
    """C is primary of log, D of data. log goes C -> A -> B, data D -> B -> A; the first hop is synchronous. So A and B
    are fed by a source each, and have everything."""
    with contextlib.ExitStack() as stack:
        a, b, c, d = (with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "ABCD")
        for one, other in ((c, a), (d, b), (a, b), (c, d), (c, b), (d, a)):
            join(one, other)
        for source, volume, middle, end in ((c, "log", a, b), (d, "data", b, a)):
            replicate(source, volume, middle, "--mode", "sync")
            middle.farstripe("pair", "create", volume, "--peer", end.name, "--mode", "async")
            middle.farstripe("pair", "wait", volume, end.name, "--state", "ok")
        yield a, b, c, d


def test_a_cascade_with_two_sources_has_one_image_a_marker_on_every_copy_and_survives_the_sources(
    crossed: tuple[Node, Node, Node, Node],
) -> None:
    a, b, c, d = crossed
    load = Database(c.writer("log"), d.writer("data"))
    goes_on(load)
    reader = c.connect("log")  # readers see nothing that is torn, and hold nobody up
    last = 0
    for n, coordinator in enumerate((c, d, a, b)):
        coordinator.farstripe("marker", "create", f"m{n}", "--groups", "log@C,data@D")
        coordinator.farstripe("marker", "wait", f"m{n}")
        for log in (a, b):
            for data in (a, b):
                last = judge((log, f"log.m{n}"), (data, f"data.m{n}"))
        assert reader.pread(BLOCK, 0)
    kill_together(c, d)
    load.stop()
    for node, volume in ((a, "log"), (b, "data")):
        wait_until(lambda at=(node, volume): newest(*at) >= load.committed, "an answered write is missing", 10)  # type: ignore[misc]
    kill_together(b)
    a.farstripe("marker", "takeover", "--groups", "log,data", "--yes")
    assert judge((a, "log"), (a, "data")) == last
    Database(a.writer("log"), a.writer("data")).stop()


# -- F1-03: a host that states its time


def test_later_writes_of_all_volumes_have_at_least_the_time_that_a_host_stated(
    shared: tuple[Node, Node, Node],
) -> None:
    a, _, _ = shared
    handle = a.writer("log")
    stated = time.time_ns() + 60 * 10**9
    for time_ns in (stated, stated - 10 * 10**9):
        a.ask("target", "group.host_time", group="log", time_ns=time_ns)
        handle.pwrite(b"h" * BLOCK, SLOTS * BLOCK)
        assert stamps(a, "log")[-1] >= stated, "a time fell below one that was stated before"
    assert a.group("log")["host_time_ns"] == stated - 10 * 10**9, "the host's own time is not shown"
    seen = stamps(a, "log")
    assert seen == sorted(set(seen))
