"""The list of a journal's records: their order, times and places."""

from __future__ import annotations

import pytest

from replicator.capture.follower import checkpoint
from replicator.capture.recordlog import records_from
from replicator.core.errors import IntegrityError
from replicator.journal.page import HEAD_OFF, HEAD_SEQ
from tests.testing.pairharness import PEER_DURABLE_OFF, PEER_DURABLE_SEQ, running_pair


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
