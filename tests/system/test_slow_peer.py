"""One primary, three peers, two behind slow lines: the fast one is not slowed, and a large lag costs no memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.control import ControlClient
from tests.testing.faultproxy import FaultProxy
from tests.testing.needs import needs
from tests.testing.nodes import GROUP, Node, wait_until
from tests.unit.replicator.daemon.conftest import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SIZE = 32 << 20
PIECE = 256 << 10
SLOW_BYTES_S = 300_000
RSS_GROWTH_BYTES = 48 << 20
"""Three shippers with a buffer of 1 MiB each, and much room; far less than the lag of both slow peers."""


class Star:
    """A feeds B directly, C and D through a proxy each, in both directions."""

    def __init__(self, nodes: list[Node], stack: contextlib.ExitStack) -> None:
        self.a, *self.others = nodes
        self.b, self.c, self.d = self.others
        self.proxies: list[FaultProxy] = []
        for node in nodes:
            node.init()
            node.farstripe("pool", "create", "pool", "raid0", *(str(node.dir / f"disk{n}") for n in range(3)),
                           "--make-files", 64 << 20)  # fmt: skip
        self.a.ask("target", "volume.create", name="v", size=SIZE)
        self.a.ask("target", "group.create", name=GROUP, volumes=["v"], journal_bytes=256 << 20)
        for node in self.others:
            token = node.ask("replicator", "peer.token")["token"]
            self.a.ask("replicator", "peer.join", token=token)
        for node in (self.c, self.d):
            self._part(self.a, node, stack)
            self._part(node, self.a, stack)
        for node in (self.a, self.c, self.d):
            node.kill("replicator")
            node.start()

    def _part(self, node: Node, peer: Node, stack: contextlib.ExitStack) -> None:
        """Have `node` know `peer` at a proxy."""
        proxy = stack.enter_context(FaultProxy(peer.replication_port))
        self.proxies.append(proxy)
        for path in (node.state / "peers").glob("*.json"):
            known = json.loads(path.read_text())
            if known["name"] == peer.name:
                path.write_text(json.dumps(known | {"port": proxy.port}))

    def show(self, peer: Node) -> dict[str, Any]:
        return dict(self.a.ask("replicator", "pair.show", group=GROUP, peer=peer.name))

    def wait(self, peer: Node, state: str, timeout_s: float = 60) -> None:
        with ControlClient(self.a.run_dir / "replicator.sock", timeout_s + 10) as client:
            client.call("pair.wait", group=GROUP, peer=peer.name, state=state, timeout_s=timeout_s)

    def situation(self) -> str:
        return "\n".join(node.logs() for node in (self.a, *self.others))


@pytest.fixture
def star() -> Iterator[Star]:
    needs("nbdkit")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Node(name, replication_port=free_port())) for name in "ABCD"]
        yield Star(nodes, stack)


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def write_all(node: Node, rounds: int) -> float:
    """Write the volume `rounds` times over with what cannot be compressed; returns the seconds it took."""
    handle = node.writer("v")
    pieces = [os.urandom(PIECE) for _ in range(8)]
    begin = time.monotonic()
    for number in range(rounds * SIZE // PIECE):
        handle.pwrite(pieces[number % 8], number * PIECE % SIZE)
    return time.monotonic() - begin


def test_slow_peers_slow_nobody_and_a_large_lag_costs_no_memory(star: Star) -> None:
    for peer, mode in ((star.b, "sync"), (star.c, "async"), (star.d, "async")):
        more = {} if mode == "async" else {"on_loss": "stall", "loss_timeout_s": 60}
        star.a.ask("replicator", "pair.create", 60, group=GROUP, peer=peer.name, mode=mode, **more)
        star.wait(peer, "sync" if mode == "sync" else "ok")
    alone = write_all(star.a, 1)
    for peer in star.others:
        star.wait(peer, "equal")
    before = rss_bytes(star.a.pid("replicator"))
    for proxy in star.proxies:
        proxy.rate_bytes_s = SLOW_BYTES_S
    slowed = write_all(star.a, 3)
    assert slowed < 3 * alone * 3 + 3, f"{slowed:.1f} s with slow peers, {alone:.1f} s a round without"
    assert star.show(star.b)["word"] == "SYNC"
    star.wait(star.b, "equal", 20)
    for peer in (star.c, star.d):
        lag = star.show(peer)["facts"]["unsent_bytes"]
        assert lag > 40 << 20, f"{peer.name} is not slow: {lag}"
    grown = rss_bytes(star.a.pid("replicator")) - before
    assert grown < RSS_GROWTH_BYTES, f"the replicator grew by {grown >> 20} MiB"
    for proxy in star.proxies:
        proxy.heal()
    for peer in star.others:
        star.wait(peer, "equal")
    ours = bytes(star.a.connect("v").pread(SIZE, 0))
    for peer in star.others:
        assert bytes(peer.connect("v").pread(SIZE, 0)) == ours


def test_a_node_that_has_no_pair_is_refused_and_frees_nothing(star: Star) -> None:
    """F3-25: a foreign reader, though joined, gets no record, and what it says does not move the journal's tail."""
    star.a.ask("replicator", "pair.create", 60, group=GROUP, peer="B", mode="async")
    star.wait(star.b, "ok")
    star.b.kill()
    has = star.a.group()["pos"]  # nothing was written yet: B has all of the copy
    write_all(star.a, 1)
    group = star.a.group()["uuid"]
    script = (
        "import sys, json, pathlib\n"
        "from replicator.daemon.peers import PeerStore\n"
        "from replicator.daemon.identity import load_or_create\n"
        "from replicator.daemon.tls import Contexts\n"
        "from replicator.daemon import rpc\n"
        "from replicator.core.errors import FarstripeError\n"
        "state = pathlib.Path(sys.argv[1])\n"
        "peers = PeerStore(state / 'peers')\n"
        "node = json.loads((state / 'node.json').read_text())['node_id']\n"
        "contexts = Contexts(load_or_create(state / 'keys', node), peers)\n"
        "for more in (False, True):\n"
        "    try:\n"
        "        rpc.open_link(contexts, peers.all()[0], sys.argv[2], 'ab' * 16, more=more)\n"
        "        print('let in')\n"
        "    except FarstripeError as exc:\n"
        "        print(type(exc).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(star.c.state), group], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["NotFound", "NotFound"], done.stdout + done.stderr
    now = star.a.group()["journal"]
    assert now["first_seq"] <= has + 1 <= now["head_seq"], "the journal gave up records that B lacks"
    star.b.start()
    star.wait(star.b, "equal")
    wait_until(lambda: star.a.group()["journal"]["first_seq"] > has + 1, star.situation, 30)
