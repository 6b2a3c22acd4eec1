"""Cuts by time: how far the copies of several groups may be applied so that together they hold one instant.

All groups of a set are written through one node, whose clock gives every write a time of its own, rising in the order
in which writes depend on each other (capture/clock.py). A secondary knows of each group a time up to which nothing is
missing (`arrived`: of the last record, or of a beacon after it). The set's bound is the smallest of these, and each
group applies what is not later. So what is applied in all groups is everything up to the bound and nothing after it:
a cut.

The bound is durable before anything is applied up to it, and so are the records: after power loss every group can be
brought up to the bound again, and none is beyond it.

    source      the groups are primary here: nothing to limit
    whole       the groups are secondary here, the bound rules
    joining     a copy is being made, or was made while others had gone on: no cut yet. All are stopped where the
                furthest of them is, until everything up to there has arrived everywhere. After a stop it is known
                where that is once every group has applied again what it had applied; whoever were stopped before
                would hold parts of what comes after
    apart       the groups have different primaries, or are not all here: no limits, and no promise
    decided     a takeover has fixed the bound for good; whatever restarts now finishes it at that bound

A set that orders by counter need not wait for the times of all groups: where numbers follow each other without a gap,
nothing can be missing (core/numbering.py). Then the bound is the write time of the last record before the first gap.

Write times of different nodes cannot be compared: a set lives in one time domain, markers serve across them (H1-14). A
new primary goes on above the times that it has seen, but this node may have been told later ones: then its times are
below the bound, and the set is made whole anew.
Source: seed 001 sections 4 and 7, hazards H1-01 to H1-06 and H1-10 to H1-12.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from replicator.core.errors import Refused
from replicator.core.numbering import Cut

NO_BOUND = 1 << 63
"""Later than every write time: everything that has arrived is applied."""


class Standing(enum.Enum):
    """How a set stands on one node; see the table above."""

    SOURCE = "source"
    WHOLE = "whole"
    JOINING = "joining"
    APART = "apart"
    DECIDED = "decided"


class GroupView(NamedTuple):
    """One group of a set, as a node sees it. Times are write times in nanoseconds, 0 when not known."""

    name: str
    role: str
    upstream: str
    """Whom it follows; "" on a primary."""
    consistent: bool
    """Its copy is no mixture of two instants."""
    arrived_ns: int
    """Nothing with a write time up to this is missing here."""
    applied_ns: int
    """Nothing with a later write time is applied."""
    domain: int = 0
    """Tag of the node whose clock gave the last record its time."""
    in_part: bool = False
    """Its volumes may hold parts of later records, of which a stop has taken that they were applied."""


class SetState(NamedTuple):
    """What a node keeps durably of a set, beside its groups."""

    bound_ns: int = 0
    whole: bool = False
    decided_ns: int = 0
    """The bound of a takeover, 0 when there is none."""
    decided_cycle: int = 0
    """The number of the image that the takeover goes back to, 0 when it goes on to the bound (core/cycles.py)."""
    number: int = 0
    """In a set that orders by counter: the last number up to the bound, and its domain (core/numbering.py); else 0."""
    domain: int = 0


class Ruling(NamedTuple):
    """What holds now. `state` is durable before `limit_ns` is raised to the groups; 0: no limit."""

    standing: Standing
    state: SetState
    limit_ns: int
    held_by: str
    """The group that everybody waits for, "" when nobody waits for one."""
    why: str


def rule(state: SetState, views: Sequence[GroupView], expected: int) -> Ruling:
    """Return how a set of `expected` groups goes on. `views`: those that are on this node."""
    secondary = [view for view in views if view.role == "secondary"]
    if state.decided_ns:
        if not secondary:
            return Ruling(Standing.SOURCE, SetState(), 0, "", "")
        return Ruling(Standing.DECIDED, state, state.decided_ns, "", "a takeover is being carried out")
    if views and not secondary:
        return Ruling(Standing.SOURCE, SetState(), 0, "", "")
    broken = state._replace(whole=False)
    if len(views) < expected:
        return Ruling(Standing.APART, broken, 0, "", f"groups of it that are not on this node: {expected - len(views)}")
    if len(secondary) < len(views) or len({view.upstream for view in views}) > 1:
        return Ruling(Standing.APART, broken, 0, "", "its groups have different primaries")
    copying = [view.name for view in views if not view.consistent]
    if copying:
        return Ruling(Standing.JOINING, broken, 0, copying[0], f"group {copying[0]} is being copied")
    if len({view.domain for view in views}) > 1:
        return Ruling(Standing.JOINING, broken, 0, "", "the writes of a new primary have not come to all groups")
    in_part = [view.name for view in views if view.in_part]
    if in_part and not state.whole:
        why = f"group {in_part[0]} applies again what it had applied before it was stopped"
        return Ruling(Standing.JOINING, broken, 0, in_part[0], why)
    slowest = min(views, key=lambda view: view.arrived_ns)
    furthest = max(view.applied_ns for view in views)
    if state.whole:
        bound = max(state.bound_ns, slowest.arrived_ns)
        return Ruling(Standing.WHOLE, state._replace(bound_ns=bound), bound, slowest.name, "")
    if slowest.arrived_ns >= furthest:
        bound = slowest.arrived_ns
        return Ruling(Standing.WHOLE, SetState(bound, True), bound, slowest.name, "")
    why = f"others have gone on without group {slowest.name}"
    return Ruling(Standing.JOINING, broken, max(1, furthest), slowest.name, why)


def raised(ruling: Ruling, cut: Cut, *, waits: bool) -> Ruling:
    """Return the ruling of a set that is whole and orders by counter, given how far its records have no gap.

    waits: something that has arrived lies beyond that.
    """
    bound = max(ruling.state.bound_ns, cut.bound_ns)
    state = ruling.state._replace(bound_ns=bound, number=cut.number, domain=cut.domain)
    return ruling._replace(state=state, limit_ns=bound, held_by=ruling.held_by if waits else "")


def went_back(state: SetState, views: Sequence[GroupView]) -> bool:
    """Say whether what arrives in a set that is whole has write times of another node's clock, which may be behind.

    By number, an idle group has times below the bound and nothing is wrong; there the node that gave the last number
    tells.
    """
    if not state.whole or state.decided_ns:
        return False
    if state.domain:
        return any(view.domain != state.domain >> 32 for view in views)
    return any(0 < view.arrived_ns < state.bound_ns for view in views)


def decide(ruling: Ruling, *, keep: bool) -> SetState | None:
    """Return the state that fixes a takeover of the set, None when there is no cut to take over at.

    keep: every group goes on with all it has received. That is a cut too when no write of any of them was answered
    without this node, which only a synchronous group that stalls can promise.
    """
    if ruling.standing is Standing.DECIDED:
        return ruling.state
    if ruling.standing is not Standing.WHOLE or not ruling.state.bound_ns:
        return None
    return ruling.state._replace(decided_ns=NO_BOUND if keep else ruling.state.bound_ns)


def decide_back(state: SetState, views: Sequence[GroupView], expected: int, cycle: int, bound_ns: int) -> SetState:
    """Return the state that fixes a takeover at image `cycle`, which was taken at `bound_ns`.

    It needs no cut as things stand, only that every group can go back. Raises Refused.
    """
    if state.decided_ns:
        if state.decided_cycle != cycle:
            raise Refused("another takeover of the set has begun and is being carried out", "wait until it has ended")
        return state
    if len(views) < expected:
        raise Refused(f"{expected - len(views)} groups of the set are not on this node", "take over group by group")
    for view in views:
        if view.role != "secondary":
            raise Refused(f"group {view.name} is primary here already", "farstripe set list shows how the set stands")
        if not view.consistent:
            raise Refused(
                f"group {view.name} is being copied to and cannot be taken back to an image",
                "let the copy finish, or read the images as they are: farstripe set images",
            )
    return state._replace(decided_ns=max(1, bound_ns), decided_cycle=cycle)
