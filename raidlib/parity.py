"""Multiplying rows of buffers by a small GF(2^8) matrix: the one operation behind parity, updates and recovery.

Two engines give the same bytes: ISA-L through ctypes (ec_encode_data: any alignment, any length, the interpreter lock
released) and numpy. choose() takes the first that works on this machine; FARSTRIPE_PARITY=numpy forces the second.

A Span is a buffer with its address, so that the hot path does not ask ctypes for it again and again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from raidlib import gf256
from raidlib.gf256 import Matrix


class Span(NamedTuple):
    """A buffer of bytes and where it lies in memory. Whoever made it keeps the memory alive."""

    view: memoryview
    address: int

    def part(self, start: int, end: int) -> Span:
        """Bytes [start, end) of it."""
        return Span(self.view[start:end], self.address + start)


class Engine(Protocol):
    """Matrix times buffers."""

    name: str

    def apply(self, matrix: Matrix, sources: Sequence[Span], targets: Sequence[Span], length: int) -> None:
        """targets[i] = sum over j of matrix[i][j] * sources[j], for the first `length` bytes of each.

        Targets are writable and overlap no source. Raises nothing.
        """


def span_of(buf: bytes | bytearray | memoryview) -> Span:
    """Return the span of a caller's buffer, read-only or not."""
    address: int = np.frombuffer(buf, np.uint8).__array_interface__["data"][0]
    return Span(memoryview(buf), address)


class Scratch:
    """`count` buffers of `size` bytes each, page-aligned, owned by one thread."""

    def __init__(self, count: int, size: int) -> None:
        pitch = -(-size // 4096) * 4096
        self._memory = np.zeros(count * pitch + 4096, np.uint8)
        base = int(self._memory.__array_interface__["data"][0])
        skip = -base % 4096
        view = memoryview(self._memory)  # type: ignore[arg-type]
        self.spans = [
            Span(view[skip + i * pitch : skip + i * pitch + size], base + skip + i * pitch) for i in range(count)
        ]


class IsalEngine:
    """ISA-L's erasure code. Raises OSError when the library is not there."""

    name = "isa-l"

    def __init__(self) -> None:
        library = ctypes.CDLL("libisal.so.2")
        self._encode = library.ec_encode_data
        self._encode.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
        self._encode.restype = None
        init = library.ec_init_tables
        init.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 2
        init.restype = None

        @lru_cache(maxsize=4096)
        def tables(matrix: Matrix) -> ctypes.Array[ctypes.c_char]:
            rows, columns = len(matrix), len(matrix[0])
            expanded = ctypes.create_string_buffer(32 * rows * columns)
            init(columns, rows, bytes(value for row in matrix for value in row), expanded)
            return expanded

        @lru_cache(maxsize=256)
        def pointers(count: int) -> type[ctypes.Array[ctypes.c_void_p]]:
            return ctypes.c_void_p * count

        self._tables = tables
        self._pointers = pointers

    def apply(self, matrix: Matrix, sources: Sequence[Span], targets: Sequence[Span], length: int) -> None:
        """See Engine."""
        columns, rows = len(sources), len(targets)
        self._encode(
            length,
            columns,
            rows,
            self._tables(matrix),
            self._pointers(columns)(*[source[1] for source in sources]),
            self._pointers(rows)(*[target[1] for target in targets]),
        )


class NumpyEngine:
    """Table look-ups in numpy: right everywhere, several times slower."""

    name = "numpy"

    def __init__(self) -> None:
        self._tables = [
            np.array([gf256.multiply(factor, value) for value in range(256)], np.uint8) for factor in range(256)
        ]

    def apply(self, matrix: Matrix, sources: Sequence[Span], targets: Sequence[Span], length: int) -> None:
        """See Engine."""
        inputs: list[npt.NDArray[np.uint8]] = [np.frombuffer(source[0], np.uint8)[:length] for source in sources]
        for row, target in zip(matrix, targets, strict=True):
            result = np.frombuffer(target[0], np.uint8)[:length]
            result[:] = 0
            for factor, data in zip(row, inputs, strict=True):
                if factor == 1:
                    np.bitwise_xor(result, data, out=result)
                elif factor:
                    np.bitwise_xor(result, self._tables[factor][data], out=result)


@lru_cache(maxsize=1)
def choose() -> Engine:
    """Return the engine for this process: ISA-L when it loads, else numpy."""
    if os.environ.get("FARSTRIPE_PARITY") != "numpy":
        try:
            return IsalEngine()
        except (OSError, AttributeError):
            pass  # not installed, or a version without these calls: numpy does the same, slower
    return NumpyEngine()
