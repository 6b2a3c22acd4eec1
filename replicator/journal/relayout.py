"""Files join and leave a journal while it is used: the steps, in the order in which they become durable.

    add      prepare (wiped, named by the caller) -> superblocks of all files -> LAYOUT_GEN. Its room counts at once.
    remove   superblocks of all files -> LAYOUT_GEN. The ring runs past the file from the next layout's start on.
    release  once the tail has passed that start: superblocks without the file -> LAYOUT_GEN -> the caller forgets it

A crash in between leaves the journal as before or as after; a prepared file that nobody names is an orphan, and one
that is released and still named is too: whoever opens the group clears both away.

The caller keeps tail, redo point and reset of this process away meanwhile, and says whether somebody else may append.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replicator.core.errors import NotFound, Refused
from replicator.journal.files import RandomFile
from replicator.journal.layout import Layouts, files_of, next_start, pruned, with_file, without_file
from replicator.journal.page import HEAD_OFF, TAIL_OFF, Page
from replicator.journal.ring import Journal

MAX_FILES = 32


def add(journal: Journal, page: Page, file: RandomFile, ring_bytes: int, *, alone: bool) -> int:
    """Take a prepared file in as `journal.super.next_index`, which is returned.

    alone: nobody appends meanwhile (the caller holds the group lock of a primary). Durable: the new ring.
    Raises Refused, OSError (see Journal.relayout).
    """
    index, layouts = journal.super.next_index, journal.super.ring()
    if len(files_of(layouts)) >= MAX_FILES:
        raise Refused(f"the journal is made of {MAX_FILES} files already", "remove some, or add larger ones")
    start = next_start(layouts, page[TAIL_OFF], page[HEAD_OFF] if alone else None)
    journal.relayout(with_file(layouts, start, index, ring_bytes), {index: file}, index + 1)
    return index


def remove(journal: Journal, page: Page, index: int, least_bytes: int, *, alone: bool) -> None:
    """Leave a file out from the next layout on; `release` tells when it is free. Durable: the new ring.

    least_bytes: what has to remain. Raises Refused when the rest would be too small for that or for what is kept now.
    """
    layouts = journal.super.ring()
    newest = layouts[-1]
    if index not in files_of((newest,)):
        raise NotFound(f"the journal has no file {index} that could be removed")
    rest = newest.capacity - sum(e.length for e in newest.extents if e.file == index)
    used = page[HEAD_OFF] - page[TAIL_OFF]
    if rest < least_bytes:
        raise Refused("what remains of the journal would be too small", "add another file first")
    if used > rest - rest // 8:
        raise Refused(
            f"the journal holds {used} bytes, and {rest} would remain",
            "wait until the peer has more, or add a file first",
        )
    start = next_start(layouts, page[TAIL_OFF], page[HEAD_OFF] if alone else None)
    journal.relayout(without_file(layouts, start, index), {}, journal.super.next_index)


def releasable(journal: Journal, page: Page) -> bool:
    """Say whether `release` would do something."""
    layouts = journal.super.ring()
    return len(layouts) > 1 and layouts[1].start <= page[TAIL_OFF]


def release(journal: Journal, page: Page) -> set[int]:
    """Forget layouts by which nothing lies any more; returns the files that are free. Durable: that they are."""
    before = journal.super.ring()
    after = pruned(before, page[TAIL_OFF])
    if after == before:
        return set()
    new: Mapping[int, RandomFile] = {}
    journal.relayout(after, new, journal.super.next_index)
    return files_of(before) - files_of(after)


def files_facts(journal: Journal, *, broken: bool = False) -> list[dict[str, Any]]:
    """What the journal is made of: {index, path, size, state}; size in bytes of ring, 0 where that cannot be read.

    state: "in use", "draining", "failed: " and why; of the others in a broken journal "not used".
    """
    source = journal.source
    if journal.unknown:
        return [{"index": i, "path": source.path(i), "size": 0, "state": "not used"} for i in source.indices()]
    layouts = journal.super.ring()
    newest = files_of(layouts[-1:])

    def state(index: int) -> str:
        if index in journal.failed:
            return f"failed: {journal.failed[index]}"
        return "not used" if broken else "in use" if index in newest else "draining"

    return [
        {"index": index, "path": source.path(index), "size": _bytes_of(layouts, index), "state": state(index)}
        for index in sorted(files_of(layouts))
    ]


def _bytes_of(layouts: Layouts, index: int) -> int:
    """Bytes of a file in the newest layout that has it."""
    for layout in reversed(layouts):
        if size := sum(extent.length for extent in layout.extents if extent.file == index):
            return size
    return 0
