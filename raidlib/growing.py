"""A pool that gets another RAID group, or gives one up, while it is used.

A new group's members are written completely (data zeroed, intent map, a checkpoint that names them, superblocks last)
before the pool's next generation says that they belong to it. A crash before that leaves the pool as it was, and files
that add-group takes with force.

A group that is to go is *draining*: nothing is allocated on it, and the mover empties it (move.py). Once it is empty,
one commit takes it out of the pool, on the members that stay; only then its own superblocks are wiped. A crash in
between leaves members that no generation of the pool knows. Its index stays taken, so that places keep their meaning,
until the next new group gets it.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable

from raidlib import create
from raidlib.blockfile import BlockFile
from raidlib.create import GroupSpec, OpenFile
from raidlib.errors import AlreadyExists, BadInput, MediumError, OutOfSpace, Refused
from raidlib.geometry import Geometry
from raidlib.intents import empty_map
from raidlib.layout import Layout
from raidlib.member import Member
from raidlib.space import Space
from raidlib.state import GroupInfo, MemberInfo, MemberState, PoolState
from raidlib.superblock import Superblock, erase_superblock, write_superblock
from raidlib.volume import Volume

Prepared = tuple[GroupInfo, list[Member], Geometry, Layout]


def prepare_group(space: Space, spec: GroupSpec, open_file: OpenFile, force: bool) -> Prepared:
    """Open and format the members of a new group; nothing of the pool changes.

    Raises BadInput, AlreadyExists, NotFound, MemberInUse, MediumError. Durable: the members' formats, but superblocks.
    """
    create.check_specs([spec])
    ledger = space.ledger
    state = ledger.state
    if any(group.name == spec.name for group in state.groups if not group.removed):
        raise AlreadyExists(f"there is a RAID group {spec.name} already", "take another name")
    if sum(not group.removed for group in state.groups) >= create.MAX_GROUPS:
        raise BadInput(f"a pool has at most {create.MAX_GROUPS} groups", "use fewer, larger ones")
    files: list[BlockFile] = []
    try:
        for path in spec.members:
            files.append(create.open_member(path, open_file))
            if not force:
                create.check_unused(files[-1])
        layouts = ledger.layouts()
        [(geometry, layout, areas)] = create.plan_layouts(
            [spec],
            [[file.size for file in files]],
            state.area_bytes,
            max(layout.checkpoint_room for layout in layouts),
            max(layout.log_bytes for layout in layouts),
        )
        infos = [MemberInfo(uuid.uuid4().hex, file.path) for file in files]
        info = GroupInfo(
            spec.name, uuid.uuid4().hex, spec.level, spec.chunk_bytes, areas, create.region_areas(areas), infos
        )
        if not all(file.zeroes_fast() for file in files):
            info.dirty = set(range(areas))
        index = _free_index(space)
        members = []
        for number, (its, file) in enumerate(zip(infos, files, strict=True)):
            superblock = Superblock(state.uuid, its.uuid, file.size, layout)
            create.format_member(file, superblock, areas, geometry, empty_map(-(-areas // info.region_areas)))
            members.append(Member(index, number, its, layout, file))
        return info, members, geometry, layout
    except OSError as exc:
        _close(files)
        raise MediumError(f"a member cannot be written: {exc}", "check the disks; the pool is as it was") from exc
    except BaseException:
        _close(files)
        raise


def join_group(space: Space, info: GroupInfo, members: list[Member], geometry: Geometry, layout: Layout) -> int:
    """Make a prepared group part of the pool; return its index. Raises OutOfSpace, MediumError: then it is not.

    Durable: the group.
    """
    ledger = space.ledger
    state = ledger.state
    # The log of this generation becomes durable first: what we write on the new members must never look newer.
    ledger.sync_members()
    with ledger.lock:
        index, before = _free_index(space), list(state.groups)
        state.groups[index:] = [info, *state.groups[index + 1 :]]
        if index == len(before):
            ledger.put_group(index, [], geometry, layout)
        try:
            ledger.check_room()
            payload = state.encode()
            for member in members:
                assert member.store is not None
                member.store.write_checkpoint(state.generation, payload)
            for member in members:
                superblock = Superblock(state.uuid, member.info.uuid, member.live_file().size, layout)
                write_superblock(member.live_file(), superblock)
        except (OutOfSpace, OSError) as exc:
            state.groups[:] = before
            if index == len(before):
                ledger.forget_group(index)
            if isinstance(exc, OutOfSpace):
                raise
            raise MediumError(f"a member cannot be written: {exc}", "check the disks; the pool is as it was") from exc
        ledger.put_group(index, members, geometry, layout)
        ledger.commit()
        return index


def begin_removal(space: Space, index: int, volumes: Iterable[Volume]) -> list[tuple[Volume, int]]:
    """Mark a group as draining; return the volumes that need another home, and which.

    Raises Refused, OutOfSpace; then nothing was changed. Durable: that it drains.
    """
    ledger, group = space.ledger, space.groups[index]
    state, name = ledger.state, space.groups[index].info.name
    others = [other for other, its in space.groups.items() if other != index and not its.info.draining and not its.lost]
    if not others:
        raise Refused(f"RAID group {name} is the only one to put data on", "add another one first: pool add-group")
    if group.lost:
        group.raise_lost()
    if any(move.group == index for move in state.moves):
        raise Refused(f"volumes are being moved to RAID group {name}", "wait for that, or cancel it")
    needed = len(space.allocators[index].allocated)
    room = sum(space.allocators[other].ready_areas for other in others)
    if needed > room:
        raise OutOfSpace(
            f"RAID group {name} has {needed} areas in use, the others have room for {room}",
            "add a group first, or delete volumes and snapshots",
        )
    rehomed: list[tuple[Volume, int]] = []
    with ledger.lock:
        group.info.draining = True
        home = max(others, key=lambda other: space.allocators[other].ready_areas)
        for volume in volumes:
            info = volume.info
            info.placement = [part for part in info.placement if part[2] != index]
            if info.group == index:
                info.group = home
                rehomed.append((volume, home))
        ledger.commit()
    return rehomed


def drop_group(space: Space, index: int) -> list[str]:
    """Take an empty group out of the pool; return remarks on members that could not be wiped.

    Durable: that it is gone.
    """
    ledger, group = space.ledger, space.groups[index]
    state = ledger.state
    with ledger.map_lock:
        group.intents.wait_idle()
        with ledger.lock:
            if len(space.allocators[index].allocated):
                return []  # somebody was just taking an area: the mover looks again
            state.groups[index] = dataclasses.replace(
                group.info, members=[], areas=0, dirty=set(), journaled=0, draining=False, removed=True, extensions=[]
            )
            members, ledger.members[index] = ledger.members[index], []
            space.groups = {key: value for key, value in space.groups.items() if key != index}
            space.allocators = {key: value for key, value in space.allocators.items() if key != index}
            remarks = _free_spares(state, group.info.name)
            ledger.commit()
            wiped = [member for member in members if member.carries]
            for member in members:
                member.info.state = MemberState.FAILED
    space.sync()  # who syncs its members now has ended then
    for member in wiped:
        try:
            erase_superblock(member.live_file())
        except OSError as exc:
            remarks.append(f"{member.path} left pool {state.name}, and its superblock cannot be wiped: {exc.strerror}")
    close_members(members)
    return remarks


def _free_spares(state: PoolState, group: str) -> list[str]:
    """Let spares that were kept for a group serve all; the caller commits. Returns a remark on each."""
    kept = [spare for spare in state.spares if spare.group == group]
    for spare in kept:
        spare.group = ""
    return [f"spare {spare.path} was kept for RAID group {group}, which left: it serves all now" for spare in kept]


def close_members(members: Iterable[Member]) -> None:
    """Let go of the members' files."""
    _close(member.file for member in members if member.file is not None)


def _close(files: Iterable[BlockFile]) -> None:
    for file in files:
        file.close()


def _free_index(space: Space) -> int:
    """The index of the next new group."""
    groups = space.ledger.state.groups
    return next((index for index, group in enumerate(groups) if group.removed), len(groups))
