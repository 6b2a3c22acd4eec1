"""RAID 0: chunks in turn over the members, no redundancy.

The fastest path there is: a write within one chunk is one system call, and volume.py does that itself with
`write_table`. Here is the rest: writes over several chunks, one gathered system call a member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from raidlib.blockfile import Buffer
from raidlib.errors import MediumError
from raidlib.member import Member
from raidlib.raidgroup import RaidGroup, unavailable
from raidlib.reconcile import settle_striped
from raidlib.state import MemberState


class StripedGroup(RaidGroup):
    """A RAID 0 group."""

    write_table: list[Callable[[Buffer, int], int]]
    """For each chunk of an area the function that writes it; may write short, -1 when the member is gone."""

    def refresh(self) -> None:
        """See RaidGroup."""
        super().refresh()
        geometry = self.geometry
        table: list[Callable[[Buffer, int], int]] = []
        for chunk in range(geometry.chunks_per_area):
            member = self.members[chunk % geometry.data_chunks]
            good = member.info.state is MemberState.IN_SYNC and member.file is not None
            table.append(member.live_file().raw_pwrite if good else unavailable)
        if hasattr(self, "write_table"):
            self.write_table[:] = table
        else:
            self.write_table = table

    def read(self, area: int, off: int, view: memoryview, *, once: bool = False) -> None:
        """See RaidGroup."""
        flags = self._once_flags if once else 0
        try:
            for index, (place, pieces) in self._parts(area, off, view).items():
                member = self.members[index]
                self._check_there(member)
                if member.live_file().raw_preadv(pieces, place, flags) != sum(map(len, pieces)):
                    break
            else:
                return
        except OSError:
            pass
        super().read(area, off, view, once=once)  # chunk by chunk, to the last means

    def read_hard(self, area: int, chunk: int, inner: int, piece: memoryview) -> None:
        """See RaidGroup. One more try, which also completes a short read."""
        member = self.members[chunk % self.geometry.data_chunks]
        self._check_there(member)
        try:
            member.live_file().preadinto(piece, self.member_offset(area) + self.row_offset[chunk] + inner)
        except OSError as exc:
            member.count_error(exc)
            self._raise_medium(member, "read", exc)

    def write(self, area: int, off: int, view: memoryview) -> None:
        """See RaidGroup. A write error is reported, and the member stays: it may be one bad sector."""
        for index, (place, pieces) in self._parts(area, off, view).items():
            member = self.members[index]
            self._check_there(member)
            try:
                if len(pieces) == 1:
                    member.live_file().pwrite(pieces[0], place)
                else:
                    member.live_file().pwritev(pieces, place)
            except OSError as exc:
                self._raise_medium(member, "write", exc)

    def _parts(self, area: int, off: int, view: memoryview) -> dict[int, tuple[int, list[memoryview]]]:
        """Split `view` by member: index -> (place on the member, pieces, which follow one another there)."""
        base, chunk_bytes, width = self.member_offset(area), self.geometry.chunk_bytes, self.geometry.data_chunks
        end = off + len(view)
        at = off
        parts: dict[int, tuple[int, list[memoryview]]] = {}
        while at < end:
            chunk, inner = divmod(at, chunk_bytes)
            n = min(chunk_bytes - inner, end - at)
            piece = view[at - off : at - off + n]
            known = parts.get(chunk % width)
            if known is None:
                parts[chunk % width] = (base + self.row_offset[chunk] + inner, [piece])
            else:
                known[1].append(piece)  # the next row's chunk follows this one on the member
            at += n
        return parts

    def zero(self, area: int, off: int, length: int) -> None:
        """See RaidGroup."""
        base, chunk_bytes = self.member_offset(area), self.geometry.chunk_bytes
        end = off + length
        while off < end:
            chunk, inner = divmod(off, chunk_bytes)
            n = min(chunk_bytes - inner, end - off)
            member = self.members[chunk % self.geometry.data_chunks]
            self._check_there(member)
            try:
                member.live_file().zero(base + self.row_offset[chunk] + inner, n)
            except OSError as exc:
                self._raise_medium(member, "zero", exc)
            off += n

    def heal(self, row: int, lo: int, hi: int, bad: set[int]) -> None:
        """There is nothing to heal from."""
        names = ", ".join(self.members[index].path for index in sorted(bad))
        raise MediumError(f"{names}: row {row} is damaged", "RAID 0 has no second copy; restore from a replica")

    def resync_area(self, area: int, *, trust_parity: bool = False) -> int:
        """Nothing can disagree, but checksums with what they stand for."""
        return settle_striped(self, area) if self.checksums else 0

    def rebuild_area(self, area: int, member: Member) -> None:
        """There is nothing to rebuild from."""
        self.raise_lost()

    def rebuild_row(self, row: int, member: Member) -> None:
        """There is nothing to rebuild from."""
        raise MediumError("RAID 0 has no second copy", "delete or overwrite what lies there")

    def _check_there(self, member: Member) -> None:
        if member.info.state is not MemberState.IN_SYNC or member.file is None:
            self.raise_lost()

    def _raise_medium(self, member: Member, what: str, exc: OSError) -> NoReturn:
        raise MediumError(
            f"{member.path}: {what}: {exc.strerror or exc}", "RAID 0 has no second copy; check the disk"
        ) from exc
