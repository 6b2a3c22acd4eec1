"""Hypothesis plays with a pool: whatever is written, trimmed, broken, rebuilt, killed and cut, the model holds.

With checksums members rot, too. A power cut waits for the scrub then: what a torn write left in a row of which a block
has rotted is not to be told apart.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.testing.fakedisk import SECTOR_BYTES, PowerCut
from tests.testing.poolaudit import audit, check_space
from tests.testing.poolmodel import DoubleFault
from tests.testing.poolworld import PoolWorld

EXAMPLES = int(os.environ.get("FARSTRIPE_MODEL_EXAMPLES", "12"))
"""Examples of each level; a night may take thousands."""
NAMES = st.sampled_from("abc")
FRACTION = st.floats(0, 1, exclude_max=True)


class PoolMachine(RuleBasedStateMachine):
    """Rules on a PoolWorld, which checks."""

    shape = (5, 3)
    checksums = False

    @initialize(seed=st.integers(0, 1 << 32))
    def start(self, seed: int) -> None:
        """A pool with one volume."""
        self.rotted = False
        self.world = PoolWorld(random.Random(seed), *self.shape, checksums=self.checksums)
        self.world.create_volume("a", 8 * self.world.area_bytes)

    @rule(name=NAMES, areas=st.integers(1, 9), thin=st.booleans())
    def create(self, name: str, areas: int, thin: bool) -> None:
        if name not in self.world.models:
            self.world.create_volume(name, areas * self.world.area_bytes - 4096 * (areas % 3), thin)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.world.models:
            self.world.delete_volume(name)

    @rule(name=NAMES, pages=st.integers(1, 40))
    def resize(self, name: str, pages: int) -> None:
        model = self.world.models.get(name)
        if model is not None and self.world.pool.volume(name).info.thin and pages * 4096 != model.size:
            self.world.resize_volume(name, pages * 4096)

    @rule(name=NAMES, at=FRACTION, count=st.sampled_from([1, 2, 8, 16, 32, 70]), kind=st.sampled_from("wwwzp"))
    def change(self, name: str, at: float, count: int, kind: str) -> None:
        model = self.world.models.get(name)
        if model is None:
            return
        first = int(at * (model.size // SECTOR_BYTES))
        count = min(count, model.size // SECTOR_BYTES - first)
        if kind == "w":
            self.world.write(name, first, count)
        else:
            self.world.zero(name, first // 32 * 32 if count == 32 else first, count, kind == "p")

    @rule(name=NAMES, snapshot=st.sampled_from("xyz"), clone=st.booleans())
    def image(self, name: str, snapshot: str, clone: bool) -> None:
        """Volumes a, b, c; images x, y, z of them and of each other."""
        models = self.world.models
        if name in models and snapshot not in models:
            self.world.snapshot({name: snapshot}, clone=clone)
        elif snapshot in models and f"{snapshot}2" not in models:
            self.world.snapshot({snapshot: f"{snapshot}2"}, clone=True)

    @rule()
    def images_of_all(self) -> None:
        names = [name for name in "abc" if name in self.world.models]
        if names and not any(f"all{name}" in self.world.models for name in names):
            self.world.snapshot({name: f"all{name}" for name in names})

    @rule(pick=st.integers(0, 99), how=st.sampled_from(["write", "delete", "rollback"]))
    def use_image(self, pick: int, how: str) -> None:
        models = self.world.models
        images = [name for name in models if name not in "abc"]
        if not images:
            return
        name = images[pick % len(images)]
        if how == "delete":
            self.world.delete_volume(name)
        elif not models[name].frozen:
            self.world.write(name, 8 * (pick % (models[name].size // 4096)), 8)
        elif how == "rollback":
            family = self.world.pool.volume(name).info.family
            for volume in self.world.pool.volumes:
                if volume.info.writable and volume.info.family == family:
                    self.world.rollback(volume.name, name)
                    break

    @rule()
    def sync(self) -> None:
        self.world.sync()

    @rule()
    def clear_intents(self) -> None:
        self.world.clear_intents()

    @rule(index=st.integers(0, 3), how=st.sampled_from(["fail", "break", "lose", "replace", "vanish"]))
    @precondition(lambda self: self.shape[0] != 0)
    def member(self, index: int, how: str) -> None:
        index %= self.shape[1]
        states = [member["state"] for member in self.world.pool.status()["groups"][0]["members"]]
        if how == "fail":
            self.world.fail_member(index)
        elif how == "break":
            self.world.break_member(index)
        elif how == "lose":
            self.world.lose_writes(index)
        elif how == "vanish":
            self.world.vanish_member(index)
        else:
            self.world.replace_member(states.index("failed") if "failed" in states else index)

    @rule(index=st.integers(0, 3))
    def replace_in_place(self, index: int) -> None:
        self.world.settle()
        if self.world._state(index % self.shape[1]) == "in_sync":
            self.world.replace_member(index % self.shape[1])

    @rule(how=st.sampled_from(["return", "add spare", "take spare", "break new"]))
    def come_and_go(self, how: str) -> None:
        self.world.settle()
        if how == "return":
            self.world.return_member()
        elif how == "add spare":
            self.world.add_spare()
        elif how == "take spare":
            self.world.take_spare()
        else:
            self.world.break_successor()

    @rule(index=st.integers(0, 3), blocks=st.integers(1, 6))
    @precondition(lambda self: self.checksums)
    def rot(self, index: int, blocks: int) -> None:
        self.world.settle()
        self.world.damage_member(index % self.shape[1], blocks)
        self.rotted = self.rotted or bool(self.world.damaged)

    @rule()
    @precondition(lambda self: self.checksums and self.world.damaged)
    def scrub(self) -> None:
        self.world.settle()
        self.world.repair_damage()

    @rule(steps=st.integers(1, 12))
    def rebuild(self, steps: int) -> None:
        self.world.rebuild(steps)

    @rule()
    def check(self) -> None:
        self.world.settle()
        self.world.check_contents()
        self.world.check_books()
        check_space(self.world.pool)

    @rule(first=st.integers(1, 30), at=FRACTION, count=st.sampled_from([1, 8, 32, 70]))
    def cut_while_writing(self, first: int, at: float, count: int) -> None:
        """The power goes in the middle of a write, and maybe once more in the recovery."""
        model = self.world.models.get("a")
        if model is None or not self._sound():
            return
        sector = int(at * (model.size // SECTOR_BYTES))
        self.world.disk.cut_at(self.world.disk.operations + first % 7)
        try:
            self.world.write("a", sector, min(count, model.size // SECTOR_BYTES - sector))
            self.world.sync()
        except PowerCut:
            self._crash(lambda: self.world.power_cut_and_open(cut_open_at=first))
        else:
            self.world.disk.cut_at(None)

    @rule()
    def restart(self) -> None:
        self.world.settle()
        if not self.world.losing:
            self.world.close_and_open()

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        if not self._sound():
            return
        self._crash(self.world.power_cut_and_open if power else self.world.kill_and_open)

    def _sound(self) -> bool:
        """Have what rotted repaired; False when that is not possible now."""
        self.world.settle()
        self.world.repair_damage()
        return not self.world.damaged

    def _crash(self, crash: Callable[[], None]) -> None:
        try:
            crash()
            if not self.world.losing:
                audit(self.world.pool, self.world.disk)
        except DoubleFault:
            self.start(self.world.rng.randrange(1 << 32))

    def teardown(self) -> None:
        """Whatever happened, what is there can be read with members gone."""
        if hasattr(self, "world"):
            sound = self._sound()
            if not self.world.losing and sound:
                self.world.rebuild(50)
                if not self.rotted:
                    self.world.check_no_checksum_error()
                audit(self.world.pool, self.world.disk)
                self.world.check_redundancy()


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (5, 3), (6, 4), (10, 4)], ids=lambda s: f"raid{s[0]}")
def test_a_pool_behaves_like_its_model(shape: tuple[int, int], checksums: bool) -> None:
    machine = type(f"Raid{shape[0]}Machine", (PoolMachine,), {"shape": shape, "checksums": checksums})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=bool(os.environ.get("CI")),
        ),
    )
