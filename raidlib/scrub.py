"""Scrubbing a RAID group: every allocated row of every member is read from the medium, and members are compared.

A step reads up to 4 MiB of each member in one piece, all members at once, without a lock, so hosts wait for nothing.
Only rows that do not look right are judged: again, row by row, under the stripe lock, when no write is in between.

What a scrub can know, and what it does about it:

* A block that cannot be read, or does not fit its checksum, is bad. It is written anew from the others, in either
  mode. (Data and checksum that are both old together fit each other: see the next point.)
* Copies, or data and parity, that differ although every block is readable and fits: RAID 6 can name the one wrong
  column (stripecheck.py); otherwise nobody knows which is right. `check` reports it and writes nothing. `repair` writes
  the located column; else it makes parity fit the data, and copies equal to the first member that is in sync. That
  brings the members into agreement, not lost data back.
* RAID 0 has nothing to compare: reads, and checksums where the group has them, are all there is. A group with a member
  missing is read and not compared.

Progress is durable now and then with what was found, after the repairs before it: a crash repeats some work and loses
no finding for good. Only areas that belong to a volume are read; an area that is freed meanwhile is passed over, and
`vacating` keeps it from being zeroed while a repair writes to it. Repairs need no mark in the intent log: half of one
is as wrong as none, in the same place, for the next read or scrub to find.
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from raidlib.allocator import Allocator
from raidlib.checksums import BLOCK_BYTES
from raidlib.errors import MediumError, Refused
from raidlib.gf256 import generator
from raidlib.image import Image
from raidlib.ledger import Ledger
from raidlib.member import Member
from raidlib.parity import Scratch, Span
from raidlib.raidgroup import RaidGroup
from raidlib.state import MemberState
from raidlib.stripecheck import Blocks, locate, syndromes, unequal_copies

UNIT_BYTES = 4 << 20
"""Bytes of each member read in one step, about; less of many members."""
MOST_BYTES = 32 << 20
"""Bytes of all members read in one step, about."""
SAVE_S = 10.0
"""Seconds between two durable notes of progress."""
MAX_RANGES = 16
"""Places that are remembered with their kind; all are counted."""
COUNTS = ("unreadable", "checksum_errors", "mismatches", "located", "repaired", "unrepairable")
RUNNING, PAUSED, FINISHED, STOPPED = "running", "paused", "finished", "stopped"


class Scrub:
    """The scrub of one group. step() is called by one thread; everything else by any."""

    def __init__(
        self, group: RaidGroup, allocator: Allocator, ledger: Ledger, clock: Callable[[], float] = time.time
    ) -> None:
        self.group = group
        self._allocator = allocator
        self._ledger = ledger
        self._clock = clock
        self._plan: list[int] | None = None
        self._pass = 0
        """Rises with every order: a step that was under way then is not counted."""
        self._scratch: tuple[int, Scratch] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._saved_at = clock()
        self._begun_at = clock()
        self._begun_done = 0

    @property
    def state(self) -> str:
        """running, paused, finished, stopped, or empty when there was never one."""
        return str(self.group.info.scrub.get("state", ""))

    @property
    def active(self) -> bool:
        """Whether step() has something to do."""
        return self.state == RUNNING

    @property
    def limit_bytes_s(self) -> int:
        """Bytes a second, over all members, that it may read; 0 for as many as there are."""
        return int(self.group.info.scrub.get("limit", 0))

    @property
    def _unit_bytes(self) -> int:
        return min(UNIT_BYTES, MOST_BYTES // len(self.group.members))

    # Orders

    def start(self, repair: bool, limit_bytes_s: int) -> None:
        """Begin at the first area; one that runs or is paused goes on. Raises Refused, MediumError.

        Durable: that it runs.
        """
        mode = "repair" if repair else "check"
        with self._ledger.lock:
            info = self.group.info.scrub
            if self.group.lost:
                raise Refused(f"group {self.group.info.name} is lost: there is nothing to scrub", "see pool status")
            if self.state in (RUNNING, PAUSED) and info["mode"] != mode:
                raise Refused(
                    f"group {self.group.info.name} is being scrubbed in mode {info['mode']}",
                    f"let it finish, or end it first: farstripe pool scrub {self.group.info.name} --stop",
                )
            if self.state not in (RUNNING, PAUSED):
                info.clear()
                info.update({"mode": mode, "next": 0, "started": self._clock(), "finished": 0.0, "ranges": []})
                info.update(dict.fromkeys(("bytes_read", *COUNTS), 0))
            info.update(state=RUNNING, limit=limit_bytes_s)
            self._plan, self._pass = None, self._pass + 1
            self._ledger.commit()

    def turn(self, state: str) -> bool:
        """Pause (PAUSED), go on (RUNNING) or end (STOPPED); return whether that changed anything. Durable: it."""
        possible = {PAUSED: (RUNNING,), RUNNING: (PAUSED,), STOPPED: (RUNNING, PAUSED)}
        with self._ledger.lock:
            if self.state not in possible[state]:
                return False
            self.group.info.scrub["state"] = state
            if state == STOPPED:
                self.group.info.scrub["finished"] = self._clock()
            self._plan, self._pass = None, self._pass + 1
            self._ledger.commit()
            return True

    def status(self) -> dict[str, Any]:
        """What there is to know: state, mode, counts, bytes to go, seconds left (None when not known)."""
        with self._ledger.lock:
            info = self.group.info.scrub
            if not info:
                return {"state": "", **dict.fromkeys(COUNTS, 0)}
            per_area = self.group.geometry.area_member_bytes * len(self.group.members)
            total = len(self._allocator.allocated)
            under_way = self.state in (RUNNING, PAUSED)
            left = sum(area >= info["next"] for area in self._allocator.allocated) if under_way else 0
            speed = (info["bytes_read"] - self._begun_done) / max(self._clock() - self._begun_at, 0.001)
            known = self.active and info["bytes_read"] > self._begun_done
            return {
                **info,
                "ranges": [dict(zip(("kind", "area", "offset", "length"), one, strict=True)) for one in info["ranges"]],
                "total_bytes": total * per_area,
                "left_bytes": left * per_area,
                "bytes_s": int(speed) if known else None,
                "left_s": left * per_area / speed if known else None,
                "compares": bool(self.group.geometry.copies > 1 or self.group.geometry.parity_chunks),
            }

    # Work

    def step(self) -> int:
        """Scrub the next few areas; return the bytes read, 0 when it is finished, paused or stopped.

        Raises MediumError when the group is or gets lost; it is paused then.
        Durable now and then: progress and findings.
        """
        if not self.active:
            return 0
        try:
            if self.group.lost:
                self.group.raise_lost()
            return self._step()
        except MediumError:
            with contextlib.suppress(MediumError):
                self.turn(PAUSED)
            raise

    def _step(self) -> int:
        this_pass = self._pass
        areas = self._next_areas()
        if not areas:
            self._finish()
            return 0
        rows, chunk = self.group.geometry.rows_per_area, self.group.geometry.chunk_bytes
        first, end = areas[0] * rows, (areas[-1] + 1) * rows
        slice_rows = max(1, self._unit_bytes // chunk)
        done = sum(self._scan(row, min(slice_rows, end - row)) for row in range(first, end, slice_rows))
        with self._ledger.lock:
            if self._pass == this_pass:
                self.group.info.scrub["next"] = areas[-1] + 1
                self.group.info.scrub["bytes_read"] += done
        if self._clock() - self._saved_at >= SAVE_S:
            self._save()
        return done

    def close(self) -> None:
        """Let go of threads. Durable: nothing."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _next_areas(self) -> range:
        """A run of allocated areas, as long as a step may be; empty at the end."""
        with self._ledger.lock:
            start = self.group.info.scrub.get("next", 0)
            allocated = self._allocator.allocated
            if self._plan is None:
                self._plan = sorted(allocated)
                self._begun_at, self._begun_done = self._clock(), self.group.info.scrub["bytes_read"]
            at = bisect.bisect_left(self._plan, start)
            while at < len(self._plan) and self._plan[at] not in allocated:
                at += 1
            if at == len(self._plan):
                return range(0)
            first = self._plan[at]
            most = max(1, self._unit_bytes // self.group.geometry.area_member_bytes)
            count = 1
            while count < most and first + count in allocated:
                count += 1
            return range(first, first + count)

    def _save(self) -> None:
        """Durable: repairs, then progress."""
        self._ledger.sync_members()
        with self._ledger.lock:
            self._ledger.commit()
        self._saved_at = self._clock()

    def _finish(self) -> None:
        self._ledger.sync_members()
        with self._ledger.lock:
            if self.active:
                self.group.info.scrub.update(state=FINISHED, finished=self._clock())
                self._ledger.commit()
        self._plan = self._scratch = None
        self.close()

    def _scan(self, first_row: int, count: int) -> int:
        """Look at some rows without a lock; judge those that do not look right. Return the bytes read."""
        group, chunk = self.group, self.group.geometry.chunk_bytes
        members = [member for member in group.members if member.has_row(first_row + count - 1)]
        spans = self._buffers(count * chunk)
        images = self._read(members, first_row, spans)
        wrong = np.zeros(count * chunk // BLOCK_BYTES, np.bool_)
        for image in images.values():
            wrong |= ~image.fits
        wrong |= self._compare(first_row, images, spans[len(group.members) :])
        blocks = chunk // BLOCK_BYTES
        for row in sorted({first_row + int(i) // blocks for i in np.flatnonzero(wrong)}):
            self._judge(row)
        return len(images) * count * chunk

    def _judge(self, row: int) -> None:
        """Look at a row again while nobody writes to it; count, report, repair."""
        group, chunk = self.group, self.group.geometry.chunk_bytes
        area = row // group.geometry.rows_per_area
        with group._lock_rows(row, row), group.vacating:
            with self._ledger.lock:
                if area not in self._allocator.allocated or not self.active:
                    return
            try:
                group.settle_row(row)
            except MediumError:
                return  # a write was refused half way: whoever comes to the row is told, and it cannot be judged
            members = [member for member in group.members if member.has_row(row)]
            images = self._read(members, row, self._buffers(chunk))
            if not all(image.good for image in images.values()):
                for block in range(chunk // BLOCK_BYTES):
                    self._heal(row, block, [image for image in images.values() if not image.fits[block]])
                members = [member for member in members if member.has_row(row)]
                images = self._read(members, row, self._buffers(chunk))
                if not all(image.good for image in images.values()):
                    return  # what cannot be had cannot be compared either
            targets = self._buffers(chunk)[len(group.members) :]
            for place in np.flatnonzero(self._compare(row, images, targets)):
                self._disagreement(row, int(place), images, targets)

    def _heal(self, row: int, block: int, bad: list[Image]) -> None:
        bad = [image for image in bad if not self._reads(image, block)]
        if not bad:
            return
        for image in bad:
            kind = "checksum_errors" if image.readable[block] else "unreadable"
            self._count(kind)
            if image.readable[block]:
                image.member.checksum_errors += 1
            else:
                image.member.read_errors += 1
        lo = block * BLOCK_BYTES
        try:
            self.group.heal(row, lo, lo + BLOCK_BYTES, {image.member.index for image in bad})
            self._count("repaired", len(bad))
        except MediumError:
            self._count("unrepairable", len(bad))
            for image in bad:
                column = self._column_of(row, image.member)
                if column < self.group.geometry.data_chunks:
                    self._note("unrepairable", row, column * self.group.geometry.chunk_bytes + lo, BLOCK_BYTES)

    def _reads(self, image: Image, block: int) -> bool:
        """Whether a block can be read now and fits: RAID 0 writes take no stripe lock, but the file's own locks."""
        try:
            image.member.live_file().pread(BLOCK_BYTES, image.at + block * BLOCK_BYTES)
        except OSError:
            return False
        return True

    def _disagreement(self, row: int, block: int, images: dict[int, Image], targets: list[Span]) -> None:
        """A block place of a row where all can be read and fit, and yet differ."""
        group, geometry = self.group, self.group.geometry
        k, r, chunk = geometry.data_chunks, geometry.parity_chunks, geometry.chunk_bytes
        repair = group.info.scrub["mode"] == "repair"
        lo, hi = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        at = group.layout.data_offset + row * chunk + lo
        self._count("mismatches")
        if not r:
            for column in range(k):
                copies = [images[i] for i in geometry.copies_of(column) if i in images]
                copies.sort(key=lambda image: image.member.info.state is not MemberState.IN_SYNC)
                first = bytes(copies[0].block(block))
                differing = [image for image in copies[1:] if bytes(image.block(block)) != first]
                if differing:
                    self._note("mismatch", row, column * chunk + lo, BLOCK_BYTES)
                for image in differing if repair else ():
                    group.rewrite(image.member, first, at, "repair")
                    self._count("repaired")
            return
        wrong = locate(geometry, targets[0].view[lo:hi], targets[1].view[lo:hi]) if r == 2 else None
        if wrong is None:
            self._note("mismatch", row, 0, k * chunk)
            if repair:
                sources = [images[geometry.member_of(row, c)].span.part(lo, hi) for c in range(k)]
                made = [target.part(lo, hi) for target in targets]
                group.engine.apply(generator(k, r)[k:], sources, made, BLOCK_BYTES)
                for c, span in enumerate(made, k):
                    group.rewrite(images[geometry.member_of(row, c)].member, span.view, at, "repair")
                self._count("repaired")
            return
        self._count("located")
        if wrong < k:
            self._note("located", row, wrong * chunk + lo, BLOCK_BYTES)
        if repair:
            image = images[geometry.member_of(row, wrong)]
            error = targets[1 if wrong == k + 1 else 0].view[lo:hi]
            right = np.frombuffer(image.block(block), np.uint8) ^ np.frombuffer(error, np.uint8)
            group.rewrite(image.member, right.tobytes(), at, "repair")
            self._count("repaired")

    def _compare(self, first_row: int, images: dict[int, Image], targets: list[Span]) -> Blocks:
        """For each block place: whether members differ there; nothing differs where one is missing."""
        group = self.group
        spans = {index: image.span for index, image in images.items()}
        length = len(next(iter(spans.values())).view) if spans else 0
        if group.geometry.copies > 1 and spans:
            return unequal_copies(group.geometry, spans)
        if group.geometry.parity_chunks and len(spans) == len(group.members):
            return syndromes(group.geometry, group.engine, first_row, spans, [t.part(0, length) for t in targets])
        return np.zeros(length // BLOCK_BYTES, np.bool_)

    def _read(self, members: Iterable[Member], first_row: int, spans: list[Span]) -> dict[int, Image]:
        at = self.group.layout.data_offset + first_row * self.group.geometry.chunk_bytes
        members = list(members)
        if len(members) > 1 and all(member.live_file().parallel_sync for member in members):
            if self._executor is None:
                self._executor = ThreadPoolExecutor(min(8, len(members)), "raidlib-scrub")
            made = list(self._executor.map(lambda member: Image(member, at, spans[member.index]), members))
        else:
            made = [Image(member, at, spans[member.index]) for member in members]
        return {image.member.index: image for image in made}

    def _buffers(self, size: int) -> list[Span]:
        """A buffer of `size` for each member, then one for each parity."""
        count = len(self.group.members) + self.group.geometry.parity_chunks
        if self._scratch is None or self._scratch[0] < size:
            self._scratch = size, Scratch(count, size)
        return [span.part(0, size) for span in self._scratch[1].spans]

    def _column_of(self, row: int, member: Member) -> int:
        geometry = self.group.geometry
        if not geometry.parity_chunks:
            return member.index // geometry.copies
        return next(c for c in range(geometry.members) if geometry.member_of(row, c) == member.index)

    def _count(self, what: str, by: int = 1) -> None:
        with self._ledger.lock:
            self.group.info.scrub[what] += by

    def _note(self, kind: str, row: int, offset: int, length: int) -> None:
        """Remember a place: bytes of an area."""
        geometry = self.group.geometry
        area, row_in_area = divmod(row, geometry.rows_per_area)
        place = [kind, area, row_in_area * geometry.data_chunks * geometry.chunk_bytes + offset, length]
        with self._ledger.lock:
            ranges = self.group.info.scrub["ranges"]
            if place not in ranges and len(ranges) < MAX_RANGES:
                ranges.append(place)
