"""The rows of several peers and many groups: what they cost the node that hosts write to."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.load import Load, Measured, fio
from benchmarks.measure import Result, against_limit, compare
from benchmarks.nodes import Node
from benchmarks.settings import Settings
from benchmarks.workspace import Workspace, settle

PEERS = 3
PEERS_COST_LIMIT = 1.2
"""Three peers may cost the host so many times what one does."""
IDLE_GROUPS, IDLE_LIMIT_PERCENT, IDLE_S = 100, 2.0, 20.0
BUSY_GROUPS = 16
BUSY_S = 5.0
"""At least so long: sixteen load generators need a second to get going, on processors that the groups share."""
STEADY_IOPS = 2000
"""Of the rate at which the cost of a write is measured: far from what saturates a machine that runs all nodes."""
JOURNAL_BYTES = 64 << 20


def _meet(node: Node, peers: list[Node]) -> None:
    for peer in peers:
        node.run("peer", "join", peer.run("peer", "token")["token"])


def _paired(node: Node, group: str, volume: str, size_bytes: int, peers: list[Node], journal_bytes: int) -> None:
    """Make a volume and a group of it on `node`, and a copy on every one of `peers`."""
    node.make_volume(volume, size_bytes)
    node.run("group", "create", group, volume, "--journal", str(journal_bytes))
    for peer in peers:
        node.run("pair", "create", group, "--peer", peer.name, "--mode", "async")


def _wait(node: Node, group: str, peers: list[Node], state: str) -> None:
    for peer in peers:
        node.run("pair", "wait", group, peer.name, "--state", state, "--timeout", "120", timeout_s=130)


def peers_cost(settings: Settings) -> Result:
    """Processor time of the target for a write with three peers against one, at a steady rate of writes.

    All nodes share this machine, so at full speed the row would measure how many processors it has.
    """
    load = Load("randwrite", 4096, 4)
    with Workspace(settings.directory) as space:
        here = Node(space, "a")
        peers = [Node(space, f"p{number}") for number in range(PEERS)]
        size = min(settings.size_bytes, 128 << 20)
        for node in (here, *peers):
            node.make_pool("raid0", 4, size // 2 + (64 << 20))
        _meet(here, peers)
        _paired(here, "one", "v1", size, peers[:1], JOURNAL_BYTES * 4)
        _paired(here, "many", "v3", size, peers, JOURNAL_BYTES * 4)
        medians: dict[str, list[float]] = {"v1": [], "v3": []}

        def cost(group: str, volume: str, its_peers: list[Node]) -> float:
            _wait(here, group, its_peers, "equal")
            settle(space.path)
            before = here.cpu_seconds("target")
            found = _steady(here.uri(volume), load, settings.seconds * 2, size)
            medians[volume].append(found.median_us)
            writes = found.iops * settings.seconds * 2
            return (here.cpu_seconds("target") - before) / max(writes, 1) * 1e6

        for group, its_peers in (("one", peers[:1]), ("many", peers)):
            _wait(here, group, its_peers, "ok")
        result = compare(
            "three-peers-cost",
            f"one peer; the bar: {PEERS_COST_LIMIT} times",
            "µs/write",
            lambda: cost("many", "v3", peers),
            lambda: cost("one", "v1", peers[:1]),
            settings.rounds,
            lower_is_better=True,
        )
        three, one = (sorted(medians[v])[len(medians[v]) // 2] for v in ("v3", "v1"))
        return replace(result, note=f"median latency {three:.0f} and {one:.0f} µs")


def _steady(uri: str, load: Load, seconds: float, size_bytes: int) -> Measured:
    return fio(uri, load, seconds, size_bytes, rate_iops=STEADY_IOPS)


def idle_groups(settings: Settings) -> Result:
    """Processor time of both processes of a primary with a hundred idle groups, in percent of one processor."""
    with Workspace(settings.directory) as space:
        a, b = Node(space, "a"), Node(space, "b")
        for node in (a, b):
            node.make_pool("raid0", 4, 256 << 20)
        _meet(a, [b])
        for number in range(IDLE_GROUPS):
            name = f"g{number}"
            a.ask("volume.create", name=f"v{number}", size=4 << 20)
            a.ask("group.create", name=name, volumes=[f"v{number}"], journal_bytes=16 << 20)
            a.ask("pair.create", process="replicator", group=name, peer="b", overwrite=False, mode="async")
        for number in range(IDLE_GROUPS):
            _wait(a, f"g{number}", [b], "ok")
        time.sleep(15)  # the last checkpoints of what was just made
        used = {node.name: _cpu(node) for node in (a, b)}
        time.sleep(IDLE_S)
        primary, secondary = ((_cpu(node) - used[node.name]) / IDLE_S * 100 for node in (a, b))
        result = against_limit(
            "idle-groups", IDLE_LIMIT_PERCENT, "the bar", "% of a core", primary, lower_is_better=True
        )
        return replace(result, note=f"{secondary:.1f} % on the secondary's node")


def _cpu(node: Node) -> float:
    return node.cpu_seconds("target") + node.cpu_seconds("replicator")


def busy_groups(settings: Settings) -> Result:
    """Writes a second to sixteen groups at once against those to one of them."""
    load = Load("randwrite", 4096, 8)
    size = 16 << 20
    with Workspace(settings.directory) as space:
        a, b = Node(space, "a"), Node(space, "b")
        for node in (a, b):
            node.make_pool("raid0", 4, 256 << 20)
        _meet(a, [b])
        for number in range(BUSY_GROUPS):
            _paired(a, f"g{number}", f"v{number}", size, [b], JOURNAL_BYTES)
        groups = range(BUSY_GROUPS)

        def run(numbers: range) -> float:
            for number in groups:
                _wait(a, f"g{number}", [b], "equal")
            settle(space.path)
            with ThreadPoolExecutor(len(numbers)) as pool:
                tasks = [
                    pool.submit(fio, a.uri(f"v{number}"), load, max(settings.seconds, BUSY_S), size, number + 1)
                    for number in numbers
                ]
                return sum(task.result().iops for task in tasks)

        return compare("busy-groups", "one group", "IOPS", lambda: run(groups), lambda: run(range(1)), settings.rounds)
