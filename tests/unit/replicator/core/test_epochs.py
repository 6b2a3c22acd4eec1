"""Comparing histories, against a model that keeps every record."""

import random

import pytest

from replicator.core.epochs import (
    Relation,
    check_hist,
    common_position,
    compare,
    counter_of,
    epochs_of_tail,
    make_epoch,
    next_epoch,
    node_tag,
    tag_of,
)

A, B = 0xAAAAAA, 0xBBBBBB
E1A, E2A, E2B, E3B = make_epoch(1, A), make_epoch(2, A), make_epoch(2, B), make_epoch(3, B)


def test_epoch_packs_counter_and_tag():
    assert (counter_of(E3B), tag_of(E3B)) == (3, B)
    assert node_tag("abcdef" + "0" * 26) == 0xABCDEF
    assert next_epoch([], A) == E1A
    assert next_epoch([(E1A, 0)], B) == E2B


@pytest.mark.parametrize(("counter", "tag"), [(0, 1), (1 << 40, 1), (1, 1 << 24), (1, -1)])
def test_epoch_parts_out_of_range_are_refused(counter: int, tag: int):
    with pytest.raises(ValueError, match="out of range"):
        make_epoch(counter, tag)


@pytest.mark.parametrize("hist", [[(E2A, 5), (E1A, 6)], [(E1A, 5), (E2A, 4)], [(E2A, 0), (E2B, 3)]])
def test_history_out_of_order_is_refused(hist: list):
    with pytest.raises(ValueError, match="out of order"):
        check_hist(hist)


@pytest.mark.parametrize(
    ("x", "y", "relation", "shared", "y_tail"),
    [
        (([(E1A, 0)], 10), ([(E1A, 0)], 10), Relation.SAME, 10, 0),
        (([(E1A, 0)], 10), ([(E1A, 0)], 7), Relation.SAME, 7, 0),
        (([(E1A, 0)], 7), ([(E1A, 0)], 10), Relation.PARTED, 7, 3),
        (([(E1A, 0), (E2B, 5)], 9), ([(E1A, 0)], 5), Relation.BEHIND, 5, 0),
        (([(E1A, 0), (E2B, 5)], 9), ([(E1A, 0)], 8), Relation.PARTED, 5, 3),
        (([(E1A, 0)], 8), ([(E1A, 0), (E2B, 5)], 9), Relation.OUTDATED, 5, 4),
        (([(E1A, 0), (E2A, 8)], 20), ([(E1A, 0), (E2B, 5)], 9), Relation.FORKED, 5, 4),
        (([(E2A, 0)], 20), ([(E2B, 0)], 9), Relation.UNRELATED, 0, 9),
        (([(E1A, 0)], 20), ([], 0), Relation.FRESH, 0, 0),
        (([], 0), ([(E1A, 0)], 4), Relation.UNRELATED, 0, 4),
    ],
)
def test_compare_names_the_relation(x: tuple, y: tuple, relation: Relation, shared: int, y_tail: int):
    found = compare(*x, *y)
    assert (found.relation, found.shared_upto, found.y_tail) == (relation, shared, y_tail)


def test_lists_that_lost_their_oldest_entries_are_aligned():
    long = [(E1A, 0), (E2B, 5), (E3B, 9)]
    assert compare(long, 20, long[1:], 15).relation is Relation.SAME
    assert compare(long[1:], 20, long, 15).relation is Relation.SAME
    assert compare(long[2:], 20, long[:2], 8).relation is Relation.UNRELATED
    assert common_position(long, 20, long[1:], 15) == 15


def test_tail_epochs_are_those_with_records_beyond_the_common_point():
    hist = [(E1A, 0), (E2B, 5), (E3B, 9)]
    assert epochs_of_tail(hist, 12, 9) == [E3B]
    assert epochs_of_tail(hist, 12, 7) == [E2B, E3B]
    assert epochs_of_tail(hist, 9, 9) == []


def _random_node_pair(rng: random.Random) -> tuple:
    """Two nodes that write, follow, part and fall back; each keeps the full list of its records as (epoch, seq)."""
    first: list = [(E1A, n) for n in range(1, rng.randint(2, 6))]
    nodes = [[[(E1A, 0)], list(first)], [[(E1A, 0)], first[: rng.randint(1, len(first))]]]
    counter = 2
    for _ in range(rng.randint(0, 6)):
        who = rng.randrange(2)
        hist, records = nodes[who]
        act = rng.random()
        if act < 0.4:
            epoch = make_epoch(counter, (A, B)[who])
            counter += 1
            hist.append((epoch, len(records)))
            records.append((epoch, len(records) + 1))
        elif act < 0.7:
            records += [(hist[-1][0], len(records) + 1 + n) for n in range(rng.randint(1, 3))]
        else:
            source_hist, source = nodes[1 - who]
            keep = rng.randint(0, len(source))
            if source[: len(records)] == records and keep >= len(records):
                nodes[who] = [[e for e in source_hist if e[1] < keep], source[:keep]]
    return nodes[0], nodes[1]


def test_comparison_agrees_with_full_lists_of_records():
    for seed in range(3000):
        (x_hist, x), (y_hist, y) = _random_node_pair(random.Random(seed))
        shared = 0
        while shared < min(len(x), len(y)) and x[shared] == y[shared]:
            shared += 1
        found = compare(x_hist, len(x), y_hist, len(y))
        assert common_position(x_hist, len(x), y_hist, len(y)) == shared, seed
        if found.relation is not Relation.OUTDATED:  # there x may also be behind its own base
            assert found.y_tail == len(y) - shared, seed
        if found.relation in (Relation.SAME, Relation.BEHIND):
            assert y == x[: len(y)], seed
        else:
            assert y != x[: len(y)], seed
