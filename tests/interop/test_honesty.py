"""What status says while a copy cannot take records in, while a peer is slow, and in a tree: never more than is
true."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import nbd
import pytest

from tests.testing.needs import needs
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, Pair, wait_until
from tests.testing.trees import Tree, running_nodes

MIB = 1 << 20
LONG_S = 40.0
"""Longer than a kernel waits for a peer that reads nothing, unless it is told to."""
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def pair() -> Iterator[Pair]:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, Node("A", net, replication_port=10810) as a, Node("B", net, replication_port=10820) as b:
        yield Pair.create(a.init(), b.init(), {"data": 64 * MIB}, journal="16M")


def rpo(node: Node) -> dict[str, Any]:
    return dict(node.json("status", GROUP)["groups"][0]["edges"][0]["rpo"])


def kinds(node: Node) -> list[str]:
    return [event["kind"] for event in node.ask("replicator", "events.list")]


def conditions(node: Node) -> list[str]:
    return [one["label"] for one in node.json("status", GROUP)["groups"][0]["edges"][0]["conditions"]]


def target_kinds(node: Node) -> list[str]:
    return [event["kind"] for event in node.json("events")]


def test_a_copy_that_stands_at_a_marker_with_a_full_journal_does_not_claim_to_have_everything(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    a.farstripe("group", "journal", "add", GROUP, a.dir / "more", "--size", "64M")
    a.farstripe("marker", "create", "here", "--groups", GROUP, "--suspend")
    wait_until(lambda: b.json("status", GROUP)["groups"][0]["stands_at"], "it stands", 20)
    disconnected = kinds(a).count("pair.disconnected")
    handle = a.writer("data")
    for n in range(40):
        handle.pwrite(bytes([n + 1]) * MIB, n * MIB)
    wait_until(lambda: rpo(b)["writes"] == 1, "a record waits for room")
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        behind, told = a.group()["pos"] - b.group()["pos"], rpo(b)
        assert behind > 20
        assert told["bound"] == "at least" and told["bytes"] >= MIB, told
        time.sleep(1.0)
    assert kinds(a).count("pair.disconnected") == disconnected, "flow control holds, nothing else"
    for node in (a, b):
        assert conditions(node) == ["COPY-JOURNAL-FULL", "STANDS-AT-A-MARKER"]
        assert "farstripe marker resume --groups" in node.farstripe("explain", GROUP)
    assert "COPY JOURNAL FULL" in a.farstripe("status", GROUP)
    assert 'condition="COPY-JOURNAL-FULL",group="app",level="warn",peer="B"' in a.farstripe("metrics")
    told = rpo(a)
    assert (told["writes"], told["bound"]) == (behind, "exact")
    assert -0.1 < told["writes"] - told["bytes"] / MIB < 3, "of one position; two or three are no writes of hosts"
    b.farstripe("marker", "resume", "--groups", GROUP)
    wait_until(lambda: (rpo(b)["writes"], rpo(b)["bound"]) == (0, "exact"), lambda: str(rpo(b)), 30)
    pair.wait_in_sync()
    wait_until(lambda: conditions(a) == conditions(b) == [], lambda: a.farstripe("explain", GROUP), 30)


@pytest.mark.parametrize(("on_full", "what"), [("stall", "WAIT"), ("fail", "FAIL")])
def test_a_journal_that_a_connected_peer_keeps_full_is_said_with_what_it_does_to_writers(
    pair: Pair, on_full: str, what: str
) -> None:
    a = pair.primary
    a.farstripe("group", "policy", GROUP, "--on-full", on_full)
    a.farstripe("pair", "set", GROUP, "--limit", "100K")
    handle = a.writer("data")
    done = []

    def write() -> None:
        for n in range(24):
            try:
                handle.pwrite(bytes([n + 1]) * MIB, n * MIB)
            except nbd.Error:
                done.append("failed")
        done.append("end")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    label = "WRITERS-WAIT-FULL" if what == "WAIT" else "WRITES-FAIL-FULL"
    wait_until(lambda: conditions(a) == [label], lambda: a.farstripe("explain", GROUP), 30)
    [group] = a.json("status", GROUP)["groups"]
    assert (group["word"], group["level"]) == ("PAIR", "bad")
    assert label.replace("-", " ") in a.farstripe("status", GROUP)
    assert "the journal is full with what B lacks" in a.farstripe("explain", GROUP)
    event = "group.writers-wait" if what == "WAIT" else "group.writes-fail"
    assert target_kinds(a).count(event) == 1
    metric = "farstripe_group_writers_wait" if what == "WAIT" else "farstripe_group_writes_fail"
    assert f'{metric}{{group="app"}} 1.0' in a.farstripe("metrics")
    a.farstripe("pair", "set", GROUP, "--limit", "unlimited")
    thread.join(60)
    assert done[-1:] == ["end"] and ("failed" in done) == (what == "FAIL")
    wait_until(lambda: "group.writers-go-on" in target_kinds(a), lambda: str(a.json("events")), 40)
    assert conditions(a) == [] and target_kinds(a).count(event) == 1


def test_writes_that_fail_for_a_silent_synchronous_peer_are_told_of(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    a.farstripe("group", "policy", GROUP, "--mode", "sync", "--on-loss", "stall", "--loss-timeout", "4")
    a.farstripe("pair", "wait", GROUP, "--state", "sync")
    b.pause("replicator")
    handle = a.writer("data")
    with pytest.raises(nbd.Error):
        handle.pwrite(b"x" * 4096, 0)
    with pytest.raises(nbd.Error):
        handle.pwrite(b"x" * 4096, 4096)
    assert conditions(a) == ["WRITES-FAIL-UNANSWERED"]
    seen = target_kinds(a)
    assert seen.count("group.writers-wait") == seen.count("group.writes-fail") == 1
    b.resume("replicator")
    wait_until(lambda: "group.writers-go-on" in target_kinds(a), lambda: str(a.json("events")), 40)
    assert conditions(a) == []


def test_of_two_copies_each_has_its_numbers_and_the_best_is_what_would_be_lost() -> None:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABC") as (a, b, c):
        Tree.grow(a, {"data": 16 * MIB}, [(a, b), (a, c)])
        a.farstripe("pair", "set", GROUP, "C", "--limit", "200K")
        handle = a.writer("data")
        for n in range(400):
            handle.pwrite(bytes([n % 255 + 1]) * 4096, n * 4096)
        time.sleep(1.5)
        [group] = a.json("status", GROUP)["groups"]
        near, far = (next(e["rpo"] for e in group["edges"] if e["peer"]["name"] == name) for name in "BC")
        assert (near["writes"], near["bytes"], near["seconds"], near["bound"]) == (0, 0, 0.0, "exact")
        assert far["bound"] == "exact" and far["writes"] > 50 and far["bytes"] > far["writes"] * 4096 / 2
        assert far["seconds"] > 1.0
        assert group["rpo"]["writes"] > 50 and group["rpo_best"] == near
        text = a.farstripe("metrics")
        assert 'farstripe_rpo_seconds{bound="exact",group="app",peer="C"}' in text
        assert 'farstripe_group_rpo_writes{bound="exact",group="app"} 0.0' in text
        shown = a.json("pair", "show", GROUP, "C")["rpo"]
        assert shown["bound"] == "exact" and shown["bytes"] > 0 and shown["seconds"] > 0


def test_while_differences_are_counted_or_copied_the_older_image_of_the_copy_is_no_nothing(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    a.farstripe("pair", "wait", GROUP)  # until A has heard that the copy is complete
    b.kill()
    handle = a.writer("data")
    for n in range(24):
        handle.pwrite(bytes([n + 1]) * MIB, n * MIB)
    wait_until(lambda: a.group()["mode"] == "bitmap", "it counts differences", 30)
    assert (losses(a)["A"]["label"], losses(a)["A"]["left"]) == ("primary-behind", ["B"])
    a.kill("replicator")
    a.start()
    assert losses(a)["A"]["label"] == "primary-unknown", "nothing was heard since"
    a.farstripe("pair", "set", GROUP, "--limit", "1M")
    b.start()
    wait_until(lambda: losses(a)["A"]["label"] == "primary-kept", lambda: str(losses(a)), 30)
    assert "B keeps the one after record" in losses(a)["A"]["means"]
    assert "and keeps an image after record" in a.farstripe("status", GROUP)
    a.farstripe("pair", "set", GROUP, "--limit", "unlimited")
    pair.wait_in_sync()
    wait_until(lambda: losses(a)["A"]["label"] == "primary-behind", lambda: str(losses(a)), 20)


def losses(node: Node) -> dict[str, dict[str, Any]]:
    return {loss["node"]: loss for loss in node.json("status", GROUP)["groups"][0]["losses"]}


def test_the_primary_knows_of_copies_further_down_and_a_copy_of_the_primary_elsewhere() -> None:
    needs("nbdkit", "ip", root=True)
    with NetNS() as net, running_nodes(net, "ABCD") as (a, b, c, d):
        tree = Tree.grow(a, {"data": 8 * MIB}, [(a, b), (a, c), (c, d)])
        c.farstripe("peer", "join", b.farstripe("peer", "token").split()[-1])
        a.farstripe("switchover", GROUP, "B")
        tree.primary = b
        wait_until(lambda: set(losses(b)) == {"A", "B", "C", "D"}, lambda: str(losses(b)), 40)
        lost = losses(b)["A"]
        assert set(lost["left"]) == {"B", "C", "D"} and "copies further down stay" in lost["means"], lost
        assert losses(b)["D"]["left"] == ["B", "A", "C"]
        a.kill()
        plan = c.json("takeover", GROUP, "--plan")
        assert (plan["label"], plan["allowed"]) == ("primary-elsewhere", False)
        assert plan["message"].startswith("B is primary of the group now and answers")
        assert "the primary may be well" in c.farstripe("explain", GROUP)
        b.kill()
        plan = c.json("takeover", GROUP, "--plan")
        assert (plan["label"], plan["allowed"]) == ("primary-unknown", True)
