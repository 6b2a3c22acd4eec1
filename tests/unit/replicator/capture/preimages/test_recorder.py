"""When recording begins, ends, or gives way to replication."""

from __future__ import annotations

import random
from typing import Any

import pytest

from replicator.capture import follower, roles
from replicator.capture.preimages import instants
from replicator.core.errors import NotFound, Refused
from replicator.core.markers import Marker
from replicator.core.records import Kind
from replicator.journal.beacons import NOTHING, Beacon
from replicator.journal.page import APPLIED_SEQ, HEAD_SEQ
from tests.testing.pairharness import Pair
from tests.testing.retaining import NOTE, Histories, RetainingSide, check_views, retaining_pair, shrink_frames


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    shrink_frames(monkeypatch)
    return retaining_pair()[0]


def side(pair: Pair) -> RetainingSide:
    assert isinstance(pair.b, RetainingSide)
    return pair.b


def views(pair: Pair) -> int:
    known = Histories(pair)
    return check_views(side(pair), known, random.Random(0))


def test_what_is_overwritten_is_on_stable_storage_before_the_pool_is_changed(pair: Pair) -> None:
    pair.a.write(0, 1)
    pair.a.write(0, 2)
    pair.ship(pair.a, pair.b)
    order: list[tuple[str, str]] = []
    pair.b.disk.trace = lambda op, file, *_: order.append((op, file))
    follower.apply_all(pair.b.engine)
    assert order == [
        ("sync", "journal"), ("write", "preimages"), ("sync", "preimages"), ("write", "volume0"), ("write", "volume0")
    ]  # fmt: skip


def test_a_ring_that_cannot_be_written_ends_recording_durably_and_replication_goes_on(pair: Pair) -> None:
    b = side(pair)
    pair.a.write(0, 1)
    pair.ship(pair.a, b)
    order: list[tuple[str, str]] = []
    b.disk.fail_next_sync("preimages")
    b.disk.trace = lambda op, file, *_: order.append((op, file))
    follower.apply_all(b.engine)
    assert b.image()[0][0] == 1 and "cannot be recorded" in b.recorder.failed
    assert order.index(("write_durable", NOTE)) < order.index(("write", "volume0"))
    b.disk.trace = None
    b.power_cut()
    b.start()
    assert b.engine.preimages is None


def test_nothing_is_applied_unrecorded_while_that_cannot_be_noted(pair: Pair) -> None:
    b = side(pair)
    pair.a.write(0, 1)
    pair.ship(pair.a, b)
    b.disk.fail_next_sync("preimages")
    b.disk.fail_writes(NOTE)
    for _ in range(2):
        with pytest.raises(OSError):
            follower.apply_some(b.engine)
    assert b.image()[0][0] == 0 and not b.recorder.failed
    b.disk.heal(NOTE)
    follower.apply_all(b.engine)
    assert b.image()[0][0] == 1 and b.recorder.failed


def test_bytes_that_cannot_be_read_cost_the_window_and_not_the_write(pair: Pair) -> None:
    b = side(pair)
    pair.a.write(0, 1)
    pair.flow(pair.a, b)
    b.disk.fail_reads("volume0", 0, 4096)
    pair.a.write(0, 2)
    pair.a.write(8192, 3)
    pair.flow(pair.a, b)
    assert b.image()[0][0] == 2 and not b.recorder.failed
    assert b.window.base.seq == b.window.last.seq == b.page[HEAD_SEQ]
    pair.a.write(0, 4)
    pair.flow(pair.a, b)
    assert views(pair) == 2


def test_a_discard_of_more_than_the_ring_holds_begins_a_new_window(pair: Pair) -> None:
    pair.a.write(0, 9, length=220 << 10)
    pair.flow(pair.a, pair.b)
    pair.a.engine.zero(0, 0, 220 << 10, True, trim=True)
    pair.a.write(0, 1)
    pair.flow(pair.a, pair.b)
    assert side(pair).window.base.seq == pair.b.page[HEAD_SEQ] - 1
    assert views(pair) == 2


def test_a_marker_is_found_by_its_name_and_number(pair: Pair) -> None:
    a, b = pair.a, side(pair)
    a.write(0, 1)
    with a.engine.lock:
        seq = a.engine.append_control(Kind.MARKER, payload=Marker(77, "before-upgrade", "a" * 32, 1).pack())
    a.write(0, 2)
    pair.flow(a, b)
    applied = b.page[APPLIED_SEQ]
    for name in ("before-upgrade", "77"):
        place = instants.at_marker(b.window, name, applied)
        assert place.instant.seq == seq and b.view(place)[0][0] == 1
    with pytest.raises(NotFound, match="no marker 'other'"):
        instants.at_marker(b.window, "other", applied)
    with pytest.raises(NotFound):
        instants.at_marker(b.window, "77", seq - 1)


def test_a_time_means_the_last_record_not_later(pair: Pair) -> None:
    a, b = pair.a, side(pair)
    pair.a.write(0, 1)
    pair.a.write(0, 2)
    pair.flow(a, b)
    *_, one, two = b.instants()
    applied = b.page[APPLIED_SEQ]
    assert instants.at_time(b.window, one.time_ns, applied).instant == one
    assert instants.at_time(b.window, two.time_ns - 1, applied).instant == one
    assert instants.at_time(b.window, two.time_ns + 10**12, applied).instant == two
    assert instants.at_time(b.window, two.time_ns, one.seq).instant == one, "what was not applied is not there yet"
    place = instants.at_time(b.window, two.time_ns + 5, applied)
    before = instants.at_time(b.window, one.time_ns, applied)
    assert instants.is_final(before, one.time_ns, applied, NOTHING)
    assert not instants.is_final(place, two.time_ns + 5, applied, NOTHING)
    assert not instants.is_final(place, two.time_ns + 5, applied, Beacon(applied, two.time_ns + 4))
    assert not instants.is_final(place, two.time_ns + 5, applied, Beacon(applied + 1, two.time_ns + 9)), "not applied"
    assert instants.is_final(place, two.time_ns + 5, applied, Beacon(applied, two.time_ns + 5))
    with pytest.raises(Refused, match=r"not in the window .*seq \d+ \(2023-"):
        instants.at_time(b.window, 5, applied)


def test_instants_of_a_resync_are_refused_and_those_before_it_stay(pair: Pair) -> None:
    a, b = pair.a, side(pair)
    a.write(0, 1)
    pair.flow(a, b)
    before = b.window.last
    roles.overflow(a.engine)
    a.write(0, 2)
    pair.meet()
    Histories(pair).look()
    pair.flow(a, b)
    applied = b.page[APPLIED_SEQ]
    with pytest.raises(Refused, match="being resynced"):
        instants.at_seq(b.window, b.window.spans[-1].first.seq - 1, applied)
    place = instants.at_seq(b.window, before.seq, applied)
    assert place.instant == before and b.view(place)[0][0] == 1
    assert instants.newest(b.window, applied).instant == b.window.last


def test_received_records_that_are_given_up_were_never_there(pair: Pair) -> None:
    b = side(pair)
    pair.a.write(0, 1)
    pair.a.write(8192, 2)
    pair.ship(pair.a, b)
    b.disk.fail_writes("volume0", 8192, 12_288)
    with pytest.raises(OSError):
        follower.apply_all(b.engine)
    assert b.window.last.seq == b.page[APPLIED_SEQ] + 1
    b.recorder.leave(b.page[APPLIED_SEQ])
    assert not b.window.active


def test_a_request_names_one_instant() -> None:
    good: list[dict[str, Any]] = [{"seq": 0}, {"time_ns": 5}, {"marker": "m"}, {"newest": True}]
    for one in good:
        assert instants.target_of(one) == next(iter(one.items()))
    bad: list[dict[str, Any]] = [
        {}, {"seq": 1, "marker": "m"}, {"seq": -1}, {"seq": "1"}, {"seq": True}, {"newest": 1}, {"marker": ""},
        {"time_ns": 1 << 63}, {"time_ns": 1.5},
    ]  # fmt: skip
    for one in bad:
        with pytest.raises(Exception, match=r"instant|cannot be|named by"):
            instants.target_of(one)
