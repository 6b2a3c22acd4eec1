"""pool stats and pool balance: what is asked of the target, and what people and scripts see."""

from __future__ import annotations

from typing import Any

from tests.unit.replicator.cli.conftest import FakeNode

KINDS = ("random_read", "random_write", "sequential_read", "sequential_write")
USAGE, REFUSED, LATE = 2, 4, 11


def rates(utilisation: float) -> dict[str, Any]:
    return {
        "requests": dict.fromkeys(KINDS, 12.5),
        "bytes": dict.fromkeys(KINDS, 1024.0),
        "utilisation": utilisation,
    }


STATS = {
    "on": True,
    "age_s": 90.0,
    "area_bytes": 4 << 20,
    "groups": [{"name": "fast", "level": 1, **rates(0.5)}],
    "areas": [{"volume": "web", "area": 7, "start": 28 << 20, "raid_group": "fast", "images": ["web"], **rates(0.25)}],
    "more_areas": 3,
}
PLAN = {
    "applied": False,
    "age_s": 90.0,
    "moves": [{"volume": "web", "area": 7, "from": "fast", "to": "slow", "utilisation": 0.25, "reason": "levels it"}],
    "skipped": [{"volume": "web", "area": 9, "raid_group": "fast", "reason": "somebody chose its group"}],
    "groups": [{"name": "fast", "before": 0.5, "after": 0.25}, {"name": "slow", "before": 0.0, "after": 0.25}],
    "more": False,
}


def test_stats_show_groups_and_the_busiest_areas(node: FakeNode) -> None:
    node.target.answers["pool.stats"] = STATS
    shown = node.run("pool", "stats", "--volume", "web", "--top", "1")
    assert shown.code == 0
    assert node.target.asked("pool.stats") == {"top": 1, "volume": "web"}
    for word in ("RAID-1", "0.500", "web", "0.250", "12.5", "4 KiB", "3 areas more", "4 MiB"):
        assert word in shown.out, word
    assert node.run("pool", "stats", "--json").json == STATS


def test_stats_are_switched_and_say_when_they_are_off(node: FakeNode) -> None:
    node.target.answers["pool.stats_switch"] = lambda args: {"on": args["on"]}
    assert "off" in node.run("pool", "stats", "--off").out
    assert node.target.asked("pool.stats_switch") == {"on": False}
    assert node.run("pool", "stats", "--on", "--json").json == {"on": True}
    node.target.answers["pool.stats"] = {**STATS, "on": False, "areas": [], "groups": []}
    assert "farstripe pool stats --on" in node.run("pool", "stats").out


def test_a_plan_is_shown_with_reasons_and_changes_nothing(node: FakeNode) -> None:
    node.target.answers["pool.balance"] = PLAN
    for words in ((), ("--plan",)):
        shown = node.run("pool", "balance", *words)
        assert shown.code == 0
        assert node.target.asked("pool.balance") == {"apply": False, "placed_too": False, "force": False}
        for word in ("levels it", "somebody chose its group", "0.500", "farstripe pool balance --apply"):
            assert word in shown.out, word
    assert node.run("pool", "balance", "--json").json == PLAN


def test_a_plan_is_applied_and_waited_for(node: FakeNode) -> None:
    so_far = [{"planned": 1, "moved": done, "left": 1 - done, "left_out": []} for done in (0, 1)]
    node.target.answers["pool.balance"] = {**PLAN, "applied": True}
    node.target.answers["pool.status"] = {"area_bytes": 4 << 20}
    node.target.answers["pool.balance_progress"] = lambda _args: so_far.pop(0) if len(so_far) > 1 else so_far[0]
    shown = node.run("pool", "balance", "--apply", "--wait", "--most", "9", "--placed", "--force")
    assert shown.code == 0
    assert node.target.asked("pool.balance") == {"apply": True, "placed_too": True, "force": True, "most": 9}
    assert "1 of 1 areas have moved" in shown.out
    assert node.run("pool", "balance", "--progress", "--json").json["moved"] == 1


def test_balancing_is_cancelled(node: FakeNode) -> None:
    node.target.answers["pool.balance_cancel"] = {"cancelled": 4}
    assert "4 moves" in node.run("pool", "balance", "--cancel").out


def test_options_that_contradict_each_other_are_refused(node: FakeNode) -> None:
    assert node.run("pool", "balance", "--plan", "--apply").code == USAGE
    assert node.run("pool", "balance", "--wait").code == USAGE
    assert node.run("pool", "balance", "--apply", "--most", "2").code == USAGE
    assert node.run("pool", "stats", "--top", "0").code == USAGE
