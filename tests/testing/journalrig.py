"""A journal of several files on a disk that forgets, with a truth to hold it against.

Rig is one appender and one target in one process, as a primary has them; `Rig.remote` makes the appender a second
Journal on the same files, as a secondary's replicator is, which learns of changes through the page alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from crc32c import crc32c

from replicator.core.errors import Refused
from replicator.core.records import HEADER_BYTES, Kind, pack_header
from replicator.journal import relayout, volumes
from replicator.journal.layout import files_of
from replicator.journal.page import EPOCH, HEAD_OFF, HEAD_SEQ, TAIL_OFF, Page
from replicator.journal.ring import DATA_START, Journal
from tests.testing import naivejournal
from tests.testing.fakedisk import FakeDisk, FakeFile

GROUP = bytes(range(16))
EPOCH_1 = 1 << 24 | 5
LEAST_BYTES = 512


def record(seq: int, payload: bytes) -> bytes:
    """The header of a WRITE."""
    crc = crc32c(payload) if payload else 0
    return pack_header(Kind.WRITE, 0, EPOCH_1, seq, seq, 0, len(payload), 0, len(payload), crc)


class DiskFiles(volumes.JournalFiles):
    """The journal's files on a FakeDisk, named as in a directory."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk

    def indices(self) -> list[int]:
        return sorted(int(name.partition(".")[2] or 0) for name in self.disk.names() if name.startswith("journal"))

    def open(self, index: int) -> FakeFile:  # type: ignore[override]  # it offers more than a RandomFile
        return self.disk.open(self.name(index))

    @staticmethod
    def name(index: int) -> str:
        return f"journal.{index}" if index else "journal"


class Rig:
    """A journal, its page, and what was written and promised."""

    def __init__(self, capacity: int = 4096, seed: int = 0, *, remote: bool = False) -> None:
        self.disk = FakeDisk(random.Random(seed))
        self.page = Page.in_memory()
        self.remote = remote
        self.written: dict[int, bytes] = {}
        self.durable = 0
        self.kept = 1
        """The first record that must be there."""
        self.disk.create("journal", DATA_START + capacity)
        self.files = DiskFiles(self.disk)
        self.journal = Journal.create(self.files, self.page, GROUP, capacity)
        self._open_appender()

    def _open_appender(self) -> None:
        self.appender = Journal.open(self.files, self.page) if self.remote else self.journal

    def add(self, payload: bytes) -> bool:
        """Append a record; False when there is no room."""
        if not self.appender.room_for(HEADER_BYTES + len(payload)):
            return False
        seq = self.page[HEAD_SEQ] + 1
        self.written[seq] = payload
        if self.remote:
            self.appender.append_run(record(seq, payload) + payload, seq, EPOCH_1)
        else:
            self.appender.append(record(seq, payload), payload or None, seq, EPOCH_1)
        return True

    def sync(self) -> None:
        """Make everything durable, and remember that it is."""
        head = self.page[HEAD_SEQ]
        self.journal.sync()
        self.durable = max(self.durable, head)

    def trim(self, seq: int) -> None:
        """Free everything before `seq`, as a checkpoint does: what is kept is durable first."""
        self.sync()
        off = self.journal.find(seq)
        self.kept = max(self.kept, seq)  # from here on they may be gone
        self.journal.set_tail(off, seq, off, seq)
        if relayout.releasable(self.journal, self.page):
            self.release()

    def join(self, ring_bytes: int) -> int:
        """Add a file. Raises Refused."""
        index = self.journal.super.next_index
        name = self.files.name(index)
        if name in self.disk.names():
            self.disk.remove(name)
        self.disk.create(name, DATA_START + ring_bytes)
        file = self.disk.open(name)
        volumes.prepare(file, index, self.journal.super, ring_bytes)  # type: ignore[arg-type]
        try:
            joined: Any = file
            return relayout.add(self.journal, self.page, joined, ring_bytes, alone=not self.remote)
        except Refused:
            self.disk.remove(name)
            raise

    def leave(self, index: int) -> None:
        """Remove a file. Raises Refused, NotFound."""
        relayout.remove(self.journal, self.page, index, LEAST_BYTES, alone=not self.remote)

    def release(self) -> set[int]:
        """Take files away that nobody needs."""
        free = relayout.release(self.journal, self.page)
        for index in free:
            self.disk.remove(self.files.name(index))
        return free

    def members(self) -> list[int]:
        """Files of the newest layout."""
        return sorted(files_of(self.journal.super.ring()[-1:]))

    def reopen(self, *, trusted: bool) -> None:
        """Open everything anew, as a node that starts. trusted: the page survived."""
        head = (self.page[HEAD_OFF], self.page[EPOCH]) if trusted else None
        if not trusted:
            self.page.clear(1)
        self.journal = Journal.open(self.files, self.page)
        self.journal.recover(head)
        self.journal.forget_beyond_head()
        for index in set(self.files.indices()) - files_of(self.journal.super.ring()):
            self.disk.remove(self.files.name(index))
        self._open_appender()
        self.written = {seq: p for seq, p in self.written.items() if seq <= self.page[HEAD_SEQ]}

    def crash(self) -> None:
        """Lose power and start again."""
        self.disk.crash()
        self.reopen(trusted=False)

    def kill(self) -> None:
        """Die and start again on the same page."""
        self.disk.kill()
        self.reopen(trusted=True)

    def records(self) -> list[tuple[int, bytes]]:
        """What the journal holds, read through it."""
        found, off = [], self.page[TAIL_OFF]
        while off < self.page[HEAD_OFF]:
            header = self.journal.header_at(off)
            found.append((header.seq, self.journal.read(off + HEADER_BYTES, header.payload_len)))
            off += header.total_bytes
        return found

    def check(self) -> None:
        """Hold the journal against what was written and promised, by its own reader and by the naive one."""
        found = self.records()
        files = {index: bytes(self.disk._find(self.files.name(index)).data) for index in self.files.indices()}
        naive = naivejournal.records(files)
        assert naive[: len(found)] == found, "the naive reader disagrees"
        assert found == [(seq, self.written[seq]) for seq, _ in found], "other bytes than were written"
        first = found[0][0] if found else self.page[HEAD_SEQ] + 1
        assert first <= self.kept, f"record {self.kept} is gone, the journal begins at {first}"
        assert self.page[HEAD_SEQ] >= self.durable, f"{self.durable} was durable, {self.page[HEAD_SEQ]} is the last"


Step = Callable[[Rig, random.Random], None]


def _append(rig: Rig, rng: random.Random) -> None:
    payload = rng.randbytes(rng.choice((0, 30, 200, 500, 900)))
    if not rig.add(payload):
        rig.trim(rng.randint(rig.kept, rig.page[HEAD_SEQ] + 1))


def _sync(rig: Rig, _rng: random.Random) -> None:
    rig.sync()


def _trim(rig: Rig, rng: random.Random) -> None:
    rig.trim(rng.randint(rig.kept, rig.page[HEAD_SEQ] + 1))


def _join(rig: Rig, rng: random.Random) -> None:
    if len(rig.members()) < 4:
        rig.join(rng.choice((600, 1500, 2048)))


def _leave(rig: Rig, rng: random.Random) -> None:
    members = rig.members()
    if len(members) > 1:
        try:
            rig.leave(rng.choice(members))
        except Refused:
            pass  # it holds too much just now


STEPS: tuple[Step, ...] = (_append,) * 12 + (_sync,) * 2 + (_trim,) * 2 + (_join, _leave)


def run(rig: Rig, rng: random.Random, steps: int) -> None:
    """Take random steps."""
    for _ in range(steps):
        rng.choice(STEPS)(rig, rng)
