"""What would be lost with the primary, as numbers (the recovery point), and a budget for it.

Two views meet here. A primary compares its journal with what a peer has acknowledged: exact while they talk, a limit
from above when they do not. A secondary knows what it holds and what it last heard (lastword.py): exact as of then
while that is no older than the beacons' pace, also where it cannot take in what lies here; else the primary has gone
on, and its numbers are limits from below. What cannot be known stays None.

A budget says how much may be lost. Watch turns a series of numbers into two events, exceeded and met again, with
hysteresis so that a number near the limit does not fill the log. Pure: times are seconds of a monotonic clock and come
in as parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from replicator.core.errors import BadInput
from replicator.core.takeover import usable_pos

Facts = dict[str, Any]

FLOWING = ("source", "sync-source", "holding", "draining", "target")
"""Sessions in which the two sides tell each other their positions all the time; a link alone is not enough."""
CALM_FRACTION = 0.8
"""An exceeded budget counts as met again below this part of it."""
WORD_S = 5.0
"""The primary's last word counts as its present one for so long: beacons go out every second or two."""
REST_WORD_S = 65.0
"""The same where nothing changes and the peer's process is heard: then this link may beat every half minute, and so may
the one above."""
UNKNOWN_GRACE_S = 30.0
"""A number that stays unknown for longer exceeds every budget: nobody may rely on what nobody can say."""


def rpo(status: Facts, pair: Facts | None) -> Facts:
    """Return what would be lost if the primary vanished now: {writes, bytes, seconds, bound, as_of_s}.

    With "no copy" also {kept}: the record of the consistent image that is kept there meanwhile, 0 where none is known.

    status: group.status, of this edge where a group has several, {} when the target does not answer; pair: the
    replicator's view of the edge.
    bound: "exact"; "at most" (a primary whose peer does not tell: it may have more than it could say); "at least" (a
    secondary that hears nothing, or cannot take in what came: the primary has gone on); "no copy" (nothing consistent
    exists there); "unknown".
    as_of_s: seconds since the contact that this rests on, as heard here; 0.0 where records flow out, None when there
    was none.
    """
    facts = (pair or {}).get("facts") or {}
    linked = bool(facts.get("linked")) and facts.get("session") in FLOWING
    result: Facts = {
        "writes": None,
        "bytes": None,
        "seconds": None,
        "bound": "unknown",
        "as_of_s": 0.0 if linked else facts.get("contact_age_s"),
    }
    if "role" not in status or pair is None or not facts:  # a group that could not be opened has no role
        return result
    if status.get("copying") or status.get("state") in ("fresh", "resync") or facts.get("session") == "copy-source":
        kept = (status.get("kept_image") or {}).get("seq") or facts.get("peer_kept")
        return {**result, "bound": "no copy", "kept": int(kept or 0)}
    if linked and facts["session"] == "target":
        result |= fed(status, facts)
    elif linked:
        writes = pair.get("lag")
        nothing = writes == 0
        result |= {
            "writes": writes,
            "bytes": 0 if nothing else pair.get("lag_bytes"),
            "seconds": 0.0 if nothing else pair.get("lag_s"),
            "bound": "unknown" if writes is None else "exact",
        }
    elif not pair.get("feeds_us", status.get("role") != "primary"):
        result |= _unlinked_primary(status, facts)
    elif facts.get("peer_pos"):
        writes = max(0, int(facts["peer_pos"]) - usable_pos(status))
        behind_s = facts.get("behind_s")
        seconds = facts.get("contact_age_s") if behind_s is None else round(behind_s, 3)
        result["as_of_s"] = facts.get("contact_age_s")
        result |= {"writes": writes, "seconds": seconds, "bound": "at least"}
    return result


def fed(status: Facts, facts: Facts) -> Facts:
    """What a secondary can say over a link on which records flow, or wait to be taken: as `rpo`, {as_of_s} alone when
    that is nothing. Records that it has and cannot apply are missing as well."""
    word = facts.get("word")
    if not word:
        return {"as_of_s": facts.get("contact_age_s")}
    age_s = word["age_s"] if word["newer"] or facts.get("peer_role") == "primary" else None
    patience_s = REST_WORD_S if facts.get("backed") else WORD_S
    useless = int(status.get("pos") or 0) - usable_pos(status)
    exact = age_s is not None and age_s <= patience_s and word["whole"] and not word["more"] and not useless
    behind_s = facts.get("behind_s")
    return {
        "writes": word["writes"] + useless,
        "bytes": word["bytes"],
        "seconds": 0.0 if exact and not word["writes"] else None if behind_s is None else round(behind_s, 3),
        "bound": "exact" if exact else "at least",
        "as_of_s": facts.get("contact_age_s") if age_s is None else age_s,
    }


def _unlinked_primary(status: Facts, facts: Facts) -> Facts:
    received = max(
        int((facts.get("acked") or {}).get("received") or 0), int((status.get("peer") or {}).get("received") or 0)
    )
    decision = facts.get("decision") or {}
    if decision.get("action") == "refuse":  # what it holds beyond the common part is of another history
        received = min(received, int(decision.get("c") or 0))
    if not received:
        return {}
    writes = max(0, int(status.get("pos") or 0) - received)
    behind = status.get("behind") or {}
    return {
        "writes": writes,
        "bytes": 0 if not writes else behind.get("bytes"),
        "seconds": 0.0 if not writes else behind.get("seconds", facts.get("contact_age_s")),
        "bound": "at most",
    }


_WORST_FIRST = ("no copy", "unknown", "at least", "at most", "exact")


def of_group(edges: list[tuple[bool, Facts]]) -> tuple[Facts | None, Facts | None]:
    """Return (worst, best) of what the edges of a group say, each (it feeds us, rpo); None without edges.

    worst: of the copy that lacks most. best: what would be lost with the primary now: on a copy, what the edge says
    that feeds it; else what the copy lacks that lacks least.
    """
    found = sorted((lost for _, lost in edges), key=_badness)
    feeding = next((lost for feeds_us, lost in edges if feeds_us), None)
    return (found[-1], feeding or found[0]) if found else (None, None)


def _badness(lost: Facts) -> tuple[bool, bool, int, int]:
    """Sorts what a copy lacks, the least first; of the same number that which is known better."""
    known = lost["writes"] is not None
    return lost["bound"] == "no copy", not known, lost["writes"] or 0, -_WORST_FIRST.index(lost["bound"])


class Budget(NamedTuple):
    """How much may be lost with the primary; None for no limit."""

    seconds: float | None = None
    bytes: int | None = None
    writes: int | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in self)

    def reasons(self, lost: Facts, fraction: float = 1.0) -> list[str]:
        """Say which limits `lost` (as rpo() gives it) is above, at `fraction` of them; empty when within all.

        What is unknown is above none: Watch has the patience for that.
        """
        if lost["bound"] == "no copy":
            return ["there is no consistent copy"]
        found = []
        for unit, limit in zip(self._fields, self, strict=True):
            value = lost.get(unit)
            if limit is not None and value is not None and value > limit * fraction:
                found.append(f"{_number(value)} {unit} behind, the budget is {_number(limit)}")
        return found

    def knows(self, lost: Facts) -> bool:
        """Whether `lost` has a number for every limit."""
        if lost["bound"] == "no copy":
            return True
        return all(
            lost.get(unit) is not None for unit, limit in zip(self._fields, self, strict=True) if limit is not None
        )


def _number(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def budget_from(stored: Facts | None) -> Budget:
    """Return the budget in a stored map; unknown or senseless fields raise BadInput that names them."""
    stored = stored or {}
    if unknown := set(stored) - set(Budget._fields):
        raise BadInput(f"a budget has no {', '.join(sorted(unknown))}", f"known: {', '.join(Budget._fields)}")
    for unit, limit in stored.items():
        right = isinstance(limit, int | float) if unit == "seconds" else isinstance(limit, int)
        if limit is not None and (isinstance(limit, bool) or not right or not 0 <= limit < 1 << 63):
            raise BadInput(f"a budget of {limit!r} {unit} makes no sense", "give a number from 0 up")
    return Budget(**stored)


class Verdict(NamedTuple):
    """What Watch.look found: whether the budget is exceeded, since when (monotonic), why, and whether that is news."""

    exceeded: bool
    since: float
    reasons: tuple[str, ...]
    news: bool


class Watch:
    """One edge's budget over time."""

    def __init__(self) -> None:
        self._exceeded = False
        self._since = 0.0
        self._unknown_since: float | None = None

    def look(self, budget: Budget, lost: Facts, now: float) -> Verdict:
        """Take in what would be lost now."""
        reasons = budget.reasons(lost)
        if budget.knows(lost):
            self._unknown_since = None
        elif self._unknown_since is None:
            self._unknown_since = now
        if self._unknown_since is not None and now - self._unknown_since >= UNKNOWN_GRACE_S:
            reasons.append(f"unknown for {now - self._unknown_since:.0f} s how much is missing there")
        before = self._exceeded
        if reasons:
            self._exceeded = True
        elif self._unknown_since is None and not budget.reasons(lost, CALM_FRACTION):
            self._exceeded = False
        if before != self._exceeded:
            self._since = now
        if self._exceeded and not reasons:
            reasons = [
                *budget.reasons(lost, CALM_FRACTION),
                *(["it was, and how much is missing there is unknown now"] if self._unknown_since is not None else []),
            ]
        return Verdict(self._exceeded, self._since, tuple(reasons), before != self._exceeded)


class RemoteClock:
    """The primary's clock as a secondary can know it: from beacons, and its own monotonic clock between them.

    A beacon says that every record with a write time up to `time_ns` has a number up to `seq`. What is held here up to
    that number is therefore complete up to that time, and the primary's clock stood there when the beacon left, so the
    age found here is too small by the time the beacon travelled, and never too large by more.
    """

    def __init__(self) -> None:
        self._beacon: tuple[int, int, float] | None = None
        self._complete_ns = 0

    def heard(self, seq: int, time_ns: int, held_seq: int, now: float) -> None:
        """Take in a beacon; `held_seq`: the last record that is here without a gap."""
        if self._beacon is None or time_ns > self._beacon[1]:
            self._beacon = (seq, time_ns, now)
        self.holds(held_seq)

    def holds(self, held_seq: int, write_time_ns: int = 0) -> None:
        """Take in that everything up to `held_seq`, written at `write_time_ns`, is here."""
        self._complete_ns = max(self._complete_ns, write_time_ns)
        if self._beacon is not None and held_seq >= self._beacon[0]:
            self._complete_ns = max(self._complete_ns, self._beacon[1])

    def behind_s(self, now: float) -> float | None:
        """Seconds of the primary's time that are missing here; None before the first beacon."""
        if self._beacon is None or not self._complete_ns:
            return None
        _, time_ns, at = self._beacon
        return max(0.0, (time_ns - self._complete_ns) / 1e9 + (now - at))
