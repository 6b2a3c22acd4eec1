"""Markers: one named instant over groups of any number of nodes. What a record says, and how one is made.

The writes of all the groups are held for a moment; each group's sequence gets a MARKER record with the same number;
writes go on. No write made after a marker in one group can be seen before the marker in another one, so the images at
number n, taken wherever the sequences go, belong together. No clock is compared.

    coordinator               node                      what it must not get wrong
    HOLD n, lease   ───────►  hold writes; HELD token   no write may be between readable and stamped (H1-24)
    all HELD
    MARK n, token   ───────►  one record a group,       only if held without interruption since that HELD (H1-23)
                              release; MARKED           once a number and group (H1-20, H1-26)
    all MARKED: made
    any refusal, or the deadline: RELEASE n to all      the attempt is dead; its number is never used again (H1-19)

The token names one hold: a late MARK cannot find a hold of its number that a late HOLD began anew. A node that was
told nothing more ends the hold by itself when the lease is over (H1-22). A number that some nodes marked and others
did not is no marker: who offers images asks for those that every group has (H1-19).

`Attempt` is the coordinator, a pure state machine; the daemon and the model in tests/testing/cutworld drive the same
code. Source: seed 001 sections 4, 7 and 8 (figure 15 with the corrections).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from replicator.core.errors import ProtocolError

COUNTER_SHIFT = 24
"""A marker's number is counter << 24 | tag of the coordinating node: no two nodes make the same one."""


MAX_COUNTER = 1 << 36
"""No node has counted so far; a number above is refused, so that nobody can use up the numbers of a group."""


def make_number(counter: int, tag: int) -> int:
    """Return the number of the coordinator's `counter`-th attempt."""
    return counter << COUNTER_SHIFT | tag


def counter_above(counter: int, seen: Iterable[int]) -> int:
    """Return a counter above `counter` and above all numbers `seen`: numbers rise also from node to node."""
    return max([counter, *(n >> COUNTER_SHIFT for n in seen)]) + 1


@dataclass(frozen=True)
class Marker:
    """What a MARKER record says."""

    n: int
    name: str
    by: str
    """Node id of the coordinator."""
    groups: int
    """How many groups the marker is over."""
    image: bool = True
    """Secondaries keep a snapshot."""
    suspend: bool = False
    """Secondaries apply nothing more until they are told to."""

    def pack(self) -> bytes:
        """The payload of the record."""
        packed: bytes = msgpack.packb({"marker": vars(self)})
        return packed


def parse_payload(payload: bytes | memoryview) -> Marker | None:
    """Decode a MARKER record's payload; None for information of another kind. Raises ProtocolError."""
    try:
        found: Any = msgpack.unpackb(payload) if len(payload) else {}
        said = found.get("marker")
        return None if said is None else Marker(**said)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"a marker record cannot be read: {exc}") from exc


def host_time_payload(time_ns: int) -> bytes:
    """The payload of a record that keeps, as information, what time a host has stated."""
    packed: bytes = msgpack.packb({"host_time_ns": time_ns})
    return packed


def host_time_of(payload: bytes | memoryview) -> int | None:
    """The time that a host has stated, of a MARKER record's payload; None when it is of another kind."""
    try:
        found: Any = msgpack.unpackb(payload) if len(payload) else {}
        stated = found.get("host_time_ns")
    except (ValueError, AttributeError, msgpack.UnpackException):
        return None
    return stated if isinstance(stated, int) else None


class Stage(enum.Enum):
    """Where an attempt is."""

    HOLDING = "holding"  # HOLD is out, not everybody holds
    MARKING = "marking"  # all hold, MARK is out
    MADE = "made"  # every group has the record
    DEAD = "dead"  # given up; some groups may have the record, which nobody will use


@dataclass(frozen=True)
class Ask:
    """Send `op` ("hold", "mark", "release") with the number to `node`; every hold and mark gets one Answer."""

    node: str
    op: str
    token: str = ""
    """Of the hold that is to be marked."""


@dataclass(frozen=True)
class Finished:
    """The attempt is over. `why` it died, "" when the marker is made."""

    why: str


@dataclass(frozen=True)
class Answer:
    """What `node` said to `op`, or why there is no answer."""

    node: str
    op: str
    ok: bool
    why: str = ""
    token: str = ""
    """Of the hold, when a hold is answered."""


@dataclass(frozen=True)
class Tick:
    """Time passed."""


class Attempt:
    """One attempt to make marker `n` on `nodes`. handle() returns what to send; times are of a monotonic clock."""

    def __init__(self, n: int, nodes: Iterable[str], now: float, deadline_s: float) -> None:
        self.n = n
        self.nodes = sorted(nodes)
        self.stage = Stage.HOLDING
        self.deadline = now + deadline_s
        self.why = ""
        self._waiting = set(self.nodes)
        self._tokens: dict[str, str] = {}

    def begin(self) -> list[Ask | Finished]:
        """The first effects."""
        return [Ask(node, "hold") for node in self.nodes]

    def handle(self, event: Answer | Tick, now: float) -> list[Ask | Finished]:
        """Take an event. An attempt that is over hears nothing any more."""
        if self.stage in (Stage.MADE, Stage.DEAD):
            return []
        if now >= self.deadline:
            slow = ", ".join(sorted(self._waiting))
            return self._die(f"no answer in time from {slow}")
        if isinstance(event, Tick):
            return []
        wanted = "hold" if self.stage is Stage.HOLDING else "mark"
        if event.op != wanted or event.node not in self._waiting:
            return []  # said twice
        if not event.ok:
            return self._die(event.why or f"{event.node} refused to {event.op}")
        self._waiting.discard(event.node)
        self._tokens.setdefault(event.node, event.token)
        if self._waiting:
            return []
        if self.stage is Stage.HOLDING:
            self.stage = Stage.MARKING
            self._waiting = set(self.nodes)
            return [Ask(node, "mark", self._tokens[node]) for node in self.nodes]
        self.stage = Stage.MADE
        return [Finished("")]

    def _die(self, why: str) -> list[Ask | Finished]:
        self.stage, self.why = Stage.DEAD, why
        return [*(Ask(node, "release") for node in self.nodes), Finished(why)]


def offered(images: Mapping[str, Iterable[int]]) -> list[int]:
    """Return the numbers that every group of `images` (group -> numbers it has an image of) can give, newest first."""
    sets = [set(numbers) for numbers in images.values()]
    return sorted(set.intersection(*sets), reverse=True) if sets else []


def retire(complete: Iterable[int], keep: int) -> list[int]:
    """Return the numbers of `complete` images (in every place) that may go, so that the newest `keep` stay.

    Images that are not complete are neither counted nor dropped: the last complete ones stay until newer ones are
    (H1-17).
    """
    return sorted(complete)[: -max(1, keep)]
