"""The window: a ring file of frames, from the oldest instant that can be shown to the newest.

The base is the instant before the first frame; what the frames hold leads from the newest instant back to it. A frame
is on stable storage before the pool is changed by its records, and one frame is written at a time. So after any stop
only the last frame can be torn, and its records have changed nothing: whoever goes on recording behind the last whole
frame reads the pool as it was before them. An instant can therefore be shown exactly also after a kill or power loss.

Space is freed from the oldest end, a few frames at a time: the superblock with the new tail is durable before anything
is overwritten. Readers of frames (putback.py) are never waited for: they look, after each read, whether the tail has
passed them.

A frame that is whole behind one that is not means that the medium lost what it had taken. Where the window really ended
is then unknown, and it is given up; see `Window.open`.

Superblock (two slots of 4096 bytes at 0 and 4096; the valid one with the higher generation counts), little-endian:

    offset  size  field
         0     4  magic       "FSRW"
         4     2  version     1
         6     2  flags       1 ACTIVE: there is a base; 2: the base is a consistent image
         8     8  generation  rises by one with each write
        16    16  group       UUID
        32     8  capacity    bytes of the ring, which starts at byte 8192
        40     8  life        the highest so far; rises by one whenever the ring is opened
        48     8  least_life  of frames of the chain
        56     8  tail_off    logical offset of the first frame
        64     8  base_seq    the instant before it
        72     8  base_epoch
        80     8  base_time
        88     4  crc         CRC32C of bytes 0..87

Logical offset o lies at byte 8192 + o modulo capacity. Not thread-safe for writing: the caller holds apply_lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from crc32c import crc32c

from replicator.capture.preimages import frames
from replicator.capture.preimages.frames import BadFrame, Entry, Head, Instant
from replicator.core.errors import IntegrityError, Refused
from replicator.core.records import Kind
from replicator.journal.files import Buffer, RandomFile

DATA_START = 8192
LEAST_BYTES = 16 << 20
MOST_FRAME_BYTES = 6 << 20
"""No frame is longer; see recorder.py."""
_SLOT_BYTES = 4096
_SUPER = struct.Struct("<4sHHQ16sQQQQQQQ")
_CRC = struct.Struct("<I")
_CHUNK_BYTES = 64 << 10
_ACTIVE, _BASE_OK = 1, 2


class TooLarge(Exception):
    """What one record overwrites does not fit into the ring."""


class Super(NamedTuple):
    """The superblock's content; fields as in the table above."""

    flags: int
    generation: int
    group: bytes
    capacity: int
    life: int
    least_life: int
    tail_off: int
    base_seq: int
    base_epoch: int
    base_time: int


class Span(NamedTuple):
    """A stretch of consistent instants, both ends included."""

    first: Instant
    last: Instant


class Window:
    """The ring of one group."""

    def __init__(self, file: RandomFile, sup: Super) -> None:
        """Wrap a file; use `create` or `open`."""
        self._file = file
        self._super = sup
        self.capacity = sup.capacity
        self.tail_off = self.head_off = sup.tail_off
        self.base = Instant(sup.base_seq, sup.base_epoch, sup.base_time)
        self.last = self.base
        """The newest instant: of the last whole record."""
        self.spans: list[Span] = []
        self.keep_ns = 0
        """Instants that are older than the newest by more are given up; 0: no limit but the ring's size."""
        self.sequence_off = sup.tail_off
        """Instants behind this offset are of the sequence that is followed now; see `attached`."""
        self.pins: list[int] = []
        """Offsets that readers still need: what `keep_ns` alone would free is kept for them."""
        self._base_ok = bool(sup.flags & _BASE_OK)
        self._whole_off = self.head_off  # end of the last whole record
        self._grows = False  # the next consistent instant belongs to the last span
        self._begin_spans()

    @classmethod
    def create(cls, file: RandomFile, group: bytes, size: int) -> Window:
        """Write an inactive ring into a file of `size` bytes. Durable: it."""
        window = cls(file, Super(0, 0, group, size - DATA_START, 0, 0, 0, 0, 0, 0))
        file.pwrite(bytes(DATA_START), 0)
        window._write_super(life=1, least_life=1)
        return window

    @classmethod
    def open(cls, file: RandomFile, group: bytes) -> Window:
        """Open a ring after whatever stopped it and find its end. Durable: that a new life has begun.

        Raises IntegrityError when it is not this group's or damaged, OSError.
        """
        slots = [s for n in (0, 1) if (s := _read_slot(file, n)) is not None]
        if not slots:
            raise IntegrityError("it has no valid superblock")
        sup = max(slots, key=lambda s: s.generation)
        if sup.group != group:
            raise IntegrityError("it belongs to another group")
        window = cls(file, sup)
        if window.active:
            window._find_end()
        window._write_super(life=sup.life + 1)
        return window

    @property
    def active(self) -> bool:
        """Whether there is a base, and so anything to show."""
        return bool(self._super.flags & _ACTIVE)

    @property
    def chain(self) -> int:
        """Another number whenever everything was forgotten."""
        return self._super.least_life if self.active else 0

    @property
    def end_off(self) -> int:
        """Logical offset behind the last whole record."""
        return self._whole_off

    @property
    def used_bytes(self) -> int:
        """Bytes of the ring that are in use."""
        return self.head_off - self.tail_off

    def _begin_spans(self) -> None:
        self.spans = [Span(self.base, self.base)] if self.active and self._base_ok else []
        self._grows = bool(self.spans)

    # -- writing --------------------------------------------------------------------------------------------------

    def restart(self, base: Instant, *, consistent: bool) -> None:
        """Forget everything; what can be shown begins at `base`, which the pool holds now. Durable: that."""
        life = self._super.life + 1
        self._write_super(
            flags=_ACTIVE | (_BASE_OK if consistent else 0),
            life=life, least_life=life, tail_off=self._whole_off,
            base_seq=base.seq, base_epoch=base.epoch, base_time=base.time_ns,
        )  # fmt: skip
        self.tail_off = self.head_off = self.sequence_off = self._whole_off
        self.base = self.last = base
        self._base_ok = consistent
        self._begin_spans()

    def end(self) -> None:
        """Forget everything: the pool is changed from now on without being recorded. Durable: that."""
        if self.active:
            self._write_super(flags=0, tail_off=self._whole_off)
            self.tail_off = self.head_off = self._whole_off
            self.spans = []

    def append(self, flags: int, epoch: int, entries: Sequence[Entry], data: Sequence[Buffer]) -> None:
        """Append a frame. Durable: it. A PARTIAL one counts once the last frame of its record has followed.

        Raises TooLarge when the frames of one record do not fit (restart then), OSError, which is final.
        """
        raw = frames.pack(self._super.life, self.head_off, flags, epoch, entries, data)
        self._make_room(len(raw))
        self._write(raw, self.head_off)
        self._file.fdatasync()
        self._appended(frames.unpack_head(raw, self._lives(), self.head_off))
        self._give_up_old()

    def attached(self, p: int, epoch: int) -> None:
        """Positions go on behind `p` in another sequence; the contents are as before. Durable: that."""
        entry = Entry(p, self.last.time_ns, 0, 0, 0, 0, 0, 0)
        self.append(frames.ATTACH, epoch, [entry], [])

    def _appended(self, head: Head) -> None:
        self.head_off = head.end
        if head.partial:
            return
        self._whole_off = head.end
        self.last = head.last
        if head.flags & frames.ATTACH:
            self.sequence_off = head.end
        if not head.consistent:
            self._grows = False
        elif self._grows:
            self.spans[-1] = Span(self.spans[-1].first, head.last)
        else:
            self.spans.append(Span(head.first, head.last))
            self._grows = True

    def _make_room(self, length: int) -> None:
        free = self.capacity - self.used_bytes
        if free < length:
            self._give_up(self.head_off + max(length, self.capacity // 32) - self.capacity)
        if self.capacity - self.used_bytes < length:
            raise TooLarge

    def _give_up_old(self) -> None:
        """Free what is older than `keep_ns`."""
        if not self.keep_ns or self.last.time_ns - self.base.time_ns <= self.keep_ns + self.keep_ns // 32:
            return
        self._give_up(min([self._whole_off, *self.pins]), before_ns=self.last.time_ns - self.keep_ns)

    def _give_up(self, until: int, before_ns: int | None = None) -> None:
        """Move the tail up to the first record that begins at `until` or later.

        before_ns: no further than to the last instant that is not younger. Durable: the new tail, if it moves.
        """
        tail, base, ok, spans = self.tail_off, self.base, self._base_ok, list(self.spans)
        for head, _ in self._heads(self.tail_off, self._whole_off):
            if tail >= until or (before_ns is not None and (head.last_time > before_ns or head.end > until)):
                break
            if head.partial:
                continue
            tail, base = head.end, head.last
            if head.consistent:
                spans[0] = Span(base, spans[0].last)
            elif ok:
                spans.pop(0)
            ok = head.consistent
        if tail == self.tail_off:
            return
        self._write_super(
            flags=_ACTIVE | (_BASE_OK if ok else 0), tail_off=tail,
            base_seq=base.seq, base_epoch=base.epoch, base_time=base.time_ns,
        )  # fmt: skip
        self.tail_off, self.base, self._base_ok, self.spans = tail, base, ok, spans

    # -- reading --------------------------------------------------------------------------------------------------

    def heads(self) -> Iterator[tuple[Head, list[Entry]]]:
        """Every frame of whole records, oldest first, with its entries. Raises Refused when it is overwritten under
        the reader, IntegrityError when it has rotted."""
        return self._heads(self.tail_off, self._whole_off)

    def contents(self, begin: int, end: int) -> Iterator[tuple[Head, list[Entry], memoryview]]:
        """The frames of [begin, end) with entries and proved data. Raises as `heads`."""
        off = begin
        for head, entries in self._heads(begin, end):
            raw = self._data(head, entries)
            self._check_kept(off)
            try:
                frames.check_data(raw, entries)
            except BadFrame as e:
                raise _rotten(off, e) from e
            yield head, entries, raw
            off = head.end

    def payloads(self, head: Head, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """The MARKER entries of a frame with their payloads. Raises as `heads`."""
        at = head.off + frames.HEAD_BYTES + len(entries) * frames.ENTRY_BYTES
        for entry in entries:
            if entry.kind == Kind.MARKER:
                payload = self._read(at, entry.data_len)
                self._check_kept(head.off)
                yield entry, payload
            at += entry.data_len

    def _data(self, head: Head, entries: Sequence[Entry]) -> memoryview:
        size = frames.HEAD_BYTES + len(entries) * frames.ENTRY_BYTES
        return memoryview(self._read(head.off + size, head.length - size))

    def _heads(self, begin: int, end: int) -> Iterator[tuple[Head, list[Entry]]]:
        off = begin
        reader = _Reader(self._read, end)
        while off < end:
            try:
                found = self._parse(reader, off, (self._super.least_life, self._super.life))
            except BadFrame as e:
                self._check_kept(off)
                raise _rotten(off, e) from e
            self._check_kept(off)
            yield found
            off = found[0].end

    def _check_kept(self, off: int) -> None:
        if off < self.tail_off:
            raise Refused(
                "the instant has left the window meanwhile: newer writes took its room",
                "give the group a larger window: farstripe group retention GROUP --bytes SIZE",
            )

    @staticmethod
    def _parse(reader: _Reader, off: int, lives: tuple[int, int]) -> tuple[Head, list[Entry]]:
        head = frames.unpack_head(reader.get(off, frames.HEAD_BYTES), lives, off)
        size = frames.HEAD_BYTES + head.entries * frames.ENTRY_BYTES
        if head.length > MOST_FRAME_BYTES:
            raise BadFrame("too long")
        return head, frames.unpack_table(reader.get(off, size), head)

    def _lives(self) -> tuple[int, int]:
        return self._super.least_life, self._super.life

    # -- coming up again ------------------------------------------------------------------------------------------

    def _find_end(self) -> None:
        """Walk the chain from the tail; drop a torn frame, or a record that is not whole, at its end.

        Durable: all that is kept; after a kill the last frame may be in the page cache alone.
        """
        limit = self.tail_off + self.capacity
        reader = _Reader(self._read, limit)
        off, least, before = self.tail_off, self._super.least_life, None
        while off < limit:
            try:
                head, entries = self._parse(reader, off, (least, self._super.life))
            except BadFrame:
                break
            if before is not None:
                self._appended(before[0])
            before = head, entries
            off, least = head.end, head.life
        if before is not None and self._is_whole(*before):
            self._appended(before[0])
        if self._another_frame(off, least):
            raise IntegrityError(f"it is damaged at offset {off}")
        if off > self._whole_off:
            self._wipe_heads(self._whole_off, off)
        elif before is not None:
            self._write(self._read(before[0].off, before[0].length), before[0].off)  # a sync of it may have failed
            self._file.fdatasync()
        self.head_off = self._whole_off

    def _is_whole(self, head: Head, entries: list[Entry]) -> bool:
        try:
            frames.check_data(self._data(head, entries), entries)
        except BadFrame:
            return False
        return True

    def _another_frame(self, off: int, least: int) -> bool:
        """Whether a frame that belongs there lies behind `off`, where the chain seems to end."""
        room = self.capacity - (off - self.tail_off)
        raw = self._read(off, min(2 * MOST_FRAME_BYTES, room))
        at = raw.find(frames.MAGIC, 1)
        while at >= 0:
            try:
                head = frames.unpack_head(raw[at : at + frames.HEAD_BYTES], (least, self._super.life), off + at)
                frames.unpack_table(raw[at : at + MOST_FRAME_BYTES], head)
            except BadFrame:
                at = raw.find(frames.MAGIC, at + 1)
            else:
                return True
        return False

    def _wipe_heads(self, off: int, end: int) -> None:
        """Destroy frames that do not count, before others take their place. Durable: that."""
        for start in [head.off for head, _ in self._heads(off, end)]:
            self._write(bytes(frames.HEAD_BYTES), start)
        self._file.fdatasync()

    # -- bytes ----------------------------------------------------------------------------------------------------

    def _read(self, off: int, length: int) -> bytes:
        at = off % self.capacity
        first = min(length, self.capacity - at)
        data = self._file.pread(first, DATA_START + at)
        return data if first == length else data + self._file.pread(length - first, DATA_START)

    def _write(self, raw: bytes, off: int) -> None:
        at = off % self.capacity
        first = min(len(raw), self.capacity - at)
        if first == len(raw):
            self._file.pwrite(raw, DATA_START + at)
        else:
            self._file.pwrite(memoryview(raw)[:first], DATA_START + at)
            self._file.pwrite(memoryview(raw)[first:], DATA_START)

    def _write_super(self, **changes: Any) -> None:
        """Change fields of the superblock. Durable: it, before anything here says so."""
        sup = self._super._replace(generation=self._super.generation + 1, **changes)
        body = _SUPER.pack(b"FSRW", 1, *sup)
        slot = body + _CRC.pack(crc32c(body))
        self._file.pwrite_durable(slot.ljust(_SLOT_BYTES, b"\0"), (sup.generation % 2) * _SLOT_BYTES)
        self._super = sup


class _Reader:
    """Reads ahead: frames are often short."""

    def __init__(self, read: Callable[[int, int], bytes], end: int) -> None:
        self._read = read
        self._end = end
        self._off = 0
        self._chunk = memoryview(b"")

    def get(self, off: int, length: int) -> memoryview:
        """Return bytes [off, off + length), fewer at the end."""
        if not self._off <= off or off + length > self._off + len(self._chunk):
            self._chunk = memoryview(self._read(off, min(max(length, _CHUNK_BYTES), self._end - off)))
            self._off = off
        at = off - self._off
        return self._chunk[at : at + length]


def _rotten(off: int, why: BadFrame) -> IntegrityError:
    return IntegrityError(
        f"the window of earlier instants is damaged at offset {off}: {why}",
        "choose an instant after it, or begin a new window: farstripe group retention GROUP --bytes SIZE",
    )


def _read_slot(file: RandomFile, n: int) -> Super | None:
    raw = file.pread(_SLOT_BYTES, n * _SLOT_BYTES)
    if len(raw) < _SUPER.size + 4 or _CRC.unpack_from(raw, _SUPER.size)[0] != crc32c(raw[: _SUPER.size]):
        return None
    magic, version, *fields = _SUPER.unpack_from(raw)
    return Super(*fields) if magic == b"FSRW" and version == 1 else None
