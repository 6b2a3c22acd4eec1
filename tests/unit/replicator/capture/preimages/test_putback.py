"""Which bytes are still to be put back: against a set of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.preimages.putback import Restored

SPACE = 5 * 4096
ranges = st.one_of(
    st.tuples(st.integers(0, SPACE - 1), st.integers(1, 9000)),
    st.tuples(st.integers(0, 4).map(lambda n: n * 4096), st.sampled_from((4096, 8192, 12_288))),
)


@given(st.lists(ranges, max_size=12))
def test_each_byte_is_given_out_once_and_none_is_left_out(taken: list[tuple[int, int]]) -> None:
    restored, model = Restored(), set[int]()
    for offset, length in taken:
        wanted = set(range(offset, offset + length))
        gaps = restored.take(offset, length)
        assert all(begin < end for begin, end in gaps)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(gaps)), "rising, and joined where they meet"
        given_out = {byte for begin, end in gaps for byte in range(begin, end)}
        assert given_out == wanted - model
        model |= wanted


def test_a_range_of_a_terabyte_is_taken_in_one_piece() -> None:
    restored = Restored()
    assert restored.take(4096, 1 << 34) == [(4096, (1 << 34) + 4096)]
    assert restored.take(0, 1 << 34) == [(0, 4096)]
    assert restored.take(1 << 33, 4096) == []
