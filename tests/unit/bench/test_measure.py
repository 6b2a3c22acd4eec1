"""The arithmetic of the benchmark and its command line."""

from __future__ import annotations

from itertools import cycle

import pytest

from benchmarks.__main__ import line, parse
from benchmarks.measure import against_limit, compare
from benchmarks.table import ROWS


def test_compare_takes_medians_and_alternates_who_goes_first() -> None:
    order: list[str] = []
    ours, peer = cycle([10.0, 30.0, 20.0]), cycle([40.0, 40.0, 10.0])

    def run(who: str, figures: cycle[float]) -> float:
        order.append(who)
        return next(figures)

    result = compare("row", "peer", "IOPS", lambda: run("ours", ours), lambda: run("peer", peer), 3)
    assert (result.ours, result.peer, result.ratio) == (20.0, 40.0, 0.5)
    assert result.ratios == [0.25, 0.75, 2.0]
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_ratio_is_higher_when_we_are_better_also_where_less_is_better() -> None:
    seconds = against_limit("takeover-first-write", 2.0, "the bar", "s", 0.5, lower_is_better=True)
    assert seconds.ratio == 4.0
    rate = against_limit("ship-64k", 500.0, "the bar", "MB/s", 250.0, lower_is_better=False)
    assert rate.ratio == 0.5
    assert "below the bar 1" in line(rate, 1.0)
    assert "below" not in line(seconds, 1.0)


def test_json_has_the_promised_keys() -> None:
    row = compare("row", "peer", "IOPS", lambda: 1.0, lambda: 2.0, 1).as_json()
    assert {"name", "ours", "peer", "peer_name", "unit", "ratio"} <= row.keys()


def test_rows_are_chosen_by_name_or_beginning() -> None:
    assert [r.name for r in parse(["--rows", "raid0,resync-1g"]).chosen] == [
        "raid0-randwrite-4k",
        "raid0-randread-4k",
        "raid0-randwrite-4k-vs-md",
        "resync-1g",
    ]
    assert [r.name for r in parse([]).chosen] == list(ROWS)


@pytest.mark.parametrize("argv", [["--rows", "nonsense"], ["--rounds", "0"], ["--seconds", "-1"], ["--size-mb", "1"]])
def test_wrong_usage_ends_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
