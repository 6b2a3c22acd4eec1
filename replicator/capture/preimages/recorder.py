"""Storing what records will overwrite, before they are applied.

The follower hands over each batch before it changes the pool. What the batch will overwrite is read once, range by
range, and the batch is played through in memory, so that the pre-image of a record is what the record before it leaves,
also where records of one batch overlap. When `before` returns, everything is on stable storage, and the records may be
applied.

What was recorded already is not recorded again: after a crash redo applies records once more, to a pool that holds
newer bytes by then. The window says how far recording had come.

Replication never waits for a view and never stops for one. What cannot be recorded (a range that cannot be read, a
discard of more than the ring holds) begins a new window behind it; a ring that cannot be written ends recording, and
that is on stable storage before a record is applied without (`give_up`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from replicator.capture.follower import completes_copy, in_range
from replicator.capture.preimages import frames
from replicator.capture.preimages.frames import Entry, Instant
from replicator.capture.preimages.window import TooLarge, Window
from replicator.capture.state import FRESH, RESYNC, SECONDARY
from replicator.core.records import DATA_KINDS, LIST_KINDS, Header, Kind
from replicator.journal.page import APPLIED_SEQ

if TYPE_CHECKING:
    from replicator.capture.engine import GroupEngine
    from replicator.journal.files import Buffer

PIECE_BYTES = 1 << 20
"""A record of more has frames of its own, with pieces of this."""
FRAME_DATA_BYTES = 4 << 20
FRAME_ENTRIES = 8192
MARKER_BYTES = 64 << 10
"""A marker that says more cannot be asked for by its name."""
_DATA = frozenset(int(kind) for kind in DATA_KINDS)
_MARKER, _SYNCED = int(Kind.MARKER), int(Kind.SYNCED)
_TURNS = frozenset({_MARKER, _SYNCED, int(Kind.EPOCH), *map(int, LIST_KINDS)})
"""What comes after one of these is recorded once it was applied: it may change what a later one means, or stop."""

Records = list[tuple[Header, int]]


class PreImages:
    """The recorder of one group on a node where it is secondary. Methods are called under apply_lock."""

    def __init__(self, window: Window, give_up: Callable[[str], None]) -> None:
        """give_up(reason): notes that recording has ended for good. Durable: that; raises when it cannot be."""
        self.window = window
        self.failed = ""
        self._settled_at = 0
        """Seq of the last record that redo may find in the pool already, in part or whole."""
        self._give_up = give_up
        self._broken = ""

    def before(self, engine: GroupEngine, records: Records, view: memoryview) -> Records:
        """Record what the first of these records will overwrite; returns those that may be applied now.

        records: as runs.iter_run gives them, at least one, with their bytes in `view`.
        Durable: what is needed to take them back. Raises what `give_up` raises.
        """
        if self.failed:
            return records
        window, first = self.window, records[0][0]
        try:
            if self._broken:
                raise _RingError(self._broken)
            if window.active and window.last.seq < first.seq - 1:
                _on_ring(window.end)  # somebody changed the pool without us
            if not window.active:
                if first.seq <= self._settled_at:
                    return records[: self._settled_at - first.seq + 1]
                _on_ring(self.begin, engine)
            if first.seq <= window.last.seq:
                return records[: window.last.seq - first.seq + 1]
            return _Batch(engine, window, records, view).record()
        except _RingError as e:
            self._fail(str(e))
            return records

    def leave(self, applied_seq: int) -> None:
        """Received records behind `applied_seq` are dropped. What was recorded of them never came about."""
        if self.window.active and not self.failed and self.window.last.seq != applied_seq:
            self.end()

    def attached(self, p: int, epoch: int) -> None:
        """The next record is `p` + 1 of another sequence; the contents stay. Durable: that."""
        self._settled_at = p
        if self.window.active:
            self._note(self.window.attached, p, epoch)

    def rewound(self, seq: int) -> None:
        """The volumes get other contents, and the next record is `seq` + 1. Call it before. Durable: that."""
        self.end()
        self._settled_at = seq

    def begin_behind(self, engine: GroupEngine, header: Header) -> None:
        """The group's volumes change with this record: instants from before it cannot be shown. Durable: that."""
        if self.window.active:
            base = Instant(header.seq, header.epoch, header.write_time)
            self._note(partial(self.window.restart, base, consistent=engine.state.copy not in (RESYNC, FRESH)))

    def end(self) -> None:
        """Forget everything: hosts will change the pool from now on. Durable: that."""
        self._note(self.window.end)

    def settle(self, engine: GroupEngine) -> None:
        """An engine was opened: what its journal holds may be in the pool already.

        A primary has nothing to record; and a pool that is beyond what was recorded was changed without us.
        """
        self._settled_at = engine.pos
        if engine.state.role != SECONDARY or self.window.last.seq < engine.page[APPLIED_SEQ]:
            self.end()

    def begin(self, engine: GroupEngine) -> None:
        """Begin a window now, at what has been applied. The pool holds exactly that. Durable: the window."""
        time_ns = engine.applied_time_ns and max(engine.applied_time_ns, engine._last_time)
        base = Instant(engine.page[APPLIED_SEQ], engine.epoch, time_ns)
        self.window.restart(base, consistent=engine.state.copy not in (RESYNC, FRESH))

    def _note(self, action: Callable[..., None], *args: Any) -> None:
        if self.failed:
            return
        try:
            if self._broken:
                raise _RingError(self._broken)
            _on_ring(action, *args)
        except _RingError as e:
            self._fail(str(e))

    def _fail(self, reason: str) -> None:
        self._broken = reason
        self._give_up(reason)
        self.failed = reason


class _RingError(Exception):
    """The ring cannot be written."""


def _on_ring(action: Callable[..., None], *args: Any, **more: Any) -> None:
    """Call a method that writes to the ring; an error of the pool's must not be taken for one of the ring's."""
    try:
        action(*args, **more)
    except OSError as e:
        raise _RingError(f"what is overwritten cannot be recorded: {e}") from e


class _Run:
    """A range of a volume that a batch overwrites, as the batch has left it so far."""

    __slots__ = ("buf", "shared", "start")

    def __init__(self, start: int, shared: bool) -> None:
        self.start = start
        self.shared = shared
        self.buf = bytearray()


class _Batch:
    """One call of PreImages.before."""

    def __init__(self, engine: GroupEngine, window: Window, records: Records, view: memoryview) -> None:
        self._engine = engine
        self._window = window
        self._records = records
        self._view = view
        self._state = engine.state
        self._ok = engine.state.copy not in (RESYNC, FRESH)
        self._entries: list[Entry] = []
        self._data: list[Buffer] = []
        self._bytes = 0
        self._flags = 0
        self._epoch = 0

    def record(self) -> Records:
        """Record the longest beginning that can be read at once."""
        count = self._countable()
        if count == 0:
            if not in_range(self._engine, self._records[0][0]):
                return self._records[:1]  # it will be refused
            self._record_long(self._records[0][0])
            return self._records[:1]
        taken = self._records[:count]
        try:
            runs = self._load(taken)
        except Exception:  # a pool raises errors of its own
            self._skip(taken)
            return taken
        self._play(taken, runs)
        return taken

    def _countable(self) -> int:
        """How many records at the beginning are in range and short, up to the first of _TURNS."""
        for count, (header, _) in enumerate(self._records):
            if header.kind in _TURNS:
                return count + 1
            if header.kind in _DATA and (header.length > PIECE_BYTES or not in_range(self._engine, header)):
                return count
        return len(self._records)

    def _load(self, records: Records) -> list[_Run | None]:
        """Read what the records overwrite; returns the run of each record, None for one that changes nothing."""
        runs: list[_Run | None] = [None] * len(records)
        order = sorted(
            (header.volume, header.offset, header.offset + header.length, index)
            for index, (header, _) in enumerate(records)
            if header.kind in _DATA
        )
        run, in_volume, end = None, -1, -1
        for volume, start, stop, index in order:
            if run is None or volume != in_volume or start > end:
                if run is not None:
                    self._read(in_volume, run, end)
                run, in_volume, end = _Run(start, False), volume, stop
            else:
                run.shared = True
                end = max(end, stop)
            runs[index] = run
        if run is not None:
            self._read(in_volume, run, end)
        return runs

    def _read(self, volume: int, run: _Run, end: int) -> None:
        run.buf = bytearray(end - run.start)
        self._engine.volumes[volume].pread_into(memoryview(run.buf), run.start)

    def _play(self, records: Records, runs: Sequence[_Run | None]) -> None:
        for (header, body), run in zip(records, runs, strict=True):
            if self._full:
                self._flush()
            self._turn(header)
            if run is None:
                named = header.kind == _MARKER and header.data_len <= MARKER_BYTES
                self._add(header, 0, 0, self._view[body : body + header.data_len] if named else b"")
                continue
            if not run.shared:
                self._add(header, header.offset, header.length, run.buf)
                continue
            at = header.offset - run.start
            end = at + header.length
            self._add(header, header.offset, header.length, bytes(run.buf[at:end]))
            run.buf[at:end] = self._view[body : body + header.length] if header.data_len else bytes(header.length)
        self._flush()

    def _turn(self, header: Header) -> None:
        """A frame is of one epoch, and either all consistent or not at all."""
        becomes_ok = header.kind == _SYNCED and completes_copy(self._state, header)
        if self._entries and (header.epoch != self._epoch or (becomes_ok and not self._ok)):
            self._flush()
        self._ok = self._ok or becomes_ok
        self._epoch = header.epoch

    def _add(self, header: Header, offset: int, length: int, data: Buffer) -> None:
        """Put a piece into the frame. An empty `data` of a range means zeroes."""
        size = len(data)
        if size == length and size and not data[0] and not data[-1] and data == bytes(size):
            size = 0
        if size:
            self._data.append(data)
            self._bytes += size
            if header.kind == _MARKER:
                self._flags |= frames.MARKER
        crc = crc32c(data) if size else 0
        self._entries.append(
            Entry(header.seq, header.write_time, offset, length, header.volume, header.kind, size, crc)
        )

    def _flush(self, *, partial: bool = False) -> None:
        if not self._entries:
            return
        flags = self._flags | (frames.PARTIAL if partial else 0) | (frames.CONSISTENT if self._ok else 0)
        entries, data = self._entries, self._data
        self._entries, self._data, self._bytes, self._flags = [], [], 0, 0
        _on_ring(self._window.append, flags, self._epoch, entries, data)

    @property
    def _full(self) -> bool:
        return self._bytes >= FRAME_DATA_BYTES or len(self._entries) >= FRAME_ENTRIES

    def _record_long(self, header: Header) -> None:
        """Record a record of more than PIECE_BYTES in frames of its own."""
        volume = self._engine.volumes[header.volume]
        self._turn(header)
        try:
            extents = volume.extents(header.offset, header.length)
            if sum(length for length, allocated in extents if allocated) > self._window.capacity // 2:
                raise TooLarge
            for offset, length, allocated in _pieces(header.offset, extents):
                if self._full:
                    self._flush(partial=True)
                data = bytearray(length if allocated else 0)
                if allocated:
                    volume.pread_into(memoryview(data), offset)
                self._add(header, offset, length, data)
            self._flush()
        except _RingError:
            raise
        except Exception:  # a pool raises errors of its own
            self._entries, self._data = [], []
            self._skip([(header, 0)])

    def _skip(self, records: Records) -> None:
        """What these records overwrite cannot be recorded: begin a new window behind them."""
        for header, _ in records:
            self._turn(header)
        last = records[-1][0]
        base = Instant(last.seq, last.epoch, last.write_time)
        _on_ring(self._window.restart, base, consistent=self._ok)


def _pieces(offset: int, extents: Sequence[tuple[int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """Cut allocated extents that begin at `offset` into pieces (offset, length, allocated)."""
    for length, allocated in extents:
        step = PIECE_BYTES if allocated else length
        for at in range(0, length, step):
            yield offset + at, min(step, length - at), allocated
        offset += length
