"""The node's pool as the target holds it: opening, creating, its volumes, and the list of where its members are.

STATE/pool.json holds {"name": …, "members": [paths], "rebuild_limit_bytes_s": …}. The paths are hints only: what a
member is, its own superblock says; a hint that is wrong costs a clear error, never data. The list is written as
pool.json.making before the members of a new pool are touched, so a crash in between leaves a pool that the next start
finds, or none. Destroying renames it to pool.json.destroying first: the next start ends what a crash cut short.

`changing` serialises everything that changes the pool's shape; requests of clients never take it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nbdplugin import arguments
from nbdplugin.exports import Exports, refuse_if_grouped, refuse_if_open
from nbdplugin.relocations import Relocations
from nbdplugin.routes import VolumeRoute, pool_slots
from nbdplugin.signatures import refuse_signatures
from raidlib.create import GroupSpec
from raidlib.destroy import wipe_members
from raidlib.errors import RaidError
from raidlib.placing import PlacedRange
from raidlib.pool import Pool
from replicator.core.errors import AlreadyExists, BadInput, NotFound, Refused
from replicator.eventlog import EventLog
from replicator.journal.files import sync_directory


class PoolHost:
    """The pool, when there is one. Errors are raidlib's or FarstripeErrors."""

    def __init__(self, state_dir: Path, exports: Exports, events: EventLog) -> None:
        self._hints = state_dir / "pool.json"
        self._making = state_dir / "pool.json.making"
        self._destroying = state_dir / "pool.json.destroying"
        self.rebuild_limit_bytes_s = 0
        """0: none."""
        self.rebuild_speed: Callable[[], float] = lambda: 0.0
        """Bytes per second of the rebuild that is under way; set by whoever does it."""
        self._exports = exports
        self._events = events
        self.pool: Pool | None = None
        self._rehomed: list[str] = []
        """Volumes that moved to another home group and whose routes still have the old functions."""
        self.relocations = Relocations(events)
        self.changing = threading.RLock()

    @contextlib.contextmanager
    def changing_soon(self, timeout_s: float) -> Iterator[None]:
        """Hold `changing`, or raise Refused after `timeout_s`: its holder may wait for the follower that calls."""
        if not self.changing.acquire(timeout=timeout_s):
            raise Refused("the pool is being changed", "it is tried again")
        try:
            yield
        finally:
            self.changing.release()

    def open(self, force: bool) -> None:
        """Open the pool that pool.json names and serve its volumes; without the file there is no pool yet.

        force: open a RAID group although it is degraded and was not stopped in order.
        """
        if (members := _read_members(self._destroying)) is not None:
            self._finish_destroying(members)
        if (members := _read_members(self._hints)) is not None:
            self.rebuild_limit_bytes_s = _read_limit(self._hints)
            self._opened(Pool.open(members, force=force))
        elif (members := _read_members(self._making)) is not None:
            self._finish_making(members)

    def _finish_making(self, members: list[str]) -> None:
        """Open the pool that a crash kept us from listing. What is not whole, or not that pool, is left alone."""
        try:
            pool = Pool.open(members)
        except (RaidError, OSError):
            self._making.unlink()
            return
        name = json.loads(self._making.read_text(encoding="utf-8"))["name"]
        if pool.name == name and not pool.volumes:
            self._making.replace(self._hints)
            self._opened(pool)
        else:
            pool.close()
            self._making.unlink()

    def _opened(self, pool: Pool) -> None:
        self.pool = pool
        status = pool.status()
        for group in status["groups"]:
            if group["state"] != "ok":
                name, state = group["name"], group["state"]
                self._events.add("pool.degraded", f"RAID group {name} is {state}", group=name)
        for remark in status["remarks"]:
            self._events.add("pool.remark", remark)
        if status["stopped"] != "clean":
            self._events.add(
                "pool.recovered",
                f"pool {pool.name} {'was killed' if status['stopped'] == 'killed' else 'lost power'}: it is in order "
                f"again, {status['repaired_chunks']} chunks repaired",
            )
        self._serve_volumes(pool)

    def _serve_volumes(self, pool: Pool) -> None:
        pool.on_rehome(lambda volume: self._rehomed.append(volume.name))
        for volume in pool.volumes:
            self._exports.add(volume, pool.sync)

    def require(self) -> Pool:
        """The pool. Raises NotFound when there is none."""
        if self.pool is None:
            raise NotFound("this node has no pool", "farstripe pool create makes one")
        return self.pool

    def create(self, name: str, groups: Any, area_bytes: int, force: bool = False) -> None:
        """Make the pool of this node. Durable: pool and hints, on return.

        Raises AlreadyExists when there is one; Refused when a member holds something, unless `force` lets it go.
        """
        specs = group_specs(groups)
        with self.changing:
            if self.pool is not None:
                raise AlreadyExists(f"this node has a pool: {self.pool.name}", "a node has one pool")
            members = [member for spec in specs for member in spec.members]
            if not force:
                refuse_signatures(members)
            self._write_members(self._making, name, members)
            try:
                self.pool = Pool.create(name, specs, area_bytes)
                self._save_hints(self.pool)
            finally:
                self._making.unlink()
            self._serve_volumes(self.pool)
        self._events.add("pool.created", f"pool {name} created", groups=[spec.name for spec in specs])

    def _save_hints(self, pool: Pool) -> None:
        self._write_members(self._hints, pool.name, pool.paths)

    def _write_members(self, path: Path, name: str, members: list[str]) -> None:
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as f:
            limit = self.rebuild_limit_bytes_s
            json.dump({"name": name, "members": members, "rebuild_limit_bytes_s": limit}, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(path)
        sync_directory(path.parent)

    def status(self) -> dict[str, Any]:
        """The pool's status map (raidlib), with the speed of its rebuilds and the time they will take."""
        status, speed = self.require().status(), self.rebuild_speed()
        for one in status["rebuilds"]:
            one["bytes_s"] = round(speed) or None
            one["left_s"] = round(one["remaining_bytes"] / speed, 1) if speed else None
        return {**status, "rebuild_limit_bytes_s": self.rebuild_limit_bytes_s or None}

    def sync(self) -> None:
        """Durable: everything written to the pool before the call."""
        self.require().sync()

    def replace(self, old: str, new: str, force: bool = False) -> None:
        """Put `new` in the place of member `old`; the rebuild then runs in the background.

        Raises Refused when `new` holds something, unless `force` lets it go.
        """
        with self.changing:
            pool = self.require()
            if not force:
                refuse_signatures([new])
            pool.replace_member(old, new)
            self._save_hints(pool)
        self._events.add("member.replaced", f"member {old} is replaced by {new}", old=old, new=new)

    def fail(self, member: str) -> None:
        """Treat a member as lost from now on."""
        with self.changing:
            self.require().fail_member(member)
        self._events.add("member.failed", f"member {member} was declared failed", path=member)

    def readd(self, member: str) -> int:
        """Take back a member that was away; returns about how many bytes it missed. Errors as Pool.readd_member."""
        with self.changing:
            pool = self.require()
            missed = pool.readd_member(member)
            self._save_hints(pool)
        self._events.add(
            "member.readded", f"member {member} is back, it missed {missed} bytes", path=member, missed=missed
        )
        return missed

    def remove_member(self, member: str) -> None:
        """Let go of a spare, a replacement under way or a failed member. Errors as Pool.remove_member."""
        with self.changing:
            pool = self.require()
            pool.remove_member(member)
            self._save_hints(pool)
        self._events.add("member.removed", f"{member} is let go of", path=member)

    def clear_errors(self, member: str) -> int:
        """Set the counts of a member's errors, or of all members', to 0. Errors and result as Pool.clear_errors."""
        with self.changing:
            cleared = self.require().clear_errors(member)
        self._events.add("member.cleared", f"the errors of {member or 'all members'} are no longer counted")
        return cleared

    def add_spare(self, member: str, raid_group: str, force: bool) -> None:
        """Make a file, device or export a spare. Raises Refused when it holds something, unless `force` lets it go."""
        with self.changing:
            pool = self.require()
            if not force:
                refuse_signatures([member])
            pool.add_spare(member, raid_group)
            self._save_hints(pool)
        self._events.add("spare.added", f"{member} is a spare of {raid_group or 'all RAID groups'}", path=member)

    def take_spare(self) -> tuple[str, str] | None:
        """Let a spare take the place of a failed member; returns (failed, spare), None when there is no such pair."""
        pool = self.pool
        if pool is None or not pool.wants_spare:
            return None
        with self.changing:
            taken = pool.take_spare()
            if taken is not None:
                self._save_hints(pool)
        return taken

    def limit_rebuild(self, bytes_s: int) -> None:
        """Let rebuilds write at most so many bytes per second, 0 for no limit. Durable: that."""
        with self.changing:
            pool = self.require()
            self.rebuild_limit_bytes_s = bytes_s
            self._save_hints(pool)

    def destroy(self, force: bool) -> list[str]:
        """Free all members. Raises Refused while there are volumes (yields to force), or while one is open or grouped.

        Returns what could not be erased. Durable: that there is no pool.
        """
        with self.changing:
            pool = self.require()
            routes = self._exports.routes()
            if routes and not force:
                names = ", ".join(route.name for route in routes)
                raise Refused(f"pool {pool.name} has volumes: {names}", "delete them first, or say --force")
            for route in routes:
                refuse_if_grouped(route, "erased")
                refuse_if_open(route, "erase")
            for route in routes:
                self._exports.remove(route.name)
            self._hints.replace(self._destroying)
            sync_directory(self._hints.parent)
            self.pool = None
            trouble = pool.destroy(force=True)
            self._destroying.unlink()
            sync_directory(self._hints.parent)
        self._events.add("pool.destroyed", f"pool {pool.name} destroyed", not_erased=trouble)
        return trouble

    def _finish_destroying(self, members: list[str]) -> None:
        """Erase what a crash left of a pool that was being destroyed, as far as it is there."""
        wipe_members(members)
        self._destroying.unlink()
        sync_directory(self._hints.parent)

    def create_volume(
        self,
        name: str,
        size: int,
        raid_group: str | None = None,
        thin: bool = True,
        placement: Sequence[PlacedRange] = (),
    ) -> None:
        """Make a volume and serve it. Durable: the volume."""
        with self.changing:
            pool = self.require()
            self._exports.add(pool.create_volume(name, size, raid_group, thin, placement=placement), pool.sync)
        self._events.add("volume.created", f"volume {name} created, {size} bytes", name=name, size=size)

    def delete_volume(self, route: VolumeRoute) -> None:
        """Stop serving a volume and free its space. Raises Refused while a client has it open."""
        with self.changing:
            refuse_if_open(route, "delete")
            self._exports.remove(route.name)
            try:
                self.require().delete_volume(route.name)
            except BaseException:
                self._exports.add(route.volume, self.require().sync)
                raise
        self._events.add("volume.deleted", f"volume {route.name} deleted", name=route.name)

    def resize_volume(self, route: VolumeRoute, size: int, force: bool) -> None:
        """Change a volume's size in bytes; `force` may cut data. Connections see the size they were opened with."""
        with self.changing:
            before = route.volume.size
            self.require().resize_volume(route.name, size, force=force)
        self._events.add(
            "volume.resized", f"volume {route.name}: {before} → {size} bytes", name=route.name, before=before, size=size
        )

    def extend_volume(self, route: VolumeRoute, start: int, length: int, raid_group: str) -> tuple[int, int]:
        """Grow a volume by a range on a chosen RAID group; returns the range that is mapped. Durable: it."""
        with self.changing:
            mapped = self.require().extend_volume(route.name, start, length, raid_group)
        self._events.add(
            "volume.resized",
            f"volume {route.name}: bytes {mapped[0]} to {mapped[1]} lie on RAID group {raid_group}",
            name=route.name,
            size=route.volume.size,
        )
        return mapped

    def space(self) -> tuple[int, int]:
        """Free and all bytes of the pool."""
        groups = self.require().status()["groups"]
        return sum(group["free"] for group in groups), sum(group["size"] for group in groups)

    def snapshot(self, names: dict[str, str]) -> None:
        """Take snapshots {volume: snapshot} at one instant and serve them read-only. Durable: they."""
        with self.changing:
            pool = self.require()
            for volume in pool.snapshot(names):
                self._exports.add(volume, pool.sync)
        listed = ", ".join(f"{name} of {volume}" for volume, name in names.items())
        self._events.add("volume.snapshot", f"snapshot {listed} taken", names=list(names.values()))

    def clone(self, source: str, name: str) -> None:
        """Make a volume that begins as a copy of a snapshot or volume, and serve it. Durable: it."""
        with self.changing:
            pool = self.require()
            self._exports.add(pool.clone(source, name), pool.sync)
        self._events.add("volume.cloned", f"volume {name} made as a clone of {source}", name=name, source=source)

    def rollback(self, route: VolumeRoute, snapshot: str) -> None:
        """Take a volume, which nobody has open for writing, back to a snapshot. Durable: that."""
        with self.changing:
            self.require().rollback(route.name, snapshot)
        self._events.add(
            "volume.rolled_back", f"volume {route.name} holds what snapshot {snapshot} holds", name=route.name
        )

    def move(self, name: str, start: int, length: int, raid_group: str) -> tuple[int, int]:
        """Have a range of a volume moved in the background; returns the range that moves. Durable: the intention."""
        with self.changing:
            moved = self.require().move(name, start, length, raid_group)
        self._events.add(
            "move.begun", f"bytes {moved[0]} to {moved[1]} of {name} move to RAID group {raid_group}", name=name
        )
        return moved

    def cancel_move(self, name: str) -> int:
        """End the moves of a volume; what has moved stays. Returns how many there were."""
        with self.changing:
            ended = self.require().cancel_move(name)
        if ended:
            self._events.add("move.cancelled", f"the move of {name} was cancelled", name=name)
        return ended

    def move_step(self) -> int:
        """Move a few areas, those that somebody asked for first; returns how many remain. See Pool.move_step."""
        remaining = self.require().move_step() or self.relocations.step(self.require())
        while self._rehomed:
            with self.changing:
                self._rebind(self._rehomed.pop())
        return remaining

    def _rebind(self, name: str) -> None:
        """Give clients the functions of a volume that moved; a group's engine asks the volume each time."""
        route = next((route for route in self._exports.routes() if route.name == name), None)
        if route is None:
            return
        route.read_by(route.volume.pread_into)
        if route.group is None and not route.blocked:
            volume = self.require().volume(name)
            route.switch(pool_slots(volume, partial(self.require().sync, volume)), None, 0)

    def add_group(self, spec: GroupSpec, force: bool = False) -> None:
        """Let the pool grow by a RAID group. Durable: it, and where its members are.

        Raises Refused when a member holds something, unless `force` lets it go.
        """
        with self.changing:
            pool = self.require()
            if not force:
                refuse_signatures(list(spec.members))
            pool.add_group(spec, force=force)
            self._save_hints(pool)
        self._events.add("pool.grown", f"RAID group {spec.name} was added to pool {pool.name}", group=spec.name)

    def grow(self, raid_group: str | None, dry_run: bool) -> dict[str, Any]:
        """Let RAID groups take the room that their members got. Errors and result as Pool.grow."""
        with self.changing:
            found = self.require().grow(raid_group, dry_run=dry_run)
        for one in () if dry_run else found["groups"]:
            gained = one["size"] - one["old_size"]
            self._events.add(
                "pool.grown", f"RAID group {one['name']} has {gained} bytes more", group=one["name"], bytes=gained
            )
        return found

    def remove_group(self, name: str) -> int:
        """Have everything on a RAID group moved to others in the background, and the group dropped then.

        Returns the areas that have to move. Durable: the intention.
        """
        with self.changing:
            areas = self.require().remove_group(name)
        self._events.add("pool.draining", f"RAID group {name} is being removed, {areas} areas move", group=name)
        return areas

    def keep_group(self, name: str) -> None:
        """Give up the removal of a RAID group; what has moved stays where it is. Durable: that."""
        with self.changing:
            self.require().keep_group(name)
        self._events.add("pool.kept", f"RAID group {name} stays in the pool", group=name)

    def group_gone(self, name: str) -> None:
        """A RAID group was dropped: remember where the members of the others are."""
        with self.changing:
            self._save_hints(self.require())
        self._events.add("pool.shrunk", f"RAID group {name} has left the pool; its members are free", group=name)

    def check(self) -> dict[str, Any]:
        """See Pool.check; a pool whose books do not balance is an event."""
        report = self.require().check()
        for problem in report["problems"]:
            self._events.add("pool.check_failed", f"pool check: {problem}")
        return report

    def close(self, kept: Collection[str] = ()) -> None:
        """Close the pool. Durable: everything, and that it is clean, unless marks are to be `kept` (Pool.close)."""
        if self.pool is not None:
            self.pool.close(kept)


def _read_members(path: Path) -> list[str] | None:
    try:
        return [str(member) for member in json.loads(path.read_text(encoding="utf-8"))["members"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise BadInput(f"{path} cannot be read", 'write {"members": [paths of all members]}') from exc


def _read_limit(path: Path) -> int:
    limit = json.loads(path.read_text(encoding="utf-8")).get("rebuild_limit_bytes_s", 0)
    return limit if isinstance(limit, int) and limit > 0 else 0


def group_specs(groups: Any) -> list[GroupSpec]:
    """Check the `groups` argument of pool.create. Raises BadInput."""
    if not isinstance(groups, list) or not groups or not all(isinstance(g, dict) for g in groups):
        raise BadInput("the argument 'groups' must be a list of {name, level, members, chunk, checksums}")
    return [
        GroupSpec(
            arguments.name(group),
            arguments.integer(group, "level", high=10),
            [arguments.member_path(member) for member in arguments.names(group, "members")],
            arguments.integer(group, "chunk", 64 << 10, low=1, high=1 << 30),
            arguments.flag(group, "checksums"),
        )
        for group in groups
    ]
