"""What a group does when its peer does not answer, and when its journal is full. Two small tables.

A waiting write asks again and again; the answer depends only on the policy and on how long it has waited. The order
that matters is the caller's: DEGRADE and OVERFLOW are carried out, durably, before any write is answered because of
them.

Waiting times are seconds. A timeout of 0 means no limit.
"""

from __future__ import annotations

import enum


class Verdict(enum.Enum):
    """What a waiting write does next."""

    WAIT = "wait"  # ask again later
    DEGRADE = "degrade"  # make it durable that the group goes on without its peer, then answer
    OVERFLOW = "overflow"  # stop journaling durably and count differences, then go on
    FAIL = "fail"  # answer the host with an error


_UNANSWERED = {"degrade": Verdict.DEGRADE, "stall": Verdict.FAIL}
FULL = {
    # on_full, peer connected, may go on alone: (until full_timeout_s, from then on). With a connected peer room comes
    # back by itself, so the wait is back-pressure; without one nothing could make room.
    ("stall", True, True): (Verdict.WAIT, Verdict.WAIT),
    ("stall", True, False): (Verdict.WAIT, Verdict.WAIT),
    ("stall", False, True): (Verdict.WAIT, Verdict.FAIL),
    ("stall", False, False): (Verdict.WAIT, Verdict.FAIL),
    ("bitmap", True, True): (Verdict.WAIT, Verdict.OVERFLOW),
    ("bitmap", True, False): (Verdict.WAIT, Verdict.FAIL),  # to count differences is to answer writes that exist once
    ("bitmap", False, True): (Verdict.OVERFLOW, Verdict.OVERFLOW),
    ("bitmap", False, False): (Verdict.WAIT, Verdict.FAIL),
    ("fail", True, True): (Verdict.FAIL, Verdict.FAIL),
    ("fail", True, False): (Verdict.FAIL, Verdict.FAIL),
    ("fail", False, True): (Verdict.FAIL, Verdict.FAIL),
    ("fail", False, False): (Verdict.FAIL, Verdict.FAIL),
}


def _expired(waited_s: float, timeout_s: float) -> bool:
    return timeout_s > 0 and waited_s >= timeout_s


def on_unanswered(on_loss: str, waited_s: float, timeout_s: float) -> Verdict:
    """Verdict for a write of a synchronous group whose peer has not answered for `waited_s`.

    on_loss: "stall" (the host waits, and gets an error at the deadline) | "degrade"
    """
    return _UNANSWERED[on_loss] if _expired(waited_s, timeout_s) else Verdict.WAIT


def may_go_alone(sync_on: bool, on_loss: str) -> bool:
    """Say whether writes may be answered that the peer does not have. sync_on: every write waits for it now."""
    return not (sync_on and on_loss == "stall")


def on_full(policy: str, link_up: bool, waited_s: float, timeout_s: float, *, alone: bool = True) -> Verdict:
    """Verdict for a write that has found no room in the journal for `waited_s`, checkpoints having been tried.

    policy: "stall" | "bitmap" | "fail". alone: whether the group may go on without its peer; see `may_go_alone`.
    """
    return FULL[policy, link_up, alone][_expired(waited_s, timeout_s)]


def full_in_words(policy: str, *, alone: bool = True) -> dict[str, list[str]]:
    """The rows of FULL for one policy, for people: {"connected" | "away": [until the timeout, from then on]}."""
    return {
        name: [verdict.value for verdict in FULL[policy, link_up, alone]]
        for name, link_up in (("connected", True), ("away", False))
    }
