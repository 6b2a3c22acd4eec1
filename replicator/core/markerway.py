"""The way of an ask about a marker up a group's tree, from its coordinator to the primary: rules of every node on it.

    coordinator ── relay ── … ── primary      it alone holds and marks, judges the lease, and answers

Only a primary makes records. So a node that has a copy of the group passes the ask to the peer that feeds it, over its
own lines, and the answer back; nothing of it is kept on the way. An ask is about one group, and says which nodes it has
passed, its coordinator first. The time for its answer shrinks from node to node, so that whoever is asked first hears
which line is down before it gives up itself.

Two ways may lead to the same primary; it takes each as a hold of its own (capture/marking.py), once a number and group.

What a peer may have done by way of a node is bounded, whatever it says:

* upwards only, and only for groups of which this node has a copy: whom the primary feeds is known to it
* with numbers of its own only. The first node on the way knows the coordinator by its certificate, and a number has its
  coordinator's tag, so nobody's marker can be marked, released or deleted by way of others but one's own. A node that
  has a copy and passes an ask on is believed whom it does that for
* nothing but what OPS lists

Source: seed 001, sections 4.12 ([0097], [0100]) and 8 (H1-26); a copy does not make markers itself ([0101]), since then
they would have no place in the order of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replicator.core.epochs import node_tag
from replicator.core.errors import ProtocolError, Refused
from replicator.core.markers import COUNTER_SHIFT

LOCATE: Final = "locate"
HOLDING: Final = ("hold", "mark", "release")
RECEIPT: Final = "receipt"
FOLLOWING: Final = ("look", "forget", "resume")
OPS: Final = (LOCATE, *HOLDING, RECEIPT, *FOLLOWING)
MAX_HOPS: Final = 16
"""A tree is not deeper than a group has nodes."""
KEPT_BACK_S: Final = 0.1
"""At most so much of the time does a node keep for its answer to get back."""


@dataclass(frozen=True)
class Standing:
    """How the group of an ask stands on the node that is asked."""

    group: str
    """Its name here."""
    role: str
    upstream: str
    """Id of the peer that feeds it, "" for none."""


def check_asker(here: str, asker: str, passed: Sequence[str], standing: Standing, *, paired: bool) -> None:
    """Check where an ask to node `here` comes from. paired: the group has a pair with the asker.

    Raises ProtocolError when it has not passed whoever asks, Refused for one that is passed on by a node that does not
    get the group from here.
    """
    if not passed or passed[-1] != asker:
        raise ProtocolError("an ask about a marker does not say truly where it comes from")
    if len(passed) == 1:
        return
    if standing.role != "primary" and standing.upstream == asker:
        raise _circle(standing.group, [*passed, here, asker])
    if not paired:
        raise Refused(
            "a node may pass on what is asked about markers of groups that it gets from here, and of no others",
            "the tree may just have changed: try again",
        )


def check_number(n: int, coordinator: str) -> None:
    """Raise Refused unless `n` is a number that node `coordinator` makes."""
    if n & ((1 << COUNTER_SHIFT) - 1) != node_tag(coordinator):
        raise Refused(f"marker number {n} is not one of the node's that asks", "ask where the marker was made")


def onward(here: str, standing: Standing, passed: Sequence[str]) -> str:
    """Return the id of the peer that an ask goes to from node `here` (an id); "" when this node answers it.

    Raises Refused when it can go nowhere: nobody feeds the group, or it has been here, or been to too many nodes.
    """
    if standing.role == "primary":
        return ""
    if here in passed or len(passed) >= MAX_HOPS:
        raise _circle(standing.group, [*passed, here])
    if not standing.upstream:
        raise Refused(
            f"no node feeds the copy of group {standing.group} on {here}, so its primary cannot be asked",
            f"see 'farstripe pair show {standing.group}' there, or name the group's primary: GROUP@NODE",
        )
    return standing.upstream


def _circle(group: str, way: Sequence[str]) -> Refused:
    return Refused(
        f"what was asked about group {group} goes round in a circle: {', '.join(way)}",
        "'farstripe pair list' on these nodes shows who feeds whom; one of them has to be primary",
    )


def shorter_s(given_s: float, spent_s: float) -> float:
    """The time that the next node has for its answer, when this one was `given_s` and has `spent_s`; 0: none left."""
    left_s = given_s - spent_s
    return max(0.0, left_s - min(KEPT_BACK_S, left_s / 8))
