"""One member while its pool is open: what is known of it, its file, and what went wrong with it."""

from __future__ import annotations

from raidlib.blockfile import BlockFile
from raidlib.checksums import ChecksummedFile, ChecksumMismatch
from raidlib.layout import Layout
from raidlib.membertimes import TimedFile, Times
from raidlib.metastore import MetaStore
from raidlib.state import MemberInfo, MemberState
from raidlib.twin import TwinFile

COUNTED = ("read_errors", "checksum_errors", "repaired", "slow_requests")
"""What is counted of a member as long as it is one, by the names of the counters since the pool was opened."""


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
        self.file: BlockFile | None = None
        self.checked: ChecksummedFile | None = None
        """The same file, when its data has checksums; of a member that is being replaced, the old one's."""
        if file is not None:
            self.attach(file)
        self.store = store if store is not None or file is None else MetaStore(file, layout)
        self.extend(layout)
        self.timed: TimedFile | None = None
        """Stands in for the file while it is looked at how long requests take (looks.py)."""
        self.rebuilt_rows = 0
        """While rebuilding: rows below are right and are read and written like any other member's."""
        self.twin: TwinFile | None = None
        """While it is replaced in place: its file, which is the old and the new one together."""
        self.old_info: MemberInfo | None = None
        """While it is replaced in place: what is known of the old one."""
        self.begin_counts()

    def begin_counts(self) -> None:
        """Nothing is held against it: another medium has taken its place, or the operator has seen to it."""
        self.counts_before = [0] * len(COUNTED)
        """What was counted of it before the pool was opened."""
        self.read_errors = 0
        """Reads of data that failed since the pool was opened."""
        self.checksum_errors = 0
        """Blocks read since then whose checksum did not fit."""
        self.repaired = 0
        """Unreadable or wrong places since then that were written anew from redundancy."""
        self.times = Times()

    @property
    def slow_requests(self) -> int:
        """Reads, writes and syncs since the pool was opened that took longer than membertimes.LONG_S."""
        return self.times.long

    def counts(self) -> list[int]:
        """What COUNTED names, over all the time that it is a member. What a crash takes is what came since a commit."""
        return [old + getattr(self, name) for old, name in zip(self.counts_before, COUNTED, strict=True)]

    def attach(self, file: BlockFile) -> None:
        """Let `file` be the member's from now on."""
        self.file, self.checked = file, None
        if self.layout.table_bytes:
            self.file = self.checked = ChecksummedFile(file, self.layout, self.info.uuid)

    def extend(self, layout: Layout) -> None:
        """Its group has grown: the layout has extensions, which the member has, that it did not have before."""
        self.layout = layout
        if self.checked is not None:
            self.checked.extend(layout)
        if self.store is not None:
            self.store.layout = layout

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
        timed = self.timed
        return self.file if timed is None or timed.inner is not self.file else timed
