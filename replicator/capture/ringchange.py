"""Changes of what a group's journal is made of, while hosts write and the peer is fed or feeds us.

Everything that moves the journal's tail or reads through the target's own Journal is kept away by the locks; on a
primary they keep appends away too, so a change takes effect at the journal's end. On a secondary the replicator may
append all the while: there it takes effect where the replicator cannot get before it has heard of it (layout.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from replicator.capture.engine import GroupEngine
from replicator.capture.state import PRIMARY
from replicator.journal import relayout
from replicator.journal.files import RandomFile
from replicator.journal.layout import files_of
from replicator.journal.ring import Undecided


@contextmanager
def still(engine: GroupEngine) -> Iterator[bool]:
    """Keep the journal's tail and its readers in this process still. Yields whether nobody appends meanwhile either.

    When nobody can know whether the change was made (ring.Undecided) the journal is given up.
    """
    with engine.apply_lock, engine.checkpoint_lock, engine.opened:
        try:
            yield engine.state.role == PRIMARY
        except Undecided as exc:
            raise engine.lose_journal(f"its journal's superblock cannot be written: {exc.strerror}") from exc
        finally:
            engine.resized()
            engine.opened.notify_all()


def add_file(engine: GroupEngine, file: RandomFile, ring_bytes: int) -> int:
    """Take a prepared file into the journal; returns its index. Its room counts at once. Durable: that.

    Raises as relayout.add does; an OSError of the superblock that decides fails the group.
    """
    with still(engine) as alone:
        index = relayout.add(engine.journal, engine.page, file, ring_bytes, alone=alone)
        return index


def remove_file(engine: GroupEngine, index: int, least_bytes: int) -> bool:
    """Leave a file out from the next lap on; returns whether it is free at once, and given up. Durable: that.

    Raises as relayout.remove does.
    """
    journal = engine.journal
    with still(engine) as alone:
        relayout.remove(journal, engine.page, index, least_bytes, alone=alone)
        unused = index not in files_of(journal.super.ring())  # nothing was written since it came
        if engine.state.damaged:
            engine.commit(damaged=0)  # somebody sees to the medium
    if unused:
        journal.source.discard(index)
    return unused


def release_files(engine: GroupEngine) -> list[str]:
    """Give up files in which nothing lies any more; returns their paths. Durable: that they are nobody's."""
    journal = engine.journal
    if not relayout.releasable(journal, engine.page):
        return []
    with still(engine):
        free = relayout.release(journal, engine.page)
    paths = []
    for index in sorted(free):
        paths.append(journal.source.path(index))
        journal.source.discard(index)
    return paths


def drop_orphans(engine: GroupEngine) -> None:
    """Forget files that a crash left beside the journal: not yet in it, or no longer. Durable: that."""
    source = engine.journal.source
    for index in set(source.indices()) - files_of(engine.journal.super.ring()):
        source.discard(index)
