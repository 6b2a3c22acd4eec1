from __future__ import annotations

import pytest

from raidlib.geometry import Geometry
from raidlib.stripejournal import COLUMNS, PUNCHED, Entry, decode, encode, journal_bytes

GENERATION = 3
SESSION = GENERATION << 32


def record(number: int, row: int = 9, session: int = SESSION) -> bytes:
    columns = {0: (512, memoryview(b"data" * 100)), 4: (0, memoryview(b"parity" * 99))}
    return encode(session, number, COLUMNS, row, columns)


def rows(journal: bytes) -> list[int]:
    return [entry.row for _, _, entry in decode(journal, GENERATION)]


def test_what_is_encoded_is_decoded() -> None:
    [(session, number, entry)] = decode(record(0), GENERATION)
    assert (session, number) == (SESSION, 0)
    assert entry == Entry(COLUMNS, 9, {0: (512, b"data" * 100), 4: (0, b"parity" * 99)})


def test_a_punched_area_needs_no_columns() -> None:
    [(_, _, entry)] = decode(encode(SESSION, 0, PUNCHED, 7, {}), GENERATION)
    assert entry == Entry(PUNCHED, 7, {})


def test_records_follow_one_another() -> None:
    assert rows(record(0, 1) + record(1, 2) + record(2, 3) + bytes(4096)) == [1, 2, 3]


@pytest.mark.parametrize("byte", [0, 4, 8, 16, 20, 24, 33, 70, 600])
def test_the_first_damaged_record_ends_the_journal(byte: int) -> None:
    journal = bytearray(record(0, 1) + record(1, 2) + record(2, 3))
    journal[len(record(0)) + byte] ^= 1
    assert rows(bytes(journal)) == [1]


def test_what_an_older_session_left_behind_is_not_taken() -> None:
    assert rows(record(0, 1, SESSION + 1) + record(1, 2, SESSION)) == [1]


def test_a_journal_of_another_start_is_not_taken() -> None:
    assert rows(record(0, 1, (GENERATION - 1) << 32)) == []


def test_a_record_that_claims_to_be_longer_than_the_journal_is_not_taken() -> None:
    assert rows(record(0)[:512]) == []


@pytest.mark.parametrize(("level", "members", "chunk"), [(5, 3, 4096), (6, 6, 65536), (6, 32, 1 << 20)])
def test_there_is_room_for_a_whole_row(level: int, members: int, chunk: int) -> None:
    geometry = Geometry(level, members, chunk, 1 << 26)
    columns = {c: (0, memoryview(bytes(chunk))) for c in range(members)}
    assert journal_bytes(geometry, 1 << 20) >= len(encode(SESSION, 0, COLUMNS, 0, columns))


def test_levels_without_parity_need_none() -> None:
    assert journal_bytes(Geometry(1, 2, 4096, 65536), 1 << 30) == 0
