from __future__ import annotations

import itertools
import random
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidlib.gf256 import generator, recovery, update
from raidlib.parity import Engine, IsalEngine, NumpyEngine, Scratch, Span, choose, span_of


@lru_cache
def engines() -> list[Engine]:
    try:
        return [IsalEngine(), NumpyEngine()]
    except OSError:
        return [NumpyEngine()]


ENGINES = pytest.mark.parametrize("engine", engines(), ids=lambda engine: engine.name)


def rows(engine: Engine, matrix: tuple[tuple[int, ...], ...], sources: list[bytes]) -> list[bytes]:
    length = len(sources[0])
    targets = [bytearray(length) for _ in matrix]
    engine.apply(matrix, [span_of(s) for s in sources], [span_of(t) for t in targets], length)
    return [bytes(t) for t in targets]


@ENGINES
@pytest.mark.parametrize(("data", "parity"), [(2, 1), (4, 1), (2, 2), (4, 2), (6, 2)])
def test_every_erasure_up_to_the_parities_is_recovered(engine: Engine, data: int, parity: int) -> None:
    rng = random.Random(data * 10 + parity)
    sources = [rng.randbytes(777) for _ in range(data)]
    columns = sources + rows(engine, generator(data, parity)[data:], sources)
    for n in range(1, parity + 1):
        for lost in itertools.combinations(range(data + parity), n):
            survivors = tuple(c for c in range(data + parity) if c not in lost)[:data]
            found = rows(engine, recovery(data, parity, survivors, lost), [columns[c] for c in survivors])
            assert found == [columns[c] for c in lost]


@ENGINES
@pytest.mark.parametrize("parity", [1, 2])
def test_updating_parity_gives_what_encoding_anew_gives(engine: Engine, parity: int) -> None:
    rng = random.Random(parity)
    data = 5
    old = [rng.randbytes(512) for _ in range(data)]
    kept = rows(engine, generator(data, parity)[data:], old)
    for changed in [(0,), (3,), (1, 4), (0, 1, 2, 3, 4)]:
        new = [rng.randbytes(512) if c in changed else old[c] for c in range(data)]
        matrix = update(data, parity, changed, tuple(range(parity)))
        sources = [old[c] for c in changed] + [new[c] for c in changed] + kept
        assert rows(engine, matrix, sources) == rows(engine, generator(data, parity)[data:], new)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(1, 5000), st.integers(0, 40), st.randoms(use_true_random=False)
)
def test_the_engines_agree_at_any_length_and_alignment(
    columns: int, count: int, length: int, skew: int, rng: random.Random
) -> None:
    matrix = tuple(tuple(rng.randrange(256) for _ in range(columns)) for _ in range(count))
    sources = [memoryview(rng.randbytes(length + skew))[skew:] for _ in range(columns)]
    results = [rows(engine, matrix, sources) for engine in engines()]  # type: ignore[arg-type]
    assert all(result == results[0] for result in results)


def test_numpy_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    choose.cache_clear()
    monkeypatch.setenv("FARSTRIPE_PARITY", "numpy")
    assert choose().name == "numpy"
    choose.cache_clear()


def test_scratch_buffers_are_page_aligned_and_apart() -> None:
    scratch = Scratch(4, 5000)
    spans: list[Span] = scratch.spans
    assert all(span.address % 4096 == 0 and len(span.view) == 5000 for span in spans)
    assert all(b.address - a.address >= 5000 for a, b in itertools.pairwise(spans))
    spans[1].view[:] = b"\xff" * 5000
    assert bytes(spans[0].view) == bytes(spans[2].view) == bytes(5000)
