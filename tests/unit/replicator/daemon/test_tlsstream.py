"""TLS over a socket in large pieces: what goes in comes out, ends are told from silence, nothing is lost on the way."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.daemon.identity import load_or_create
from replicator.daemon.link.connection import Connection, Lost
from replicator.daemon.link.wire import CONTROL, control, parse_control
from replicator.daemon.tlsstream import PIECE_BYTES, TlsStream
from tests.testing.linkpair import tls_pair

Ends = tuple[TlsStream, TlsStream]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    pair = tls_pair(tmp_path)
    for end in pair:
        end.settimeout(10)
    yield pair
    for end in pair:
        end.close()


def read(stream: TlsStream, count: int) -> bytes:
    """Read until there are `count` bytes or the end."""
    buf = memoryview(bytearray(count))
    got = 0
    while got < count and (n := stream.recv_into(buf[got:])):
        got += n
    return bytes(buf[:got])


@pytest.mark.parametrize("size", [1, 16384, 16385, PIECE_BYTES, 3 * PIECE_BYTES + 5])
def test_what_is_sent_arrives(ends: Ends, size: int) -> None:
    one, other = ends
    for sender, receiver in ((one, other), (other, one)):
        data = os.urandom(size)
        thread = threading.Thread(target=sender.sendall, args=(data,))
        thread.start()
        assert read(receiver, size) == data
        thread.join()


def test_many_small_messages_are_read_one_by_one(ends: Ends) -> None:
    one, other = ends
    for n in range(100):
        one.sendall(bytes([n]) * 10)
    assert [read(other, 10)[0] for _ in range(100)] == list(range(100))
    assert not other.unread


def test_the_end_is_told_from_silence(ends: Ends) -> None:
    one, other = ends
    other.unblock()
    with pytest.raises(BlockingIOError):
        other.recv_into(memoryview(bytearray(10)))
    one.sendall(b"last")
    one.close()
    time.sleep(0.1)
    assert read(other, 10) == b"last"
    assert other.recv_into(memoryview(bytearray(10))) == 0


def test_an_end_inside_a_tls_record_is_an_end(tmp_path: Path) -> None:
    """A line that is cut after some bytes of a record neither leaves the reader waiting nor gives it half of one."""
    one, other = tls_pair(tmp_path)
    raw = socket.socket(fileno=os.dup(one.fileno()))
    raw.sendall(b"\x17\x03\x03\x01\x00" + bytes(100))  # the head of a record of 256 bytes, and a part of it
    raw.shutdown(socket.SHUT_RDWR)
    assert other.recv_into(memoryview(bytearray(10))) == 0
    for sock in (raw, one, other):
        sock.close()


def test_bytes_that_were_changed_on_the_way_are_an_error(tmp_path: Path) -> None:
    one, other = tls_pair(tmp_path)
    raw = socket.socket(fileno=os.dup(one.fileno()))
    raw.sendall(b"\x17\x03\x03\x01\x00" + bytes(256))
    with pytest.raises(ssl.SSLError):
        other.recv_into(memoryview(bytearray(10)))
    for sock in (raw, one, other):
        sock.close()


def test_a_full_socket_takes_nothing_twice_and_loses_nothing(ends: Ends) -> None:
    one, other = ends
    one.unblock()
    data = os.urandom(64 << 20)
    view, sent = memoryview(data), 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += one.send(view[sent:])
    assert one.unsent and sent < len(data)

    def rest() -> None:
        at = sent
        while at < len(data) or one.unsent:
            try:
                if at < len(data):
                    at += one.send(view[at:])
                else:
                    one.flush()
            except BlockingIOError:
                time.sleep(0.001)

    thread = threading.Thread(target=rest)
    thread.start()
    assert read(other, len(data)) == data
    thread.join()


def test_a_refused_handshake_reaches_the_client_as_an_alert(tmp_path: Path) -> None:
    identity = load_or_create(tmp_path / "keys", "00" * 16)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(identity.cert_path, identity.key_path)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    a, b = socket.socketpair()
    refused: list[BaseException] = []

    def accept() -> None:
        try:
            TlsStream(b, server, server_side=True)
        except ssl.SSLError as exc:
            refused.append(exc)
        b.close()

    thread = threading.Thread(target=accept)
    thread.start()
    stream = TlsStream(a, client)  # in TLS 1.3 the client is through before the server has judged its certificate
    with pytest.raises(ssl.SSLError, match=r"(?i)alert|certificate"):
        stream.recv_into(memoryview(bytearray(10)))
    thread.join()
    assert refused
    stream.close()


def test_garbage_instead_of_a_handshake_is_an_error_at_once() -> None:
    a, b = socket.socketpair()
    a.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    with pytest.raises(ssl.SSLError):
        TlsStream(b, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True)
    a.close()
    b.close()


def test_frames_read_ahead_while_blocking_are_not_lost(ends: Ends) -> None:
    """The opening is answered in blocking mode; what followed it in the same packet belongs to the link."""
    one, other = ends
    one.sendall(b"hello" + control({"t": "first"}) + control({"t": "second"}))
    time.sleep(0.1)
    assert read(other, 5) == b"hello"
    assert other.unread
    conn = Connection(other)
    for name in ("first", "second"):
        frame = conn.next_frame()
        assert frame is not None and frame[0] == CONTROL and parse_control(frame[3])["t"] == name
    assert conn.next_frame() is None
    one.close()
    time.sleep(0.1)
    with pytest.raises(Lost, match="closed"):
        conn.next_frame()


def test_what_was_sent_before_a_gentle_end_arrives(tmp_path: Path) -> None:
    one, other = tls_pair(tmp_path)
    conn = Connection(one)
    conn.send(control({"t": "last words"}))
    conn.close(gently=True)
    reader = Connection(other)
    until = time.monotonic() + 5
    while (frame := reader.next_frame()) is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert parse_control(frame[3])["t"] == "last words"
    other.close()


def test_a_goodbye_behind_data_is_an_end_for_good(tmp_path: Path) -> None:
    one, other = tls_pair(tmp_path)
    one.sendall(b"last")
    with contextlib.suppress(ssl.SSLError):
        one._tls.unwrap()  # writes close_notify, then wants the other side's
    raw = socket.socket(fileno=os.dup(one.fileno()))
    raw.sendall(one._outgoing.read())
    time.sleep(0.1)
    other.unblock()
    assert read(other, 10) == b"last"
    for _ in range(3):
        assert other.recv_into(memoryview(bytearray(10))) == 0
    for sock in (raw, one, other):
        sock.close()


def trickle(sock: socket.socket, head: bytes, stop: threading.Event) -> threading.Thread:
    """Send `head` and then a byte now and then, as somebody does who wants to keep us waiting."""

    def run() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(head)
            while not stop.wait(0.05):
                sock.sendall(b"\0")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_handshake_that_trickles_in_ends_in_time() -> None:
    a, b = socket.socketpair()
    b.settimeout(0.5)
    stop = threading.Event()
    thread = trickle(a, b"\x16\x03\x01\x02\x00", stop)  # the head of a record of 512 bytes
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        TlsStream(b, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True)
    assert time.monotonic() - began < 5
    stop.set()
    thread.join()
    a.close()
    b.close()


def test_a_record_that_trickles_in_ends_in_time(ends: Ends) -> None:
    one, other = ends
    other.settimeout(0.5)
    raw = socket.socket(fileno=os.dup(one.fileno()))
    stop = threading.Event()
    thread = trickle(raw, b"\x17\x03\x03\x40\x00", stop)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        other.recv_into(memoryview(bytearray(10)))
    assert time.monotonic() - began < 5
    stop.set()
    thread.join()
    raw.close()
