"""How large a journal has to be to bear an outage of the peer, from what the group's hosts write. Pure.

What is needed is the most that was ever written in a window as long as the outage, over the hours that were seen; hours
in between that were not seen count as the busiest one, and so does what lies beyond the history. Outages shorter than
an hour are judged by the busiest minute of an hour, bounded by what came in that hour. Headroom comes on top. A given
rate overrides what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEADROOM_PERCENT = 25.0
HOUR_S = 3600.0
UNIT_BYTES = 1 << 20


class Need(NamedTuple):
    """What an outage takes: bytes of journal with and without headroom, and where the figure comes from."""

    written: int
    with_headroom: int
    basis: str


def need_bytes(
    history: Sequence[Mapping[str, Any]],
    outage_s: float,
    rate: float | None = None,
    headroom_percent: float = HEADROOM_PERCENT,
) -> Need | None:
    """Bytes of journal for `outage_s` seconds without the peer; None when neither a rate nor a history is known.

    history: {hour, seconds, bytes, peak_minute} as writerates.history(). rate: bytes a second.
    """
    if rate is not None:
        written, basis = rate * outage_s, "the rate that was given"
    else:
        seen = {int(h["hour"]): h for h in history if h["seconds"] > 0}
        if not seen:
            return None
        seen_s = sum(h["seconds"] for h in seen.values())
        span = f"{seen_s / HOUR_S:.1f} h" if seen_s >= HOUR_S else f"{math.ceil(seen_s / 60)} min"
        basis = f"the busiest such time of the {span} seen"
        written = _in_minutes(seen, outage_s) if outage_s < HOUR_S else _in_hours(seen, outage_s)
    total = written * (1 + headroom_percent / 100)
    return Need(math.ceil(written), math.ceil(total / UNIT_BYTES) * UNIT_BYTES, basis)


def _rate(hour: Mapping[str, Any]) -> float:
    return float(hour["bytes"]) / max(float(hour["seconds"]), 1.0)


def _in_minutes(seen: Mapping[int, Mapping[str, Any]], outage_s: float) -> float:
    def most(hour: Mapping[str, Any]) -> float:
        burst = float(hour["peak_minute"]) / 60 * outage_s
        return max(_rate(hour) * outage_s, min(burst, _rate(hour) * HOUR_S))

    return max(most(hour) for hour in seen.values())


def _in_hours(seen: Mapping[int, Mapping[str, Any]], outage_s: float) -> float:
    busiest = max(_rate(hour) for hour in seen.values())
    first, last = min(seen), max(seen)
    rates = [_rate(seen[hour]) if hour in seen else busiest for hour in range(first, last + 1)]
    whole, part = int(outage_s // HOUR_S), outage_s % HOUR_S
    best = 0.0
    for begin in range(max(1, len(rates) - whole + 1)):
        window = [*rates[begin : begin + whole]]
        window += [busiest] * (whole - len(window))
        rest = rates[begin + whole] if begin + whole < len(rates) else busiest
        best = max(best, sum(window) * HOUR_S + rest * part)
    return best


def plan(need: Need, nodes: Mapping[str, int | None], group: str) -> list[dict[str, Any]]:
    """Say what each node lacks. nodes: name -> bytes of its journal, None when not known.

    Every node of the group can be the primary, and then needs it. Returns {node, have, need, add, command} for each.
    """
    rows = []
    for node, have in nodes.items():
        add = need.with_headroom if have is None else max(0, need.with_headroom - have)
        add = math.ceil(add / UNIT_BYTES) * UNIT_BYTES
        if add:
            add = max(add, 16 * UNIT_BYTES)
        command = f"farstripe group journal add {group} PATH --size {add // UNIT_BYTES}M" if add else ""
        rows.append({"node": node, "have": have, "need": need.with_headroom, "add": add, "command": command})
    return rows
