"""What a group does when its peer does not answer, and when its journal is full. Two small literal tables.

A waiting write asks again and again; the answer depends only on the policy, on what is durable, and on how long it has
waited. "Degrade" comes in two steps so that the order is visible here: MAKE_DEGRADED first, and only after the group is
durably degraded does a write pass without its peer.

Times are seconds. A timeout of 0 means no limit.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Verdict(enum.Enum):
    """What a waiting write does next."""

    PASS = "pass"  # answer the host
    WAIT = "wait"  # ask again later
    MAKE_DEGRADED = "make-degraded"  # make the degraded state durable, then ask again
    MAKE_BITMAP = "make-bitmap"  # stop journaling (durably), count differences, then ask again
    FAIL = "fail"  # answer the host with an error


class LossFacts(NamedTuple):
    """Facts of one write that waits for its peer."""

    acked: bool  # the peer has acknowledged it, as far as the policy asks
    sync_on: bool  # the group waits for its peer at present (durable; off once degraded)
    on_loss: str  # "stall" | "degrade"
    expired: bool  # the write has waited loss_timeout_s (never true when that is 0)


def when_peer_silent(facts: LossFacts) -> Verdict:
    """Return the verdict for a write of a synchronous group. Rows in order, the first that fits counts."""
    if facts.acked:
        return Verdict.PASS
    if not facts.sync_on:
        return Verdict.PASS  # degraded durably (or switched to async) while this write waited
    if not facts.expired:
        return Verdict.WAIT
    return Verdict.MAKE_DEGRADED if facts.on_loss == "degrade" else Verdict.FAIL


class FullFacts(NamedTuple):
    """Facts of one write that finds no room in the journal."""

    room: bool  # there is room now, or the group does not journal any more
    on_full: str  # "stall" | "bitmap" | "fail"
    expired: bool  # it has waited full_timeout_s (never true when that is 0)


def when_journal_full(facts: FullFacts) -> Verdict:
    """Return the verdict for a write that finds the journal full: backpressure first, then the group's policy."""
    if facts.room:
        return Verdict.PASS
    if not facts.expired:
        return Verdict.WAIT
    return {"stall": Verdict.FAIL, "bitmap": Verdict.MAKE_BITMAP, "fail": Verdict.FAIL}[facts.on_full]


def expired(waited_s: float, timeout_s: float) -> bool:
    """True when a wait has reached its limit; a limit of 0 is none."""
    return timeout_s > 0 and waited_s >= timeout_s
