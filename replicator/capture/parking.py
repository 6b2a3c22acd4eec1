"""Why a change of a group is not made now, though it may be later. Nothing has happened then, but what `made` says."""

from __future__ import annotations

from replicator.core.errors import MediumError, Refused


class Parked(Exception):
    """The group is held, or its journal is full: try again when it has been opened."""

    made = 0
    """Seq of the change if it was made, and only could not be made durable."""


class JournalLost(MediumError, Parked):
    """The journal's medium has failed: try again when the group counts differences instead (journalloss.py)."""


class NoRoom(Refused):
    """The journal cannot take the record now."""

    def __init__(self) -> None:
        super().__init__("the journal is full just now", "try again in a moment")
