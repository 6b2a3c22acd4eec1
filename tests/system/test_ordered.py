"""Real nodes: acceptance of ordered replication that needs a clock that steps, a cut link, a cascade, or a coordinator
that dies at a chosen moment. Which test shows which row is in docs/CHECKLIST.md.

The load is that of testing/database.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from replicator.daemon.markerschedule import MOST_AHEAD
from tests.testing.database import (
    BLOCK,
    HOLDER,
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
from tests.testing.faultproxy import FaultProxy
from tests.testing.nodes import Node, kill_together, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

HOUR_S = 3600.0
NUMBER = struct.Struct("<Q")
"""Of a transaction, at the beginning of its blocks."""
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
        assert judge((b, "log"), (b, "data")) > 0
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
    assert time.monotonic() - held < LEASE_S + 3.0
    wait_until(lambda: not parked(c, "data"), "C still holds", LEASE_S + 3.0)
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
    assert load.longest_s < LEASE_S + 1.5, "hosts were held longer than the deadline"


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
    assert load.longest_s < LEASE_S + 1.5


def test_a_schedule_whose_copies_are_silent_waits_before_its_images_fill_them_and_goes_on_later(
    shared: tuple[Node, Node, Node], load: Database
) -> None:
    a, b, _ = shared
    a.farstripe("marker", "schedule", "quick", "--every", "0.5", "--keep", "1", "--groups", "log,data@C")

    def made() -> list[int]:
        return [one["n"] for one in a.ask("replicator", "marker.list")["markers"] if one["schedule"] == "quick"]

    wait_until(lambda: len(made()) >= 1, "no markers", 20)
    b.pause("replicator")
    wait_until(lambda: "it waits" in a.farstripe("marker", "list"), "it does not wait", 60)
    goes_on(load)
    stood = made()
    time.sleep(1.5)
    assert made() == stood and len(stood) == 1 + MOST_AHEAD
    b.resume("replicator")
    wait_until(lambda: made() and min(made()) > max(stood), "older images stay, or no new ones are made", 90)
    a.farstripe("marker", "unschedule", "quick")


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


class Follower:
    """A host that only reads the log, and writes every transaction that it has seen there to the data."""

    def __init__(self, log: nbd.NBD, data: nbd.NBD) -> None:
        self._log, self._data = log, data
        self.seen = 0
        self.asked_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(nbd.Error):
            while True:
                self.asked_at = time.monotonic()
                raw = self._log.pread(SLOTS * BLOCK, 0)
                top = max(NUMBER.unpack_from(raw, at * BLOCK)[0] for at in range(SLOTS))
                for number in range(self.seen + 1, top + 1):
                    self._data.pwrite(NUMBER.pack(number).ljust(BLOCK, b"\0"), number % SLOTS * BLOCK)
                    self.seen = number
                time.sleep(0.002)

    def join(self) -> None:
        self._thread.join(timeout=30)


@pytest.fixture
def slow_line() -> Iterator[tuple[Node, Node, Node, Node, list[FaultProxy]]]:
    """C is primary of log, which A copies synchronously over a line of these proxies; D of data, which B copies."""
    ports = {name: free_port() for name in "ABCD"}
    with contextlib.ExitStack() as stack:
        a, b, c, d = (with_pool(stack.enter_context(Node(name, replication_port=ports[name]))) for name in "ABCD")
        proxies = [stack.enter_context(FaultProxy(ports[name])) for name in "AC"]
        join(c, a)
        join(d, b)
        for node, proxy in ((c, proxies[0]), (a, proxies[1])):
            node.kill("replicator")
            path = next((node.state / "peers").glob("*.json"))
            path.write_text(json.dumps(json.loads(path.read_text()) | {"port": proxy.port}))
            node.start()
        for source, volume, middle in ((c, "log", a), (d, "data", b)):
            replicate(source, volume, middle, "--mode", "sync", "--on-loss", "stall", "--loss-timeout", 60)
        yield a, b, c, d, proxies


@pytest.mark.timeout(600)
def test_what_a_host_has_only_read_of_one_source_is_there_when_what_it_wrote_to_another_is(
    slow_line: tuple[Node, Node, Node, Node, list[FaultProxy]],
) -> None:
    a, b, c, d, proxies = slow_line
    log, answered = c.writer("log"), [0]

    def write() -> None:
        with contextlib.suppress(nbd.Error):
            for number in range(1, 1 << 40):
                log.pwrite(NUMBER.pack(number).ljust(BLOCK, b"\0"), number % SLOTS * BLOCK)
                answered[0] = number

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    follower = Follower(c.connect("log"), d.writer("data"))
    wait_until(lambda: follower.seen > 100, "nothing follows", 30)
    for proxy in proxies:
        proxy.delay_s = 0.1
    before = follower.seen
    wait_until(lambda: follower.seen > before + 5, "nothing follows over a slow line", 30)
    to_a, to_c = proxies  # records stand still; answers to those that have passed do not
    to_a.stall("up")
    to_c.stall("down")
    stalled_at = time.monotonic()
    wait_until(lambda: c.group("log")["pos"] > a.group("log")["pos"], "no write is on its way", 10)
    time.sleep(1.0)  # for the follower to see it, if it can
    assert stalled_at < follower.asked_at or time.monotonic() - follower.asked_at > 0.9, "it has not even asked"
    kill_together(c, d)
    for proxy in proxies:
        proxy.close()
    writer.join(30)
    follower.join()
    for node, volume in ((a, "log"), (b, "data")):
        wait_until(lambda at=(node, volume): _all_applied(*at), f"{volume} is not applied", 20)  # type: ignore[misc]
    announced, done = newest(a, "log"), newest(b, "data")
    assert done <= announced, f"{done} was written by a host that had read it, and the log ends at {announced}"
    assert announced >= answered[0] and done >= follower.seen, "an answered write is missing"
    a.farstripe("takeover", "log", "--yes")
    b.farstripe("takeover", "data", "--yes")
    last = newest(a, "log"), newest(b, "data")  # what was still under way has come by now, too
    assert announced <= last[0] and done <= last[1] <= last[0]


def _all_applied(node: Node, volume: str) -> bool:
    group = node.group(volume)
    return bool(group) and group["applied"] == group["pos"]


# -- F1-30: a coordinator that has no line to the primaries


@pytest.fixture(scope="module")
def apart() -> Iterator[dict[str, Node]]:
    """C is primary of log, D of data. log goes C -> A -> B -> E, data D -> B -> A -> E; the first hop is synchronous. X
    has no copy and is a peer of A alone. C also has the group more, copied to A. Only nodes with a line between them
    here know each other."""
    with contextlib.ExitStack() as stack:
        node = {name: with_pool(stack.enter_context(Node(name, replication_port=free_port()))) for name in "ABCDEX"}
        for one, other in ("CA", "DB", "AB", "BE", "AE", "XA"):
            join(node[one], node[other])
        for source, volume, way in ((node["C"], "log", "ABE"), (node["D"], "data", "BAE")):
            replicate(source, volume, node[way[0]], "--mode", "sync")
            for middle, end in itertools.pairwise(way):
                node[middle].farstripe("pair", "create", volume, "--peer", end, "--mode", "async")
                node[middle].farstripe("pair", "wait", volume, end, "--state", "ok")
        replicate(node["C"], "more", node["A"])
        yield node


@pytest.fixture
def database(apart: dict[str, Node]) -> Iterator[Database]:
    """A load over both groups, which must be able to go on at the end."""
    load = Database(apart["C"].writer("log"), apart["D"].writer("data"))
    goes_on(load)
    yield load
    goes_on(load, timeout_s=20.0)
    load.stop()


FROM = {"C": "log,data@A", "A": "log,data", "B": "log,data", "E": "log,data", "X": "log@A,data@A"}
"""Coordinators, and how each names the groups: a source, both relays, the far end, a node that is a relay's peer."""


def one_cut(apart: dict[str, Node], marker: str) -> None:
    """Raise unless the marker's images are one cut, on whatever nodes they are."""
    images = [(apart[name], f"{volume}.{marker}") for name in "ABE" for volume in ("log", "data")]
    for log in images[::2]:
        for data in images[1::2]:
            assert judge(log, data) > 0


def test_a_coordinator_anywhere_makes_markers_of_groups_whose_primaries_it_cannot_reach(
    apart: dict[str, Node], database: Database
) -> None:
    for name, words in FROM.items():
        node = apart[name]
        node.farstripe("marker", "create", f"m{name}", "--groups", words, "--deadline", 10, "--received")
        node.farstripe("marker", "wait", f"m{name}")
        one_cut(apart, f"m{name}")
        shown = node.json("marker", "show", f"m{name}")["copies"]
        assert sorted((one["node"], one["group"]) for one in shown) == sorted(
            (at, group)
            for at, group in [*((at, g) for at in "ABE" for g in ("log", "data")), ("C", "log"), ("D", "data")]
        )
    apart["E"].connect(".marker").pwrite(b"path log,data 10 received\n".ljust(BLOCK, b"\0"), 0)
    apart["E"].farstripe("marker", "wait", "path")
    one_cut(apart, "path")
    apart["X"].farstripe("marker", "create", "two", "--groups", "log@A,more@A", "--deadline", 10)
    apart["X"].farstripe("marker", "wait", "two")
    books = apart["C"].ask("target", "marker.list")
    two = [(book["group"], one["n"]) for book in books for one in book["entries"] if one["name"] == "two"]
    assert [group for group, _ in sorted(two)] == ["log", "more"] and len({n for _, n in two}) == 1, "not once a group"
    apart["X"].farstripe("marker", "delete", "mX", "--yes")
    apart["E"].farstripe("marker", "delete", "mE", "--yes")
    for name in "ABE":
        listed = apart[name].farstripe("volume", "list")
        assert ".mX" not in listed and ".mE" not in listed and "log.mB" in listed


def test_hosts_that_hold_themselves_do_so_for_a_coordinator_beside_the_tree(
    apart: dict[str, Node], tmp_path: Path
) -> None:
    x = apart["X"]
    load = Database(apart["C"].writer("log"), apart["D"].writer("data"), tmp_path / "hold")
    goes_on(load)
    groups = ("--groups", "log@A,data@A", "--hold", "hosts", "--deadline", 15)
    x.farstripe("marker", "host", "add", "db", "--groups", "log@A,data@A", "--run", HOLDER.format(tmp_path))
    x.farstripe("marker", "create", "hosts", *groups)
    x.farstripe("marker", "wait", "hosts")
    one_cut(apart, "hosts")
    x.farstripe("marker", "host", "remove", "db")
    x.farstripe("marker", "host", "add", "db", "--run", "echo held; read word; echo released")
    assert "was written to while its hosts were to hold" in x.farstripe("marker", "create", "n", *groups, expect=4)
    goes_on(load)
    load.stop()


def test_what_stands_in_the_way_of_a_marker_is_named_with_a_way_out(apart: dict[str, Node], database: Database) -> None:
    b, e, x = apart["B"], apart["E"], apart["X"]
    assert "on A: no group 'nix'" in x.farstripe("marker", "create", "m", "--groups", "nix@A", expect=5)
    assert "on X: no group 'log'" in x.farstripe("marker", "create", "m", "--groups", "log", expect=5)
    assert "write log without @C" in e.farstripe("marker", "create", "m", "--groups", "log@C", expect=5)
    b.kill("replicator")
    said = x.farstripe("marker", "create", "m", "--groups", "log@A,data@A", expect=8)
    assert "A gets group data from B, which cannot be asked: B cannot be reached" in said and "firewall" in said
    b.start()
    b.kill("target")
    said = x.farstripe("marker", "create", "m", "--groups", "log@A,data@A", expect=7)
    assert "on B: " in said
    b.start()
    wait_until(lambda: apart["D"].group("data")["sync_on"], "B is not back", 60)
    x.farstripe("marker", "create", "m", "--groups", "log@A,data@A", "--deadline", 10)
    x.farstripe("marker", "wait", "m")
    one_cut(apart, "m")
    apart["C"].farstripe("marker", "create", "r", "--groups", "log")
    apart["C"].farstripe("marker", "wait", "r", "--received", "--timeout", 20)
    apart["C"].farstripe("pair", "split", "log")
    wait_until(lambda: not apart["C"].group("log")["link_up"], "not split", 20)
    apart["C"].farstripe("marker", "create", "s", "--groups", "log")
    said = apart["C"].farstripe("marker", "wait", "s", "--received", "--timeout", 1, expect=11)
    assert "has not been received everywhere after 1 s: A (group log)" in said
    apart["C"].farstripe("pair", "resync", "log")
    apart["C"].farstripe("marker", "wait", "s", "--received", "--timeout", 60)


def test_a_relay_killed_between_hold_and_mark_frees_the_hosts_in_time_and_leaves_no_image(
    apart: dict[str, Node], database: Database
) -> None:
    b, c, d, x = (apart[name] for name in "BCDX")
    silence = f"kill -STOP {c.pid('replicator')}"  # so that its hold comes late, while D holds already by way of B
    lease_s = 8.0
    try:
        pending = x.start_farstripe(
            "marker", "create", "dead", "--groups", "log@A,data@A", "--deadline", lease_s, "--before", silence
        )
        wait_until(lambda: parked(d, "data"), "D does not hold", 20)
        held = time.monotonic()
        b.kill("replicator")
    finally:
        c.resume("replicator")
    wait_until(lambda: not parked(d, "data") and not parked(c, "log"), "somebody still holds", 20)
    assert time.monotonic() - held < lease_s + 1.0
    assert pending.wait(30) != 0
    b.start()
    goes_on(database, timeout_s=30.0)
    wait_until(lambda: settled(x, "dead"), "it is not settled", 60)
    assert all(
        one["name"] != "dead" for one in x.ask("replicator", "marker.offers", groups=["log@A", "data@A"])["offers"]
    )
    for name in "ABE":
        assert ".dead" not in apart[name].farstripe("volume", "list")
    x.farstripe("marker", "create", "later", "--groups", "log@A,data@A", "--deadline", 10)
    x.farstripe("marker", "wait", "later")
    one_cut(apart, "later")


def settled(node: Node, marker: str) -> bool:
    """Whether nothing is owed any more for a marker that was not made."""
    return all(one["name"] != marker for one in node.json("marker", "list")["markers"])


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
