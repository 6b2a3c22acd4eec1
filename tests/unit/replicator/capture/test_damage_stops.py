"""A copy that is stopped for a moment, to end its journal before damage: what fails meanwhile fails for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.capture import damage
from replicator.capture.service import GroupService
from replicator.core.errors import MediumError, Refused
from tests.testing.pairharness import Pair, running_pair
from tests.unit.replicator.capture.test_damage import mend, serve, stands, streaming
from tests.unit.replicator.capture.test_journalloss import renew


@pytest.fixture
def pair() -> Pair:
    return running_pair()


def stopped(pair: Pair, service: GroupService) -> None:
    """Let a copy stop receiving, to end its journal before the damage."""
    stands(pair)
    streaming(pair.b)
    service._damaged.look(0.0)
    service._damaged.look(damage.CONFIRM_S)
    assert pair.b.engine.failed


@pytest.mark.parametrize("why", ["state", "journal"])
def test_what_fails_while_a_copy_is_stopped_for_a_moment_fails_for_good(pair: Pair, tmp_path: Path, why: str) -> None:
    service, _ = serve(pair.b, tmp_path)
    stopped(pair, service)
    engine = pair.b.engine
    if why == "state":
        engine.fail("its state cannot be written")
    else:
        with engine.lock:
            engine.lose_journal("its superblock cannot be written")
    mend(service)
    assert "cannot be written" in engine.failed and engine.failed_by_journal == (why == "journal")


def test_a_pool_that_cannot_be_synced_while_the_journal_is_cut_is_not_synced_again(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.b, tmp_path)
    stopped(pair, service)
    engine, syncs = pair.b.engine, 0

    def broken() -> None:
        nonlocal syncs
        syncs += 1
        raise OSError(5, "Input/output error")

    engine.pool_sync = broken
    with pytest.raises(MediumError):
        service._damaged.look(damage.CONFIRM_S + damage.STOPS_S)
    mend(service)
    assert syncs == 1 and "pool cannot be synced" in engine.failed
    with pytest.raises(Refused, match="not for its journal"):
        renew(pair.b)


def test_a_copy_that_has_failed_is_not_stopped_for_a_moment(pair: Pair) -> None:
    engine = pair.b.engine
    engine.fail("its pool cannot be synced")
    engine.stop_receiving("a record is damaged")
    with engine.opened:
        engine.go_on()
    assert engine.failed == "its pool cannot be synced"


def test_a_copy_that_stopped_and_has_nothing_to_give_up_any_more_goes_on(pair: Pair, tmp_path: Path) -> None:
    service, _ = serve(pair.b, tmp_path)
    stopped(pair, service)
    pair.b.engine.damaged = None  # another copy began
    service._damaged.look(damage.CONFIRM_S + 0.1)
    assert not pair.b.engine.failed
