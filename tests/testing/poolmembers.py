"""What may happen to the members of PoolWorld's first group: they fail, vanish, return, are replaced, grow, rot.

Each operation does nothing where the level could not bear it, for what is then lost is nobody's defect. A member whose
blocks were silently changed counts as one that is gone, until a scrub has put them right.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

from raidlib import Pool
from raidlib.checksums import BLOCK_BYTES, ENTRY_BYTES
from raidlib.errors import MediumError, OutOfSpace, Refused
from tests.testing.fakedisk import FakeDisk, PowerCut
from tests.testing.poolmodel import TOLERATES, Violation


class MemberWorld:
    """The members of one pool. The rest of the world is PoolWorld's."""

    rng: random.Random
    disk: FakeDisk
    pool: Pool
    level: int
    paths: list[str]
    """Where members and spares may be; open is given these."""
    area_bytes: int
    member_bytes: int
    checksums: bool
    losing = ""
    """A member that breaks, until the pool has coped with it."""
    damaged = ""
    """A member that holds silently changed blocks."""
    new_disks = 0
    areas_of_g: frozenset[int] = frozenset()
    """How many areas the first group may have; nothing is known before it first grows."""

    def fail_member(self, index: int) -> None:
        """Take a member out, if the level bears it."""
        if self._can_lose(index):
            self.pool.fail_member(self._path(index))

    def break_member(self, index: int) -> None:
        """From now on a member takes no writes, if the level bears that; who writes to it next will find out."""
        if self._can_lose(index):
            self.losing = self._path(index)
            self.disk.fail_writes(self.losing)

    def lose_writes(self, index: int) -> None:
        """The next sync of a member fails and drops what was not synced, if the level bears that."""
        if self._can_lose(index):
            self.losing = self._path(index)
            self.disk.fail_next_sync(self.losing)

    def vanish_member(self, index: int) -> None:
        """Pull a member's cable, if the level bears that. It is noticed by the next write to it."""
        if self._can_lose(index):
            self.losing = self._path(index)
            self.disk.vanish(self.losing)

    def return_member(self) -> None:
        """Plug what vanished in again, and take back what merely was away."""
        for path in self.disk.names():
            if path != self.losing and self.disk.is_vanished(path):
                self.disk.come_back(path)
        for member in self._members():
            if member["away"]:
                self.pool.readd_member(member["path"], self._open)

    def replace_member(self, index: int) -> None:
        """Put a new disk in, in the place of a failed member, or of a good one."""
        if self.losing or any(member["replacement"] for member in self._members()):
            return
        if self._state(index) != "in_sync" and len(self._gone()) > TOLERATES[self.level]:
            return
        path = self._new_disk()
        try:
            self.pool.replace_member(self._path(index), path, self._open)
        except PowerCut:
            self.paths.append(path)  # either may be the member now; the superblocks will say
            raise
        self.paths.append(path)

    def break_successor(self) -> None:
        """From now on a disk that is being filled in the place of a good one takes no writes."""
        for member in self._members():
            if member["replacement"]:
                self.disk.fail_writes(member["replacement"]["path"])

    def add_spare(self) -> None:
        """Make a new disk a spare."""
        if not self.losing and not self.pool.status()["spares"]:
            path = self._new_disk()
            self.paths.append(path)
            self.pool.add_spare(path, "", self._open)

    def take_spare(self) -> None:
        """Let a spare take the place of a failed member, if there are both."""
        if not self.losing:
            self.pool.take_spare()

    def settle(self) -> None:
        """Note whether the pool has coped with a member that breaks. Call between operations."""
        members = self._members()
        its = [m for m in members if m["path"] == self.losing]
        if self.losing and (not its or its[0]["state"] == "failed"):
            self.pool.sync()
            for group in self.pool._groups:
                group.secure_degraded()
            self.losing = ""

    def rebuild(self, steps: int) -> int:
        """Rebuild a little; return what remains."""
        remaining = 0
        for _ in range(steps):
            remaining = self.pool.rebuild_step()
        return remaining

    # Growth

    def grow(self, areas: int) -> None:
        """Enlarge every member of the first group, by what it happens to hold there, and let the group take it."""
        group = self.pool._groups[0]
        names = {member.path for member in group.members}
        tail = areas * group.geometry.area_member_bytes + self.rng.randrange(4096)
        self.member_bytes += tail
        for name in self.disk.names():
            if name in names:
                self.disk.enlarge(name, self.rng.randbytes(max(0, self.member_bytes - self.disk.length(name))))
        before = group.info.usable_areas
        try:
            after = self.pool.grow("g", dry_run=True)["groups"][0]["size"] // self.area_bytes
            self.areas_of_g = frozenset({before, after})
            self.pool.grow("g")
            self.areas_of_g = frozenset({after})
        except (Refused, OutOfSpace):
            self.areas_of_g = frozenset({before})
        except MediumError:
            if not self.losing:
                raise

    def _check_size(self) -> None:
        """The first group has its old size or its new one, and room for it on every member."""
        info = self.pool._groups[0].info
        if self.areas_of_g and info.usable_areas not in self.areas_of_g:
            raise Violation(f"group g has {info.usable_areas} areas, should have {sorted(self.areas_of_g)}")
        self.areas_of_g = frozenset({info.usable_areas})

    # Silent corruption

    def damage_member(self, index: int, blocks: int) -> None:
        """Change some blocks of a member at rest, or their checksums, if there are checksums and the level bears that.

        Of each block only one of both, for RAID 5 can prove nothing when both are gone.
        """
        areas = sorted(self.pool._allocators[0].allocated)
        if not self.checksums or self.damaged or not areas or not self._can_lose(index):
            return
        self.damaged = self._path(index)
        group = self.pool._groups[0]
        checked = group.members[index].checked
        assert checked is not None
        per_area = group.geometry.area_member_bytes // BLOCK_BYTES
        pool_blocks = [area * per_area + i for area in areas for i in range(per_area)]
        for block in self.rng.sample(pool_blocks, min(blocks, len(pool_blocks))):
            at = group.layout.data_offset + block * BLOCK_BYTES
            entry_at = checked._entry_at(block)
            other = group.layout.data_offset + self.rng.choice(pool_blocks) * BLOCK_BYTES
            kind = self.rng.choice(["bit", "zeroes", "misdirected", "entry", "no entry"])
            if kind == "bit":
                self.disk.corrupt(self.damaged, at + self.rng.randrange(BLOCK_BYTES))
            elif kind == "zeroes":
                self.disk.corrupt(self.damaged, at, bytes(BLOCK_BYTES))
            elif kind == "misdirected":
                self.disk.corrupt(self.damaged, at, self.disk.peek(self.damaged, other, BLOCK_BYTES))
            elif kind == "entry":
                self.disk.corrupt(self.damaged, entry_at)
            else:
                self.disk.corrupt(self.damaged, entry_at, bytes(ENTRY_BYTES))

    def repair_damage(self) -> None:
        """Have a scrub repair what was silently changed; a second one must find nothing."""
        its = [member for member in self._members() if member["path"] == self.damaged]
        if not self.damaged or self.losing or (its and its[0]["state"] == "failed"):
            return
        if its and its[0]["state"] == "rebuilding":
            self.rebuild(100)
        self._scrub_all()
        if self._scrub_all():
            raise Violation(f"a scrub left something of {self.damaged} to repair")
        self.damaged = ""

    def _scrub_all(self) -> int:
        """Scrub the group from end to end; return how much was wrong."""
        with contextlib.suppress(Refused):  # none is under way
            self.pool.scrub_stop("g")
        self.pool.scrub_start("g", repair=True)
        while self.pool.scrub_step()[0]:
            pass
        found = self.pool.scrub_status()["g"]
        if found["unrepairable"]:
            raise Violation(f"a scrub could not repair {found['unrepairable']} blocks")
        return int(found["checksum_errors"] + found["mismatches"] + found["unreadable"])

    # Inside

    def _open(self, path: str) -> object:
        return self.disk.open_exclusive(path)

    def _gone(self) -> set[str]:
        """The members whose loss the group has to bear already."""
        return {member["path"] for member in self._members() if member["state"] != "in_sync"} | (
            {self.damaged} & {member["path"] for member in self._members()}
        )

    def _can_lose(self, index: int) -> bool:
        return (
            self._state(index) == "in_sync"
            and not self.losing
            and len(self._gone() | {self._path(index)}) <= TOLERATES[self.level]
        )

    def _members(self) -> list[dict[str, Any]]:
        members: list[dict[str, Any]] = self.pool.status()["groups"][0]["members"]
        return members

    def _path(self, index: int) -> str:
        return str(self._members()[index]["path"])

    def _new_disk(self) -> str:
        self.new_disks += 1
        path = f"spare{self.new_disks}"
        self.disk.create(path, self.member_bytes)
        self.disk.corrupt(path, 0, random.Random(path).randbytes(self.member_bytes))  # it was used before
        return path

    def _state(self, index: int) -> str:
        return str(self._members()[index]["state"])


def member_bytes(level: int, members: int, areas: int, chunk_bytes: int, area_bytes: int) -> int:
    """The size of members that make about so many areas."""
    copies = {1: members, 10: 2}.get(level, 1)
    data = members // copies - {5: 1, 6: 2}.get(level, 0)
    return (128 << 10) + areas * -(-area_bytes // (data * chunk_bytes)) * chunk_bytes
