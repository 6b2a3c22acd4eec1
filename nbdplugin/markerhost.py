"""The markers of this node's groups as the target keeps them: books, images, holds.

    STATE/groups/<uuid>/markers   the group's book (replicator.capture.markerbook)

An image is a snapshot of each volume of the group, named VOLUME.MARKER, taken by the follower between two records, so
it holds exactly what the sequence held at the marker; the volumes need not stand still for it, and the images of
other groups are taken when their sequences come to the marker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbdplugin.exports import Exports
from nbdplugin.poolhost import PoolHost
from nbdplugin.standing import LOCK_S, stand_at
from raidlib.errors import AlreadyExists as PoolAlreadyExists
from raidlib.errors import RaidError
from replicator.capture.engine import GroupEngine
from replicator.capture.follower import apply_through
from replicator.capture.markerbook import (
    BOOK_FILE_BYTES,
    MISSED,
    NOTED,
    TAKEN,
    TAKING,
    Entry,
    MarkerBook,
)
from replicator.capture.marking import Booked, Marking
from replicator.capture.service import GroupService
from replicator.capture.state import OK, SECONDARY
from replicator.core.errors import FarstripeError, NotFound, ProtocolError, Refused
from replicator.core.markers import parse_payload
from replicator.core.records import Header
from replicator.eventlog import EventLog
from replicator.journal.files import PlainFile
from replicator.journal.page import APPLIED_SEQ

MAX_NAME = 63


class MarkerHost:
    """Books and images of all groups of the node."""

    def __init__(self, pools: PoolHost, exports: Exports, events: EventLog) -> None:
        self._pools, self._exports, self._events = pools, exports, events
        self._books: dict[str, Booked] = {}
        self.marking = Marking()

    def join(self, service: GroupService, directory: Path) -> None:
        """Keep the book of a group that is being opened; its files are in `directory`. Raises as MarkerBook."""
        engine, path = service.engine, directory / "markers"
        file = PlainFile(path) if path.exists() else PlainFile(path, create_bytes=BOOK_FILE_BYTES)
        book = MarkerBook(file, engine.state.name)
        if book.suspended_seq and engine.state.role == SECONDARY:
            engine.limit_seq = book.suspended_seq
        engine.on_marker = lambda header, payload: self._arrived(engine, book, header, payload)
        self._books[engine.state.uuid] = service, book

    def leave(self, uuid: str) -> None:
        """Forget a group that is being deleted; its images become snapshots like others."""
        booked = self._books.pop(uuid, None)
        if booked is not None:
            booked[1].close()

    def lifted(self, engine: GroupEngine) -> None:
        """No limit holds the group any more. Durable."""
        _, book = self._books[engine.state.uuid]
        if book.suspended_seq:
            book.resume()

    def booked(self, groups: Sequence[GroupService]) -> list[Booked]:
        """Groups with their books."""
        return [self._books[service.engine.state.uuid] for service in groups]

    # -- looking ------------------------------------------------------------------------------------------------------

    def listing(self, groups: Sequence[GroupService]) -> list[dict[str, Any]]:
        """Every group's entries: {group, uuid, role, copy, suspended, applied, highest, entries}. Numbers above
        `highest` are new; `applied` is a seq."""
        return [
            {
                "group": service.engine.state.name,
                "uuid": service.engine.state.uuid,
                "role": service.engine.state.role,
                "copy": service.engine.state.copy,
                "suspended": service.engine.limit_seq,
                "applied": service.engine.page[APPLIED_SEQ],
                "highest": self.marking.highest(service.engine.state.uuid, book),
                "entries": book.entries(),
            }
            for service, book in self.booked(groups)
        ]

    # -- images -------------------------------------------------------------------------------------------------------

    def _arrived(self, engine: GroupEngine, book: MarkerBook, header: Header, payload: memoryview) -> None:
        """The follower has applied everything up to a marker and nothing after it."""
        if book.handled(header.epoch, header.seq, {epoch for epoch, _ in engine.state.hist}):
            return
        try:
            marker = parse_payload(payload)
        except ProtocolError as exc:
            self._events.add("marker.unreadable", f"group {engine.state.name}: {exc}", group=engine.state.name)
            return
        if marker is None:
            return
        entry = Entry(marker.n, marker.name, header.seq, header.epoch, header.write_time, NOTED, suspend=marker.suspend)
        if engine.state.copy != OK:
            entry.state, entry.why = MISSED, f"the copy was {engine.state.copy} then"
        elif marker.image or marker.suspend:
            self._take(engine, book, entry)
        book.add(entry)
        if entry.suspend and entry.state == TAKEN:
            engine.limit_seq = header.seq
        text = f"group {engine.state.name}: marker {marker.name} reached, {entry.state}{entry.why and ': ' + entry.why}"
        self._events.add(f"marker.{entry.state}", text, group=engine.state.name, marker=marker.name)

    def _take(self, engine: GroupEngine, book: MarkerBook, entry: Entry) -> None:
        """Take the snapshots of `entry` and say in it how that went."""
        volumes = [volume["name"] for volume in engine.state.volumes]
        known = book.entries()
        twice = any(one["name"] == entry.name and one["n"] != entry.n for one in known)
        entry.snapshots = {volume: image_name(volume, entry.name, entry.n, twice) for volume in volumes}
        began = next((one for one in known if one["n"] == entry.n and one["state"] == TAKING), None)
        if began is not None:
            entry.snapshots = began["snapshots"]
        if not book.room_for_image():
            entry.state, entry.why = MISSED, "too many markers have images here; delete some"
        else:
            if began is None:
                entry.state = TAKING
                book.add(entry)
            try:
                with self._pools.changing_soon(LOCK_S):
                    self._pools.snapshot(entry.snapshots)
                entry.state = TAKEN
            except PoolAlreadyExists as exc:
                entry.state = MISSED if began is None else TAKEN
                entry.why = str(exc) if began is None else ""
            except RaidError as exc:
                entry.state, entry.why = MISSED, str(exc)
        if entry.state == MISSED:
            entry.snapshots = {}

    def forget(self, n: int) -> list[str]:
        """Delete the images of marker `n` and its entries. Returns names of the groups that had it. Durable.

        Raises Refused while a client has one of them open.
        """
        had = []
        for service, book in list(self._books.values()):
            try:
                entry = book.find(n)
            except NotFound:
                continue
            for snapshot in entry.snapshots.values():
                with contextlib.suppress(FarstripeError):  # it was deleted by hand
                    route = self._exports.get(snapshot)
                    self._pools.delete_volume(route)
            left = [name for name in entry.snapshots.values() if self._has(name)]
            if left:
                raise Refused(f"the image {left[0]} of marker {entry.name} is in use", "detach it first")
            book.drop(n)
            had.append(service.engine.state.name)
        return had

    def _has(self, name: str) -> bool:
        return any(route.name == name for route in self._exports.routes())

    # -- suspending and taking over ------------------------------------------------------------------------------------

    def resume(self, groups: Sequence[GroupService], n: int = 0) -> list[str]:
        """Let groups that stand at a marker (number `n`, when given) follow again. Returns their names. Durable."""
        resumed = []
        for service, book in self.booked(groups):
            if book.resume(n):
                service.engine.limit_seq = 0
                service.wake_follower()
                resumed.append(service.engine.state.name)
        return resumed

    def stand_at(self, service: GroupService, n: int) -> None:
        """Make a secondary hold what marker `n` names, and nothing after it: what it has beyond is given up.

        Nothing is being received. Durable on return. Raises Refused when there is no image, and no way to it.
        """
        engine = service.engine
        _, book = self._books[engine.state.uuid]
        with engine.apply_lock:
            if engine.state.rewind is None:
                apply_through(engine)  # markers that have arrived get their images
            entry = book.find(n)
            if entry.state != TAKEN:
                why = entry.why or entry.state
                raise Refused(f"group {engine.state.name} has no image of marker {entry.name}: {why}")
            stand_at(self._pools, engine, entry.seq, entry.epoch, entry.snapshots, f"marker {entry.name}")


def image_name(volume: str, marker: str, n: int, twice: bool = False) -> str:
    """The name of a volume's snapshot at a marker. twice: the copy knows another marker of that name."""
    plain = f"{volume}.{marker}.{n:x}" if twice else f"{volume}.{marker}"
    return plain if len(plain) <= MAX_NAME else f"{volume[:22]}.{marker[:22]}.{n:x}"[:MAX_NAME]
