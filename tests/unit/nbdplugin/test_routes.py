"""Where requests go, and changing that under load."""

from __future__ import annotations

import errno
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nbdplugin import routes
from nbdplugin.routes import ReadGuard, Slots, VolumeRoute, group_slots, pool_slots
from raidlib.errors import OutOfSpace
from replicator.core.errors import FarstripeError, Refused, TimedOut


class MemoryVolume:
    """A volume that notes calls and can hold writes back."""

    name, uuid, readonly = "v", "0" * 32, False

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.data = bytearray(size)
        self.calls: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.entered = threading.Event()

    def pread_into(self, buf: Any, off: int) -> None:
        buf[:] = self.data[off : off + len(buf)]

    def writer(self, buf: Any, off: int) -> None:
        self.entered.set()
        self.go_on.wait(10)
        self.data[off : off + len(buf)] = buf
        self.calls.append("write")

    def zero(self, off: int, length: int, punch: bool) -> None:
        self.data[off : off + length] = bytes(length)
        self.calls.append("punch" if punch else "zero")

    def extents(self, off: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]


class Connection:
    """Stands in for the plugin's handle."""

    def __init__(self, route: VolumeRoute) -> None:
        self.route = route


def request(h: Connection, buf: bytes, off: int) -> None:
    """Stands in for the plugin's pwrite callback."""
    h.route.write(buf, off)


routes.watched_codes.add(request.__code__)


def _other_slots(calls: list[str]) -> Slots:
    def note(*_args: object) -> None:
        calls.append("engine")

    return Slots(note, note, note, note, note)


def _route(volume: MemoryVolume) -> VolumeRoute:
    return VolumeRoute(volume, pool_slots(volume, lambda: volume.calls.append("sync")))


def test_fua_writes_and_zeroes_are_synced_before_they_return() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    route.write_fua(b"abc", 5)
    route.zero(0, 4, False, True)
    route.trim(4096, 4096, True)
    assert volume.calls == ["write", "sync", "zero", "sync", "punch", "sync"]


def test_plain_requests_do_not_sync() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    route.write(b"abc", 5)
    route.zero(0, 4, True, False)
    route.trim(4096, 4096, False)
    assert volume.calls == ["write", "punch", "punch"]


def test_switch_waits_for_a_request_under_way_and_parks_new_ones() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    handle, calls = Connection(route), volume.calls
    volume.go_on.clear()
    old = threading.Thread(target=request, args=(handle, b"old", 0))
    old.start()
    volume.entered.wait(5)
    switcher = threading.Thread(target=route.switch, args=(_other_slots(calls), "group", 3))
    switcher.start()
    time.sleep(0.05)
    new = threading.Thread(target=request, args=(handle, b"new", 0))
    new.start()
    time.sleep(0.05)
    assert calls == [] and switcher.is_alive() and new.is_alive()
    volume.go_on.set()
    for thread in (old, switcher, new):
        thread.join(5)
    assert calls == ["write", "engine"]
    assert (route.group, route.index) == ("group", 3)


def test_switch_gives_up_on_a_stuck_request_and_leaves_the_old_way_in_place() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    volume.go_on.clear()
    stuck = threading.Thread(target=request, args=(Connection(route), b"x", 0))
    stuck.start()
    volume.entered.wait(5)
    with pytest.raises(TimedOut):
        route.switch(_other_slots([]), "group", 0, timeout_s=0.05)
    volume.go_on.set()
    stuck.join(5)
    route.write(b"y", 0)
    assert volume.calls == ["write", "write"]
    assert route.group is None


def test_switch_does_not_wait_for_requests_to_other_volumes() -> None:
    volume, other = MemoryVolume(), MemoryVolume()
    other.go_on.clear()
    busy = threading.Thread(target=request, args=(Connection(_route(other)), b"x", 0))
    busy.start()
    other.entered.wait(5)
    _route(volume).switch(_other_slots([]), "group", 0, timeout_s=1)
    other.go_on.set()
    busy.join(5)


def test_no_write_is_lost_or_seen_by_the_old_way_while_switching_under_load() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    handle = Connection(route)
    switched = threading.Event()
    late: list[str] = []
    plain = volume.writer

    def checked(buf: Any, off: int) -> None:
        if switched.is_set():
            late.append("write through the old way after the switch")
        plain(buf, off)

    volume.writer = checked  # type: ignore[method-assign]
    route = handle.route = _route(volume)
    stop = threading.Event()
    done = [0] * 4

    def load(n: int) -> None:
        while not stop.is_set():
            request(handle, b"z" * 8, n * 8)
            done[n] += 1

    threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    calls: list[str] = []
    route.switch(_other_slots(calls), "group", 0)
    switched.set()
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert not late
    assert sum(done) == volume.calls.count("write") + calls.count("engine")


def _noting(noted: list[str], what: str) -> routes.Around:
    def around(inner: Any) -> Any:
        def request(buf: Any, off: int) -> None:
            inner(buf, off)
            noted.append(what)

        return request

    return around


def test_a_watched_volume_is_as_before_and_every_request_is_noted_until_it_is_not_watched() -> None:
    volume, noted = MemoryVolume(), []
    route = _route(volume)
    plain = route.read, route.write, route.write_fua
    route.watch(_noting(noted, "read"), _noting(noted, "write"))
    route.write(b"abc", 5)
    route.write_fua(b"def", 8)
    got = bytearray(6)
    route.read(got, 5)
    assert (bytes(got), volume.calls) == (b"abcdef", ["write", "write", "sync"])
    assert noted == ["write", "write", "read"]
    route.unwatch()
    assert (route.read, route.write, route.write_fua) == plain


def test_a_switch_under_a_watch_waits_for_watched_requests_and_is_what_stays() -> None:
    volume, noted, engine = MemoryVolume(), [], []
    route = _route(volume)
    route.watch(_noting(noted, "read"), _noting(noted, "write"))
    volume.go_on.clear()
    writer = threading.Thread(target=request, args=(Connection(route), b"abc", 0))
    writer.start()
    volume.entered.wait(5)
    with pytest.raises(TimedOut):
        route.switch(_other_slots(engine), object(), 0, timeout_s=0.05)
    volume.go_on.set()
    writer.join(5)
    assert noted == ["write"]
    route.switch(_other_slots(engine), object(), 0)
    route.unwatch()
    route.write(b"x", 0)
    assert engine == ["engine"]
    route.watch(_noting(noted, "read"), _noting(noted, "write"))
    route.write(b"x", 0)
    assert noted == ["write"], "what a group does before it writes is not the pool's time"


def test_where_nothing_may_change_nothing_is_watched_but_reads() -> None:
    noted: list[str] = []
    route = _route(MemoryVolume())
    route.block("it is lost")
    route.watch(_noting(noted, "read"), _noting(noted, "write"))
    with pytest.raises(FarstripeError, match="it is lost"):
        route.write(b"x", 0)
    route.unwatch()
    with pytest.raises(FarstripeError, match="it is lost"):
        route.write(b"x", 0)


def test_a_parked_route_lets_nobody_in_waits_for_who_is_inside_and_refuses_in_the_end() -> None:
    volume = MemoryVolume()
    route = _route(volume)
    volume.go_on.clear()
    inside = threading.Thread(target=request, args=(Connection(route), b"old", 0))
    inside.start()
    assert volume.entered.wait(5)
    route.park()
    assert route.busy
    refused: list[int] = []

    def late(call: Any) -> None:
        with pytest.raises(Refused) as caught:
            call()
        refused.append(caught.value.errno)

    calls = [
        lambda: request(Connection(route), b"new", 0),
        lambda: route.read(bytearray(3), 0),
        lambda: route.flush(),
    ]
    threads = [threading.Thread(target=late, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    volume.go_on.set()
    inside.join(5)
    assert not route.busy, "the parked ones do not count"
    assert not refused
    route.refuse_parked()
    for thread in threads:
        thread.join(5)
    assert refused == [errno.ESHUTDOWN] * 3
    assert bytes(volume.data[:3]) == b"old"


@pytest.mark.parametrize("fua", [False, True])
def test_a_trim_that_there_is_no_room_for_is_answered_and_zeroes_are_not(fua: bool) -> None:
    def full(*_args: object) -> None:
        raise OutOfSpace("the members have no room left for metadata of areas that come or go")

    volume = MemoryVolume()
    volume.zero = full  # type: ignore[method-assign,assignment]
    slots = pool_slots(volume, lambda: volume.calls.append("sync"))
    slots.trim(0, 4096, fua)
    assert volume.calls == ["sync"] * fua
    with pytest.raises(OutOfSpace):
        slots.zero(0, 4096, True, fua)
    service = SimpleNamespace(write=None, zero=full, flush=lambda: volume.calls.append("flush"))
    grouped = group_slots(service, 0)
    grouped.trim(0, 4096, fua)
    assert volume.calls == ["sync"] * fua + ["flush"] * fua
    with pytest.raises(OutOfSpace):
        grouped.zero(0, 4096, True, fua)


# -- guarded reads


def _read(h: Connection, buf: bytearray, off: int) -> object:
    """Stands in for the plugin's pread callback."""
    return h.route.read(buf, off)


class Reads:
    """Stands in for a group's GuardedReads."""

    def __init__(self) -> None:
        self.unanswered: dict[int, str] = {}
        self.settled: list[tuple[int, int, int]] = []

    def settle(self, volume: int, off: int, length: int) -> bool:
        self.settled.append((volume, off, length))
        return True


def test_a_guarded_read_asks_only_while_something_is_unanswered_and_after_it_has_read() -> None:
    volume, reads = MemoryVolume(), Reads()
    route = _route(volume)
    bare = route.read
    route.guard_reads(ReadGuard(reads, 3))
    assert route.read(bytearray(4), 8) is False
    assert route.extents(0, 64) == [(64, True)]
    assert not reads.settled
    reads.unanswered[1] = "a write"
    assert route.read(bytearray(4), 8) is True
    assert route.extents(0, 64) == [(64, True)]
    assert reads.settled == [(3, 8, 4), (3, 0, 64)]
    route.read_by(volume.pread_into)
    route.watch(_noting([], "read"), None)
    route.unwatch()
    route.read(bytearray(4), 8)
    assert len(reads.settled) == 3, "another place, and being watched, change nothing"
    route.guard_reads(None)
    assert route.read == bare


def test_reads_that_began_unguarded_have_ended_when_the_guard_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "reading_codes", {_read.__code__})
    volume, reads = MemoryVolume(), Reads()
    reads.unanswered[1] = "a write"
    entered, go_on = threading.Event(), threading.Event()

    def slow(buf: Any, off: int) -> None:
        entered.set()
        go_on.wait(5)

    route = _route(volume)
    route.read_by(slow)
    old = threading.Thread(target=_read, args=(Connection(route), bytearray(4), 0))
    old.start()
    assert entered.wait(5)
    with pytest.raises(TimedOut):
        route.guard_reads(ReadGuard(reads, 0), timeout_s=0.05)
    assert route.read == slow
    guarding = threading.Thread(target=route.guard_reads, args=(ReadGuard(reads, 0),))
    guarding.start()
    time.sleep(0.02)
    new = threading.Thread(target=_read, args=(Connection(route), bytearray(2), 0))
    new.start()
    time.sleep(0.02)
    assert guarding.is_alive() and new.is_alive() and not reads.settled
    go_on.set()
    for thread in (old, guarding, new):
        thread.join(5)
        assert not thread.is_alive()
    assert reads.settled == [(0, 0, 2)], "the old one ended unguarded, the new one did not begin before"


def _extents(h: Connection, off: int, length: int) -> object:
    """Stands in for the plugin's extents callback."""
    return h.route.extents(off, length)


def test_who_asks_where_zeroes_are_is_guarded_like_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "reading_codes", {_extents.__code__})
    volume, reads = MemoryVolume(), Reads()
    reads.unanswered[1] = "a write"
    entered, go_on = threading.Event(), threading.Event()

    def slow(off: int, length: int) -> list[tuple[int, bool]]:
        entered.set()
        go_on.wait(5)
        return [(length, True)]

    volume.extents = slow  # type: ignore[method-assign]
    route = _route(volume)
    threads = [threading.Thread(target=_extents, args=(Connection(route), 0, 8))]
    threads[0].start()
    assert entered.wait(5)
    threads.append(threading.Thread(target=route.guard_reads, args=(ReadGuard(reads, 0),)))
    threads[1].start()
    time.sleep(0.02)
    threads.append(threading.Thread(target=_extents, args=(Connection(route), 0, 16)))
    threads[2].start()
    time.sleep(0.02)
    assert threads[1].is_alive() and not reads.settled
    go_on.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert reads.settled == [(0, 0, 16)]


def test_a_read_that_waits_for_a_peer_keeps_nothing_from_being_switched_or_guarded_and_parking_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "reading_codes", {_read.__code__})
    volume, reads = MemoryVolume(), Reads()
    reads.unanswered[1] = "a write"
    inside, answered = threading.Event(), threading.Event()

    def settle(*_: int) -> bool:
        inside.set()
        return answered.wait(5)

    reads.settle = settle  # type: ignore[method-assign]
    route = _route(volume)
    route.guard_reads(ReadGuard(reads, 0))
    waiting = threading.Thread(target=_read, args=(Connection(route), bytearray(4), 0))
    waiting.start()
    assert inside.wait(5)
    route.switch(_other_slots([]), object(), 0, timeout_s=1)
    route.guard_reads(None)
    route.park()
    assert route.busy
    answered.set()
    waiting.join(5)
    assert not route.busy
