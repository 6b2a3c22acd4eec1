from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from replicator.attach import handshake
from replicator.attach.handshake import Endpoint, hang_up, negotiate
from replicator.core.errors import BadInput, FarstripeError, NotFound, PeerError, ProtocolError, Refused, TimedOut
from tests.unit.replicator.attach.fake_nbd import ACK, GREETING, FakeServer, info_block_size, info_export, reply

FLAGS = handshake.FLAG_SEND_FLUSH | handshake.FLAG_CAN_MULTI_CONN | 1


def test_size_flags_and_block_sizes_are_what_the_server_says() -> None:
    with FakeServer(info_export(1 << 30, FLAGS) + info_block_size(512, 4096, 1 << 25) + ACK) as server:
        sock, export = negotiate(server.endpoint, "data")
        sock.close()
    assert server.name == "data"
    assert export == handshake.Export(1 << 30, FLAGS, 512, 4096, 1 << 25)
    assert export.multi_conn and not export.read_only


def test_nothing_beyond_the_negotiation_is_read() -> None:
    with FakeServer(info_export(4096, FLAGS) + ACK + b"transmission") as server:
        sock, _ = negotiate(server.endpoint, "data")
        with sock:
            assert sock.gettimeout() is None
            assert sock.recv(100) == b"transmission"


def test_infos_nobody_asked_for_are_ignored() -> None:
    with FakeServer(reply(3, b"\x00\x63xyz") + info_export(4096, FLAGS) + ACK) as server:
        sock, export = negotiate(server.endpoint, "data")
        sock.close()
    assert export.size == 4096


def test_the_socket_has_keepalive_that_notices_a_silent_death() -> None:
    with FakeServer(info_export(4096, FLAGS) + ACK) as server:
        sock, _ = negotiate(server.endpoint, "data")
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == handshake.USER_TIMEOUT_MS


def test_hanging_up_says_goodbye() -> None:
    with FakeServer(info_export(4096, FLAGS) + ACK) as server:
        sock, _ = negotiate(server.endpoint, "data")
        hang_up(sock)
    assert server.after[:8] == bytes.fromhex("2560951300000002")  # request magic, no flags, NBD_CMD_DISC
    assert len(server.after) == 28


@pytest.mark.parametrize(
    ("greeting", "answer", "error", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"", ProtocolError, "does not speak"),
        (GREETING[:16] + b"\0\0", b"", ProtocolError, "fixed newstyle"),
        (GREETING, b"x" * 20, ProtocolError, "makes no sense"),
        (GREETING, reply(1, option=6), ProtocolError, "makes no sense"),
        (GREETING, ACK, ProtocolError, "without telling its size"),
        (GREETING, reply(1 << 31 | 6), NotFound, "no export 'data'"),
        (GREETING, reply(1 << 31 | 2, b"go away"), Refused, "go away"),
        (GREETING, reply(1 << 31 | 5), Refused, "TLS"),
        (GREETING, reply(1 << 31 | 7), PeerError, "shutting down"),
        (GREETING, reply(1 << 31 | 99), Refused, "0x80000063"),
    ],
)
def test_a_server_that_misbehaves_or_refuses(
    greeting: bytes, answer: bytes, error: type[FarstripeError], words: str
) -> None:
    with FakeServer(answer, greeting) as server, pytest.raises(error, match=words):
        negotiate(server.endpoint, "data")


def test_an_oversized_reply_is_not_read() -> None:
    huge = reply(3)[:-4] + (1 << 20).to_bytes(4, "big")
    with FakeServer(huge) as server, pytest.raises(ProtocolError):
        negotiate(server.endpoint, "data")


def test_a_silent_server_is_given_up() -> None:
    with FakeServer(b"") as server, pytest.raises(TimedOut):
        negotiate(server.endpoint, "data", timeout_s=0.2)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(PeerError, match="no NBD server answers") as caught:
        negotiate(Endpoint(host="127.0.0.1", port=port), "data")
    assert caught.value.way_out


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(BadInput):
        negotiate(Endpoint(path="/nowhere"), "x" * 4097)


@pytest.mark.skipif(not shutil.which("nbdkit"), reason="needs nbdkit")
def test_nbdkit_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = subprocess.Popen(["nbdkit", "-f", "-r", "-U", str(path), "memory", "8M"])
    try:
        until = time.monotonic() + 10
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        sock, export = negotiate(Endpoint(path=str(path)), "")
        hang_up(sock)
    finally:
        server.kill()
        server.wait()
    assert export.size == 8 << 20
    assert export.read_only
