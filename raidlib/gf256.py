"""Arithmetic in GF(2^8) and the small matrices of RAID parity. Pure, exact, slow: results are cached by the callers.

The field is the one of Linux md, ISA-L and Anvin's "The mathematics of RAID-6": polynomial 0x11d, generator 2. Parity
of data columns d0..: P = d0 + d1 + ..., Q = d0 + 2 d1 + 4 d2 + ... Up to 255 data columns any two lost columns can be
solved for.
"""

from __future__ import annotations

from functools import lru_cache

Matrix = tuple[tuple[int, ...], ...]

_POLYNOMIAL = 0x11D


def _build_tables() -> tuple[list[int], list[int]]:
    exp, log = [0] * 512, [0] * 256
    value = 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value <<= 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    return exp, log


_EXP, _LOG = _build_tables()


def multiply(a: int, b: int) -> int:
    """Product of two field elements."""
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def inverse(a: int) -> int:
    """Multiplicative inverse; a is not 0."""
    if not a:
        raise ZeroDivisionError("0 has no inverse")
    return _EXP[255 - _LOG[a]]


def power_of_two(exponent: int) -> int:
    """2 to the exponent."""
    return _EXP[exponent % 255]


@lru_cache(maxsize=256)
def generator(data: int, parity: int) -> Matrix:
    """The matrix that turns `data` columns into all columns: the identity, then a row for P and one for Q."""
    identity = tuple(tuple(int(i == j) for j in range(data)) for i in range(data))
    p = tuple(1 for _ in range(data))
    q = tuple(power_of_two(j) for j in range(data))
    return identity + (p, q)[:parity]


@lru_cache(maxsize=4096)
def recovery(data: int, parity: int, survivors: tuple[int, ...], wanted: tuple[int, ...]) -> Matrix:
    """The matrix that turns the surviving columns into the wanted ones.

    survivors: exactly `data` column numbers. wanted: column numbers. Raises ZeroDivisionError when the survivors do
    not determine the data, which P and Q as above never let happen.
    """
    rows = generator(data, parity)
    inverted = _invert(tuple(rows[column] for column in survivors))
    return tuple(_row_times(rows[column], inverted) for column in wanted)


@lru_cache(maxsize=4096)
def update(data: int, parity: int, changed: tuple[int, ...], kept_parity: tuple[int, ...]) -> Matrix:
    """The matrix for read-modify-write.

    Sources: old contents of the changed data columns, then their new contents, then the old parity columns listed in
    kept_parity (0 is P, 1 is Q). Result: the new parity columns, in that order.
    """
    rows = generator(data, parity)[data:]
    return tuple(
        tuple(rows[which][column] for column in changed) * 2 + tuple(int(other == which) for other in kept_parity)
        for which in kept_parity
    )


def _row_times(row: tuple[int, ...], matrix: Matrix) -> tuple[int, ...]:
    result = [0] * len(matrix[0])
    for factor, other in zip(row, matrix, strict=True):
        if factor:
            for j, value in enumerate(other):
                result[j] ^= multiply(factor, value)
    return tuple(result)


def _invert(matrix: Matrix) -> Matrix:
    """Gauss-Jordan."""
    n = len(matrix)
    work = [list(row) + [int(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next((r for r in range(i, n) if work[r][i]), None)
        if pivot is None:
            raise ZeroDivisionError("the survivors do not determine the data")
        work[i], work[pivot] = work[pivot], work[i]
        scale = inverse(work[i][i])
        work[i] = [multiply(scale, value) for value in work[i]]
        for r in range(n):
            factor = work[r][i]
            if r != i and factor:
                work[r] = [value ^ multiply(factor, other) for value, other in zip(work[r], work[i], strict=True)]
    return tuple(tuple(row[n:]) for row in work)
