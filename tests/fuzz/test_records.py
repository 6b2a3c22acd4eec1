"""The record decoder on mutated runs: held against a decoder that is slow and plain."""

from __future__ import annotations

import random

from crc32c import crc32c

from replicator.core.records import (
    FLAG_FUA,
    FLAG_NUMBERED,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    BadRecord,
    Header,
    Kind,
    check_payload,
    pack_number,
    unpack_header,
)
from replicator.core.runs import Run, iter_run, parse_run
from tests.fuzz.mutate import EPOCH, EXECUTIONS, FACTOR, change_header, executions, mutate_bytes, record


def right_runs(rng: random.Random, count: int) -> list[bytes]:
    """Runs of one to five records, with barriers, trims, changes of epoch."""
    runs = []
    for _ in range(count):
        seq, epoch, parts = rng.randrange(1, 20), EPOCH, []
        for _ in range(rng.randrange(1, 6)):
            kind = rng.choice((Kind.WRITE, Kind.WRITE, Kind.TRIM, Kind.BARRIER, Kind.EPOCH))
            epoch += (1 << 24) if kind == Kind.EPOCH else 0
            payload = rng.randbytes(rng.choice((1, 16, 100))) if kind == Kind.WRITE else b""
            flags = rng.choice((0, 0, FLAG_FUA))
            if rng.random() < 0.2:
                flags, payload = flags | FLAG_NUMBERED, payload + pack_number(seq * 2, 7)
            parts.append(record(seq, payload, epoch, kind, flags))
            seq += 1
        runs.append(b"".join(parts))
    return runs


def mutated(runs: list[bytes], rng: random.Random) -> bytes:
    """One run of the list, mutated; or two joined; now and then a right one."""
    data = runs[rng.getrandbits(16) % len(runs)]
    how = rng.getrandbits(4)
    if how == 0:
        return data
    if how == 1:
        return data + runs[rng.getrandbits(16) % len(runs)]
    if how < 7:  # a header that is whole and says something else
        at = 0
        for _ in range(rng.getrandbits(2)):
            after = at + HEADER_BYTES + int.from_bytes(data[at + 36 : at + 40], "little")
            at = after if after < len(data) else at
        return data[:at] + change_header(unpack_header(data, at), rng) + data[at + HEADER_BYTES :]
    return mutate_bytes(data, rng)


def plain_header(data: bytes, at: int) -> Header | None:
    """The header at `at`, None when it is none."""
    raw = data[at : at + 64]
    number = [int.from_bytes(raw[a:b], "little") for a, b in ((8, 16), (16, 24), (24, 32), (32, 36), (36, 40))]
    if len(raw) < 64 or raw[:4] != b"FSR1" or raw[6:8] != (b"\x02\x00" if raw[5] & 4 else b"\x01\x00"):
        return None
    if raw[5] & 4 and number[4] < 12:
        return None
    if crc32c(raw[:60]).to_bytes(4, "little") != raw[60:] or number[4] > MAX_PAYLOAD_BYTES:
        return None
    rest = [int.from_bytes(raw[a:b], "little") for a, b in ((40, 48), (48, 56), (56, 60))]
    return Header(raw[4], raw[5], *number, *rest)


def plain_parse(data: bytes, expect: int, min_epoch: int) -> Run | None:
    """What parse_run's docstring says, record by record; None for BadRecord."""
    at = begin = count = last_time = 0
    durable, last_seq, last_epoch = False, expect - 1, min_epoch
    while at + 64 <= len(data):
        header = plain_header(data, at)
        if header is None:
            return None
        end = at + 64 + header.payload_len
        if end > len(data):
            break
        if header.payload_len and crc32c(data[at + 64 : end]) != header.payload_crc:
            return None
        if header.seq <= last_seq and not count:
            if header.epoch > last_epoch:
                return None
            at = begin = end
            continue
        known = header.epoch == last_epoch
        known = known or (header.epoch > last_epoch and (not count or header.kind == Kind.EPOCH))
        if header.seq != last_seq + 1 or not known:
            return None
        durable = durable or header.kind == Kind.BARRIER or bool(header.flags & FLAG_FUA)
        last_seq, last_epoch, last_time = header.seq, header.epoch, header.write_time
        count, at = count + 1, end
    return Run(begin, at, last_seq, last_epoch, count, durable, last_time)


def test_parse_run_takes_what_a_plain_decoder_takes_and_nothing_else() -> None:
    runs = right_runs(random.Random(1), 200)
    done = taken = 0
    for number, rng in executions("parse_run"):
        data = mutated(runs, rng)
        first = int.from_bytes(data[16:24], "little") & 0xFFFF  # a seq near it makes most of the run count
        expect = max(1, first + (0, 0, 1, 3, -1)[number % 5])
        min_epoch = (EPOCH, 0, EPOCH - 1, EPOCH + (1 << 24))[number & 3]
        # in the middle of a buffer whose neighbours would be taken: a read beyond the end shows
        view = memoryview(runs[0] + data + runs[1])[len(runs[0]) : len(runs[0]) + len(data)]
        try:
            found: Run | None = parse_run(view, expect, min_epoch)
        except BadRecord:
            found = None
        if number % 3 == 0:
            assert found == plain_parse(data, expect, min_epoch), (data.hex(), expect, min_epoch)
        if found is not None and found.records:
            assert 0 <= found.begin < found.end <= len(data) and found.last_seq == expect + found.records - 1
            taken += 1
        done += 1
    assert done == EXECUTIONS["parse_run"] * FACTOR and taken > done // 10


def test_iter_run_gives_whole_records_with_right_crcs_only() -> None:
    runs = right_runs(random.Random(2), 200)
    done = 0
    for number, rng in executions("iter_run"):
        data = mutated(runs, rng)
        try:
            found = iter_run(memoryview(data))
        except BadRecord:
            found = []
        if number % 3 == 0:
            for header, at in found:
                assert plain_header(data, at - HEADER_BYTES) == header
                payload = data[at : at + header.payload_len]
                assert len(payload) == header.payload_len and (not payload or crc32c(payload) == header.payload_crc)
        done += 1
    assert done == EXECUTIONS["iter_run"] * FACTOR


def test_unpack_header_takes_what_a_plain_decoder_takes() -> None:
    runs = right_runs(random.Random(3), 200)
    done = 0
    for number, rng in executions("unpack_header"):
        data = mutated(runs, rng)
        at = number % (len(data) + 70) if number & 1 else 0
        try:
            header: Header | None = unpack_header(data, at)
        except BadRecord:
            header = None
        if number % 3 == 0:
            assert header == (plain_header(data, at) if at <= len(data) else None)
            if header is not None:
                body = data[at + HEADER_BYTES : at + HEADER_BYTES + header.payload_len]
                try:
                    check_payload(header, body)
                except BadRecord:
                    pass
                else:
                    assert len(body) == header.payload_len and (not body or crc32c(body) == header.payload_crc)
        done += 1
    assert done == EXECUTIONS["unpack_header"] * FACTOR


def test_there_are_a_million_executions() -> None:
    assert sum(EXECUTIONS.values()) >= 1_000_000
