from __future__ import annotations

import itertools

import pytest

from raidlib import gf256


def slow_multiply(a: int, b: int) -> int:
    """Carry-less multiplication reduced by 0x11d, bit by bit."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(15, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


def test_multiplication_is_that_of_the_field_md_uses() -> None:
    assert all(gf256.multiply(a, b) == slow_multiply(a, b) for a in range(256) for b in range(256))


def test_every_element_but_zero_has_an_inverse() -> None:
    assert all(gf256.multiply(a, gf256.inverse(a)) == 1 for a in range(1, 256))
    with pytest.raises(ZeroDivisionError):
        gf256.inverse(0)


@pytest.mark.parametrize(("data", "parity"), [(2, 1), (5, 1), (2, 2), (4, 2), (9, 2)])
def test_any_loss_up_to_the_number_of_parities_can_be_solved(data: int, parity: int) -> None:
    columns = range(data + parity)
    identity = gf256.generator(data, 0)
    for lost in itertools.combinations(columns, parity):
        survivors = tuple(c for c in columns if c not in lost)[:data]
        matrix = gf256.recovery(data, parity, survivors, tuple(range(data)))
        rows = [gf256.generator(data, parity)[c] for c in survivors]
        product = tuple(
            tuple(sum_of(gf256.multiply(matrix[i][k], rows[k][j]) for k in range(data)) for j in range(data))
            for i in range(data)
        )
        assert product == identity


def sum_of(values: object) -> int:
    total = 0
    for value in values:  # type: ignore[attr-defined]
        total ^= value
    return total
