"""What a node knows of the markers in one group's sequence: a small durable list beside the group's state.

On the primary an entry says that the marker was made. On a secondary it says whether there is an image: snapshots of
the group's volumes, taken when everything up to the marker was applied and nothing after it.

    made     this node was primary and put the marker into the sequence
    taking   snapshots are being taken; a crash between that and `taken` leaves them, and they are this marker's
    taken    snapshots exist
    noted    the marker asked for no image
    missed   there is no image; `why` says why not

`cancelled` are numbers that no copy shall stand at any more, although their record may still be on its way (H1-27).
`handled` is the (epoch, seq) of the last marker that was dealt with. After power loss the follower passes a stretch
of the journal again, over a pool that may be ahead of it: a marker up to `handled` must not be imaged again then
(H1-28). Epochs rise along one history and say nothing of another one: where the epoch of `handled` is not in the
group's history any more, the node follows another line since, whose markers are all new.
"""

from __future__ import annotations

import threading
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgpack

from replicator.core.errors import MediumError, NotFound
from replicator.journal.files import RandomFile
from replicator.journal.slots import SlotFile

SLOT_BYTES: Final = 64 << 10
BOOK_FILE_BYTES: Final = 2 * SLOT_BYTES
MOST_ENTRIES: Final = 100
MADE: Final = "made"
TAKING: Final = "taking"
TAKEN: Final = "taken"
NOTED: Final = "noted"
MISSED: Final = "missed"


@dataclass
class Entry:
    """One marker in this group's sequence."""

    n: int
    name: str
    seq: int
    epoch: int
    time_ns: int
    state: str
    suspend: bool = False
    snapshots: dict[str, str] = field(default_factory=dict)
    """Volume -> its snapshot."""
    why: str = ""


class MarkerBook:
    """The entries of one group. Thread-safe; every change is durable on return, or raises MediumError."""

    def __init__(self, file: RandomFile, group: str) -> None:
        """Load. group: its name, for errors. Raises IntegrityError when the file is damaged."""
        self._slots = SlotFile(file, b"FSRK", SLOT_BYTES)
        self._group = group
        self._lock = threading.Lock()
        value = self._slots.load() or {"handled": [0, 0], "entries": [], "suspended": 0, "highest": 0, "cancelled": []}
        self._handled = (int(value["handled"][0]), int(value["handled"][1]))
        self._suspended = int(value["suspended"])
        self._highest = int(value["highest"])
        self._cancelled = [int(n) for n in value["cancelled"]]
        self._entries = [Entry(**one) for one in value["entries"]]

    @property
    def suspended_seq(self) -> int:
        """The marker this copy stands at until it is resumed, as a seq; 0 when it follows."""
        return self._suspended

    @property
    def highest(self) -> int:
        """The highest number of any marker seen in this group."""
        return self._highest

    def handled(self, epoch: int, seq: int, line: Container[int]) -> bool:
        """Whether the marker at this place was dealt with in an earlier pass. line: the epochs of the history it is
        of."""
        with self._lock:
            if any((one.epoch, one.seq) == (epoch, seq) and one.state != TAKING for one in self._entries):
                return True
            return self._handled[0] in line and (epoch, seq) <= self._handled

    def entries(self) -> list[dict[str, Any]]:
        """All entries, oldest first."""
        with self._lock:
            return [asdict(entry) for entry in self._entries]

    def find(self, n: int) -> Entry:
        """The entry of marker `n`. Raises NotFound."""
        with self._lock:
            for entry in self._entries:
                if entry.n == n:
                    return entry
        raise NotFound(f"group {self._group} has no marker number {n} here", "farstripe marker list")

    def room_for_image(self) -> bool:
        """Whether another entry with snapshots can be kept."""
        with self._lock:
            return sum(1 for entry in self._entries if entry.state == TAKEN) < MOST_ENTRIES

    def add(self, entry: Entry) -> None:
        """Enter a marker, in place of an earlier entry of its number: the next one in the history that was not dealt
        with. Durable: it, and that it was dealt with.

        The oldest entries without an image make room.
        """
        with self._lock:
            entries = [one for one in self._entries if one.n != entry.n] + [entry]
            while len(entries) > MOST_ENTRIES:
                spare = next((one for one in entries[:-1] if one.state not in (TAKING, TAKEN)), None)
                if spare is None:
                    break
                entries.remove(spare)
            entry.suspend = entry.suspend and entry.n not in self._cancelled
            handled = self._handled if entry.state == TAKING else (entry.epoch, entry.seq)
            stands = entry.seq if entry.suspend and entry.state == TAKEN else None
            self._save(entries, handled, stands)

    def drop(self, n: int) -> None:
        """Forget marker `n`; its snapshots are gone. Durable."""
        with self._lock:
            self._save([one for one in self._entries if one.n != n], self._handled, None)

    def resume(self, n: int = 0) -> bool:
        """The copy follows again; with `n` only if it stands there, and it will not stop when that marker comes.

        Returns whether it stood. Durable.
        """
        with self._lock:
            entry = next((one for one in self._entries if one.n == n), None)
            if n and entry is None and n not in self._cancelled:
                self._cancelled = [*self._cancelled[-MOST_ENTRIES:], n]
                self._save(self._entries, self._handled, None)
            if not self._suspended or (n and (entry is None or entry.seq != self._suspended)):
                return False
            self._save(self._entries, self._handled, 0)
            return True

    def _save(self, entries: list[Entry], handled: tuple[int, int], suspended: int | None) -> None:
        suspended = self._suspended if suspended is None else suspended
        highest = max([self._highest, *(one.n for one in entries)])
        value: dict[str, Any] = {
            "handled": list(handled),
            "entries": [asdict(one) for one in entries],
            "suspended": suspended,
            "highest": highest,
            "cancelled": self._cancelled,
        }
        while len(msgpack.packb(value)) > SLOT_BYTES - 64:
            value["entries"].pop(0)
        try:
            self._slots.save(value)
        except OSError as exc:
            raise MediumError(f"the markers of group {self._group} cannot be written: {exc}", "check the disk") from exc
        self._entries, self._handled, self._suspended, self._highest = entries, handled, suspended, highest

    def close(self) -> None:
        """Release the file."""
        self._slots.close()
