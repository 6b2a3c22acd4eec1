"""The journal ring: records of one group, in order, in a preallocated file or device.

Reasoning. Offsets are logical: they start at 0 when the journal is made and only grow; in a single file a byte at
logical offset o lies at o modulo capacity. A record may wrap round the end. Records lie without gaps, so the chain from
the tail to the head can be walked by their lengths, and seq rises by one from each to the next.

The space of a record may be overwritten only after a superblock that no longer points at it is durable; so TAIL_OFF in
the page moves after `set_tail` has synced, never before. After a crash the chain is walked from the durable tail and
ends at the first record that is torn, out of sequence or of another epoch (which only an EPOCH record may begin):
bytes of an earlier lap have a lower seq, bytes of a lost branch another epoch (whoever continues after a lost tail
opens a new epoch or gets the same records again).

On a primary the target appends; on a secondary the replicator does. Both hold a Journal of their own on the same file,
and the page says where the journal ends. Only the target writes the superblock.

The ring may be made of several files or devices; layout.py says where an offset lies, superblock.py which superblock
counts. Only the target changes the layouts: durably first, then LAYOUT_GEN in the page, and the tail stands still till
then. Whoever goes beyond what it knew of has read a tail or a head that was stored later than LAYOUT_GEN, so everybody
looks at LAYOUT_GEN after that and reads the superblocks anew when it has risen.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping

from replicator.core.errors import IntegrityError
from replicator.core.records import HEADER_BYTES, BadRecord, Header, unpack_header
from replicator.journal.chain import SCAN_BYTES, walk
from replicator.journal.files import Buffer, NoFile, RandomFile
from replicator.journal.layout import Extent, Layout, Layouts, anchor_of, files_of, piece_at, pieces
from replicator.journal.page import (
    APPLIED_OFF,
    APPLIED_SEQ,
    DURABLE_OFF,
    DURABLE_SEQ,
    EPOCH,
    HEAD_OFF,
    HEAD_SEQ,
    LAYOUT_GEN,
    TAIL_OFF,
    TAIL_SEQ,
    Page,
)
from replicator.journal.superblock import DATA_START, Super, write_slot
from replicator.journal.volumes import JournalFiles, newest_generation, open_all, wipe

MIN_CAPACITY = 1 << 20
_TAIL_LOOKS = 200
_LAYOUT_LOOKS = 50
GENERATION_STEP = 1 << 32
"""A journal that takes the place of a broken one is newer than anything that may still be read of that."""


class Torn(IntegrityError):
    """Records that were written are damaged, or missing; what the superblock says can be read."""


class Undecided(OSError):
    """The superblock that decides what the journal is made of may or may not be written: the journal must be sealed."""


class Journal:
    """A ring of records over its files. Not thread-safe for appends: the caller orders them."""

    def __init__(self, source: JournalFiles, files: Mapping[int, RandomFile], page: Page, sup: Super) -> None:
        """Wrap an opened journal; use `create` or `open`."""
        self.source = source
        self._u64 = page.u64
        self._adopt(files, sup)
        self._syncing = threading.Lock()
        self._synced_off = -1
        self._broken: OSError | None = None
        self.failed: dict[int, str] = {}
        """Files whose medium has refused something in this life, by index: why."""
        self.passed_over: tuple[int, int] | None = None
        """Records [first, end) that `recover` found damaged, and did without."""

    def _adopt(self, files: Mapping[int, RandomFile], sup: Super) -> None:
        """Take over what the ring is made of now. Nobody appends through this object meanwhile."""
        layouts = sup.ring()
        self.super = sup
        self._ring = dict(files), layouts
        self.capacity = layouts[-1].capacity
        """Bytes of the ring; in the replicator those it last heard of."""
        self._layout_gen = sup.layout_gen
        self._run_lo = self._run_hi = self._run_shift = 0  # logical offsets that lie in one file, and by how much off
        self._pwritev = files[anchor_of(layouts)].pwritev
        # Likewise; one tuple, for threads read.
        self._read_run = (layouts, 0, 0, 0, files[anchor_of(layouts)].preadinto)

    @classmethod
    def create(cls, source: RandomFile | JournalFiles, page: Page, group: bytes, capacity: int) -> Journal:
        """Write a fresh, empty journal into file 0 of `source`; `capacity` bytes of ring follow the superblocks.

        Whatever the file or device held is overwritten: the records of an earlier journal must not be taken for ours.
        Durable: the empty journal.
        """
        files = source if isinstance(source, JournalFiles) else JournalFiles(source)
        file = files.open(0)
        wipe(file, DATA_START + capacity)
        journal = cls(files, {0: file}, page, Super(0, group, capacity, 0, 1, 0, 1, 0))
        journal._write_super(journal.super)
        journal._publish_kept()
        journal._publish_head(0, 0, 0)
        return journal

    @classmethod
    def open(cls, source: RandomFile | JournalFiles, page: Page) -> Journal:
        """Open an existing journal; does not look for its head (see `recover`). Raises IntegrityError."""
        found = source if isinstance(source, JournalFiles) else JournalFiles(source)
        files, sup = open_all(found, {})
        return cls(found, files, page, sup)

    @classmethod
    def absent(cls, source: JournalFiles, page: Page, group: bytes) -> Journal:
        """A journal whose files cannot be used: every access is an OSError, until `renew`."""
        return cls(source, {0: NoFile()}, page, Super(0, group, MIN_CAPACITY, 0, 1, 0, 1, 0))

    @property
    def unknown(self) -> bool:
        """Whether nobody has read what the journal is made of; see `absent`."""
        return any(isinstance(file, NoFile) for file in self._ring[0].values())

    def follow(self) -> None:
        """Learn of a change of the layouts that the target has made, if there is one. Raises OSError."""
        if self._u64[LAYOUT_GEN] > self._layout_gen:
            self._follow(self._u64[LAYOUT_GEN])

    def _follow(self, wanted: int) -> None:
        for _ in range(_LAYOUT_LOOKS):
            try:
                files, sup = open_all(self.source, self._ring[0])
            except IntegrityError as exc:
                raise OSError(errno.EIO, exc.message) from exc
            if sup.layout_gen >= wanted:
                break
            time.sleep(0.002)  # it was read while it was being written
        else:
            raise OSError(errno.EIO, "the journal's files do not tell what it is made of")
        old = self._ring[0]
        self._adopt(files, sup)
        for index in old.keys() - files.keys():
            old[index].close()

    def recover(self, trusted_head: tuple[int, int] | None, *, keep_head: bool = False, redo_epoch: int = 0) -> None:
        """Find the head and publish it, with tail and redo point.

        trusted_head: (offset, epoch) from a page of this boot, or None to walk the chain from the tail.
        redo_epoch: no record from the redo point on is of an older epoch; older ones that lie there are of a dead
        history.
        keep_head: publish the rest only; another process appends, and may do so at this moment.
        A trusted head behind a torn or missing record is Torn: the medium lost bytes it had taken. What
        it lost before the redo point nobody needs but peers: then the journal begins there, durably, and `passed_over`
        says which records are gone.
        """
        sup = self.super
        stop = max(sup.tail_off + self.capacity, self._ring[1][-1].start) if trusted_head is None else trusted_head[0]
        off, seq, epoch = walk(self.read, sup.tail_off, sup.tail_seq, sup.min_epoch, stop)
        if off < sup.redo_off and not keep_head:
            self.passed_over = seq + 1, sup.redo_seq
            off, seq, epoch = walk(self.read, sup.redo_off, sup.redo_seq, max(epoch, redo_epoch), stop)
            sup = sup._replace(tail_off=sup.redo_off, tail_seq=sup.redo_seq)
        if trusted_head is not None and off < trusted_head[0]:
            raise Torn(
                f"the journal ends at record {seq}, before records that were written to it",
                "the journal's medium is failing: replace it, then resync the pair",
            )
        if sup is not self.super:
            self._write_super(sup)
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
            self._synced_off = min(self._synced_off, off - 1)

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
            length = min(SCAN_BYTES, head - off)
            self._write(self.read(off, length), off)
            off += length
        self._synced_off = -1
        self.sync()

    def start_empty(self, seq: int, epoch: int) -> None:
        """Publish an empty journal at position `seq`: nothing is journaled now."""
        off = self.super.tail_off
        self._publish_kept()
        self._publish_head(off, seq, epoch)
        u64 = self._u64
        u64[TAIL_SEQ], u64[DURABLE_SEQ], u64[APPLIED_SEQ] = seq + 1, seq, seq

    def _publish_kept(self) -> None:
        u64, sup = self._u64, self.super
        u64[LAYOUT_GEN] = sup.layout_gen
        u64[TAIL_OFF], u64[TAIL_SEQ] = sup.tail_off, sup.tail_seq
        u64[APPLIED_OFF], u64[APPLIED_SEQ] = sup.redo_off, sup.redo_seq - 1
        u64[DURABLE_OFF], u64[DURABLE_SEQ] = sup.tail_off, sup.tail_seq - 1

    def _publish_head(self, off: int, seq: int, epoch: int) -> None:
        u64 = self._u64
        self._synced_off = min(self._synced_off, off)  # what comes behind it now was not synced yet
        u64[EPOCH] = epoch
        u64[HEAD_SEQ] = seq
        u64[HEAD_OFF] = off

    # -- appending ------------------------------------------------------------------------------------------------

    def room_for(self, total_bytes: int) -> bool:
        """Say whether a record or run of that many bytes fits before the tail. Raises OSError as `follow`."""
        u64 = self._u64
        tail = u64[TAIL_OFF]
        self.follow()  # after the tail was read: it may have moved because of what is new
        return u64[HEAD_OFF] + total_bytes - tail <= self.capacity

    def append(self, header: bytes, payload: Buffer | None, seq: int, epoch: int) -> None:
        """Append one record and publish it. Hot path; the caller holds the group lock and has seen room_for().

        Durable: nothing (the bytes are with the kernel, so they survive the process, not power loss).
        """
        u64 = self._u64
        off = u64[HEAD_OFF]
        end = off + HEADER_BYTES if payload is None else off + HEADER_BYTES + len(payload)
        if end <= self._run_hi and off >= self._run_lo and u64[LAYOUT_GEN] <= self._layout_gen:
            try:
                self._pwritev((header,) if payload is None else (header, payload), off + self._run_shift)
            except OSError as exc:
                raise self._blame(piece_at(self._ring[1], off).file, exc) from exc
        else:
            self._write(header if payload is None else b"".join((header, payload)), off)
        u64[EPOCH] = epoch
        u64[HEAD_SEQ] = seq
        u64[HEAD_OFF] = end

    def append_run(self, run: Buffer, last_seq: int, last_epoch: int) -> None:
        """Append records that parse_run() accepted, and publish them. Same promises as append()."""
        u64 = self._u64
        off = u64[HEAD_OFF]
        self._write(run, off)
        u64[EPOCH] = last_epoch
        u64[HEAD_SEQ] = last_seq
        u64[HEAD_OFF] = off + len(run)

    def _write(self, data: Buffer, off: int) -> None:
        self.follow()
        if off < self._run_lo or off >= self._run_hi:
            files, layouts = self._ring
            piece = piece_at(layouts, off)
            self._pwritev = files[piece.file].pwritev
            self._run_shift = DATA_START + piece.at - piece.lo
            self._run_lo, self._run_hi = piece.lo, piece.hi
        n = self._run_hi - off
        view = data if len(data) <= n else memoryview(data)[:n]
        try:
            self._pwritev((view,), off + self._run_shift)
        except OSError as exc:
            raise self._blame(piece_at(self._ring[1], off).file, exc) from exc
        if len(data) > n:
            self._write(memoryview(data)[n:], off + n)

    def _blame(self, index: int, exc: OSError) -> OSError:
        """Note which file has failed; returns the error with its name."""
        why = exc.strerror or str(exc)
        self.failed.setdefault(index, why)
        return OSError(exc.errno, why, self.source.path(index))

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, off: int, length: int) -> bytes:
        """Return bytes [off, off + length) of the ring. The caller stays between tail and head."""
        buf = bytearray(length)
        self.read_into(memoryview(buf), off)
        return bytes(buf)

    def read_into(self, buf: memoryview, off: int) -> None:
        """Fill `buf` from logical offset `off`. Raises OSError(EIO) when a file is shorter than its part."""
        self.follow()
        files, layouts = self._ring
        known, lo, hi, shift, preadinto = self._read_run
        if known is not layouts or off < lo or off >= hi:
            piece = piece_at(layouts, off)
            hi, shift, preadinto = piece.hi, DATA_START + piece.at - piece.lo, files[piece.file].preadinto
            self._read_run = layouts, piece.lo, hi, shift, preadinto
        n = min(len(buf), hi - off)
        if preadinto(buf if n == len(buf) else buf[:n], off + shift) != n:
            raise OSError(errno.EIO, "journal file is shorter than its part of the ring")
        if n < len(buf):
            self.read_into(buf[n:], off + n)

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
        """Durable: every record handed to append before the call.

        A failure is final: it is raised for every later call too, for the next sync of the file would succeed without
        having written what this one dropped. One at a time: of two calls at once the kernel tells only one.
        """
        u64 = self._u64
        head = u64[HEAD_OFF]
        self.follow()
        with self._syncing:
            if self._broken is not None:
                raise self._broken
            if self._synced_off >= head:
                return  # while we waited
            files, layouts = self._ring
            since = min(max(self._synced_off, u64[TAIL_OFF]), head)  # what lies before the tail is not kept
            try:
                for file in {file for file, _at, _length in pieces(layouts, since, head - since + HEADER_BYTES)}:
                    try:
                        files[file].fdatasync()
                    except OSError as exc:
                        raise self._blame(file, exc) from exc
            except OSError as exc:
                self._broken = exc
                raise
            self._synced_off = head

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
        """Empty the journal: the next record is seq + 1, of `epoch` or newer. Durable: the empty journal.

        It begins where the newest layout does, so that files which were removed are free.
        """
        # Offsets never fall, also when the head was not looked for.
        off = max(self._u64[HEAD_OFF], self.super.redo_off, self._ring[1][-1].start)
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

    def relayout(self, layouts: Layouts, new: Mapping[int, RandomFile], next_index: int) -> None:
        """Make the ring of `layouts` from their starts on; close the files that have no part in it any more.

        new: files that were not in it, prepared (volumes.prepare). The caller sees to it that the newest layout begins
        where `layout.next_start` says and that the tail stands still; nobody reads through this object meanwhile.
        Durable: the layouts, before anybody can go by them. OSError: nothing has changed; Undecided: nobody knows.
        """
        sup = self.super._replace(
            generation=self.super.generation + 1,
            capacity=layouts[-1].capacity,
            layouts=layouts,
            next_index=next_index,
            layout_gen=self.super.layout_gen + 1,
        )
        files = {index: file for index, file in {**self._ring[0], **new}.items() if index in files_of(layouts)}
        anchor, stays = anchor_of(layouts), files_of(layouts[-1:])
        for index, file in files.items():
            if index != anchor:
                try:
                    write_slot(file, sup, index)
                except OSError:
                    if index in stays:
                        raise
        try:
            write_slot(files[anchor], sup, anchor)
            if self.super.layouts is None:  # a version that knows of one file only must not find its superblock again
                sup = sup._replace(generation=sup.generation + 1)
                write_slot(files[anchor], sup, anchor)
        except OSError as exc:
            raise Undecided(exc.errno, exc.strerror) from exc
        self._change(files, sup)

    def renew(self, file: RandomFile, index: int, ring_bytes: int, seq: int, epoch: int) -> None:
        """Be made of one new, prepared file from now on, and be empty: the next record is seq + 1, of `epoch` or newer.

        Whoever appends has stopped. What the old files hold is given up. Durable: the empty journal.
        """
        off = max(self._u64[HEAD_OFF], self.super.redo_off, self._ring[1][-1].start)
        sup = Super(
            generation=max(self.super.generation, newest_generation(self.source)) + GENERATION_STEP,
            group=self.super.group,
            capacity=ring_bytes,
            tail_off=off,
            tail_seq=seq + 1,
            redo_off=off,
            redo_seq=seq + 1,
            min_epoch=epoch,
            layouts=(Layout(off, 0, (Extent(index, 0, ring_bytes),)),),
            next_index=index + 1,
            layout_gen=max(self.super.layout_gen, self._u64[LAYOUT_GEN]) + 1,
        )
        write_slot(file, sup, index)
        self._change({index: file}, sup)
        self._synced_off, self._broken, self.failed = -1, None, {}
        self._publish_kept()
        self._publish_head(off, seq, epoch)

    def _change(self, files: Mapping[int, RandomFile], sup: Super) -> None:
        """Go by another superblock, which is durable, and let the replicator know."""
        old = self._ring[0]
        with self._syncing:
            self._adopt(files, sup)
            self._u64[LAYOUT_GEN] = sup.layout_gen
            for index in old.keys() - files.keys():
                old[index].close()

    def _put_super(self, sup: Super) -> None:
        anchor = anchor_of(sup.ring())
        write_slot(self._ring[0][anchor], sup, anchor)

    def close(self) -> None:
        """Release the files."""
        for file in self._ring[0].values():
            file.close()
