"""The files through which this process and the target share a group: page, journal, doorbells.

Opened anew for every stretch of shipping or receiving, so that a journal or page that was made anew is never confused
with an old one; the incarnation in the page says when to stop. The replicator never writes the journal's superblock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from replicator.core.errors import IntegrityError
from replicator.journal.files import PlainFile
from replicator.journal.page import (
    EDGE_ASLEEP,
    EDGE_SLOTS,
    EDGES,
    INCARNATION,
    TARGET_ASLEEP,
    Doorbell,
    Page,
    boot_number,
    edge_slot,
)
from replicator.journal.ring import Journal
from replicator.journal.volumes import JournalDirectory


class GroupFiles:
    """One group's shared files."""

    def __init__(
        self, state_dir: Path, run_dir: Path, uuid: str, journal_path: str | None = None, slot: int = 0
    ) -> None:
        """Open them for the edge in `slot`. Raises OSError; IntegrityError when there is no journal or page of this
        boot."""
        page_path = run_dir / f"{uuid}.page"
        if not page_path.exists():
            raise IntegrityError(f"the target has made no page {page_path}", "start the target")
        self.page = Page.map(page_path)
        if not self.page.valid(boot_number()):
            raise IntegrityError(f"{page_path} is of another boot", "start the target")
        self.u64 = self.page.u64
        self._asleep = self.u64[edge_slot(0, EDGE_ASLEEP) : edge_slot(EDGES, EDGE_ASLEEP) : EDGE_SLOTS]
        """Of every edge, whether its replicator sleeps."""
        self.slot = slot
        self._bell_path: Callable[[int], Path] = lambda edge: run_dir / f"{uuid}.r.{edge}"
        self.incarnation = self.u64[INCARNATION]
        where = PlainFile(journal_path) if journal_path else JournalDirectory(state_dir / "groups" / uuid)
        self.journal = Journal.open(where, self.page)
        self.own_bell = Doorbell(self._bell_path(slot))
        self._target_bell = Doorbell(run_dir / f"{uuid}.t")
        self._edge_bells: dict[int, Doorbell] = {}
        self._fence = threading.Lock()

    @property
    def current(self) -> bool:
        """Whether offsets and roles are still those these files were opened under.

        Files that have left the journal are closed on the way, those that joined it opened.
        """
        try:
            self.journal.follow()
        except OSError:
            return False
        return self.u64[INCARNATION] == self.incarnation

    def wake_target(self) -> None:
        """Ring the target if it sleeps."""
        self.fence()
        if self.u64[TARGET_ASLEEP]:
            self._target_bell.ring()

    def wake_edges(self) -> None:
        """Ring every edge of the group that sleeps: we have appended what it may ship."""
        if not any(self._asleep):
            return
        for slot, asleep in enumerate(self._asleep):
            if asleep:
                bell = self._edge_bells.get(slot)
                if bell is None:
                    bell = self._edge_bells[slot] = Doorbell(self._bell_path(slot))
                bell.ring()

    def fence(self) -> None:
        """Order the stores before against the loads after, between two processes: taking a lock is a full barrier."""
        with self._fence:
            pass

    def sync_journal(self) -> None:
        """Durable: every record appended before. A failure is final and raised as OSError."""
        self.journal.sync()

    def close(self) -> None:
        """Release all of it."""
        self.journal.close()
        for bell in (self.own_bell, *self._edge_bells.values()):
            bell.close()
        self._target_bell.close()
