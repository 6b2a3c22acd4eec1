"""Threads against each other: hosts, keeper, copier, follower, holds, overflows and the line, all at once.

Not deterministic: a failure names what broke, and FARSTRIPE_STRESS_S=60 runs longer. What must hold in the end: nothing
hangs or raises, a hold kept its position, every answered write is there, and both images are equal.
"""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.capture import copier, follower, roles
from replicator.capture import service as service_module
from replicator.capture.service import GroupService
from replicator.capture.state import JOURNAL
from replicator.journal.page import INCARNATION, Doorbell
from tests.testing.pairharness import Pair, Side, running_pair

SECONDS = float(os.environ.get("FARSTRIPE_STRESS_S", "4"))
HOSTS = 8
PART_BYTES = 16 << 10
SHARED = 160 << 10


class Stress:
    """The pair and everything that moves."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.pair: Pair = running_pair()
        self.stop = threading.Event()
        self.errors: list[str] = []
        self.answered: dict[tuple[int, int], int] = {}
        self.a, self.b = (self._serve(folder, side) for side in (self.pair.a, self.pair.b))

    @staticmethod
    def _serve(folder: Path, side: Side) -> GroupService:
        own = Doorbell(folder / f"{side.name}.t")
        return GroupService(
            side.engine, own, lambda k: Doorbell(folder / f"{side.name}.r.{k}"), lambda what, **detail: None
        )

    def run(self) -> None:
        """Let everything loose for SECONDS."""
        self.a.set_policy({"mode": "sync", "loss_timeout_s": 0.3, "on_full": "bitmap"})
        for served in (self.a, self.b):
            served.start()
        loops = [lambda n=n: self._host(n) for n in range(HOSTS)] + [self._line]
        threads = [threading.Thread(target=self._guarded, args=(loop,)) for loop in loops]
        for thread in threads:
            thread.start()
        self.stop.wait(SECONDS)
        self.stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread hangs"
        for served in (self.a, self.b):
            served._stop.set()
            for thread in served._threads:
                thread.join(10)

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception:
            self.errors.append(traceback.format_exc())
            self.stop.set()

    def _host(self, n: int) -> None:
        """Writes its own part of both volumes, and a shared one that all fight for."""
        rng = random.Random(f"{self.seed} host {n}")
        while not self.stop.is_set():
            dice, fill = rng.random(), rng.randrange(1, 250)
            if dice < 0.8:
                volume, offset = rng.randrange(2), n * PART_BYTES + rng.randrange(4) * 4096
                self.a.write(volume, offset, bytes([fill]) * 4096, rng.random() < 0.05)
                self.answered[volume, offset] = fill
            elif dice < 0.9:
                self.a.write(1, SHARED, bytes([fill]) * rng.choice((4096, 16384)))
            elif dice < 0.95:
                self.a.zero(1, SHARED, 4096, True)
            else:
                self.a.flush()

    def _line(self) -> None:
        """Replicators and operator in one."""
        rng = random.Random(f"{self.seed} line")
        pair, engine = self.pair, self.pair.a.engine
        while not self.stop.is_set():
            if engine.state.mode != JOURNAL:
                self.a.set_link("b" * 32, False)
                pair.meet()
                self.a.set_link("b" * 32, True)
                self.a.resume_copy()
            if not self._ship(rng.choice((1, 5, 50, None))):
                time.sleep(0.0005)
            dice = rng.random()
            if dice < 0.01:
                self.a.set_sync("b" * 32, True)
            elif dice < 0.013:
                self.a.overflow()
            elif dice < 0.016:
                seq = self.a.hold(5)["seq"]
                time.sleep(0.01)
                assert self.a.seq == seq, "a hold did not keep its position"
                self.a.release()
            elif dice < 0.018:
                roles.overflow(engine)

    def _ship(self, records: int | None) -> int:
        pair, page = self.pair, self.pair.a.page
        incarnation = page[INCARNATION]
        try:
            shipped = pair.ship(pair.a, pair.b, records)
            self.b._own_bell.ring()
            pair.acknowledge(pair.a, pair.b)
            self.a._own_bell.ring()
            return shipped
        except Exception:
            if page[INCARNATION] == incarnation and pair.a.engine.state.mode == JOURNAL:
                raise
            return 0  # the journal was given up meanwhile


@pytest.mark.parametrize("seed", [1, 2])
def test_threads_do_not_break_each_other(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    monkeypatch.setattr(service_module, "KEEPER_S", 0.02)
    monkeypatch.setattr(service_module, "CHECKPOINT_S", 0.05)
    stress = Stress(tmp_path, seed)
    stress.run()
    assert not stress.errors, "\n".join(stress.errors)
    image = stress.pair.a.image()
    for (volume, offset), fill in stress.answered.items():
        assert image[volume][offset] == fill, f"an answered write is lost at {volume}:{offset}"
    follower.settle(stress.pair.b.engine)
    stress.pair.sync_up()
