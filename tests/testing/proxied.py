"""Two real nodes whose replicators reach each other through a misbehaving network, one proxy for each direction."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

from replicator.control import ControlClient
from tests.testing.faultproxy import FaultProxy
from tests.testing.nodes import GROUP, Node
from tests.testing.stamped import BLOCK, Ledger, StampedLoad, check_nothing_lost, read_generations
from tests.unit.replicator.daemon.conftest import free_port


class Proxied:
    """Nodes A (primary) and B, one group of one volume "v" of `size` bytes on A, and the proxies in front of each."""

    def __init__(self, a: Node, b: Node, to_a: FaultProxy, to_b: FaultProxy, size: int) -> None:
        self.a, self.b, self.size = a, b, size
        self.proxies = (to_a, to_b)
        self.ledger = Ledger()

    def join(self) -> None:
        """Join, and make each know the other at its proxy."""
        token = self.b.ask("replicator", "peer.token")["token"]
        self.a.ask("replicator", "peer.join", token=token)
        for node, proxy in ((self.a, self.proxies[1]), (self.b, self.proxies[0])):
            node.kill("replicator")
            path = next((node.state / "peers").glob("*.json"))
            path.write_text(json.dumps(json.loads(path.read_text()) | {"port": proxy.port}))
            node.start()

    def pair(self, **options: object) -> None:
        """Join, pair, and wait for the first copy."""
        self.join()
        self.a.ask("replicator", "pair.create", 60, group=GROUP, peer="B", **options)
        self.wait("ok")

    def wait(self, state: str, timeout_s: float = 60, node: Node | None = None) -> dict[str, object]:
        node = node or self.a
        with ControlClient(node.run_dir / "replicator.sock", timeout_s + 10) as client:
            return dict(client.call("pair.wait", group=GROUP, state=state, timeout_s=timeout_s))

    def word(self) -> str:
        return str(self.a.ask("replicator", "pair.show", group=GROUP)["word"])

    @property
    def live(self) -> FaultProxy:
        """The proxy through which the data path runs: that of the side which is called, which has the higher id."""
        a_id, b_id = (node.ask("replicator", "pair.show", group=GROUP)["peer"] for node in (self.b, self.a))
        return self.proxies[1 if a_id < b_id else 0]

    def each(self, act: Callable[[FaultProxy], object]) -> None:
        for proxy in self.proxies:
            act(proxy)

    def load(self, seed: int, writes_per_s: int = 500) -> StampedLoad:
        return StampedLoad(
            lambda: self.a.writer("v"), self.size // BLOCK, seed, ledger=self.ledger, writes_per_s=writes_per_s
        ).start()

    def assert_equal(self) -> None:
        """Nothing acknowledged is missing anywhere, and both images are the same."""
        self.wait("equal")
        images = [read_generations(node.connect("v"), self.size // BLOCK) for node in (self.a, self.b)]
        check_nothing_lost(self.ledger, images[0])
        assert images[0] == images[1]

    def situation(self) -> str:
        return f"{self.a.logs()}\n{self.b.logs()}"


@contextlib.contextmanager
def proxied(size: int) -> Iterator[Proxied]:
    """Make the nodes, the volume and the group; end everything afterwards."""
    ports = free_port(), free_port()
    with (
        Node("A", replication_port=ports[0]) as a,
        Node("B", replication_port=ports[1]) as b,
        FaultProxy(ports[0], seed=1) as to_a,
        FaultProxy(ports[1], seed=2) as to_b,
    ):
        for node in (a, b):
            node.init()
            disks = [str(node.dir / f"disk{n}") for n in range(3)]
            node.farstripe("pool", "create", "pool", "raid0", *disks, "--make-files", 64 << 20)
        a.ask("target", "volume.create", name="v", size=size)
        a.ask("target", "group.create", name=GROUP, volumes=["v"], journal_bytes=16 << 20)
        yield Proxied(a, b, to_a, to_b, size)
