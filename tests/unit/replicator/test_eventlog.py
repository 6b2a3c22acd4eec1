"""The event log: numbering, bounds, torn lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator import eventlog
from replicator.eventlog import EventLog


def test_events_are_listed_in_order_with_their_data(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.add("volume.created", "volume a created", size=4096)
    log.add("volume.deleted", "volume a deleted")
    first, second = log.since()
    assert (first["n"], first["kind"], first["data"]) == (1, "volume.created", {"size": 4096})
    assert (second["n"], second["text"]) == (2, "volume a deleted")


def test_since_leaves_out_what_was_seen(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for i in range(5):
        log.add("x.y", str(i))
    assert [e["n"] for e in log.since(3)] == [4, 5]


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.add("x.y", "before")
    log.close()
    log = EventLog(tmp_path / "events.jsonl")
    log.add("x.y", "after")
    assert [(e["n"], e["text"]) for e in log.since()] == [(1, "before"), (2, "after")]


def test_a_line_torn_by_a_crash_is_skipped_and_hides_nothing_else(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.add("x.y", "whole")
    log.close()
    with (tmp_path / "events.jsonl").open("a") as f:
        f.write('{"n": 2, "text": "to')
    log = EventLog(tmp_path / "events.jsonl")
    log.add("x.y", "later")
    assert [e["text"] for e in log.since()] == ["whole", "later"]


def test_the_log_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "KEEP", 10)
    log = EventLog(tmp_path / "events.jsonl")
    for i in range(35):
        log.add("x.y", str(i))
    kept = [e["n"] for e in log.since(limit=100)]
    assert kept == list(range(21, 36))
    log.close()
    assert EventLog(tmp_path / "events.jsonl").since()[-1]["n"] == 35


def test_an_event_after_close_is_dropped(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.close()
    log.add("x.y", "late")
    assert log.since() == []


def test_a_full_disk_loses_events_and_disturbs_nobody(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with Path("/dev/full").open("a", encoding="utf-8") as log._file:
        log.add("volume.created", "volume a created")
        log.close()
