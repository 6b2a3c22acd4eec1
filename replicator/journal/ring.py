"""The journal ring: records of one group, in order, in a preallocated file or device.

Reasoning. Offsets are logical: they start at 0 when the journal is made and only grow; a byte at logical offset o lies
at o modulo capacity. A record may wrap round the end. Records lie without gaps, so the chain from the tail to the head
can be walked by their lengths, and seq rises by one from each to the next.

The space of a record may be overwritten only after a superblock that no longer points at it is durable; so TAIL_OFF in
the page moves after `set_tail` has synced, never before. After a crash the chain is walked from the durable tail and
ends at the first record that is torn, out of sequence or of another epoch (which only an EPOCH record may begin):
bytes of an earlier lap have a lower seq, bytes of a lost branch another epoch (whoever continues after a lost tail
opens a new epoch or gets the same records again).

On a primary the target appends; on a secondary the replicator does. Both hold a Journal of their own on the same file,
and the page says where the journal ends. Only the target writes the superblock.

Superblock (two slots of 4096 bytes at 0 and 4096; the valid one with the higher generation counts), little-endian:

    offset  size  field
         0     4  magic        "FSRJ"
         4     2  version      1
         6     2  file_index   0 (place of this file in the ring)
         8     8  generation   rises by one with each write
        16    16  group        UUID
        32     8  capacity     bytes of the ring, which starts at byte 8192
        40     8  tail_off     logical offset of the first record kept
        48     8  tail_seq     its seq (the next seq when the journal is empty)
        56     8  redo_off     logical offset of the first record that may not be in the pool
        64     8  redo_seq     its seq
        72     8  min_epoch    records of the chain have at least this epoch
        80     4  crc          CRC32C of bytes 0..79
"""

from __future__ import annotations

import errno
import struct
import time
from typing import NamedTuple

from crc32c import crc32c

from replicator.core.errors import IntegrityError
from replicator.core.records import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    BadRecord,
    Header,
    Kind,
    check_payload,
    unpack_header,
)
from replicator.core.runs import parse_run
from replicator.journal.files import Buffer, RandomFile
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_OFF,
    DURABLE_SEQ,
    EPOCH,
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    TAIL_SEQ,
    Page,
)

DATA_START = 8192
MIN_CAPACITY = 1 << 20
_SUPER = struct.Struct("<4sHHQ16sQQQQQQ")
_CRC = struct.Struct("<I")
_SLOT_BYTES = 4096
_SCAN_BYTES = 4 << 20
_WIPE_BYTES = 1 << 20
FILL_BYTES = 1 << 30
_TAIL_LOOKS = 200


class Super(NamedTuple):
    """The superblock's content; fields as in the table above."""

    generation: int
    group: bytes
    capacity: int
    tail_off: int
    tail_seq: int
    redo_off: int
    redo_seq: int
    min_epoch: int


class Journal:
    """A ring of records over one file. Not thread-safe for appends: the caller orders them."""

    def __init__(self, file: RandomFile, page: Page, sup: Super) -> None:
        """Wrap an opened journal; use `create` or `open`."""
        self._file = file
        self._u64 = page.u64
        self.super = sup
        self.capacity = sup.capacity
        self._pwritev = file.pwritev

    @classmethod
    def create(cls, file: RandomFile, page: Page, group: bytes, capacity: int) -> Journal:
        """Write a fresh, empty journal into `file`; `capacity` bytes of ring follow the superblocks.

        Whatever the file or device held is overwritten: the records of an earlier journal must not be taken for ours.
        Durable: the empty journal.
        """
        journal = cls(file, page, Super(0, group, capacity, 0, 1, 0, 1, 0))
        _wipe(file, DATA_START + capacity)
        file.fdatasync()
        journal._write_super(journal.super)
        journal._publish_kept()
        journal._publish_head(0, 0, 0)
        return journal

    @classmethod
    def open(cls, file: RandomFile, page: Page) -> Journal:
        """Open an existing journal; does not look for its head (see `recover`). Raises IntegrityError."""
        slots = [s for n in (0, 1) if (s := _read_slot(file, n)) is not None]
        if not slots:
            raise IntegrityError(
                "no valid superblock in the journal", "split the pair, delete and recreate it with a new journal"
            )
        return cls(file, page, max(slots))

    def recover(self, trusted_head: tuple[int, int] | None, *, keep_head: bool = False) -> None:
        """Find the head and publish it, with tail and redo point.

        trusted_head: (offset, epoch) from a page of this boot, or None to walk the chain from the tail.
        keep_head: publish the rest only; another process appends, and may do so at this moment.
        A trusted head behind a torn or missing record is an IntegrityError: the medium lost bytes it had taken.
        """
        sup = self.super
        off, seq, epoch = self._walk(sup.tail_off, sup.tail_seq, sup.min_epoch, trusted_head and trusted_head[0])
        if trusted_head is not None and off < trusted_head[0]:
            raise IntegrityError(
                f"the journal ends at record {seq}, before records that were written to it",
                "the journal's medium is failing: replace it, then resync the pair",
            )
        self._publish_kept()
        if not keep_head:
            self._publish_head(off, seq, epoch)

    def forget_beyond_head(self) -> None:
        """Destroy a record that was written behind the head but never published, before another takes its place.

        Otherwise power loss could bring it back where a part of its successor had not reached the disk.
        Durable: nothing until `sync`.
        """
        off = self._u64[HEAD_OFF]
        length = min(HEADER_BYTES, self.capacity - (off - self._u64[TAIL_OFF]))
        if length > 0:
            self._write(bytes(length), off)

    def end_at(self, off: int, seq: int, epoch: int) -> None:
        """Let the chain end at `off`, behind record `seq` of `epoch`; what lay beyond is no record any more.

        Durable: nothing until `sync`; until then power loss may bring it back.
        """
        self._publish_head(off, seq, epoch)
        self.forget_beyond_head()

    def rewrite(self) -> None:
        """Write every record from tail to head where it is, and sync. For a page cache that may differ from the disk.

        Durable: all of them.
        """
        off, head = self._u64[TAIL_OFF], self._u64[HEAD_OFF]
        while off < head:
            length = min(_SCAN_BYTES, head - off)
            self._write(self.read(off, length), off)
            off += length
        self.sync()

    def start_empty(self, seq: int, epoch: int) -> None:
        """Publish an empty journal at position `seq`: nothing is journaled now."""
        off = self.super.tail_off
        self._publish_kept()
        self._publish_head(off, seq, epoch)
        u64 = self._u64
        u64[TAIL_SEQ], u64[DURABLE_SEQ], u64[APPLIED_SEQ] = seq + 1, seq, seq

    def _walk(self, off: int, next_seq: int, epoch: int, stop: int | None) -> tuple[int, int, int]:
        """Walk valid records from `off`; returns (offset behind the last, its seq, its epoch)."""
        limit = off + self.capacity if stop is None else stop
        seq = next_seq - 1
        want = _SCAN_BYTES
        while off < limit:
            chunk = memoryview(self.read(off, min(want, limit - off)))
            try:
                run = parse_run(chunk, seq + 1, epoch)
            except BadRecord:
                run = None
            if run is None or run.begin != 0 or run.records == 0:
                if run is not None and run.begin == 0 and want < MAX_PAYLOAD_BYTES * 2 and want < limit - off:
                    want *= 2
                    continue
                return self._walk_singly(off, seq, epoch, limit)
            off += run.end
            seq, epoch = run.last_seq, run.last_epoch
        return off, seq, epoch

    def _walk_singly(self, off: int, seq: int, epoch: int, limit: int) -> tuple[int, int, int]:
        """Walk record by record, to end exactly before the first bad one."""
        while limit - off >= HEADER_BYTES:
            try:
                header = unpack_header(self.read(off, HEADER_BYTES))
                if header.seq != seq + 1 or header.epoch < epoch or off + header.total_bytes > limit:
                    break
                if header.epoch != epoch and header.kind != Kind.EPOCH and off != self.super.tail_off:
                    break
                check_payload(header, self.read(off + HEADER_BYTES, header.payload_len))
            except BadRecord:
                break
            off += header.total_bytes
            seq, epoch = header.seq, header.epoch
        return off, seq, epoch

    def _publish_kept(self) -> None:
        u64, sup = self._u64, self.super
        u64[TAIL_OFF], u64[TAIL_SEQ] = sup.tail_off, sup.tail_seq
        u64[APPLIED_OFF], u64[APPLIED_SEQ] = sup.redo_off, sup.redo_seq - 1
        u64[DURABLE_OFF], u64[DURABLE_SEQ] = sup.tail_off, sup.tail_seq - 1

    def _publish_head(self, off: int, seq: int, epoch: int) -> None:
        u64 = self._u64
        u64[EPOCH] = epoch
        u64[HEAD_SEQ] = seq
        u64[HEAD_OFF] = off

    # -- appending ------------------------------------------------------------------------------------------------

    def room_for(self, total_bytes: int) -> bool:
        """Say whether a record or run of that many bytes fits before the tail."""
        return self._u64[HEAD_OFF] + total_bytes - self._u64[TAIL_OFF] <= self.capacity

    def append(self, header: bytes, payload: Buffer | None, seq: int, epoch: int) -> None:
        """Append one record and publish it. Hot path; the caller holds the group lock and has seen room_for().

        Durable: nothing (the bytes are with the kernel, so they survive the process, not power loss).
        """
        u64 = self._u64
        off = u64[HEAD_OFF]
        total = HEADER_BYTES if payload is None else HEADER_BYTES + len(payload)
        at = off % self.capacity
        if at + total <= self.capacity:
            self._pwritev((header,) if payload is None else (header, payload), DATA_START + at)
        else:
            self._write_wrapped(header if payload is None else b"".join((header, payload)), at)
        u64[EPOCH] = epoch
        u64[HEAD_SEQ] = seq
        u64[HEAD_OFF] = off + total

    def append_run(self, run: Buffer, last_seq: int, last_epoch: int) -> None:
        """Append records that parse_run() accepted, and publish them. Same promises as append()."""
        u64 = self._u64
        off = u64[HEAD_OFF]
        self._write(run, off)
        u64[EPOCH] = last_epoch
        u64[HEAD_SEQ] = last_seq
        u64[HEAD_OFF] = off + len(run)

    def _write(self, data: Buffer, off: int) -> None:
        at = off % self.capacity
        if at + len(data) <= self.capacity:
            self._pwritev((data,), DATA_START + at)
        else:
            self._write_wrapped(data, at)

    def _write_wrapped(self, data: Buffer, at: int) -> None:
        view = memoryview(data)
        first = self.capacity - at
        self._file.pwrite(view[:first], DATA_START + at)
        self._file.pwrite(view[first:], DATA_START)

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, off: int, length: int) -> bytes:
        """Return bytes [off, off + length) of the ring. The caller stays between tail and head."""
        buf = bytearray(length)
        self.read_into(memoryview(buf), off)
        return bytes(buf)

    def read_into(self, buf: memoryview, off: int) -> None:
        """Fill `buf` from logical offset `off`. Raises OSError(EIO) when the file is shorter than its ring."""
        at = off % self.capacity
        first = min(len(buf), self.capacity - at)
        got = self._file.preadinto(buf[:first], DATA_START + at)
        if first < len(buf):
            got += self._file.preadinto(buf[first:], DATA_START)
        if got != len(buf):
            raise OSError(errno.EIO, "journal file is shorter than its ring")

    def header_at(self, off: int) -> Header:
        """Decode the header of the record at `off`. Raises BadRecord."""
        return unpack_header(self.read(off, HEADER_BYTES))

    def tail(self) -> tuple[int, int]:
        """Return offset and seq of the first record kept, as they belong together.

        Another process stores one after the other, so what is read is held against the record. Raises IntegrityError
        when they do not agree for good.
        """
        u64 = self._u64
        for _ in range(_TAIL_LOOKS):
            off, seq = u64[TAIL_OFF], u64[TAIL_SEQ]
            try:
                found = u64[HEAD_SEQ] + 1 if off == u64[HEAD_OFF] else self.header_at(off).seq
            except BadRecord:
                found = -1
            if found == seq:
                return off, seq
            time.sleep(0.001)
        raise IntegrityError(f"the journal's first record is not {seq}", "resync the pair")

    def find(self, seq: int, from_off: int | None = None, from_seq: int | None = None) -> int:
        """Return the offset of record `seq`; head offset for the seq that comes next.

        from_off, from_seq: a known record to start from (default: the tail). Raises IntegrityError when `seq` is not
        between tail and head: the caller compares with TAIL_SEQ and HEAD_SEQ first.
        """
        u64 = self._u64
        off, at_seq = self.tail() if from_off is None or from_seq is None else (from_off, from_seq)
        head_off, head_seq = u64[HEAD_OFF], u64[HEAD_SEQ]
        if seq == head_seq + 1:
            return head_off
        while True:
            if not at_seq <= seq <= head_seq:
                raise IntegrityError(f"record {seq} is not in the journal ({at_seq}..{head_seq})", "resync the pair")
            if at_seq == seq:
                return off
            try:
                header = self.header_at(off)
            except BadRecord:
                header = None
            if header is not None and header.seq == at_seq:
                off += header.total_bytes
                at_seq += 1
            elif u64[TAIL_OFF] > off:
                off, at_seq = self.tail()  # it was freed, and overwritten, meanwhile
            else:
                raise IntegrityError(f"the journal is damaged at record {at_seq}", "resync the pair")

    # -- durability -----------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Durable: every record handed to append before the call. A failure is final: the journal must be sealed."""
        self._file.fdatasync()

    def set_tail(self, tail_off: int, tail_seq: int, redo_off: int, redo_seq: int) -> None:
        """Move the tail and the redo point forward, then free the space.

        Everything before redo_off is durable in the pool; everything before tail_off is wanted by nobody.
        Durable: the new tail, before TAIL_OFF in the page says so.
        """
        self._write_super(
            self.super._replace(tail_off=tail_off, tail_seq=tail_seq, redo_off=redo_off, redo_seq=redo_seq)
        )
        self._u64[TAIL_SEQ] = tail_seq
        self._u64[TAIL_OFF] = tail_off

    def reset(self, seq: int, epoch: int) -> None:
        """Empty the journal: the next record is seq + 1, of `epoch` or newer. Durable: the empty journal."""
        off = max(self._u64[HEAD_OFF], self.super.redo_off)  # offsets never fall, also when the head was not looked for
        self._write_super(
            self.super._replace(tail_off=off, tail_seq=seq + 1, redo_off=off, redo_seq=seq + 1, min_epoch=epoch)
        )
        self._publish_kept()
        self._publish_head(off, seq, epoch)

    def keep_super(self) -> None:
        """Durable: the superblock as it was read. See StateFile.keep for what could be wrong with it."""
        self._put_super(self.super)

    def _write_super(self, sup: Super) -> None:
        sup = sup._replace(generation=sup.generation + 1)
        self._put_super(sup)
        self.super = sup

    def _put_super(self, sup: Super) -> None:
        body = _SUPER.pack(b"FSRJ", 1, 0, *sup)
        self._file.pwrite_durable(body + _CRC.pack(crc32c(body)), (sup.generation % 2) * _SLOT_BYTES)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _read_slot(file: RandomFile, slot: int) -> Super | None:
    raw = file.pread(_SUPER.size + _CRC.size, slot * _SLOT_BYTES)
    if len(raw) < _SUPER.size + _CRC.size or _CRC.unpack_from(raw, _SUPER.size)[0] != crc32c(raw[: _SUPER.size]):
        return None
    magic, version, _index, *rest = _SUPER.unpack_from(raw)
    if magic != b"FSRJ" or version != 1:
        return None
    return Super(*rest)


def _wipe(file: RandomFile, size: int) -> None:
    """Make the file read as zeroes.

    Up to FILL_BYTES are written in any case, as databases do with their logs: the first appends and syncs then find
    their space in order, and the page cache holds the file in large pieces, which makes copies cheaper. Beyond that a
    new file stays unwritten, and of an old one only what is not zero is written.
    """
    zeroes = bytes(_WIPE_BYTES)
    filled = min(size, FILL_BYTES)
    for at in range(0, filled, _WIPE_BYTES):
        file.pwrite(zeroes[: min(_WIPE_BYTES, filled - at)], at)
    if size == filled or file.known_blank(filled):
        return
    for at in range(filled, size, _WIPE_BYTES):
        length = min(_WIPE_BYTES, size - at)
        if file.pread(length, at) != zeroes[:length]:
            file.pwrite(zeroes[:length], at)
