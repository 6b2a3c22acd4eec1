"""Hot spares: files or devices that belong to the pool and wait for a member to be lost.

A spare carries a superblock of the pool with its own identity and no parts (Superblock.is_spare), so nobody else takes
it; the list of spares is part of the pool's state. Order of an addition: superblock durable, then the list. Order of a
take-over: parts and superblock of a member with the spare's identity durable, then one commit that puts it into the
group and takes it off the list. A crash between leaves it a spare.

What this does not do: decide when. Pool.take_spare() is called by whoever watches the pool.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from raidlib.blockfile import BlockFile
from raidlib.create import check_unused
from raidlib.errors import AlreadyExists, BadInput, MediumError, NotFound
from raidlib.layout import NOWHERE
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState, SpareInfo
from raidlib.superblock import Superblock, erase_superblock, read_superblock, write_superblock


class Spares:
    """The spares of one open pool. Call under the pool's administrative lock."""

    def __init__(self, ledger: Ledger, groups: Callable[[], list[RaidGroup]], files: dict[str, BlockFile]) -> None:
        self._ledger = ledger
        self._groups = groups
        self._files = files

    @property
    def infos(self) -> list[SpareInfo]:
        """All spares, whether they are there or not."""
        return self._ledger.state.spares

    def is_there(self, spare: SpareInfo) -> bool:
        """Whether it could be taken."""
        return spare.uuid in self._files

    def add(self, file: BlockFile, group: str, force: bool) -> SpareInfo:
        """Make a file a spare, of one group or (group empty) of all. It stays open from then on.

        Raises MemberInUse when it is some pool's (yields to force), BadInput when no group it may serve has members as
        small, NotFound, AlreadyExists, MediumError. Durable: the spare.
        """
        served = self._served(group)
        least = min(one.least_bytes for one in served)
        if file.size < least:
            raise BadInput(
                f"{file.path} has {file.size} bytes, a member of this pool needs {least}", "take a larger one"
            )
        if any(spare.path == file.path for spare in self.infos):
            raise AlreadyExists(f"{file.path} is a spare already", "pool spare list shows them")
        if not force and not self._is_stray_spare(file):
            check_unused(file)
        spare = SpareInfo(uuid.uuid4().hex, file.path, file.size, group)
        try:
            write_superblock(file, Superblock(self._ledger.state.uuid, spare.uuid, file.size, NOWHERE))
        except OSError as exc:
            raise MediumError(f"{file.path} cannot be written: {exc.strerror or exc}", "take another one") from exc
        with self._ledger.lock:
            self.infos.append(spare)
            try:
                self._ledger.check_room()
            except BaseException:
                self.infos.remove(spare)
                raise
            self._ledger.commit()
        self._files[spare.uuid] = file
        return spare

    def find(self, key: str) -> SpareInfo | None:
        """The spare of this path or uuid."""
        return next((spare for spare in self.infos if key in (spare.path, spare.uuid)), None)

    def remove(self, spare: SpareInfo) -> None:
        """Give a spare up; its superblock is erased if it is there. Durable: that it is none any more."""
        with self._ledger.lock:
            self.infos.remove(spare)
            self._ledger.commit()
        file = self._files.pop(spare.uuid, None)
        if file is not None:
            try:
                erase_superblock(file)
            except OSError as exc:
                raise MediumError(
                    f"{spare.path} is no spare any more, but cannot be written: {exc.strerror or exc}",
                    "zero its first MiB before another use",
                ) from exc
            finally:
                file.close()

    def choose(self) -> tuple[Member, SpareInfo, BlockFile] | None:
        """The first failed member that a spare fits, and the smallest that does; those kept for its group first."""
        for group in self._groups():
            if group.lost:
                continue
            for member in group.members:
                if member.info.state is not MemberState.FAILED:
                    continue
                fitting = [
                    (spare.group != group.info.name, spare.size, spare)
                    for spare in self.infos
                    if spare.group in ("", group.info.name)
                    and self.is_there(spare)
                    and self._size(spare) >= group.least_bytes
                ]
                if fitting:
                    spare = min(fitting, key=lambda one: one[:2])[2]
                    return member, spare, self._files[spare.uuid]
        return None

    def too_small(self, group: RaidGroup, least_bytes: int) -> list[str]:
        """The paths of spares that may serve a group and are too small for a member of so many bytes."""
        served = [spare for spare in self.infos if spare.group in ("", group.info.name)]
        return [spare.path for spare in served if self._size(spare) < least_bytes]

    def taken(self, spare: SpareInfo) -> None:
        """The spare is a member now: its file is the member's."""
        self._files.pop(spare.uuid, None)

    def lose(self, spare: SpareInfo) -> None:
        """A spare turned out unusable. Durable: that it is none any more."""
        with self._ledger.lock:
            if spare in self.infos:
                self.infos.remove(spare)
                self._ledger.commit()
        file = self._files.pop(spare.uuid, None)
        if file is not None:
            file.close()

    def files(self) -> list[BlockFile]:
        """The files of the spares that are there."""
        return list(self._files.values())

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _size(self, spare: SpareInfo) -> int:
        """Its size in bytes: it may have been enlarged since it became one."""
        try:
            return self._files[spare.uuid].size
        except (KeyError, OSError):
            return spare.size

    def _served(self, group: str) -> list[RaidGroup]:
        served = [one for one in self._groups() if group in ("", one.info.name)]
        if not served:
            names = ", ".join(one.info.name for one in self._groups())
            raise NotFound(f"there is no RAID group {group} in this pool", f"its groups are: {names}")
        return served

    def _is_stray_spare(self, file: BlockFile) -> bool:
        """Whether a crash left it formatted as a spare of this pool, but off the list."""
        superblock = read_superblock(file)
        return superblock is not None and superblock.is_spare and superblock.pool_uuid == self._ledger.state.uuid
