"""Holding the writes of groups for a marker and putting the marker into their sequences: the node's part of
core/markers.

A hold parks new host writes; those under way have their place in the sequence already (the record precedes the pool
write), so nothing needs to be waited for. Reads go on. A hold ends by its mark, by a release, when its lease is over,
when the process ends, or when anything else parks or takes the group over; after any of these MARK is refused, under
the same lock under which a write would be admitted, so a marker stands either in a hold without interruption or
nowhere.

A number may come to this node more than once: by several ways for several groups (core/markerway.py), and as the same
ask again. Each ask to hold is a hold of its own, with a token and a lease; a group is held once for a number, so it is
marked once. The same ask again is answered the same: with the token while the hold stands, and with the places of the
marker once it is made. What comes after that, or after the number was given up, or after a newer one, is refused
(H1-26).

Where hosts hold their writes themselves (daemon/hosthold.py) nothing is parked: the hold notes the last write of every
group, and MARK is refused when there has been another one since. So a host that nobody asked, or that went on too
early, makes no false marker (H1-25).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator.capture import roles
from replicator.capture.markerbook import MADE, Entry, MarkerBook
from replicator.capture.parking import NoRoom
from replicator.capture.service import GroupService
from replicator.capture.state import JOURNAL, PRIMARY
from replicator.core.errors import Refused
from replicator.core.markers import COUNTER_SHIFT, MAX_COUNTER, Marker, host_time_payload
from replicator.core.records import Kind

PARKED = "marker"
MOST_KEPT = 256
"""So many marks, and numbers that were given up, are remembered."""
Booked = tuple[GroupService, MarkerBook]


@dataclass(eq=False)
class _Hold:
    n: int
    groups: list[Booked]
    until: float
    token: str
    parks: bool
    """Writes are parked; else the hosts hold them, and `last` is the seq of the last one in each group, by uuid."""
    seqs: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    @property
    def uuids(self) -> frozenset[str]:
        """Of its groups."""
        return frozenset(service.engine.state.uuid for service, _ in self.groups)


class Marking:
    """The markers under way on this node. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """clock: seconds, for leases. later: calls a function after so many seconds."""
        self._clock, self._later = clock, later or _later
        self._lock = threading.Lock()
        self._holds: list[_Hold] = []
        self._held: dict[str, int] = {}
        """By group: the highest number that it was held for in the life of this process."""
        self._marked: dict[str, tuple[int, dict[str, int]]] = {}
        """Of marks that were made: token of the hold -> number, {group uuid: seq}. The last MOST_KEPT."""
        self._over: dict[int, None] = {}
        """Numbers that were given up. The last MOST_KEPT."""

    def hold(self, n: int, groups: Sequence[Booked], lease_s: float, *, park: bool = True) -> str:
        """Hold the writes of `groups` for marker `n`, for `lease_s` seconds at most. Returns the hold's token.

        park: here; else hosts hold them, and it is watched that none comes.
        Asking again while it stands changes nothing. Raises Refused, with nothing held, when a group cannot be marked
        or the number is not new here.
        """
        if n >> COUNTER_SHIFT > MAX_COUNTER:
            raise Refused(f"{n} is no number of a marker", f"its counter is above {MAX_COUNTER}")
        with self._lock:
            hold = _Hold(n, list(groups), self._clock() + lease_s, secrets.token_hex(8), park)
            standing = self._standing(hold)
            if standing is not None:
                self._check(standing)
                return standing.token
            for service, book in groups:
                highest = self.highest(service.engine.state.uuid, book)
                if n <= highest:
                    name = service.engine.state.name
                    raise Refused(f"group {name} has seen marker number {highest}, {n} is not new", "go higher")
            if n in self._over:
                raise Refused(f"marker number {n} was given up", "begin again with a new number")
            self._holds.append(hold)
            try:
                for service, _ in groups:
                    hold.last[service.engine.state.uuid] = _park(service, park=park)
            except BaseException:
                self._end(hold)
                raise
            self._held |= dict.fromkeys(hold.uuids, n)
        self._later(lease_s, lambda: self.release(n, hold.token))
        return hold.token

    def _standing(self, wanted: _Hold) -> _Hold | None:
        """The hold that an ask means which came before; None for none. Raises Refused when a group is held otherwise.

        Also where something else has ended that hold: its mark is to find out.
        """
        for other in self._holds:
            if not other.uuids & wanted.uuids:
                continue
            if (other.n, other.uuids, other.parks) == (wanted.n, wanted.uuids, wanted.parks):
                return other
            name = next(s.engine.state.name for s, _ in other.groups if s.engine.state.uuid in wanted.uuids)
            raise Refused(f"group {name} is held for another marker", "try again in a moment")
        return None

    def highest(self, uuid: str, book: MarkerBook) -> int:
        """The highest number that a group was marked or held with; a new one is above it."""
        return max(book.highest, self._held.get(uuid, 0))

    def mark(self, marker: Marker, token: str) -> dict[str, int]:
        """Put the marker into every group of the hold and let writes go on. Returns {group uuid: seq}.

        Asking again once it is there returns the same. Raises Refused, and lets writes go on, unless all of them are
        held without interruption since the `hold` that returned `token`.
        """
        with self._lock:
            n, seqs = self._marked.get(token, (0, {}))
            if n == marker.n:
                return seqs
            hold = next((one for one in self._holds if (one.n, one.token) == (marker.n, token)), None)
            if hold is None:
                raise Refused(f"nothing is held for marker number {marker.n}", "begin again with a new number")
            try:
                for service, book in hold.groups:
                    self._check(hold)
                    uuid = service.engine.state.uuid
                    if uuid not in hold.seqs:
                        hold.seqs[uuid] = self._append(hold, service, book, marker)
            finally:
                self._end(hold)
            _keep(self._marked, token, (hold.n, hold.seqs))
            return hold.seqs

    def release(self, n: int, token: str = "") -> None:
        """Let the writes held for `n` (under `token`, when given) go on; nothing happens when none are.

        Without a token the number is given up: nothing is held for it any more.
        """
        with self._lock:
            if not token:
                _keep(self._over, n, None)
            for hold in [one for one in self._holds if one.n == n and token in ("", one.token)]:
                self._end(hold)

    def _check(self, hold: _Hold) -> None:
        if self._clock() >= hold.until:
            raise Refused(f"the hold for marker number {hold.n} has ended: its time is over", "allow more time")

    def _append(self, hold: _Hold, service: GroupService, book: MarkerBook, marker: Marker) -> int:
        engine = service.engine
        with engine.lock:
            state = engine.state
            parked_for = PARKED if hold.parks else ""
            if engine.failed or state.role != PRIMARY or state.mode != JOURNAL or engine.parked_for != parked_for:
                raise Refused(f"group {state.name} was not held all the time", "try again")
            if not hold.parks and engine.last_host_seq != hold.last[state.uuid]:
                raise Refused(
                    f"group {state.name} was written to while its hosts were to hold",
                    "see to it that every host that writes to it is asked: farstripe marker host list",
                )
            try:
                seq = engine.append_control(Kind.MARKER, payload=marker.pack())
            except NoRoom:
                raise Refused(f"the journal of group {state.name} is full", "try again when it has drained") from None
            time_ns, epoch = engine.clock.last, engine.epoch
        service.engine.wake_replicator()
        book.add(Entry(marker.n, marker.name, seq, epoch, time_ns, MADE))
        return seq

    def _end(self, hold: _Hold) -> None:
        self._holds.remove(hold)
        for service, _ in hold.groups if hold.parks else ():
            roles.unpark(service.engine, PARKED)


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Enter something into a memory of the last MOST_KEPT."""
    kept[key] = value
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]


def _later(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _park(service: GroupService, *, park: bool) -> int:
    """Admit no more host writes, with `park`. Returns the seq of the last one.

    Raises Refused when the group cannot take a marker.
    """
    engine = service.engine
    with engine.lock:
        state = engine.state
        if engine.failed or state.role != PRIMARY:
            raise Refused(f"group {state.name} is not primary here, or has failed", "mark it where it is primary")
        if state.mode != JOURNAL:
            raise Refused(f"group {state.name} keeps no order now ({state.mode})", "pair it, or wait for the resync")
        if engine.parked_for:
            raise Refused(f"the writes of group {state.name} are held for something else", "try again in a moment")
        if park:
            engine.parked_for = PARKED
            engine.refresh()
        return engine.last_host_seq


def state_host_time(service: GroupService, time_ns: int) -> dict[str, int]:
    """A host says what time it is there: later writes get at least that. Kept as information in the sequence.

    Raises BadInput for a time far ahead of the clock, Refused on a secondary.
    """
    engine = service.engine
    engine.clock.state_host_time(time_ns)
    with engine.lock:
        if engine.state.role != PRIMARY:
            raise Refused(f"group {engine.state.name} is secondary here", "tell the primary")
        seq = 0
        if engine.state.mode == JOURNAL and not engine.parked_for and not engine.failed:
            seq = engine.append_control(Kind.MARKER, payload=host_time_payload(time_ns))
    engine.wake_replicator()
    return {"seq": seq, "last_time_ns": engine.clock.last}
