"""Sets and markers under chance: interleavings, lost and late messages, kills, power cuts, clocks that jump."""

from __future__ import annotations

import pytest

from tests.testing.cutworld import run

CHUNK = 50
CHUNKS = 10


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_image_is_a_cut(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        try:
            run(seed)
        except AssertionError as exc:
            raise AssertionError(f"tests.testing.cutworld.run({seed}): {exc}") from exc
