"""What an administrator does with the members of an open pool: replace, fail, take back, spares; and the work of it.

Joins rebuild.py, replacing.py, readd.py and spares.py. Calls come under the pool's administrative lock, but for step(),
which one thread calls again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raidlib import readd, rebuild, replacing
from raidlib.allocator import Allocator
from raidlib.assemble import Assembly
from raidlib.blockfile import BlockFile
from raidlib.create import OpenFile, check_unused, open_member
from raidlib.errors import MediumError, NotFound, Refused
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.rebuild import Rebuild
from raidlib.replacing import Replacement
from raidlib.space import Space
from raidlib.spares import Spares
from raidlib.state import MemberInfo, MemberState
from raidlib.superblock import erase_superblock
from raidlib.twin import TwinFile


class MemberOps:
    """The members of one open pool.

    drain() returns when no request on a volume is in flight that may know an earlier file of a member.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        drain: Callable[[], None],
        spare_files: dict[str, BlockFile] | None = None,
    ) -> None:
        self._ledger = ledger
        self._space = space
        self._drain = drain
        self._jobs: dict[str, Rebuild | Replacement] = {}
        self.spares = Spares(ledger, lambda: list(space.groups.values()), spare_files or {})
        self.remarks: list[str] = []
        """What became of replacements, one line each."""
        self.rebuilt_bytes = 0
        """What the job of the last step has written."""
        ledger.on_successor_lost = lambda new, old, reason: self.remarks.append(
            f"{new} does not replace {old}: {reason}; {old} goes on"
        )

    @property
    def _groups(self) -> dict[int, RaidGroup]:
        return self._space.groups

    @property
    def _allocators(self) -> dict[int, Allocator]:
        return self._space.allocators

    # Replacing and failing

    def replace(self, key: str, new_path: str, open_file: OpenFile, force: bool) -> None:
        """See Pool.replace_member."""
        member, successor = self._find(key)
        if successor is not None:
            raise Refused(f"{successor.path} is not a member yet, it is being filled", "pool fail gives it up")
        group = self._groups[member.group]
        new, retired = open_member(new_path, open_file), None
        try:
            if not force:
                check_unused(new)
            allocator = self._allocators[group.index]
            if member.info.state is MemberState.IN_SYNC and not group.lost:
                replacing.begin(group, allocator, self._ledger, member, new)
            else:
                rebuild.check_replaceable(group, member, new)
                retired = member.file
                rebuild.replace(group, allocator, self._ledger, member, new)
        except BaseException:
            new.close()
            raise
        self._drain()
        if retired is not None:
            retired.close()

    def fail(self, key: str) -> None:
        """See Pool.fail_member."""
        member, successor = self._find(key)
        group = self._groups[member.group]
        if successor is not None:
            self._ledger.lose_successor(member, successor, "given up by the operator")
            self.tidy()
            return
        if not self._ledger.bears_loss_of(member):
            raise Refused(
                f"group {group.info.name} cannot do without {member.path}",
                "replace what it has lost already, or put another member in this one's place: pool replace",
            )
        group.retire_member(member, "failed by the operator")
        if member.info.state is MemberState.FAILED:
            self._let_go(member)
        self.tidy()

    def clear_errors(self, key: str) -> int:
        """See Pool.clear_errors. Call under the ledger's lock."""
        members = [self._find(key)[0]] if key else [one for group in self._groups.values() for one in group.members]
        counted = [member for member in members if any(member.counts())]
        for member in counted:
            member.begin_counts()
        self._ledger.commit()
        return len(counted)

    def forget(self, key: str) -> None:
        """See Pool.remove_member."""
        if (spare := self.spares.find(key)) is not None:
            self.spares.remove(spare)
            return
        member, successor = self._find(key)
        if successor is not None:
            self._ledger.lose_successor(member, successor, "given up by the operator")
            self.tidy()
            return
        if member.info.state is not MemberState.FAILED:
            raise Refused(
                f"{member.path} is a member in use of group {self._groups[member.group].info.name}",
                "pool replace puts another one in its place; pool fail declares it lost",
            )
        self._let_go(member)
        with self._ledger.lock:
            member.info.away = None
            self._ledger.commit()

    def readd(self, path: str, open_file: OpenFile) -> int:
        """See Pool.readd_member."""
        members = (member for group in self._groups.values() for member in group.members)
        known = next((m for m in members if path in (m.info.uuid, m.path)), None)
        if known is not None:
            path = known.path
            if known.info.state is MemberState.FAILED:
                self._let_go(known)
            else:
                raise Refused(f"{path} is a member in use", "only one that failed can be taken back")
        file = open_member(path, open_file)
        try:
            state = self._ledger.state
            by_group = [group.members for group in self._groups.values()]
            superblock, member, store = readd.identify(file, state.uuid, by_group, state.name)
            group = self._groups[member.group]
            readd.check(group, member, file, superblock, store)
            if group.lost:
                group.raise_lost()
            self._let_go(member)
            allocator = self._allocators[group.index]
            with group.intents.lock, self._ledger.lock:
                todo = readd.missed_bytes(group, allocator)
            readd.begin(group, allocator, self._ledger, member, file, store)
            return todo
        except BaseException:
            file.close()
            raise

    # Spares

    def add_spare(self, path: str, group: str, open_file: OpenFile, force: bool) -> None:
        """See Pool.add_spare."""
        file = open_member(path, open_file)
        try:
            self.spares.add(file, group, force)
        except BaseException:
            file.close()
            raise

    def take_spare(self) -> tuple[str, str] | None:
        """See Pool.take_spare."""
        found = self.spares.choose()
        if found is None:
            return None
        member, spare, file = found
        group = self._groups[member.group]
        try:
            rebuild.replace(group, self._allocators[group.index], self._ledger, member, file, spare.uuid)
        except MediumError as exc:
            self.remarks.append(f"spare {spare.path} cannot be used: {exc.message}")
            self.spares.lose(spare)
            return self.take_spare()
        self.spares.taken(spare)
        self._drain()
        if member.file is not None:
            member.file.close()
        return member.path, spare.path

    # Work

    @property
    def wants_spare(self) -> bool:
        """Whether a member failed and there is a spare."""
        return bool(self.spares.infos) and any(
            member.info.state is MemberState.FAILED for group in self._groups.values() for member in group.members
        )

    def step(self) -> int:
        """See Pool.rebuild_step."""
        jobs = self.jobs()
        if jobs:
            jobs[0].step()
            self.rebuilt_bytes = jobs[0].copied_bytes
            if not jobs[0].active:
                self.tidy()
        return sum(job.remaining_areas for job in self.jobs())

    def jobs(self) -> list[Rebuild | Replacement]:
        """Every rebuild and replacement there is, the one that restores redundancy first."""
        with self._ledger.lock:
            jobs: dict[str, Rebuild | Replacement] = {}
            for member in [member for group in self._groups.values() for member in group.members]:
                group, allocator = self._groups[member.group], self._allocators[member.group]
                successor = member.info.successor
                if member.info.state is MemberState.REBUILDING:
                    job = self._jobs.get(member.info.uuid)
                    if not isinstance(job, Rebuild) or not job.active:
                        job = Rebuild(group, allocator, self._ledger, member)
                    jobs[member.info.uuid] = job
                elif member.twin is not None and successor is not None:
                    known = self._jobs.get(successor.uuid)
                    if not isinstance(known, Replacement) or not known.active:
                        known = Replacement(group, allocator, self._ledger, member)
                    jobs[successor.uuid] = known
            self._jobs = jobs
            return sorted(jobs.values(), key=lambda job: isinstance(job, Replacement))

    def tidy(self) -> None:
        """Let go of files that are no member's any more."""
        if self._ledger.strays:
            self._drain()
            self._ledger.close_strays()

    def report(self) -> dict[str, Any]:
        """Spares and work in progress, as plain data. Call under the ledger's lock."""
        return {
            "spares": [
                {
                    "path": s.path,
                    "uuid": s.uuid,
                    "size": s.size,
                    "group": s.group or None,
                    "there": self.spares.is_there(s),
                }
                for s in self.spares.infos
            ],
            "rebuilds": [
                {
                    "member": job.info.path if isinstance(job, Replacement) else job.member.path,
                    "replaces": job.member.path if isinstance(job, Replacement) else None,
                    "group": job.group.info.name,
                    "by_difference": isinstance(job, Rebuild) and job.member.info.partial,
                    "remaining_bytes": job.remaining_bytes,
                    "total_bytes": job.remaining_bytes + job.copied_bytes,
                    "copied_bytes": job.copied_bytes,
                }
                for job in self.jobs()
            ],
        }

    def wipe(self) -> list[str]:
        """Erase the superblocks of all members and spares; return what could not be, one line each. Durable: that."""
        trouble: list[str] = []
        files = [member.file for group in self._groups.values() for member in group.members if member.file is not None]
        for file in [*files, *self.spares.files()]:
            parts = [file] if (twin := _twin_of(file)) is None else [one for one in (twin.old, twin.new) if one]
            for part in parts:
                try:
                    erase_superblock(part)
                except OSError as exc:
                    trouble.append(f"{part.path}: {exc.strerror or exc}")
        return trouble

    # Inside

    def _let_go(self, member: Member) -> None:
        """Close the file of a member that takes no part, so that others, and a re-add, can open it."""
        file = member.file
        if file is None:
            return
        self._drain()
        with self._groups[member.group].all_rows(), self._ledger.lock:
            member.file = member.checked = None
            self._ledger.on_change(member.group)
        file.close()

    def _find(self, key: str) -> tuple[Member, MemberInfo | None]:
        """The member of this path or uuid; the successor too when that is meant."""
        for group in self._groups.values():
            for member in group.members:
                if key in (member.path, member.info.uuid):
                    return member, None
                successor = member.info.successor
                if successor is not None and key in (successor.path, successor.uuid):
                    return member, successor
        raise NotFound(f"{key} is not a member of pool {self._ledger.state.name}", "pool status lists its members")


def resume(assembly: Assembly, ledger: Ledger) -> None:
    """Join the files of replacements that were under way. Changes nothing on any member."""
    for group in assembly.members:
        for member in group:
            successor = member.info.successor
            if successor is not None and successor.uuid in assembly.successors:
                replacing.join(ledger, member, assembly.successors[successor.uuid])


def _twin_of(file: BlockFile) -> TwinFile | None:
    return file if isinstance(file, TwinFile) else None
