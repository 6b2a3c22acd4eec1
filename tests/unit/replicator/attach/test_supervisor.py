from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from replicator.attach import device, supervisor
from replicator.attach.handshake import FLAG_CAN_MULTI_CONN, FLAG_READ_ONLY, Endpoint, Export
from replicator.attach.records import Attachment
from replicator.attach.supervisor import Supervisor, choose_block_size
from replicator.core.errors import BadInput, PeerError, Refused

GIB = 1 << 30


class FakeKernel:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.connects: list[dict[str, Any]] = []
        self.reconfigures: list[dict[str, Any]] = []
        self.fail_connect: Exception | None = None

    def connect(self, sockets: list[socket.socket], **options: Any) -> int:
        if self.fail_connect:
            raise self.fail_connect
        self.connects.append({"sockets": len(sockets), **options})
        return 3

    def reconfigure(self, index: int, sockets: list[socket.socket], **options: Any) -> None:
        self.reconfigures.append({"index": index, "sockets": len(sockets), **options})


class FakeServer:
    """Dials succeed with the current export, or fail with `away`. Keeps both ends, so leaks show."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.away: Exception | None = None
        self.pairs: list[tuple[socket.socket, socket.socket]] = []

    def dial(self, _endpoint: Endpoint, _name: str) -> tuple[socket.socket, Export]:
        if self.away:
            raise self.away
        pair = socket.socketpair()
        self.pairs.append(pair)
        return pair[0], self.export

    def close(self) -> None:
        for _, theirs in self.pairs:
            theirs.close()

    @property
    def all_closed_here(self) -> bool:
        return all(ours.fileno() == -1 for ours, _ in self.pairs)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    set_to: list[int] = []
    monkeypatch.setattr(device, "set_request_timer", lambda index: set_to.append(index))
    return set_to


Make = Callable[..., tuple[Supervisor, FakeKernel, FakeServer, list[str]]]


@pytest.fixture
def make(timers: list[int]) -> Any:
    servers = []

    def build(size: int = GIB, flags: int = FLAG_CAN_MULTI_CONN, **wanted: Any) -> Any:
        server, kernel, log = FakeServer(Export(size, flags)), FakeKernel(), []  # type: ignore[var-annotated]
        servers.append(server)
        at = Attachment(export="data", endpoint=Endpoint(path="/s"), **wanted)
        return Supervisor(kernel, at, log.append, server.dial), kernel, server, log

    yield build
    for server in servers:
        server.close()


def test_connect_hands_over_every_connection_and_keeps_none(make: Make, timers: list[int]) -> None:
    sup, kernel, server, _ = make(connections=3, dead_timeout_s=60)
    at = sup.connect()
    assert kernel.connects[0]["sockets"] == 3
    assert (
        kernel.connects[0] | {"size": GIB, "dead_timeout_s": 60, "identifier": "farstripe:data", "index": None}
        == (kernel.connects[0])
    )
    assert (at.index, at.size, at.block_size) == (3, GIB, 4096)
    assert server.all_closed_here
    assert timers == []  # several connections: a short timer would kill slow ones


def test_one_connection_gets_a_short_request_timer(make: Make, timers: list[int]) -> None:
    make()[0].connect()
    assert timers == [3]


def test_a_timeout_of_the_users_is_left_alone(make: Make, timers: list[int]) -> None:
    make(timeout_s=9)[0].connect()
    assert timers == []


def test_a_failed_connect_leaves_nothing_behind(make: Make) -> None:
    sup, kernel, server, _ = make(connections=2)
    kernel.fail_connect = Refused("no")
    with pytest.raises(Refused):
        sup.connect()
    assert server.all_closed_here


def test_several_connections_need_a_server_that_promises_coherence(make: Make) -> None:
    with pytest.raises(Refused, match="coherence"):
        make(flags=0, connections=2)[0].connect()


def test_read_only_is_the_users_wish_or_the_servers(make: Make) -> None:
    sup, kernel, _, _ = make(read_only=True)
    assert sup.connect().read_only
    assert kernel.connects[0]["server_flags"] & FLAG_READ_ONLY
    assert make(flags=FLAG_READ_ONLY)[0].connect().read_only


@pytest.mark.parametrize(
    ("size", "least", "wanted", "chosen"),
    [(GIB, 1, 0, 4096), (GIB + 512, 1, 0, 512), (GIB, 4096, 0, 4096), (GIB, 1, 512, 512), (GIB + 512, 512, 0, 512)],
)
def test_block_size(size: int, least: int, wanted: int, chosen: int) -> None:
    assert choose_block_size(Export(size, 0, min_block=least), wanted) == chosen


@pytest.mark.parametrize(
    ("size", "least", "wanted"),
    [(GIB, 1, 1000), (GIB, 1, 256), (GIB, 1, 8192), (GIB, 4096, 512), (GIB + 512, 1, 4096), (100, 1, 0)],
)
def test_block_sizes_that_cannot_be(size: int, least: int, wanted: int) -> None:
    with pytest.raises(BadInput):
        choose_block_size(Export(size, 0, min_block=least), wanted)


def test_a_server_with_huge_blocks_cannot_be_attached() -> None:
    with pytest.raises(Refused, match="page"):
        choose_block_size(Export(GIB, 0, min_block=64 << 10), 0)


def always() -> bool:
    return True


def test_healing_dials_until_the_server_is_back(make: Make, timers: list[int]) -> None:
    sup, kernel, server, log = make()
    sup.connect()
    server.away = PeerError("gone")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            server.away = None

    assert sup.heal(always, pause)
    assert pauses == [*supervisor.BACK_OFF_S, *[supervisor.BACK_OFF_S[-1]] * 5]
    release, final = kernel.reconfigures
    assert (release["sockets"], release["timeout_s"]) == (0, 1)  # requests in flight are taken back
    assert (final["sockets"], final["timeout_s"], final["index"]) == (1, 0, 3)
    assert timers == [3, 3]
    assert len(log) == 2 and "gone" in log[0] and "connected again" in log[1]  # not a line a try


def test_healing_ends_when_the_device_goes_away(make: Make) -> None:
    sup, _, server, _ = make()
    sup.connect()
    server.away = PeerError("gone")
    answers = [True, True, False]
    assert not sup.heal(lambda: answers.pop(0), lambda _s: None)


def test_every_connection_is_offered_again(make: Make) -> None:
    sup, kernel, _, _ = make(connections=4)
    sup.connect()
    assert sup.heal(always)
    assert [one["sockets"] for one in kernel.reconfigures] == [4]


def test_a_writer_is_not_given_a_connection_that_cannot_write(make: Make) -> None:
    sup, kernel, server, log = make()
    sup.connect()
    server.export = Export(GIB, FLAG_READ_ONLY)
    answers = [True, True, False]
    assert not sup.heal(lambda: answers.pop(0), lambda _s: None)
    assert all(one["sockets"] == 0 for one in kernel.reconfigures)
    assert "read-only there now" in log[0]
    assert sum(ours.fileno() != -1 for ours, _ in server.pairs) == 1


def test_a_grown_volume_is_seen_at_the_next_connection(make: Make) -> None:
    sup, kernel, server, log = make()
    sup.connect()
    server.export = Export(2 * GIB, 0)
    sup.heal(always)
    assert sup.at.size == kernel.reconfigures[-1]["size"] == 2 * GIB
    assert any("size changed" in line for line in log)


def test_a_refresh_ends_the_connection_when_the_size_is_another_and_nothing_is_in_flight(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [2, 1, 0]
    monkeypatch.setattr(device, "in_flight", lambda _index: busy.pop(0))
    sup, _, server, _ = make()
    sup.connect()
    _, theirs = server.pairs[0]
    theirs.setblocking(False)
    sup.refresh()
    with pytest.raises(BlockingIOError):
        theirs.recv(1)  # same size: still connected
    server.export = Export(3 * GIB, 0)
    sup.refresh(lambda _s: None)
    assert theirs.recv(1) == b"" and busy == []
    assert sup.heal(always) and sup.at.size == 3 * GIB


def test_several_connections_are_not_ended_by_a_refresh(make: Make) -> None:
    sup, _, server, log = make(connections=2)
    sup.connect()
    server.export = Export(3 * GIB, FLAG_CAN_MULTI_CONN)
    sup.refresh()
    assert "attach again" in log[0]


def test_a_refresh_without_a_server_changes_nothing(make: Make) -> None:
    sup, kernel, server, log = make()
    sup.connect()
    server.away = PeerError("gone")
    sup.refresh()
    assert kernel.reconfigures == [] and "not refreshed" in log[0]


def test_only_one_reference_to_the_only_connection_is_kept(make: Make) -> None:
    sup, _, server, _ = make()
    sup.connect()
    for _ in range(3):
        sup.heal(always)
    assert [ours.fileno() == -1 for ours, _ in server.pairs] == [True, True, True, False]
