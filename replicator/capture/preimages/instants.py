"""Which instant of the window a user means: a seq, a time, or a marker.

    seq      after the record of that seq; where a seq was given out in two histories, in the newer one
    time     after the last record whose write time is not later
    marker   after the marker's record

Only consistent instants can be shown: not those while a resync was under way, when blocks were of different times.
And only those that the pool has reached: a record is recorded before it is applied, so the ring may be ahead
(`applied`, the seq of the last record applied).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

from replicator.capture.preimages.frames import ATTACH, MARKER, PARTIAL, Entry, Head, Instant
from replicator.capture.preimages.window import Window
from replicator.core.errors import BadInput, NotFound, ProtocolError, Refused
from replicator.core.markers import parse_payload
from replicator.journal.beacons import Beacon


class Place(NamedTuple):
    """An instant, and where in the ring that begins what has to be taken back for it."""

    instant: Instant
    begin: int
    """Logical offset of a frame."""
    skip_seq: int
    """Entries of that first frame up to this seq are not taken back; -1 for none."""


def at_seq(window: Window, seq: int, applied: int) -> Place:
    """Return the instant after record `seq`. Raises Refused when it cannot be shown."""
    found, broken = _base_place(window, window.base.seq == seq), False
    for head, entries, last_seq in _reached(window, applied):
        if head.first_seq <= seq <= last_seq:
            broken = not head.consistent
            found = None if broken else _in_frame(head, entries, seq)
    return _or_refuse(window, found, broken, f"record {seq}")


def at_time(window: Window, time_ns: int, applied: int) -> Place:
    """Return the instant after the last record written at `time_ns` or before. Raises Refused when it cannot be shown.

    A time after the newest record means that record.
    """
    found, broken = _base_place(window, 0 < window.base.time_ns <= time_ns), False
    for head, entries, last_seq in _reached(window, applied):
        if head.first_time > time_ns:
            continue
        broken = not head.consistent
        seq = min(last_seq, head.last_seq if head.last_time <= time_ns else _last_until(entries, time_ns))
        found = None if broken else _in_frame(head, entries, seq)
    return _or_refuse(window, found, broken, format_time(time_ns))


def at_marker(window: Window, marker: str, applied: int) -> Place:
    """Return the instant of the newest marker with this name or number. Raises NotFound, Refused."""
    found, broken, seen = None, False, False
    for head, entries, last_seq in _reached(window, applied):
        if not head.flags & MARKER:
            continue
        for entry, payload in window.payloads(head, entries):
            if entry.seq <= last_seq and marker in _names(payload):
                seen, broken = True, not head.consistent
                found = None if broken else _in_frame(head, entries, entry.seq)
    if not seen:
        raise NotFound(
            f"no marker {marker!r} is in the window ({window_text(window)})", "give a time or a record within it"
        )
    return _or_refuse(window, found, broken, f"marker {marker}")


def newest(window: Window, applied: int) -> Place:
    """Return the instant after the newest record that was applied. Raises Refused when it is not consistent."""
    return at_seq(window, min(window.last.seq, applied), applied)


def is_final(place: Place, time_ns: int, applied: int, arrived: Beacon) -> bool:
    """Say whether no record written at `time_ns` or before can still come between `place` and what follows it.

    A later record was applied, or everything of before that time has arrived and was applied. arrived: looked at before
    `applied` was.
    """
    return place.instant.seq != applied or (arrived.seq <= applied and time_ns <= arrived.time_ns)


def _reached(window: Window, applied: int) -> Iterator[tuple[Head, list[Entry], int]]:
    """The frames with records that were applied, with their entries and the last such record."""
    for head, entries in window.heads():
        last_seq = head.last_seq if head.off < window.sequence_off else min(head.last_seq, applied)
        if not head.flags & (PARTIAL | ATTACH) and head.first_seq <= last_seq:
            yield head, entries, last_seq


def _base_place(window: Window, matches: bool) -> Place | None:
    consistent = bool(window.spans) and window.spans[0].first == window.base
    return Place(window.base, window.tail_off, -1) if matches and consistent else None


def _in_frame(head: Head, entries: list[Entry], seq: int) -> Place:
    if seq == head.last_seq:
        return Place(head.last, head.end, -1)
    time_ns = next(entry.write_time for entry in entries if entry.seq == seq)
    return Place(Instant(seq, head.epoch, time_ns), head.off, seq)


def _last_until(entries: list[Entry], time_ns: int) -> int:
    return max(entry.seq for entry in entries if entry.write_time <= time_ns)


def _names(payload: bytes) -> set[str]:
    """What a marker may be called by."""
    try:
        marker = parse_payload(payload)
    except ProtocolError:
        return set()
    return {str(marker.n), marker.name} - {""} if marker else set()


def _or_refuse(window: Window, found: Place | None, broken: bool, what: str) -> Place:
    if found is not None:
        return found
    way_out = f"the window holds {window_text(window)}"
    if broken:
        raise Refused(f"at {what} the copy was being resynced, its blocks were of different times", way_out)
    raise Refused(f"{what} is not in the window", way_out)


def window_text(window: Window) -> str:
    """Say from when to when instants can be shown."""
    if not window.spans:
        return "no consistent instant yet"
    return "; ".join(f"{_text(span.first)} to {_text(span.last)}" for span in window.spans)


def _text(instant: Instant) -> str:
    return f"seq {instant.seq} ({format_time(instant.time_ns) if instant.time_ns else 'time not known'})"


def format_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 in UTC, exact."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def target_of(args: dict[str, Any]) -> tuple[str, int | str]:
    """Check what a request asks for: one of `seq`, `time_ns`, `marker`, or `newest`. Raises BadInput."""
    given = [(key, args[key]) for key in ("seq", "time_ns", "marker", "newest") if args.get(key) is not None]
    if len(given) != 1:
        raise BadInput("an instant is one of: seq, time_ns, marker, newest")
    key, value = given[0]
    if key == "marker":
        if not isinstance(value, str) or not value:
            raise BadInput(f"a marker is named by text, not {value!r}")
    elif isinstance(value, bool) != (key == "newest") or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise BadInput(f"{key} cannot be {value!r}")
    return key, value


def find(window: Window, key: str, value: int | str, applied: int) -> Place:
    """Return the instant that `target_of` checked. Raises as the functions above."""
    if key == "seq":
        return at_seq(window, int(value), applied)
    if key == "time_ns":
        return at_time(window, int(value), applied)
    if key == "marker":
        return at_marker(window, str(value), applied)
    return newest(window, applied)
