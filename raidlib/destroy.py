"""Ending a pool that was being destroyed when the process died: its members lose their superblocks.

The pool need not open any more. What carries a superblock of the pool that most of the given paths belong to is erased,
nothing else: a path that leads to another pool's member by now is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raidlib.blockfile import BlockFile
from raidlib.create import OpenFile, open_member
from raidlib.errors import RaidError
from raidlib.nbdfile import open_exclusive
from raidlib.superblock import Superblock, erase_superblock, read_superblock


def wipe_members(paths: Sequence[str], open_file: OpenFile = open_exclusive) -> list[str]:
    """Erase the superblocks of one pool's members; return what could not be, one line each. Durable: that."""
    found: list[tuple[BlockFile, Superblock]] = []
    trouble: list[str] = []
    for path in paths:
        try:
            file = open_member(path, open_file)
        except RaidError as exc:
            trouble.append(exc.message)
            continue
        try:
            superblock = read_superblock(file)
        except RaidError as exc:
            trouble.append(exc.message)
            superblock = None
        if superblock is None:
            file.close()
        else:
            found.append((file, superblock))
    pools = Counter(superblock.pool_uuid for _, superblock in found)
    ours = pools.most_common(1)[0][0] if pools else ""
    for file, superblock in found:
        try:
            if superblock.pool_uuid == ours:
                erase_superblock(file)
        except OSError as exc:
            trouble.append(f"{file.path}: {exc.strerror or exc}")
        finally:
            file.close()
    return trouble
