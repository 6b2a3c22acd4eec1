"""pair create, set and show: how a pair moves its records."""

from __future__ import annotations

import pytest

from replicator.core.transfer import AUTO, Transfer
from tests.unit.replicator.cli.conftest import FakeNode
from tests.unit.replicator.cli.test_pairs import pair_view

M = 1 << 20


def test_pair_set_passes_only_what_was_said(node: FakeNode) -> None:
    node.replicator.answers["pair.set"] = pair_view()
    assert node.run("pair", "set", "app", "--limit", "20M").code == 0
    assert node.replicator.asked("pair.set") == {"group": "app", "limit": 20 * M}
    argv = ["--connections", "4", "--transfer", "pull", "--window", "1M", "--compress", "auto", "--limit", "unlimited"]
    assert node.run("pair", "set", "app", "B", *argv, "--schedule", "mon-fri 08:00-18:00 5M; else unlimited").code == 0
    assert node.replicator.asked("pair.set") == {
        "group": "app", "peer": "B", "connections": 4, "transfer": "pull", "window": M, "compress": AUTO, "limit": 0,
        "schedule": "mon-fri 08:00-18:00 5M; else unlimited",
    }  # fmt: skip
    node.run("pair", "set", "app", "--schedule", "none")
    assert node.replicator.asked("pair.set") == {"group": "app", "schedule": ""}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--limit", "5"], "not within 4K"),
        (["--limit", "fast"], "is not a size"),
        (["--schedule", "mon-fri 8-18 5M"], "is no span of hours"),
        (["--compress", "20"], "no level of compression"),
        (["--compress", "best"], "no level of compression"),
        (["--window", "1K"], "below the least"),
        (["--connections", "9"], "9 is not in the range"),
        (["--transfer", "shove"], "shove"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anybody_is_asked(node: FakeNode, argv: list[str], says: str) -> None:
    done = node.run("pair", "set", "app", *argv)
    assert done.code in (2, 3) and says in done.err
    assert node.replicator.calls == []


def test_pair_show_says_how_records_move_and_what_compression_gained(node: FakeNode) -> None:
    settings = Transfer(4, "pull", M, 3, 20 * M, "mon 5M; else unlimited").to_map()
    measured = {
        "connections_open": 3, "rate": 5 * M, "starved": True, "round_trip_s": 0.0123, "held_bytes": 2 * M,
        "plain_bytes": 300 * M, "wire_bytes": 100 * M, "ratio": 3.0, "skipped_bytes": 0, "cpu_s": 1.25,
    }  # fmt: skip
    node.replicator.answers["pair.show"] = pair_view(transfer=settings | measured)
    out = node.run("pair", "show", "app").out
    for text in (
        "pull, window 1 MiB, waiting for credit; 2 MiB came before their turn", "3 of 4",
        "20M; by schedule: mon 5M; else unlimited; now 5M",
        "zstd 3; 300 MiB sent as 100 MiB (3.00 : 1) for 1.2 s of processor time", "12.3 ms",
    ):  # fmt: skip
        assert text in out, out


def test_the_fed_side_shows_no_limit_of_its_own(node: FakeNode) -> None:
    seen = Transfer(limit=M).to_map() | {"connections_open": 1, "rate": None}
    node.replicator.answers["pair.show"] = pair_view(transfer=seen, feeds_us=True)
    out = node.run("pair", "show", "app").out
    assert "1 of 1" in out and "limit" not in out
