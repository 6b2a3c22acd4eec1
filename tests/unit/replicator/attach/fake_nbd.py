"""A scripted NBD server for tests of the client's negotiation: it says exactly what a test tells it to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from replicator.attach.handshake import Endpoint

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


def reply(kind: int, body: bytes = b"", option: int = 7) -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(body)) + body


def info_export(size: int, flags: int) -> bytes:
    return reply(3, struct.pack(">HQH", 0, size, flags))


def info_block_size(least: int, preferred: int, most: int) -> bytes:
    return reply(3, struct.pack(">HIII", 3, least, preferred, most))


ACK = reply(1)


class FakeServer:
    """Answer one connection with `greeting`, and the client's NBD_OPT_GO with `answer`. `name` is what it asked for."""

    def __init__(self, answer: bytes, greeting: bytes = GREETING) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(host="127.0.0.1", port=self._listener.getsockname()[1])
        self.name: str | None = None
        self.after = b""
        self._script: Callable[[socket.socket], None] = lambda sock: self._talk(sock, greeting, answer)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        with sock:
            sock.settimeout(5)
            try:
                self._script(sock)
            except (OSError, EOFError):
                pass  # the client hung up, which may be what the test wants

    def _talk(self, sock: socket.socket, greeting: bytes, answer: bytes) -> None:
        sock.sendall(greeting)
        self._exactly(sock, 4)
        _, option, length = struct.unpack(">QII", self._exactly(sock, 16))
        assert option == 7
        data = self._exactly(sock, length)
        self.name = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
        sock.sendall(answer)
        while part := sock.recv(4096):
            self.after += part

    @staticmethod
    def _exactly(sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.close()
        self._thread.join(6)
