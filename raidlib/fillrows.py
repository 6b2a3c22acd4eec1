"""Filling a rebuilding member many rows at a time: the rows of an area are contiguous on every member.

Read each source once in large pieces, all sources at the same time, compute row by row in memory, write large pieces,
each while the next one is read: so a rebuild runs at the speed of the members, also where a write takes as long as a
read, and not at that of the interpreter. Any trouble with a source is left to the caller's way row by row, which can
take another source for every single row.

The caller holds the stripe locks of the rows.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import lru_cache
from types import TracebackType

from raidlib.gf256 import recovery
from raidlib.member import Member
from raidlib.parity import Scratch, Span
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState

PIECE_BYTES = 2 << 20
"""Bytes of each member taken at a time."""
SLICE_BYTES = 256 << 10
"""Bytes of each member read in one request: large enough for any disk, and small beside the piece, for the first one is
read while nothing is written, and the last one written while nothing is read."""

READ_AHEAD = 2
"""Slices that are being read at a time."""

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
        with _WriteBehind(member) as behind, closing(_read_slices([source], [span], at, count, chunk_bytes)) as slices:
            try:
                for start, end in slices:
                    behind.write(span.part(start, end), at + start)
            except _Unreadable:
                continue
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
    with _WriteBehind(member) as behind, closing(_read_slices(sources, spans, at, count, chunk_bytes)) as slices:
        try:
            for start, end in slices:
                for row_at in range(start, end, chunk_bytes):
                    row, row_end = first + row_at // chunk_bytes, row_at + chunk_bytes
                    column_of = {geometry.member_of(row, column): column for column in range(k + r)}
                    basis = sorted((column_of[source.index], span) for source, span in zip(sources, spans, strict=True))
                    matrix = recovery(k, r, tuple(column for column, _ in basis), (column_of[member.index],))
                    known = [span.part(row_at, row_end) for _, span in basis]
                    group.engine.apply(matrix, known, [made.part(row_at, row_end)], chunk_bytes)
                behind.write(made.part(start, end), at + start)
        except _Unreadable:
            return False
    return True


def _slices(count: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """Cut so many rows into slices of whole rows: (start, end), bytes of a member from the first row on."""
    step = max(1, SLICE_BYTES // chunk_bytes) * chunk_bytes
    return [(start, min(start + step, count * chunk_bytes)) for start in range(0, count * chunk_bytes, step)]


class _WriteBehind:
    """Writes to a member while its user goes on. On leaving all is written, or OSError is raised: the first there was.

    The buffers stay as they are until then. Where threads are not worth it, a write is done at once.
    """

    def __init__(self, member: Member) -> None:
        self._file = member.live_file()
        self._writes: list[Future[None]] = []

    def __enter__(self) -> _WriteBehind:
        return self

    def write(self, span: Span, at: int) -> None:
        """Have it written. Raises OSError, now or on leaving."""
        if self._file.parallel_sync:
            self._writes.append(_threads().submit(self._file.pwrite, span.view, at))
        else:
            self._file.pwrite(span.view, at)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        wait(self._writes)
        for one in self._writes:
            if (trouble := one.exception()) is not None:
                raise trouble


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


class _Unreadable(Exception):
    """A source could not be read."""


def _read_slices(
    sources: list[Member], spans: list[Span], at: int, count: int, chunk_bytes: int
) -> Generator[tuple[int, int], None, None]:
    """Read so many rows of each source into its span; yield each slice once it is there. Raises _Unreadable.

    All sources are read at the same time, and READ_AHEAD slices, where threads are worth it. Close the generator: then
    nothing is written to the spans any more.
    """
    slices = _slices(count, chunk_bytes)
    if not all(source.live_file().parallel_sync for source in sources):
        for start, end in slices:
            if not all(_read(one, span.part(start, end), at + start) for one, span in zip(sources, spans, strict=True)):
                raise _Unreadable
            yield start, end
        return
    ahead, under_way = iter(slices), deque[list[Future[bool]]]()
    try:
        for start, end in slices:
            for begin, stop in itertools.islice(ahead, READ_AHEAD - len(under_way)):
                parts = [span.part(begin, stop) for span in spans]
                under_way.append(
                    [_threads().submit(_read, *one, at + begin) for one in zip(sources, parts, strict=True)]
                )
            if not all(one.result() for one in under_way[0]):
                raise _Unreadable
            under_way.popleft()
            yield start, end
    finally:
        wait([one for reads in under_way for one in reads])


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Threads that read and write, made at the first rebuild; idle afterwards."""
    return ThreadPoolExecutor(16, "raidlib-fill")


def _scratch(count: int, size: int) -> list[Span]:
    """This thread's buffers, `size` bytes of each."""
    have: Scratch | None = getattr(_local, "scratch", None)
    if have is None or len(have.spans) < count or len(have.spans[0].view) < size:
        have = _local.scratch = Scratch(count, size)
    return [span.part(0, size) for span in have.spans[:count]]
