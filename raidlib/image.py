"""What one member holds of a stretch of its data, looked at block by block: can it be read, does it fit its checksum.

For those who judge between members: reconcile.py after a crash, scrub.py at leisure. Nothing here decides or repairs
by itself. Without checksums a block that can be read counts as one that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raidlib.checksums import BLOCK_BYTES, Fits
from raidlib.member import Member
from raidlib.parity import Span

if TYPE_CHECKING:
    from raidlib.raidgroup import RaidGroup


class Image:
    """The bytes at a place of a member, whole blocks, and what is to be said of each block."""

    def __init__(self, member: Member, at: int, span: Span) -> None:
        """Read len(span.view) bytes at `at` from the medium. Raises nothing: what cannot be read is noted."""
        self.member = member
        self.at = at
        self.span = span
        file = member.live_file()
        self.file = member.checked
        self.first = 0 if self.file is None else self.file.block_of(at)
        count = len(span.view) // BLOCK_BYTES
        self.readable: Fits = np.ones(count, np.bool_)
        self.fits: Fits = np.ones(count, np.bool_)
        try:
            file.read_medium(span.view, at)
            if self.file is not None:
                self.fits = self.file.fits(span.view, self.first)
        except OSError:
            for i in range(count):
                try:
                    file.read_medium(self.block(i), at + i * BLOCK_BYTES)
                    if self.file is not None:
                        self.fits[i] = self.file.fits(self.block(i), self.first + i).all()
                except OSError:
                    self.readable[i] = self.fits[i] = False

    @property
    def good(self) -> bool:
        """Whether every block can be read and fits."""
        return bool(self.fits.all())

    def block(self, i: int) -> memoryview:
        """The bytes of a block."""
        return self.span.view[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]

    def would_fit(self, i: int, data: memoryview) -> bool:
        """Whether other bytes would fit a block's checksum."""
        try:
            return self.file is None or bool(self.file.fits(data, self.first + i).all())
        except OSError:
            return False

    def write(self, group: RaidGroup, i: int, count: int = 1) -> None:
        """Write blocks as they stand here, with new checksums; a member that cannot is failed. Raises MediumError."""
        data = self.span.view[i * BLOCK_BYTES : (i + count) * BLOCK_BYTES]
        try:
            self.member.live_file().pwrite(data, self.at + i * BLOCK_BYTES)
        except OSError as exc:
            group.ledger.fail(self.member, f"resync write: {exc.strerror}")
        self.readable[i : i + count] = self.fits[i : i + count] = True
