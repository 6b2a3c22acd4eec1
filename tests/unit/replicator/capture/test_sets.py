"""A takeover of a set gives up no write of a synchronous group unless the operator says so; where the copies of a set
come to one instant after a stop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.capture import follower, sets
from replicator.capture.sets import SetHost
from replicator.capture.state import OK, RESYNC
from replicator.core.errors import Refused
from replicator.journal.beacons import publish
from replicator.journal.page import APPLIED_SEQ, ARRIVED_GEN, HEAD_SEQ
from tests.testing.pairharness import Pair, running_pair


class Bench:
    """Two groups of one primary; `log` has a write that lies beyond what has arrived of `data`."""

    def __init__(self, folder: Path, modes: dict[str, str]) -> None:
        self.pairs: dict[str, Pair] = {name: running_pair(sizes=(64 << 10,)) for name in modes}
        for number, (name, pair) in enumerate(self.pairs.items()):
            state = pair.b.engine.state
            state.uuid, state.name, state.edges[0].mode = f"{number + 1:032x}", name, modes[name]
            pair.b.engine.save()
        self.services: dict[str, Any] = {
            pair.b.engine.state.uuid: SimpleNamespace(engine=pair.b.engine, wake_follower=lambda: None)
            for pair in self.pairs.values()
        }
        self.host = SetHost(folder / "sets", self.services.get)
        self.host.put("shop", 1, list(self.services))
        for pair in self.pairs.values():
            self.write(pair)
        latest_ns = max(pair.a.engine.clock.last for pair in self.pairs.values())
        for pair in self.pairs.values():
            publish(pair.b.page.u64, ARRIVED_GEN, pair.b.engine.pos, latest_ns)
        self.host.tick()
        assert self.host.listing()[0]["standing"] == "whole"
        self.pairs["log"].a.now_ns += 10**9
        self.write(self.pairs["log"])
        self.host.tick()

    def write(self, pair: Pair) -> None:
        pair.a.write(0, 7)
        pair.ship(pair.a, pair.b)
        publish(pair.b.page.u64, ARRIVED_GEN, pair.b.engine.pos, pair.a.engine.clock.last)
        follower.apply_all(pair.b.engine)


def test_what_was_answered_is_not_given_up_unasked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"log": "sync", "data": "sync"})
    with pytest.raises(Refused, match="1 of group log") as refused:
        bench.host.decide("shop", keep=False)
    assert "--keep" in refused.value.way_out and "--give-up" in refused.value.way_out
    assert bench.host.listing()[0]["decided_ns"] == 0
    assert bench.host.decide("shop", keep=True)["kept"]


def test_it_is_given_up_when_the_operator_says_so_and_then_for_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"log": "sync", "data": "async"})
    decided = bench.host.decide("shop", keep=False, give_up=True)
    assert not decided["kept"] and bench.host.decide("shop", keep=False) == decided


def test_asynchronous_groups_are_taken_at_the_common_instant(tmp_path: Path) -> None:
    assert not Bench(tmp_path, {"log": "async", "data": "sync"}).host.decide("shop", keep=False)["kept"]


def test_the_first_test_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "answered_beyond", lambda engine, bound_ns: 0)
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        test_what_was_answered_is_not_given_up_unasked(tmp_path)


def test_a_position_that_a_killed_replicator_stated_ahead_of_its_records_is_not_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"log": "async", "data": "async"})
    log, data = bench.pairs["log"], bench.pairs["data"]
    data.b.engine.commit(copy=RESYNC)
    bench.host.tick()
    data.b.engine.commit(copy=OK)
    log.b.page[HEAD_SEQ] += 3  # the first of the stores that publish a run
    log.b.kill()
    bench.services[f"{1:032x}"].engine = log.b.start()
    follower.apply_all(log.b.engine)
    latest_ns = max(pair.a.engine.clock.last for pair in bench.pairs.values())
    for pair in bench.pairs.values():
        publish(pair.b.page.u64, ARRIVED_GEN, pair.b.engine.pos, latest_ns)
    bench.host.tick()
    assert bench.host.listing()[0]["standing"] == "whole", bench.host.listing()[0]


def test_a_copy_that_lost_power_while_the_set_was_no_cut_is_stopped_nowhere_before_what_its_pool_may_hold(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, {"log": "async", "data": "async"})
    log, data = bench.pairs["log"], bench.pairs["data"]
    uuid = log.b.engine.state.uuid
    data.b.engine.commit(copy=RESYNC)  # another group is copied to: nobody waits for it
    bench.host.tick()
    assert bench.host.listing()[0]["standing"] == "joining"
    follower.checkpoint(log.b.engine)
    for fill in range(8):
        log.a.write(fill * 4096, fill + 1)
    middle_ns = log.a.engine.clock.last
    for fill in range(8):
        log.a.write((8 + fill) * 4096, fill + 101)
    log.ship(log.a, log.b)
    follower.apply_all(log.b.engine)
    log.b.engine.sync_pool()
    log.b.kill()
    log.b.page_bytes, log.b.boot = bytearray(len(log.b.page_bytes)), log.b.boot + 1  # and its machine
    bench.services[uuid].engine = log.b.start()
    follower.apply_some(log.b.engine, 1)  # it begins to apply them again
    data.b.engine.commit(copy=OK)
    publish(log.b.page.u64, ARRIVED_GEN, log.b.engine.pos, log.a.engine.clock.last)
    publish(data.b.page.u64, ARRIVED_GEN, data.b.engine.pos, middle_ns)
    bench.host.tick()
    follower.apply_all(log.b.engine)
    state = log.b.engine.state
    same = log.b.image() == log.image_at(state.hist, log.b.page[APPLIED_SEQ])
    assert same, f"{bench.host.listing()[0]['standing']}: it stands at {log.b.page[APPLIED_SEQ]}"
