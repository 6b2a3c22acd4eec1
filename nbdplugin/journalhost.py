"""The files of groups' journals on this host: made, checked, added, removed. See replicator.capture.ringchange.

A file is made here and deleted when it is released; a block device is used as a whole, refused while anybody else uses
it, and given back. The work of wiping a new file is done before any lock is taken.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from nbdplugin import arguments
from replicator.capture import journalloss, ringchange
from replicator.capture.engine import GroupEngine
from replicator.capture.parking import JournalLost
from replicator.core.errors import AlreadyExists, BadInput, MediumError, NotFound
from replicator.journal import volumes
from replicator.journal.files import PlainFile
from replicator.journal.relayout import files_facts
from replicator.journal.superblock import DATA_START
from replicator.journal.volumes import JournalDirectory

MIN_JOURNAL_BYTES = 16 << 20


def make_first(groups: Path, directory: Path, journal_bytes: int, path: str | None) -> int:
    """Make file 0 of a new group's journal in its directory, or at `path`; returns its size in bytes."""
    if path is None:
        try:
            PlainFile(directory / "journal", create_bytes=journal_bytes).close()
        except OSError as exc:
            raise _no_journal(directory.parent, journal_bytes, exc) from exc
        return journal_bytes
    journal_bytes = make(groups, path, journal_bytes)
    (directory / "journal").symlink_to(path)
    return journal_bytes


def make(groups: Path, path: str, journal_bytes: int) -> int:
    """Make the file `path`, or see that the block device there can be used; returns its size in bytes.

    groups: the directory of all groups of this node.
    """
    if is_block_device(path):
        _check_device(groups, path)
        device = PlainFile(path)
        journal_bytes = device.size // 4096 * 4096
        device.close()
        if journal_bytes < MIN_JOURNAL_BYTES:
            raise too_small(journal_bytes)
        return journal_bytes
    try:
        PlainFile(arguments.new_file(path), create_bytes=journal_bytes).close()
    except FileExistsError:
        raise AlreadyExists(f"the journal {path} exists", "name a new file or a block device") from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise BadInput(f"the journal {path} cannot be made: {exc.strerror}", "correct the path") from exc
    except OSError as exc:
        raise _no_journal(path, journal_bytes, exc) from exc
    return journal_bytes


def _check_device(groups: Path, path: str) -> None:
    """Raise BadInput when a block device is in use: mounted, a member of a pool, part of a journal here."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        raise BadInput(f"the journal {path} cannot be used: {exc.strerror}", "name a device nobody uses") from exc
    for journal in groups.glob("*/journal*"):
        if journal.is_symlink() and journal.exists() and journal.samefile(path):
            raise BadInput(f"{path} belongs to the journal of this or another group", "name a device nobody uses")


def add(groups: Path, engine: GroupEngine, path: str, size: int) -> dict[str, Any]:
    """Add a file of `size` bytes, or a whole device, to a group's journal. Its room counts at once.

    The caller lets one such change happen at a time. Durable: that it belongs to the journal. Returns its facts.
    """
    if size < MIN_JOURNAL_BYTES and not is_block_device(path):
        raise too_small(size)
    directory = _directory(engine)
    index = engine.journal.super.next_index
    size = make(groups, path, size)
    file = None
    try:
        file = PlainFile(path)
        volumes.prepare(file, index, engine.journal.super, size - DATA_START)
        directory.link(index, path)
        ringchange.add_file(engine, file, size - DATA_START)
    except BaseException as exc:
        if isinstance(exc, JournalLost) or engine.failed:
            raise  # whether the file belongs to the journal nobody knows
        if file is not None:
            file.close()
        if not is_block_device(path):
            Path(path).unlink(missing_ok=True)
        directory.discard(index)
        if isinstance(exc, OSError):
            raise MediumError(f"{path} cannot be added to the journal: {exc.strerror}", "check the disk") from exc
        raise
    return next(one for one in files_facts(engine.journal) if one["index"] == index)


def remove(engine: GroupEngine, which: str) -> dict[str, Any]:
    """Take a file or device out of a group's journal, by its path or number; it is free once the tail has passed it.

    Durable: that nothing new is put there from the next lap on. Returns its facts; state "released" when it is free;
    at_once: it was so from the beginning.
    """
    files = files_facts(engine.journal)
    found = [one for one in files if which in (str(one["index"]), one["path"])]
    if not found:
        found = [one for one in files if os.path.realpath(which) == os.path.realpath(one["path"])]
    if not found:
        name = engine.state.name
        raise NotFound(f"{which} is no part of the journal of group {name}", f"farstripe group journal show {name}")
    index, at_once = found[0]["index"], False
    if found[0]["state"] == "in use":
        try:
            at_once = ringchange.remove_file(engine, index, MIN_JOURNAL_BYTES - DATA_START)
        except OSError as exc:
            why = f"the journal's superblocks cannot be written: {exc.strerror}"
            raise MediumError(why, "check the disks") from exc
    left = [one for one in files_facts(engine.journal) if one["index"] == index]
    return {**(left[0] if left else found[0] | {"state": "released"}), "at_once": at_once}


def replace(groups: Path, engine: GroupEngine, path: str | None, size: int) -> int:
    """Give a group whose journal is broken, or out of use, a new one at `path` (None: in its own directory).

    Returns the records that a secondary has to be sent again. Durable: the new journal; the old files are given up.
    """
    if size < MIN_JOURNAL_BYTES and not (path and is_block_device(path)):
        raise too_small(size)
    directory = _directory(engine)
    old = directory.indices()
    index = max([engine.journal.super.next_index - 1, *old]) + 1
    where = path or str(directory.name(index))
    size = make(groups, where, size)
    try:
        file = PlainFile(where)
        volumes.prepare(file, index, engine.journal.super, size - DATA_START)
        if path:
            directory.link(index, path)
        dropped = journalloss.replace_journal(engine, file, index, size - DATA_START)
    except BaseException as exc:
        if not is_block_device(where):
            Path(where).unlink(missing_ok=True)
        directory.discard(index)
        if isinstance(exc, OSError):
            raise MediumError(f"{where} cannot become the journal: {exc.strerror}", "check the disk") from exc
        raise
    for other in old:
        directory.discard(other)
    return dropped


def remove_all(directory: Path) -> None:
    """Delete the files of a deleted group's journal that lie elsewhere; devices are left as they are."""
    files = JournalDirectory(directory)
    for index in files.indices():
        name = files.name(index)
        if name.is_symlink() and not is_block_device(str(name)):
            name.resolve().unlink(missing_ok=True)


def _directory(engine: GroupEngine) -> JournalDirectory:
    source = engine.journal.source
    assert isinstance(source, JournalDirectory)
    return source


def too_small(journal_bytes: int) -> BadInput:
    """The error for a journal that could not hold a second of writes."""
    return BadInput(f"a journal of {journal_bytes} bytes is too small", f"use at least {MIN_JOURNAL_BYTES} bytes")


def _no_journal(where: Path | str, journal_bytes: int, exc: OSError) -> MediumError:
    return MediumError(
        f"a journal of {journal_bytes} bytes cannot be made in {where}: {exc.strerror or exc}",
        "make room there, or give another size or place",
    )


def is_block_device(path: str) -> bool:
    """Say whether a block device is there."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
