"""Control sockets: calls, errors, restarts and garbage."""

import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import control
from replicator.control import ControlClient, ControlServer
from replicator.core import errors


@pytest.mark.parametrize("value", ["7", [], -1, True, float("nan"), float("inf")])
def test_what_is_no_number_is_the_callers_mistake(value: object) -> None:
    assert control.number({"n": 7}, "n", 0) == 7 and control.number({}, "n", 5) == 5
    with pytest.raises(errors.BadInput, match="'n'"):
        control.number({"n": value}, "n", 0)


def _refuse(args: dict) -> None:
    raise errors.Refused(f"{args['name']} is primary", "use --force")


HANDLERS = {
    "test.echo": lambda args: args,
    "test.refuse": _refuse,
    "test.sleep": lambda args: time.sleep(args["s"]),
    "test.unsendable": lambda _args: object(),
    "test.bug": lambda _args: {}["nothing"],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    srv = ControlServer(tmp_path / "x.sock", HANDLERS)
    srv.start()
    yield srv
    srv.stop()


def test_a_call_returns_the_result(server: ControlServer) -> None:
    with ControlClient(server.path) as client:
        assert client.call("test.echo", a=1, b=b"\0\xff", c=["x"]) == {"a": 1, "b": b"\0\xff", "c": ["x"]}
        assert client.call("test.echo") == {}


def test_an_error_is_raised_again_and_the_connection_lives_on(server: ControlServer) -> None:
    with ControlClient(server.path) as client:
        with pytest.raises(errors.Refused, match="g1 is primary") as info:
            client.call("test.refuse", name="g1")
        assert info.value.way_out == "use --force"
        with pytest.raises(errors.BadInput, match="'name' is missing"):
            client.call("test.refuse")
        with pytest.raises(errors.NotFound, match="no operation"):
            client.call("no.such")
        with pytest.raises(errors.InternalError):
            client.call("test.unsendable")
        with pytest.raises(errors.FarstripeError) as bug:
            client.call("test.bug")
        assert bug.value.exit_code == errors.EXIT_INTERNAL
        assert client.call("test.echo", a=1) == {"a": 1}


def test_nothing_listening_is_daemon_not_running(tmp_path: Path) -> None:
    with pytest.raises(errors.DaemonNotRunning):
        ControlClient(tmp_path / "none.sock").call("test.echo")


def test_slow_handler_times_out_and_the_next_call_works(server: ControlServer) -> None:
    with ControlClient(server.path, timeout_s=0.1) as client:
        with pytest.raises(errors.TimedOut):
            client.call("test.sleep", s=0.4)
        assert client.call("test.echo", a=2) == {"a": 2}


def test_client_reconnects_after_a_restart(tmp_path: Path) -> None:
    client = ControlClient(tmp_path / "x.sock")
    for n in range(2):
        srv = ControlServer(tmp_path / "x.sock", HANDLERS)
        srv.start()
        assert client.call("test.echo", n=n) == {"n": n}
        srv.stop()
        time.sleep(0.05)
    with pytest.raises(errors.DaemonNotRunning):
        client.call("test.echo")


def test_socket_is_private_and_a_second_server_is_refused(server: ControlServer) -> None:
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    with pytest.raises(errors.AlreadyExists):
        ControlServer(server.path, HANDLERS).start()
    assert ControlClient(server.path).call("test.echo", a=1) == {"a": 1}


def test_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / "x.sock"))
    dead.close()
    srv = ControlServer(tmp_path / "x.sock", HANDLERS)
    srv.start()
    assert ControlClient(srv.path).call("test.echo") == {}
    srv.stop()
    assert not srv.path.exists()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", control.MAX_FRAME_BYTES + 1),
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 1) + b"\x01",
        struct.pack("<I", 9) + b"\x82\xa2op\x01\xa2id\x01",
        struct.pack("<I", 100) + b"short",
    ],
)
def test_garbage_closes_that_connection_only(server: ControlServer, garbage: bytes) -> None:
    good = ControlClient(server.path)
    assert good.call("test.echo") == {}
    bad = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bad.settimeout(5)
    bad.connect(str(server.path))
    bad.sendall(garbage)
    bad.shutdown(socket.SHUT_WR)
    try:
        assert bad.recv(10) == b""
    except ConnectionResetError:
        pass  # closed with our bytes unread
    assert good.call("test.echo", a=1) == {"a": 1}


def test_calls_of_many_threads_do_not_mix(server: ControlServer) -> None:
    client = ControlClient(server.path)
    wrong: list[int] = []

    def work(n: int) -> None:
        for i in range(50):
            if client.call("test.echo", v=n * 100 + i) != {"v": n * 100 + i}:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.usefixtures("server")
def test_a_node_of_many_pairs_has_a_connection_for_each(tmp_path: Path) -> None:
    """Each pair's thread keeps one to the target: with room for 64 the sixty-third group could not be paired."""
    clients = [ControlClient(tmp_path / "x.sock", 5) for _ in range(300)]
    try:
        assert [client.call("test.echo", n=n)["n"] for n, client in enumerate(clients)] == list(range(300))
    finally:
        for client in clients:
            client.close()
