"""The list of a journal's records: their order, times and places."""

from __future__ import annotations

import pytest

from replicator.capture.follower import checkpoint
from replicator.capture.numbers import Numbers
from replicator.capture.recordlog import records_from
from replicator.core.errors import IntegrityError
from replicator.core.markers import Marker, host_time_payload
from replicator.core.records import Header, Kind
from replicator.journal.page import HEAD_OFF, HEAD_SEQ
from tests.testing.pairharness import PEER_DURABLE_OFF, PEER_DURABLE_SEQ, Side, running_pair


def test_records_are_listed_in_their_order_with_what_they_touch() -> None:
    a = running_pair().a
    first = a.engine.write(0, 4096, b"x" * 512, fua=True)
    second = a.engine.zero(0, 8192, 4096, punch=True)
    found = records_from(a.engine, first - 1, 10)
    assert found["last"] == second
    shown = [(one["seq"], one["kind"], one["offset"], one["length"], one["fua"]) for one in found["records"]]
    assert shown == [(first, "write", 4096, 512, True), (second, "zero", 8192, 4096, False)]
    assert found["records"][0]["volume"] == a.engine.state.volumes[0]["name"]
    times = [one["time_ns"] for one in records_from(a.engine, 0, 1000)["records"]]
    assert times == sorted(set(times))


def test_a_limit_and_a_start_are_kept() -> None:
    a = running_pair().a
    last = 0
    for n in range(5):
        last = a.engine.write(0, n * 4096, b"y" * 512)
    assert [one["seq"] for one in records_from(a.engine, last - 3, 2)["records"]] == [last - 2, last - 1]
    assert records_from(a.engine, last, 10)["records"] == []


def test_what_was_freed_is_not_listed() -> None:
    a = running_pair().a
    a.engine.write(0, 0, b"z" * 512)
    for durable, head in ((PEER_DURABLE_OFF, HEAD_OFF), (PEER_DURABLE_SEQ, HEAD_SEQ)):
        a.page[durable] = a.page[head]
    checkpoint(a.engine)
    found = records_from(a.engine, 0, 10)
    assert found["records"] == [] and found["first"] == found["last"] + 1


def test_damage_is_told_and_not_listed() -> None:
    a = running_pair().a
    seq = a.engine.write(0, 0, b"z" * 512)
    off = a.engine.journal.find(seq)
    a.engine.journal._write(b"\0" * 64, off)
    with pytest.raises(IntegrityError, match=f"damaged at record {seq}"):
        records_from(a.engine, 0, 1000)


def free_all(side: Side) -> None:
    for durable, head in ((PEER_DURABLE_OFF, HEAD_OFF), (PEER_DURABLE_SEQ, HEAD_SEQ)):
        side.page[durable] = side.page[head]
    checkpoint(side.engine)


def test_records_that_are_freed_in_the_middle_of_a_listing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    a = running_pair().a
    seqs = [a.engine.write(0, n * 4096, b"y" * 512) for n in range(6)]
    look, looks = a.engine.journal.header_at, []

    def header_at(off: int) -> Header:
        header = look(off)
        looks.append(header.seq)
        if header.seq == seqs[2] and looks.count(header.seq) == 1:  # it was read whole, and goes before that is used
            free_all(a)
            a.engine.write(0, 0, b"z" * 512)
        return header

    monkeypatch.setattr(a.engine.journal, "header_at", header_at)
    found = records_from(a.engine, seqs[0], 100)
    assert [one["seq"] for one in found["records"]] == [seqs[1], seqs[-1] + 1]
    assert found["freed"] == [[seqs[2], seqs[-1]]]
    assert found["first"] <= seqs[0], "what the journal held when the listing began"
    assert records_from(a.engine, seqs[0], 100)["freed"] == [], "what went before is not called freed meanwhile"


def test_records_that_nobody_asked_for_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    a = running_pair().a
    seqs = [a.engine.write(0, n * 4096, b"y" * 512) for n in range(3)]
    look = a.engine.journal.header_at

    def header_at(off: int) -> Header:
        header = look(off)
        free_all(a)
        return header

    monkeypatch.setattr(a.engine.journal, "header_at", header_at)
    assert records_from(a.engine, seqs[-1], 100)["freed"] == []


@pytest.mark.parametrize("counted", [False, True])
def test_what_a_host_has_stated_is_listed(counted: bool) -> None:
    a = running_pair().a
    if counted:
        a.engine.numbers = Numbers({}, 1)
    with a.engine.lock:
        seq = a.engine.append_control(Kind.MARKER, payload=host_time_payload(12345))
        a.engine.append_control(Kind.MARKER, payload=Marker(1 << 24, "m", "a" * 32, 1).pack())
    a.engine.write(0, 0, b"z" * 512)
    found = records_from(a.engine, seq - 1, 100)["records"]
    assert [one["host_time_ns"] for one in found] == [12345, None, None]
    assert [one["number"] for one in found] == ([1, 2, 3] if counted else [None] * 3)
