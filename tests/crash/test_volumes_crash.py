"""Crash states of a pair whose list of volumes changes: cut before every step of every change, on either side.

At each cut both processes die, as by a kill or with power lost on one side, on both, or on none. Whatever is left must

* open, with a list that is the former or the new one, and volumes of the sizes it says;
* on a secondary that says "ok": be what the group was after the record it states, list and contents;
* on a killed primary: hold everything that hosts were answered;
* become equal, list and contents, by what the handshake decides; also when the secondary takes over instead, changes
  the list itself under the same index, and the former primary comes back.

FARSTRIPE_CRASH=4 tries every loss of power at every cut; by default one of them.

Seeded bugs at the end: orders of steps that lose something, which the exploration finds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from replicator.capture import follower, roles, volumeset
from replicator.capture.engine import GroupEngine
from replicator.capture.state import OK, PRIMARY, SECONDARY
from replicator.core import handshake
from replicator.core.errors import Refused
from replicator.core.records import Kind
from tests.testing.fakedisk import Fate
from tests.testing.listpair import Image, ListPair, ListSide, running_list_pair

SEEDS = int(os.environ.get("FARSTRIPE_CRASH", "1"))
POWER = ((), ("a",), ("b",), ("a", "b"))
FATES: tuple[Fate | None, ...] = (None, "drop", "keep")


class Explorer:
    """A pair under a workload, cut before every step while the list changes and before some of the others."""

    def __init__(self, pair: ListPair) -> None:
        self.pair = pair
        self.a, self.b = cast(ListSide, pair.a), cast(ListSide, pair.b)
        self.cut = self.states = 0
        self.changing = False
        self._exploring = False
        self._rng = random.Random(1)
        self.answered: Image = self.a.image()
        self.possible: list[Image] = [self.answered]
        for side in (self.a, self.b):
            side.disk.trace = self._before

    def put(self, name: str, offset: int, fill: int) -> None:
        """A host write of 4 KiB."""
        after = dict(self.answered)
        after[name] = after[name][:offset] + bytes([fill]) * 4096 + after[name][offset + 4096 :]
        self._do(after, lambda: self.a.put(name, offset, fill))

    def change(self, kind: Kind, name: str, size: int = 0) -> None:
        """A change of the list, and the cuts in it."""
        after = dict(self.answered)
        if kind == Kind.VOLUME_REMOVE:
            del after[name]
        else:
            after[name] = after.get(name, b"")[:size].ljust(size, b"\0")
        self.changing = True
        self._do(after, lambda: self.a.change(kind, name, size))
        self.changing = False

    def _do(self, after: Image, action: Callable[[], None]) -> None:
        self.possible = [self.answered, after]
        action()
        self.answered, self.possible = after, [after]

    def follow(self, records: int | None = None) -> None:
        """Ship and apply, with the cuts in it."""
        self.pair.ship(self.a, self.b, records)
        self.changing = True
        while follower.apply_some(self.b.engine, 1):
            pass
        self.changing = False
        self.pair.acknowledge(self.a, self.b)

    def _before(self, op: str, file: str, off: int, length: int) -> None:
        if self._exploring or not (self.changing or self._rng.random() < 0.05):
            return
        self.cut += 1
        self._exploring = True
        try:
            saved = self.a.save_all(), self.b.save_all()
            for lost in self._rng.sample(POWER, min(SEEDS, len(POWER))):
                self.states += 1
                try:
                    self._aftermath(saved, lost, random.Random(f"{self.cut}{lost}"))
                except Exception as exc:
                    raise AssertionError(
                        f"cut {self.cut} before {op} {file}, power lost on {lost or 'none'}: {exc!r}"
                    ) from exc
        finally:
            self._exploring = False

    def _aftermath(self, saved: tuple[Any, Any], lost: tuple[str, ...], rng: random.Random) -> None:
        a, b = ListSide("a", seed=rng.getrandbits(32)), ListSide("b", seed=rng.getrandbits(32))
        pair = ListPair(a, b)
        pair.forget_nothing_of(self.pair)
        for side, one in zip((a, b), saved, strict=True):
            side.restore_all(one)
            if side.name in lost:
                side.power_cut(rng.choice(FATES))
        b.start()
        _check_prefix(pair, b)
        takeover = rng.random() < 0.4
        if takeover:
            roles.promote(b.engine)
            b.change(Kind.VOLUME_ADD, "w", 64 << 10)
            b.put("w", 0, 0xBB)
            b.put("v0", 8192, 0xBB)
        a.start()
        _check_sizes(a)
        if "a" not in lost:
            assert a.image() in self.possible, "an answered write, or a change, is neither there nor not"
        else:
            assert any(set(a.image()) == set(one) for one in self.possible), (
                "the list is neither the former nor the new one"
            )
        if not takeover and rng.random() < 0.5:
            a.put("v0", 4096, 0xAA)
        _come_together(pair, a, b, a.node_id if takeover else "")
        assert a.image() == b.image()
        assert len({volumeset.identity(v) for v in a.engine.state.volumes + b.engine.state.volumes}) == len(a.image())


def _check_sizes(side: ListSide) -> None:
    for v in side.engine.state.volumes:
        assert side.pool.sizes[v["name"]] == v["size"], f"{side.name}: {v['name']} is not as the list says"
        assert side.engine.bitmaps.maps[v["index"]].size == v["size"]


def _check_prefix(pair: ListPair, side: ListSide) -> None:
    state = side.engine.state
    if state.role == SECONDARY and state.copy == OK:
        follower.settle(side.engine)
        _check_sizes(side)
        want = pair.image_of(state.hist, side.engine.pos)
        assert side.image() == want, f"{side.name}: no prefix at {side.engine.pos} of {state.hist}"


def _come_together(pair: ListPair, a: ListSide, b: ListSide, discard: str) -> None:
    """Meet until both are equal. What left a group and stands in the way of a copy is deleted, as an operator would."""
    pair.copies = 1 << 30
    if {s.engine.state.role for s in (a, b)} == {SECONDARY}:
        roles.promote((b if b.engine.state.copy == OK else a).engine, accept_diverged=True)
    for _ in range(4):
        try:
            pair.sync_up(discard)
        except Refused as exc:
            for side in (a, b):
                for name in set(side.pool.sizes) - set(side.image()):
                    if side.engine.state.role != PRIMARY and f"volume {name} " in exc.message:
                        side.pool.delete(name)
        else:
            return
    raise AssertionError("the sides do not come together")


def changes(x: Explorer) -> None:
    """Every kind of change, followed late and in pieces, with checkpoints and power-loss redo across them."""
    x.put("v0", 0, 1)
    x.change(Kind.VOLUME_ADD, "x", 64 << 10)
    x.put("x", 0, 2)
    x.put("v1", 64 << 10, 3)
    x.follow(3)
    x.change(Kind.RESIZE, "v1", 64 << 10)
    x.put("v1", 0, 4)
    x.change(Kind.RESIZE, "x", 128 << 10)
    x.put("x", 124 << 10, 5)
    x.follow()
    x.change(Kind.RESIZE, "v1", 128 << 10)
    x.change(Kind.VOLUME_REMOVE, "v1")
    x.put("v0", 4096, 6)
    x.follow(1)
    follower.checkpoint(x.a.engine)
    x.follow()
    follower.checkpoint(x.b.engine)
    x.put("x", 0, 7)
    x.follow()


def test_every_crash_leaves_one_list_and_the_contents_that_go_with_it() -> None:
    x = Explorer(running_list_pair())
    changes(x)
    assert x.states > 100


def found() -> bool:
    """Whether the exploration finds something wrong."""
    try:
        changes(Explorer(running_list_pair()))
    except AssertionError:
        return True
    return False


def test_bug_a_list_that_is_saved_before_its_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    say = volumeset._say

    def early(engine: GroupEngine, kind: Kind, entry: dict[str, Any]) -> Any:
        wanted, _ = volumeset._wanted(engine, kind, entry["name"], entry["size"])
        engine.commit(volumes=[{**v, "uuid": v.get("uuid", "")} for v in wanted])
        return say(engine, kind, entry)

    monkeypatch.setattr(volumeset, "_say", early)
    assert found()


def test_bug_redo_that_does_not_pass_over_what_is_done_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumeset, "passes_over", lambda state: (0, 0))
    assert found()


def test_bug_a_handshake_that_wants_equal_lists_everywhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_same_list", lambda *_sides: True)
    assert found()


def test_bug_a_pool_that_is_not_synced_before_a_volume_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupEngine, "sync_pool", lambda engine: engine.bitmaps.sync())
    assert found()
