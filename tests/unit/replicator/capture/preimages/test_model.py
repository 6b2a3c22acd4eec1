"""Views against a model that keeps every image: random records, random instants."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replicator.capture import follower, roles
from replicator.capture.numbers import Numbers
from replicator.capture.preimages import recorder
from replicator.capture.state import PRIMARY
from tests.testing.retaining import FRAME_DATA_BYTES, PIECE_BYTES, Histories, check_views, retaining_pair

SECTORS = 96
step = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, SECTORS * 4 - 1), st.integers(1, 40_000)),
    st.tuples(st.just("zero"), st.integers(0, 1), st.integers(0, SECTORS * 4 - 1), st.integers(1, 60_000)),
    st.tuples(st.just("apply"), st.integers(1, 6), st.sampled_from((1, 5000, 1 << 20)), st.just(0)),
    st.tuples(st.sampled_from(("flow", "kill", "power", "overflow", "view")), st.just(0), st.just(0), st.just(0)),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(step, min_size=5, max_size=40), seed=st.integers(0, 1 << 30))
@example(steps=[("write", 0, 0, 9), ("flow", 0, 0, 0), ("overflow", 0, 0, 0), ("flow", 0, 0, 0)], seed=1)
def test_every_instant_of_the_window_is_shown_exactly(steps: list[tuple[Any, ...]], seed: int) -> None:
    with (
        patch.object(recorder, "PIECE_BYTES", PIECE_BYTES),
        patch.object(recorder, "FRAME_DATA_BYTES", FRAME_DATA_BYTES),
    ):
        _run(steps, random.Random(seed))


def _run(steps: list[tuple[Any, ...]], rng: random.Random) -> None:
    pair, b = retaining_pair(seed=rng.getrandbits(30))
    if rng.random() < 0.5:
        pair.a.engine.numbers = Numbers({})
    known = Histories(pair)
    fill = 0
    for what, x, y, z in steps:
        a = pair.a
        if what in ("write", "zero"):
            fill = fill % 255 + 1
            offset = y * 512 + rng.choice((0, 0, 100))
            length = min(z if rng.random() < 0.3 else 4096, a.sizes[x] - offset)
            if what == "write":
                a.write(offset, fill, length=length, volume=x)
            else:
                a.engine.zero(x, offset, length, rng.random() < 0.5, trim=rng.random() < 0.5)
        elif what == "apply" and a.engine.state.mode == "journal":
            pair.ship(a, b, x)
            follower.apply_some(b.engine, y)
        elif what == "flow" or (what == "overflow" and a.engine.state.mode != "journal"):
            pair.sync_up()
            follower.checkpoint(a.engine)
        elif what == "overflow":
            roles.overflow(a.engine)
        elif what in ("kill", "power"):
            known.look()
            b.kill() if what == "kill" else b.power_cut()
            b.start()
            follower.settle(b.engine)
        check_views(b, known, rng, 3)
    assert pair.a.engine.state.role == PRIMARY
    pair.sync_up()
    assert check_views(b, known, rng) > 0
