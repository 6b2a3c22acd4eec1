"""Crash states of a secondary that retains what it overwrites: it is stopped before every operation on its disk.

Each time it is brought up again as a kill leaves it and as power cuts leave it, applies what it has received, and every
instant of its window is compared with the records. Then it goes on, dies once more at some operation, and is looked at
again.

FARSTRIPE_CRASH=10 tries ten outcomes a cut; FARSTRIPE_CRASH_ONLY="name:cut:seed" repeats one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from replicator.capture import copier, follower, roles
from replicator.capture.preimages import recorder
from replicator.capture.state import OK
from replicator.journal.page import APPLIED_SEQ
from tests.testing.fakedisk import Fate, PowerCut
from tests.testing.pairharness import Pair, Saved
from tests.testing.retaining import (
    FRAME_DATA_BYTES,
    PIECE_BYTES,
    Histories,
    RetainingSide,
    check_views,
    retaining_pair,
)

ONLY = os.environ.get("FARSTRIPE_CRASH_ONLY", "")
SEEDS = int(os.environ.get("FARSTRIPE_CRASH", "1"))
FATES: tuple[Fate | None, ...] = (None, None, "drop", "keep")


class Explorer:
    """A pair whose secondary is stopped before each of its operations."""

    def __init__(self, name: str, **shape: Any) -> None:
        self.name = name
        self.shape = shape
        self.pair, self.b = retaining_pair(**shape)
        self.known = Histories(self.pair)
        self.known.look()
        self.cut = self.states = self.views = 0
        self._exploring = False
        self.b.disk.trace = self._before_change

    def _before_change(self, op: str, file: str, off: int, length: int) -> None:
        if self._exploring:
            return
        self.cut += 1
        self._exploring = True
        try:
            self.known.look()
            saved = self.b.save()
            for seed in range(SEEDS):
                for how in ("kill", "power"):
                    case = f"{self.name}:{self.cut}:{seed}"
                    if not ONLY or case == ONLY:
                        self._try(saved, how, case, f"{op} {file} {off}+{length}")
        finally:
            self._exploring = False

    def _try(self, saved: Saved, how: str, case: str, where: str) -> None:
        self.states += 1
        try:
            self._aftermath(saved, how, random.Random(f"{case}{how}"))
        except Exception as exc:
            raise AssertionError(
                f"before {where}, {how}: {exc!r}\n"
                f"again: FARSTRIPE_CRASH={SEEDS} FARSTRIPE_CRASH_ONLY={case} python -m pytest {__file__} -k {self.name}"
            ) from exc

    def _aftermath(self, saved: Saved, how: str, rng: random.Random) -> None:
        side = RetainingSide("b", seed=rng.getrandbits(32), **self.shape)
        side.restore(saved)
        self._die(side, how, rng)
        self._look(side, rng)
        pair = Pair(self.pair.a, side, self.pair.truth, copies=self.pair.copies)
        received = follower.apply_some
        side.disk.cut_at(side.disk.operations + rng.randint(0, 30))
        try:
            if self.pair.a.engine.state.mode == "journal" and side.engine.state.copy == OK and not _parted(pair):
                pair.ship(pair.a, side, rng.choice((1, 3, None)))
            while received(side.engine, rng.choice((1, 20_000, 1 << 20))):
                pass
            follower.checkpoint(side.engine)
        except PowerCut:
            pass
        side.disk.cut_at(None)
        self._die(side, rng.choice(("kill", "power")), rng)
        self._look(side, rng)

    def _die(self, side: RetainingSide, how: str, rng: random.Random) -> None:
        if how == "kill":
            side.kill()
        else:
            side.power_cut(rng.choice(FATES))
        side.start()

    def _look(self, side: RetainingSide, rng: random.Random) -> None:
        follower.settle(side.engine)
        if side.engine.preimages is None:
            return
        if side.window.active:
            assert side.window.last.seq in (side.page[APPLIED_SEQ], side.engine.pos), "recorded, and not applied"
        pair = Pair(self.pair.a, side, self.pair.truth)
        known = Histories(pair)
        known._by_epoch.update(self.known._by_epoch)
        self.views += check_views(side, known, rng, 6)


def _parted(pair: Pair) -> bool:
    """Whether the secondary needs more than the next records."""
    a, b = pair.a, pair.b
    first = a.engine.journal.tail()[1]
    return not first <= b.engine.pos + 1 <= a.engine.pos + 1 or b.engine.state.hist[-1][0] != a.engine.epoch


@contextmanager
def small_frames() -> Iterator[None]:
    with (
        patch.object(recorder, "PIECE_BYTES", PIECE_BYTES),
        patch.object(recorder, "FRAME_DATA_BYTES", FRAME_DATA_BYTES),
    ):
        yield


# -- workloads --------------------------------------------------------------------------------------------------------


def stream(x: Explorer) -> None:
    """Writes that overlap within a batch, long ones, zeroes, checkpoints, a ring that wraps."""
    pair, a, b = x.pair, x.pair.a, x.b
    for turn in range(4):
        a.write(0, turn * 10 + 1)
        a.write(2048, turn * 10 + 2, length=6000)
        a.write(100, turn * 10 + 3, length=3000, volume=1)
        pair.ship(a, b, 2)
        follower.apply_some(b.engine)
        a.write(32 << 10, turn * 10 + 4, length=70_000)
        a.engine.zero(0, 1000, 90_000, True)
        a.write(0, turn * 10 + 5)
        pair.ship(a, b)
        follower.apply_some(b.engine, 1)
        follower.apply_all(b.engine)
        pair.acknowledge(a, b)
        if turn % 2:
            follower.checkpoint(b.engine)
            follower.checkpoint(a.engine)
        a.engine.zero(1, 0, 150_000, True, trim=True)
        a.engine.flush()
        pair.flow(a, b)


def resync(x: Explorer) -> None:
    """The journal overflows; the difference is copied while hosts write; instants from before stay."""
    pair, a, b = x.pair, x.pair.a, x.b
    a.write(0, 1)
    a.write(70 << 10, 2)
    pair.flow(a, b)
    a.write(4096, 3)
    roles.overflow(a.engine)
    a.write(0, 4)
    a.write(71 << 10, 5)
    pair.meet()
    x.known.look()
    a.write(0, 6)
    copier.copy_some(a.engine, 64 << 10)
    pair.ship(a, b)
    follower.apply_some(b.engine)
    pair.flow(a, b)
    a.write(0, 7)
    pair.flow(a, b)


def promotion(x: Explorer) -> None:
    """The secondary becomes primary, hosts write there, and it becomes secondary again."""
    pair, a, b = x.pair, x.pair.a, x.b
    a.write(0, 1)
    pair.flow(a, b)
    roles.demote(a.engine)
    roles.promote(b.engine)
    x.known.look()
    b.write(0, 2)
    b.write(8192, 3)
    pair.sync_up()
    roles.demote(b.engine)
    roles.promote(a.engine)
    x.known.look()
    pair.sync_up()
    a.write(0, 4)
    a.write(4096, 5)
    pair.flow(a, b)


WORKLOADS: dict[str, tuple[Callable[[Explorer], None], int, int]] = {
    "stream": (stream, 120, 3000),
    "resync": (resync, 40, 600),
    "promotion": (promotion, 30, 100),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_views_are_exact_after_a_crash_at_any_operation(name: str) -> None:
    workload, cuts, views = WORKLOADS[name]
    with small_frames():
        x = Explorer(name)
        workload(x)
        if not ONLY:
            assert x.cut >= cuts and x.views >= views, (x.cut, x.states, x.views)
            assert check_views(x.b, x.known, random.Random(0)) > 0
