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
_FULL = {
    # policy: (peer connected, peer away). With a connected peer room comes back by itself, so the wait is backpressure.
    "stall": (Verdict.WAIT, Verdict.FAIL),
    "bitmap": (Verdict.OVERFLOW, Verdict.OVERFLOW),
    "fail": (Verdict.FAIL, Verdict.FAIL),
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

    policy: "stall" | "bitmap" | "fail". "fail" does not wait. "bitmap" with the peer away does not wait either: nothing
    could make room. alone: whether the group may go on without its peer; see `may_go_alone`. When it may not, "bitmap"
    waits, and fails at the deadline: to count differences is to answer writes that exist here only.
    """
    if policy == "bitmap" and not alone:
        return Verdict.FAIL if _expired(waited_s, timeout_s) else Verdict.WAIT
    verdict = _FULL[policy][0 if link_up else 1]
    if policy == "fail" or (policy == "bitmap" and not link_up):
        return verdict
    return verdict if _expired(waited_s, timeout_s) else Verdict.WAIT
