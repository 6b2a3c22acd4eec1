"""What would be lost as a number: budgets, events, status and metrics of real nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from replicator.core.errors import EXIT_BAD_INPUT, EXIT_USAGE
from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, Node, Pair, wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with NetNS() as net, Node("A", net, replication_port=10810) as a, Node("B", net, replication_port=10820) as b:
        yield Pair.create(a.init(), b.init(), {"data": 16 * MIB})


def kinds(node: Node) -> list[str]:
    return [event["kind"] for event in node.ask("replicator", "events.list")]


def sample(node: Node, name: str) -> dict[str, float]:
    """Values of a metric by their labels' text."""
    found = {}
    for line in node.farstripe("metrics").splitlines():
        if line.startswith(f"{name}{{"):
            labels, value = line.rsplit(" ", 1)
            found[labels[len(name) :]] = float(value)
    return found


def test_a_budget_is_exceeded_and_met_again(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    set_to = a.json("pair", "budget", GROUP, "--writes", 10, "--seconds", 2)
    assert set_to["budget"] == {"seconds": 2.0, "bytes": None, "writes": 10}
    b.kill()
    handle = a.writer("data")
    for n in range(30):
        handle.pwrite(bytes([n + 1]) * 4096, n * 4096)
    wait_until(lambda: "rpo.exceeded" in kinds(a), lambda: str(a.json("status")), 15)
    seen = a.json("status")["groups"][0]["budget"]
    assert seen["exceeded"] and "writes behind, the budget is 10" in " ".join(seen["reasons"])
    assert "BEYOND ITS BUDGET" in a.farstripe("status")
    assert list(sample(a, "farstripe_rpo_budget_exceeded").values()) == [1.0]
    ((labels, writes),) = sample(a, "farstripe_rpo_writes").items()
    assert 'bound="at most"' in labels and 30 <= writes <= 35  # control records count too
    b.start()
    wait_until(lambda: kinds(a)[-1] == "rpo.met" or "rpo.met" in kinds(a), lambda: str(a.json("status")), 30)
    assert list(sample(a, "farstripe_rpo_budget_exceeded").values()) == [0.0]
    a.farstripe("pair", "budget", GROUP, "--off")
    assert a.json("status")["groups"][0]["budget"] is None


def test_metrics_tell_of_both_processes_and_the_pool(pair: Pair) -> None:
    a = pair.primary
    assert sample(a, "farstripe_up") == {'{process="target"}': 1.0, '{process="replicator"}': 1.0}
    assert sample(a, "farstripe_raid_group_state") == {
        '{level="6",pool="pool",raid_group="raid6",state="ok"}': 1.0,
        '{level="0",pool="pool",raid_group="raid0",state="ok"}': 1.0,
    }
    assert len(sample(a, "farstripe_member_state")) == 8
    a.kill("target")
    assert 'farstripe_up{process="target"} 0.0' in a.farstripe("metrics")
    assert not sample(a, "farstripe_rpo_writes"), "nothing is made up while the target is away"
    a.start()


def test_metrics_are_served_by_http_when_the_node_says_so() -> None:
    with NetNS() as net, Node("A", net) as a:
        a.farstripe("node", "init", "A", "--metrics-port", 10811)
        a.start()
        script = "import urllib.request;print(urllib.request.urlopen('http://127.0.0.1:10811/metrics').read().decode())"
        argv = net.argv([sys.executable, "-c", script])
        assert "farstripe_up" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_secondary_that_hears_nothing_counts_by_the_primarys_clock(pair: Pair) -> None:
    a, b = pair.primary, pair.secondary
    pair.wait_in_sync()
    wait_until(lambda: b.json("status")["groups"][0]["edges"][0]["rpo"]["seconds"] == 0.0, "nothing is missing", 10)
    assert "copy here, fed by" in b.farstripe("pair", "budget", GROUP, "--seconds", 1.5)
    a.kill()
    wait_until(lambda: "rpo.exceeded" in kinds(b), lambda: str(b.json("status")), 15)
    lost = b.json("status")["groups"][0]["edges"][0]["rpo"]
    assert lost["bound"] == "at least" and lost["seconds"] > 1.5, "the primary may have gone on"
    a.start()
    wait_until(lambda: kinds(b)[-1:] == ["rpo.met"] or "rpo.met" in kinds(b), lambda: str(b.json("status")), 30)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--seconds", "-1"], EXIT_USAGE, "range"),
        (["--bytes", "lots"], EXIT_BAD_INPUT, "not a size"),
        (["--off", "--writes", "3"], EXIT_BAD_INPUT, "--off"),
    ],
)
def test_a_senseless_budget_changes_nothing(pair: Pair, args: list[str], code: int, says: str) -> None:
    before = pair.primary.json("pair", "budget", GROUP)["budget"]
    assert says in pair.primary.farstripe("pair", "budget", GROUP, *args, expect=code)
    assert pair.primary.json("pair", "budget", GROUP)["budget"] == before
