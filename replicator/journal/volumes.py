"""The files a journal is made of, by their index: what the shell finds in a group's directory, and tests in memory.

    groups/UUID/journal      file 0, or a symbolic link to where it is
    groups/UUID/journal.N    file N, always a symbolic link

Which of them are in use, the superblocks say (superblock.py). Nobody else may write them; only a path is remembered, so
a device should be named by one that stays, as /dev/disk/by-id does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from replicator.core.errors import IntegrityError
from replicator.journal.files import PlainFile, RandomFile, sync_directory
from replicator.journal.superblock import DATA_START, Super, choose, read_slots, write_slot

_NAME = "journal"
_WIPE_BYTES = 1 << 20
FILL_BYTES = 1 << 30


class JournalFiles:
    """The files of one journal; this one is a single file that is open already."""

    def __init__(self, file: RandomFile) -> None:
        self._file = file

    def indices(self) -> list[int]:
        """The files there are, in use or not."""
        return [0]

    def open(self, index: int) -> RandomFile:
        """Open a file. Raises OSError."""
        return self._file

    def path(self, index: int) -> str:
        """Where a file is, for people."""
        return f"file {index}"

    def discard(self, index: int) -> None:
        """Forget a file that has no part in the ring. Durable: that."""


class JournalDirectory(JournalFiles):
    """The files of a journal whose names lie in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        """A group that is being made changes its name when it is whole."""

    def indices(self) -> list[int]:
        """See JournalFiles."""
        names = (name for name in os.listdir(self.directory) if name == _NAME or name.startswith(f"{_NAME}."))
        parts = (name.partition(".")[2] for name in names)
        return sorted(int(part or "0") for part in parts if part.isdecimal() or not part)

    def open(self, index: int) -> RandomFile:
        """See JournalFiles."""
        return PlainFile(self.name(index))

    def name(self, index: int) -> Path:
        """The name of a file here: itself, or a link to it."""
        return self.directory / (f"{_NAME}.{index}" if index else _NAME)

    def path(self, index: int) -> str:
        """See JournalFiles."""
        name = self.name(index)
        return os.readlink(name) if name.is_symlink() else str(name)

    def link(self, index: int, path: str) -> None:
        """Name the file at `path`. Durable: the name."""
        self.name(index).unlink(missing_ok=True)
        self.name(index).symlink_to(path)
        sync_directory(self.directory)

    def discard(self, index: int) -> None:
        """See JournalFiles. A file is deleted; a device is told that it belongs to nobody, if it takes that."""
        name, path = self.name(index), Path(self.path(index))
        try:
            if stat.S_ISBLK(path.stat().st_mode):
                device = PlainFile(path)
                device.pwrite_durable(bytes(DATA_START), 0)
                device.close()
            else:
                path.unlink()
        except OSError:
            pass  # it may be what broke
        name.unlink(missing_ok=True)
        sync_directory(self.directory)


def open_all(files: JournalFiles, have: Mapping[int, RandomFile]) -> tuple[dict[int, RandomFile], Super]:
    """Open the files in use and return them with the superblock that counts. have: files that are open already.

    Raises IntegrityError when a file that is needed is not there or not readable.
    """
    opened: dict[int, RandomFile] = {}
    seen: dict[int, list[Super]] = {}
    try:
        for index in files.indices():
            try:
                opened[index] = have.get(index) or files.open(index)
                found = [sup for its, sup in read_slots(opened[index]) if its == index]
            except OSError:
                continue  # as good as missing; whether it is needed the others say
            if found:
                seen[index] = found
        sup = choose(seen)
    except IntegrityError:
        _close_new(opened, have, set())
        raise
    needed = {extent.file for layout in sup.ring() for extent in layout.extents}
    _close_new(opened, have, needed)
    return {index: opened[index] for index in needed}, sup


def prepare(file: RandomFile, index: int, sup: Super, ring_bytes: int) -> None:
    """Make a file ready to become file `index` of the journal with superblock `sup`; whatever it held is overwritten.

    Durable: an empty file that belongs to the group and has no part in the ring yet; both slots, so that one of them is
    whole at any time from now on.
    """
    wipe(file, DATA_START + ring_bytes)
    for generation in (0, 1):
        write_slot(file, sup._replace(generation=generation, layouts=sup.ring()), index)


def wipe(file: RandomFile, size: int) -> None:
    """Make the file read as zeroes. Durable: that.

    Up to FILL_BYTES are written in any case, as databases do with their logs: the first appends and syncs then find
    their space in order, and the page cache holds the file in large pieces, which makes copies cheaper. Beyond that a
    new file stays unwritten, and of an old one only what is not zero is written.
    """
    zeroes = bytes(_WIPE_BYTES)
    filled = min(size, FILL_BYTES)
    for at in range(0, filled, _WIPE_BYTES):
        file.pwrite(zeroes[: min(_WIPE_BYTES, filled - at)], at)
    if filled < size and not file.known_blank(filled):
        for at in range(filled, size, _WIPE_BYTES):
            length = min(_WIPE_BYTES, size - at)
            if file.pread(length, at) != zeroes[:length]:
                file.pwrite(zeroes[:length], at)
    file.fdatasync()


def newest_generation(files: JournalFiles) -> int:
    """The highest generation of any superblock that can be read, 0 when there is none."""
    newest = 0
    for index in files.indices():
        try:
            file = files.open(index)
        except OSError:
            continue
        try:
            newest = max([newest, *(sup.generation for _, sup in read_slots(file))])
        except OSError:
            continue
        finally:
            file.close()
    return newest


def _close_new(opened: Mapping[int, RandomFile], have: Mapping[int, RandomFile], keep: set[int]) -> None:
    for index, file in opened.items():
        if index not in keep and index not in have:
            file.close()
