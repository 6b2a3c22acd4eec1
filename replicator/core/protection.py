"""What is lost, and what still protects, when one node of a group's tree is lost: one labelled table.

Asked of one node, from what it knows of its own edges. So it speaks of that node, of the one that feeds it, and of
those it feeds, and of nodes further down as these have last told. Nothing is claimed that is not known: an edge without
a link counts as it was when it was last heard of, and says so; a copy of which nothing was heard is unknown, and
neither there nor lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class EdgeFacts(NamedTuple):
    """One edge of this node."""

    peer: str  # the peer's name
    feeds: bool  # the peer feeds this node; else this node feeds it
    linked: bool
    complete: bool  # the copy at the fed end is consistent
    in_sync: bool  # every write waits for it
    lag: int | None  # records the fed end lacks, None when not known
    others: tuple[str, ...] = ()  # names of the others that the peer feeds
    further: tuple[tuple[str, int | None], ...] = ()  # nodes below the peer that hold a complete copy, as last heard,
    # with the records each lacks
    current: bool = True  # `lag` is what it lacks now, and no limit from below
    unknown: bool = False  # nobody has heard whether the fed end holds a complete copy; then `complete` is false
    kept: int = 0  # the record of the consistent image that the fed end keeps while it is copied to, 0 for none


class Loss(NamedTuple):
    """What the loss of one node means."""

    node: str
    label: str
    level: str  # "ok": nothing acknowledged is lost | "warn": what is on the way | "bad": everything, or nobody is left
    means: str
    left: list[str]  # nodes that still hold a consistent copy, as far as this node knows


class Row(NamedTuple):
    """The first row whose `when` holds counts. Texts may use {best}, {lag}, {also}, {waiting}, {below}, {under},
    {further}, {kept}, {unheard}."""

    label: str
    when: Callable[[_Case], bool]
    level: str
    means: str


class _Case(NamedTuple):
    role: str  # of this node
    state: str  # of the copy here
    lost: EdgeFacts | None  # None: this node itself is lost
    below: list[EdgeFacts]  # what this node feeds, without the lost one
    above: EdgeFacts | None

    @property
    def complete(self) -> list[EdgeFacts]:
        """The best first."""
        whole = [e for e in self.below if e.complete]
        return sorted(whole, key=lambda e: (not e.in_sync, not e.linked, e.lag is None, e.lag or 0, e.peer))

    @property
    def further(self) -> list[tuple[str, int | None]]:
        """Copies below what this node feeds, and below the lost node: they stay, but get nothing from here."""
        edges = [*self.below, *([self.lost] if self.lost is not None and not self.lost.feeds else [])]
        return [copy for e in edges for copy in e.further]


TABLE: tuple[Row, ...] = (
    # The primary is lost: this node, or the peer that feeds this one.
    Row(
        "primary-in-sync",
        lambda c: c.lost is None and c.role == "primary" and any(e.in_sync for e in c.complete),
        "ok",
        "nothing acknowledged is lost: take over on {best}{waiting}",
    ),
    Row(
        "primary-behind",
        lambda c: c.lost is None and c.role == "primary" and bool(c.complete),
        "warn",
        "lost is what has not arrived: take over on {best}, {lag}{waiting}",
    ),
    Row(
        "primary-further",
        lambda c: c.lost is None and c.role == "primary" and bool(c.further),
        "warn",
        "lost is what has not arrived further down: {further}{waiting}",
    ),
    Row(
        "primary-kept",
        lambda c: c.lost is None and c.role == "primary" and any(e.kept for e in c.below),
        "bad",
        "lost is everything since an older image: {kept}",
    ),
    Row(
        "primary-unknown",
        lambda c: c.lost is None and c.role == "primary" and any(e.unknown for e in c.below),
        "bad",
        "unknown: it was not heard whether a complete copy is on {unheard}",
    ),
    Row(
        "primary-only",
        lambda c: c.lost is None and c.role == "primary",
        "bad",
        "everything is lost: no other node is known to hold a complete copy",
    ),
    Row(
        "source-incomplete-here",
        lambda c: c.lost is not None and c.lost.feeds and c.state != "ok",
        "bad",
        "the copy here is not complete and cannot take over{also}",
    ),
    Row(
        "source-in-sync",
        lambda c: c.lost is not None and c.lost.feeds and c.lost.in_sync,
        "ok",
        "nothing acknowledged is lost if it was the primary: take over here{also}",
    ),
    Row(
        "source-lost",
        lambda c: c.lost is not None and c.lost.feeds,
        "warn",
        "lost is what has not arrived here, {lag}, if it was the primary: take over here{also}",
    ),
    # A copy is lost: one that this node feeds, or this node.
    Row(
        "relay-lost",
        lambda c: c.lost is None and bool(c.below),
        "warn",
        "{below}: no records until this node is back, their images stay; the node above still protects",
    ),
    Row(
        "copy-here-lost",
        lambda c: c.lost is None,
        "warn",
        "one copy less; the node above still holds the data",
    ),
    Row(
        "copy-lost-in-sync",
        lambda c: c.role == "primary" and any(e.in_sync for e in c.complete),
        "ok",
        "{best} still holds everything acknowledged",
    ),
    Row(
        "copy-lost-behind",
        lambda c: c.role == "primary" and bool(c.complete),
        "warn",
        "{best} still holds a copy, {lag}",
    ),
    Row(
        "copy-lost-relay",
        lambda c: c.role == "primary" and bool(c.further),
        "bad",
        "copies further down stay, without new records until it is back: {further}; what is written meanwhile exists "
        "once",
    ),
    Row(
        "copy-lost-above-unknown",
        lambda c: c.role == "primary" and c.lost is not None and bool(c.lost.others),
        "bad",
        "no other copy here; {under}: no records until it is back, and whether a complete image is there was not heard",
    ),
    Row(
        "copy-lost-rest-unknown",
        lambda c: c.role == "primary" and any(e.unknown for e in c.below),
        "bad",
        "unknown: it was not heard whether a complete copy is on {unheard}",
    ),
    Row(
        "copy-lost-last",
        lambda c: c.role == "primary",
        "bad",
        "no other copy is left: what is here exists once",
    ),
    Row(
        "copy-below-lost",
        lambda c: True,
        "warn",
        "one copy less; this node and the one above still hold the data",
    ),
)


def losses(node: str, role: str, state: str, edges: Sequence[EdgeFacts]) -> list[Loss]:
    """Say for this node and each peer what its loss means. `state`: of the copy here, as in group.status."""
    above = next((e for e in edges if e.feeds), None)
    below = [e for e in edges if not e.feeds]
    cases = [(node, _Case(role, state, None, below, above))]
    cases += [(e.peer, _Case(role, state, e, [x for x in below if x is not e], above)) for e in edges]
    found = [_judge(name, node, case) for name, case in cases]
    holds = [node, *(e.peer for e in below if e.complete)] if role == "primary" or state == "ok" else []
    for name in dict.fromkeys(name for e in below for name, _ in e.further):
        left = [*holds, *(other for e in below for other, _ in e.further if other != name)]
        found.append(
            Loss(name, "copy-further-lost", "warn", f"one copy less; {_names(left)} still hold the data", left)
        )
    return found


def _judge(name: str, here: str, case: _Case) -> Loss:
    row = next(row for row in TABLE if row.when(case))
    best = case.complete[0] if case.complete else None
    source = case.lost if case.lost is not None and case.lost.feeds else best
    others = [e.peer for e in case.below if best is None or e is not best]
    text = row.means.format(
        best=best.peer if best else "",
        lag=_lag(source),
        also=_also(case),
        waiting=f"; no records for {_names(others)} until this node is back" if others else "",
        below=_names([e.peer for e in case.below]),
        under=_names(list(case.lost.others)) if case.lost is not None else "",
        further=_names([f"{node} ({_records(lag)}, as last heard)" for node, lag in case.further]),
        kept=_names([f"{e.peer} keeps the one after record {e.kept}" for e in case.below if e.kept]),
        unheard=_names([e.peer for e in case.below if e.unknown]),
    )
    left = [e.peer for e in case.complete] + ([name for name, _ in case.further] if case.role == "primary" else [])
    if case.lost is not None and (case.role == "primary" or case.state == "ok"):
        left.insert(0, here)
    if case.above is not None and case.above is not case.lost:
        left.append(case.above.peer)
    return Loss(name, row.label, row.level, text, left)


def _lag(edge: EdgeFacts | None) -> str:
    if edge is None or edge.lag is None:
        return "an unknown number of records behind"
    now = edge.linked and edge.current
    return _records(edge.lag) + ("" if now else " when it was last heard of, and what came since")


def _records(lag: int | None) -> str:
    return "an unknown number of records behind" if lag is None else f"{lag} records behind"


def _also(case: _Case) -> str:
    if case.lost is None:
        return ""
    goes_on = f"; {_names([e.peer for e in case.below])} then: fed by this node as before" if case.below else ""
    others = _names(list(case.lost.others))
    waits = f"; no records for {others} until {case.lost.peer} is back" if others else ""
    return goes_on + waits


def _names(names: list[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
