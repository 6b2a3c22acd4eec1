"""A checkpoint that finds no record where it wants to put the tail: which one is damaged, and that it is done with."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.capture.service import GroupService
from tests.testing.pairharness import PEER_APPLIED_SEQ, Pair, running_pair
from tests.unit.replicator.capture.test_damage import Events, behind, rot, serve


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def found(pair: Pair, folder: Path) -> tuple[GroupService, Events, int]:
    """Let a checkpoint find a damaged record that the peer holds and has not applied; returns its seq, too."""
    service, events = serve(pair.a, folder)
    engine = pair.a.engine
    engine.state.policy.retain = "applied"
    seqs = behind(pair)
    pair.ship(pair.a, pair.b)
    pair.b.engine.sync_journal()
    pair.acknowledge(pair.a, pair.b)
    pair.a.page[PEER_APPLIED_SEQ] = seqs[1]
    engine.marks.note(seqs[1], engine.journal.find(seqs[2]))
    rot(pair.a, seqs[2], 8)
    service.checkpoint()
    assert engine.suspect is not None
    return service, events, seqs[2]


def test_it_is_called_by_its_number(pair: Pair, tmp_path: Path) -> None:
    service, events, seq = found(pair, tmp_path)
    service._damaged.look(0.0)
    assert [told["seq"] for _, told in events] == [seq]


def test_it_is_looked_at_once_however_long_a_peer_keeps_the_tail_there(pair: Pair, tmp_path: Path) -> None:
    service, events, _ = found(pair, tmp_path)
    engine, syncs, sync = pair.a.engine, 0, pair.a.engine.pool_sync

    def counted() -> None:
        nonlocal syncs
        syncs += 1
        sync()

    engine.pool_sync = counted
    for round_ in range(10):
        service._damaged.look(float(round_))
    assert syncs <= 2 and not service._damaged.pending and len(events) == 1
