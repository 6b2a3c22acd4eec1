"""Ending client connections: in-flight answers arrive, waiting ones lose their connection first."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdplugin.drain import client_sockets, drain


@pytest.fixture
def unix_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fs-", dir="/tmp") as directory:
        yield Path(directory) / "nbd.sock"


def _pair(path: Path) -> tuple[socket.socket, socket.socket, socket.socket]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    server, _ = listener.accept()
    return listener, client, server


def test_only_accepted_connections_of_our_address_are_found(unix_path: Path) -> None:
    listener, client, server = _pair(unix_path)
    a, b = socket.socketpair()
    with listener, client, server, a, b:
        found = client_sockets(unix_path, None)
        assert [s.getsockname() for s in found] == [str(unix_path)]
        for s in found:
            s.close()


def test_tcp_connections_are_found_by_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
            found = client_sockets(Path("/nowhere"), port)
            assert [s.getpeername() for s in found] == [client.getsockname()]
            for s in found:
                s.close()


def test_requests_under_way_are_answered_before_their_connection_is_cut(unix_path: Path) -> None:
    listener, client, server = _pair(unix_path)

    def serve() -> None:
        assert server.recv(1) == b""  # woken by the drain
        with pytest.raises(OSError):
            server.sendall(b"what nbdkit says of the next request")
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    answered = lambda _seconds: server.sendall(b"answer to the request before")  # noqa: E731
    assert drain(unix_path, None, lambda: 0, answered, lambda: None)
    thread.join(5)
    assert client.recv(100) == b"answer to the request before"
    assert client.recv(100) == b""
    listener.close()
    client.close()


def test_a_waiting_request_loses_its_connection_before_it_is_given_up(unix_path: Path) -> None:
    listener, client, server = _pair(unix_path)
    released = threading.Event()

    def serve() -> None:
        released.wait(5)
        with pytest.raises(OSError):
            server.sendall(b"an error that nobody must see")
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert drain(unix_path, None, lambda: 0, lambda _s: None, released.set, patience_s=0.05)
    thread.join(5)
    assert client.recv(100) == b""
    listener.close()
    client.close()


def test_a_request_whose_client_has_gone_is_given_up_too(unix_path: Path) -> None:
    waiting = [1]
    assert drain(unix_path, None, lambda: len(waiting), lambda _s: None, waiting.clear, patience_s=0.05)


def test_a_request_that_never_ends_is_reported(unix_path: Path) -> None:
    listener, client, server = _pair(unix_path)
    with listener, client, server:
        assert not drain(unix_path, None, lambda: 0, lambda _s: None, lambda: None, patience_s=0.01, deadline_s=0.05)
