"""Holding the writes of groups for a marker and putting the marker into their sequences: the node's part of
core/markers.

A hold parks new host writes; those under way have their place in the sequence already (the record precedes the pool
write), so nothing needs to be waited for. Reads go on. A hold ends by its mark, by a release, when its lease is over,
when the process ends, or when anything else parks or takes the group over; after any of these MARK is refused, under
the same lock under which a write would be admitted, so a marker stands either in a hold without interruption or
nowhere.

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

from replicator.capture import roles
from replicator.capture.engine import NoRoom
from replicator.capture.markerbook import MADE, Entry, MarkerBook
from replicator.capture.service import GroupService
from replicator.capture.state import JOURNAL, PRIMARY
from replicator.core.errors import Refused
from replicator.core.markers import Marker, host_time_payload
from replicator.core.records import Kind

PARKED = "marker"
Booked = tuple[GroupService, MarkerBook]


@dataclass
class _Hold:
    n: int
    groups: list[Booked]
    until: float
    token: str
    parks: bool
    """Writes are parked; else the hosts hold them, and `last` is the seq of the last one in each group, by uuid."""
    seqs: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)


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
        self._holds: dict[int, _Hold] = {}

    def hold(self, n: int, groups: Sequence[Booked], lease_s: float, *, park: bool = True) -> str:
        """Hold the writes of `groups` for marker `n`, for `lease_s` seconds at most. Returns the hold's token.

        park: here; else hosts hold them, and it is watched that none comes.
        Asking again while it stands changes nothing. Raises Refused, with nothing held, when a group cannot be marked
        or the number is not new here.
        """
        with self._lock:
            if n in self._holds:
                self._check(self._holds[n])
                return self._holds[n].token
            hold = _Hold(n, list(groups), self._clock() + lease_s, secrets.token_hex(8), park)
            held = {service.engine.state.uuid for other in self._holds.values() for service, _ in other.groups}
            for service, book in groups:
                if (
                    service.engine.state.uuid in held
                ):  # also where something else has ended that hold: its mark is to find out
                    raise Refused(
                        f"group {service.engine.state.name} is held for another marker", "try again in a moment"
                    )
                if n <= book.highest:
                    name = service.engine.state.name
                    raise Refused(f"group {name} has seen marker number {book.highest}, {n} is not new", "go higher")
            self._holds[n] = hold
            try:
                for service, _ in groups:
                    hold.last[service.engine.state.uuid] = _park(service, park=park)
            except BaseException:
                self._end(hold)
                raise
        self._later(lease_s, lambda: self.release(n, hold.token))
        return hold.token

    def mark(self, marker: Marker, token: str) -> dict[str, int]:
        """Put the marker into every group held for it and let writes go on. Returns {group uuid: seq}.

        Raises Refused, and lets writes go on, unless all of them are held without interruption since the
        `hold` that returned `token`.
        """
        with self._lock:
            hold = self._holds.get(marker.n)
            if hold is None or hold.token != token:
                raise Refused(f"nothing is held for marker number {marker.n}", "begin again with a new number")
            try:
                for service, book in hold.groups:
                    self._check(hold)
                    uuid = service.engine.state.uuid
                    if uuid not in hold.seqs:
                        hold.seqs[uuid] = self._append(hold, service, book, marker)
            finally:
                self._end(hold)
            return hold.seqs

    def release(self, n: int, token: str = "") -> None:
        """Let the writes held for `n` (under `token`, when given) go on; nothing happens when none are."""
        with self._lock:
            hold = self._holds.get(n)
            if hold is not None and token in ("", hold.token):
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
        del self._holds[hold.n]
        for service, _ in hold.groups if hold.parks else ():
            roles.unpark(service.engine, PARKED)


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
