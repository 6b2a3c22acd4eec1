"""One member while its pool is open: what is known of it, its file, and what went wrong with it."""

from __future__ import annotations

from raidlib.blockfile import BlockFile
from raidlib.metastore import MetaStore
from raidlib.state import MemberInfo, MemberState
from raidlib.superblock import Layout
from raidlib.twin import TwinFile

SLOW_S = 2.0
"""A sync that takes longer counts as slow."""


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
        self.store = store if store is not None or file is None else MetaStore(file, layout)
        self.rebuilt_rows = 0
        """While rebuilding: rows below are right and are read and written like any other member's."""
        self.twin: TwinFile | None = None
        """While it is replaced in place: its file, which is the old and the new one together."""
        self.old_info: MemberInfo | None = None
        """While it is replaced in place: what is known of the old one."""
        self.read_errors = 0
        self.slow_requests = 0
        """Syncs that took longer than SLOW_S. Whether it is failed for that is the operator's choice."""
        self.slowest_s = 0.0

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

    def note_duration(self, seconds: float) -> None:
        """A sync of it took so long."""
        if seconds > SLOW_S:
            self.slow_requests += 1
        self.slowest_s = max(self.slowest_s, seconds)

    def live_file(self) -> BlockFile:
        """The file of a member that carries. Raises OSError when it has none."""
        if self.file is None:
            raise OSError(5, "the member is missing", self.path)
        return self.file
