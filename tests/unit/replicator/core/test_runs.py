"""Runs of records: what a receiver takes from bytes that may be cut, repeated, damaged or foreign."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.records import FLAG_FUA, HEADER_BYTES, BadRecord, Kind, pack_header
from replicator.core.runs import Run, iter_run, parse_run

E1, E2 = 1 << 24 | 7, 2 << 24 | 3


def record(seq: int, payload: bytes = b"", epoch: int = E1, kind: int = Kind.WRITE, flags: int = 0) -> bytes:
    crc = crc32c(payload) if payload else 0
    return pack_header(kind, flags, epoch, seq, seq, 0, len(payload), 0, len(payload), crc) + payload


payloads = st.lists(st.binary(max_size=80), min_size=1, max_size=8)


@given(payloads, st.integers(1, 50), st.data())
@settings(max_examples=200, deadline=None)
def test_any_cut_leaves_the_whole_records_before_it(parts: list[bytes], first: int, data: st.DataObject) -> None:
    records = [record(first + n, p) for n, p in enumerate(parts)]
    run = b"".join(records)
    cut = data.draw(st.integers(0, len(run)))
    whole = 0
    while whole < len(records) and len(b"".join(records[: whole + 1])) <= cut:
        whole += 1
    found = parse_run(run[:cut], first, E1)
    assert found == Run(0, len(b"".join(records[:whole])), first + whole - 1, E1, whole, False, found.last_time_ns)


@given(payloads, st.integers(1, 50), st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_duplicates_before_the_wanted_record_are_skipped(parts: list[bytes], first: int, held: int) -> None:
    records = [record(first + n, p) for n, p in enumerate(parts)]
    held = min(held, len(records))
    run = parse_run(b"".join(records), first + held, E1)
    assert run.begin == len(b"".join(records[:held]))
    assert (run.records, run.last_seq) == (len(records) - held, first + len(records) - 1)


@given(payloads, st.data())
@settings(max_examples=400, deadline=None)
def test_any_flipped_bit_is_refused_or_cuts_the_run_before_it(parts: list[bytes], data: st.DataObject) -> None:
    records = [record(1 + n, p) for n, p in enumerate(parts)]
    run = bytearray(b"".join(records))
    at = data.draw(st.integers(0, len(run) - 1))
    run[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadRecord):
        parse_run(bytes(run), 1, E1)


@given(st.binary(min_size=HEADER_BYTES, max_size=300))
def test_foreign_bytes_are_refused(garbage: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_run(garbage, 1, 0)


def test_a_gap_is_refused() -> None:
    with pytest.raises(BadRecord, match="follows"):
        parse_run(record(5), 4, E1)
    with pytest.raises(BadRecord, match="follows"):
        parse_run(record(4) + record(6), 4, E1)


def test_a_repetition_inside_a_run_is_refused() -> None:
    with pytest.raises(BadRecord):
        parse_run(record(4) + record(4), 4, E1)


def test_an_older_epoch_is_refused() -> None:
    with pytest.raises(BadRecord, match="older"):
        parse_run(record(4, epoch=E1), 4, E2)


def test_a_newer_epoch_begins_with_its_record_only() -> None:
    run = parse_run(record(4) + record(5, epoch=E2, kind=Kind.EPOCH) + record(6, epoch=E2), 4, E1)
    assert (run.records, run.last_epoch) == (3, E2)
    with pytest.raises(BadRecord, match="not announced"):
        parse_run(record(4) + record(5, epoch=E2), 4, E1)


def test_a_barrier_or_a_fua_write_wants_to_be_durable() -> None:
    assert not parse_run(record(1, b"x"), 1, 0).wants_durable
    assert parse_run(record(1, b"x", flags=FLAG_FUA), 1, 0).wants_durable
    assert parse_run(record(1, kind=Kind.BARRIER), 1, 0).wants_durable
    assert not parse_run(record(1, kind=Kind.BARRIER) + record(2), 2, E1).wants_durable, "it was durable once"


def test_iter_run_gives_headers_and_payload_offsets() -> None:
    found = iter_run(memoryview(record(1, b"abc") + record(2, b"de") + record(3, b"cut")[:-1]))
    assert [(h.seq, at) for h, at in found] == [(1, HEADER_BYTES), (2, 2 * HEADER_BYTES + 3)]


def test_iter_run_finds_rot() -> None:
    bad = bytearray(record(1, b"abc"))
    bad[-1] ^= 1
    with pytest.raises(BadRecord):
        iter_run(memoryview(bad))


def test_a_duplicate_of_a_newer_epoch_than_what_is_held_is_of_another_history() -> None:
    with pytest.raises(BadRecord, match="newer than"):
        parse_run(record(1, epoch=E2) + record(2, epoch=E2), 2, E1)
    assert parse_run(record(1, epoch=E1) + record(2, epoch=E2), 2, E1).records == 1
