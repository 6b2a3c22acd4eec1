"""Crash states of a pair of engines: a workload is stopped before every operation on either disk, and brought up again.

At each cut both processes die. The disks are then tried as a kill leaves them (nothing lost), and as a power cut on one
side or both leaves them (every unsynced write kept, dropped or torn, mapped bytes kept or lost). Every such state must

* open, on both sides, with a state that is whole;
* after a kill: hold exactly what hosts were answered, and the change in flight or not;
* after a power cut: hold everything that a flush had covered;
* on a secondary that says "ok": be the fold of the first n records, for the n it states;
* differ between the sides only in blocks of the union of bitmaps that a handshake would use;
* become equal again by what the handshake decides, also when the node dies once more on the way;
* never give out an epoch a second time.

FARSTRIPE_CRASH=10 tries every cut with ten seeds (minutes); FARSTRIPE_CRASH_ONLY="name:cut:seed" repeats one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from replicator.capture import copier, edges, follower, roles
from replicator.capture.bitmaps import BLOCK_BYTES
from replicator.capture.state import DIVERGED, OK, PRIMARY, SECONDARY, StateFile
from replicator.core.epochs import common_position
from replicator.core.handshake import Action
from tests.testing.fakedisk import SECTOR_BYTES, FakeDisk, Fate, PowerCut
from tests.testing.pairharness import Pair, Saved, Side, running_pair

ONLY = os.environ.get("FARSTRIPE_CRASH_ONLY", "")
SEEDS = int(os.environ.get("FARSTRIPE_CRASH", "1"))
FATES: tuple[Fate | None, ...] = (None, None, "drop", "keep")
POWER = ((), ("a",), ("b",), ("a", "b"))


@dataclass
class Change:
    """A host's change, as the host sees it."""

    volume: int
    offset: int
    data: bytes


class Explorer:
    """A pair under a workload, and the crash states it passes through."""

    def __init__(self, name: str, pair: Pair) -> None:
        self.name = name
        self.pair = pair
        self.primary = pair.a
        self.model = [bytearray(v) for v in self.primary.image()]
        self.in_flight: Change | None = None
        self.unflushed: set[tuple[int, int]] = set()  # (volume, sector)
        self.cut = 0
        self.states = 0
        self.discard = ""
        self._exploring = False
        for side in (pair.a, pair.b):
            side.disk.trace = self._before_change

    # -- what hosts do --------------------------------------------------------------------------------------------

    def write(self, offset: int, fill: int, length: int = 4096, volume: int = 0, fua: bool = False) -> None:
        """A host write."""
        self._change(Change(volume, offset, bytes([fill]) * length))
        self.primary.write(offset, fill, length=length, volume=volume, fua=fua)
        self._changed()
        if fua:
            self.unflushed -= set(self._sectors(volume, offset, length))

    def zero(self, offset: int, length: int, volume: int = 0) -> None:
        """A host's write-zeroes."""
        self._change(Change(volume, offset, bytes(length)))
        self.primary.engine.zero(volume, offset, length, True)
        self._changed()

    def flush(self) -> None:
        """A host's flush."""
        self.primary.engine.flush()
        self.unflushed.clear()

    def _change(self, change: Change) -> None:
        self.in_flight = change
        self.unflushed |= set(self._sectors(change.volume, change.offset, len(change.data)))

    def _changed(self) -> None:
        c, self.in_flight = self.in_flight, None
        assert c is not None
        self.model[c.volume][c.offset : c.offset + len(c.data)] = c.data

    @staticmethod
    def _sectors(volume: int, offset: int, length: int) -> list[tuple[int, int]]:
        return [(volume, s) for s in range(offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES)]

    # -- cuts -----------------------------------------------------------------------------------------------------

    def _before_change(self, op: str, file: str, off: int, length: int) -> None:
        if self._exploring:
            return
        self.cut += 1
        self._exploring = True
        try:
            saved = self.pair.a.save(), self.pair.b.save()
            for seed in range(SEEDS):
                for lost in POWER:
                    self._try(saved, lost, seed, f"{op} {file} {off}+{length}")
        finally:
            self._exploring = False

    def _try(self, saved: tuple[Saved, Saved], lost: tuple[str, ...], seed: int, where: str) -> None:
        case = f"{self.name}:{self.cut}:{seed}"
        if ONLY and case != ONLY:
            return
        self.states += 1
        try:
            Aftermath(self, saved, lost, random.Random(f"{case}{lost}")).check()
        except Exception as exc:
            raise AssertionError(
                f"before {where}, power lost on {lost or 'neither side'}: {exc!r}\n"
                f"again: FARSTRIPE_CRASH={SEEDS} FARSTRIPE_CRASH_ONLY={case} python -m pytest {__file__} -k {self.name}"
            ) from exc


class Aftermath:
    """One crash state, and what becomes of it."""

    def __init__(self, before: Explorer, saved: tuple[Saved, Saved], lost: tuple[str, ...], rng: random.Random) -> None:
        self.before = before
        self.rng = rng
        self.lost = lost
        shape = {"sizes": before.pair.a.sizes, "journal_bytes": before.pair.a.journal_bytes}
        self.a, self.b = Side("a", seed=rng.getrandbits(32), **shape), Side("b", seed=rng.getrandbits(32), **shape)
        self.a.restore(saved[0])
        self.b.restore(saved[1])
        self.pair = Pair(self.a, self.b)
        self.pair.truth.learn(before.pair.truth)
        self.old_epochs = {epoch for epoch, _ in before.pair.truth.records} | _durable_epochs(saved)

    def check(self) -> None:
        """Die, come back, look, meet, and look again."""
        for side in (self.a, self.b):
            self._die(side, side.name in self.lost)
        self._bring_up()
        primary = self.a if self.before.primary.name == "a" else self.b
        if primary.engine.state.role == PRIMARY:
            self._check_host_view(primary)
        self._check_prefixes()
        self._check_bitmaps()
        if self.rng.random() < 0.5:
            self._die_again()
        self._sync_up()
        self._check_epochs()

    def _die(self, side: Side, power: bool) -> None:
        if power:
            side.power_cut(self.rng.choice(FATES))
        else:
            side.kill()

    def _bring_up(self) -> None:
        for side in (self.a, self.b):
            if side._engine is None:
                side.start()
                assert not side.engine.failed

    def _check_host_view(self, side: Side) -> None:
        """What the hosts of this primary were promised."""
        model, flight = self.before.model, self.before.in_flight
        unflushed = self.before.unflushed if side.name in self.lost else set()
        if flight is not None:
            unflushed = unflushed | set(Explorer._sectors(flight.volume, flight.offset, len(flight.data)))
        for volume, have in enumerate(side.image()):
            want = bytes(model[volume])
            if have == want:
                continue
            for at in range(0, len(want), SECTOR_BYTES):
                if have[at : at + SECTOR_BYTES] != want[at : at + SECTOR_BYTES]:
                    lost = (volume, at // SECTOR_BYTES) not in unflushed
                    assert not lost, f"{side.name}: answered write lost at {volume}:{at}"
        if flight is not None and side.name not in self.lost:
            piece = side.image()[flight.volume][flight.offset : flight.offset + len(flight.data)]
            old = bytes(model[flight.volume][flight.offset : flight.offset + len(flight.data)])
            assert piece in (old, flight.data), f"{side.name}: the change in flight is neither there nor not"

    def _check_prefixes(self) -> None:
        for side in (self.a, self.b):
            state = side.engine.state
            if state.role == SECONDARY and state.copy == OK:
                follower.settle(side.engine)
                want = self.pair.image_at(state.hist, side.engine.pos)
                assert side.image() == want, f"{side.name}: image is no prefix at {side.engine.pos} of {state.hist}"

    def _check_bitmaps(self) -> None:
        """Blocks that differ are in the union that a copy would use."""
        one, two = self.pair.hello(self.a), self.pair.hello(self.b)
        if not one.hist or not two.hist:
            return
        c = common_position(one.hist, one.floor, two.hist, two.floor)
        bits = [side.engine.bitmaps.newest_for(c) for side in (self.a, self.b)]
        if None in bits:
            return
        for volume, (x, y) in enumerate(zip(self.a.image(), self.b.image(), strict=True)):
            if x == y:
                continue
            for block in range((len(x) + BLOCK_BYTES - 1) // BLOCK_BYTES):
                at = block * BLOCK_BYTES
                if x[at : at + BLOCK_BYTES] == y[at : at + BLOCK_BYTES]:
                    continue
                maps = [side.engine.bitmaps.maps[volume].bytes for side in (self.a, self.b)]
                marked = any(m[block] & (bit or 0) for m, bit in zip(maps, bits, strict=True))
                assert marked, f"block {volume}:{block} differs unmarked, c={c}, one={one}, two={two}"

    def _die_again(self) -> None:
        """Die once more, after a few more writes or while coming together."""
        victim = self.rng.choice((self.a, self.b))
        power = self.rng.random() < 0.5
        for side in (self.a, self.b):
            if side.engine.state.role == PRIMARY:
                for _ in range(self.rng.choice((0, 1, 3))):
                    side.write(self.rng.randrange(60) * 4096, self.rng.randrange(256))
        victim.disk.cut_at(victim.disk.operations + self.rng.randint(0, 60))
        try:
            self._sync_up()
        except PowerCut:
            pass
        victim.disk.cut_at(None)
        self.lost = (*self.lost, victim.name) if power else self.lost
        self._die(victim, power)
        self._bring_up()
        if not self.lost:
            self._check_prefixes()
        self._check_bitmaps()

    def _sync_up(self) -> None:
        """Meet, whatever that takes, until both images are equal."""
        roles_now = {s.engine.state.role for s in (self.a, self.b)}
        if roles_now == {SECONDARY}:
            heir = self.b if self.b.engine.state.copy == OK else self.a
            roles.promote(heir.engine, accept_diverged=True)
        if all(side.engine.state.mode == "none" for side in (self.a, self.b) if side.engine.state.role == PRIMARY):
            roles.arm(self.a.engine, self.b.node_id)
        if self.b.engine.state.role == SECONDARY and not self.b.engine.state.edges:
            roles.arm(self.b.engine, self.a.node_id, upstream=True)
        self.pair.copies = self.rng.getrandbits(32)
        decision = self.pair.meet()
        if decision.action is Action.REFUSE and self.before.discard:
            decision = self.pair.meet(self.before.discard)
        assert decision.action in (Action.STREAM, Action.RESUME, Action.COPY), decision
        self.pair.sync_up(self.before.discard)

    def _check_epochs(self) -> None:
        primary = self.a if self.a.engine.state.role == PRIMARY else self.b
        other = self.b if primary is self.a else self.a
        for side in (other, primary):
            before = {h[0] for h in side.engine.state.hist}
            if side.engine.state.role == PRIMARY:
                side.engine.state.new_epoch_wanted = True
                side.write(0, 0xEE)
            else:
                assert side.engine.state.copy in (OK, DIVERGED)
                roles.promote(side.engine)
            new = side.engine.epoch
            assert new not in before | self.old_epochs, f"epoch {new:#x} was given out twice"


def _durable_epochs(saved: tuple[Saved, Saved]) -> set[int]:
    """Epochs that are on stable storage on either side, so that somebody may have been told of them."""
    found = set()
    for one in saved:
        disk = FakeDisk()
        disk.restore(one.files)
        disk.crash(lambda _index, _write: "drop")
        found |= {h[0] for h in StateFile(disk.open("state")).load().hist}  # type: ignore[arg-type]
    return found


# -- workloads --------------------------------------------------------------------------------------------------------


def clear_intents(side: Side) -> None:
    """What the target's maintenance does: twice, so that regions have stayed cool in between."""
    for _ in range(2):
        side.pool.clear_intents([v.file for v in side.engine.volumes], side.engine.sync_tracking)  # type: ignore[attr-defined]


def first_copy(x: Explorer) -> None:
    """A group with data gets its first copy while hosts write."""
    pair = x.pair
    x.write(0, 1)
    x.write(128 << 10, 2, 64 << 10)
    roles.arm(pair.b.engine, pair.a.node_id, upstream=True)
    roles.arm(pair.a.engine, pair.b.node_id)
    x.write(4096, 3)
    x.flush()
    pair.meet()
    for step in range(4):
        x.write(step * 20480, 10 + step, volume=step % 2)
        copier.copy_some(pair.a.engine, 64 << 10)
        pair.ship(pair.a, pair.b)
        follower.apply_some(pair.b.engine)
    pair.flow(pair.a, pair.b)
    x.write(8192, 9)
    pair.flow(pair.a, pair.b)


def stream(x: Explorer) -> None:
    """Writes of all kinds, shipping in pieces, checkpoints, bitmap rotation, cleared intents, the ring wrapping."""
    pair = x.pair
    edges.set_link(pair.a.engine, pair.a.edge(pair.b), True)
    for turn in range(3):
        x.write(0, turn + 1)
        x.write(60 << 10, turn + 20, 8192)
        x.write(turn * 4096, 77, volume=1, fua=turn == 1)
        pair.ship(pair.a, pair.b, 2)
        x.zero(64 << 10, 32 << 10)
        follower.apply_some(pair.b.engine, 1)
        x.flush()
        x.write(128 << 10, turn + 40, 128 << 10)
        pair.ship(pair.a, pair.b)
        follower.apply_some(pair.b.engine, 1)
        pair.acknowledge(pair.a, pair.b)
        copier.rotate_bitmaps(pair.a.engine)
        follower.checkpoint(pair.a.engine)
        clear_intents(pair.a)
        x.write(4096 * turn, turn + 60)
        pair.flow(pair.a, pair.b)
        follower.checkpoint(pair.b.engine)
        clear_intents(pair.b)
        copier.rotate_bitmaps(pair.a.engine)


def overflow(x: Explorer) -> None:
    """The journal is given up, hosts go on, and the difference is copied."""
    pair = x.pair
    x.write(0, 1)
    pair.flow(pair.a, pair.b)
    x.write(4096, 2)
    roles.overflow(pair.a.engine)
    x.write(70 << 10, 3)
    x.write(4096, 4)
    x.flush()
    clear_intents(pair.a)
    x.write(140 << 10, 5, volume=1)
    pair.meet()
    x.write(4096, 6)
    x.write(150 << 10, 7, volume=1)
    copier.copy_some(pair.a.engine, 64 << 10)
    pair.ship(pair.a, pair.b, 1)
    x.flush()
    roles.overflow(pair.a.engine)
    x.write(200 << 10, 8)
    pair.meet()
    pair.flow(pair.a, pair.b)
    x.write(0, 9)
    pair.flow(pair.a, pair.b)


def switchover(x: Explorer) -> None:
    """Roles are exchanged without loss, twice."""
    pair = x.pair
    for source, sink in ((pair.a, pair.b), (pair.b, pair.a)):
        x.write(0, 1 if source is pair.a else 2)
        x.write(100 << 10, 3)
        pair.flow(source, sink)
        roles.demote(source.engine, False, source.engine.pos)
        x.unflushed.clear()
        roles.promote(sink.engine)
        x.primary = sink
        x.write(4096, 4)
        x.flush()
        pair.meet()
        x.write(8192, 5)
        pair.flow(sink, source)


def takeover(x: Explorer) -> None:
    """The secondary takes over while the primary has more; the former primary comes back and gives way."""
    pair = x.pair
    x.discard = pair.a.node_id
    x.write(0, 1)
    pair.flow(pair.a, pair.b)
    for block in (0, 1, 3):
        x.write(block << 16, 30 + block)
    roles.promote(pair.b.engine)
    x.primary, x.model = pair.b, [bytearray(v) for v in pair.b.image()]
    x.unflushed = {(v, s) for v, size in enumerate(pair.b.sizes) for s in range(size // SECTOR_BYTES)}
    x.flush()
    x.write(0, 50)
    x.write(70 << 10, 51)
    x.flush()
    pair.meet(x.discard)
    x.write(70 << 10, 52)
    copier.copy_some(pair.b.engine, 64 << 10)
    pair.ship(pair.b, pair.a)
    follower.apply_some(pair.a.engine, 1)
    x.write(140 << 10, 53)
    pair.flow(pair.b, pair.a)


WORKLOADS: tuple[Callable[[Explorer], None], ...] = (first_copy, stream, overflow, switchover, takeover)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.__name__)
def test_every_crash_state_recovers(workload: Callable[[Explorer], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "ROTATE_MIN_BLOCKS", 1)
    if workload is first_copy:
        pair = Pair(Side("a"), Side("b"))
        pair.a.create(PRIMARY)
        pair.b.create(SECONDARY)
    else:
        pair = running_pair()
    x = Explorer(workload.__name__, pair)
    workload(x)
    assert x.states > 20 or ONLY
    print(f"{workload.__name__}: {x.cut} cuts, {x.states} crash states")
