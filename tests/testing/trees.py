"""Real nodes whose pairs of one group form a tree: made and driven through the command line, as tests.testing.nodes.

with NetNS() as net, three_nodes(net) as (a, b, c):
    tree = Tree.grow(a, {"data": 8 << 20}, [(a, b), (b, c)], mode="sync")
    tree.assert_images_equal()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.testing.netns import NetNS
from tests.testing.nodes import GROUP, WAIT_S, Node, wait_until
from tests.testing.stamped import BLOCK, Ledger, StampedLoad

MEMBER_BYTES = 64 << 20


@contextmanager
def running_nodes(net: NetNS, names: str) -> Iterator[list[Node]]:
    """Nodes called by one letter each, made and started."""
    with ExitStack() as stack:
        nodes = [Node(name, net, replication_port=10810 + n) for n, name in enumerate(names)]
        for node in nodes:
            stack.enter_context(node)
        yield [node.init() for node in nodes]


@dataclass
class Tree:
    """One group on several nodes. `primary` follows the roles as the test changes them."""

    primary: Node
    nodes: list[Node]
    volumes: dict[str, int]
    edges: list[tuple[Node, Node]] = field(default_factory=list)

    @classmethod
    def grow(
        cls, top: Node, volumes: dict[str, int], edges: Iterable[tuple[Node, Node]], mode: str = "async",
        policy: Sequence[object] = (), journal: str = "16M",
    ) -> Tree:  # fmt: skip
        """Pools, volumes and a group with `policy` on `top`, then the edges one after the other, each in `mode`;
        returns when every copy is complete."""
        edges = list(edges)
        nodes = list(dict.fromkeys([top, *(node for edge in edges for node in edge)]))
        for node in nodes:
            node.farstripe("pool", "create", "pool", "raid0", node.dir / "disk", "--make-files", MEMBER_BYTES)
        for name, size in volumes.items():
            top.farstripe("volume", "create", name, "--size", size)
        top.farstripe("group", "create", GROUP, *volumes, "--journal", journal)
        if policy:
            top.farstripe("group", "policy", GROUP, *policy)
        tree = cls(top, nodes, volumes)
        for up, down in edges:
            up.farstripe("peer", "join", down.farstripe("peer", "token").split()[-1])
            up.farstripe("pair", "create", GROUP, "--peer", down.name, "--mode", mode)
            tree.edges.append((up, down))
            up.farstripe("pair", "wait", GROUP, down.name, "--timeout", WAIT_S)
        tree.wait_in_sync()
        return tree

    def in_sync(self) -> bool:
        """Every copy is complete and has applied all that the primary has. Meaningful without load only."""
        return self._all(lambda top, copy: copy["pos"] == copy["applied"] == top["pos"])

    def streaming(self) -> bool:
        """Every copy is complete and fed (also under load)."""
        return self._all(lambda top, copy: True)

    def _all(self, fits: Callable[[dict[str, Any], dict[str, Any]], bool]) -> bool:
        known = {node.name: node.group() for node in self.nodes}
        top = known[self.primary.name]
        if not all(known.values()) or top["role"] != "primary" or top["copying"] or top["mode"] != "journal":
            return False
        if any(state["role"] == "primary" for name, state in known.items() if name != self.primary.name):
            return False
        flowing = all(
            edge["linked"] and (edge["sync_on"] or edge["mode"] != "sync") and not edge["copying"]
            for state in known.values()
            for edge in state["edges"]
            if not edge["upstream"]
        )
        copies = [state for name, state in known.items() if name != self.primary.name]
        return flowing and all(state["state"] == "ok" and fits(top, state) for state in copies)

    def wait_in_sync(self, timeout_s: float = WAIT_S) -> None:
        wait_until(self.in_sync, self.situation, timeout_s)

    def wait_streaming(self, timeout_s: float = WAIT_S) -> None:
        wait_until(self.streaming, self.situation, timeout_s)

    def situation(self) -> str:
        """Everything a failure's message should show."""
        return "\n".join(f"--- {node.name} {node.group()}\n{node.logs()}" for node in self.nodes)

    def load(self, volume: str, seed: int, ledger: Ledger | None = None, **options: Any) -> StampedLoad:
        """A stamped load on a volume of whoever is primary at the moment it connects."""
        blocks = self.volumes[volume] // BLOCK
        return StampedLoad(lambda: self.primary.writer(volume), blocks, seed, ledger=ledger, **options).start()

    def image(self, node: Node, volume: str = "data") -> list[int]:
        """The generation each block of a volume shows on a node."""
        return node.generations(volume, self.volumes[volume] // BLOCK)

    def assert_images_equal(self) -> None:
        """Compare every volume of every node byte by byte through NBD. The tree must be idle."""
        self.wait_in_sync()
        for name, size in self.volumes.items():
            handles = {node.name: node.connect(name) for node in self.nodes}
            for offset in range(0, size, 1 << 20):
                length = min(1 << 20, size - offset)
                pieces = {node: bytes(handle.pread(length, offset)) for node, handle in handles.items()}
                if len(set(pieces.values())) > 1:
                    raise AssertionError(f"volume {name} differs within 1 MiB of {offset}\n{self.situation()}")
