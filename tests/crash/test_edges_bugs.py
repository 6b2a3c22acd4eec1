"""Bugs of edges, seeded one at a time: each must be found by the crash states of trees, or by the test that is named.

What finds nothing when the code is right is shown by test_edges_crash.py and the tests of the engine themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from replicator.capture import copies, edges, follower, recovery, roles
from replicator.capture.bitmaps import TODO
from replicator.capture.engine import GroupEngine
from replicator.capture.peerwaits import PeerWaits
from replicator.capture.state import OK, RESYNC, Edge
from tests.crash import test_edges_crash as crash
from tests.testing.treeharness import CHAIN, FAN, Tree, running_tree
from tests.unit.replicator.capture import test_copies, test_edges, test_service_edges

Patch = tuple[Any, str, Any]
Finder = Callable[[Path], object]


@dataclass(frozen=True)
class Bug:
    """One seeded bug, and what has to find it."""

    name: str
    patches: Callable[[], list[Patch]]
    finder: Finder


def worlds(shape: str, workload: Callable[[crash.TreeExplorer], None]) -> Finder:
    """Every third crash state of a workload."""
    return lambda _folder: crash.explore(shape, workload, 3)


def engine_test(test: Callable[[Tree], None], shape: tuple[str, dict[str, str]]) -> Finder:
    """A test of the engine that takes a tree."""
    return lambda _folder: test(running_tree(*shape))


def served_test(test: Callable[..., None], *args: str) -> Finder:
    """A test of the service of the top of a fan."""

    def run(folder: Path) -> None:
        tree = running_tree(*FAN)
        for line in tree.lines.values():
            line.cut()
        test(test_service_edges.Served(tree, tree.top, folder), *args)

    return run


def _tail_of_the_fastest() -> list[Patch]:
    def most(e: GroupEngine) -> int | None:
        offs = [e.page[edges.edge_slot(x.slot, edges.EDGE_DURABLE_OFF)] for x in e.state.downstream if not x.dropped]
        return max(offs, default=None)

    return [(follower, "kept_from", most)]


def _relay_keeps_nothing() -> list[Patch]:
    right = edges.kept_from

    def none(e: GroupEngine) -> int | None:
        return right(e) if e.state.role == "primary" else None

    return [(follower, "kept_from", none)]


def _dropped_in_memory() -> list[Patch]:
    def forget(e: GroupEngine, given_up: list[Edge]) -> None:
        for edge in given_up:
            for name, value in edge.without_peer().items():
                setattr(edge, name, value)
        e.refresh()

    return [(edges, "drop", forget)]


def _degraded_in_memory() -> list[Patch]:
    def forget(e: GroupEngine, edge: Edge) -> bool:
        edge.sync_on, edge.degraded = False, True
        e.refresh()
        return True

    return [(edges, "degrade", forget)]


def _first_peer_is_enough() -> list[Patch]:
    def first(self: PeerWaits, seq: int, durable: bool) -> None:
        self.wait_for(self._engine.waits[0], seq, durable, 0.0)

    return [(PeerWaits, "wait", first)]


def _any_synced_ends_it() -> list[Patch]:
    def any_of_them(e: GroupEngine, seq: int) -> None:
        e.commit({x.slot: {"copying": False, "synced_seq": seq} for x in e.state.edges if x.copying})
        if e.state.copy == RESYNC:
            e.sync_pool()
            e.commit(copy=OK, floor=seq, copy_id="")

    return [(follower, "_end_copies", any_of_them)]


def _epochs_void_nothing() -> list[Patch]:
    return [(follower, "_void_copies", lambda e, seq: e.save())]


def _second_copy_takes_the_list() -> list[Patch]:
    right = copies._join_list

    def alone(e: GroupEngine, masks: copies.Packed | None) -> None:
        for m in e.bitmaps.maps:
            m.clear_all(TODO)
        right(e, masks)

    return [(copies, "_join_list", alone)]


def _unclean_ends_with_the_first_copy() -> list[Patch]:
    right = copies.begin_copy

    def all_clean(e: GroupEngine, edge: Edge, *args: Any) -> Any:
        for other in e.state.edges:
            other.unclean = False
        return right(e, edge, *args)

    return [(copies, "begin_copy", all_clean)]


def _power_loss_forgotten() -> list[Patch]:
    right = recovery._recover_primary

    def forget(e: GroupEngine, power_lost: bool) -> None:
        right(e, power_lost)
        for edge in e.state.edges:
            edge.unclean = False

    return [(recovery, "_recover_primary", forget)]


def _relay_offers_its_own_copy() -> list[Patch]:
    """An attach does not give up the journal for the peers below."""
    right = roles._attach

    def keep(e: GroupEngine, *args: Any) -> Any:
        with patch.object(Edge, "without_peer", lambda self: {}):
            return right(e, *args)

    return [(roles, "_attach", keep)]


def _pinned_before_it_is_applied() -> list[Patch]:
    """A relay forgets its own bitmap: what it got since the common position is copied to nobody."""
    right = copies._blocks

    def theirs(e: GroupEngine, c: int | None, peer_bitmaps: copies.Packed | None) -> copies.Packed | None:
        found = right(e, c, peer_bitmaps)
        return found if found is None or e.state.role == "primary" else peer_bitmaps

    return [(copies, "_blocks", theirs)]


BUGS = (
    Bug("tail-moved-past-an-edge", _tail_of_the_fastest, worlds("fan", crash.one_is_dropped)),
    Bug("relay-keeps-nothing", _relay_keeps_nothing, worlds("chain", crash.stream)),
    Bug(
        "dropped-not-durable",
        _dropped_in_memory,
        engine_test(test_edges.test_a_peer_that_is_dropped_is_so_on_disk_before_the_tail_passes_it, FAN),
    ),
    Bug(
        "degrade-not-durable",
        _degraded_in_memory,
        served_test(
            test_service_edges.test_both_peers_are_given_up_durably_before_a_write_is_answered_that_neither_has
        ),
    ),
    Bug(
        "answered-after-one-of-two",
        _first_peer_is_enough,
        served_test(test_service_edges.test_a_synchronous_write_waits_for_every_peer, "b"),
    ),
    Bug(
        "synced-from-before-registration",
        _any_synced_ends_it,
        engine_test(test_copies.test_a_synced_record_from_before_the_blocks_were_listed_ends_nothing, CHAIN),
    ),
    Bug(
        "epoch-voids-nothing",
        _epochs_void_nothing,
        engine_test(test_copies.test_a_copy_at_its_target_is_void_once_an_epoch_comes_behind_its_list, CHAIN),
    ),
    Bug(
        "second-copy-takes-the-list",
        _second_copy_takes_the_list,
        worlds("fan", crash.copies_meet),
    ),
    Bug(
        "unclean-ends-with-the-first-copy",
        _unclean_ends_with_the_first_copy,
        engine_test(test_copies.test_power_loss_makes_every_peer_a_target_of_a_copy, FAN),
    ),
    Bug("power-loss-forgotten", _power_loss_forgotten, worlds("fan", crash.stream)),
    Bug("attach-keeps-the-edges-below", _relay_offers_its_own_copy, worlds("chain", crash.all_are_dropped)),
    Bug("relay-forgets-its-bitmap", _pinned_before_it_is_applied, worlds("chain", crash.one_is_dropped)),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for owner, name, wrong in bug.patches():
            stack.enter_context(patch.object(owner, name, wrong))
        with pytest.raises(Exception) as found:
            bug.finder(tmp_path)
    print(f"{bug.name}: {str(found.value)[:300]}")
