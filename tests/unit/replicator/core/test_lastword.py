"""What a secondary may say of what is missing, from what was said last."""

from __future__ import annotations

from replicator.core.lastword import LastWord
from replicator.core.records import HEADER_BYTES

SECOND = 10**9
NONE = 0, 0
T = 1_000_000 * SECOND
"""The primary's clock, which has nothing to do with ours."""


def beat(head: int, unsent: int = 0, at_s: float = 0.0, sent: int | None = None) -> tuple[int, int, int, int, int]:
    return head, unsent, head, T + int(at_s * SECOND), head if sent is None else sent


def test_nothing_is_known_before_the_first_word() -> None:
    word = LastWord()
    assert word.facts(7, 700, NONE, 1.0) == {"writes": 0, "bytes": 0, "whole": True, "more": False, "age_s": None,
                                          "newer": False}  # fmt: skip


def test_writes_and_bytes_are_counted_from_one_moment() -> None:
    word = LastWord()
    word.heard(beat(20, unsent=5000, sent=10), held_seq=10, held_off=1000, now=5.0)
    told = {"whole": True, "more": False, "newer": False}
    assert word.facts(10, 1000, NONE, 5.5) == {"writes": 10, "bytes": 5000, "age_s": 0.5, **told}
    assert word.facts(14, 3000, NONE, 6.0) == {"writes": 6, "bytes": 3000, "age_s": 1.0, **told}
    assert word.facts(22, 7000, NONE, 6.0)["bytes"] == 0


def test_the_word_gets_old_where_nothing_comes() -> None:
    word = LastWord()
    word.heard(beat(10), 10, 1000, 5.0)
    word.heard(beat(10, at_s=1.0), 10, 1000, 6.0)
    assert word.age_s(9.5) == 3.5


def test_a_word_that_lay_behind_records_is_as_old_as_it_is() -> None:
    word = LastWord()
    word.heard(beat(10), 10, 1000, 5.0)
    word.heard(beat(10, at_s=1.0), 10, 1000, 20.0)
    assert word.age_s(20.0) == 14.0
    again = word.of(word.epoch)
    assert again.age_s(21.0) is None, "another link: nothing was said over it"
    again.heard(beat(10, at_s=2.0), 10, 1000, 21.0)
    assert again.age_s(21.0) == 14.0, "but how the clocks differ is known"
    other = word.of(7)
    other.heard(beat(10, at_s=2.0), 10, 1000, 21.0)
    assert other.age_s(21.0) == 0.0, "somebody else's clock"


def test_what_lies_here_and_cannot_be_taken_is_known_to_exist() -> None:
    word = LastWord()
    word.heard(beat(10), 10, 1000, 5.0)
    found = word.facts(10, 1000, (11, 4096), 5.1)
    assert (found["writes"], found["more"], found["whole"]) == (1, True, False)
    assert found["bytes"] == 4096
    assert word.facts(10, 1000, (11, 20), 5.1)["bytes"] == HEADER_BYTES, "no record is smaller"


def test_bytes_under_way_on_another_connection_are_not_counted_as_none() -> None:
    word = LastWord()
    word.heard(beat(20, unsent=0, sent=20), held_seq=12, held_off=1000, now=5.0)
    found = word.facts(12, 1000, NONE, 5.0)
    assert (found["writes"], found["whole"], found["bytes"]) == (8, False, 8 * HEADER_BYTES)


def test_what_a_node_in_the_middle_passes_on_at_first_may_be_old() -> None:
    word = LastWord()
    for seconds, newer in ((0, False), (1, False), (1, False), (2, False), (3, True)):
        word.heard(beat(10, at_s=seconds), 10, 1000, 5.0 + seconds)
        assert word.facts(10, 1000, NONE, 5.0 + seconds)["newer"] is newer
