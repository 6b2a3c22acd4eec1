"""Crash states of trees of engines: as test_engine_crash.py, with three nodes on two lines.

At each cut all processes die; power is lost nowhere, on one node, or everywhere. Every such state must

* open on every node; after a kill the primary holds what hosts were answered, after power loss what was flushed;
* on a secondary that says "ok" be the fold of the first n records;
* find every record in the journal of the upper end that a peer lacks which was not dropped;
* at both ends of a line differ only in blocks of the union of bitmaps that a handshake would use;
* become equal again everywhere, also when one node dies once more on the way, with no edge left behind.

FARSTRIPE_CRASH=10 tries every cut with ten seeds; FARSTRIPE_CRASH_ONLY="name:cut:seed" repeats one. EVERY thins the
cuts out where a workload has many.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from unittest.mock import patch

import pytest

from replicator.capture import copier, edges, follower, roles
from replicator.capture.bitmaps import BLOCK_BYTES
from replicator.capture.state import OK, SECONDARY
from replicator.core.epochs import Relation, common_position, compare
from replicator.journal.page import TAIL_SEQ
from tests.crash.test_engine_crash import FATES, ONLY, SEEDS, Explorer, clear_intents
from tests.testing.fakedisk import SECTOR_BYTES, PowerCut
from tests.testing.pairharness import Saved, Side
from tests.testing.treeharness import CHAIN, FAN, Line, Tree, running_tree

EVERY = 5 if SEEDS == 1 else 1


class TreeExplorer(Explorer):
    """A tree under a workload, and the crash states it passes through."""

    def __init__(self, name: str, tree: Tree, shape: tuple[str, dict[str, str]], every: int = EVERY) -> None:
        super().__init__(name, tree.lines["b"])
        self.tree = tree
        self.shape = shape
        self.every = every
        for side in tree.sides.values():
            side.disk.trace = self._before_change

    def _before_change(self, op: str, file: str, off: int, length: int) -> None:
        if self._exploring:
            return
        self.cut += 1
        if self.cut % self.every and not ONLY:
            return
        self._exploring = True
        try:
            saved = {name: side.save() for name, side in self.tree.sides.items()}
            for seed in range(SEEDS):
                rng = random.Random(f"{self.name}:{self.cut}:{seed}")
                names = tuple(saved)
                for lost in ((), (rng.choice(names),), names):
                    self._try_all(saved, lost, seed, f"{op} {file} {off}+{length}")
        finally:
            self._exploring = False

    def _try_all(self, saved: dict[str, Saved], lost: tuple[str, ...], seed: int, where: str) -> None:
        case = f"{self.name}:{self.cut}:{seed}"
        if ONLY and case != ONLY:
            return
        self.states += 1
        try:
            TreeAftermath(self, saved, lost, random.Random(f"{case}{lost}")).check()
        except Exception as exc:
            raise AssertionError(
                f"before {where}, power lost on {lost or 'no node'}: {exc!r}\n"
                f"again: FARSTRIPE_CRASH={SEEDS} FARSTRIPE_CRASH_ONLY={case} python -m pytest {__file__} -k {self.name}"
            ) from exc


class TreeAftermath:
    """One crash state, and what becomes of it."""

    def __init__(
        self, before: TreeExplorer, saved: dict[str, Saved], lost: tuple[str, ...], rng: random.Random
    ) -> None:
        self.before, self.lost, self.rng = before, lost, rng
        names, shape = before.shape
        self.tree = Tree(names, shape, lambda name: Side(name, seed=rng.getrandbits(32)))
        self.tree.truth.learn(before.tree.truth)
        for line in self.tree.lines.values():
            line.copies = rng.getrandbits(32)
        for name, side in self.tree.sides.items():
            side.restore(saved[name])

    def check(self) -> None:
        """Die, come back, look, let everything flow, and look again."""
        for name, side in self.tree.sides.items():
            side.power_cut(self.rng.choice(FATES)) if name in self.lost else side.kill()
        self._bring_up()
        self._check_host_view()
        self._check_prefixes()
        self._check_kept()
        self._check_bitmaps()
        if self.rng.random() < 0.5:
            self._die_again()
        self.tree.settle()
        self._check_nothing_left()

    def _bring_up(self) -> None:
        for side in self.tree.sides.values():
            if side._engine is None:
                side.start()
                assert not side.engine.failed

    def _check_host_view(self) -> None:
        top, before = self.tree.top, self.before
        unflushed = set(before.unflushed) if "a" in self.lost else set()
        if before.in_flight is not None:
            flight = before.in_flight
            unflushed |= set(Explorer._sectors(flight.volume, flight.offset, len(flight.data)))
        for volume, have in enumerate(top.image()):
            want = bytes(before.model[volume])
            for at in range(0, len(want), SECTOR_BYTES):
                if have[at : at + SECTOR_BYTES] != want[at : at + SECTOR_BYTES]:
                    assert (volume, at // SECTOR_BYTES) in unflushed, f"answered write lost at {volume}:{at}"

    def _check_prefixes(self) -> None:
        for side in self.tree.sides.values():
            state = side.engine.state
            if state.role == SECONDARY and state.copy == OK:
                follower.settle(side.engine)
                want = self.tree.lines["b"].image_at(state.hist, side.engine.pos)
                assert side.image() == want, f"{side.name}: no prefix at {side.engine.pos} of {state.hist}"

    def _check_kept(self) -> None:
        """The journal holds what a peer lacks that was not dropped, whatever was lost on either side."""
        for line in self.tree.paired():
            upper, lower = line.a.engine, line.b.engine
            edge = line.a.edge(line.b)
            if edge.dropped or edge.copying or edge.unclean:
                continue  # a copy that the peer has not heard of yet, or one that is due
            if upper.state.copy != OK or lower.state.copy != OK or not upper.state.hist:
                continue
            relation = compare(line.hello(line.a).hist, upper.pos, line.hello(line.b).hist, lower.pos).relation
            if relation in (Relation.SAME, Relation.BEHIND):
                assert upper.page[TAIL_SEQ] <= lower.pos + 1, f"what {line.b.name} lacks is gone from {line.a.name}"

    def _check_bitmaps(self) -> None:
        for line in self.tree.paired():
            if line.a.engine.state.copy == OK:
                self._check_union(line)

    def _check_union(self, line: Line) -> None:
        """Blocks that differ between the ends of a line are in the union that a copy would use."""
        one, two = line.hello(line.a), line.hello(line.b)
        if not one.hist or not two.hist:
            return
        c = common_position(one.hist, one.floor, two.hist, two.floor)
        bits = [side.engine.bitmaps.newest_for(c) for side in (line.a, line.b)]
        if None in bits:
            return
        for volume, (x, y) in enumerate(zip(line.a.image(), line.b.image(), strict=True)):
            for block in range((len(x) + BLOCK_BYTES - 1) // BLOCK_BYTES):
                at = block * BLOCK_BYTES
                if x[at : at + BLOCK_BYTES] != y[at : at + BLOCK_BYTES]:
                    maps = [side.engine.bitmaps.maps[volume].bytes for side in (line.a, line.b)]
                    marked = any(m[block] & (bit or 0) for m, bit in zip(maps, bits, strict=True))
                    assert marked, f"block {volume}:{block} of {line.b.name} differs unmarked, c={c}"

    def _die_again(self) -> None:
        """One node dies once more, while all come together and hosts write."""
        victim = self.rng.choice(list(self.tree.sides.values()))
        victim.disk.cut_at(victim.disk.operations + self.rng.randint(0, 60))
        try:
            for _ in range(self.rng.randint(1, 8)):
                self.tree.top.write(self.rng.randrange(60) * 4096, self.rng.randrange(256))
                self.tree.round(self.rng.choice((None, 1)))
        except PowerCut:
            pass
        victim.disk.cut_at(None)
        victim.power_cut(self.rng.choice(FATES)) if self.rng.random() < 0.5 else victim.kill()
        self._bring_up()

    def _check_nothing_left(self) -> None:
        for line in self.tree.paired():
            upper, edge = line.a, line.a.edge(line.b)
            assert not edge.copying and not edge.dropped and not edge.unclean, f"{line.b.name}: {edge}"
            assert upper.engine.pos == line.b.engine.pos
        assert not self.tree.top.engine.state.extended


# -- workloads --------------------------------------------------------------------------------------------------------


def stream(x: TreeExplorer) -> None:
    """Writes of all kinds reach everybody, one node in pieces and late; journals are freed, bitmaps rotate."""
    for turn in range(3):
        x.write(0, turn + 1)
        x.write(60 << 10, turn + 20, 8192)
        x.write(turn * 4096, 77, volume=1, fua=turn == 1)
        x.tree.lines["b"].step(2)
        x.zero(64 << 10, 32 << 10)
        x.flush()
        x.write(128 << 10, turn + 40, 128 << 10)
        x.tree.lines["b"].step()
        x.tree.lines["c"].step(1)
        copier.rotate_bitmaps(x.tree.top.engine)
        for side in x.tree.sides.values():
            follower.checkpoint(side.engine)
            clear_intents(side)
        if turn != 1:
            x.tree.round()


def copies_meet(x: TreeExplorer) -> None:
    """Both peers are copied to, one beginning while the other is under way; one is begun anew."""
    tree, top = x.tree, x.tree.top
    tree.lines["b"].cut()
    edges.drop(top.engine, [top.edge(tree.sides["b"])])
    x.write(70 << 10, 1)
    x.write(4096, 2, volume=1)
    copier.rotate_bitmaps(top.engine)  # what b lacks is not in the bitmap that c will need
    tree.lines["c"].step()
    tree.lines["b"].connect()
    copier.copy_some(top.engine, 64 << 10)
    tree.lines["b"].step(1)
    line = tree.lines["c"]
    line.cut()
    edges.drop(line.a.engine, [line.a.edge(line.b)])
    x.write(140 << 10, 3)
    line.connect()
    x.flush()
    for _ in range(6):
        x.write(8192, 4)
        tree.round(2)
    edge = tree.lines["c"].a.edge(tree.sides["c"])
    tree.lines["c"].cut()
    edges.drop(tree.lines["c"].a.engine, [edge])
    x.write(200 << 10, 5)
    for _ in range(12):
        tree.round()


def one_is_dropped(x: TreeExplorer) -> None:
    """A peer that is away fills the journal; it is given up and comes back."""
    tree = x.tree
    line = tree.lines["c"]
    line.cut()
    for turn in range(4):
        x.write(turn * 20480, turn + 1, 16384)
        tree.lines["b"].step()
    x.flush()
    edges.drop(line.a.engine, [line.a.edge(line.b)])
    for side in tree.sides.values():
        follower.checkpoint(side.engine)
        clear_intents(side)
    x.write(0, 9)
    for _ in range(10):
        tree.round()


def all_are_dropped(x: TreeExplorer) -> None:
    """The journal is given up for everybody, and everybody comes back."""
    tree, top = x.tree, x.tree.top
    x.write(0, 1)
    roles.overflow(top.engine)
    x.write(70 << 10, 2)
    x.flush()
    clear_intents(top)
    x.write(140 << 10, 3, volume=1)
    for _ in range(12):
        tree.round()
        x.write(4096, 4)
    tree.round()


WORKLOADS: tuple[Callable[[TreeExplorer], None], ...] = (stream, copies_meet, one_is_dropped, all_are_dropped)
SHAPES = {"fan": FAN, "chain": CHAIN}


def explore(shape: str, workload: Callable[[TreeExplorer], None], every: int = EVERY) -> TreeExplorer:
    tree = running_tree(*SHAPES[shape])
    with patch.object(copier, "ROTATE_MIN_BLOCKS", 1):
        for _ in range(2):  # the first copy has marked every block
            copier.rotate_bitmaps(tree.top.engine)
            tree.settle()
        x = TreeExplorer(f"{shape}-{workload.__name__}", tree, SHAPES[shape], every)
        workload(x)
    return x


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_crash_state_of_a_tree_recovers(shape: str, workload: Callable[[TreeExplorer], None]) -> None:
    x = explore(shape, workload)
    assert x.states > 20 or ONLY
    print(f"{x.name}: {x.cut} cuts, {x.states} crash states")
