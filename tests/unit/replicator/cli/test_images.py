"""Snapshots, clones, maps, moves, groups that come and go, the check: what the target is asked, what people see."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.cli.where import parse_place
from replicator.core.errors import BadInput
from tests.unit.replicator.cli.conftest import FakeNode

Asked = dict[str, Any]


@pytest.mark.parametrize(
    ("words", "op", "asked"),
    [
        (["volume", "snapshot", "a=x", "b=y"], "volume.snapshot", {"volumes": ["a", "b"], "names": ["x", "y"]}),
        (["volume", "clone", "x", "c"], "volume.clone", {"source": "x", "name": "c"}),
        (["volume", "rollback", "a", "x", "-y"], "volume.rollback", {"name": "a", "snapshot": "x"}),
        (["volume", "diff", "x", "a"], "volume.diff", {"a": "x", "b": "a"}),
        (["volume", "map", "a"], "volume.map", {"name": "a"}),
        (["volume", "extend", "a", "8M", "4M", "--raid-group", "g"], "volume.extend",
         {"name": "a", "start": 8 << 20, "length": 4 << 20, "raid_group": "g"}),
        (["volume", "move", "a", "--to", "g"], "volume.move", {"name": "a", "raid_group": "g", "start": 0}),
        (["volume", "move", "a", "--to", "g", "--start", "4M", "--length", "1M"], "volume.move",
         {"name": "a", "raid_group": "g", "start": 4 << 20, "length": 1 << 20}),
        (["volume", "move", "a", "--cancel"], "volume.move_cancel", {"name": "a"}),
        (["volume", "create", "a", "--size", "8M", "--place", "0:4M=g", "--place", "4M:4M=h"], "volume.create",
         {"name": "a", "size": 8 << 20, "raid_group": None, "thin": True, "placement": [
             {"start": 0, "length": 4 << 20, "raid_group": "g"},
             {"start": 4 << 20, "length": 4 << 20, "raid_group": "h"},
         ]}),
        (["pool", "check"], "pool.check", {}),
        (["pool", "add-group", "fast=raid1", "/a", "/b"], "pool.add_group",
         {"group": {"name": "fast", "level": 1, "members": ["/a", "/b"]}, "force": False}),
        (["pool", "add-group", "fast=raid1", "/a", "/b", "--no-checksums"], "pool.add_group",
         {"group": {"name": "fast", "level": 1, "members": ["/a", "/b"], "checksums": False}, "force": False}),
        (["pool", "grow"], "pool.grow", {"name": None, "dry_run": False}),
        (["pool", "grow", "fast", "--dry-run"], "pool.grow", {"name": "fast", "dry_run": True}),
        (["pool", "clear-errors"], "pool.clear_errors", {"member": ""}),
        (["pool", "clear-errors", "/a"], "pool.clear_errors", {"member": "/a"}),
        (["pool", "remove-group", "fast", "-y"], "pool.remove_group", {"name": "fast"}),
        (["pool", "keep-group", "fast"], "pool.keep_group", {"name": "fast"}),
    ],
)  # fmt: skip
def test_a_command_asks_the_target(node: FakeNode, words: list[str], op: str, asked: Asked) -> None:
    node.target.answers[op] = {
        "ranges": [{"start": 0, "length": 4 << 20, "group": "g"}], "moves": [], "problems": [], "groups": [],
        "refused": [], "members": 1, "images": 3,
        "size": 12 << 20, "mapped_start": 8 << 20, "mapped_end": 12 << 20, "cancelled": 1,
    }  # fmt: skip
    done = node.run(*words)
    assert (done.code, done.err) == (0, "")
    assert node.target.asked(op) == asked
    assert node.run(*words, "--json").json["images"] == 3


@pytest.mark.parametrize("word", ["a", "a=", "=x"])
def test_a_snapshot_needs_a_volume_and_a_name(node: FakeNode, word: str) -> None:
    done = node.run("volume", "snapshot", word)
    assert done.code == 3 and "VOLUME=SNAPSHOT" in done.err
    assert node.target.calls == []


@pytest.mark.parametrize("word", ["0:4M", "x:4M=g", "4M=g", ""])
def test_a_place_that_cannot_be_read_says_how_it_is_written(word: str) -> None:
    with pytest.raises(BadInput, match="START:LENGTH=RAID_GROUP"):
        parse_place(word)


def test_a_move_needs_a_target_or_an_end(node: FakeNode) -> None:
    assert node.run("volume", "move", "a").code == 2
    assert node.run("volume", "move", "a", "--to", "g", "--cancel").code == 2


def test_books_that_do_not_balance_are_an_integrity_error(node: FakeNode) -> None:
    node.target.answers["pool.check"] = {"problems": ["area 3 of group g is in use and free at once"], "groups": []}
    done = node.run("pool", "check")
    assert done.code == 10 and "area 3 of group g" in done.err


def test_waiting_for_a_move_ends_when_it_is_gone_from_the_status(node: FakeNode) -> None:
    moves = [[{"volume": "a", "areas": 4, "remaining": 2}], []]
    node.target.answers["volume.move"] = {"name": "a"}
    node.target.answers["pool.status"] = lambda _args: {"area_bytes": 4 << 20, "moves": moves.pop(0)}
    done = node.run("volume", "move", "a", "--to", "g", "--wait", "--json")
    assert done.code == 0 and moves == []


def test_taking_a_volume_back_or_a_group_out_asks_first(node: FakeNode) -> None:
    node.target.answers |= {"volume.list": [{"name": "a"}, {"name": "x"}], "pool.status": {"groups": [{"name": "g"}]}}
    assert node.run("volume", "rollback", "a", "x").code == 4
    assert node.run("pool", "remove-group", "g").code == 4
    assert {op for op, _ in node.target.calls} == {"volume.list", "pool.status"}
