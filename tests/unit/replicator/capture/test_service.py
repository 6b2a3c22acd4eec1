"""The service around an engine: waiting, policies, holds, and the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator.capture import follower, roles
from replicator.capture.service import LARGEST_WRITE_BYTES, GroupService
from replicator.capture.state import BITMAP, OK, PRIMARY, SECONDARY, StateFile
from replicator.core.errors import FarstripeError, MediumError, Refused
from replicator.journal.page import (
    HEAD_OFF,
    HEAD_SEQ,
    TAIL_OFF,
    TARGET_ASLEEP,
    Doorbell,
)
from tests.testing.pairharness import (
    PEER_DURABLE_OFF,
    PEER_DURABLE_SEQ,
    PEER_RECEIVED_SEQ,
    REPLICATOR_ASLEEP,
    Side,
    running_pair,
)

B = "b" * 32
"""Node id of the peer."""


class Served:
    """A pair whose sides are served; threads run where a test starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = running_pair()
        self.pair.a.engine.linked.clear()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.a, self.b = self.serve(self.pair.a), self.serve(self.pair.b)
        self._threads: list[threading.Thread] = []

    def serve(self, side: Side) -> GroupService:
        own = Doorbell(self.folder / f"{side.name}.t")
        return GroupService(
            side.engine, own, lambda k: self.bell(side, k), lambda what, **d: self.events.append((what, d))
        )

    def bell(self, side: Side, slot: int) -> Doorbell:
        return Doorbell(self.folder / f"{side.name}.r.{slot}")

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def background(self, action: Callable[[], object]) -> Callable[[], object]:
        """Run `action` in a thread; the result is a function that waits for its result, or raises what it raised."""
        box: list[object] = []

        def run() -> None:
            try:
                box.append(action())
            except FarstripeError as exc:
                box.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

        def result() -> object:
            thread.join(20)
            assert not thread.is_alive(), "it hangs"
            if isinstance(box[0], Exception):
                raise box[0]
            return box[0]

        return result

    def sync(self, **policy: object) -> None:
        self.a.set_policy({"mode": "sync", **policy})
        assert self.a.set_sync(B, True)["sync_on"]

    def durable_state(self, side: Side) -> Any:
        return StateFile(side.disk.open("state")).load()  # type: ignore[arg-type]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    for service in (made.a, made.b):
        service._stop.set()
        service.end_waits()
        for thread in service._threads:
            thread.join(5)


def eventually(what: Callable[[], bool], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


# -- synchronous writes ---------------------------------------------------------------------------------------------


def test_a_synchronous_write_is_answered_when_the_peer_has_received_it(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    result = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    eventually(lambda: served.pair.a.page[TARGET_ASLEEP] == 1)
    served.pair.a.page[PEER_RECEIVED_SEQ] = served.a.seq
    result()


def test_a_durable_policy_a_fua_write_and_a_flush_wait_for_the_peers_disk(served: Served) -> None:
    served.sync(loss_timeout_s=0.1, on_loss="stall")
    served.pair.a.page[PEER_RECEIVED_SEQ] = 1 << 40
    served.a.write(0, 0, b"\1" * 4096)
    for ask in (
        lambda: served.a.write(0, 0, b"\1" * 4096, True),
        lambda: served.a.zero(0, 0, 4096, True, True),
        served.a.flush,
    ):
        with pytest.raises(MediumError, match="has not answered"):
            ask()
    assert served.names().count("writes-fail") == 1, "not for every write"
    served.a.set_policy({"ack": "durable"})
    with pytest.raises(MediumError):
        served.a.write(0, 0, b"\1" * 4096)
    served.pair.a.page[PEER_DURABLE_SEQ] = 1 << 40
    served.a.write(0, 0, b"\1" * 4096)
    served.a.flush()


def test_degrading_is_durable_and_told_before_the_write_is_answered(served: Served) -> None:
    served.sync(loss_timeout_s=0.1, on_loss="degrade")
    results = [served.background(lambda n=n: served.a.write(0, n * 4096, b"\1" * 4096)) for n in range(4)]
    for result in results:
        result()
    assert served.durable_state(served.pair.a).degraded
    assert served.names().count("degraded") == 1
    served.a.write(0, 0, b"\2" * 4096)


def test_switching_to_asynchronous_releases_writes_durably(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    result = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    eventually(lambda: served.pair.a.page[TARGET_ASLEEP] == 1)
    served.a.set_policy({"mode": "async"})
    result()
    assert served.durable_state(served.pair.a).policy.mode == "async"


def test_a_write_whose_primary_was_replaced_is_not_answered(served: Served) -> None:
    served.sync(loss_timeout_s=0)
    result = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    eventually(lambda: served.pair.a.page[TARGET_ASLEEP] == 1)
    served.a.demote(diverged=True)
    with pytest.raises(Refused, match="gave up the primary role"):
        result()


# -- holds and role changes -----------------------------------------------------------------------------------------


def test_a_hold_parks_writers_until_it_is_released(served: Served) -> None:
    assert served.a.hold(60) == {"seq": served.a.seq}
    result = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    time.sleep(0.05)
    assert served.pair.a.image()[0][0] == 0
    served.a.release("test")
    result()
    assert served.pair.a.image()[0][0] == 1


def test_a_hold_ends_by_itself(served: Served) -> None:
    served.a.start()
    served.a.hold(0.2)
    served.a.write(0, 0, b"\1" * 4096)
    assert "hold-released" in served.names()


def test_parked_writers_are_refused_after_a_demotion_and_go_on_when_it_fails(served: Served) -> None:
    at = served.a.hold(60)["seq"]
    served.a.release("its deadline passed")
    served.a.write(0, 0, b"\1" * 4096)
    with pytest.raises(Refused, match="gone on"):
        served.a.demote(upto=at)
    served.a.write(0, 0, b"\2" * 4096)
    at = served.a.hold(60)["seq"]
    parked = served.background(lambda: served.a.write(0, 0, b"\3" * 4096))
    served.a.demote(upto=at)
    with pytest.raises(Refused):
        parked()


def test_a_restarted_primary_holds_its_writers_until_the_peer_was_reached(served: Served) -> None:
    served.a.set_policy({"startup_wait_s": 60})
    served.a.start(wait_for_peer=True)
    result = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    time.sleep(0.05)
    assert served.pair.a.image()[0][0] == 0
    served.a.set_link(B, True)
    result()


def test_a_new_target_rings_for_a_replicator_that_rests(served: Served) -> None:
    bell = served.bell(served.pair.a, 0)
    assert not bell.wait(0)
    served.a.start()
    assert bell.wait(0)
    served.a.stop()


def test_the_keeper_of_an_idle_group_does_not_sync_the_pool_again_and_again(served: Served) -> None:
    service, side = served.a, served.pair.a
    service.write(0, 0, b"x" * 4096)
    syncs: list[int] = []
    sync = side.engine.pool_sync
    side.engine.pool_sync = lambda: (syncs.append(1), sync())[1]  # type: ignore[func-returns-value]
    for _ in range(10):
        if service._checkpoint_is_due(time.monotonic() + 60):
            service.checkpoint()
    assert 1 <= len(syncs) <= 3, "one for what was written, one or two to see that nothing is left"
    service.write(0, 0, b"y" * 4096)
    assert service._checkpoint_is_due(time.monotonic() + 60)
    service.look_after()
    assert service._checkpoint_is_due(time.monotonic())


def test_requests_that_wait_end_when_the_target_stops(served: Served) -> None:
    served.a.hold(60)
    parked = served.background(lambda: served.a.write(0, 0, b"\1" * 4096))
    served.a.end_waits()
    with pytest.raises(MediumError, match="stopping"):
        parked()


# -- the journal's room ---------------------------------------------------------------------------------------------


def fill(served: Served) -> None:
    """Leave no room for another 64 KiB."""
    engine = served.pair.a.engine
    while engine._u64[HEAD_OFF] + (64 << 10) - engine._u64[TAIL_OFF] <= engine._room_bytes:
        served.a.write(0, 0, b"\1" * (64 << 10))


def test_a_full_journal_makes_room_from_what_the_peer_holds(served: Served) -> None:
    fill(served)
    page = served.pair.a.page
    page[PEER_DURABLE_OFF] = page[HEAD_OFF]
    served.a.write(0, 0, b"\2" * (64 << 10))
    assert served.pair.a.engine.state.mode == "journal"


def test_a_full_journal_without_a_peer_falls_back_to_the_bitmap_at_once_and_says_so(served: Served) -> None:
    served.a.set_policy({"on_full": "bitmap", "full_timeout_s": 60})
    fill(served)
    served.a.write(0, 0, b"\2" * (64 << 10))
    assert served.durable_state(served.pair.a).mode == BITMAP
    assert "journal-overflow" in served.names()
    served.pair.sync_up()


@pytest.mark.parametrize("policy", ["stall", "fail"])
def test_a_full_journal_refuses_writes_where_the_policy_says_so(served: Served, policy: str) -> None:
    served.a.set_policy({"on_full": policy, "full_timeout_s": 0.1})
    fill(served)
    with pytest.raises(MediumError, match="full"):
        served.a.write(0, 0, b"\2" * (64 << 10))
    assert served.pair.a.engine.state.mode == "journal"


def test_a_full_journal_does_not_let_a_stalling_synchronous_group_go_on_alone(served: Served) -> None:
    served.a.set_policy({"mode": "sync", "on_loss": "stall", "on_full": "bitmap", "full_timeout_s": 0.1})
    fill(served)
    served.a.set_sync(B, True)
    with pytest.raises(MediumError, match="on_loss=stall"):
        served.a.write(0, 0, b"\2" * (64 << 10))
    state = served.durable_state(served.pair.a)
    assert (state.mode, state.sync_on, state.degraded) == ("journal", True, False)
    assert served.pair.a.image()[0][0] == 1
    served.pair.sync_up()


def test_a_stalling_group_waits_as_long_as_its_peer_is_there(served: Served) -> None:
    served.a.set_policy({"on_full": "stall", "full_timeout_s": 0.1})
    served.a.set_link(B, True)
    fill(served)
    result = served.background(lambda: served.a.write(0, 0, b"\2" * (64 << 10)))
    time.sleep(0.3)
    page = served.pair.a.page
    page[PEER_DURABLE_OFF] = page[HEAD_OFF]
    result()


def test_waiting_for_room_does_not_sync_the_pool_again_and_again(served: Served) -> None:
    served.a.set_policy({"on_full": "stall", "full_timeout_s": 0.3})
    fill(served)
    before = served.pair.a.pool.syncs
    with pytest.raises(MediumError):
        served.a.write(0, 0, b"\2" * (64 << 10))
    assert served.pair.a.pool.syncs <= before + 1


def test_an_overflow_under_load_keeps_every_write(served: Served) -> None:
    served.a.set_policy({"on_full": "bitmap"})
    results = [
        served.background(lambda n=n: [served.a.write(n % 2, n * 8192, bytes([i % 251]) * 8192) for i in range(60)])
        for n in range(6)
    ]
    for result in results:
        result()
    assert served.pair.a.engine.state.mode == BITMAP
    assert not served.pair.a.engine.in_flight()
    image = served.pair.a.image()
    assert all(image[n % 2][n * 8192] == 59 for n in range(6))
    served.pair.sync_up()


def test_a_large_write_becomes_several_records(tmp_path: Path) -> None:
    side = Side("a", sizes=(16 << 20,), journal_bytes=12 << 20)
    side.create(PRIMARY)
    roles.arm(side.engine, B)
    service = GroupService(
        side.engine, Doorbell(tmp_path / "t"), lambda _: Doorbell(tmp_path / "r"), lambda what, **d: None
    )
    pos = side.engine.pos
    service.write(0, 4096, b"\5" * (2 * LARGEST_WRITE_BYTES + 4096))
    assert side.engine.pos == pos + 3
    assert side.image()[0][4096 : 4096 + 2 * LARGEST_WRITE_BYTES + 4096].count(5) == 2 * LARGEST_WRITE_BYTES + 4096


# -- threads --------------------------------------------------------------------------------------------------------


def test_the_follower_applies_what_arrives_and_the_keeper_frees_the_journal(served: Served) -> None:
    served.b.start()
    for n in range(8):
        served.a.write(0, 0, bytes([n]) * (64 << 10))
        served.pair.ship(served.pair.a, served.pair.b)
        served.b._own_bell.ring()
    eventually(lambda: served.pair.b.image() == served.pair.a.image())
    page = served.pair.b.page
    eventually(lambda: page[HEAD_OFF] - page[TAIL_OFF] < 300 << 10)


def test_a_pool_error_stops_the_follower_visibly_and_it_goes_on_when_healed(served: Served) -> None:
    class PoolTrouble(Exception):
        pass

    volume = served.pair.b.engine.volumes[0]
    pwrite = volume.pwrite

    def refuse(buf: bytes, offset: int) -> None:
        raise PoolTrouble("no space")

    volume.pwrite = refuse  # type: ignore[method-assign]
    served.b.start()
    served.a.write(0, 0, b"\1" * 4096)
    served.pair.ship(served.pair.a, served.pair.b)
    eventually(lambda: served.b.status()["apply_error"] == "no space")
    volume.pwrite = pwrite  # type: ignore[method-assign]
    eventually(lambda: served.pair.b.image() == served.pair.a.image())
    eventually(lambda: "apply-resumed" in served.names())


def test_the_copier_finishes_a_copy_by_itself(served: Served) -> None:
    roles.overflow(served.pair.a.engine)
    served.a.write(0, 0, b"\1" * 4096)
    served.a.write(1, 4096, b"\2" * 4096)
    served.pair.meet()
    served.a.start()
    served.b.start()
    served.a.resume_copy()

    def shipped() -> bool:
        served.pair.ship(served.pair.a, served.pair.b)
        return served.pair.b.engine.state.copy == OK

    eventually(shipped)
    assert served.pair.a.image() == served.pair.b.image()


def test_a_takeover_while_the_follower_works_applies_nothing_twice(served: Served) -> None:
    served.b.start()
    for n in range(50):
        served.a.write(0, n % 8 * 4096, bytes([n + 1]) * 4096)
    served.pair.ship(served.pair.a, served.pair.b)
    served.b.promote()
    for n in range(50):
        served.b.write(0, n % 8 * 4096, bytes([n + 100]) * 4096)
    time.sleep(0.1)
    assert served.pair.b.image()[0][:32768:4096] == bytes([148, 149, 142, 143, 144, 145, 146, 147])
    assert served.pair.b.page[HEAD_SEQ] == served.b.seq


def test_stop_ends_the_threads_and_leaves_the_group_clean(served: Served) -> None:
    served.a.start()
    served.a.write(0, 0, b"\1" * 4096)
    served.a.stop()
    assert not any(thread.is_alive() for thread in served.a._threads)
    assert served.durable_state(served.pair.a).clean


def test_status_settles_a_secondary_before_a_handshake(served: Served) -> None:
    served.a.write(0, 0, b"\1" * 4096)
    served.pair.ship(served.pair.a, served.pair.b)
    status = served.b.status(settle=True)
    assert status["role"] == SECONDARY
    assert status["applied"] == status["pos"] == served.a.seq
    assert not follower.apply_some(served.pair.b.engine)


def test_from_the_moment_records_flow_it_is_known_how_far_the_peer_is_behind(served: Served) -> None:
    side = served.pair.a
    side.page[PEER_RECEIVED_SEQ] = side.page[HEAD_SEQ]
    served.a.set_link(B, True)
    for n in range(5):
        served.a.write(0, n * 4096, b"x" * 4096)
    behind = served.a.status()["behind"]
    assert behind is not None
    assert behind["writes"] == 5 and behind["bytes"] == 5 * (4096 + 64) and 0 <= behind["seconds"] < 60


def test_the_replicator_hears_of_a_write_before_the_pool_takes_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = served.pair.a
    side.page[REPLICATOR_ASLEEP] = 1
    order: list[str] = []
    volume = side.engine.volumes[0]
    monkeypatch.setattr(side.engine, "announce", lambda _slot: order.append(f"heard {side.page[HEAD_SEQ]}"))
    monkeypatch.setattr(volume, "pwrite", lambda buf, offset: order.append("pool"))
    seq = side.page[HEAD_SEQ] + 1
    served.a.write(0, 0, b"x" * 4096)
    assert order == [f"heard {seq}", "pool"], "its record is in the journal by then"
