"""Filling a rebuilding member many rows at a time: the rows of an area are contiguous on every member.

Read each source once in one large piece, all sources at the same time, compute row by row in memory, write one large
piece: so a rebuild runs at the speed of the members and not of the interpreter. Any trouble with a source is left to
the caller's way row by row, which can take another source for every single row.

The caller holds the stripe locks of the rows.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from raidlib.gf256 import recovery
from raidlib.member import Member
from raidlib.parity import Scratch, Span
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState

PIECE_BYTES = 2 << 20
"""Bytes of each member taken at a time."""

_local = threading.local()


def rows_at_a_time(chunk_bytes: int) -> int:
    """Rows of one piece."""
    return max(1, PIECE_BYTES // chunk_bytes)


def fill_mirror(group: RaidGroup, sources: list[Member], member: Member, first: int, count: int) -> bool:
    """Copy rows [first, first + count) of the first source that can be read; return whether one could.

    Raises OSError (the member that is filled). Durable: nothing.
    """
    chunk_bytes = group.geometry.chunk_bytes
    at = group.layout.data_offset + first * chunk_bytes
    span = _scratch(1, count * chunk_bytes)[0]
    for source in sources:
        if _read(source, span, at):
            member.live_file().pwrite(span.view, at)
            return True
    return False


def fill_parity(group: RaidGroup, member: Member, first: int, count: int) -> bool:
    """Compute rows [first, first + count) of a member from the others; return False when those cannot be read so.

    Raises OSError (the member that is filled). Durable: nothing.
    """
    geometry = group.geometry
    k, r, chunk_bytes = geometry.data_chunks, geometry.parity_chunks, geometry.chunk_bytes
    present = [one for one in group.members if one is not member and _has_rows(one, first + count)]
    if len(present) < k:
        return False
    turn = first // count % len(present)  # with parity to spare: not always the same ones
    sources = (present[turn:] + present[:turn])[:k]
    at = group.layout.data_offset + first * chunk_bytes
    *spans, made = _scratch(k + 1, count * chunk_bytes)
    if not _read_all(sources, spans, at):
        return False
    for i in range(count):
        column_of = {geometry.member_of(first + i, column): column for column in range(k + r)}
        basis = sorted((column_of[source.index], span) for source, span in zip(sources, spans, strict=True))
        start, end = i * chunk_bytes, (i + 1) * chunk_bytes
        matrix = recovery(k, r, tuple(column for column, _ in basis), (column_of[member.index],))
        group.engine.apply(matrix, [span.part(start, end) for _, span in basis], [made.part(start, end)], chunk_bytes)
    member.live_file().pwrite(made.view, at)
    return True


def _has_rows(member: Member, end: int) -> bool:
    return member.file is not None and (
        member.info.state is MemberState.IN_SYNC
        or (member.info.state is MemberState.REBUILDING and end <= member.rebuilt_rows)
    )


def _read(member: Member, span: Span, at: int) -> bool:
    file = member.live_file()
    try:
        if file.raw_preadv([span.view], at, file.once_flags) != len(span.view):
            file.preadinto(span.view, at)
    except OSError as exc:
        member.count_error(exc)
        return False
    return True


def _read_all(sources: list[Member], spans: list[Span], at: int) -> bool:
    """Read one piece of each source at the same time, where that is worth it."""
    if not all(source.live_file().parallel_sync for source in sources):
        return all(_read(source, span, at) for source, span in zip(sources, spans, strict=True))
    return all(_readers().map(_read, sources, spans, [at] * len(sources)))


@lru_cache(maxsize=1)
def _readers() -> ThreadPoolExecutor:
    """Threads that read, made at the first rebuild; idle afterwards."""
    return ThreadPoolExecutor(8, "raidlib-fill")


def _scratch(count: int, size: int) -> list[Span]:
    """This thread's buffers, `size` bytes of each."""
    have: Scratch | None = getattr(_local, "scratch", None)
    if have is None or len(have.spans) < count or len(have.spans[0].view) < size:
        have = _local.scratch = Scratch(count, size)
    return [span.part(0, size) for span in have.spans[:count]]
