"""Cuts a pool's workload at each of its storage operations, and looks at what every outcome leaves.

A run is named by its level, members and seed; the workload is drawn from the seed. It is run again and again, cut one
operation (or `stride`) later each time, then killed or deprived of power in several ways, opened and compared. What
must hold is PoolWorld's business.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from tests.testing.fakedisk import PowerCut
from tests.testing.poolaudit import audit
from tests.testing.poolmodel import DoubleFault
from tests.testing.poolworld import PoolWorld

Step = Callable[[PoolWorld], object]


def workload(seed: int, steps: int = 30) -> list[Step]:
    """Draw steps that write, trim, sync, run out of space, and make and unmake volumes."""
    rng = random.Random(seed)
    plan: list[Step] = [lambda w: w.create_volume("a", 8 * 16384), lambda w: w.create_volume("b", 6 * 16384)]
    for _ in range(steps):
        plan.append(_draw(rng))
    return plan


def _draw(rng: random.Random) -> Step:
    name = rng.choice("ab")
    sectors = {"a": 256, "b": 192}[name]
    first = rng.randrange(sectors)
    count = min(rng.choice([1, 3, 8, 16, 40]), sectors - first)
    dice = rng.random()
    if dice < 0.45:
        return lambda w: w.write(name, first, count)
    if dice < 0.62:
        area = first // 32 * 32
        return lambda w: w.zero(name, area, 32 * (1 + (area + 64 <= sectors)))
    if dice < 0.68:
        punch = rng.random() < 0.5
        return lambda w: w.zero(name, first, count, punch)
    if dice < 0.82:
        return lambda w: w.sync()
    if dice < 0.92:
        return lambda w: w.clear_intents()
    if dice < 0.96:
        return _remake
    return lambda w: w.close_and_open()


def degraded_workload(seed: int, steps: int = 24) -> list[Step]:
    """Draw steps in which members fail, are replaced and rebuilt under writes."""
    rng = random.Random(seed)
    plan: list[Step] = [lambda w: w.create_volume("a", 8 * 16384), lambda w: w.create_volume("b", 6 * 16384)]
    for _ in range(steps):
        index, dice = rng.randrange(4), rng.random()
        if dice < 0.5:
            plan.append(_draw(rng))
        else:
            plan.append(partial(_member_step, index=index, dice=dice))
        plan.append(PoolWorld.settle)
    return plan


def image_workload(seed: int, steps: int = 24) -> list[Step]:
    """Draw steps with snapshots, clones, copies on write, deletion, rollback and moves; for a pool of two groups."""
    rng = random.Random(seed)
    plan: list[Step] = [
        lambda w: w.create_volume("a", 8 * 16384),
        lambda w: w.create_volume("b", 6 * 16384),
        lambda w: w.write("a", 0, 200),
    ]
    for _ in range(steps):
        dice = rng.random()
        if dice < 0.45:
            plan.append(_draw(rng))
        else:
            plan.append(partial(_image_step, dice=dice, pick=rng.random(), first=rng.randrange(8)))
    return plan


def move_workload(seed: int) -> list[Step]:
    """Volumes with snapshots that move to the other group and back while they are written."""
    rng = random.Random(seed)
    plan: list[Step] = [
        lambda w: w.create_volume("a", 4 * 16384),
        lambda w: w.write("a", 0, 128),
        lambda w: w.snapshot({"a": "sa"}),
        lambda w: w.write("a", 40, 8),
        lambda w: w.sync(),
    ]
    for group in "hg":
        plan.append(partial(_begin_move, group=group))
        for _ in range(3):
            plan += [lambda w: w.move_steps(1), partial(_write_somewhere, first=rng.randrange(120))]
            if rng.random() < 0.5:
                plan.append(lambda w: w.clear_intents())
    return plan


def _begin_move(world: PoolWorld, group: str) -> None:
    world.move("a", 0, 4, group)


def _write_somewhere(world: PoolWorld, first: int) -> None:
    world.write("a", first, 8)


def _image_step(world: PoolWorld, dice: float, pick: float, first: int) -> None:
    number = int(pick * 1000)
    images = [name for name in world.models if name[0] in "sk"]
    image = images[number % len(images)] if images else ""
    if dice < 0.60:
        new = {name: f"s{name}{number}" for name in ("ab" if pick < 0.4 else "a" if pick < 0.8 else "b")}
        if len(images) < 6 and not set(new.values()) & world.models.keys():
            world.snapshot(new)
    elif dice < 0.66:
        if image and f"k{number}" not in world.models:
            world.snapshot({image: f"k{number}"}, clone=True)
    elif dice < 0.74:
        if image and not world.models[image].frozen:
            world.write(image, first * 16, 20)
        elif image.startswith("sa") and pick < 0.5:
            world.rollback("a", image)
        else:
            world.write("a", first * 32 + 3, 9)
    elif dice < 0.82:
        if image and not any(move["volume"] == image for move in world.pool.moves()):
            world.delete_volume(image)
    elif dice < 0.88:
        world.move(image if image and pick < 0.2 else "a", first // 2, 1 + number % 5, "gh"[number % 2])
    else:
        world.move_steps(1 + number % 4)
        if number % 2:
            world.relocate(image or "a", first)


def scrubbed(plan: list[Step], seed: int) -> list[Step]:
    """The plan, with steps of a scrub in between."""
    rng = random.Random(seed)
    mixed: list[Step] = plan[:2]
    for step in plan[2:]:
        mixed.append(step)
        if rng.random() < 0.4:
            mixed.append(lambda w: w.scrub(1))
    return mixed


def grown(plan: list[Step], seed: int, share: float = 0.1) -> list[Step]:
    """The plan, with steps in between in which the first group's members are enlarged and it takes the room."""
    rng = random.Random(seed)
    mixed: list[Step] = plan[:2]
    for number, step in enumerate(plan[2:]):
        mixed.append(step)
        if number == 2 or rng.random() < share:
            mixed += [partial(PoolWorld.grow, areas=rng.choice([1, 3, 6])), write_all]
    return mixed


def write_all(world: PoolWorld) -> None:
    """Every volume takes areas of the new room, as far as there are enough."""
    for name in "ab":
        for first in range(3, world.models[name].size // 512, 32):
            world.write(name, first, 2)


def _member_step(world: PoolWorld, index: int, dice: float) -> None:
    index %= len(world.pool.status()["groups"][0]["members"])
    if dice < 0.58:
        world.fail_member(index)
    elif dice < 0.63:
        world.break_member(index)
    elif dice < 0.68:
        world.lose_writes(index)
    elif dice < 0.78:
        states = [member["state"] for member in world.pool.status()["groups"][0]["members"]]
        world.replace_member(states.index("failed") if "failed" in states else index)
    else:
        world.rebuild(4 if dice < 0.95 else 100)


def member_workload(seed: int, steps: int = 26) -> list[Step]:
    """Draw steps in which good members are replaced, members vanish and come back, and spares take over."""
    rng = random.Random(seed)
    plan: list[Step] = [lambda w: w.create_volume("a", 8 * 16384), lambda w: w.create_volume("b", 6 * 16384)]
    for _ in range(steps):
        index, dice = rng.randrange(4), rng.random()
        if dice < 0.45:
            plan.append(_draw(rng))
        else:
            plan.append(partial(_swap_step, index=index, dice=dice))
        plan.append(PoolWorld.settle)
    return plan


def _swap_step(world: PoolWorld, index: int, dice: float) -> None:
    index %= len(world.pool.status()["groups"][0]["members"])
    if dice < 0.54:
        world.replace_member(index)
    elif dice < 0.56:
        world.break_successor()
    elif dice < 0.59:
        world.break_member(index)
    elif dice < 0.66:
        world.vanish_member(index)
    elif dice < 0.69:
        world.fail_member(index)
    elif dice < 0.78:
        world.return_member()
    elif dice < 0.81:
        world.add_spare()
    elif dice < 0.84:
        world.take_spare()
    else:
        world.rebuild(3 if dice < 0.94 else 100)


def away_workload(seed: int, steps: int = 30) -> list[Step]:
    """Draw steps in which a member is away while areas are freed and given out, also to nobody who writes to them."""
    rng = random.Random(seed)
    plan: list[Step] = [
        lambda w: w.create_volume("a", 8 * 16384),
        lambda w: w.create_volume("b", 6 * 16384),
        lambda w: w.write("a", 0, 250),
        lambda w: w.create_volume("t", 4 * 16384, thin=False),
        _write_thick,
    ]
    for _ in range(steps):
        index, area, dice = rng.randrange(4), rng.randrange(6), rng.random()
        if dice < 0.22:
            plan.append(_draw(rng))
        elif dice < 0.36:
            plan += [partial(_vanish, index=index), partial(_write_somewhere, first=area * 32)]
        elif dice < 0.44:
            plan.append(partial(_trim_areas, first=area, areas=1 + index))
        elif dice < 0.54:
            plan.append(_write_thick)
        elif dice < 0.70:
            plan.append(partial(_remake_thick, areas=3 + index))
        elif dice < 0.82:
            plan += [PoolWorld.clear_intents, PoolWorld.clear_intents]
        else:
            plan += [PoolWorld.return_member, partial(_rebuild, steps=2 + 20 * (area % 2))]
        plan.append(PoolWorld.settle)
    return plan


def _vanish(world: PoolWorld, index: int) -> None:
    world.vanish_member(index % len(world.pool.status()["groups"][0]["members"]))


def _trim_areas(world: PoolWorld, first: int, areas: int) -> None:
    """Give areas of volume a back."""
    world.zero("a", first * 32, min(areas, 8 - first) * 32)


def _rebuild(world: PoolWorld, steps: int) -> None:
    world.rebuild(steps)


def combined_workload(seed: int, steps: int = 36, *, groups: bool) -> list[Step]:
    """Everything at once: images and moves, members that fail, vanish, return and are replaced, scrubs, thick volumes.

    groups: RAID groups come and go, too.
    """
    rng = random.Random(seed)
    plan: list[Step] = [
        lambda w: w.create_volume("a", 8 * 16384),
        lambda w: w.create_volume("b", 6 * 16384),
        lambda w: w.write("a", 0, 200),
    ]
    for _ in range(steps):
        index, dice, share = rng.randrange(4), rng.random(), rng.random()
        if dice < 0.35:
            plan.append(_draw(rng))
        elif dice < 0.62:
            plan.append(partial(_image_step, dice=0.45 + 0.55 * share, pick=rng.random(), first=rng.randrange(8)))
        elif dice < 0.69:
            plan.append(partial(_member_step, index=index, dice=0.5 + 0.5 * share))
        elif dice < 0.78 and groups:
            plan.append(PoolWorld.add_group if share < 0.4 else PoolWorld.remove_group)
        elif dice < 0.82:
            plan.append(lambda w: w.scrub(1))
        elif dice < 0.86:
            plan.append(partial(_remake_thick, areas=1 + index * 2))
        else:
            plan.append(partial(_swap_step, index=index, dice=0.45 + 0.55 * share))
        plan.append(PoolWorld.settle)
    return plan


def _remake_thick(world: PoolWorld, areas: int) -> None:
    """Volume t takes areas that nobody writes to, or gives them back."""
    if "t" in world.models:
        world.delete_volume("t")
    else:
        world.create_volume("t", areas * 16384, thin=False)


def _write_thick(world: PoolWorld) -> None:
    """Volume t, if it is there, is written all over, and its marks are cleared: when it goes, nothing tells of it."""
    if "t" in world.models:
        world.write("t", 0, world.models["t"].size // 512)
        world.sync()
        for _ in range(2):
            world.clear_intents()


def _remake(world: PoolWorld) -> None:
    """Volume c comes, is written, grows, and goes."""
    if "c" in world.models:
        if world.models["c"].size > 32768:
            world.delete_volume("c")
        else:
            world.resize_volume("c", 40960)
    else:
        world.create_volume("c", 20480)
        world.write("c", 30, 10)


Second = tuple[int, int] | None
"""Level and members of a second group, when there is one."""


def run(
    level: int,
    members: int,
    seed: int,
    cut: int | None,
    plan: list[Step],
    second: Second = None,
    checksums: bool = False,
) -> PoolWorld | None:
    """Run the plan up to the cut; None when it ends before."""
    world = PoolWorld(random.Random(seed), level, members, second=second, checksums=checksums)
    start = world.disk.operations
    if cut is not None:
        world.disk.cut_at(start + cut)
    try:
        for step in plan:
            step(world)
    except PowerCut:
        return world
    return None if cut is not None else world


def operations_of(
    level: int, members: int, seed: int, plan: list[Step], second: Second = None, checksums: bool = False
) -> int:
    """How many storage operations the plan makes."""
    world = PoolWorld(random.Random(seed), level, members, second=second, checksums=checksums)
    start = world.disk.operations
    for step in plan:
        step(world)
    return world.disk.operations - start


def explore(
    level: int,
    members: int,
    seed: int,
    stride: int,
    plan: list[Step],
    second: Second = None,
    checksums: bool = False,
) -> int:
    """Cut the run at every stride-th operation, each time with a kill and several power cuts; return the crashes."""
    total = operations_of(level, members, seed, plan, second, checksums)
    crashes = 0
    for cut in range(seed % stride, total, stride):
        world = run(level, members, seed, cut, plan, second, checksums)
        if world is None:
            break
        for outcome in ("kill", "drop", "random", "random again", "twice"):
            try:
                _crash(world.fork(random.Random(f"{seed} {cut} {outcome}")), outcome)
            except DoubleFault:
                continue
            except BaseException as exc:
                exc.add_note(f"level {level}, members {members}, seed {seed}, cut {cut}, {outcome}")
                raise
            crashes += 1
    return crashes


def _crash(world: PoolWorld, outcome: str) -> None:
    if outcome == "kill":
        world.kill_and_open()
    elif outcome == "drop":
        world.power_cut_and_open(lambda _i, _w: "drop")
    elif outcome == "twice":
        world.power_cut_and_open(cut_open_at=world.rng.randrange(1, 40))
    else:
        world.power_cut_and_open()
    finish(world)


def finish(world: PoolWorld) -> None:
    """Let a pool that was opened after a crash go on until all is well again, and look closely. Ends this world."""
    for _ in range(3):
        world.move_steps(1)
    world.check_new_volume_is_zero()
    world.losing = ""  # what was about to break is whole again in this world
    world.return_member()
    world.rebuild(100)
    world.check_books()
    world.check_no_checksum_error()
    audit(world.pool, world.disk)
    world.scrub(100)
    world.check_redundancy()
