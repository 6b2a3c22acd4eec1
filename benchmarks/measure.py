"""Alternating runs, medians, ratios.

A machine's speed drifts (other work, writeback, frequency), so ours and the peer's runs alternate and swap who goes
first each round: both see the same drift. Medians of the rounds are compared, and the spread of the rounds' own ratios
is kept, so that a reader sees how much a figure is worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """One row: both sides' medians in `unit`, and their ratio, where higher is better for us."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    ratios: list[float] = field(default_factory=list)
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """The row as it stands in `--json`."""
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "unit": self.unit,
            "ratio": self.ratio,
            "ratios": self.ratios,
            "note": self.note,
        }


def compare(
    name: str,
    peer_name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    rounds: int,
    lower_is_better: bool = False,
) -> Result:
    """Run `ours` and `peer` alternately for `rounds` rounds; each returns one figure in `unit`."""
    our_figures: list[float] = []
    peer_figures: list[float] = []
    for i in range(rounds):
        if i % 2:
            peer_figures.append(peer())
            our_figures.append(ours())
        else:
            our_figures.append(ours())
            peer_figures.append(peer())
    ratios = [_ratio(a, b, lower_is_better) for a, b in zip(our_figures, peer_figures, strict=True)]
    our_median, peer_median = statistics.median(our_figures), statistics.median(peer_figures)
    ratio = _ratio(our_median, peer_median, lower_is_better)
    return Result(name, our_median, peer_median, peer_name, unit, ratio, ratios)


def against_limit(name: str, limit: float, limit_name: str, unit: str, ours: float, lower_is_better: bool) -> Result:
    """A row whose peer is a fixed limit, for work that no other tool does."""
    return Result(name, ours, limit, limit_name, unit, _ratio(ours, limit, lower_is_better))


def _ratio(ours: float, peer: float, lower_is_better: bool) -> float:
    above, below = (peer, ours) if lower_is_better else (ours, peer)
    return above / below if below else float("inf")
