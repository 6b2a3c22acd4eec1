"""pool scrub: what the target is asked, and what people and scripts see of scrubs and corruption."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replicator.core.errors import BadInput, MediumError, Refused
from tests.unit.replicator.cli.conftest import FakeNode
from tests.unit.replicator.cli.test_nouns import member, pool_status


def found(state: str = "finished", left: int = 0, **counts: Any) -> dict[str, Any]:
    none = dict.fromkeys(
        ("unreadable", "checksum_errors", "mismatches", "located", "repaired", "unrepairable"), 0
    )  # fmt: skip
    return {
        "safe": {
            "state": state, "mode": "check", "left_bytes": left, "total_bytes": 100, "left_s": 3.0 if left else None,
            "bytes_s": 10, "ranges": [], **none, **counts,
        }
    }  # fmt: skip


def test_a_scrub_is_asked_for_with_its_mode_and_limit(node: FakeNode) -> None:
    node.target.answers["pool.scrub.start"] = found("running", 100)
    done = node.run("pool", "scrub", "safe", "--repair", "--limit", "100M")
    assert done.code == 0 and "scrub of safe runs" in done.out
    assert node.target.asked("pool.scrub.start") == {"group": "safe", "mode": "repair", "limit_bytes_s": 100 << 20}


@pytest.mark.parametrize(("order", "says"), [("pause", "is paused"), ("resume", "goes on"), ("stop", "is ended")])
def test_the_other_orders_are_passed_on(node: FakeNode, order: str, says: str) -> None:
    node.target.answers[f"pool.scrub.{order}"] = found("paused", 50)
    assert says in node.run("pool", "scrub", f"--{order}").out
    assert node.target.asked(f"pool.scrub.{order}") == {"group": None}


def test_options_of_a_start_go_with_nothing_else(node: FakeNode) -> None:
    assert node.run("pool", "scrub", "--pause", "--repair").code == BadInput.exit_code


def test_waiting_ends_with_what_was_found(node: FakeNode) -> None:
    looks = [found("running", 60), found(checksum_errors=2, repaired=2)]
    node.target.answers["pool.scrub.start"] = found("running", 100)
    node.target.answers["pool.scrub.status"] = lambda _args: looks.pop(0)
    done = node.run("pool", "scrub", "--wait")
    assert done.code == 0 and "safe: 2 checksum errors, 2 repaired" in done.out


def test_waiting_for_a_scrub_that_could_not_repair_everything_is_an_error(node: FakeNode) -> None:
    node.target.answers["pool.scrub.start"] = node.target.answers["pool.scrub.status"] = found(unrepairable=1)
    done = node.run("pool", "scrub", "safe", "--wait", "--json")
    assert done.code == MediumError.exit_code
    node.target.answers["pool.scrub.status"] = found("paused", 5)
    assert node.run("pool", "scrub", "safe", "--wait").code == MediumError.exit_code


def test_a_refusal_keeps_its_code(node: FakeNode) -> None:
    node.target.answers["pool.scrub.resume"] = Refused("no RAID group has a paused scrub")
    assert node.run("pool", "scrub", "--resume").code == Refused.exit_code


def test_status_shows_scrubs_and_members_that_gave_wrong_bytes_and_what_it_means(node: FakeNode) -> None:
    ranges = [{"kind": "mismatch", "area": 0, "offset": 0, "length": 4096,
               "volumes": [{"volume": "web", "offset": 8192, "length": 4096}]}]  # fmt: skip
    status = pool_status(member("/d/0") | {"checksum_errors": 3, "read_errors": 0, "repaired": 3}, member("/d/1"))
    status["scrubs"] = found("running", 25, mismatches=1, ranges=ranges)
    node.target.answers["pool.status"] = status
    shown = " ".join(node.run("pool", "status").out.split())
    assert "running, 75 % done, 10 B/s, 3.0 s left" in shown
    assert "/d/0 safe 3 0 3" in shown and "/d/1" not in shown
    assert "it cannot tell which was right" in shown
    assert "mismatch in safe: volume web, 4096 bytes at 8192" in shown
    assert json.loads(node.run("pool", "status", "--json").out)["scrubs"]["safe"]["mismatches"] == 1


def test_a_pool_with_checksums_is_asked_for(node: FakeNode) -> None:
    node.target.answers["pool.create"] = pool_status()
    assert node.run("pool", "create", "main", "raid1", "/a", "/b", "raid0", "/c", "--checksums").code == 0
    assert [group["checksums"] for group in node.target.asked("pool.create")["groups"]] == [True, True]
