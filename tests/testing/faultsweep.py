"""The N-th I/O of each kind on one member fails, for N = 1, 2, 3 … until a run comes through without reaching N.

A scenario has a part that prepares a pool and a part in which the fault is armed. Whatever happens in the second must
end well or in an error that says so (RaidError or OSError, nothing else). Then:
* while the pool still runs, what can be read is what was acknowledged (of the call that failed: old or new);
* after a kill or a power cut, with the fault gone, the pool opens with every member that had no fault, and holds what
  was acknowledged; it may refuse only where more is lost than the level bears, or a member in the moment of a crash;
* no area is lost or used twice, redundancy agrees, and the member that was failed can be replaced and rebuilt;
* nobody synced a file again after its sync had failed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raidlib import GroupSpec, Pool
from raidlib.errors import RaidError
from tests.testing.fakedisk import SECTOR_BYTES
from tests.testing.faultdisk import Fault, FaultDisk
from tests.testing.poolaudit import audit, check_space
from tests.testing.poolmodel import TOLERATES, DoubleFault, Violation
from tests.testing.poolworld import PoolWorld

LOUD = (RaidError, OSError, DoubleFault)
ERRORS = [
    ("read", "EIO"),
    ("read", "short"),
    ("write", "EIO"),
    ("write", "ENOSPC"),
    ("write", "short"),
    ("sync", "EIO"),
    ("punch", "EIO"),
    ("reserve", "ENOSPC"),
    ("reserve", "EIO"),
]
MOST_IOS = 2000
"""No scenario makes so many I/Os of a kind: whoever gets there does not end."""
Part = Callable[[PoolWorld], object]


class Scenario(NamedTuple):
    """What is done before the fault is armed, and under it."""

    name: str
    prepare: Part
    act: Part
    away: int = 0
    """Members that are gone when it begins."""


def _volumes(world: PoolWorld) -> None:
    world.create_volume("a", 6 * 16384)
    world.create_volume("b", 20480)
    world.write("a", 3, 40)
    world.write("b", 0, 9)
    world.sync()


def _write(world: PoolWorld) -> None:
    world.write("a", 0, 8)
    world.write("a", 30, 20)
    world.write("b", 30, 8)
    world.sync()
    world.write("a", 64, 64)
    world.write("a", 65, 1)
    world.clear_intents()
    world.clear_intents()
    world.write("a", 4, 2)
    world.sync()


def _degrade(world: PoolWorld) -> None:
    _volumes(world)
    world.fail_member(0)


def _begin_rebuild(world: PoolWorld) -> None:
    _volumes(world)
    world.fail_member(0)
    world.replace_member(0)


def _rebuild(world: PoolWorld) -> None:
    world.rebuild(2)
    world.write("a", 1, 12)
    world.rebuild(30)
    world.write("a", 30, 8)
    world.sync()


def _replace(world: PoolWorld) -> None:
    world.replace_member(0)
    world.write("a", 10, 12)
    world.rebuild(30)
    world.sync()


def _resize(world: PoolWorld) -> None:
    world.resize_volume("b", 45056)
    world.write("b", 60, 20)
    world.resize_volume("b", 24576)
    world.sync()
    world.resize_volume("b", 65536)
    world.write("b", 100, 8)


def _delete(world: PoolWorld) -> None:
    world.delete_volume("b")
    world.create_volume("c", 40960, thin=False)
    if "c" in world.models:
        world.write("c", 10, 20)
        world.sync()
        world.delete_volume("c")


def _zero(world: PoolWorld) -> None:
    world.zero("a", 0, 64)
    world.zero("a", 66, 5)
    world.sync()
    world.zero("b", 0, 20, punch=False)
    world.write("a", 2, 6)
    world.zero("a", 32, 32, punch=False)
    world.sync()


def _crash(world: PoolWorld) -> None:
    _volumes(world)
    world.write("a", 0, 50)
    world.zero("b", 0, 32)
    world.write("b", 33, 3)


def _open(world: PoolWorld) -> None:
    world.reopen(power=True, boot_id="b")
    world.write("a", 5, 6)
    world.sync()


def _close(world: PoolWorld) -> None:
    world.write("a", 60, 10)
    world.pool.close()
    for model in world.models.values():
        model.since_sync.clear()


def _grow(world: PoolWorld) -> None:
    world.grow(5)
    world.write("a", 20, 90)
    world.sync()


SCENARIOS = [
    Scenario("write", _volumes, _write),
    Scenario("degraded write", _degrade, _write, away=1),
    Scenario("rebuild", _begin_rebuild, _rebuild, away=1),
    Scenario("replace", _volumes, _replace, away=1),
    Scenario("resize", _volumes, _resize),
    Scenario("delete", _volumes, _delete),
    Scenario("zero", _volumes, _zero),
    Scenario("open after a crash", _crash, _open),
    Scenario("close", _volumes, _close),
    Scenario("grow", _volumes, _grow),
]
"""The eleventh is sweep_create."""


class Sweep:
    """One scenario on one shape; run() tries a fault."""

    def __init__(self, scenario: Scenario, level: int, members: int) -> None:
        self.scenario, self.level = scenario, level
        self.runs = 0
        self._disk = FaultDisk(random.Random(1))
        self._world = PoolWorld(random.Random(1), level, members, disk=self._disk)
        scenario.prepare(self._world)
        if scenario.act is _open:
            self._disk.crash()
        else:
            self._world.close_and_open()
            self._world.pool.close()
        self._saved = self._disk.snapshot()

    @property
    def members(self) -> list[str]:
        """The files a fault can be on: members in use, and the one to come."""
        names = self._world.paths[self.scenario.away and self.scenario.act is _write :]
        return [*names, "spare1"] if self.scenario.act is _replace else list(names)

    def to_exhaustion(self, file: str, kind: str, error: str, for_ever: bool) -> int:
        """Try N = 1, 2, … until a run does not reach N; return the last. A failure tells the fault."""
        for number in range(1, MOST_IOS):
            fault = Fault(file, kind, error, number, for_ever)
            try:
                if not self.run(fault):
                    return number
            except BaseException as exc:
                exc.add_note(f"{self.scenario.name}, RAID {self.level}: {fault}")
                raise
        raise Violation(f"{self.scenario.name} does not end with {kind} {error}")

    def run(self, fault: Fault) -> bool:
        """Return whether the fault was met."""
        self.runs += 1
        disk = FaultDisk(random.Random(1))
        disk.restore(self._saved)
        world = self._world.fork(random.Random(1), disk)
        if self.scenario.act is not _open:
            world.pool = Pool.open(world.paths, disk.open_exclusive, boot_id="a")
        disk.arm(fault)
        failed: BaseException | None = None
        try:
            self.scenario.act(world)
        except LOUD as exc:
            failed = exc
        except Violation as exc:
            if self.level or not isinstance(exc.__cause__, RaidError):
                raise
            failed = exc  # what RAID 0 has opened cannot be read, and says so
        if failed is not None and not disk.hit:
            raise failed
        self._check_running(world, failed)
        synced = failed is None and fault.number % 4 < 2 and not world.pool._closed
        if synced:
            self._sync(world)
        if disk.syncs_after_failure:
            raise Violation(f"{fault.file} was synced again after its sync had failed")
        hit = disk.hit
        disk.arm(None)
        self._check_again(world, fault, synced, power=bool(fault.number % 2))
        return hit

    def _sync(self, world: PoolWorld) -> None:
        try:
            world.sync()
        except LOUD:
            if TOLERATES[self.level] > self.scenario.away:
                raise

    def _check_running(self, world: PoolWorld, failed: BaseException | None) -> None:
        """What the pool still gives out is right."""
        if world.pool._closed or (failed is not None and self.scenario.act is _open):
            return
        check_space(world.pool)
        flight = world._in_flight
        for name, model in world.models.items():
            try:
                found = world._read_tags(name)
            except Violation as exc:
                if isinstance(exc.__cause__, RaidError):
                    continue  # it said so
                raise
            for sector, (value, acknowledged) in enumerate(zip(found, model.current, strict=False)):
                unsure = flight is not None and flight.volume == name and sector in flight.sectors
                if value != acknowledged and not (unsure and flight is not None and value == flight.tag):
                    raise Violation(f"{name} sector {sector} is served as {value}, not {acknowledged}")

    def _check_again(self, world: PoolWorld, fault: Fault, synced: bool, power: bool) -> None:
        """After the process died, or the power went."""
        disk = world.disk
        if power:
            disk.crash(lambda _index, _write: "drop")
        else:
            disk.kill()
        redundant = TOLERATES[self.level] > self.scenario.away
        # A parity group that loses a member and stops, or recovers from a crash, in the same moment may have to refuse.
        must_open = redundant and (self.level in (1, 10) or (synced and self.scenario.act is not _open))
        boot_id = "c" if power else "a"
        world.paths = disk.names()
        try:
            # Without redundancy a failed sync, which was reported, has lost what a power cut could have taken.
            world.reopen(power=power or not redundant or self.scenario.act is _open, boot_id=boot_id)
        except LOUD:
            if must_open:
                raise
            return
        status = world.pool.status()["groups"][0]
        if status["state"] == "lost":
            return
        for member in status["members"]:
            if member["state"] == "failed" and member["path"] != fault.file and member["path"] not in self._gone(world):
                raise Violation(f"{member['path']} had no fault and is failed: {member['reason']}")
        audit(world.pool, disk)
        world.paths = [member["path"] for member in status["members"]]
        for index, member in enumerate(status["members"]):
            if member["state"] == "failed":
                world.new_disks = 8 + index
                world.replace_member(index)
        world.rebuild(60)
        world.check_redundancy()

    def _gone(self, world: PoolWorld) -> list[str]:
        return ["m0"] if self.scenario.away else []


def sweep_create(level: int, members: int, kind: str, error: str, for_ever: bool) -> int:
    """A create that meets the fault leaves no pool, or an empty one, and the next create with force works."""
    for number in range(1, MOST_IOS):
        disk = FaultDisk(random.Random(1))
        names = [f"m{i}" for i in range(members)]
        for name in names:
            disk.create(name, 512 << 10)
        spec = GroupSpec("g", level, names, 4096)
        disk.arm(Fault("m0", kind, error, number, for_ever))
        pool: Pool | None = None
        try:
            pool = Pool.create("tank", [spec], 16384, disk.open_exclusive)
        except LOUD:
            pass
        hit = disk.hit
        disk.arm(None)
        disk.crash(lambda _index, _write: "drop") if number % 2 else disk.kill()
        try:
            opened = Pool.open(names, disk.open_exclusive, boot_id="c")
        except RaidError:
            if pool is not None and level:
                raise
        else:
            if opened.volumes:
                raise Violation("a new pool has volumes")
            opened.close()
        again = Pool.create("tank", [spec], 16384, disk.open_exclusive, force=True)
        again.create_volume("v", 65536).pwrite(bytes(SECTOR_BYTES), 0)
        again.close()
        if not hit:
            return number
    raise Violation("create does not end")


def faults(members: list[str], all_members: bool, salt: str) -> Iterator[tuple[str, str, str, bool]]:
    """(file, kind, error, for ever) to go through; one member for each, or all."""
    rng = random.Random(salt)
    for kind, error in ERRORS:
        for for_ever in (False, True):
            if error == "short" and for_ever:
                continue
            for file in members if all_members else [rng.choice(members)]:
                yield file, kind, error, for_ever
