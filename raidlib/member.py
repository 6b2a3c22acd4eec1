"""One member while its pool is open: what is known of it, its file, and what went wrong with it."""

from __future__ import annotations

from raidlib.blockfile import BlockFile
from raidlib.checksums import ChecksummedFile, ChecksumMismatch
from raidlib.metastore import MetaStore
from raidlib.state import MemberInfo, MemberState
from raidlib.superblock import Layout


class Member:
    """A member of a group. `file` is None when it was not found at open."""

    def __init__(
        self,
        group: int,
        index: int,
        info: MemberInfo,
        layout: Layout,
        file: BlockFile | None,
        store: MetaStore | None = None,
    ) -> None:
        self.group = group
        self.index = index
        self.info = info
        self.layout = layout
        self.file = file
        self.checked: ChecksummedFile | None = None
        """The same file, when its data has checksums."""
        if file is not None and layout.table_bytes:
            self.file = self.checked = ChecksummedFile(file, layout, info.uuid)
        self.store = store if store is not None or file is None else MetaStore(file, layout)
        self.rebuilt_rows = 0
        """While rebuilding: rows below are right and are read and written like any other member's."""
        self.read_errors = 0
        """Reads of data that failed since the pool was opened."""
        self.checksum_errors = 0
        """Blocks read since then whose checksum did not fit."""
        self.repaired = 0
        """Unreadable or wrong places since then that were written anew from redundancy."""

    @property
    def path(self) -> str:
        """Where it is, or was."""
        return self.info.path

    @property
    def carries(self) -> bool:
        """Whether it takes part: metadata and marks are written to it."""
        return self.file is not None and self.info.state is not MemberState.FAILED

    def has_row(self, row: int) -> bool:
        """Whether its chunk of this row is to be read and written."""
        if self.file is None:
            return False
        state = self.info.state
        return state is MemberState.IN_SYNC or (state is MemberState.REBUILDING and row < self.rebuilt_rows)

    def count_error(self, exc: OSError) -> None:
        """Count a read that failed, as what it is."""
        if isinstance(exc, ChecksumMismatch):
            self.checksum_errors += len(exc.blocks)
        else:
            self.read_errors += 1

    def live_file(self) -> BlockFile:
        """The file of a member that carries. Raises OSError when it has none."""
        if self.file is None:
            raise OSError(5, "the member is missing", self.path)
        return self.file
