"""Earlier instants: how people write them, what the target is asked, what people see."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from replicator.cli.asof import retained_lines
from replicator.cli.instants import parse_instant
from replicator.core.errors import BadInput
from tests.unit.replicator.cli.conftest import FakeNode

NOW = 1_780_000_000 * 10**9 + 123  # 2026-05-28T20:26:40Z
END = {"seq": 9, "epoch": 1, "time_ns": 5, "time": "1970-01-01T00:00:00.000000005Z"}
WINDOW = {
    "bytes": 2 << 30, "seconds": 3600, "path": None, "failed": None, "used": 12 << 20, "from": END, "to": END,
    "spans": [{"from": END, "to": {**END, "seq": 12}}],
}  # fmt: skip
VIEW = {
    "group": "g", "seq": 9, "epoch": 1, "time_ns": 5, "time": END["time"], "certain": True, "writable": False,
    "restored_bytes": 4096, "images": [{"volume": "a", "name": "a-at-9"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("now", {"newest": True}),
        ("4711", {"seq": 4711}),
        ("seq:4711", {"seq": 4711}),
        ("marker:7", {"marker": "7"}),
        ("marker:a:b", {"marker": "a:b"}),
        ("before-upgrade", {"marker": "before-upgrade"}),
        ("-90s", {"time_ns": NOW - 90 * 10**9}),
        ("-5min", {"time_ns": NOW - 300 * 10**9}),
        ("-1.5h", {"time_ns": NOW - 5400 * 10**9}),
        ("-2d", {"time_ns": NOW - 172_800 * 10**9}),
        ("2026-05-17T12:34:56Z", {"time_ns": 1_779_021_296 * 10**9}),
        ("2026-05-17 12:34:56.000000001Z", {"time_ns": 1_779_021_296 * 10**9 + 1}),
        ("2026-05-17t14:34:56.5+02:00", {"time_ns": 1_779_021_296 * 10**9 + 5 * 10**8}),
        ("2026-05-17T12:34Z", {"time_ns": 1_779_021_240 * 10**9}),
    ],
)
def test_an_instant_is_written_in_many_ways(text: str, asked: dict[str, Any]) -> None:
    assert parse_instant(text, NOW) == asked


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_time_without_a_zone_is_local(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        here = datetime.datetime.fromtimestamp(NOW // 10**9 - 7200)
        want = {"time_ns": (NOW // 10**9 - 7200) * 10**9}
        assert parse_instant(here.strftime("%Y-%m-%d %H:%M:%S"), NOW) == want
        today = datetime.datetime.fromtimestamp(NOW // 10**9).replace(hour=0, minute=0, second=0)
        assert parse_instant("00:00:00", NOW) == {"time_ns": int(today.timestamp()) * 10**9}
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "seq:x", "-5weeks", "2026-13-01T00:00:00Z", "25:00", "a b", "marker:", "2026-05"])
def test_what_is_no_instant_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadInput, match="write 2026-05-17T12:34:56Z"):
        parse_instant(text, NOW)


def test_no_instant_is_beyond_what_can_be_sent(node: FakeNode) -> None:
    assert node.run("snapshot", "g", "--at", str(1 << 64)).code == 3
    assert parse_instant("-99999999999999d", 10**18) == {"time_ns": 0}
    assert parse_instant("0001-01-01 00:00Z", 10**18) == {"time_ns": 0}


def test_a_time_to_come_is_refused() -> None:
    with pytest.raises(BadInput, match="has not come yet"):
        parse_instant("2999-01-01T00:00:00Z", NOW)


def test_a_view_is_asked_for_and_told_exactly(node: FakeNode) -> None:
    node.target.answers["group.view"] = VIEW
    done = node.run("snapshot", "g", "--at", "9", "--name", "x", "--writable")
    assert (done.code, done.err) == (0, "")
    assert node.target.asked("group.view") == {"group": "g", "seq": 9, "suffix": "x", "writable": True}
    assert "a-at-9: group g after record 9 in epoch 0 of 000001, written 1970-01-01T00:00:00.000000005Z" in done.out
    assert node.run("snapshot", "g", "--at", "-5min", "--json").json == VIEW
    node.target.answers["group.view"] = {**VIEW, "certain": False}
    assert "may not have arrived" in node.run("snapshot", "g", "--at", "-5min").out


def test_retention_is_shown_set_and_ended(node: FakeNode) -> None:
    node.target.answers["group.retention"] = {"keep_image": True, "retention": WINDOW}
    done = node.run("group", "retention", "g", "--bytes", "2G", "--time", "3600", "--no-keep-image")
    assert node.target.asked("group.retention") == {
        "group": "g", "bytes": 2 << 30, "seconds": 3600.0, "keep_image": False,
    }  # fmt: skip
    assert "2 GiB" in done.out and "(seq 9) to" in done.out and "(seq 12)" in done.out and "1 h 0 min" in done.out
    node.target.answers["group.retention"] = {"keep_image": True, "retention": None}
    assert "off" in node.run("group", "retention", "g", "--off", "-y").out
    assert node.target.asked("group.retention") == {"group": "g", "off": True}
    assert node.run("group", "retention", "g", "--off", "--bytes", "1G").code == 2
    assert node.run("group", "retention", "g", "--off").code == 4, "forgetting is asked about"


def test_status_tells_of_the_window_and_of_a_kept_image() -> None:
    kept = {"seq": 7, "epoch": 1, "time_ns": 5, "time": END["time"], "names": ["a-before-resync"]}
    first, second = retained_lines({"name": "g", "retention": WINDOW, "kept_image": kept})
    assert "record 7 (1970-01-01" in first and "a-before-resync" in first
    assert "farstripe snapshot g --at" in second and "(seq 12)" in second
    failed = {**WINDOW, "failed": "EIO"}
    [line] = retained_lines({"name": "g", "retention": failed, "kept_image": None})
    assert "no longer kept: EIO" in line
    assert retained_lines({"name": "g", "retention": None, "kept_image": None}) == []
